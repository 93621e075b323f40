package drain

import (
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// An answer is the output and the exit status of a command.
type answer struct {
	out, err string
	code     uint32
	lost     bool // the connection breaks before the end of the output
}

// A sshHost is an SSH server that lets every user in. It runs no command, and gives each the answer
// of a test.
type sshHost struct {
	address string // as --lb names it
	mu      sync.Mutex
	answer  func(command string) answer // called with mu held
}

// startSSH starts a server. It puts an ssh on the PATH that knows the server's key: drainctl asks ssh
// for its configuration.
func startSSH(t *testing.T, user string, answers func(command string) answer) *sshHost {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	program, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"known_hosts": knownhosts.Line([]string{l.Addr().String()}, signer.PublicKey()) + "\n",
		"config":      "UserKnownHostsFile " + dir + "/known_hosts\nIdentityFile none\n",
		"ssh":         "#!/bin/sh\nexec " + program + " -F " + dir + "/config \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("SSH_AUTH_SOCK", "")
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	h := &sshHost{address: user + "@" + l.Addr().String(), answer: answers}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(conn, config)
		}
	}()
	return h
}

func (h *sshHost) serve(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				var command struct{ Line string }
				_ = ssh.Unmarshal(r.Payload, &command)
				_ = r.Reply(r.Type == "exec", nil)
				if r.Type == "exec" {
					h.run(conn, channel, command.Line)
				}
			}
		}()
	}
}

// run answers a command. One that succeeds ends after its input, as an agent does.
func (h *sshHost) run(conn net.Conn, channel ssh.Channel, command string) {
	h.mu.Lock()
	a := h.answer(command)
	h.mu.Unlock()
	_, _ = io.WriteString(channel, a.out)
	_, _ = io.WriteString(channel.Stderr(), a.err)
	if a.code == 0 {
		_, _ = io.Copy(io.Discard, channel)
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{a.code}))
	if a.lost {
		_ = conn.(*net.TCPConn).CloseWrite() // Close would reset it, and may take the exit status along
	}
	channel.Close()
}

// greeting is the answer of an agent.
func greeting(protocol int) answer {
	text, _ := json.Marshal(map[string]any{"agent": "drainctl", "protocol": protocol, "version": "v9"})
	return answer{out: string(text) + "\n"}
}
