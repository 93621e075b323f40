package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The attacker of this file is between the load balancer and a backend: what answers at the
// backend's address is an sshd of his. Each test is named after the claim in SECURITY.md
// that it tries to break.

const (
	// commandsPath is where the man in the middle notes every command that reaches him.
	commandsPath = "/var/tmp/commands"
	// sshdLogPath is the log of his sshd.
	sshdLogPath = "/var/tmp/sshd.log"
	hostKeyPath = "/etc/ssh/ssh_host_ed25519_key"
)

// A middle is a man in the middle. He takes every login that the backend would, and runs
// what he is sent: whoever believes him notices nothing.
type middle struct {
	t      *testing.T
	l      *lab.Lab
	app    *lab.Machine
	before map[string]file
}

// newMiddle puts a man in the middle before the first app host. keys is a script that says
// which host keys he has, config more of his sshd's configuration.
func newMiddle(t *testing.T, l *lab.Lab, keys, config string) *middle {
	t.Helper()
	m := &middle{t, l, l.Apps[0], configuration(t, l)}
	text := `LogLevel DEBUG1
ForceCommand sh -c 'echo "$SSH_ORIGINAL_COMMAND" >>` + commandsPath + `; env >>` + commandsPath + `.env; exec sh -c "$SSH_ORIGINAL_COMMAND"'
` + config
	for name, text := range map[string]string{
		"/etc/ssh/sshd_config.d/00-middle.conf":       text,
		"/etc/systemd/system/ssh.service.d/test.conf": "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -E " + sshdLogPath + "\n",
	} {
		if err := m.app.WriteFile(t.Context(), name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, m.app, "sh", "-ec", "rm -f "+commandsPath+" "+commandsPath+".env "+sshdLogPath+"; "+keys+"\nsystemctl daemon-reload; systemctl restart ssh")
	return m
}

// newKeys gives him new host keys of the same kinds.
const newKeys = "rm /etc/ssh/ssh_host_*; for kind in ed25519 ecdsa; do ssh-keygen -q -t $kind -N '' -f /etc/ssh/ssh_host_${kind}_key; done"

// refuses checks that drainctl, told to drain, refuses him with the words, and has sent him
// nothing.
func (m *middle) refuses(words ...string) {
	m.t.Helper()
	for _, command := range []string{"check", "drain", "undrain"} {
		drainctl(m.t, m.l, command, m.app.Addr, "-s", lab.AppUnit).wants(m.t, 4, words...)
	}
	m.sawNothing()
	sameFiles(m.t, m.before, configuration(m.t, m.l))
	wantState(m.t, m.app, "active")
	nothingInterrupted(m.t, m.l)
	m.wouldWork()
}

// sawNothing checks that nobody has logged in, and that he has got no command.
func (m *middle) sawNothing() {
	m.t.Helper()
	if text := m.read(commandsPath); text != "" {
		m.t.Errorf("the man in the middle got commands:\n%s", text)
	}
	if log := m.read(sshdLogPath); strings.Contains(log, "Accepted") || strings.Contains(log, "userauth-request") {
		m.t.Errorf("the man in the middle got a login:\n%s", log)
	}
}

func (m *middle) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(m.app.Root, name))
	return string(text)
}

// wouldWork checks that the man in the middle works: he sees what a client sends that does
// not check his key.
func (m *middle) wouldWork() {
	m.t.Helper()
	mustRun(m.t, m.l.LB, "ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "GlobalKnownHostsFile=/dev/null", "-o", "RevokedHostKeys=none", m.app.Addr, "echo seen")
	if text := m.read(commandsPath); !strings.Contains(text, "echo seen") {
		m.t.Errorf("the man in the middle would see nothing: %q", text)
	}
	if log := m.read(sshdLogPath); !strings.Contains(log, "userauth-request") {
		m.t.Errorf("the log of the man in the middle shows no login:\n%s", log)
	}
	mustRun(m.t, m.app, "sh", "-c", "rm "+commandsPath+"; : >"+sshdLogPath)
}

func TestChangedHostKeyIsRefused(t *testing.T) {
	m := newMiddle(t, labFor(t), newKeys, "")
	m.refuses("the host key of " + lab.App1Addr + " has changed")
}

func TestUnknownHostKeyIsRefused(t *testing.T) {
	m := newMiddle(t, labFor(t), "true", "")
	mustRun(t, m.l.LB, "ssh-keygen", "-q", "-R", m.app.Addr)
	m.refuses("the host key of "+lab.App1Addr+" is not known", "add to /root/.ssh/known_hosts: "+lab.App1Addr+" ssh-ed25519 ")
}

// No option of the configuration turns the check off.
func TestNothingTurnsTheHostKeyCheckOff(t *testing.T) {
	m := newMiddle(t, labFor(t), newKeys, "")
	writeOnLB(t, m.l, "/root/.ssh/config", "Host *\n    StrictHostKeyChecking no\n    CheckHostIP no\n    NoHostAuthenticationForLocalhost yes\n    UpdateHostKeys yes\n    VerifyHostKeyDNS yes\n", 0o600)
	m.refuses("has changed")
	writeOnLB(t, m.l, "/root/.ssh/config", "Host *\n    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n", 0o600)
	m.refuses("is not known")
}

// He may own another host of the same operator, with its key.
func TestKeyOfAnotherHostIsRefused(t *testing.T) {
	l := labFor(t)
	var files []string
	for _, kind := range []string{"ed25519", "ecdsa"} {
		key, err := l.Apps[1].ReadFile(t.Context(), "/etc/ssh/ssh_host_"+kind+"_key")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, string(key))
	}
	m := newMiddle(t, l, "rm /etc/ssh/ssh_host_*; umask 077; cat >/etc/ssh/ssh_host_ed25519_key <<'END'\n"+files[0]+"END\ncat >/etc/ssh/ssh_host_ecdsa_key <<'END'\n"+files[1]+"END\n", "")
	m.refuses("the host key of " + lab.App1Addr + " has changed")
}

// He may have the key of the backend itself, which is known to be stolen.
func TestRevokedHostKeyIsRefused(t *testing.T) {
	m := newMiddle(t, labFor(t), "rm /etc/ssh/ssh_host_ecdsa_key*; sed -i /ecdsa/d /etc/ssh/sshd_config", "")
	key, err := m.app.ReadFile(t.Context(), hostKeyPath+".pub")
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, m.l.LB, "sh", "-c", `printf '@revoked * %s' "$1" >>/root/.ssh/known_hosts`, "sh", string(key))
	m.refuses("the host key of " + lab.App1Addr + " is revoked")
	mustRun(t, m.l.LB, "sed", "-i", "/^@revoked/d", "/root/.ssh/known_hosts")
	drainctl(t, m.l, "check", m.app.Addr).wants(t, 0)
	writeOnLB(t, m.l, "/root/.ssh/revoked", string(key), 0o600)
	writeOnLB(t, m.l, "/root/.ssh/config", "Host *\n    RevokedHostKeys /root/.ssh/revoked\n", 0o600)
	drainctl(t, m.l, "drain", m.app.Addr).wants(t, 4, "is revoked")
}

// He may offer only a key of a type that is not known of the backend.
func TestHostKeyOfAnotherTypeIsRefused(t *testing.T) {
	m := newMiddle(t, labFor(t), "rm /etc/ssh/ssh_host_*; ssh-keygen -q -t rsa -N '' -f /etc/ssh/ssh_host_rsa_key; sed -i 's/^HostKey .*ed25519_key/HostKey \\/etc\\/ssh\\/ssh_host_rsa_key/; /ecdsa_key/d' /etc/ssh/sshd_config", "")
	m.refuses("the host key of " + lab.App1Addr + " has changed: it shows ssh-rsa")
}

// The operator's agent is for logging in, and not for the hosts.
func TestSSHAgentIsNeverForwarded(t *testing.T) {
	m := newMiddle(t, labFor(t), "true", "") // he has the host's own key: nothing stops the login
	writeOnLB(t, m.l, "/root/.ssh/config", "Host *\n    ForwardAgent yes\n    ForwardX11 yes\n", 0o600)
	withAgent := func(args ...string) ending {
		t.Helper()
		return on(t, m.l, append([]string{"ssh-agent", "sh", "-c", `ssh-add -q /root/.ssh/id_ed25519; exec "$@"`, "sh"}, args...)...)
	}
	withAgent("drainctl", "drain", m.app.Addr, "-s", lab.AppUnit).wants(t, 0, "is drained")
	withAgent("drainctl", "undrain", m.app.Addr, "-s", lab.AppUnit).wants(t, 0)
	if seen := m.read(commandsPath); !strings.Contains(seen, "systemctl stop my-web-app") {
		t.Fatalf("the commands went elsewhere:\n%s", seen)
	}
	m.requested(false, "auth-agent-req@openssh.com", "x11-req", "pty-req", "env")
	if env := m.read(commandsPath + ".env"); strings.Contains(env, "SSH_AUTH_SOCK") || !strings.Contains(env, "SSH_CONNECTION") {
		t.Errorf("the environment on the backend:\n%s", env)
	}
	withAgent("ssh", "-o", "BatchMode=yes", m.app.Addr, "true").wants(t, 0) // and it would be seen
	m.requested(true, "auth-agent-req@openssh.com")
}

// requested checks whether the sshd of the man in the middle was asked for something.
func (m *middle) requested(want bool, kinds ...string) {
	m.t.Helper()
	log := m.read(sshdLogPath)
	for _, kind := range kinds {
		if got := strings.Contains(log, "server_input_channel_req: channel 0 request "+kind+" "); got != want {
			m.t.Errorf("a request of %s was sent: %t, want %t", kind, got, want)
		}
	}
}

// A host that takes no key but asks for a password gets none.
func TestPasswordsAreNeverSent(t *testing.T) {
	m := newMiddle(t, labFor(t), "true", "PubkeyAuthentication no\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes\nPermitRootLogin yes\nPermitEmptyPasswords yes\n")
	drainctl(t, m.l, "drain", m.app.Addr, "-s", lab.AppUnit, "--ssh-user", lab.DeployUser).wants(t, 4, "login refused")
	log := m.read(sshdLogPath)
	if !strings.Contains(log, "method none") {
		t.Errorf("the log shows no login:\n%s", log)
	}
	for _, method := range []string{"password", "keyboard-interactive", "hostbased", "gssapi-with-mic"} {
		if strings.Contains(log, "service ssh-connection method "+method) {
			t.Errorf("drainctl tried to log in by %s:\n%s", method, log)
		}
	}
	if text := m.read(commandsPath); text != "" {
		t.Errorf("commands were sent:\n%s", text)
	}
	// A password that is there to be had, as sshpass and SSH_ASKPASS give it, changes nothing.
	on(t, m.l, "env", "SSH_ASKPASS=/bin/echo", "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:0", "ssh", m.app.Addr, "true")
	if !strings.Contains(m.read(sshdLogPath), "service ssh-connection method password") {
		t.Error("the log would not show a password")
	}
	sameFiles(t, m.before, configuration(t, m.l))
}
