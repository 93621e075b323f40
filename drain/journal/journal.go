// Package journal keeps the journal of a load balancer in one directory: the state, from which
// drainctl decides; the history, which is for people; and the locks. It reads and writes local
// files only, and knows nothing of nginx.
package journal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The defaults of a journal.
const (
	DefaultDir  = "/var/lib/drainctl"
	DefaultKeep = 1000                 // operations in the history
	MaxAge      = 365 * 24 * time.Hour // of an operation in the history
)

// A Journal is the journal in a directory. Methods that write create the directory.
type Journal struct {
	Dir  string
	Keep int // operations that the history keeps; 0: DefaultKeep
}

var (
	// ErrGone means that another process has removed the files of an operation while it ran.
	ErrGone = errors.New("the journal of this operation is gone")
	// ErrVersion means that the state has a later format.
	ErrVersion = errors.New("written by a later drainctl: update drainctl")
)

// An UnreadableError is a state file that is truncated, damaged or not drainctl's.
type UnreadableError struct {
	Path string
	Err  error
}

func (e *UnreadableError) Error() string { return fmt.Sprintf("%s is unreadable: %v", e.Path, e.Err) }
func (e *UnreadableError) Unwrap() error { return e.Err }

// idTime is the layout of the time that an ID begins with, in UTC.
const idTime = "20060102-150405.000"

// timeOf returns the time that an ID begins with.
func timeOf(id string) (time.Time, error) { return time.Parse(idTime, id[:min(len(id), len(idTime))]) }

// NewID returns an ID for an operation that begins now: its time, so that IDs sort in the order of
// the operations, and random characters, so that no two are equal. The ID sorts after latest,
// even if the clock was set back.
func NewID(now time.Time, latest string) string {
	if t, err := timeOf(latest); err == nil && now.Sub(t) < time.Millisecond {
		now = t.Add(time.Millisecond)
	}
	return now.UTC().Format(idTime) + "-" + strings.ToLower(rand.Text()[:4])
}

// plainID is any ID that is a plain file name, datedID one that NewID has made.
var (
	plainID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]{0,63}$`)
	datedID = regexp.MustCompile(`^\d{8}-\d{6}\.\d{3}-[0-9a-z]{4}$`)
)

// checkID refuses an ID that is no plain file name: it may come from another machine.
func checkID(id string) error {
	if !plainID.MatchString(id) {
		return fmt.Errorf("%.80q is not the ID of an operation", id)
	}
	return nil
}

// idSkew limits the difference between the time in an ID and the clock of the LB. An ID is made
// from the clock of one LB, and the clocks of several LBs differ.
const idSkew = 15 * time.Minute

// CheckID refuses an ID that NewID would not make now, by the clock and the latest ID of this
// machine; that of an operation which is resumed may be older. An ID after a latest one in the
// future is made when the clock was set back.
func CheckID(id string, now time.Time, latest string, resumed bool) error {
	if !datedID.MatchString(id) {
		return fmt.Errorf("%.80q is not the ID of an operation", id)
	}
	at, err := timeOf(id)
	if err != nil {
		return fmt.Errorf("%q is not the ID of an operation: %w", id, err)
	}
	last, err := timeOf(latest)
	if after := at.Sub(last); err == nil && last.After(now) && after >= 0 && after <= time.Second {
		return nil
	}
	if at.Before(now.Add(-idSkew)) && !resumed || at.After(now.Add(idSkew)) {
		return fmt.Errorf("operation %s: its time is more than %s from this machine's clock (%s): set the clocks right", id, idSkew, now.UTC().Format(time.DateTime))
	}
	return nil
}

func (j Journal) statePath() string { return filepath.Join(j.Dir, "state.json") }

// State reads the state. It is empty if there is no file. The error is an *UnreadableError,
// ErrVersion, or one of the file system such as fs.ErrPermission.
func (j Journal) State() (State, error) {
	b, err := readFile(j.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return State{Version: stateVersion}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read the state: %w", err)
	}
	st, err := parseState(b)
	if errors.Is(err, ErrVersion) {
		return State{}, fmt.Errorf("%s: %w", j.statePath(), err)
	}
	if err != nil {
		return State{}, &UnreadableError{j.statePath(), err}
	}
	return st, nil
}

// parseState reads a state. The version comes first: a later format may differ in the rest.
func parseState(b []byte) (State, error) {
	var format struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &format); err != nil {
		return State{}, err
	}
	switch v := format.Version; {
	case v > stateVersion:
		return State{}, fmt.Errorf("format %d: %w", v, ErrVersion)
	case v < stateVersion:
		return State{}, fmt.Errorf("format %d is not a drainctl state", v)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		return State{}, err
	}
	for _, o := range st.Operations {
		if err := checkID(o.ID); err != nil {
			return State{}, err
		}
	}
	return st, nil
}

// Free returns the free bytes of the journal's file system. The error is EROFS if that is
// read-only.
func (j Journal) Free() (uint64, error) {
	for dir := j.Dir; ; dir = filepath.Dir(dir) {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if err == nil && errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) {
			err = unix.EROFS
		}
		if err == nil {
			return s.Bavail * uint64(s.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return 0, fmt.Errorf("space for the journal in %s: %w", dir, err)
		}
	}
}

// stateWait limits the wait for the turn to update, and then for the running update to end.
// An update takes two syncs of the disk.
const stateWait = 10 * time.Second

// Update calls change with the current state, while no other drainctl can update it. The changed
// state is on the disk when Update returns. If change fails, Update returns its error and writes
// nothing. Other errors are those of State, and a *LockedError if another update does not end.
func (j Journal) Update(ctx context.Context, change func(*State) error) error {
	return j.withState(ctx, func() error {
		st, err := j.State()
		if err != nil {
			return err
		}
		was, _ := json.Marshal(st)
		if err := change(&st); err != nil {
			return err
		}
		now, err := json.Marshal(st)
		if err == nil && !bytes.Equal(now, was) {
			err = j.replaceState(append(now, '\n'))
		}
		if err != nil {
			return fmt.Errorf("write the state: %w", err)
		}
		return nil
	})
}

// SetAside renames a state file that is unreadable, and returns its new path. The path is empty if
// the state can be read: another process may have set the file aside. The error is ErrVersion if
// the file has a later format.
func (j Journal) SetAside(ctx context.Context) (path string, err error) {
	err = j.withState(ctx, func() error {
		var unreadable *UnreadableError
		if _, err := j.State(); !errors.As(err, &unreadable) {
			return err
		}
		path = j.statePath() + ".unreadable-" + NewID(time.Now(), "")
		if err := os.Rename(j.statePath(), path); err != nil {
			return err
		}
		return syncDir(j.Dir)
	})
	return path, err
}

// withState keeps other updates out while f runs. The process that holds the turn takes the
// lock on the state next, so processes that update without a pause cannot keep it away.
func (j Journal) withState(ctx context.Context, f func() error) error {
	turn, err := acquire(ctx, filepath.Join(j.Dir, "turn.lock"), "the state", stateWait)
	if err != nil {
		return err
	}
	lock, err := acquire(ctx, filepath.Join(j.Dir, "state.lock"), "the state", stateWait)
	turn.Close()
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

// replaceState replaces the state file, so that a crash leaves the old or the new one. The
// caller holds the lock, so the temporary file always has the same name: the next update
// overwrites the one that a crash has left.
func (j Journal) replaceState(b []byte) error {
	temp := j.statePath() + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, j.statePath())
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(j.Dir)
}

// readFile reads a regular file. Opening a pipe without O_NONBLOCK would block.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.Join(err, errors.New("not a regular file"))}
	}
	return io.ReadAll(f)
}

// namesIn lists the files in dir whose names end with suffix, without it. A missing directory
// has none.
func namesIn(dir, suffix string) (names []string, err error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// create opens the file at path with flags. It creates a missing file, and its directories.
func create(path string, flags int) (*os.File, error) {
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return os.OpenFile(path, flags|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
}

// makeDirs creates dir and its missing parents, and makes them durable. Their mode is 0755,
// whatever the umask is.
func makeDirs(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(os.Chmod(dir, 0o755), syncDir(parent))
}

// syncDir makes the entries of dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// By describes an author: the user and host as the caller named them, and the recorder if that is
// another user. Names with unusual characters are quoted, so that none passes for the recorder.
func By(r *Recorder, user, host string) string {
	if user == "" && host == "" && r != nil {
		return r.String()
	}
	text := fmt.Sprintf("%s on %s", cmp.Or(quoted(user), "an unknown user"), cmp.Or(quoted(host), "an unknown host"))
	if r != nil && r.Name != user {
		text += fmt.Sprintf(", recorded as %s", r)
	}
	return text
}

// plainName is the name of a user, a host or a target, or what record writes for the targets
// that it leaves out.
var plainName = regexp.MustCompile(`^(?:[\pL\pM\pN_.:@/\[\]-]{1,255}|and [0-9]+ more)$`)

// quoted quotes and shortens a text that a user recorded, unless it is a name.
func quoted(text string) string {
	if text == "" || plainName.MatchString(text) {
		return text
	}
	return fmt.Sprintf("%.80q", text)
}

// OneLine escapes line ends in a text that a user recorded, so that no part of it looks like a
// line of the message around it, such as a hint.
func OneLine(text string) string { return strings.ReplaceAll(text, "\n", `\n`) }

// Who describes an author, the time and the reason for a message.
func Who(r *Recorder, user, host, reason string, at time.Time) string {
	text := By(r, user, host) + at.Local().Format(", 2006-01-02 15:04:05")
	if reason != "" {
		text += fmt.Sprintf(", %q", reason)
	}
	return OneLine(text)
}

// Who describes the author of an operation for a message.
func (o Operation) Who() string { return Who(o.Recorder, o.User, o.Host, o.Reason, o.Began) }
