package lab_test

import (
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// forwardPort has the first app host forward its port to the app, which listens on another
// one, while a process listens on the port too, as docker-proxy does for a published port:
// the host's sockets are at another port than nginx connects to.
func forwardPort(t *testing.T, l *lab.Lab) {
	t.Helper()
	app := l.Apps[0]
	options(t, app, "-addr=:8181")
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	mustRun(t, app, "systemd-run", "--unit=proxy", "--collect", "/usr/local/bin/my-web-app")
	mustRun(t, app, "nft", "table ip f { chain p { type nat hook prerouting priority -100; tcp dport 8080 redirect to :8181; }; }")
	eventually(t, "the proxy listens", func() bool {
		_, err := app.Run(t.Context(), "curl", "-sS", "--fail", "http://127.0.0.1:8080/")
		return err == nil
	})
}

func unforwardPort(t *testing.T, l *lab.Lab) {
	t.Helper()
	mustRun(t, l.Apps[0], "sh", "-ec", "nft delete table ip f; systemctl stop proxy")
}

// A port that is forwarded cannot be counted by ss on the host: the counter is proved first,
// and refused. The load balancer's own count needs no proof.
func TestForwardedPort(t *testing.T) {
	l := labFor(t)
	forwardPort(t, l)
	defer unforwardPort(t, l)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)
	s := openStream(t, l, app)
	unseen := []string{"the load balancer connected from 192.168.1.2:", "to 192.168.1.10:8080, and root@192.168.1.10 does not see it", "--poll lb"}
	refused(t, l, []string{"drain", app.Addr, "-s", lab.AppUnit}, unseen...)
	refused(t, l, []string{"drain", app.Addr}, unseen...)
	drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit).wants(t, 4, unseen...)

	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--poll", "lb")
	c.until("\n2/3 ")
	time.Sleep(time.Second)
	s.echoes(t)
	s.end()
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// SSH leads to another host than nginx: its app is live, and is not stopped.
func TestSSHLeadsElsewhere(t *testing.T) {
	l := labFor(t)
	app, other := l.Apps[0], l.Apps[1]
	load := startLoad(t, l, other)
	line := []string{"drain", app.Addr, "-s", lab.AppUnit}
	unseen := []string{"the load balancer connected from 192.168.1.2:", "to 192.168.1.10:8080, and ", " does not see it"}
	refused(t, l, append(line, "--ssh-host", other.Addr), unseen...)
	writeOnLB(t, l, "/root/.ssh/config", "Host 192.168.1.10\n    HostName 192.168.1.11\n", 0o600)
	refused(t, l, line, unseen...)
	drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit).wants(t, 4, unseen...)
	// The load balancer's own count says nothing of the host whose app would be stopped.
	refused(t, l, append(line, "--poll", "lb"), "nginx sends to 192.168.1.10, which is no address of root@192.168.1.10")
	noneFailed(t, load)
}

// An app that is down already has nothing to lose.
func TestAppThatIsDown(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	mustRun(t, app, "systemctl", "stop", lab.AppUnit)
	says(t, drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit).wants(t, 0), "ok", app.Addr, "counter", "the app takes no connections")
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "is drained")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "is back", "my-web-app is active")
	sameFiles(t, before, configuration(t, l))
}
