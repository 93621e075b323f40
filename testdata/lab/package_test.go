package lab_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/testdata/lab"
)

// packages is the directory with the two packages that packages.sh makes.
func packages(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(lab.ProgramsVariable); dir != "" {
		return dir
	}
	if out, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "packages").CombinedOutput(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	return "../../build/lab"
}

// installPackage installs a version of the package on hosts, as an operator does.
func installPackage(t *testing.T, version string, hosts ...*lab.Machine) {
	t.Helper()
	deb, err := os.ReadFile(filepath.Join(packages(t), "drainctl_"+version+".deb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range hosts {
		if err := m.WriteFile(t.Context(), "/root/drainctl.deb", deb, 0o644); err != nil {
			t.Fatal(err)
		}
		mustRun(t, m, "dpkg", "--install", "/root/drainctl.deb")
		if out := mustRun(t, m, "drainctl", "--version"); out != "drainctl version "+version+"\n" {
			t.Fatalf("%s has %s", m.Name, out)
		}
	}
}

// withoutDrainctl takes the lab's own drainctl off hosts. After the test the load balancer
// has it again.
func withoutDrainctl(t *testing.T, l *lab.Lab, hosts ...*lab.Machine) {
	t.Helper()
	for _, m := range hosts {
		mustRun(t, m, "rm", "-f", "/usr/bin/drainctl")
	}
	t.Cleanup(func() {
		for _, m := range hosts {
			if _, err := m.Run(context.Background(), "dpkg", "--purge", "drainctl"); err != nil {
				t.Error(err)
			}
		}
		if err := l.Install(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// The package is installed, used, upgraded under a drain that waits, and removed. The drain
// goes on with the agent that it has; the next command of the older drainctl is refused.
func TestPackage(t *testing.T) {
	l := labFor(t)
	app, desk, before := l.Apps[0], l.Apps[2], configuration(t, l)
	elsewhere(t, l, desk)
	withoutDrainctl(t, l, l.LB, desk)
	named := func() string {
		return mustRun(t, l.LB, "find", "/etc", "/usr", "/var/lib", "/var/cache", "-name", "*drainctl*")
	}
	clean := named()

	installPackage(t, "1.0.0", l.LB, desk)
	mustRun(t, l.LB, "sh", "-c", `set -e
		cd /usr/share
		test -s bash-completion/completions/drainctl
		test -s fish/vendor_completions.d/drainctl.fish
		test -s zsh/vendor-completions/_drainctl
		gzip -t man/man1/drainctl.1.gz
		test -s doc/drainctl/README.md
		visudo -cf doc/drainctl/examples/sudoers`)
	if out := mustRun(t, l.LB, "dpkg", "--verify", "drainctl"); out != "" {
		t.Errorf("what is installed is not what was packed:\n%s", out)
	}
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "is drained")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")

	s := openStream(t, l, app)
	waiting := startAt(t, l, desk, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, lbFlag)
	waiting.until(" open, from 192.168.1.2 ")
	installPackage(t, "1.1.0", l.LB)
	s.echoes(t)
	s.end()
	waiting.wait().wants(t, 0, "is drained")
	undrain := func() ending { return startAt(t, l, desk, "drainctl", "undrain", app.Addr, lbFlag).wait() }
	undrain().wants(t, 4, fmt.Sprintf("the drainctl on root@192.168.1.2 is 1.1.0 (agent protocol 1000), and this one is 1.0.0 (protocol %d)", balancer.Protocol), "update drainctl here", "nothing was touched")
	installPackage(t, "1.1.0", desk)
	undrain().wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")

	mustRun(t, l.LB, "dpkg", "--remove", "drainctl")
	mustRun(t, l.LB, "sh", "-c", "test ! -e /usr/bin/drainctl && test ! -e /usr/share/doc/drainctl && test -s /var/lib/drainctl/state.json")
	mustRun(t, l.LB, "dpkg", "--purge", "drainctl")
	if left := named(); left != clean {
		t.Errorf("after the purge there is\n%sand before the installation there was\n%s", left, clean)
	}
}
