package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// maxStderr is how many bytes of a command's standard error are kept, the last.
const maxStderr = 64 << 10

// timing is how long things may take; tests have shorter times.
type timing struct {
	keepalive time.Duration // a connection silent for so long is asked for a sign of life
	grace     time.Duration // for a command to end when it is told to
	pipe      time.Duration // for output after the end of a command, where something it left behind holds it open
	refusal   time.Duration // for sshd to have room for another session
}

func defaultTiming() timing {
	return timing{keepalive: 3 * time.Second, grace: time.Second, pipe: 2 * time.Second, refusal: 5 * time.Second}
}

// process is a running command, here or over SSH. Its output is read, its
// input is written.
type process interface {
	io.ReadWriter
	CloseWrite() error
	signal(name string) // "TERM" or "KILL", where that is possible
	flush() error       // returns when all output so far has arrived
	hangup()            // closes everything to it; reads end
	cut() error         // why the end of its output may not be the real one
}

// Stream is a command that is talked to. Read reads its standard output, Write
// writes its standard input. An output that ends because the connection broke
// ends with an error, ErrConnection among its causes, and not with io.EOF.
type Stream struct {
	process process
	timing  timing
	slot    *slot        // of the host, if it has one
	holds   atomic.Bool  // whether the slot is this Stream's
	arrived atomic.Int64 // bytes of output so far
	stderr  tail
	drained chan struct{} // closed when all of stderr was read
	ended   chan struct{} // closed when its end is known, or cannot be known any more
	code    int           // valid then
	err     error
	ending  sync.Once
	closing sync.Once
}

func newStream(t timing, s *slot) *Stream {
	stream := &Stream{timing: t, slot: s, drained: make(chan struct{}), ended: make(chan struct{})}
	stream.holds.Store(s != nil)
	return stream
}

// attach makes p the command of s.
func (s *Stream) attach(p process, stderr io.Reader) {
	s.process = p
	go func() {
		defer close(s.drained)
		_, _ = io.Copy(&s.stderr, counted{stderr, &s.arrived})
	}()
}

// end notes how the command ended; err says that nobody knows.
func (s *Stream) end(code int, err error) {
	s.ending.Do(func() {
		s.code, s.err = code, err
		close(s.ended)
	})
}

// Read implements io.Reader.
func (s *Stream) Read(b []byte) (int, error) {
	n, err := counted{s.process, &s.arrived}.Read(b)
	if errors.Is(err, io.EOF) {
		if cut := s.process.cut(); cut != nil {
			err = fmt.Errorf("output cut short: %w", cut)
		}
	}
	return n, err
}

// Write implements io.Writer.
func (s *Stream) Write(b []byte) (int, error) { return s.process.Write(b) }

// CloseWrite ends the command's input.
func (s *Stream) CloseWrite() error { return s.process.CloseWrite() }

// Stderr is the last of what the command has written to its standard error, at
// most 64 KiB. After Wait it is complete.
func (s *Stream) Stderr() string { return string(s.stderr.bytes()) }

// Done is closed when the command has ended, or the connection to it.
func (s *Stream) Done() <-chan struct{} { return s.ended }

// Wait returns the exit status of the command when it has ended. An error says
// that its end is not known.
func (s *Stream) Wait() (int, error) {
	<-s.ended
	select {
	case <-s.drained:
	case <-time.After(s.timing.pipe):
	}
	return s.code, s.err
}

// Close ends the command's input, gives it a second to end, and closes
// everything to it. It sends no signal.
func (s *Stream) Close() error {
	s.closing.Do(func() {
		if s.slot != nil {
			s.slot.unpark(s)
		}
		s.shut()
		s.release()
	})
	return nil
}

// shut is Close, whoever holds the slot.
func (s *Stream) shut() {
	_ = s.process.CloseWrite()
	s.endsWithin(s.timing.grace)
	s.process.hangup()
}

// hasEnded says whether the command has ended, or the connection to it.
func (s *Stream) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// endsWithin says whether the command ends within d.
func (s *Stream) endsWithin(d time.Duration) bool {
	select {
	case <-s.ended:
		return true
	case <-time.After(d):
		return false
	}
}

// terminate tells the command to end, first politely.
func (s *Stream) terminate() {
	s.process.signal("TERM")
	ended := s.endsWithin(s.timing.grace)
	s.process.signal("KILL") // also what it started: that may have ignored the other
	if !ended {
		s.endsWithin(s.timing.grace)
	}
}

// finish feeds the command its input and collects its output until it ends, or
// ctx does. Afterwards s is closed.
func (s *Stream) finish(ctx context.Context, stdin []byte) (Result, error) {
	go func() {
		// What the command does not want to read is its own affair.
		_, _ = s.process.Write(stdin)
		_ = s.process.CloseWrite()
	}()
	var stdout bytes.Buffer
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(&stdout, s)
		<-s.drained
		read <- err
	}()
	killed := false
	select {
	case <-s.ended:
	case <-ctx.Done():
		killed = true
		s.terminate()
	}
	known := s.hasEnded() && s.err == nil
	var cut error
	if known {
		cut = s.readAll(read)
	}
	s.closing.Do(func() { s.process.hangup(); s.release() })
	switch {
	case killed && !known:
		return Result{}, fmt.Errorf("given up, it may still run: %w", context.Cause(ctx))
	case killed && s.code != 0:
		return Result{}, fmt.Errorf("killed: %w", context.Cause(ctx))
	case !known:
		return Result{}, fmt.Errorf("its end is not known: %w", s.err)
	case cut != nil:
		return Result{}, cut
	}
	return Result{Stdout: stdout.Bytes(), Stderr: s.stderr.bytes(), Code: s.code}, nil
}

// readAll returns when the output of a command that has ended was read, or
// nothing more of it comes though something else holds it open.
func (s *Stream) readAll(read <-chan error) error {
	for {
		before := s.arrived.Load()
		select {
		case err := <-read:
			return err
		case <-time.After(s.timing.pipe):
		}
		if s.process.flush() != nil || s.arrived.Load() == before {
			s.process.hangup()
			if err := <-read; err != nil {
				return err
			}
			return s.process.cut()
		}
	}
}

// counted counts the bytes read through it.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// tail keeps the last maxStderr bytes that are written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*maxStderr {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-maxStderr:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf[max(0, len(t.buf)-maxStderr):])
}
