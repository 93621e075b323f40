package remote

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hash hides the names of a known_hosts file, as ssh-keygen -H does.
func hashKnown(t *testing.T, s *server) {
	t.Helper()
	run(t, "ssh-keygen", "-q", "-H", "-f", s.knownHosts)
	if text, _ := os.ReadFile(s.knownHosts); !strings.HasPrefix(string(text), "|1|") {
		t.Fatalf("not hashed: %s", text)
	}
}

func TestHostKeys(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	other := func(kind string) string {
		path := filepath.Join(place(t), "other")
		run(t, "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path)
		text, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(text))[:2], " ")
	}
	ed, ec, rsa := s.hostKey(t, "ed25519"), s.hostKey(t, "ecdsa"), s.hostKey(t, "rsa")
	n := s.name()
	for _, c := range []struct {
		name  string
		known string
		hash  bool
		want  HostKeyProblem
		ok    bool
		line  int // of the old entry
	}{
		{name: "known", known: n + " " + ed, ok: true},
		{name: "known by another type of key", known: n + " " + ec, ok: true},
		{name: "known by its RSA key", known: n + " " + rsa, ok: true},
		{name: "hashed", known: n + " " + rsa, hash: true, ok: true},
		{name: "one of several names", known: "a.example,b.example," + n + " " + ed, ok: true},
		{name: "by a pattern", known: "127.0.* " + ed, ok: true},
		{name: "by its name on port 22", known: "127.0.0.1 " + ed, ok: true},
		{name: "excluded from a pattern", known: "127.0.*,!127.0.0.1 " + ed, want: HostKeyUnknown},
		{name: "empty file", known: "", want: HostKeyUnknown},
		{name: "only others known", known: "192.0.2.1 " + ed, want: HostKeyUnknown},
		{name: "known on another port", known: "[127.0.0.1]:1 " + ed, want: HostKeyUnknown},
		{name: "changed", known: "# comment\n\n" + n + " " + other("ed25519"), want: HostKeyChanged, line: 3},
		{name: "changed, hashed", known: n + " " + other("ecdsa"), hash: true, want: HostKeyChanged, line: 1},
		{name: "a type of key that the host has no more", known: n + " " + other("rsa"), want: HostKeyChanged, line: 1},
		{name: "one old key, one right", known: n + " " + other("ed25519") + "\n" + n + " " + ed, ok: true},
		{name: "revoked", known: n + " " + ed + "\n@revoked * " + ed, want: HostKeyRevoked, line: 2},
		{name: "unknown and revoked", known: "@revoked * " + ed, want: HostKeyRevoked, line: 1},
		{name: "lines that nobody can read", known: "rubbish\n" + n + " 1024 35 1234567\n" + n + " ssh-ed25519 AAAA\n" + n + " " + ed, ok: true},
		{name: "changed, after a line that nobody can read", known: "rubbish\n" + n + " " + other("ed25519"), want: HostKeyChanged, line: 2},
		{name: "an authority, and the host has no certificate", known: "@cert-authority * " + other("ed25519"), want: HostKeyUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.setKnown(t, c.known+"\n")
			if c.hash {
				hashKnown(t, s)
			}
			how := s.ssh(opUser)
			h, err := how.Connect(limit(t, time.Minute))
			if err == nil {
				h.Close()
			}
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused *HostKeyError
			if !errors.As(err, &refused) || refused.Problem != c.want || refused.Host != n {
				t.Fatalf("got %v", err)
			}
			if c.line > 0 && (len(refused.Old) == 0 || refused.Old[0].Line != c.line || refused.Old[0].File != s.knownHosts) {
				t.Errorf("the old entry: %v, not line %d of %s", refused.Old, c.line, s.knownHosts)
			}
			if c.want == HostKeyRevoked {
				return
			}
			// What the error says must be what helps.
			if c.want == HostKeyChanged {
				if want := fmt.Sprintf("ssh-keygen -R '%s' -f %s", n, s.knownHosts); !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
				if strings.HasPrefix(c.known, "rubbish") {
					s.setKnown(t, "rubbish\n") // ssh-keygen leaves such a file alone
				} else {
					run(t, "ssh-keygen", "-q", "-R", n, "-f", s.knownHosts)
				}
			}
			if !strings.Contains(err.Error(), refused.Line) || !strings.Contains(err.Error(), refused.Fingerprint) {
				t.Errorf("no line or fingerprint in: %v", err)
			}
			text, _ := os.ReadFile(s.knownHosts)
			s.setKnown(t, string(text)+refused.Line+"\n")
			h, err = how.Connect(limit(t, time.Minute))
			if err != nil {
				t.Fatalf("after the line was added: %v", err)
			}
			h.Close()
		})
	}
	t.Run("a revocation that nobody can read", func(t *testing.T) {
		s.setKnown(t, n+" "+ed+"\n@revoked * rubbish\n")
		if _, err := s.ssh(opUser).Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "known_hosts:2") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no file", func(t *testing.T) {
		how := s.ssh(opUser)
		how.KnownHosts = filepath.Join(s.dir, "nowhere")
		_, err := how.Connect(limit(t, time.Minute))
		var refused *HostKeyError
		if !errors.As(err, &refused) || refused.Problem != HostKeyUnknown || refused.File != how.KnownHosts {
			t.Errorf("got %v", err)
		}
	})
	t.Run("checking cannot be turned off", func(t *testing.T) {
		how := s.ssh(opUser)
		how.KnownHosts = ""
		how.ConfigFile = filepath.Join(s.dir, "config")
		if err := os.WriteFile(how.ConfigFile, []byte("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nGlobalKnownHostsFile none\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := how.Connect(limit(t, time.Minute))
		var refused *HostKeyError
		if !errors.As(err, &refused) {
			t.Fatalf("got %v", err)
		}
		want := ", set UserKnownHostsFile in ~/.ssh/config to a file that keeps keys, and add to it: " + refused.Line
		if !strings.HasSuffix(err.Error(), want) {
			t.Errorf("the advice is of no use: %v", err)
		}
	})
	t.Run("changed where the first file keeps nothing", func(t *testing.T) {
		how := s.ssh(opUser)
		how.KnownHosts = ""
		how.ConfigFile = filepath.Join(s.dir, "config")
		if err := os.WriteFile(how.ConfigFile, []byte("UserKnownHostsFile /dev/null\nGlobalKnownHostsFile "+s.knownHosts+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.setKnown(t, n+" "+other("ed25519")+"\n")
		if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "; add to "+s.knownHosts+": ") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an alias", func(t *testing.T) {
		// It comes without the port (ssh_config(5), HostKeyAlias).
		how := s.ssh(opUser)
		how.ConfigFile = filepath.Join(s.dir, "config")
		if err := os.WriteFile(how.ConfigFile, []byte("HostKeyAlias Web\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.setKnown(t, "web "+ed+"\n")
		connect(t, how)
		for _, name := range []string{n, fmt.Sprintf("[web]:%d", s.port)} {
			s.setKnown(t, name+" "+ed+"\n")
			var refused *HostKeyError
			if _, err := how.Connect(limit(t, time.Minute)); !errors.As(err, &refused) || refused.Problem != HostKeyUnknown || refused.Host != "web" {
				t.Errorf("known as %s: %v", name, err)
			}
		}
	})
	t.Run("a list of revoked keys", func(t *testing.T) {
		s.know(t, "ed25519")
		list := filepath.Join(s.dir, "revoked")
		how := s.ssh(opUser)
		how.KnownHosts = ""
		how.ConfigFile = filepath.Join(s.dir, "config")
		config := fmt.Sprintf("UserKnownHostsFile %s\nRevokedHostKeys %s\n", s.knownHosts, list)
		if err := os.WriteFile(how.ConfigFile, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(list, []byte("# gone\n"+ec+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		connect(t, how)
		if err := os.WriteFile(list, []byte(ec+"\n"+ed+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var refused *HostKeyError
		if _, err := how.Connect(limit(t, time.Minute)); !errors.As(err, &refused) || refused.Problem != HostKeyRevoked || refused.Old[0].Line != 2 {
			t.Errorf("got %v", err)
		}
		run(t, "ssh-keygen", "-q", "-k", "-f", list, filepath.Join(s.dir, "host_ed25519.pub"))
		if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "KRL") {
			t.Errorf("a KRL: %v", err)
		}
	})
}

func TestHostCertificates(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	authority := filepath.Join(place(t), "ca")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority)
	public, err := os.ReadFile(authority + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	ca := strings.Join(strings.Fields(string(public))[:2], " ")
	// The authority's key is of another type than the host's.
	s := startServer(t, serverOptions{})
	for _, c := range []struct {
		name    string
		sign    []string
		known   string
		revoked string // the file of ssh_config's RevokedHostKeys
		ok      bool
		want    HostKeyProblem
	}{
		{name: "good", sign: []string{"-n", "127.0.0.1,app1"}, known: "@cert-authority * " + ca, ok: true},
		{name: "for this host", sign: []string{"-n", "127.0.0.1"}, known: "@cert-authority " + s.name() + " " + ca, ok: true},
		{name: "for other hosts", sign: []string{"-n", "127.0.0.1"}, known: "@cert-authority *.example " + ca, want: HostKeyUnknown},
		{name: "of another name", sign: []string{"-n", "app2"}, known: "@cert-authority * " + ca, want: HostKeyCertificate},
		{name: "expired", sign: []string{"-n", "127.0.0.1", "-V", "20200101:20200102"}, known: "@cert-authority * " + ca, want: HostKeyCertificate},
		{name: "authority revoked", sign: []string{"-n", "127.0.0.1"}, known: "@cert-authority * " + ca + "\n@revoked * " + ca, want: HostKeyCertificate},
		{name: "authority in the list of revoked keys", sign: []string{"-n", "127.0.0.1"}, known: "@cert-authority * " + ca, revoked: ca, want: HostKeyRevoked},
		{name: "host key in the list of revoked keys", sign: []string{"-n", "127.0.0.1"}, known: "@cert-authority * " + ca, revoked: s.hostKey(t, "ecdsa"), want: HostKeyRevoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := filepath.Join(s.dir, "host_ecdsa")
			run(t, append(append([]string{"ssh-keygen", "-q", "-s", authority, "-I", "host", "-h"}, c.sign...), key+".pub")...)
			certified := startServer(t, serverOptions{config: fmt.Sprintf("HostKey %s\nHostCertificate %s-cert.pub", key, key)})
			known := strings.ReplaceAll(c.known, s.name(), certified.name())
			certified.setKnown(t, known+"\n")
			how := certified.ssh(opUser)
			if c.revoked != "" {
				list, config := filepath.Join(s.dir, "revoked"), filepath.Join(s.dir, "config")
				for file, text := range map[string]string{
					list:   c.revoked + "\n",
					config: fmt.Sprintf("UserKnownHostsFile %s\nRevokedHostKeys %s\n", certified.knownHosts, list),
				} {
					if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				how.KnownHosts, how.ConfigFile = "", config
			}
			h, err := how.Connect(limit(t, time.Minute))
			if err == nil {
				h.Close()
			}
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused *HostKeyError
			if !errors.As(err, &refused) || refused.Problem != c.want {
				t.Errorf("got %v", err)
			}
		})
	}
}
