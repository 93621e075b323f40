package lab_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// udpConf passes UDP to the apps, and no TCP. A session at idlePort stays after its answer.
const (
	idlePort = 84
	udpConf  = `user www-data;
worker_processes 2;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;
events {}
stream {
    upstream dns {
        server 192.168.1.10:8082 weight=100;
        server 192.168.1.11:8082;
    }
    server {
        listen 82 udp;
        proxy_pass dns;
        proxy_responses 1;
    }
    server {
        listen 84 udp;
        proxy_pass dns;
        proxy_timeout 15s;
    }
}
`
)

// passUDP has the load balancer pass UDP alone to the first app, whose host refuses TCP at
// that port, and returns the configuration.
func passUDP(t *testing.T, l *lab.Lab) map[string]file {
	t.Helper()
	app := l.Apps[0]
	options(t, app, "-raw=:8082")
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	mustRun(t, app, "nft", "table ip f { chain i { type filter hook input priority 0; tcp dport 8082 reject with tcp reset; }; }")
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: udpConf}); err != nil {
		t.Fatal(err)
	}
	return configuration(t, l)
}

func takeTCP(t *testing.T, l *lab.Lab) {
	t.Helper()
	mustRun(t, l.Apps[0], "nft", "delete", "table", "ip", "f")
}

// answered sends a datagram through the load balancer, and reports whether an answer comes.
func answered(l *lab.Lab, port int) bool {
	conn, err := l.Client.Dial("udp", fmt.Sprintf("%s:%d", lab.LBAddr, port), streamLimit)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintln(conn, 0)
	return err == nil && hasAnswer(conn)
}

func hasAnswer(conn net.Conn) bool {
	b := make([]byte, 100)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := conn.Read(b)
	return err == nil && strings.HasSuffix(string(b[:n]), "END app1\n")
}

// A server that takes UDP alone. The operator allows the reload, which ends the sessions; the app
// is not stopped while it works on an answer; and no TCP connection is wanted of it.
func TestDrainOfUDP(t *testing.T) {
	l := labFor(t)
	before := passUDP(t, l)
	defer takeTCP(t, l)
	app := l.Apps[0]
	target := app.Addr + ":8082"
	eventually(t, "the app answers over UDP", func() bool { return answered(l, rawPort) })
	refused(t, l, []string{"drain", target, "-s", lab.AppUnit}, "nginx passes UDP to dns: the reload ends all UDP sessions", "use --allow-udp to override")
	says(t, drainctl(t, l, "check", target, "-s", lab.AppUnit), "ok", app.Addr, "counter", "the sockets of the load balancer")

	conn := askRaw(t, l, "udp")
	c := start(t, l, "drainctl", "drain", target, "-s", lab.AppUnit, "--allow-udp")
	c.waits()
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	if hasAnswer(conn) {
		t.Error("the client has got the answer, which the documentation says does not happen")
	}
	drainctl(t, l, "undrain", target).wants(t, 0, "the backend has its UDP port open", "my-web-app is active", "is back")
	sameFiles(t, before, configuration(t, l))
	if !answered(l, rawPort) {
		t.Error("no answer over UDP after the undrain")
	}
}

// A session without an answer to come holds a drain until proxy_timeout.
func TestDrainOfIdleUDP(t *testing.T) {
	l := labFor(t)
	passUDP(t, l)
	defer takeTCP(t, l)
	app := l.Apps[0]
	eventually(t, "the app answers over UDP", func() bool { return answered(l, idlePort) })
	began := time.Now()
	c := start(t, l, "drainctl", "drain", app.Addr+":8082", "-s", lab.AppUnit, "--allow-udp")
	c.waits()
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	if waited := time.Since(began); waited < 10*time.Second || waited > 30*time.Second {
		t.Errorf("drained after %s", waited)
	}
	drainctl(t, l, "undrain", app.Addr+":8082").wants(t, 0, "is back")
}
