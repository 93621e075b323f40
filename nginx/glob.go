package nginx

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// glob returns the paths that match pattern, as glob(3) with no flags in the C
// locale, which is how nginx calls it (ngx_open_glob). filepath.Glob does not
// agree with it: there * matches a leading dot, and [!a] is unknown. A directory
// that may not be read is an error here: it must not look like an empty one.
func glob(pattern string) ([]string, error) {
	found := []string{""}
	check := false // the last words were not read from a directory
	for word, rest, more := "", pattern, true; more; {
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
		var next []string
		for _, dir := range found {
			names, err := list(dir)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if match(word, name) {
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
// one too: match then takes it as it stands.
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

// match tells whether name, without slashes, matches pattern by the rules of
// fnmatch(3) with FNM_PERIOD in the C locale, byte by byte.
func match(pattern, name string) bool {
	if strings.HasPrefix(name, ".") && !strings.HasPrefix(pattern, ".") && !strings.HasPrefix(pattern, `\.`) {
		return false
	}
	runes := make([]rune, len(name)) // one for each byte
	for i := range len(name) {
		runes[i] = rune(name[i])
	}
	ok, err := path.Match(goPattern(pattern), string(runes))
	return ok && err == nil
}

// goPattern is a pattern of fnmatch(3) as [path.Match] takes it, with a rune for
// each byte.
func goPattern(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		switch c := p[i]; c {
		case '*', '?':
			b.WriteByte(c)
		case '[':
			set, width := goBracket(p[i:])
			b.WriteString(set)
			i += width - 1
		case '\\':
			if i+1 < len(p) {
				i++
			}
			b.WriteString(escaped(p[i]))
		default:
			b.WriteString(escaped(c))
		}
	}
	return b.String()
}

func escaped(c byte) string { return `\` + string(rune(c)) }

// classes are the classes of the C locale, as ranges for [path.Match].
var classes = map[string]string{
	"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "lower": "a-z", "upper": "A-Z", "xdigit": "0-9a-fA-F",
	"space": " \t-\r", "blank": " \t", "cntrl": "\x00-\x1f\x7f", "print": " -~", "graph": "!-~", "punct": "!-/:-@\\[-`{-~",
}

// goBracket is the bracket expression at the start of p, and how long that is.
// A [ that nothing closes is itself.
func goBracket(p string) (set string, width int) {
	i := 1
	set = "["
	if i < len(p) && (p[i] == '!' || p[i] == '^') {
		set += "^"
		i++
	}
	set += "b-a" // nothing: path.Match wants at least one
	for first := i; i < len(p); {
		if p[i] == ']' && i > first {
			return set + "]", i + 1
		}
		if class, _, found := strings.Cut(p[i:], ":]"); found && strings.HasPrefix(class, "[:") {
			set += classes[class[2:]]
			i += len(class) + 2
			continue
		}
		low, n := bracketByte(p[i:])
		i += n
		high := low
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			high, n = bracketByte(p[i+1:])
			i += 1 + n
		}
		set += escaped(low) + "-" + escaped(high)
	}
	return `\[`, 1
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
