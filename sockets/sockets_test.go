package sockets

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// listen accepts connections on an address, and returns where it listens.
func listen(t testing.TB, network, address string) (at netip.AddrPort, accepted <-chan net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("%s: %v", network, err)
	}
	t.Cleanup(func() { l.Close() })
	conns := make(chan net.Conn, 1000)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			conns <- c
		}
	}()
	a, _ := netip.ParseAddrPort(l.Addr().String())
	return a, conns
}

func dial(t testing.TB, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// count is the connections to the endpoints, each as PROTOCOL's far end.
func count(t testing.TB, to ...netip.AddrPort) (n int) {
	t.Helper()
	if err := To(to, false, func(Socket) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

func want(t testing.TB, what string, n int, to ...netip.AddrPort) {
	t.Helper()
	if got := count(t, to...); got != n {
		t.Errorf("%s: %d connections to %v, want %d", what, got, to, n)
	}
}

func TestTo(t *testing.T) {
	to4, accepted := listen(t, "tcp4", "127.0.0.1:0")
	other, _ := listen(t, "tcp4", "127.0.0.1:0")
	to6, _ := listen(t, "tcp6", "[::1]:0")
	want(t, "before", 0, to4, to6)
	first := dial(t, "tcp4", to4.String()).(*net.TCPConn)
	dial(t, "tcp6", to6.String())
	dial(t, "tcp4", other.String())
	want(t, "IPv4", 1, to4)
	want(t, "IPv6", 1, to6)
	want(t, "both, one of them named twice", 2, to4, to6, to4)
	mapped(t, to4)
	want(t, "an IPv6 socket with an IPv4 address", 2, to4)

	server := <-accepted
	if err := first.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	want(t, "FIN-WAIT-2: the app may still send", 2, to4)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	want(t, "TIME-WAIT", 1, to4)

	second := dial(t, "tcp4", to4.String())
	<-accepted
	(<-accepted).Close()
	want(t, "CLOSE-WAIT: nginx has not closed it", 2, to4)
	second.Close()
	want(t, "none but the mapped one", 1, to4)

	many := []netip.AddrPort{to4, to6}
	for i := range maxTerms {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
		if len(many) == maxTerms {
			want(t, "as many endpoints as the kernel filters", 2, many...)
		}
	}
	want(t, "more endpoints than the kernel filters", 2, many...)
}

// mapped connects an IPv6 socket to an IPv4 address, as Java does.
func mapped(t *testing.T, to netip.AddrPort) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Connect(fd, &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
}

func TestToUDP(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	to := netip.MustParseAddrPort(server.LocalAddr().String())
	want(t, "before", 0, to)
	c := dial(t, "udp4", to.String())
	want(t, "a session", 1, to)
	c.Close()
	want(t, "after", 0, to)
}

func TestDetail(t *testing.T) {
	to, accepted := listen(t, "tcp4", "127.0.0.1:0")
	c := dial(t, "tcp4", to.String())
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-accepted
	time.Sleep(50 * time.Millisecond)
	var all []Socket
	if err := To([]netip.AddrPort{to}, true, func(s Socket) { all = append(all, s) }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Near.String() != c.LocalAddr().String() || all[0].Sent < 40*time.Millisecond || all[0].Received < all[0].Sent {
		t.Errorf("%+v", all)
	}
}

func TestToUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "app.sock")
	check := func(what, path string, n int) {
		t.Helper()
		if got, err := ToUnix(path); err != nil || got != n {
			t.Errorf("%s: %d, %v; want %d", what, got, err, n)
		}
	}
	check("no file", path, 0)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check("nobody", path, 0)
	dial(t, "unix", path)
	check("one that waits", path, 1)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dial(t, "unix", path)
	check("one accepted, one that waits", path, 2)
	if err := os.Symlink(path, filepath.Join(dir, "link.sock")); err != nil {
		t.Fatal(err)
	}
	check("a link to it", filepath.Join(dir, "link.sock"), 2)
	if err := os.Rename(path, filepath.Join(dir, "renamed")); err != nil {
		t.Fatal(err)
	}
	check("renamed: of the one that waits, nothing tells the file", filepath.Join(dir, "renamed"), 1)
	check("the old name: its connections are open still", path, 2)
	check("another socket", filepath.Join(dir, "other.sock"), 0)
}

func TestHostileAnswers(t *testing.T) {
	for _, data := range [][]byte{nil, make([]byte, 71), append(make([]byte, 72), 1), append(make([]byte, 72), 3, 0, 0, 0), append(make([]byte, 72), 200, 0, 2, 0)} {
		if s, err := parseInet(data); err == nil {
			t.Errorf("%d bytes: %+v", len(data), s)
		}
	}
	for _, data := range [][]byte{nil, make([]byte, 15), append(make([]byte, 16), 8, 0, attributeFile, 0, 1, 2, 3, 4)} {
		if inode, file, err := parseUnix(data); err == nil {
			t.Errorf("%d bytes: %d %+v", len(data), inode, file)
		}
	}
}

// opens tells a child of the benchmark how many connections to open. A process may have too few files
// for all of them.
const opens = "SOCKETS_TEST_OPENS"

func TestMain(m *testing.M) {
	n, err := strconv.Atoi(os.Getenv(opens))
	if err != nil {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var held []net.Conn
	for range n {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			panic(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			panic(err)
		}
		held = append(held, c, accepted)
	}
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
	runtime.KeepAlive(held)
}

// BenchmarkTo counts the connections to one of several servers while this machine has about 100,000
// sockets.
func BenchmarkTo(b *testing.B) {
	const servers, each = 6, 8500
	var to []netip.AddrPort
	for range servers {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprint(opens, "=", each))
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				b.Error(err)
			}
		})
		var at string
		if _, err := fmt.Fscanln(out, &at); err != nil {
			b.Fatal(err)
		}
		to = append(to, netip.MustParseAddrPort(at))
	}
	for b.Loop() {
		if n := count(b, to[0]); n != each {
			b.Fatalf("%d connections", n)
		}
	}
}

// The kernel tells of each connection that ends, with both of its ends, also of one that a count never sees.
func TestEnds(t *testing.T) {
	to, accepted := listen(t, "tcp4", "127.0.0.1:0")
	datagrams, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	e, err := WatchEnds()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, end := range []netip.AddrPort{to, netip.MustParseAddrPort(datagrams.LocalAddr().String())} {
		for range 2 {
			c := dial(t, map[bool]string{true: "tcp4", false: "udp4"}[end == to], end.String())
			near := c.LocalAddr().String()
			if c.Close(); end == to {
				(<-accepted).Close()
			}
			for found := false; !found; { // others of this machine end, too
				ended, err := e.Next()
				if err != nil {
					t.Fatal(err)
				}
				found = slices.ContainsFunc(ended, func(s Socket) bool { return s.Far == end && s.Near.String() == near })
			}
		}
	}
	if err := e.Only([]uint16{1, to.Port(), 2}); err != nil {
		t.Fatal(err)
	}
	other, _ := listen(t, "tcp4", "127.0.0.1:0")
	dial(t, "tcp4", other.String()).Close()
	dial(t, "tcp4", to.String()).Close()
	(<-accepted).Close()
	if ended, err := e.Next(); err != nil || len(ended) != 1 || ended[0].Far.Port() != to.Port() {
		t.Errorf("of one port alone: %+v, %v", ended, err)
	}
	e.Close()
	if _, err := e.Next(); err == nil {
		t.Error("it was closed")
	}
}
