package remote

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestLoginShells has users with every login shell: what a host is told means the
// same to all of them, also where its start prints something.
func TestLoginShells(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	needTool(t, shells...)
	s := startServer(t, serverOptions{config: "MaxSessions 1"})
	port := established(t, "tcp4", "127.0.0.1:0", 3, true).(*net.TCPAddr).Port
	for _, shell := range shells {
		t.Run(shell, func(t *testing.T) {
			name := shellUser + shell
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Fatal(err)
			}
			run(t, "useradd", "-m", "-p", "*", "-s", path, name)
			rules := name + " ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app\n"
			if err := os.WriteFile("/etc/sudoers.d/"+name, []byte(rules), 0o440); err != nil {
				t.Fatal(err)
			}
			home := "/home/" + name
			admin(t, `mkdir -p "$1/.config/fish"; echo 'echo Welcome' | tee "$1/.tcshrc" "$1/.zshenv" "$1/.bashrc" "$1/.config/fish/config.fish" >/dev/null`, home)
			noisy := s.connect(t, name)
			counter := NewCounter(noisy, ports(port, 1))
			defer counter.Close()
			for range 2 {
				if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 3 {
					t.Errorf("%+v, %v", got, err)
				}
				checkSees(t, counter)
				if err := (Service{Host: noisy, Unit: "my-web-app"}).SudoCheck(limit(t, time.Minute)); err != nil {
					t.Error(err)
				}
				checkRefusal(t, SudoCheck(limit(t, time.Minute), noisy, "systemctl", "stop", `a\x2db`), false, SudoDenied, "")
			}
			admin(t, `rm -r "$1/.tcshrc" "$1/.zshenv" "$1/.bashrc" "$1/.config"`, home)
			checkQuotes(t, noisy)
		})
	}
}

// TestNoisyLogin has a login script print: that is no part of any answer.
func TestNoisyLogin(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{config: "ForceCommand echo Welcome; echo Careful >&2; eval \"$SSH_ORIGINAL_COMMAND\""})
	h := s.connect(t, opUser)
	idle := established(t, "tcp4", "127.0.0.1:0", 0, false).(*net.TCPAddr).Port
	counter := NewCounter(h, ports(1, idle))
	defer counter.Close()
	for range 3 {
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 0 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if got, err := counter.Sees(limit(t, time.Minute), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:9")}); err != nil || len(got) > 0 {
		t.Errorf("sees %v, %v", got, err)
	}
	if err := SudoCheck(limit(t, time.Minute), h, "systemctl", "stop", "x"); err != nil {
		t.Error(err)
	}
}
