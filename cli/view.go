package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mattn/go-isatty"
	"golang.org/x/term"

	"github.com/drainctl/drainctl/drain"
)

// A view shows what happens: as text for a person, or as JSON for a program. A
// write that fails is ignored: who stops reading does not stop a drain.
type view interface {
	event(drain.Event)
	status(*drain.Status)
	checks(*drain.CheckReport)
	history(entries []drain.HistoryEntry, unreadable []string)
	operation(id string, events []drain.Event, truncated int)
	config(files []string, values []configValue)
	trace(host, command string)
	signal(kind drain.Kind, first bool)
	pause(func()) // keeps quiet while somebody types
}

type viewOptions struct {
	plain, verbose bool
	document       bool // JSON is one document, not a line for each event
}

// A fanOut is a view whose events others are told as well.
type fanOut struct {
	view
	others []func(drain.Event)
}

func (f fanOut) event(e drain.Event) {
	f.view.event(e)
	for _, tell := range f.others {
		tell(e)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// passphrase asks for a key's passphrase, on a terminal only. It ends with ctx:
// the terminal then shows again what is typed.
func passphrase(v view) func(context.Context, string) ([]byte, error) {
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
		v.pause(func() {
			fmt.Fprintf(tty, "passphrase for %s: ", key)
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
