package remote

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
)

// tree is a file system as a pattern is expanded over it.
type tree interface {
	// names lists the entries of each of dirs; none for one that is not there.
	names(ctx context.Context, dirs []string) ([][]string, error)
	// exist says of each path whether there is such an entry.
	exist(ctx context.Context, paths []string) ([]bool, error)
}

// expand returns the paths on t that match pattern, as glob(3) with no flags
// in the C locale, which is how nginx calls it (ngx_open_glob). Neither Go's
// filepath.Glob nor a shell's own agrees with it: the one lets * match a
// leading dot and knows no [!a], the other depends on the shell.
func expand(ctx context.Context, t tree, pattern string) ([]string, error) {
	prefixes := []string{""} // each ends in a slash, or is empty
	literal := ""            // words without wildcards since, unescaped
	dirty := true            // literal words still to be checked for
	rest := pattern
	for {
		word, after, more := strings.Cut(rest, "/")
		if !hasMeta(word) {
			literal += unescape(word)
			if more {
				literal += "/"
			}
			dirty = true
		} else {
			dirs := make([]string, len(prefixes))
			for i, p := range prefixes {
				dirs[i] = p + literal
			}
			lists, err := t.names(ctx, dirs)
			if err != nil {
				return nil, err
			}
			prefixes = prefixes[:0:0]
			for i, names := range lists {
				for _, name := range names {
					if match(word, name) {
						if more {
							name += "/"
						}
						prefixes = append(prefixes, dirs[i]+name)
					}
				}
			}
			literal, dirty = "", false
		}
		if !more {
			break
		}
		rest = after
	}
	return existing(ctx, t, prefixes, literal, dirty || strings.HasSuffix(pattern, "/"))
}

// existing completes prefixes with literal and, where check says that not all
// of a path was read from a directory, leaves out what is not there.
func existing(ctx context.Context, t tree, prefixes []string, literal string, check bool) ([]string, error) {
	paths := make([]string, len(prefixes))
	for i, p := range prefixes {
		paths[i] = p + literal
	}
	if check && len(paths) > 0 {
		there, err := t.exist(ctx, paths)
		if err != nil {
			return nil, err
		}
		kept := paths[:0]
		for i, p := range paths {
			if there[i] {
				kept = append(kept, p)
			}
		}
		paths = kept
	}
	slices.Sort(paths)
	return paths, nil
}

// hasMeta says whether word is more than a name. A [ that nothing closes is
// one too: match then takes it as it stands.
func hasMeta(word string) bool { return strings.ContainsAny(word, "*?[") }

// unescape removes the backslashes that quote the character after them.
func unescape(word string) string {
	if !strings.Contains(word, `\`) {
		return word
	}
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] == '\\' && i+1 < len(word) {
			i++
		}
		b.WriteByte(word[i])
	}
	return b.String()
}

// match says whether name, without slashes, matches pattern by the rules of
// fnmatch(3) with FNM_PERIOD, byte by byte.
func match(pattern, name string) bool {
	if strings.HasPrefix(name, ".") && !strings.HasPrefix(pattern, ".") && !strings.HasPrefix(pattern, `\.`) {
		return false
	}
	p, n := 0, 0
	star, mark := -1, 0 // the last * and where in name it ends for now
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, n
			p++
			continue
		}
		if p < len(pattern) {
			if width, ok := matchOne(pattern[p:], name[n]); ok {
				p += width
				n++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, n = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne matches c with what pattern begins with, which is not *, and says
// how long that is.
func matchOne(pattern string, c byte) (width int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		if width, ok := matchBracket(pattern, c); width > 0 {
			return width, ok
		}
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	}
	return 1, pattern[0] == c
}

// matchBracket matches c with the bracket expression at the start of pattern.
// A width of 0 says that it is none, for want of a closing bracket.
func matchBracket(pattern string, c byte) (width int, ok bool) {
	i := 1
	negated := false
	if i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^') {
		negated = true
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != negated
		}
		if class, after, found := bracketClass(pattern[i:]); found {
			ok = ok || inClass(class, c)
			i += after
			continue
		}
		low, after := bracketByte(pattern[i:])
		i += after
		high := low
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			high, after = bracketByte(pattern[i+1:])
			i += 1 + after
		}
		ok = ok || (low <= c && c <= high)
	}
	return 0, false
}

// bracketClass reads a class such as [:digit:] at the start of s.
func bracketClass(s string) (class string, width int, found bool) {
	if !strings.HasPrefix(s, "[:") {
		return "", 0, false
	}
	end := strings.Index(s[2:], ":]")
	if end < 0 {
		return "", 0, false
	}
	return s[2 : 2+end], end + 4, true
}

// bracketByte reads one byte of a bracket expression: plain, escaped, or
// written as [.x.] or [=x=].
func bracketByte(s string) (c byte, width int) {
	if len(s) >= 5 && s[0] == '[' && (s[1] == '.' || s[1] == '=') && s[3] == s[1] && s[4] == ']' {
		return s[2], 5
	}
	if s[0] == '\\' && len(s) > 1 {
		return s[1], 2
	}
	return s[0], 1
}

// inClass says whether c is in a class of the C locale.
func inClass(class string, c byte) bool {
	lower, upper := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z'
	digit := '0' <= c && c <= '9'
	switch class {
	case "alpha":
		return lower || upper
	case "digit":
		return digit
	case "alnum":
		return lower || upper || digit
	case "lower":
		return lower
	case "upper":
		return upper
	case "space":
		return c == ' ' || ('\t' <= c && c <= '\r')
	case "blank":
		return c == ' ' || c == '\t'
	case "punct":
		return '!' <= c && c <= '~' && !lower && !upper && !digit
	case "print":
		return ' ' <= c && c <= '~'
	case "graph":
		return '!' <= c && c <= '~'
	case "cntrl":
		return c < ' ' || c == 0x7f
	case "xdigit":
		return digit || ('a' <= c && c <= 'f') || ('A' <= c && c <= 'F')
	}
	return false
}

// localTree is this machine's file system.
type localTree struct{}

func (localTree) names(ctx context.Context, dirs []string) ([][]string, error) {
	lists := make([][]string, len(dirs))
	for i, dir := range dirs {
		if err := ctx.Err(); err != nil {
			return nil, &fs.PathError{Op: "glob", Path: dir, Err: context.Cause(ctx)}
		}
		var err error
		if lists[i], err = listLocal(dir); err != nil {
			return nil, &fs.PathError{Op: "glob", Path: dir, Err: pathCause(err)}
		}
	}
	return lists, nil
}

func listLocal(dir string) ([]string, error) {
	if dir == "" {
		dir = "."
	}
	// O_DIRECTORY: a pipe of that name must not hang the open.
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (localTree) exist(_ context.Context, paths []string) ([]bool, error) {
	there := make([]bool, len(paths))
	for i, path := range paths {
		_, err := os.Lstat(path)
		if err != nil && !absent(err) {
			return nil, err
		}
		there[i] = err == nil
	}
	return there, nil
}

// absent says whether err is that there is no such file or directory.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENAMETOOLONG)
}
