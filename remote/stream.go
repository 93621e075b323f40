package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/command"
)

// process is a running command, on this machine or over SSH.
type process interface {
	io.ReadWriteCloser // Close closes everything to it, at once
	CloseWrite() error
	Stderr() string
	Done() <-chan struct{}
	Wait() (int, error)
}

// Stream is a command that is talked to. Read reads its standard output, Write writes its
// standard input, and CloseWrite ends that. An output that ends because the connection broke
// ends with an error, ErrConnection among its causes, and not with io.EOF.
//
// Done is closed when the command has ended, or the connection to it. Wait returns the exit
// status then; an error says that the end of the command is not known. Stderr is the last of
// what the command has written to its standard error, at most 64 KiB. After Wait it is complete.
type Stream struct {
	process
	limits  limits
	turn    chan *Stream // of the host: see sshHost; nil on this machine
	hasTurn atomic.Bool
	closing sync.Once
}

func newStream(p process, l limits, turn chan *Stream) *Stream {
	s := &Stream{process: p, limits: l, turn: turn}
	s.hasTurn.Store(turn != nil)
	return s
}

// Close ends the command's input, gives the command a second to end, and closes everything to
// it. It sends no signal.
func (s *Stream) Close() error {
	s.closing.Do(func() {
		_ = s.CloseWrite()
		endsWithin(s, s.limits.grace)
		s.process.Close()
	})
	s.pass(nil)
	return nil
}

// pass lets the next command have the turn, if s has it. The next command closes idle.
func (s *Stream) pass(idle *Stream) {
	if s.hasTurn.CompareAndSwap(true, false) {
		s.turn <- idle
	}
}

// park lets other commands run while s has nothing to do. The next one closes s.
func (s *Stream) park() { s.pass(s) }

// resume takes the turn again after park. It is false if s has ended meanwhile or was closed.
func (s *Stream) resume(ctx context.Context) (bool, error) {
	if s.turn != nil {
		idle, err := wait(ctx, s.turn)
		if err != nil {
			return false, err
		}
		if idle != s {
			s.turn <- idle
			return false, nil
		}
		s.hasTurn.Store(true)
	}
	return !endsWithin(s, 0), nil
}

// wait waits for the turn, and returns the Stream that was parked, if any.
func wait(ctx context.Context, turn chan *Stream) (idle *Stream, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case idle := <-turn:
		return idle, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// endsWithin reports whether a command ends within d, or had ended before.
func endsWithin(p process, d time.Duration) bool {
	select {
	case <-p.Done():
		return true
	default:
	}
	select {
	case <-p.Done():
		return true
	case <-time.After(d):
		return false
	}
}

// sshProcess is a command on a host over SSH (RFC 4254, section 6). The library's own
// ssh.Session waits for the end of the output even where something that the command left
// behind holds it open for ever; this one does not.
type sshProcess struct {
	channel
	conn   *connection
	limits limits
	stderr command.Output
	read   chan struct{} // closed when all of stderr was read
	ended  chan struct{} // closed when the end of the command is known, or that it cannot be known
	code   int           // valid then
	err    error
	closed chan struct{} // closed when the host has closed the channel
}

// exec asks the host to start a command on ch. From here on nobody can know whether a lost
// connection has lost the command too.
func (c *connection) exec(ctx context.Context, ch channel, line string, l limits) (*sshProcess, error) {
	p := &sshProcess{
		channel: ch, conn: c, limits: l, stderr: command.Output{Max: maxStderr, Last: true},
		read: make(chan struct{}), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	go p.serve()
	started, err := query(ctx, c, func() (bool, error) {
		return ch.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{line}))
	}, func(bool) {})
	switch {
	case errors.Is(err, errDead):
		return nil, c.lost()
	case err != nil:
		p.Close()
		return nil, err
	case !started:
		_ = p.brief(ch.Channel.Close)
		return nil, errors.New("sshd refuses to start commands for this user")
	}
	go func() {
		defer close(p.read)
		_, _ = io.Copy(&p.stderr, ch.Channel.Stderr())
	}()
	return p, nil
}

// serve takes in what the host tells about the command.
func (p *sshProcess) serve() {
	known := false
	for r := range p.requests {
		if code, ok := exitStatus(r); ok && !known {
			known, p.code = true, code
			close(p.ended)
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	if !known {
		p.err = p.conn.lost()
		close(p.ended)
	}
	close(p.closed)
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

// Read implements io.Reader. sshd may tell the exit status before the last of the output,
// and the library may end the output where the connection broke.
func (p *sshProcess) Read(b []byte) (int, error) {
	n, err := p.channel.Read(b)
	if errors.Is(err, io.EOF) && p.conn.isBroken() {
		err = fmt.Errorf("output cut short: %w", p.conn.lost())
	}
	return n, err
}

func (p *sshProcess) CloseWrite() error     { return p.brief(p.channel.CloseWrite) }
func (p *sshProcess) Stderr() string        { return string(p.stderr.Bytes()) }
func (p *sshProcess) Done() <-chan struct{} { return p.ended }

func (p *sshProcess) Wait() (int, error) {
	<-p.ended
	select {
	case <-p.read:
	case <-time.After(p.limits.pipe):
	}
	return p.code, p.err
}

// Close closes the channel. sshd keeps the session of a command that has not ended, and a
// broken host may keep any, so then the connection is of no more use.
func (p *sshProcess) Close() error {
	if !endsWithin(p, 0) {
		p.conn.end(errors.New("given up, with a command that did not end"))
		return nil
	}
	_ = p.brief(p.channel.Close)
	select {
	case <-p.closed:
	case <-time.After(p.limits.pipe):
		p.conn.end(errors.New("the host does not close a session"))
	}
	return nil
}

// kill asks sshd to kill the command, and reports whether the command ends. sshd does so for
// what runs as a user other than root, and only as long as the login shell lives
// (session_signal_req in OpenSSH's session.c): a polite signal first would leave what
// ignores it.
func (p *sshProcess) kill() bool {
	_ = p.brief(func() error {
		_, err := p.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{"KILL"}))
		return err
	})
	return endsWithin(p, p.limits.grace)
}

// brief runs f, which sends the host a few bytes, and waits for that no longer than a
// moment: a host that reads nothing would hold it up for ever.
func (p *sshProcess) brief(f func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- f() }()
	select {
	case err := <-sent:
		return err
	case <-time.After(p.limits.grace):
		return errors.New("the host reads nothing")
	}
}

// finish feeds the command its input and collects its output until it ends, its time is up,
// it prints too much, or ctx ends.
func (p *sshProcess) finish(ctx context.Context, c Command) (Result, error) {
	ctx, cancel := c.limited(ctx, p.limits)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		_, _ = p.Write(c.Stdin) // the command need not read all of it
		_ = p.CloseWrite()
	}()
	stdout := &command.Output{Max: p.limits.output, Full: stop}
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(stdout, p)
		if err == nil {
			<-p.read
		}
		read <- err
	}()
	select {
	case <-p.ended:
	case <-ctx.Done():
		if !p.kill() || p.err != nil {
			return Result{}, fmt.Errorf("given up, it may still run: %w", context.Cause(ctx))
		}
	}
	switch {
	case p.err != nil:
		return Result{}, fmt.Errorf("its end is not known: %w", p.err)
	case ctx.Err() != nil && p.code != 0:
		return Result{}, fmt.Errorf("killed: %w", context.Cause(ctx))
	}
	if err := p.readAll(ctx, read, stdout); err != nil {
		return Result{}, err
	}
	return Result{Stdout: stdout.Bytes(), Stderr: p.stderr.Bytes(), Code: p.code}, nil
}

// readAll returns when the output of a command that has ended was read, or when nothing more
// of it comes although something that the command left behind holds it open.
func (p *sshProcess) readAll(ctx context.Context, read <-chan error, stdout *command.Output) error {
	for {
		before := stdout.Total() + p.stderr.Total()
		select {
		case err := <-read:
			return err
		case <-time.After(p.limits.pipe):
		}
		_, err := query(ctx, p.conn, func() (bool, error) { return true, p.conn.ping() }, func(bool) {})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil || p.conn.isBroken():
			return p.conn.lost()
		case stdout.Total()+p.stderr.Total() == before:
			return nil
		}
	}
}
