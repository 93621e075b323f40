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

// A Holder is the operation that holds a lock, and its author.
type Holder struct {
	Name    string   `json:"name"` // of the lock
	ID      string   `json:"id,omitempty"`
	Kind    string   `json:"kind,omitempty"`
	Targets []string `json:"targets,omitempty"`
	// Recorder is the user who took the lock, as this machine saw them.
	Recorder *Recorder `json:"recorder,omitempty"`
	User     string    `json:"user,omitempty"` // as the caller says
	Host     string    `json:"host,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Time     time.Time `json:"time,omitzero"` // at which the lock was taken; zero: the holder is not known
}

// A LockedError is a lock that another process holds.
type LockedError struct {
	Name   string
	Holder Holder
	Known  bool // the holder has recorded itself
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked by %s", e.Name, e.Holder)
}

// String describes the holder for a message.
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

// Check refuses a holder with a malformed ID or kind, or with fields that are too long.
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
type Lock struct{ file *os.File }

const lockSuffix = ".lock"

func (j Journal) lockPath(name string) string {
	return filepath.Join(j.Dir, "locks", url.QueryEscape(name)+lockSuffix)
}

// Lock takes the lock called name. While another process holds it, Lock waits: at most for
// wait, without a limit if that is negative, and not longer than ctx. Then the error is a
// *LockedError, or ctx's cause. If the holder cannot be recorded, as on a full disk, the lock
// is held all the same.
func (j Journal) Lock(ctx context.Context, name string, wait time.Duration, h Holder) (*Lock, error) {
	f, err := acquire(ctx, j.lockPath(name), name, wait)
	if err != nil {
		return nil, err
	}
	h.Name = name
	_ = record(f, h)
	return &Lock{f}, nil
}

// Unlock frees the lock and removes its file. Doing so twice is no error.
func (l *Lock) Unlock() error {
	if isAtPath(l.file) {
		_ = os.Remove(l.file.Name())
	}
	if err := l.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// SweepLocks removes the lock files that processes left when they were killed.
func (j Journal) SweepLocks() {
	names, _ := j.lockNames() // without them there is nothing to remove
	for _, name := range names {
		if f, err := tryLock(j.lockPath(name)); err == nil {
			_ = (&Lock{f}).Unlock()
		}
	}
}

// Holders lists the holders of all locks, ordered by the locks' names.
func (j Journal) Holders() (holders []Holder, err error) {
	names, err := j.lockNames()
	if err != nil {
		return nil, fmt.Errorf("read the locks: %w", err)
	}
	for _, name := range names {
		h, isHeld, err := readHolder(j.lockPath(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the locks: %w", err)
		}
		if isHeld {
			h.Name = name
			holders = append(holders, h)
		}
	}
	return holders, nil
}

// lockNames lists the locks that have a file, in order.
func (j Journal) lockNames() (names []string, err error) {
	files, err := namesIn(filepath.Join(j.Dir, "locks"), lockSuffix)
	for _, escaped := range files {
		if name, err := url.QueryUnescape(escaped); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

const (
	// lockPoll is the interval at which a lock that another process holds is tried again.
	lockPoll = 10 * time.Millisecond
	// recordWait limits the time from taking a lock to recording its holder.
	recordWait = time.Second
)

// acquire opens and locks the file at path; see Lock. While the holder has not recorded itself,
// acquire waits for recordWait at least.
func acquire(ctx context.Context, path, name string, wait time.Duration) (*os.File, error) {
	for began := time.Now(); ; {
		f, err := tryLock(path)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		h, _, _ := readHolder(path)
		isKnown := !h.Time.IsZero()
		if waited := time.Since(began); wait >= 0 && waited >= wait && (isKnown || waited >= recordWait) {
			return nil, &LockedError{name, h, isKnown}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// The number of bytes of its file that a holder locks: the first byte, and the second one as well
// when it has written who it is. The locks belong to the open file (fcntl(2), F_OFD_SETLK).
const (
	heldBytes     = 1
	recordedBytes = 2
)

// tryLock opens and locks the file at path. The error is EAGAIN if another process holds the
// lock, or has replaced or removed the file: a lock on such a file keeps nobody out.
func tryLock(path string) (*os.File, error) {
	f, err := create(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	err = lockBytes(f, heldBytes)
	if err == nil {
		// An earlier drainctl sees and takes this lock only.
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil && !isAtPath(f) {
		err = unix.EAGAIN
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockBytes locks the first n bytes of a file, or fails with EAGAIN.
func lockBytes(f *os.File, n int64) error {
	return unix.FcntlFlock(f.Fd(), ofdSetLock, &unix.Flock_t{Type: unix.F_WRLCK, Len: n})
}

// isAtPath reports whether an open file is still the one at its path.
func isAtPath(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	found, err := os.Stat(f.Name())
	return err == nil && os.SameFile(opened, found)
}

// shownTargets is the number of targets that the file of a lock has at most.
const shownTargets = 20

// record writes who holds the lock on f. Of many targets it writes the first ones and the
// number of the others.
func record(f *os.File, h Holder) error {
	if more := len(h.Targets) - shownTargets; more > 0 {
		h.Targets = append(slices.Clone(h.Targets[:shownTargets]), fmt.Sprintf("and %d more", more))
	}
	if h.Time.IsZero() {
		h.Time = time.Now()
	}
	line, err := json.Marshal(h)
	if err == nil {
		err = f.Truncate(0) // a process that was killed may have left its text
	}
	if err == nil {
		_, err = f.WriteAt(append(line, '\n'), 0)
	}
	if err == nil {
		err = lockBytes(f, recordedBytes)
	}
	return err
}

// readHolder reports whether the lock on the file at path is held, and returns the holder if
// that has recorded itself. It takes no lock itself.
func readHolder(path string) (h Holder, isHeld bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return h, false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: recordedBytes}
	err = unix.FcntlFlock(f.Fd(), ofdGetLock, &lock)
	isHeld = err == nil && lock.Type != unix.F_UNLCK
	if isHeld && lock.Len == recordedBytes {
		var text []byte
		text, err = io.ReadAll(f)
		h = parseHolder(text)
	}
	return h, isHeld, err
}

// parseHolder reads the first line of a lock file. The holder is empty if that is no holder.
func parseHolder(b []byte) (h Holder) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if !whole || json.Unmarshal(line, &h) != nil {
		return Holder{}
	}
	return h
}
