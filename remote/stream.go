package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// process is a running command, here or over SSH. Its output is read, its
// input is written.
type process interface {
	io.ReadWriter
	CloseWrite() error
	signal(name string) // "TERM" or "KILL", where that is possible
	flush() error       // returns when all output so far has arrived
	hangup()            // closes everything to it; reads end
	abandon()           // has reads end where the host does not close
	cut() error         // why the end of its output may not be the real one
}

// Stream is a command that is talked to. Read reads its standard output, Write
// writes its standard input. An output that ends because the connection broke
// ends with an error, ErrConnection among its causes, and not with io.EOF.
type Stream struct {
	process process
	limits  limits
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

func newStream(l limits, s *slot) *Stream {
	stream := &Stream{limits: l, slot: s, drained: make(chan struct{}), ended: make(chan struct{})}
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
	case <-time.After(s.limits.pipe):
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
	s.endsWithin(s.limits.grace)
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
	ended := s.endsWithin(s.limits.grace)
	s.process.signal("KILL") // also what it started: that may have ignored the other
	if !ended {
		s.endsWithin(s.limits.grace)
	}
}

// finish feeds the command its input and collects its output until it ends, its
// time is up, it prints too much, or ctx ends. Afterwards s is closed.
func (s *Stream) finish(ctx context.Context, c Command) (Result, error) {
	if limit := cmp.Or(c.Limit, s.limits.command); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not end within %v", limit))
		defer cancel()
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		// What the command does not want to read is its own affair.
		_, _ = s.process.Write(c.Stdin)
		_ = s.process.CloseWrite()
	}()
	stdout := &boundedBuffer{limit: s.limits.output, full: stop}
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(stdout, s)
		if err == nil {
			<-s.drained
		}
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
		cut = s.readAll(ctx, read)
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
	return Result{Stdout: stdout.text.Bytes(), Stderr: s.stderr.bytes(), Code: s.code}, nil
}

// readAll returns when the output of a command that has ended was read, or
// nothing more of it comes though something else holds it open. What is still to come
// after a command that was killed is not waited for longer than for any other.
func (s *Stream) readAll(ctx context.Context, read <-chan error) error {
	for {
		before := s.arrived.Load()
		select {
		case err := <-read:
			return err
		case <-time.After(s.limits.pipe):
		}
		flushed := s.process.flush()
		if ctx.Err() != nil {
			_ = s.endReads(read)
			return context.Cause(ctx)
		}
		if flushed != nil || s.arrived.Load() == before {
			if err := s.endReads(read); err != nil {
				return err
			}
			return s.process.cut()
		}
	}
}

// endReads closes everything to the command and returns what the read of its output did.
func (s *Stream) endReads(read <-chan error) error {
	s.process.hangup()
	select {
	case err := <-read:
		return err
	case <-time.After(s.limits.pipe):
	}
	s.process.abandon()
	return <-read
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
