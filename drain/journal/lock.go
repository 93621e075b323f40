package journal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPoll is how often a lock held by another is tried again.
	lockPoll = 10 * time.Millisecond
	// lockGrace is how long a lock is tried for, whatever the wait, while no holder is known:
	// who looks at it holds it for an instant, and a holder records itself an instant after.
	lockGrace = time.Second
)

// A Holder is who holds a lock, and for what.
type Holder struct {
	Name    string   `json:"name"` // of the lock
	ID      string   `json:"id,omitempty"`
	Kind    string   `json:"kind,omitempty"`
	Targets []string `json:"targets,omitempty"`
	// Recorder is who took it, as this machine saw it.
	Recorder *Recorder `json:"recorder,omitempty"`
	User     string    `json:"user,omitempty"` // as the caller says
	Host     string    `json:"host,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Time     time.Time `json:"time,omitzero"` // since when; zero: the holder is not known
}

// A LockedError is a lock that another holds.
type LockedError struct {
	Name   string
	Holder Holder
	Known  bool // Holder is
}

func (e *LockedError) Error() string {
	if !e.Known {
		return fmt.Sprintf("%s is locked: another drainctl holds the lock, and has not recorded what for", e.Name)
	}
	return fmt.Sprintf("%s is locked by %s", e.Name, e.Holder)
}

// String is who holds the lock, and for what, for a message.
func (h Holder) String() string {
	if h.Time.IsZero() {
		return "another drainctl, which has not recorded yet what it does"
	}
	targets := make([]string, len(h.Targets))
	for i, target := range h.Targets {
		targets[i] = quoted(target)
	}
	what := strings.TrimSpace(h.Kind + " " + strings.Join(targets, ", "))
	text := cmp.Or(what, "an operation") + " by " + Who(h.Recorder, h.User, h.Host, h.Reason, h.Time)
	if h.ID != "" {
		text += fmt.Sprintf(" (operation %s)", h.ID)
	}
	return OneLine(text)
}

// Check refuses a holder whose fields no real one has, or that are too long.
func (h Holder) Check() error {
	if h.ID != "" {
		if err := checkID(h.ID); err != nil {
			return err
		}
	}
	op := Operation{Kind: cmp.Or(h.Kind, KindDrain), Targets: h.Targets, User: h.User, Host: h.Host, Reason: h.Reason}
	return op.check()
}

// A Lock keeps other processes from taking the same one. The kernel frees it with the process.
type Lock struct {
	name string
	file *os.File
	// Unrecorded is why the holder could not be recorded, nil if it was. The lock is held all
	// the same.
	Unrecorded error
}

const lockSuffix = ".lock"

// Lock takes the lock called name. While another holds it, it waits: at most for wait, forever
// if that is negative, and not longer than ctx. Then the error is a *LockedError, or ctx's
// cause.
func (j Journal) Lock(ctx context.Context, name string, wait time.Duration, h Holder) (*Lock, error) {
	f, err := acquire(ctx, filepath.Join(j.Dir, "locks", url.QueryEscape(name)+lockSuffix), name, wait)
	if err != nil {
		return nil, err
	}
	l := &Lock{name: name, file: f}
	l.Unrecorded = l.Record(h)
	return l, nil
}

// shownTargets is how many targets each lock of an operation records.
const shownTargets = 20

// Record says who holds the lock from now on, in the place of who was recorded before. Of
// many targets the record has the first, and how many there are more.
func (l *Lock) Record(h Holder) error {
	h.Name = l.name
	if more := len(h.Targets) - shownTargets; more > 0 {
		h.Targets = append(slices.Clone(h.Targets[:shownTargets]), fmt.Sprintf("and %d more", more))
	}
	if h.Time.IsZero() {
		h.Time = time.Now()
	}
	line, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("record the holder: %w", err)
	}
	// In this order, whoever reads in between finds one whole line first.
	if _, err := l.file.WriteAt(append(line, '\n'), 0); err != nil {
		return fmt.Errorf("record the holder: %w", err)
	}
	return l.file.Truncate(int64(len(line)) + 1)
}

// Unlock frees the lock and removes its file. Doing so twice is no error.
func (l *Lock) Unlock() error {
	removeHeld(l.file)
	if err := l.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("unlock %s: %w", l.name, err)
	}
	return nil
}

// removeHeld removes a file that the caller has locked, if it is still the one at its path.
// A process that has opened it before finds it gone when it has the lock; see tryLock.
func removeHeld(f *os.File) {
	if mine, err := f.Stat(); err == nil {
		if there, err := os.Lstat(f.Name()); err == nil && os.SameFile(mine, there) {
			_ = os.Remove(f.Name())
		}
	}
}

// SweepLocks removes the lock files that processes left when they were killed.
func (j Journal) SweepLocks() {
	dir := filepath.Join(j.Dir, "locks")
	files, _ := os.ReadDir(dir) // without them there is nothing to remove
	for _, entry := range files {
		if !strings.HasSuffix(entry.Name(), lockSuffix) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, entry.Name()), os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeHeld(f)
		}
		f.Close()
	}
}

// Holders is who holds which locks now, by the locks' names.
func (j Journal) Holders() ([]Holder, error) {
	dir := filepath.Join(j.Dir, "locks")
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the locks: %w", err)
	}
	var holders []Holder
	for _, f := range files {
		escaped, ok := strings.CutSuffix(f.Name(), lockSuffix)
		name, err := url.QueryUnescape(escaped)
		if !ok || err != nil {
			continue
		}
		h, held, err := look(filepath.Join(dir, f.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the locks: %w", err)
		}
		if held {
			h.Name = name
			holders = append(holders, h)
		}
	}
	slices.SortFunc(holders, func(a, b Holder) int { return strings.Compare(a.Name, b.Name) })
	return holders, nil
}

// acquire opens and locks the file at path; see Lock.
func acquire(ctx context.Context, path, name string, wait time.Duration) (*os.File, error) {
	began := time.Now()
	for {
		f, err := tryLock(path)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		h, held, _ := look(path)
		known := held && !h.Time.IsZero()
		if waited := time.Since(began); wait >= 0 && waited >= wait && (known || waited >= lockGrace) {
			return nil, &LockedError{name, h, known}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// tryLock opens and locks the file at path; EWOULDBLOCK if another holds it. A lock on a
// file that is no longer at path keeps nobody out, and does not count.
func tryLock(path string) (*os.File, error) {
	f, err := create(path, os.O_RDWR)
	if err == nil {
		err = lockFile(f, path)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// lockFile locks an open file. It closes the file if it fails: EWOULDBLOCK if another holds
// the lock, or the file is no longer at path.
func lockFile(f *os.File, path string) error {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var mine, there os.FileInfo
		if mine, err = f.Stat(); err == nil {
			there, err = os.Stat(path)
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
			err = unix.EWOULDBLOCK
		}
	}
	if err != nil {
		f.Close()
	}
	return err
}

// look tells whether the lock on the file at path is held, and by whom as far as that is recorded.
// A shared lock tells the holder from others who only look, and from a record that a killed
// process has left.
func look(path string) (h Holder, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return h, false, err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return h, false, err
	}
	b, err := io.ReadAll(f)
	return parseHolder(b), true, err
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// parseHolder reads the first line of a lock file; what is no holder is an empty one.
func parseHolder(b []byte) (h Holder) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if !whole || json.Unmarshal(line, &h) != nil {
		return Holder{}
	}
	return h
}
