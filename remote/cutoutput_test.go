package remote

import (
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// startCutter is an SSH server that answers every command with some output and the
// exit status 0, and breaks the connection where a real one would send the rest. OpenSSH
// does so too where the network breaks at that moment, but not on demand.
func startCutter(t *testing.T) SSH {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go cutOutput(conn, config)
		}
	}()
	known := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{listener.Addr().String()}, signer.PublicKey())
	if err := os.WriteFile(known, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return SSH{Address: "127.0.0.1", User: "root", Port: listener.Addr().(*net.TCPAddr).Port, ConfigFile: "none", KnownHosts: known}
}

func cutOutput(conn net.Conn, config *ssh.ServerConfig) {
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
		for r := range requests {
			if r.Type != "exec" {
				_ = r.Reply(false, nil)
				continue
			}
			_ = r.Reply(true, nil)
			_, _ = channel.Write([]byte("1"))
			_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{0}))
			return
		}
	}
}

// TestCutOutput checks that what a command has written is not taken for all of it when
// the connection breaks after its exit status.
func TestCutOutput(t *testing.T) {
	t.Parallel()
	for range 20 {
		h := connect(t, startCutter(t))
		r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", "1234"}})
		if !errors.Is(err, ErrConnection) {
			t.Fatalf("%q, %v; want ErrConnection", r.Stdout, err)
		}
	}
}
