package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// The agent's JSON names the ends of a connection as the LB sees them.
func TestConnectionsInJSON(t *testing.T) {
	c := remote.Count{Open: 1, Held: []remote.Held{{Far: netip.MustParseAddrPort("192.168.1.2:45786"), Sent: 1, Received: 2}}, Peers: []remote.Peer{{}}, MorePeers: 1}
	const want = `{"open":1,"held":[{"near":"192.168.1.2:45786","received_ns":1,"sent_ns":2}]}`
	if got, err := json.Marshal(c); err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// countOne counts the connections to one address.
func countOne(t *testing.T, a nginx.Address, held bool) (remote.Count, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addresses := []nginx.Address{a}
	to, err := endpoints(ctx, addresses)
	if err != nil {
		t.Fatal(err)
	}
	c, each, err := countTo(addresses, to, held, nil)
	if err == nil && each[0] != c.Open {
		t.Errorf("%d of %d connections", each[0], c.Open)
	}
	return c, err
}

// The connections are listed with this machine's ends, as their server sees them: what this machine
// sends, the server receives. They are counted all the same.
func TestCountToListsConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var want []netip.AddrPort
	var conns []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns, want = append(conns, conn), append(want, netip.MustParseAddrPort(conn.LocalAddr().String()))
	}
	time.Sleep(100 * time.Millisecond)
	for _, conn := range conns {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	address, err := nginx.ParseAddress(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := countOne(t, address, true)
	if err != nil || c.Open != len(want) || len(c.Held) != len(want) {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, h := range c.Held {
		if !slices.Contains(want, h.Far) || h.Received < 0 || h.Sent <= h.Received || h.Sent > patience {
			t.Errorf("%+v is none of %v", h, want)
		}
	}
	if c, err := countOne(t, address, false); err != nil || c.Open != len(want) || c.Held != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// A request may wait in the listen queue until the app accepts its connection. The kernel
// gives such a connection the inode 0 (proc(5), /proc/net/unix).
func TestConnectionsToAUnixSocket(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"app.sock", "app 0 1.sock", "other.sock"} {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		count := func(when string, want int) {
			t.Helper()
			for _, to := range []string{path, filepath.Join(dir, ".", "link", name)} {
				c, err := countOne(t, nginx.Address{Unix: to}, false)
				if err != nil || c.Open != want {
					t.Errorf("%s, %s: %d connections, not %d (%v)", to, when, c.Open, want, err)
				}
			}
		}
		_ = os.Symlink(dir, filepath.Join(dir, "link"))
		count("nobody has connected", 0)
		var clients []net.Conn
		for range 3 {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			clients = append(clients, conn)
		}
		count("none is accepted", 3)
		var accepted []net.Conn
		for range clients {
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			accepted = append(accepted, conn)
			count("some are accepted", 3)
		}
		for i := range clients {
			clients[i].Close()
			accepted[i].Close()
		}
		count("all are closed", 0)
	}
}

// A connection counts while a process has its socket, whatever its state: nginx waits for the
// app to take the connection (SYN-SENT), or one side has ended what it sends and the other goes
// on (FIN-WAIT-2, CLOSE-WAIT).
func TestConnectionsInEveryState(t *testing.T) {
	app, address := slowApp(t)
	count := func(when string, want int) {
		t.Helper()
		c, err := countOne(t, address, true)
		if err != nil || c.Open != want || len(c.Held) > want || len(c.Held) < want-1 {
			t.Errorf("%s: %d connections, %d listed, not %d (%v)", when, c.Open, len(c.Held), want, err)
		}
	}
	connect := func() int {
		t.Helper()
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Connect(fd, &syscall.SockaddrInet4{Addr: address.IP.As4(), Port: int(address.Port)}); err != nil && !errors.Is(err, syscall.EINPROGRESS) {
			t.Fatal(err)
		}
		return fd
	}
	waiting, refused := connect(), connect() // the listen queue has room for one
	count("one is established, one in SYN-SENT", 2)
	syscall.Close(refused)
	count("the second is given up", 1)
	far, _, err := syscall.Accept(app)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Shutdown(waiting, syscall.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	count("FIN-WAIT-2, with a process", 1)
	syscall.Close(waiting)
	count("FIN-WAIT-2, without", 0)
	syscall.Close(far)
	count("TIME-WAIT", 0)
	near := connect()
	if far, _, err = syscall.Accept(app); err != nil {
		t.Fatal(err)
	}
	syscall.Close(far)
	count("CLOSE-WAIT", 1)
	syscall.Close(near)
	count("closed", 0)
	udp, err := net.Dial("udp", netip.AddrPortFrom(address.IP, address.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	count("a session of UDP", 1)
}

// slowApp listens, with room for one connection that is not accepted.
func slowApp(t *testing.T) (fd int, address nginx.Address) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	address.IP = netip.MustParseAddr("127.0.0.1")
	err = errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: address.IP.As4()}), syscall.Listen(fd, 0))
	name, nameErr := syscall.Getsockname(fd)
	if err = errors.Join(err, nameErr); err != nil {
		t.Fatal(err)
	}
	address.Port = uint16(name.(*syscall.SockaddrInet4).Port)
	return fd, address
}

// A name that cannot be looked up leaves the count unknown, whatever the other servers have.
func TestConnectionsToANameWithoutAnAddress(t *testing.T) {
	r := newRig(t)
	const nameless = "app.invalid:8080" // RFC 6761, section 6.4
	r.write(r.pool, "upstream pool { server "+nameless+"; server "+"app.invalid:8081; server 127.0.0.2:8080; }\n")
	server := func(address string) journal.Server {
		return journal.Server{Module: "http", Upstream: "pool", Address: address}
	}
	for _, test := range []struct {
		servers []journal.Server
		ok      bool
	}{
		{[]journal.Server{server("127.0.0.2:8080")}, true},
		{[]journal.Server{server(nameless)}, false},
		{[]journal.Server{server(nameless), server("app.invalid:8081")}, false},
		{[]journal.Server{server("127.0.0.2:8080"), server(nameless)}, false},
	} {
		for _, held := range []bool{false, true} {
			c, err := r.agent().Connections(t.Context(), ConnectionsQuery{Servers: test.servers, Held: held})
			if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), "app.invalid") {
				t.Errorf("%v: %d connections, %v", test.servers, c.Open, err)
			}
		}
	}
	// A report counts the servers that it can.
	report, err := r.agent().Plan(t.Context(), Query{Connections: true})
	if err != nil || report.Uncounted != "" || len(report.Servers) != 3 {
		t.Fatalf("%+v, %v", report, err)
	}
	for _, s := range report.Servers {
		if want := s.Address == "127.0.0.2:8080"; (s.Open == 0) != want || (s.Open == -1) == want {
			t.Errorf("%s has %d connections", s.Address, s.Open)
		}
	}
}

// What getent prints is what is counted to: nothing is no address, and the kernel has the
// zone of an address apart.
func TestEndpointsOfAName(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, test := range []struct {
		printed string
		want    []netip.AddrPort
	}{
		{"", nil},
		{"nonsense\n", nil},
		{"10.0.0.1 STREAM app\n10.0.0.1 DGRAM\n::ffff:10.0.0.2 STREAM\n", []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}},
		{"fe80::1%eth0 STREAM app\n", []netip.AddrPort{netip.MustParseAddrPort("[fe80::1]:80")}},
	} {
		if err := os.WriteFile(bin+"/getent", []byte("#!/bin/sh\nprintf '"+strings.ReplaceAll(test.printed, "%", "%%")+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		to, err := endpoints(t.Context(), []nginx.Address{{Host: "app", Port: 80}})
		if (err == nil) != (test.want != nil) || !slices.Equal(to[0], test.want) {
			t.Errorf("%q: %v, %v", test.printed, to, err)
		}
	}
}

// Programs bind a socket by a name that is not its path on the LB: a relative one, or one in a
// container.
func TestConnectionsToAUnixSocketOfAnotherName(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a", "b", "elsewhere"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(dir, "a"))
	l, err := net.Listen("unix", "app.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		conn, err := net.Dial("unix", "app.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	other, err := net.Listen("unix", filepath.Join(dir, "b", "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	second, err := net.Dial("unix", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	t.Chdir(filepath.Join(dir, "elsewhere"))
	for path, want := range map[string]int{
		"a/app.sock":   2,
		"b/app.sock":   1 + 1, // of the one that waits, the kernel does not tell the file
		"b/other.sock": 0,
	} {
		c, err := countOne(t, nginx.Address{Unix: filepath.Join(dir, path)}, false)
		if err != nil || c.Open != want {
			t.Errorf("%s: %d connections, not %d (%v)", path, c.Open, want, err)
		}
	}
}

// An nginx in a container has its sockets in a network namespace of its own, where
// none of them can be seen from here.
func TestConnectionsOfAnotherNetwork(t *testing.T) {
	r := newRig(t, "unshare", "-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh")
	servers := []journal.Server{{Module: "http", Upstream: "pool", Address: "127.0.0.2:8080"}}
	c := r.agent()
	for range 2 {
		if n, err := c.Connections(t.Context(), ConnectionsQuery{Servers: servers}); err == nil || !strings.Contains(err.Error(), "network namespace") {
			t.Errorf("%d connections, %v", n.Open, err)
		}
	}
	report, err := c.Plan(t.Context(), Query{Connections: true})
	if err != nil || !strings.Contains(report.Uncounted, "network namespace") {
		t.Errorf("a report: %+v, %v", report, err)
	}
}

// A name may have another address while drainctl waits. The connections are to the earlier one.
func TestConnectionsToANameWhoseAddressChanges(t *testing.T) {
	r := newRig(t)
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	conn, err := net.Dial("tcp", app.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	address := fmt.Sprintf("app:%d", app.Addr().(*net.TCPAddr).Port)
	r.write(r.pool, "upstream pool { server "+address+"; }\n")
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	lb := NewLocal(r.options())
	defer lb.Close()
	for _, ip := range []string{"127.0.0.1", "127.0.0.9"} {
		if err := os.WriteFile(bin+"/getent", []byte("#!/bin/sh\necho "+ip+" STREAM app\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		c, err := lb.Connections(t.Context(), ConnectionsQuery{Servers: []journal.Server{{Module: "http", Upstream: "pool", Address: address}}})
		if err != nil || c.Open != 1 {
			t.Errorf("at %s: %d connections, %v", ip, c.Open, err)
		}
	}
}

// A waiting call returns when a connection ends, or after its limit. It returns at once if a connection
// ended before the call.
func TestConnectionsAreAwaited(t *testing.T) {
	r := newRig(t)
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	r.write(r.pool, "upstream pool { server "+app.Addr().String()+"; }\n")
	var open []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", app.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
		open = append(open, conn)
	}
	lb := r.agent()
	wait := func(known int, limit time.Duration) (int, time.Duration) {
		t.Helper()
		began := time.Now()
		q := ConnectionsQuery{Servers: []journal.Server{{Module: "http", Upstream: "pool", Address: app.Addr().String()}}, Wait: limit, Known: known}
		c, err := lb.Connections(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return c.Open, time.Since(began)
	}
	if n, took := wait(2, 50*time.Millisecond); n != 2 || took < 50*time.Millisecond {
		t.Errorf("nothing ended: %d after %s", n, took)
	}
	if n, took := wait(3, time.Hour); n != 2 || took > patience {
		t.Errorf("one has ended before: %d after %s", n, took)
	}
	time.AfterFunc(50*time.Millisecond, func() { open[0].Close() })
	if n, took := wait(2, time.Hour); n != 1 || took > maxAwait/2 {
		t.Errorf("one ends: %d after %s", n, took)
	}
	// A call beyond those that may wait returns at once.
	local := NewLocal(r.options())
	defer local.Close()
	local.awaited.Store(maxAwaited)
	c, err := local.Connections(t.Context(), ConnectionsQuery{Servers: []journal.Server{{Module: "http", Upstream: "pool", Address: app.Addr().String()}}, Wait: time.Hour, Known: 1})
	if err != nil || c.Open != 1 || local.awaited.Load() != maxAwaited {
		t.Errorf("%+v, %v; %d calls wait", c, err, local.awaited.Load())
	}
}

// Probes are open until they are closed, by their caller or in the end by the LB, and their number is
// bounded. Nothing of a probe keeps other calls waiting.
func TestProbe(t *testing.T) {
	r := newRig(t)
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	r.write(r.pool, "upstream pool { server "+app.Addr().String()+"; server 127.0.0.1:1; }\n")
	server := func(address string) journal.Server {
		return journal.Server{Module: "http", Upstream: "pool", Address: address}
	}
	lb := NewLocal(r.options())
	defer lb.Close()
	to := []journal.Server{server(app.Addr().String())}
	open := func() int {
		t.Helper()
		c, err := lb.Connections(t.Context(), ConnectionsQuery{Servers: to})
		if err != nil {
			t.Fatal(err)
		}
		return c.Open
	}
	probes, err := lb.Probe(t.Context(), ProbeRequest{Servers: append(to, server("127.0.0.1:1"))})
	if err != nil || len(probes) != 2 || !probes[0].Refused || probes[0].Error == "" || probes[1].Error != "" || open() != 1 {
		t.Fatalf("%+v, %v, %d open", probes, err, open())
	}
	if _, err := lb.Probe(t.Context(), ProbeRequest{Servers: []journal.Server{server("192.0.2.1:80")}}); CodeOf(err) != CodeRefused {
		t.Errorf("a server that the configuration has not: %v", err)
	}
	if _, err := lb.Probe(t.Context(), ProbeRequest{Close: []Ends{probes[1].Ends}}); err != nil || open() != 0 {
		t.Errorf("%v, %d open after they were closed", err, open())
	}
	lb.reserve(maxProbes)
	if _, err := lb.Probe(t.Context(), ProbeRequest{Servers: to}); CodeOf(err) != CodeBusy {
		t.Errorf("beyond the bound: %v", err)
	}
	lb.reserve(-maxProbes)
	if probes, err = lb.Probe(t.Context(), ProbeRequest{Servers: to}); err != nil || len(probes) != 1 || open() != 1 {
		t.Fatalf("%+v, %v", probes, err)
	}
	if lb.Close(); len(lb.probes) != 0 {
		t.Errorf("%d probes are open after Close", len(lb.probes))
	}
}
