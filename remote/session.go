package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// session is a command running on a host (RFC 4254, section 6). The library's
// own ssh.Session waits for the end of the output even where something that the
// command left behind holds it open for ever; this one does not.
type session struct {
	conn    *connection
	channel ssh.Channel
	exited  chan struct{} // closed when the exit status is known
	closed  chan struct{} // closed when the host has closed the channel
	code    int           // the exit status, valid once exited is closed
	sudo    bool          // it runs through sudo
	arrived atomic.Int64  // bytes of output so far
}

func newSession(c *connection, channel ssh.Channel, requests <-chan *ssh.Request) *session {
	s := &session{conn: c, channel: channel, exited: make(chan struct{}), closed: make(chan struct{})}
	go s.serve(requests)
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

// exec asks the host to start the command line. From here on nobody can know
// whether a lost connection has lost the command too.
func (s *session) exec(ctx context.Context, line string) error {
	type answer struct {
		ok  bool
		err error
	}
	got := make(chan answer, 1)
	go func() {
		ok, err := s.channel.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{line}))
		got <- answer{ok, err}
	}()
	select {
	case a := <-got:
		switch {
		case a.err != nil:
			return s.conn.lost()
		case !a.ok:
			return errors.New("sshd refuses to start commands for this user")
		}
		return nil
	case <-ctx.Done():
		s.signal("KILL") // in case it has started
		return context.Cause(ctx)
	}
}

// signal sends a signal to the command and what it started. sshd sends it as
// the login user: it does not reach what sudo runs.
func (s *session) signal(name string) {
	_, _ = s.channel.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name}))
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
	var stdout, stderr bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		other := make(chan struct{})
		go func() {
			defer close(other)
			_, _ = io.Copy(&stderr, counter{s.channel.Stderr(), &s.arrived})
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
	case killed && !known && s.sudo:
		return Result{}, fmt.Errorf("given up, what sudo has started may still run: %w", context.Cause(ctx))
	case killed && (!known || code != 0):
		return Result{}, fmt.Errorf("killed: %w", context.Cause(ctx))
	case !known:
		<-read
		return Result{}, fmt.Errorf("its end is not known: %w", s.conn.lost())
	}
	s.channel.Close() // ends the reading, if it has not ended
	<-read
	return Result{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Code: code}, nil
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
		if _, _, err := s.conn.client.SendRequest("keepalive@openssh.com", true, nil); err == nil && s.arrived.Load() == before {
			return
		}
	}
}

// kill ends the command; ended tells that it has.
func (s *session) kill(ended <-chan struct{}) {
	for _, name := range []string{"TERM", "KILL"} {
		s.signal(name)
		select {
		case <-ended:
			return
		case <-time.After(killGrace):
		}
	}
	s.channel.Close()
}

// sessionInput is the input of a command.
type sessionInput struct{ *session }

func (i sessionInput) Write(p []byte) (int, error) { return i.channel.Write(p) }
func (i sessionInput) Close() error                { return i.channel.CloseWrite() }
