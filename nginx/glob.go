package nginx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"mvdan.cc/sh/v3/pattern"
)

// glob returns the paths that match a pattern, as glob(3) with no flags in the C
// locale, which is how nginx calls it (ngx_open_glob). filepath.Glob does not
// agree with it: there * matches a leading dot, and [!a] is unknown. A directory
// that may not be read is an error here: it must not look like an empty one.
func glob(path string) ([]string, error) {
	found := []string{""}
	check := false // the last words were not read from a directory
	for word, rest, more := "", path, true; more; {
		word, rest, more = strings.Cut(rest, "/")
		slash := ""
		if more {
			slash = "/"
		}
		if check = !hasMeta(word); check {
			for i := range found {
				found[i] += withoutEscapes(word) + slash
			}
			continue
		}
		matches, err := matcher(word)
		if err != nil {
			return nil, err
		}
		var next []string
		for _, dir := range found {
			names, err := list(dir)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if matches(name) {
					next = append(next, dir+name+slash)
				}
			}
		}
		found = next
	}
	var failed error
	if check {
		found = slices.DeleteFunc(found, func(p string) bool {
			_, err := os.Lstat(p)
			if err != nil && !absent(err) {
				failed = err
			}
			return err != nil
		})
	}
	slices.Sort(found)
	return found, failed
}

// list is the names in a directory; none if it is not there.
func list(dir string) ([]string, error) {
	if dir == "" {
		dir = "."
	}
	// O_DIRECTORY: a pipe of that name must not block the open.
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

// absent tells whether err is that there is no such file or directory.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENAMETOOLONG)
}

// hasMeta tells whether word is more than a name. A [ that nothing closes is
// one too, and matches itself.
func hasMeta(word string) bool { return strings.ContainsAny(word, "*?[") }

// withoutEscapes removes the backslashes that quote the character after them.
func withoutEscapes(word string) string {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] == '\\' && i+1 < len(word) {
			i++
		}
		b.WriteByte(word[i])
	}
	return b.String()
}

// libcBrackets has the package pattern read brackets as C libraries do: a "-" that begins one is
// no range, and word and ascii are no classes, but letters.
var libcBrackets = strings.NewReplacer("[-", `[\-`, "[!-", `[!\-`, "[^-", `[^\-`, "[:word:]", "[:drow:]", "[:ascii:]", "[:iicsa:]")

// matcher returns a function that reports whether a name without slashes matches a word of a
// pattern, by the rules of fnmatch(3) with FNM_PERIOD in the C locale, byte by byte. Brackets
// that C libraries read differently, such as [[.a.]] and [z-a], are an error.
func matcher(word string) (func(name string) bool, error) {
	expr, err := pattern.Regexp(libcBrackets.Replace(runePerByte(word)), pattern.EntireString)
	if err != nil {
		return nil, fmt.Errorf("drainctl does not support this pattern: %w", err)
	}
	re, err := regexp.Compile(expr)
	dot := strings.HasPrefix(word, ".") || strings.HasPrefix(word, `\.`)
	return func(name string) bool {
		return (dot || !strings.HasPrefix(name, ".")) && re.MatchString(runePerByte(name))
	}, err
}

func runePerByte(s string) string {
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}
