package remote

import (
	"regexp"
	"strings"
)

// plainWord matches words that no shell changes.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@+:,./-][A-Za-z0-9_@%+=:,./-]*$`)

// Quote returns args as one line that any login shell (POSIX, fish, tcsh, zsh)
// splits back into exactly these words. Only a newline is lost on tcsh.
func Quote(args ...string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; !plainWord.MatchString(a) {
			words[i] = quoteWord(a)
		}
	}
	return strings.Join(words, " ")
}

// quoteWord puts a word between single quotes, and a backslash outside them
// before what some shell reads there: fish a backslash, tcsh "!".
func quoteWord(word string) string {
	special := regexp.MustCompile(`['\\!]+`)
	var b strings.Builder
	for rest := word; ; {
		at := special.FindStringIndex(rest)
		if at == nil {
			if rest != "" || b.Len() == 0 {
				b.WriteString("'" + rest + "'")
			}
			return b.String()
		}
		if at[0] > 0 {
			b.WriteString("'" + rest[:at[0]] + "'")
		}
		for _, c := range rest[at[0]:at[1]] {
			b.WriteString(`\` + string(c))
		}
		rest = rest[at[1]:]
	}
}
