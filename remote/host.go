// Package remote is a host, this machine or one over SSH: run a command on it,
// read and replace its files, take a lock, dial from it, count its sockets with
// ss and start and stop its services with systemctl.
//
// It is the only package that starts processes and opens connections. It
// prints nothing and knows neither nginx nor what a drain is.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"time"
)

// MaxFile is the size in bytes of the largest file ReadFile and ReadFiles
// return; a larger one is an error and is not read.
const MaxFile = 64 << 20

// thisMachine is the name of the local host.
const thisMachine = "this machine"

var (
	// ErrConnection says that the connection to a host could not be made or
	// was lost. Where a command had been sent, its end is not known.
	ErrConnection = errors.New("no connection")
	// ErrChanged says that a file no longer holds what the caller had read.
	ErrChanged = errors.New("file changed in between")
	// ErrLocked says that somebody else holds the lock.
	ErrLocked = errors.New("locked by another process")
	// ErrHardLinks says that a file has several names, which an atomic
	// replacement would tear apart.
	ErrHardLinks = errors.New("file has several hard links")
	// ErrNotRegular says that a path is a directory, pipe, socket or device.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge says that a file is larger than MaxFile.
	ErrTooLarge = errors.New("file too large")
)

// Host is a machine, this one or one over SSH. It is safe for concurrent use.
//
// Files are reached as the login user first and, where that is refused and the
// user is not root, through sudo -n.
type Host interface {
	// Name is the host for a person: "this machine", or "user@address",
	// with ":port" where the port is not 22.
	Name() string
	// User is the login user on the host.
	User() string
	// Run runs c to its end. A command that ran and failed is a Result with
	// Code other than 0 and no error; so is a command that does not exist,
	// with the shell's code 127, and one that cannot be executed, 126. An
	// error means that it could not be started, that sudo refused it
	// (*SudoError), that ctx ended (and the command was killed), or that its
	// end is not known (ErrConnection).
	Run(ctx context.Context, c Command) (Result, error)
	// ReadFile returns the content of the file at path. The error is an
	// *fs.PathError, fs.ErrNotExist and fs.ErrPermission among its causes.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// ReadFiles returns the contents of many files, in the order of paths and
	// in one trip. The error is an *fs.PathError for the first path that fails.
	ReadFiles(ctx context.Context, paths []string) ([][]byte, error)
	// Glob returns the paths that match pattern as glob(3) without flags
	// does in the C locale: sorted by bytes, a leading dot matched only by a
	// dot, no match is no error. A directory that may not be read is an
	// error, unlike there: who asks must not take it for an empty one.
	Glob(ctx context.Context, pattern string) ([]string, error)
	// Stat describes the file at path, symlinks followed.
	Stat(ctx context.Context, path string) (FileInfo, error)
	// Replace puts now in the place of was in the file at path, atomically
	// and durably: whatever fails, and whenever, the file holds one or the
	// other, whole. Symlinks are followed and kept, as are owner, mode and
	// extended attributes. ErrChanged if the file does not hold was;
	// ErrHardLinks, ErrNotRegular and syscall.EBUSY (a mount point) where it
	// cannot be done. Once begun it is carried on for up to ten seconds
	// after ctx ends, so that the end is nearly always known.
	Replace(ctx context.Context, path string, was, now []byte) error
	// Append adds data at the end of the file at path and syncs it. The file
	// is created with mode 0600, and missing directories with 0755. If not
	// all of data could be written, the file is cut back to its former
	// length where that is possible. Like Replace, it outlives ctx briefly.
	Append(ctx context.Context, path string, data []byte) error
	// Lock takes an exclusive flock(2) on path, which is created with mode
	// 0600, and its missing directories with 0755. The lock dies with its
	// holder: the process here, or the session on the host. If another holds
	// it, Lock waits for up to wait and then fails with ErrLocked.
	Lock(ctx context.Context, path string, wait time.Duration) (Lock, error)
	// DialContext connects from the host to addr; network is "tcp" or "unix".
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	// Lookup returns the addresses of name as the host resolves it, unique
	// and sorted. A name that does not exist is a *net.DNSError.
	Lookup(ctx context.Context, name string) ([]netip.Addr, error)
	// Close ends the connection to the host, and with it its locks.
	Close() error
}

// Lock is a held lock.
type Lock interface {
	// Unlock gives the lock back.
	Unlock() error
	// Lost is closed when the lock is no longer held though nobody unlocked
	// it: its process or the connection to the host died.
	Lost() <-chan struct{}
}

// FileInfo describes a file.
type FileInfo struct {
	Path   string    // the real path, symlinks resolved
	Mod    time.Time // last change of the content (mtime)
	Change time.Time // last change of content or attributes (ctime)
	Size   int64     // bytes
	Links  int       // hard links
	Dev    uint64    // device, with Ino the identity of the file
	Ino    uint64
}

// Command is a command to run on a host.
type Command struct {
	// Args is the program and its arguments. They reach the program as they
	// are: over SSH every word is quoted.
	Args []string
	// Root runs it as root: as it is when the login user is root, else with
	// exactly `sudo -n` before it, so that a sudoers rule may name it with
	// its arguments.
	Root bool
	// Stdin is what it reads; nothing if empty.
	Stdin []byte
}

// Result is how a command ended.
type Result struct {
	Stdout  []byte
	Stderr  []byte
	Code    int           // exit status; 128 + n when signal n ended it
	Elapsed time.Duration // from the start to the end of it, as seen from here
}

// maxWords is how many of a tool's last lines an error repeats.
const maxWords = 8

// Err is nil if the command succeeded. Otherwise it is an *ExitError that says
// what failed in the tool's own last words.
func (r Result) Err(args ...string) error {
	if r.Code == 0 {
		return nil
	}
	words := lastLines(r.Stderr, maxWords)
	if words == "" {
		words = lastLines(r.Stdout, maxWords)
	}
	return &ExitError{Args: args, Code: r.Code, Words: words}
}

// ExitError is a command that ran and failed.
type ExitError struct {
	Args  []string
	Code  int
	Words string // the last lines of its standard error, or output
}

func (e *ExitError) Error() string {
	what := "command"
	if len(e.Args) > 0 {
		what = Quote(e.Args...)
	}
	if e.Words == "" {
		return fmt.Sprintf("%s: exit status %d", what, e.Code)
	}
	return fmt.Sprintf("%s: exit status %d: %s", what, e.Code, e.Words)
}

// lastLines returns the last n lines of b that are not blank.
func lastLines(b []byte, n int) string {
	var lines []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, " \t\r\n"); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// checkArgs refuses what no command line can carry.
func checkArgs(c Command) error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return errors.New("run: no command")
	}
	for _, a := range c.Args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("run %s: NUL byte in an argument", Quote(c.Args[0]))
		}
	}
	// sudo would take these words for an option or for a variable to set.
	if c.Root && (strings.HasPrefix(c.Args[0], "-") || strings.Contains(c.Args[0], "=")) {
		return fmt.Errorf("run %s as root: not a command name", Quote(c.Args[0]))
	}
	return nil
}

// checkPath refuses a path that no system call takes.
func checkPath(op, path string) error {
	switch {
	case path == "":
		return &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	case strings.ContainsRune(path, 0):
		return &fs.PathError{Op: op, Path: path, Err: fs.ErrInvalid}
	}
	return nil
}
