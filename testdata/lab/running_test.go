package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// What still runs when no connection to the app is established any more, or is not seen as
// nginx's: a drain waits for it.

const (
	rawPort = 82
	// rawStreams passes TCP and UDP to the app without HTTP.
	rawStreams = `
stream {
    upstream raw {
        server 192.168.1.10:8082 weight=100;
        server 192.168.1.11:8082;
    }
    server {
        listen 82;
        proxy_pass raw;
        proxy_half_close on;
    }
    server {
        listen 82 udp;
        proxy_pass raw;
        proxy_responses 1;
    }
}
`
)

// passRaw has the load balancer pass TCP and UDP to the first app, and returns the
// configuration.
func passRaw(t *testing.T, l *lab.Lab) map[string]file {
	t.Helper()
	options(t, l.Apps[0], "-raw=:8082")
	mustRun(t, l.Apps[0], "systemctl", "restart", lab.AppUnit)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: lab.NginxConf + rawStreams}); err != nil {
		t.Fatal(err)
	}
	return configuration(t, l)
}

// rawSeconds is for how long the app works on a raw request: longer than it takes until the
// drain waits.
const rawSeconds = 20

// askRaw sends a raw request, and returns once the app works on it.
func askRaw(t *testing.T, l *lab.Lab, network string) (conn net.Conn) {
	t.Helper()
	conn, err := l.Client.Dial(network, fmt.Sprintf("%s:%d", lab.LBAddr, rawPort), streamLimit)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
		err = conn.SetDeadline(time.Now().Add(streamLimit + rawSeconds*time.Second))
	}
	if err == nil {
		_, err = fmt.Fprintln(conn, rawSeconds)
	}
	if c, ok := conn.(*net.TCPConn); ok && err == nil {
		err = c.CloseWrite()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the app works on the request", func() bool {
		all := events(t, l.Apps[0])
		return strings.HasPrefix(all[len(all)-1].What, fmt.Sprintf("RAW %d ", rawSeconds))
	})
	return conn
}

// whole checks that an answer has come to its end.
func whole(t *testing.T, answer []byte, err error) {
	t.Helper()
	if err != nil || !strings.HasSuffix(string(answer), "END app1\n") {
		t.Errorf("the answer was cut after %d bytes: %v", len(answer), err)
	}
}

// waits checks that a drain waits, and goes on to wait.
func (c *typed) waits() {
	c.t.Helper()
	c.until("\n2/3 ")
	time.Sleep(3 * time.Second)
	if said := c.stdout.String(); strings.Contains(said, "\n3/3 ") {
		c.t.Errorf("it did not wait:\n%s", said)
	}
}

// The client has shut its side, and the app still answers: CLOSE-WAIT on the backend,
// FIN-WAIT-2 on the load balancer.
func TestDrainWaitsForHalfClosedStream(t *testing.T) {
	l := labFor(t)
	before := passRaw(t, l)
	app := l.Apps[0]
	conn := askRaw(t, l, "tcp")
	if state := mustRun(t, app, "ss", "-Htan", "sport = :8082 and dst 192.168.1.2"); !strings.HasPrefix(state, "CLOSE-WAIT") {
		t.Fatalf("the app's side is not half closed: %q", state)
	}
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--allow-udp")
	c.waits()
	answer, err := io.ReadAll(conn)
	whole(t, answer, err)
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
}

// The app is done with an answer that its kernel has not sent yet. A stop of the app would
// not cut it, and a reboot of the host would.
func TestDrainWaitsForAnswerInTheKernel(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	const site = "upstream large { server 192.168.1.10:8080 weight=100; server 192.168.1.11:8080; }\n" +
		"server { listen 83; location / { proxy_pass http://large; proxy_http_version 1.1; } }\n"
	if err := l.LB.WriteConf(t.Context(), map[string]string{"/etc/nginx/conf.d/large.conf": site}); err != nil {
		t.Fatal(err)
	}
	// No answer gets through, as on a network that is slow.
	mustRun(t, app, "nft", "table ip slow { chain o { type filter hook output priority 0; tcp sport 8080 meta length > 500 drop; }; }")
	mend := func() { mustRun(t, app, "nft", "flush", "ruleset") }
	defer mend()
	unsent := func() bool {
		return strings.Contains(mustRun(t, app, "ss", "-Htan", "state", "fin-wait-1", "sport = :8080"), ":8080")
	}
	conn, err := l.Client.Dial("tcp", lab.LBAddr+":83", streamLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET /large?n=300000 HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the app has closed, and its kernel has not sent all", unsent)
	emptySince(t, app)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
	c.waits()
	if !unsent() {
		t.Error("the kernel has sent all in the wait, so it proves nothing")
	}
	mend()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(response.Body)
	whole(t, answer, err)
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
}

// nginx's UDP sockets to a server are connected, so the load balancer counts them, and the app
// is not stopped while it works on an answer. The client gets none: at a reload the old workers
// close the socket that they would send it from.
func TestDrainWaitsForDatagrams(t *testing.T) {
	l := labFor(t)
	before := passRaw(t, l)
	app := l.Apps[0]
	askRaw(t, l, "udp")
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--allow-udp")
	c.waits()
	c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
}

// secondConf is of another nginx on the load balancer, which drainctl is not told of.
const (
	secondPath = "/root/second.conf"
	secondConf = `user www-data;
pid /run/second.pid;
error_log /var/log/nginx/second.log;
events {}
http {
    access_log off;
    map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
    upstream app {
        server 192.168.1.10:8080;
        keepalive 4;
        keepalive_timeout 25s;
    }
    server {
        listen 8090;
        location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }
    }
}
`
)

// A second nginx on the load balancer, with a configuration and a pid file of its own, sends
// to the backend too. What it has open holds a drain.
func TestDrainWaitsForAnotherNginx(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	writeOnLB(t, l, secondPath, secondConf, 0o644)
	mustRun(t, l.LB, "nginx", "-c", secondPath)
	defer mustRun(t, l.LB, "nginx", "-c", secondPath, "-s", "stop")
	for _, poll := range []string{"ss", "lb"} {
		t.Run(poll, func(t *testing.T) {
			s, _, err := upgrade(l.Client, lab.LBAddr+":8090")
			if err != nil {
				t.Fatal(err)
			}
			defer s.end()
			c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--poll", poll)
			c.waits()
			s.echoes(t)
			s.end()
			c.wait().wants(t, 0, "is drained", "my-web-app is inactive", "nginx with "+secondPath)
			stoppedIdle(t, app)
			drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
		})
	}
	t.Run("idle", func(t *testing.T) {
		mustRun(t, l.Client, "curl", "-sS", "--fail", "http://"+lab.LBAddr+":8090/")
		c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
		c.waits()
		c.wait().wants(t, 0, "is drained", "my-web-app is inactive")
	})
}

// requestsFrom has the client send short requests to a port of the load balancer, one after the other, in
// two rows, until the test ends it.
func requestsFrom(t *testing.T, l *lab.Lab, port string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	var rows sync.WaitGroup
	for range 2 {
		cmd := l.Client.Command(ctx, "curl", "-s", "-o", "/dev/null", "http://"+lab.LBAddr+":"+port+"/hold?s=0.02&n=[1-10000]")
		if err := cmd.Start(); err != nil {
			cancel()
			t.Fatal(err)
		}
		rows.Go(func() { _ = cmd.Wait() })
	}
	return func() {
		cancel()
		rows.Wait()
	}
}

// Another nginx sends short requests, of which often none is open when somebody looks. While they come,
// the app is not stopped.
func TestShortRequestsOfAnotherNginx(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	writeOnLB(t, l, secondPath, strings.Replace(secondConf, "keepalive 4;", "", 1), 0o644)
	mustRun(t, l.LB, "nginx", "-c", secondPath)
	defer mustRun(t, l.LB, "nginx", "-c", secondPath, "-s", "stop")
	end := requestsFrom(t, l, "8090")
	for _, poll := range []string{"ss", "lb"} {
		drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--poll", poll, "--timeout", "8s").
			wants(t, 3, "nginx with "+secondPath, "not drained after 8s", "everything is as it was before")
		wantState(t, app, "active")
		sameFiles(t, before, configuration(t, l))
	}
	end()
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "is drained", "my-web-app is inactive")
}

// The configuration sends requests to the server in a way that no reader of it can see. The first of
// them after the reload shows it.
func TestRequestsOnAnotherWay(t *testing.T) {
	l := labFor(t)
	const site = `map $arg_none $tail { default "8.1.10:8080"; }
server { listen 83; location / { proxy_pass http://192.16$tail; } }
`
	if err := l.LB.WriteConf(t.Context(), map[string]string{"/etc/nginx/conf.d/hidden.conf": site}); err != nil {
		t.Fatal(err)
	}
	app, before := l.Apps[0], configuration(t, l)
	end := requestsFrom(t, l, "83")
	defer end()
	for _, poll := range []string{"ss", "lb"} {
		drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--poll", poll, "--timeout", "20s").
			wants(t, 1, "opened a connection", "not by the upstream", "everything is as it was before")
		wantState(t, app, "active")
		sameFiles(t, before, configuration(t, l))
	}
}

// The name of a server had another address when nginx looked it up. What nginx sent there is still under
// way: it holds the drain.
func TestDrainWaitsForEarlierAddressOfAName(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	hosts, err := l.LB.ReadFile(t.Context(), "/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	writeOnLB(t, l, "/etc/hosts", string(hosts)+app.Addr+" shop.example.com\n", 0o644)
	conf := strings.Replace(lab.NginxConf, "server 192.168.1.10:8080;", "server shop.example.com:8080;", 1)
	conf = strings.Replace(conf, "server 192.168.1.11:8080;", "", 1)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: conf}); err != nil {
		t.Fatal(err)
	}
	s := openStream(t, l, app)
	writeOnLB(t, l, "/etc/hosts", string(hosts)+l.Apps[1].Addr+" shop.example.com\n", 0o644)
	c := start(t, l, "drainctl", "drain", "shop.example.com", "--poll", "lb")
	c.until("\n2/2 ")
	time.Sleep(3 * time.Second)
	if said := c.stdout.String(); strings.Contains(said, "is drained") {
		t.Errorf("it did not wait:\n%s", said)
	}
	s.echoes(t)
	s.end()
	c.wait().wants(t, 0, "is drained")
}
