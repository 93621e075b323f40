package remote

import (
	"context"
	"errors"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// session is a command on a host over SSH (RFC 4254, section 6). The library's
// own ssh.Session waits for the end of the output even where something that the
// command left behind holds it open for ever; this one does not.
type session struct {
	conn    *connection
	channel ssh.Channel
	stream  *Stream
}

// serve takes in what the host tells about the command.
func (s *session) serve(requests <-chan *ssh.Request) {
	for r := range requests {
		if code, known := exitStatus(r); known {
			s.stream.end(code, nil)
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	s.stream.end(0, s.conn.lost())
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

// exec asks the host to start the command. From here on nobody can know
// whether a lost connection has lost the command too.
func (s *session) exec(ctx context.Context, line string) error {
	started, err := query(ctx, s.conn, func() (bool, error) {
		return s.channel.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{line}))
	}, func(bool) {})
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return s.conn.lost()
	case !started:
		s.stream.end(0, nil) // there is no command to be waited for
		return errors.New("sshd refuses to start commands for this user")
	}
	return nil
}

func (s *session) Read(b []byte) (int, error)  { return s.channel.Read(b) }
func (s *session) Write(b []byte) (int, error) { return s.channel.Write(b) }
func (s *session) CloseWrite() error           { return s.brief(s.channel.CloseWrite) }

// brief runs f, which sends the host a few bytes, and waits for that no longer than a
// moment: a host that reads nothing would hold it up for ever.
func (s *session) brief(f func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- f() }()
	select {
	case err := <-sent:
		return err
	case <-time.After(s.stream.limits.grace):
		return errors.New("the host reads nothing")
	}
}

// signal asks sshd to kill the command. It does so for what runs as a user other
// than root, and only as long as the login shell lives (session_signal_req in
// OpenSSH's session.c): a polite signal first would leave what ignores it.
func (s *session) signal(string) {
	_ = s.brief(func() error {
		_, err := s.channel.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{"KILL"}))
		return err
	})
}

// flush asks for an answer, before which all earlier output arrives.
func (s *session) flush() error {
	_, err := query(context.Background(), s.conn, func() (bool, error) {
		_, _, err := s.conn.client.SendRequest("keepalive@openssh.com", true, nil)
		return true, err
	}, func(bool) {})
	return err
}

// hangup closes the channel. sshd keeps the session of a command that has not
// ended, so then the connection is of no more use.
func (s *session) hangup() {
	if s.stream.hasEnded() {
		_ = s.brief(s.channel.Close)
		return
	}
	s.conn.end(errors.New("given up, with a command that did not end"))
}

// abandon ends the connection: the host was told to close the channel, and has not.
func (s *session) abandon() { s.conn.end(errors.New("the host does not close a session")) }

// cut says that the library may have ended the output where the connection
// broke: sshd may tell the exit status before the last of the output.
func (s *session) cut() error {
	if s.conn.conn.ended.Load() || s.conn.isDead() {
		return s.conn.lost()
	}
	return nil
}
