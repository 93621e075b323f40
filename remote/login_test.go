package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// newKey makes a key pair that the server accepts, or does not.
func newKey(t *testing.T, s *server, name, kind, passphrase string, accepted bool) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	run(t, "ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", path)
	if accepted {
		s.authorize(t, path+".pub")
	}
	return path
}

func TestKeys(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		how := s.ssh(opUser)
		how.Identity = newKey(t, s, "plain_"+kind, kind, "", true)
		connect(t, how)
		how.Identity = newKey(t, s, "locked_"+kind, kind, "a passphrase", true)
		_, err := how.Connect(limit(t, time.Minute))
		var refused *AuthError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "ssh-add "+how.Identity) {
			t.Errorf("%s, encrypted, nobody to ask: %v", kind, err)
		}
		asked := 0
		how.Passphrase = func(_ context.Context, path string) ([]byte, error) {
			if path != how.Identity {
				t.Errorf("asked for %s", path)
			}
			if asked++; asked == 1 {
				return []byte("wrong"), nil
			}
			return []byte("a passphrase"), nil
		}
		h := connect(t, how)
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
		s.cut(t)
		if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); err != nil {
			t.Error(err)
		}
		if asked != 2 {
			t.Error("asked again for a new connection")
		}
		how.Passphrase = func(context.Context, string) ([]byte, error) { return []byte("wrong"), nil }
		if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "passphrase is wrong") {
			t.Errorf("%s, wrong: %v", kind, err)
		}
		stop := errors.New("no terminal to ask on")
		how.Passphrase = func(context.Context, string) ([]byte, error) { return nil, stop }
		if _, err := how.Connect(limit(t, time.Minute)); !errors.Is(err, stop) {
			t.Errorf("%s, nobody answers: %v", kind, err)
		}
	}
	t.Run("the old format", func(t *testing.T) {
		how := s.ssh(opUser)
		how.Identity = filepath.Join(s.dir, "pem")
		run(t, "ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "a passphrase", "-f", how.Identity)
		s.authorize(t, how.Identity+".pub")
		how.Passphrase = func(context.Context, string) ([]byte, error) { return []byte("a passphrase"), nil }
		connect(t, how)
	})
	t.Run("typing takes longer than a connection may", func(t *testing.T) {
		how := s.ssh(opUser)
		how.Identity = newKey(t, s, "slow", "ed25519", "a passphrase", true)
		how.DialTimeout = time.Second
		how.Passphrase = func(context.Context, string) ([]byte, error) {
			time.Sleep(2500 * time.Millisecond)
			return []byte("a passphrase"), nil
		}
		connect(t, how)
	})
	t.Run("nobody types", func(t *testing.T) {
		how := s.ssh(opUser)
		how.Identity = newKey(t, s, "unanswered", "ed25519", "a passphrase", true)
		for name, prompt := range map[string]func(context.Context) error{
			"a prompt that ends with its context": func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
			"one that does not":                   func(context.Context) error { time.Sleep(3 * time.Second); return errors.New("late") },
		} {
			ctx, cancel := context.WithCancel(limit(t, time.Minute))
			how.Passphrase = func(ctx context.Context, _ string) ([]byte, error) {
				cancel()
				return nil, prompt(ctx)
			}
			begin := time.Now()
			if _, err := how.Connect(ctx); !errors.Is(err, context.Canceled) || time.Since(begin) > 2*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begin))
			}
		}
	})
	t.Run("not asked for a key that the host does not want", func(t *testing.T) {
		how := s.ssh(opUser)
		locked := newKey(t, s, "unwanted", "ed25519", "a passphrase", false)
		config := filepath.Join(s.dir, "config")
		if err := os.WriteFile(config, []byte("IdentityFile "+locked+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		how.ConfigFile = config
		how.Passphrase = func(_ context.Context, path string) ([]byte, error) {
			t.Errorf("asked for %s", path)
			return nil, errors.New("no")
		}
		connect(t, how)
		how.Identity = newKey(t, s, "unwanted_too", "ecdsa", "", false)
		_, err := how.Connect(limit(t, time.Minute))
		var refused *AuthError
		if !errors.As(err, &refused) || len(refused.Tried) != 2 || errors.Is(err, ErrConnection) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file that is not there", func(t *testing.T) {
		how := s.ssh(opUser)
		how.Identity = filepath.Join(s.dir, "nowhere")
		if _, err := how.Connect(limit(t, time.Minute)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
		how.Identity = filepath.Join(s.dir, "sshd_config")
		if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), how.Identity) {
			t.Errorf("a file that is no key: %v", err)
		}
	})
	t.Run("a user who may not log in", func(t *testing.T) {
		_, err := s.ssh("drainctl-test-nobody").Connect(limit(t, time.Minute))
		var refused *AuthError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "drainctl-test-nobody@127.0.0.1") {
			t.Errorf("got %v", err)
		}
	})
}

// startAgent serves keys as ssh-agent does, and counts its signatures.
func startAgent(t *testing.T, signatures *atomic.Int64, keys ...agent.AddedKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = agent.ServeAgent(counting{ring.(agent.ExtendedAgent), signatures}, conn)
			}()
		}
	}()
	return socket
}

type counting struct {
	agent.ExtendedAgent
	n *atomic.Int64
}

func (c counting) SignWithFlags(key ssh.PublicKey, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	c.n.Add(1)
	return c.ExtendedAgent.SignWithFlags(key, data, flags)
}

// private reads the private key at path.
func private(t *testing.T, path, passphrase string) any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var key any
	if passphrase == "" {
		key, err = ssh.ParseRawPrivateKey(text)
	} else {
		key, err = ssh.ParseRawPrivateKeyWithPassphrase(text, []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAgent(t *testing.T) {
	makeUsers(t)
	s := startServer(t, serverOptions{})
	s.authorize(t, s.key+".pub")
	locked := newKey(t, s, "locked", "rsa", "a passphrase", true)
	var n atomic.Int64
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	socket := startAgent(t, &n, agent.AddedKey{PrivateKey: stranger, Comment: "a stranger"}, agent.AddedKey{PrivateKey: private(t, locked, "a passphrase")})
	how := s.ssh(opUser)
	how.Passphrase = func(_ context.Context, path string) ([]byte, error) {
		t.Errorf("asked for %s, which the agent holds", path)
		return nil, errors.New("no")
	}
	config := filepath.Join(s.dir, "config")
	how.ConfigFile = config
	for _, c := range []struct {
		name, config, socket, identity string
		ok                             bool
		signatures                     int64
	}{
		{name: "from the environment", socket: socket, ok: true, signatures: 1},
		{name: "none", config: "IdentityAgent none\n", socket: socket},
		{name: "by the configuration", config: "IdentityAgent " + socket + "\n", ok: true, signatures: 1},
		{name: "for an encrypted file", identity: locked, socket: socket, ok: true, signatures: 1},
		{name: "for a public key file", config: "IdentitiesOnly yes\n", identity: locked + ".pub", socket: socket, ok: true, signatures: 1},
		{name: "only what is named", config: "IdentitiesOnly yes\nIdentityFile " + filepath.Join(s.dir, "nowhere") + "\n", socket: socket},
		{name: "a file goes before", identity: s.key, socket: socket, ok: true},
		{name: "not there, and not needed", identity: s.key, socket: filepath.Join(s.dir, "nowhere"), ok: true},
		{name: "not there", socket: filepath.Join(s.dir, "nowhere")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("SSH_AUTH_SOCK", c.socket)
			if err := os.WriteFile(config, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			n.Store(0)
			how := how
			how.Identity = c.identity
			h, err := how.Connect(limit(t, time.Minute))
			if err == nil {
				h.Close()
			}
			var refused *AuthError
			if c.ok != (err == nil) || !c.ok && !errors.As(err, &refused) {
				t.Fatalf("got %v", err)
			}
			if got := n.Load(); got != c.signatures {
				t.Errorf("%d signatures, not %d", got, c.signatures)
			}
		})
	}
	t.Run("the public key only", func(t *testing.T) {
		t.Setenv("SSH_AUTH_SOCK", "")
		if err := os.WriteFile(config, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		how := how
		how.Identity = locked + ".pub"
		if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "does not hold its private key") {
			t.Errorf("got %v", err)
		}
	})
}

func TestUserCertificate(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	authority := filepath.Join(place(t), "ca")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority)
	s := startServer(t, serverOptions{config: "TrustedUserCAKeys " + authority + ".pub"})
	for _, passphrase := range []string{"", "a passphrase"} {
		key := newKey(t, s, "certified"+strings.ReplaceAll(passphrase, " ", "_"), "rsa", passphrase, false)
		how := s.ssh(opUser)
		how.Identity = key
		how.Passphrase = func(context.Context, string) ([]byte, error) { return []byte(passphrase), nil }
		if _, err := how.Connect(limit(t, time.Minute)); err == nil {
			t.Fatal("logged in without a certificate")
		}
		run(t, "ssh-keygen", "-q", "-s", authority, "-I", "op", "-n", opUser, key+".pub")
		connect(t, how)
		// The same with the certificate elsewhere.
		elsewhere := filepath.Join(s.dir, "elsewhere"+strings.ReplaceAll(passphrase, " ", "_"))
		run(t, "mv", key+"-cert.pub", elsewhere)
		how.ConfigFile = filepath.Join(s.dir, "config")
		if err := os.WriteFile(how.ConfigFile, []byte("CertificateFile "+elsewhere+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		connect(t, how)
	}
}

// A host that wants more than a key says so. Nobody should look for a missing key then.
func TestSecondFactor(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	for methods, want := range map[string]string{
		"publickey,keyboard-interactive":                    "the key was accepted; the host also wants keyboard-interactive",
		"publickey,password":                                "the key was accepted; the host also wants password",
		"publickey,password publickey,keyboard-interactive": "the key was accepted; the host also wants password or keyboard-interactive",
		"publickey,publickey":                               "the key was accepted; the host also wants another key",
		"keyboard-interactive,publickey":                    "the host wants keyboard-interactive, not a key",
		"password":                                          "the host wants password, not a key",
	} {
		t.Run(methods, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, serverOptions{config: "Match User " + opUser + "\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes\nAuthenticationMethods " + methods})
			_, err := s.ssh(opUser).Connect(limit(t, time.Minute))
			var refused *AuthError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) || errors.Is(err, ErrConnection) {
				t.Errorf("got %v; want %q", err, want)
			}
			connect(t, s.ssh(webUser))
		})
	}
	t.Run("two keys", func(t *testing.T) {
		s := startServer(t, serverOptions{config: "AuthenticationMethods publickey,publickey"})
		config := filepath.Join(s.dir, "config")
		if err := os.WriteFile(config, []byte("IdentityFile "+newKey(t, s, "second", "ed25519", "", true)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		how := s.ssh(opUser)
		how.ConfigFile = config
		connect(t, how)
	})
}
