// Command picture makes the picture of a drain that the README has: it boots the lab,
// drains a backend under load on a terminal, and draws what the terminal has shown as an
// SVG that plays it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hinshun/vt10x"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// The terminal's size.
const (
	columns = 80
	rows    = 18
)

// every is between two looks at the terminal, and limit is how long a drain may take.
const (
	every = 100 * time.Millisecond
	limit = 2 * time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: picture FILE")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "picture: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file string) (err error) {
	l, err := lab.Up(ctx, lab.Options{Log: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	if err := l.Install(ctx); err != nil {
		return err
	}
	load, err := l.StartLoad(ctx, lab.LoadOptions{})
	if err != nil {
		return err
	}
	app := l.Apps[0]
	err = load.WaitFor(ctx, time.Minute, func(s traffic.Summary) bool { return s.Servers[app.Name].Streams > 2 })
	if err != nil {
		return errors.Join(err, l.Down())
	}
	frames, err := film(ctx, l.LB, "drainctl", "drain", app.Addr, "--service", lab.AppUnit)
	s, stopErr := load.Stop()
	if err = errors.Join(err, stopErr); err != nil {
		return err
	}
	if s.Failed > 0 {
		return fmt.Errorf("requests failed: %s", s)
	}
	fmt.Fprintf(os.Stderr, "%s\n%d frames\n", s, len(frames))
	return os.WriteFile(file, []byte(draw(frames)), 0o644)
}

// A frame is what a terminal shows for some time.
type frame struct {
	lines []line
	shown time.Duration
}

// film runs a command on a terminal of m, and gives what that shows. It must end with 0.
func film(ctx context.Context, m *lab.Machine, words ...string) ([]frame, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	screen := vt10x.New(vt10x.WithSize(columns, rows))
	command := strings.Join(words, " ")
	fmt.Fprintf(screen, "\x1b[1mroot@lb:~#\x1b[0m %s\r\n", command)
	// script(1) runs it on a terminal.
	cmd := m.Command(ctx, "script", "-qefc", fmt.Sprintf("stty cols %d rows %d; TERM=xterm-256color LC_ALL=C.UTF-8 %s", columns, rows, command), os.DevNull)
	shown, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	read := make(chan struct{})
	go func() {
		_, _ = io.Copy(screen, shown) // it ends with the command
		close(read)
	}()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	frames := []frame{{lines: linesOf(screen)}}
	for {
		select {
		case <-ticker.C:
			frames = add(frames, linesOf(screen))
		case <-read:
			return add(frames, linesOf(screen)), cmd.Wait()
		}
	}
}

// add adds what a terminal shows now.
func add(frames []frame, lines []line) []frame {
	last := &frames[len(frames)-1]
	last.shown += every
	if same(last.lines, lines) {
		return frames
	}
	return append(frames, frame{lines: lines})
}
