package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A TooLongError says that a command printed more than so many bytes.
type TooLongError int

func (e TooLongError) Error() string { return fmt.Sprintf("it printed more than %d KiB", int(e)>>10) }

// An Output keeps what a command prints: at most Max bytes. It is safe for concurrent use.
type Output struct {
	Max  int
	Last bool        // keep the last Max bytes of a longer output
	Full func(error) // without Last: is called with a TooLongError for a longer output

	mu    sync.Mutex
	text  []byte
	total int // bytes written so far
}

// Write implements io.Writer. Without Last, it fails with a TooLongError when p does not fit.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.total += len(p)
	if o.total > o.Max && !o.Last {
		err := TooLongError(o.Max)
		if o.Full != nil {
			o.Full(err)
		}
		return 0, err
	}
	o.text = append(o.text, p...)
	if len(o.text) > 2*o.Max {
		o.text = append(o.text[:0], o.text[len(o.text)-o.Max:]...)
	}
	return len(p), nil
}

// Bytes returns a copy of what is kept.
func (o *Output) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.text[max(0, len(o.text)-o.Max):])
}

// Total returns the number of bytes that were written, kept or not.
func (o *Output) Total() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.total
}

// isTooLong reports whether there was more than an output without Last keeps.
func (o *Output) isTooLong() bool { return !o.Last && o.Total() > o.Max }

// maxLine is how many bytes of a line an error repeats.
const maxLine = 4 << 10

// Lines returns the lines of text that are not blank, each clipped to 4 KiB.
func Lines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, " \t\r\n"); line != "" {
			lines = append(lines, Clip(line, maxLine))
		}
	}
	return lines
}

// Clip shortens s to n bytes and "...", if it is longer.
func Clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

// maxPipe is more than a pipe holds (fcntl(2), F_SETPIPE_SZ).
const maxPipe = 1 << 20

// A collector reads the output of a command into an Output.
type collector struct {
	pipe *os.File
	into *Output
	done chan struct{} // closed when it has read all
}

func collect(pipe *os.File, into *Output) *collector {
	c := &collector{pipe, into, make(chan struct{})}
	go func() {
		defer close(c.done)
		if _, err := io.Copy(into, pipe); errors.Is(err, os.ErrDeadlineExceeded) {
			c.takeRest()
		}
		pipe.Close()
	}()
	return c
}

// finish returns when the output has ended, or when what is in the pipe at deadline was read.
// A command that has ended has written all of its output into the pipe, but what it left
// running may hold the pipe open for ever.
func (c *collector) finish(deadline time.Time) {
	_ = c.pipe.SetReadDeadline(deadline)
	<-c.done
}

// takeRest reads what is in the pipe without waiting for more.
func (c *collector) takeRest() {
	raw, err := c.pipe.SyscallConn()
	if err != nil {
		return
	}
	rest := make([]byte, maxPipe)
	_ = raw.Control(func(fd uintptr) { // Read would go by the deadline
		n, _ := syscall.Read(int(fd), rest)
		_, _ = c.into.Write(rest[:max(0, n)])
	})
}
