package remote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A host may be broken or hostile. Nothing that it sends is kept without a bound, and
// nothing that is asked of it is waited for without one. An answer that is too long is an
// error: a part of it is never taken for the whole.
const (
	maxOutput  = 1 << 20  // bytes of a command's output, and of an answer of the counter
	maxStderr  = 64 << 10 // bytes of a command's standard error that are kept, the last
	maxLine    = 64 << 10 // bytes of a line of the counter
	maxText    = 4 << 10  // bytes of a line that an error or a log repeats
	maxBody    = 64 << 10 // bytes of the body, and of the header, of an answer over HTTP
	maxPeers   = 8        // that a count lists
	maxHeld    = 2000     // connections that a count lists
	maxClients = 2000     // that are listed
	// maxOpen is more connections than a host can have; a greater count is an error.
	maxOpen = 1 << 28
)

// limits are those bounds that tests shorten.
type limits struct {
	command   time.Duration // for a command to end, if it has no limit of its own
	answer    time.Duration // for sshd to answer a request
	output    int           // bytes: see maxOutput
	keepalive time.Duration // a connection silent for so long is asked for a sign of life
	grace     time.Duration // for a command to end when it is told to
	pipe      time.Duration // for output after the end of a command, where something it left behind holds it open
	refusal   time.Duration // for sshd to have room for another session
}

func defaultLimits() limits {
	return limits{
		command: 30 * time.Second, answer: 15 * time.Second, output: maxOutput,
		keepalive: 3 * time.Second, grace: time.Second, pipe: 2 * time.Second, refusal: 5 * time.Second,
	}
}

// A tooLongError says that a command printed more than so many bytes.
type tooLongError int

func (e tooLongError) Error() string { return fmt.Sprintf("it printed more than %d KiB", int(e)>>10) }

// A boundedBuffer is output of at most limit bytes. It calls full when there is more.
type boundedBuffer struct {
	text  bytes.Buffer
	limit int
	full  func(error)
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if len(p) > b.limit-b.text.Len() {
		err := tooLongError(b.limit)
		b.full(err)
		return 0, err
	}
	return b.text.Write(p)
}

// A lineReader reads lines of at most maxLine bytes.
type lineReader struct {
	*bufio.Reader
	left int // bytes that the answer may still have
}

// line reads the next line of an answer.
func (r *lineReader) line() (string, error) {
	line, err := r.ReadSlice('\n')
	r.left -= len(line)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		err = tooLongError(maxLine)
	case r.left < 0:
		err = tooLongError(maxOutput)
	}
	return string(line), err
}

// clip shortens s for an error.
func clip(s string) string { return clipTo(s, 200) }

func clipTo(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

// A clippedError has a text of bounded length, whatever a host put into it.
type clippedError struct{ error }

func (e clippedError) Error() string { return clipTo(e.error.Error(), maxText) }
func (e clippedError) Unwrap() error { return e.error }
