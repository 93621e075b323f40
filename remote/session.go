package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// killLimit is how long it may take to send a signal, on a host that is slow.
const killLimit = 10 * time.Second

// session is a command running on a host (RFC 4254, section 6). The library's
// own ssh.Session waits for the end of the output even where something that the
// command left behind holds it open for ever; this one does not.
type session struct {
	conn    *connection
	channel ssh.Channel
	exited  chan struct{} // closed when the exit status is known
	closed  chan struct{} // closed when the host has closed the channel
	code    int           // the exit status, valid once exited is closed
	launch  launch
	arrived atomic.Int64 // bytes of output so far
	stderr  errorOutput
}

func newSession(c *connection, o opened, l launch) *session {
	s := &session{conn: c, channel: o.channel, launch: l, stderr: errorOutput{mark: l.mark}, exited: make(chan struct{}), closed: make(chan struct{})}
	go s.serve(o.requests)
	return s
}

// serve takes in what the host tells about the command.
func (s *session) serve(requests <-chan *ssh.Request) {
	defer close(s.closed)
	done := false
	for r := range requests {
		if !done {
			if code, known := exitStatus(r); known {
				s.code, done = code, true
				close(s.exited)
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
}

// exitStatus reads the exit status out of r, if that is what it is.
func exitStatus(r *ssh.Request) (code int, known bool) {
	switch r.Type {
	case "exit-status":
		var status struct{ Code uint32 }
		if ssh.Unmarshal(r.Payload, &status) == nil {
			return int(status.Code), true
		}
	case "exit-signal":
		var status struct {
			Signal     string
			CoreDumped bool
			Message    string
			Language   string
		}
		if ssh.Unmarshal(r.Payload, &status) == nil {
			return 128 + int(unix.SignalNum("SIG"+status.Signal)), true
		}
	}
	return 0, false
}

// status is the exit status, if it is known.
func (s *session) status() (code int, known bool) {
	select {
	case <-s.exited:
		return s.code, true
	default:
		return 0, false
	}
}

// exec asks the host to start the command. From here on nobody can know
// whether a lost connection has lost the command too.
func (s *session) exec(ctx context.Context) error {
	started, err := query(ctx, s.conn, func() (bool, error) {
		return s.channel.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{s.launch.line}))
	}, func(bool) {})
	switch {
	case ctx.Err() != nil && err != nil:
		go s.abandon()
		return context.Cause(ctx)
	case err != nil:
		return s.conn.lost()
	case !started:
		s.channel.Close()
		return errors.New("sshd refuses to start commands for this user")
	}
	return nil
}

// abandon ends a command that may just be starting.
func (s *session) abandon() {
	go func() { _, _ = io.Copy(&s.stderr, s.channel.Stderr()) }()
	time.Sleep(killGrace)
	s.signal("KILL")
	s.channel.Close()
}

// signal sends a signal to the command and what it started, as the login user:
// it does not reach what sudo runs.
func (s *session) signal(name string) {
	group := s.stderr.group()
	if group == "" {
		return // not started yet; it will find its input and output closed
	}
	ctx, cancel := context.WithTimeout(context.Background(), killLimit)
	defer cancel()
	o, err := s.conn.session(ctx)
	if err != nil {
		return // the command is on its own, or gone with the connection
	}
	defer o.channel.Close()
	kill := newSession(s.conn, o, launch{line: Quote("sh", "-c", "kill -s "+name+" -- -"+group)})
	if kill.exec(ctx) != nil {
		return
	}
	select {
	case <-kill.exited:
	case <-kill.closed:
	case <-ctx.Done():
	}
}

// errorOutput is the standard error of a command, without the line in it that
// tells the process group.
type errorOutput struct {
	mark string
	mu   sync.Mutex
	buf  bytes.Buffer
	id   string // the process group, once it is known
}

// Write implements io.Writer.
func (o *errorOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	if o.mark == "" || o.id != "" {
		return len(p), nil
	}
	before, after, found := bytes.Cut(o.buf.Bytes(), []byte(o.mark+" "))
	id, after, whole := bytes.Cut(after, []byte("\n"))
	if !found || !whole {
		return len(p), nil
	}
	if n, err := strconv.Atoi(string(id)); err == nil && n > 1 {
		o.id = string(id)
	}
	o.mark = ""
	rest := append(bytes.Clone(before), after...)
	o.buf.Reset()
	o.buf.Write(rest)
	return len(p), nil
}

// group is the process group of the command, "" as long as it is not known.
func (o *errorOutput) group() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.id
}

// Bytes returns the output so far.
func (o *errorOutput) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.buf.Bytes())
}

// finish feeds the command its input and collects its output until it ends. If
// ctx ends first, the command is killed.
func (s *session) finish(ctx context.Context, stdin []byte) (Result, error) {
	defer s.channel.Close()
	go func() {
		// What the command does not want to read is its own affair.
		_, _ = s.channel.Write(stdin)
		_ = s.channel.CloseWrite()
	}()
	var stdout bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		other := make(chan struct{})
		go func() {
			defer close(other)
			_, _ = io.Copy(&s.stderr, counter{s.channel.Stderr(), &s.arrived})
		}()
		_, _ = io.Copy(&stdout, counter{s.channel, &s.arrived})
		<-other
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.await(read)
	}()
	killed := false
	select {
	case <-ended:
	case <-ctx.Done():
		killed = true
		s.kill(ended)
	}
	code, known := s.status()
	switch {
	case killed && !known && s.launch.sudo:
		return Result{}, fmt.Errorf("given up, what sudo has started may still run: %w", context.Cause(ctx))
	case killed && (!known || code != 0):
		return Result{}, fmt.Errorf("killed: %w", context.Cause(ctx))
	case !known:
		<-read
		return Result{}, fmt.Errorf("its end is not known: %w", s.conn.lost())
	}
	// sshd may tell the exit status before the last of the output. Where the connection
	// breaks in between, the library ends the output as if it were whole, but only after
	// the wire has ended.
	whole := !s.conn.wire.ended.Load() && !s.conn.isDead()
	s.channel.Close() // ends the reading, if it has not ended
	<-read
	if !whole {
		return Result{}, fmt.Errorf("its output may not be whole: %w", s.conn.lost())
	}
	return Result{Stdout: stdout.Bytes(), Stderr: s.stderr.Bytes(), Code: code}, nil
}

// counter counts the bytes read through it.
type counter struct {
	io.Reader
	n *atomic.Int64
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// await returns when the command has ended and its output has been read.
func (s *session) await(read <-chan struct{}) {
	select {
	case <-s.closed:
		<-read // ends with the channel
		return
	case <-s.exited:
	}
	for {
		before := s.arrived.Load()
		select {
		case <-read:
			return
		case <-s.closed:
			<-read
			return
		case <-time.After(pipeGrace):
		}
		// Something else holds the output open, or the network is slow. What
		// was written before an answer to this has arrived before it.
		_, err := query(context.Background(), s.conn, func() (bool, error) {
			_, _, err := s.conn.client.SendRequest("keepalive@openssh.com", true, nil)
			return true, err
		}, func(bool) {})
		if err != nil || s.arrived.Load() == before {
			return
		}
	}
}

// kill ends the command; ended tells that it has.
func (s *session) kill(ended <-chan struct{}) {
	s.signal("TERM")
	select {
	case <-ended:
	case <-time.After(killGrace):
	}
	// What ignored the signal must not outlive what did not.
	s.signal("KILL")
	select {
	case <-ended:
	case <-time.After(killGrace):
		s.channel.Close()
	}
}

// sessionInput is the input of a command.
type sessionInput struct{ *session }

func (i sessionInput) Write(p []byte) (int, error) { return i.channel.Write(p) }
func (i sessionInput) Close() error                { return i.channel.CloseWrite() }
