package remote

import (
	"errors"
	"strings"
)

// errUnfinished means that a line ends within quotes or after a backslash.
var errUnfinished = errors.New("a quote is not closed, or a backslash is last")

// Split returns the words of a line by the quoting rules of a POSIX shell: blanks
// separate words, and ', " and \ quote. It expands nothing: $, * and ; are plain text.
// https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html#tag_19_02
func Split(line string) ([]string, error) {
	var words []string
	var word []byte
	inWord, quote := false, byte(0) // the quote that is open
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\' && quote != '\'':
			if i++; i == len(line) {
				return nil, errUnfinished
			}
			if c = line[i]; c == '\n' {
				continue // the line goes on
			}
			if quote == '"' && strings.IndexByte("$`\"\\", c) < 0 {
				word = append(word, '\\')
			}
			word, inWord = append(word, c), true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, c), true
		}
	}
	if quote != 0 {
		return nil, errUnfinished
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, nil
}
