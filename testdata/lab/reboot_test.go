package lab_test

import (
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A host that reboots comes up again by itself, as another boot of the same machine.
func TestReboot(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	if err := app.WriteFile(t.Context(), "/root/before", []byte("kept\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := bootID(t, app)
	mustRun(t, app, "touch", "/run/before")
	cut := startAt(t, l, app, "sleep", "300") // ends with the host
	if err := app.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if end := cut.wait(); end.code == 0 {
		t.Errorf("a command outlived the reboot: %+v", end)
	}
	if now := bootID(t, app); now == before {
		t.Errorf("after the reboot the boot ID is still %s", now)
	}
	mustRun(t, app, "sh", "-c", "test ! -e /run/before && test -e /root/before")
	mustRun(t, l.LB, "ssh", "-o", "BatchMode=yes", app.Addr, "systemctl is-active my-web-app")
	if kinds := bootsOf(t, app); kinds != 2 {
		t.Errorf("the app has been started %d times, want 2", kinds)
	}
	if err := l.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app, "test", "!", "-e", "/root/before")

	// The load balancer, and then both at once.
	for _, hosts := range [][]*lab.Machine{{l.LB}, {l.LB, app}} {
		var ids []string
		for _, m := range hosts {
			ids = append(ids, bootID(t, m))
			_, _ = m.Run(t.Context(), "systemctl", "reboot") // which ends with the host
		}
		for i, m := range hosts {
			if err := m.WaitReboot(t.Context(), ids[i]); err != nil {
				t.Fatal(err)
			}
		}
		mustRun(t, l.Client, "curl", "-sS", "--fail", "http://"+lab.LBAddr+"/")
	}
}

// A user who may reboot a host does so from the desk, over the jump host.
func TestRebootFromTheDesk(t *testing.T) {
	l := fleetFor(t)
	app := l.Apps[0]
	reboot := func() ending {
		return startAt(t, l, l.Desk, lab.As(lab.DeployUser, "ssh", "-o", "BatchMode=yes", app.Addr, "sudo -n systemctl reboot")...).wait()
	}
	before := bootID(t, app)
	reboot().wants(t, 1, "a password is required")
	rule := "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl reboot\n"
	if err := app.WriteFile(t.Context(), "/etc/sudoers.d/reboot", []byte(rule), 0o440); err != nil {
		t.Fatal(err)
	}
	if end := reboot(); end.code != 0 && end.code != 255 { // 255: its connection ended first
		t.Fatalf("exit code %d: %s%s", end.code, end.stdout, end.stderr)
	}
	if err := app.WaitReboot(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	startAt(t, l, l.Desk, lab.As(lab.DeployUser, "ssh", "-o", "BatchMode=yes", app.Addr, "systemctl is-active my-web-app")...).wait().wants(t, 0, "active")
}

func bootID(t *testing.T, m *lab.Machine) string {
	t.Helper()
	id, err := m.BootID()
	if err != nil || strings.Count(id, "-") != 4 {
		t.Fatalf("boot ID of %s: %q, %v", m.Name, id, err)
	}
	return id
}

// bootsOf is how often the app was started.
func bootsOf(t *testing.T, app *lab.Machine) (n int) {
	t.Helper()
	for _, e := range events(t, app) {
		if e.Kind == "BOOT" {
			n++
		}
	}
	return n
}
