package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// maxTrip is how many bytes of arguments go into one command. Linux takes
	// at most 128 KiB in one argument, and over SSH the whole line is one.
	maxTrip = 64 << 10
	// finishGrace is how long a change of a file, once begun, is carried on
	// after its context has ended.
	finishGrace = 10 * time.Second
	// readAttempts is how often files that change while they are read are read.
	readAttempts = 3
)

// Exit statuses of the scripts, clear of the shell's own (2, 126, 127, 128+n)
// and of the tools' (1).
const (
	exitNotRegular = 81 + iota
	exitTooLarge
	exitChanged
	exitHardLinks
	exitLocked
	exitShort
	exitForbidden
	exitUnsynced
	exitUnreadable
)

// The scripts are for a POSIX shell such as dash, with GNU coreutils beside it.
// They take what they need as arguments, never by substitution into their text.

// scriptHead begins every script. Its first argument is printed first: what a
// login script may have printed before it is no part of the output.
const scriptHead = `LC_ALL=C; export LC_ALL; unset CDPATH
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
printf '%s\n' "$1"; shift
`

// readScript prints a file: LIMIT PATH.
const readScript = `if [ -e "$2" ] && [ "$2" != /dev/null ]; then
  [ ! -d "$2" ] || { echo 'Is a directory' >&2; exit 81; }
  [ -f "$2" ] || exit 81
  [ "$(stat -L -c %s -- "$2")" -le "$1" ] || exit 82
fi
exec cat -- "$2"
`

// readManyScript prints the sizes of files, a line each, the files, and the
// sizes again: LIMIT PATH... If one cannot be read, it prints its number.
const readManyScript = `limit=$1; shift
n=0
for f do
  { [ -f "$f" ] && [ -r "$f" ]; } || { echo "$n"; exit 89; }
  n=$((n + 1))
done
n=0
for size in $(stat -L -c %s -- "$@"); do
  [ "$size" -le "$limit" ] || { echo "$n"; exit 89; }
  n=$((n + 1))
done
stat -L -c %s -- "$@" && cat -- "$@" && stat -L -c %s -- "$@"
`

// statScript prints numbers about a file, and on the next line its real path: PATH.
const statScript = `stat -L -c '%d %i %h %s %.9Y %.9Z' -- "$1" && readlink -f -- "$1"
`

// listScript prints the entries of directories, each ended by a NUL, with one
// more after each directory: DIR...
const listScript = `for d do
  if [ ! -d "$d" ]; then
    why=$(ls -d -- "$d" 2>&1 >/dev/null)
    case $why in *'Permission denied') printf '%s\n' "$why" >&2; exit 1;; esac
  else
    { [ -r "$d" ] && [ -x "$d" ]; } || exit 87
    (cd -- "$d" || exit 87
    for f in .* *; do
      case $f in .|..) continue;; esac
      if [ -e "$f" ] || [ -L "$f" ]; then printf '%s\000' "$f"; fi
    done) || exit 87
  fi
  printf '\000'
done
`

// existScript prints y or n for each of PATH...
const existScript = `for f do
  if [ -e "$f" ] || [ -L "$f" ]; then echo y; continue; fi
  why=$(ls -d -- "$f" 2>&1 >/dev/null)
  case $why in *'Permission denied') printf '%s\n' "$why" >&2; exit 1;; esac
  echo n
done
`

// checkScript looks at what replaceScript needs of a file: PATH.
const checkScript = `for tool in cat cp mktemp mv readlink sha256sum stat sync; do
  command -v "$tool" >/dev/null || { echo "$tool: not found" >&2; exit 127; }
done
[ -e "$1" ] || { cat -- "$1"; exit 1; }
real=$(readlink -f -- "$1"; printf x); real=${real%?x}
[ -f "$real" ] || exit 81
[ -r "$real" ] || { cat -- "$real" >/dev/null; exit 1; }
[ "$(stat -c %h -- "$real")" = 1 ] || exit 84
dir=${real%/*}; base=${real##*/}
`

// writableScript, after checkScript, asks whether the directory can be
// written; access(2) answers for a read-only file system too.
const writableScript = `[ -w "${dir:-/}" ] && [ -x "${dir:-/}" ] && exit 0
touch -c -- "${dir:-/}/." 2>&1 | grep -q 'Read-only file system' && { echo 'Read-only file system' >&2; exit 1; }
exit 87
`

// replaceScript, after checkScript, puts its input in the place of the file:
// PATH HASH-OF-OLD HASH-OF-NEW. A hash that does not match stops it, so an
// input cut short by a lost connection never gets into place.
const replaceScript = `sum() { sha256sum | { read -r hash rest; printf %s "$hash"; }; }
unchanged() { [ "$(sum < "$real")" = "$2" ] || exit 83; }
unchanged "$@"
temp=$(mktemp -- "${dir:-/}/.$base.drainctl-XXXXXXXX" && printf x) || exit 1
temp=${temp%?x}
trap 'rm -f -- "$temp"' EXIT
trap 'exit 1' HUP INT PIPE TERM
cat > "$temp" || exit 1
[ "$(sum < "$temp")" = "$3" ] || exit 86
keep=mode,ownership,xattr
[ ! -e /sys/fs/selinux/enforce ] || keep=$keep,context
cp --attributes-only --preserve="$keep" -- "$real" "$temp" || exit 1
[ "$(stat -c '%u %g %a' -- "$real")" = "$(stat -c '%u %g %a' -- "$temp")" ] || exit 87
sync -- "$temp" || exit 1
unchanged "$@"
mv -f -T -- "$temp" "$real" || exit 1
trap - EXIT
sync -- "${dir:-/}" || exit 88
`

// dirsScript creates the missing directories of a path: PATH...
const dirsScript = `fresh=
if [ ! -e "$1" ]; then
  why=$(ls -d -- "$1" 2>&1 >/dev/null)
  case $why in *'Permission denied') printf '%s\n' "$why" >&2; exit 1;; esac
  case $1 in */*) dir=${1%/*}; dir=${dir:-/};; *) dir=.;; esac
  [ -d "$dir" ] || (umask 022; mkdir -p -- "$dir") || exit 1
  fresh=1
elif [ ! -f "$1" ]; then
  exit 81
fi
umask 077
`

// appendScript, after dirsScript, adds its input to a file: PATH SIZE.
const appendScript = `( : >> "$1" ) || exit 1
was=$(stat -L -c %s -- "$1") || exit 1
undo() { code=$?; truncate -s "$was" -- "$1" || echo 'and it could not be cut back' >&2; exit "$2"; }
cat >> "$1" || undo "$1" 1
[ "$(stat -L -c %s -- "$1")" = $((was + $2)) ] || undo "$1" 86
sync -- "$1" || undo "$1" 1
[ -z "$fresh" ] || sync -- "$dir" "$dir/.." || exit 88
`

// lockScript, after dirsScript, locks a file and holds the lock until its input
// ends or is silent for LEASE: PATH WAIT LEASE, in seconds. The lease frees the
// lock when the network is gone and sshd has not noticed, which can take hours.
const lockScript = `while :; do
  exec 9>>"$1" || exit 1
  if [ "$2" = 0 ]; then flock -n 9; else flock -w "$2" 9; fi
  code=$?
  [ "$code" != 1 ] || exit 85
  [ "$code" = 0 ] || exit "$code"
  # Somebody may have removed the file while this waited.
  [ /proc/self/fd/9 -ef "$1" ] && break
done
echo locked
while beat=$(exec timeout "$3" head -n 1 9>&-) && [ -n "$beat" ]; do :; done
`

// scripts reaches the files of a machine through a shell on it.
type scripts struct {
	machine
	root bool // as root from the start
}

// asRoot is s with everything done as root.
func (s scripts) asRoot() scripts { return scripts{machine: s.machine, root: true} }

// run runs script with args, and again as root where the login user was refused.
func (s scripts) run(ctx context.Context, op, path, script string, stdin []byte, args ...string) ([]byte, error) {
	r, err := s.try(ctx, s.root, op, path, script, stdin, args...)
	if s.root || !errors.Is(err, fs.ErrPermission) {
		return r, err
	}
	if root, rerr := s.isRoot(ctx); rerr != nil || root {
		return r, err
	}
	r, rerr := s.try(ctx, true, op, path, script, stdin, args...)
	var refused *SudoError
	if errors.As(rerr, &refused) {
		return nil, &fs.PathError{Op: op, Path: path, Err: fmt.Errorf("%w (and %w)", pathCause(err), refused)}
	}
	return r, rerr
}

// try runs script once and returns its output, or its failure as an
// *fs.PathError about path. The output comes with an error too.
func (s scripts) try(ctx context.Context, root bool, op, path, script string, stdin []byte, args ...string) ([]byte, error) {
	mark := rand.Text()
	c := Command{Args: scriptArgs(script, mark, args), Root: root, Stdin: stdin}
	r, err := s.Run(ctx, c)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	_, out, found := bytes.Cut(r.Stdout, []byte(mark+"\n"))
	if err := scriptError(r.Code, r.Stderr); err != nil {
		return out, &fs.PathError{Op: op, Path: path, Err: err}
	}
	if !found {
		return nil, &fs.PathError{Op: op, Path: path, Err: fmt.Errorf("the shell on %s did not run the script", s.Name())}
	}
	return out, nil
}

// scriptArgs is the command that runs script with args.
func scriptArgs(script, mark string, args []string) []string {
	return append([]string{"sh", "-c", scriptHead + script, "sh", mark}, args...)
}

// plain keeps a relative path from being read as an option or an expression.
func plain(path string) string {
	if path == "" || path[0] == '/' {
		return path
	}
	return "./" + path
}

// scriptError is what the exit status of a script and the last words on its
// standard error mean.
func scriptError(code int, stderr []byte) error {
	words := lastLines(stderr, 1)
	switch code {
	case 0:
		return nil
	case exitNotRegular:
		if words == "Is a directory" {
			return fmt.Errorf("%w: %w", ErrNotRegular, syscall.EISDIR)
		}
		return ErrNotRegular
	case exitTooLarge:
		return ErrTooLarge
	case exitChanged:
		return ErrChanged
	case exitHardLinks:
		return fmt.Errorf("%w: replacing one would leave the others old", ErrHardLinks)
	case exitLocked:
		return ErrLocked
	case exitShort:
		return errors.New("what arrived there is not all that was sent, nothing was changed")
	case exitForbidden:
		return syscall.EACCES
	case exitUnsynced:
		return fmt.Errorf("the new content is in place, but the directory could not be synced: %s", words)
	}
	if errno := errnoOf(words); errno != 0 {
		return wordsError{errno: errno, words: words}
	}
	return &ExitError{Args: []string{"sh"}, Code: code, Words: words}
}

// wordsError is a tool's message together with the errno it names.
type wordsError struct {
	errno syscall.Errno
	words string
}

func (e wordsError) Error() string {
	switch e.errno {
	case syscall.EBUSY:
		return "it is a mount point (a bind mount?): " + e.errno.Error()
	case syscall.ENOENT, syscall.EACCES, syscall.EISDIR, syscall.ENOTDIR:
		return e.errno.Error() // the tool says no more than that
	}
	return e.words
}

func (e wordsError) Unwrap() error { return e.errno }

// errnoOf finds the errno whose text in the C locale ends words; 0 if there is none.
func errnoOf(words string) syscall.Errno {
	for _, e := range []struct {
		text  string
		errno syscall.Errno
	}{
		{"No such file or directory", syscall.ENOENT},
		{"Directory nonexistent", syscall.ENOENT}, // dash's own
		{"Permission denied", syscall.EACCES},
		{"Operation not permitted", syscall.EPERM},
		{"No space left on device", syscall.ENOSPC},
		{"Disk quota exceeded", syscall.EDQUOT},
		{"Read-only file system", syscall.EROFS},
		{"Is a directory", syscall.EISDIR},
		{"Not a directory", syscall.ENOTDIR},
		{"Device or resource busy", syscall.EBUSY},
		{"Too many levels of symbolic links", syscall.ELOOP},
		{"File name too long", syscall.ENAMETOOLONG},
		{"Input/output error", syscall.EIO},
		{"Text file busy", syscall.ETXTBSY},
		{"File too large", syscall.EFBIG},
		{"Operation not supported", syscall.ENOTSUP},
		{"Stale file handle", syscall.ESTALE},
		{"File exists", syscall.ENOTDIR}, // mkdir -p, where a file is in the way
	} {
		if strings.HasSuffix(words, e.text) {
			return e.errno
		}
	}
	return 0
}

// ReadFile reads a file.
func (s scripts) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if err := checkPath("open", path); err != nil {
		return nil, err
	}
	out, err := s.run(ctx, "open", path, readScript, nil, strconv.Itoa(MaxFile), plain(path))
	if err != nil {
		return nil, err
	}
	if len(out) > MaxFile { // it grew, or is of those that have no size
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	return out, nil
}

// ReadFiles reads files in one trip, or a few where the paths are very many.
func (s scripts) ReadFiles(ctx context.Context, paths []string) ([][]byte, error) {
	for _, path := range paths {
		if err := checkPath("open", path); err != nil {
			return nil, err
		}
	}
	all := make([][]byte, 0, len(paths))
	for batch := range trips(paths) {
		contents, err := s.readBatch(ctx, batch)
		if err != nil {
			return nil, err
		}
		all = append(all, contents...)
	}
	return all, nil
}

// readBatch reads files in one trip. Where that does not work out, because one
// cannot be read or changes meanwhile, it reads them one by one, and so finds
// which and why.
func (s scripts) readBatch(ctx context.Context, paths []string) ([][]byte, error) {
	if len(paths) == 1 {
		b, err := s.ReadFile(ctx, paths[0])
		return [][]byte{b}, err
	}
	args := []string{strconv.Itoa(MaxFile)}
	for _, path := range paths {
		args = append(args, plain(path))
	}
	root := s.root
	for range readAttempts {
		out, err := s.try(ctx, root, "open", paths[0], readManyScript, nil, args...)
		if err == nil {
			if contents := splitFiles(out, len(paths)); contents != nil {
				return contents, nil
			}
			continue // one changed
		}
		var failed *ExitError
		if !errors.As(err, &failed) || failed.Code != exitUnreadable {
			return nil, err
		}
		n, nerr := strconv.Atoi(strings.TrimSpace(string(out)))
		if nerr != nil || n < 0 || n >= len(paths) {
			return nil, err
		}
		// Read as root, the batch may do; if not, this says why.
		if _, err := s.ReadFile(ctx, paths[n]); err != nil {
			return nil, err
		}
		if isRoot, err := s.isRoot(ctx); err == nil && !isRoot {
			root = true
		}
	}
	all := make([][]byte, len(paths))
	for i, path := range paths {
		var err error
		if all[i], err = s.ReadFile(ctx, path); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// splitFiles takes apart the output of readManyScript for n files; nil if a
// size changed while they were read.
func splitFiles(out []byte, n int) [][]byte {
	sizes := make([]int, n)
	rest := out
	total := 0
	for i := range sizes {
		line, after, found := bytes.Cut(rest, []byte("\n"))
		size, err := strconv.Atoi(string(line))
		if !found || err != nil || size < 0 || size > len(out) {
			return nil
		}
		sizes[i], rest = size, after
		total += size
	}
	head := out[:len(out)-len(rest)]
	if total+len(head) != len(rest) || !bytes.HasSuffix(rest, head) {
		return nil
	}
	contents := make([][]byte, n)
	for i, size := range sizes {
		contents[i], rest = rest[:size:size], rest[size:]
	}
	return contents
}

// trips cuts words into runs that fit one command each.
func trips(words []string) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		begin, size := 0, 0
		for i, w := range words {
			n := len(Quote(w)) + 3
			if i > begin && size+n > maxTrip {
				if !yield(words[begin:i]) {
					return
				}
				begin, size = i, 0
			}
			size += n
		}
		if begin < len(words) {
			yield(words[begin:])
		}
	}
}

// Stat describes a file.
func (s scripts) Stat(ctx context.Context, path string) (FileInfo, error) {
	if err := checkPath("stat", path); err != nil {
		return FileInfo{}, err
	}
	out, err := s.run(ctx, "stat", path, statScript, nil, plain(path))
	if err != nil {
		return FileInfo{}, err
	}
	info, err := parseStat(string(out))
	if err != nil {
		return FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return info, nil
}

// parseStat reads the output of statScript.
func parseStat(out string) (FileInfo, error) {
	line, real, _ := strings.Cut(out, "\n")
	bad := fmt.Errorf("cannot make sense of %q from stat", line)
	words := strings.Fields(line)
	if len(words) != 6 || !strings.HasPrefix(real, "/") {
		return FileInfo{}, bad
	}
	info := FileInfo{Path: strings.TrimSuffix(real, "\n")}
	var errs [6]error
	info.Dev, errs[0] = strconv.ParseUint(words[0], 10, 64)
	info.Ino, errs[1] = strconv.ParseUint(words[1], 10, 64)
	info.Links, errs[2] = strconv.Atoi(words[2])
	info.Size, errs[3] = strconv.ParseInt(words[3], 10, 64)
	info.Mod, errs[4] = parseSeconds(words[4])
	info.Change, errs[5] = parseSeconds(words[5])
	if errors.Join(errs[:]...) != nil {
		return FileInfo{}, bad
	}
	return info, nil
}

// parseSeconds reads "SECONDS" or "SECONDS.FRACTION" since 1970.
func parseSeconds(word string) (time.Time, error) {
	whole, fraction, _ := strings.Cut(word, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	nsec, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	if strings.HasPrefix(whole, "-") {
		return time.Unix(sec, -int64(nsec)), nil
	}
	return time.Unix(sec, int64(nsec)), nil
}

// Glob expands a pattern.
func (s scripts) Glob(ctx context.Context, pattern string) ([]string, error) {
	if err := checkPath("glob", pattern); err != nil {
		return nil, err
	}
	return expand(ctx, scriptTree{scripts: s, pattern: pattern}, pattern)
}

// scriptTree is the file system of a machine.
type scriptTree struct {
	scripts
	pattern string // for errors
}

func (t scriptTree) names(ctx context.Context, dirs []string) ([][]string, error) {
	var lists [][]string
	for batch := range trips(dirs) {
		args := make([]string, len(batch))
		for i, dir := range batch {
			if args[i] = plain(dir); dir == "" {
				args[i] = "."
			}
		}
		out, err := t.run(ctx, "glob", t.pattern, listScript, nil, args...)
		if err != nil {
			return nil, err
		}
		got, ok := splitNames(out, len(batch))
		if !ok {
			return nil, &fs.PathError{Op: "glob", Path: t.pattern, Err: errors.New("the list of names is cut short")}
		}
		lists = append(lists, got...)
	}
	return lists, nil
}

// splitNames takes apart the output of listScript for n directories.
func splitNames(out []byte, n int) (lists [][]string, ok bool) {
	var names []string
	for len(out) > 0 {
		name, rest, found := bytes.Cut(out, []byte{0})
		if !found {
			return nil, false
		}
		if out = rest; len(name) > 0 {
			names = append(names, string(name))
			continue
		}
		lists, names = append(lists, names), nil
	}
	return lists, len(lists) == n && names == nil
}

func (t scriptTree) exist(ctx context.Context, paths []string) ([]bool, error) {
	there := make([]bool, 0, len(paths))
	for batch := range trips(paths) {
		args := make([]string, len(batch))
		for i, path := range batch {
			args[i] = plain(path)
		}
		out, err := t.run(ctx, "glob", t.pattern, existScript, nil, args...)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(out)) {
			there = append(there, line == "y\n")
		}
	}
	if len(there) != len(paths) {
		return nil, &fs.PathError{Op: "glob", Path: t.pattern, Err: errors.New("the list of names is cut short")}
	}
	return there, nil
}

// Replace replaces a file.
func (s scripts) Replace(ctx context.Context, path string, was, now []byte) error {
	if err := checkPath("replace", path); err != nil {
		return err
	}
	ctx, stop, err := outlive(ctx, finishGrace)
	if err != nil {
		return &fs.PathError{Op: "replace", Path: path, Err: err}
	}
	defer stop()
	_, err = s.run(ctx, "replace", path, checkScript+replaceScript, now, plain(path), hash(was), hash(now))
	return err
}

// Append appends to a file.
func (s scripts) Append(ctx context.Context, path string, data []byte) error {
	if err := checkPath("append", path); err != nil {
		return err
	}
	ctx, stop, err := outlive(ctx, finishGrace)
	if err != nil {
		return &fs.PathError{Op: "append", Path: path, Err: err}
	}
	defer stop()
	_, err = s.run(ctx, "append", path, dirsScript+appendScript, data, plain(path), strconv.Itoa(len(data)))
	return err
}

// CheckReplace says whether Replace could be done to the file at path on h,
// as the login user or through sudo, and changes nothing. It is nil, or the
// error that Replace would meet as far as that can be known without trying.
func CheckReplace(ctx context.Context, h Host, path string) error {
	if err := checkPath("replace", path); err != nil {
		return err
	}
	_, err := scripts{machine: hostMachine{h}}.run(ctx, "replace", path, checkScript+writableScript, nil, plain(path))
	return err
}

// hostMachine makes a machine of any host, for scripts that run to their end.
type hostMachine struct{ Host }

func (h hostMachine) isRoot(ctx context.Context) (bool, error) { return askRoot(ctx, h.Host) }

func (h hostMachine) start(context.Context, Command) (*process, error) {
	return nil, errors.ErrUnsupported
}

// hash is the SHA-256 of b as sha256sum prints it.
func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// outlive returns a context that ends only grace after ctx: a change that has
// begun is worth finishing, so that its outcome is known. If ctx has ended
// already, that is the error, and nothing must be begun.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc, error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(longer, func() { t.Stop() })
	})
	return longer, func() { stop(); cancel(context.Canceled) }, nil
}
