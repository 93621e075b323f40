package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPoll is how often a lock held by somebody else is tried again.
	lockPoll = 50 * time.Millisecond
	// lockLease is for how long the holder on a host keeps a lock without
	// hearing from here. It is longer than a dead connection takes to be
	// noticed here, so Lost tells before anybody else can have the lock.
	lockLease = 30 * time.Second
	// lockBeat is how often the holder hears from here.
	lockBeat = 5 * time.Second
	// lockStart is how long a holder may take to start, beyond the wait.
	lockStart = 30 * time.Second
)

// lockLocal is Host.Lock on this machine, as the user that runs it.
func lockLocal(ctx context.Context, path string, wait time.Duration) (Lock, error) {
	fail := func(err error) (Lock, error) {
		return nil, &fs.PathError{Op: "lock", Path: path, Err: pathCause(err)}
	}
	deadline := time.Now().Add(wait)
	for {
		f, err := tryLock(path)
		if err == nil {
			return &localLock{file: f, lost: make(chan struct{})}, nil
		}
		if !errors.Is(err, ErrLocked) || wait <= 0 || !time.Now().Before(deadline) {
			return fail(err)
		}
		select {
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		case <-time.After(min(lockPoll, time.Until(deadline))):
		}
	}
}

// tryLock opens and locks path; ErrLocked if another holds it.
func tryLock(path string) (*os.File, error) {
	f, _, err := openAppend(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, err
	}
	// A lock on a file that is no longer at path keeps nobody out.
	mine, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(path); err == nil && !os.SameFile(mine, there) {
			err = ErrLocked
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrLocked
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// localLock is an flock of this process. The kernel frees it with the process,
// so it is never lost before.
type localLock struct {
	file *os.File
	lost chan struct{}
}

func (l *localLock) Lost() <-chan struct{} { return l.lost }

func (l *localLock) Unlock() error {
	if err := l.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// Lock starts a process on the machine that takes the lock and holds it while
// it hears from here.
func (s scripts) Lock(ctx context.Context, path string, wait time.Duration) (Lock, error) {
	if err := checkPath("lock", path); err != nil {
		return nil, err
	}
	l, err := s.lock(ctx, s.root, path, wait)
	if !s.root && errors.Is(err, fs.ErrPermission) {
		if root, rerr := s.isRoot(ctx); rerr == nil && !root {
			l, err = s.lock(ctx, true, path, wait)
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return l, nil
}

func (s scripts) lock(ctx context.Context, root bool, path string, wait time.Duration) (Lock, error) {
	seconds := strconv.FormatFloat(max(wait, 0).Seconds(), 'f', -1, 64)
	lease := strconv.FormatFloat(lockLease.Seconds(), 'f', -1, 64)
	args := scriptArgs(dirsScript+lockScript, "holder", []string{plain(path), seconds, lease})
	p, err := s.start(ctx, Command{Args: args, Root: root})
	if err != nil {
		return nil, err
	}
	late := time.NewTimer(max(wait, 0) + lockStart)
	defer late.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if ok && line == "locked" {
				return holdLock(p), nil
			}
			if !ok {
				<-p.done
				return nil, s.lockError(p, root, args)
			}
		case <-ctx.Done():
			p.kill()
			return nil, context.Cause(ctx)
		case <-late.C:
			p.kill()
			return nil, errors.New("no answer from the process that should hold it")
		}
	}
}

// lockError is why the holder ended without the lock.
func (s scripts) lockError(p *process, root bool, args []string) error {
	if p.err != nil {
		return p.err
	}
	if root {
		if err := sudoRefusal(s, args, Result{Stderr: p.stderr, Code: p.code}); err != nil {
			return err
		}
	}
	if err := scriptError(p.code, p.stderr); err != nil {
		return err
	}
	return errors.New("the process that should hold it ended")
}

// heldLock is a lock held by a process on a host.
type heldLock struct {
	process *process
	lost    chan struct{}
	once    sync.Once
	stop    chan struct{} // closed by Unlock
}

// holdLock keeps p alive until it is unlocked.
func holdLock(p *process) *heldLock {
	l := &heldLock{process: p, lost: make(chan struct{}), stop: make(chan struct{})}
	go func() {
		beat := time.NewTicker(lockBeat)
		defer beat.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-p.done:
				close(l.lost)
				return
			case <-beat.C:
				// A write that fails or hangs is noticed by the connection's
				// keepalive, which ends the process.
				go func() { _, _ = p.stdin.Write([]byte("beat\n")) }()
			}
		}
	}()
	return l
}

func (l *heldLock) Lost() <-chan struct{} { return l.lost }

// Unlock ends the holder and waits until it has ended, and the lock is free.
func (l *heldLock) Unlock() error {
	l.once.Do(func() { close(l.stop) })
	_ = l.process.stdin.Close()
	select {
	case <-l.process.done:
		return nil
	case <-time.After(lockBeat):
		l.process.kill()
		return fmt.Errorf("unlock: its holder has not ended; the lock is freed within %v", lockLease)
	}
}
