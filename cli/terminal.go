package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/drainctl/drainctl/cli/show"
)

// passphrase asks for a key's passphrase, on a terminal only. It ends with ctx:
// the terminal then shows again what is typed.
func passphrase(v show.View) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, key string) (secret []byte, err error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return nil, errors.New("there is no terminal to ask on")
		}
		defer tty.Close()
		fd := int(tty.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			return nil, err
		}
		v.Pause(func() {
			fmt.Fprintf(tty, "passphrase for %s: ", show.Clean(key))
			type answer struct {
				secret []byte
				err    error
			}
			typed := make(chan answer, 1)
			go func() {
				secret, err := term.ReadPassword(fd)
				typed <- answer{secret, err}
			}()
			select {
			case a := <-typed:
				secret, err = a.secret, a.err
			case <-ctx.Done():
				_ = term.Restore(fd, before)
				err = context.Cause(ctx)
			}
			fmt.Fprintln(tty)
		})
		return secret, err
	}
}

// asker asks on the terminal; nil where there is none.
func (s *session) asker() func(context.Context, string) (bool, error) {
	if !show.IsTerminal(s.stdout) || !show.IsTerminal(os.Stdin) {
		return nil
	}
	return func(ctx context.Context, question string) (yes bool, err error) {
		s.view.Pause(func() {
			fmt.Fprintf(s.stdout, "%s [y/N] ", show.Clean(question))
			answer := make(chan string, 1)
			go func() {
				line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
				answer <- strings.ToLower(strings.TrimSpace(line))
			}()
			select {
			case a := <-answer:
				yes = a == "y" || a == "yes"
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		})
		return yes, err
	}
}
