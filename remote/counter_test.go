package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// established opens n connections to a listener at addr and keeps both ends.
func established(t *testing.T, network, addr string, n int, accept bool) net.Addr {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	to := l.Addr().String()
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		to = joinPort("127.0.0.1", tcp.Port)
	}
	connectTo(t, network, to, n)
	if accept {
		for range n {
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
	}
	return l.Addr()
}

func connectTo(t *testing.T, network, addr string, n int) {
	t.Helper()
	for range n {
		conn, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func ports(numbers ...int) []uint16 {
	var ports []uint16
	for _, n := range numbers {
		ports = append(ports, uint16(n))
	}
	return ports
}

func TestCounter(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	needTool(t, "ss", "awk")
	s := startServer(t, serverOptions{})
	for _, h := range []Host{newLocal(nil, quick()), s.connect(t, opUser)} {
		t.Run(h.User(), func(t *testing.T) {
			ctx := limit(t, time.Minute)
			// Dual stack: IPv4 connections in IPv6 sockets, and one by IPv6.
			both := established(t, "tcp", "[::]:0", 3, false).(*net.TCPAddr).Port
			connectTo(t, "tcp", joinPort("::1", both), 1)
			connectTo(t, "tcp", joinPort("127.0.0.2", both), 2)
			v4 := established(t, "tcp4", "127.0.0.1:0", 5, true).(*net.TCPAddr).Port
			idle := established(t, "tcp4", "127.0.0.1:0", 0, false).(*net.TCPAddr).Port
			for _, c := range []struct {
				ports []uint16
				want  Count
			}{
				{ports(both), Count{Open: 6, Peers: []Peer{{addr("127.0.0.1"), 5}, {addr("::1"), 1}}}},
				{ports(v4), Count{Open: 5, Peers: []Peer{{addr("127.0.0.1"), 5}}}},
				{ports(both, v4, idle), Count{Open: 11, Peers: []Peer{{addr("127.0.0.1"), 10}, {addr("::1"), 1}}}},
				{ports(idle), Count{}},
				{ports(1), Count{}},
			} {
				counter := NewCounter(h, c.ports)
				for range 3 {
					if got, err := counter.Count(ctx); err != nil || !reflect.DeepEqual(got, c.want) {
						t.Errorf("%v: %+v, %v, not %+v", c.ports, got, err, c.want)
					}
				}
				held, err := counter.CountHeld(ctx)
				if err != nil || held.Open != c.want.Open || len(held.Held) != held.Open {
					t.Errorf("%v: %+v, %v", c.ports, held, err)
				}
				for _, one := range held.Held {
					if one.Sent < 0 || one.Received < 0 || one.Sent > time.Minute || !one.Far.Addr().IsLoopback() || one.Far.Port() == 0 {
						t.Errorf("%v: %+v", c.ports, one)
					}
				}
				if err := counter.Close(); err != nil {
					t.Error(err)
				}
			}
			counter := NewCounter(h, ports(both, 1, v4, idle))
			defer counter.Close()
			checkSees(t, counter)
			for _, c := range []struct {
				ignored string
				want    int
			}{{"127.0.0.1/32", 1}, {"127.0.0.0/8", 1}, {"127.0.0.9/8", 1}, {"::1/128", 5}, {"fd00::/8", 6}, {"10.0.0.0/8", 6}} {
				counter := NewCounter(h, ports(both), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix(c.ignored))
				if got, err := counter.Count(ctx); err != nil || got.Open != c.want {
					t.Errorf("without %s: %+v, %v; want %d", c.ignored, got, err, c.want)
				}
				counter.Close()
			}
		})
	}
	for _, bad := range [][]uint16{nil, {0}, make([]uint16, 1000)} {
		if _, err := NewCounter(Local(nil), bad).Count(limit(t, time.Minute)); err == nil {
			t.Errorf("%d ports: no error", len(bad))
		}
	}
	var many []uint16
	for i := range maxPorts {
		many = append(many, uint16(i+1))
	}
	counter := NewCounter(Local(nil), many)
	defer counter.Close()
	if _, err := counter.Count(limit(t, time.Minute)); err != nil {
		t.Errorf("%d ports: %v", len(many), err)
	}
}

// While the app's listen queue is full, the kernel keeps a connection in SYN-RECV that the client
// takes for established, with its request on the way. TCP_DEFER_ACCEPT does the same (tcp(7)).
func TestCounterCountsWhatIsNotAccepted(t *testing.T) {
	t.Parallel()
	needTool(t, "ss", "awk")
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 30)
		}), err)
	}}
	l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connectTo(t, "tcp", l.Addr().String(), 2)
	counter := NewCounter(newLocal(nil, quick()), ports(l.Addr().(*net.TCPAddr).Port))
	defer counter.Close()
	if got, err := counter.Count(limit(t, time.Minute)); err != nil || !reflect.DeepEqual(got, Count{Open: 2, Peers: []Peer{{addr("127.0.0.1"), 2}}}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := counter.CountHeld(limit(t, time.Minute)); err != nil || got.Open != 2 || len(got.Held) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestClients has a client in a network of its own: what comes from the host itself
// is no other client.
func TestClients(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needTool(t, "ip", "bash")
	const ns = "drainctl-remote-ns2"
	makeNamespace(t, ns, "drremote4", "drremote5", "198.18.81.1", "198.18.81.2")
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	connectTo(t, "tcp", joinPort("198.18.81.1", port), 2) // from the host to its own address
	visit := func() net.Conn {
		client := exec.Command("ip", "netns", "exec", ns, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/198.18.81.1/%d; read -r", port))
		input, err := client.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = input.Close(); _ = client.Wait() })
		for {
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if strings.HasPrefix(conn.RemoteAddr().String(), "198.18.81.2:") {
				return conn
			}
		}
	}
	first, second := visit(), visit()
	counter := NewCounter(newLocal(nil, quick()), ports(port))
	defer counter.Close()
	first.Close() // closed by the host: TIME-WAIT, once the client has closed too
	want := []netip.AddrPort{netip.MustParseAddrPort(first.RemoteAddr().String()), netip.MustParseAddrPort(second.RemoteAddr().String())}
	slices.SortFunc(want, netip.AddrPort.Compare)
	if got, err := counter.Clients(limit(t, time.Minute), nil); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, not %v", got, err, want)
	}
	if got, err := counter.Clients(limit(t, time.Minute), []netip.Addr{addr("192.0.2.1"), addr("::ffff:198.18.81.2")}); err != nil || len(got) != 0 {
		t.Errorf("but those: %v, %v", got, err)
	}
	if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

// fakeSS makes a directory with a program that stands in for ss, and what the
// script needs besides.
func fakeSS(t *testing.T, ss string, without ...string) Host {
	t.Helper()
	bin := filepath.Join(place(t), "bin")
	run(t, "sh", "-c", `mkdir "$1"; for t in sh awk; do ln -s "$(command -v $t)" "$1/$t"; done`, "sh", bin)
	if ss != "" {
		if err := os.WriteFile(bin+"/ss", []byte("#!/bin/sh\n"+ss+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range without {
		os.Remove(filepath.Join(bin, name))
	}
	return binHost{Host: newLocal(nil, quick()), bin: bin}
}

// binHost has the counter run with nothing but the programs in one directory.
type binHost struct {
	Host
	bin string
}

func (h binHost) Start(ctx context.Context, c Command) (*Stream, error) {
	c.Args = append([]string{"/usr/bin/env", "PATH=" + h.bin}, c.Args...)
	s, err := h.Host.Start(ctx, c)
	if err == nil {
		s.process = withoutPath{s.process, h.bin}
	}
	return s, err
}

// withoutPath has the script set another PATH.
type withoutPath struct {
	process
	bin string
}

func (p withoutPath) Write(b []byte) (int, error) {
	_, err := p.process.Write([]byte(strings.Replace(string(b), "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin", "PATH="+p.bin, 1)))
	return len(b), err
}

// TestCounterFails stands in other programs for ss: a count that cannot be had
// must be an error, and the next one anew.
func TestCounterFails(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const (
		line = "0 0 10.0.0.1:80 10.0.0.2:5000"
		both = `case "$*" in *connected*) echo "ESTAB ` + line + `";; *) echo "` + line + `";; esac; `
	)
	for _, c := range []struct {
		name, ss, want string
		without        []string
	}{
		{name: "it works", ss: both},
		{name: "it fails", ss: "exit 255", want: "ss ended with exit status"},
		{name: "it fails after some output", ss: both + "exit 1", want: "ss ended with exit status"},
		{name: "it complains and succeeds", ss: "echo 'Cannot open netlink socket: Permission denied' >&2", want: "Cannot open netlink socket"},
		{name: "it complains in the middle of a line", ss: "printf '0 0 10.0.0.1:80 10.'; echo oh >&2; echo 0.0.2:5000", want: "oh"},
		{name: "it complains at length", ss: "echo \"ss: invalid option -- 'H'\" >&2; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo usage $i >&2; done; exit 255", want: "invalid option"},
		{name: "it prints a header", ss: "echo 'State Recv-Q Send-Q Local Address:Port Peer Address:Port'; " + both, want: "State"},
		{name: "it is killed", ss: both + "kill -9 $$", want: "ss"},
		{name: "its output ends in the middle", ss: "printf '0 0 10.0.0.1:80 10.0'", want: "10.0.0.1:80"},
		{name: "it is not there", want: ErrNoSS.Error()},
		{name: "no awk", ss: both, without: []string{"awk"}, want: "no awk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			counter := NewCounter(fakeSS(t, c.ss, c.without...), ports(80))
			defer counter.Close()
			for range 2 {
				count, err := counter.Count(limit(t, time.Minute))
				if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) || err == nil && count.Open != 1 {
					t.Errorf("count: %+v, %v", count, err)
				}
				held, err := counter.CountHeld(limit(t, time.Minute))
				if (c.want == "") != (err == nil) || err == nil && (held.Open != 1 || len(held.Held) != 1) {
					t.Errorf("held: %+v, %v", held, err)
				}
				clients, err := counter.Clients(limit(t, time.Minute), nil)
				if (c.want == "") != (err == nil) || err == nil && len(clients) != 1 {
					t.Errorf("clients: %v, %v", clients, err)
				}
				if errors.Is(err, ErrNoSS) != (c.ss == "") {
					t.Errorf("got %v", err)
				}
				seen, err := counter.Sees(limit(t, time.Minute), clients)
				if (c.want == "") != (err == nil) || !slices.Equal(seen, clients) {
					t.Errorf("sees %v, %v", seen, err)
				}
			}
		})
	}
	t.Run("odd addresses", func(t *testing.T) {
		counter := NewCounter(fakeSS(t, `echo "0 0 [fe80::1]%eth0:80 [fe80::2]%eth0:5
0 0 192.168.1.2%eth0:80 10.0.0.1%eth0:5
0 0 [::ffff:192.168.1.2]:80 [::ffff:10.0.0.1]:6"`), ports(80))
		defer counter.Close()
		want := Count{Open: 3, Peers: []Peer{{addr("10.0.0.1"), 2}, {addr("fe80::2%eth0"), 1}}}
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("no -i", func(t *testing.T) {
		counter := NewCounter(fakeSS(t, `case "$1" in *i*) echo "ss: invalid option -- 'i'" >&2; exit 255 ;; esac; `+both), ports(80))
		defer counter.Close()
		if got, err := counter.CountHeld(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "invalid option") {
			t.Errorf("%+v, %v", got, err)
		}
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("it takes longer than anybody waits", func(t *testing.T) {
		counter := NewCounter(fakeSS(t, "/usr/bin/sleep 3"), ports(80))
		defer counter.Close()
		begin := time.Now()
		if _, err := counter.Count(limit(t, 300*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

// TestCounterHeld has what ss -Htni of Debian 12 (iproute2 6.1) prints: of a stream on
// which something was sent within the last millisecond, which it leaves out, and of a
// request without an answer; and what no ss prints so far.
func TestCounterHeld(t *testing.T) {
	t.Parallel()
	needRoot(t)
	far, ms := netip.MustParseAddrPort, time.Millisecond
	for _, c := range []struct {
		name, out string
		want      []Held
	}{
		{"Debian 12", `0      5      [::ffff:192.168.1.10]:8080 [::ffff:192.168.1.2]:45796
	 bbr wscale:10,10 rto:204 rtt:1.398/0.207 ato:40 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:138 bytes_sent:8506 bytes_acked:8501 bytes_received:8514 segs_out:1685 segs_in:1687 data_segs_out:1684 data_segs_in:1684 bbr:(bw:482666200bps,mrtt:0.014,pacing_gain:2.88672,cwnd_gain:2.88672) send 1143484979bps pacing_rate 23646678944bps delivery_rate 482666664bps delivered:1684 app_limited busy:1952ms unacked:1 rcv_space:14480 rcv_ssthresh:64088 minrtt:0.014 snd_wnd:64512
0      0      [::ffff:192.168.1.10]:8080 [::ffff:192.168.1.2]:45790
	 bbr wscale:10,10 rto:204 rtt:0.011/0.005 ato:40 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:10 bytes_received:115 segs_out:1 segs_in:3 data_segs_in:1 bbr:(bw:0bps,mrtt:0.011) send 10530909091bps lastsnd:2088 lastrcv:2084 lastack:2088 pacing_rate 30095773920bps delivered:1 app_limited rcv_space:14480 rcv_ssthresh:64088 minrtt:0.011 snd_wnd:64512                                                    
`, []Held{{far("192.168.1.2:45796"), 0, 0}, {far("192.168.1.2:45790"), 2088 * ms, 2084 * ms}}},
		{"no number is too large", "0 0 10.0.0.1%eth0:80 10.0.0.2:5000\n\t cubic rto:204 lastsnd:4294967295 lastrcv:88000 lastack:8\n", []Held{{far("10.0.0.2:5000"), 4294967295 * ms, 88 * time.Second}}},
		{"one line a socket", "0 0 10.0.0.1:80 10.0.0.2:5000\n0 0 10.0.0.1:80 10.0.0.2:5001\n", []Held{{far("10.0.0.2:5000"), -1, -1}, {far("10.0.0.2:5001"), -1, -1}}},
		{"another kernel", "0 0 10.0.0.1:80 10.0.0.2:5000\n\t something else:1\n", []Held{{far("10.0.0.2:5000"), -1, -1}}},
		{"none", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			counter := NewCounter(fakeSS(t, "printf %s "+Quote(c.out)), ports(80))
			defer counter.Close()
			got, err := counter.CountHeld(limit(t, time.Minute))
			if err != nil || got.Open != len(c.want) || !slices.Equal(got.Held, c.want) {
				t.Errorf("%+v, %v, not %+v", got, err, c.want)
			}
		})
	}
}

// manySockets prints as ss does: 100,000 of more than 1,000 peers.
const manySockets = `exec /usr/bin/awk -v connected="$*" 'BEGIN { if (connected ~ /connected/) state = "ESTAB "
for (i = 0; i < 100000; i++) printf "%s0 0 10.0.0.1:80 10.%d.%d.%d:%d\n", state, i % 3, i / 7 % 250, i % 250, 1024 + i % 60000 }'`

func TestCounterMany(t *testing.T) {
	t.Parallel()
	needRoot(t)
	counter := NewCounter(fakeSS(t, manySockets), ports(80))
	defer counter.Close()
	got, err := counter.Count(limit(t, time.Minute))
	if err != nil || got.Open != 100_000 || len(got.Peers) != 8 || got.MorePeers < 1000 {
		t.Errorf("%+v, %v", got, err)
	}
	held, err := counter.CountHeld(limit(t, time.Minute))
	if err != nil || held.Open != 100_000 || len(held.Held) != 2000 {
		t.Errorf("%d held of %d, %v", len(held.Held), held.Open, err)
	}
	clients, err := counter.Clients(limit(t, time.Minute), nil)
	if !errors.Is(err, ErrManyClients) || len(clients) != 2000 {
		t.Errorf("%d clients, %v", len(clients), err)
	}
	if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 100_000 {
		t.Errorf("after too many: %+v, %v", got, err)
	}
}

// clientsEnv has a copy of this test open connections: "NUMBER ADDRESS".
const clientsEnv = "DRAINCTL_TEST_CLIENTS"

// TestClientProcess opens connections until its input ends.
func TestClientProcess(t *testing.T) {
	var n int
	var to string
	if _, err := fmt.Sscan(os.Getenv(clientsEnv), &n, &to); err != nil {
		return
	}
	for i := range n {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250%20), byte(1+i%250))}}
		conn, err := d.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// TestCounterWire measures what a reading with 15,000 open sockets costs.
func TestCounterWire(t *testing.T) {
	makeUsers(t)
	s := startServer(t, serverOptions{})
	const sockets = 15_000
	// A port that no client may get for its own end.
	var l net.Listener
	var err error
	for port := 20_000; l == nil; port++ {
		if l, err = net.Listen("tcp", joinPort("127.0.0.1", port)); err != nil && port > 20_100 {
			t.Fatal(err)
		}
	}
	defer l.Close()
	// Another process has the far ends: one may open only so many files.
	clients := exec.Command(os.Args[0], "-test.run=^TestClientProcess$")
	clients.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", clientsEnv, sockets, l.Addr()))
	input, err := clients.StdinPipe()
	if err == nil {
		err = clients.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = input.Close(); _ = clients.Wait() }()
	for range sockets {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	r := startRelay(t, s.port)
	s.setKnown(t, fmt.Sprintf("[127.0.0.1]:%d %s\n", r.port, s.hostKey(t, "ed25519")))
	how := s.ssh(opUser)
	how.Port = r.port
	h := connect(t, how)
	counter := NewCounter(h, ports(l.Addr().(*net.TCPAddr).Port))
	defer counter.Close()
	read := func() {
		t.Helper()
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != sockets || got.MorePeers < 4000 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	read()
	const n = 20
	before, begin := r.bytes.Load(), time.Now()
	for range n {
		read()
	}
	each := (r.bytes.Load() - before) / n
	t.Logf("a reading of %d sockets: %d bytes on the connection, %v", sockets, each, time.Since(begin)/n)
	if each > 1024 {
		t.Errorf("%d bytes for a reading", each)
	}
}

// TestCounterKeepsItsSession checks that one session answers all that the counter is asked.
func TestCounterKeepsItsSession(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	needTool(t, "ss", "awk")
	s := startServer(t, serverOptions{config: "MaxSessions 1"})
	var mu sync.Mutex
	var started []string
	how := s.ssh(opUser)
	how.Trace = func(_, command string) {
		mu.Lock()
		defer mu.Unlock()
		started = append(started, command)
	}
	port := established(t, "tcp4", "127.0.0.1:0", 1, false).(*net.TCPAddr).Port
	counter := NewCounter(connect(t, how), ports(port))
	defer counter.Close()
	for range 2 {
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 1 {
			t.Errorf("%+v, %v", got, err)
		}
		checkSees(t, counter)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"sh"}; !slices.Equal(started, want) {
		t.Errorf("sessions for %q, want %q", started, want)
	}
}

// checkSees looks for all connections that a counter has, of which there is at least one, and for one
// that it has not.
func checkSees(t *testing.T, c *Counter) {
	t.Helper()
	count, err := c.CountHeld(limit(t, time.Minute))
	if err != nil || len(count.Held) == 0 {
		t.Fatalf("%+v, %v", count, err)
	}
	var far []netip.AddrPort
	for _, h := range count.Held {
		far = append(far, h.Far)
	}
	slices.SortFunc(far, netip.AddrPort.Compare)
	got, err := c.Sees(limit(t, time.Minute), append([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:9")}, far...))
	if err != nil || !slices.Equal(got, far) {
		t.Errorf("sees %v, %v, not %v", got, err, far)
	}
}

// TestCounterCut breaks the connection under the counter.
func TestCounterCut(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	h := s.connect(t, opUser)
	port := established(t, "tcp4", "127.0.0.1:0", 3, true).(*net.TCPAddr).Port
	counter := NewCounter(h, ports(port))
	defer counter.Close()
	for range 5 {
		if got, err := counter.Count(limit(t, time.Minute)); err != nil || got.Open != 3 {
			t.Errorf("%+v, %v", got, err)
		}
		s.cut(t)
		if got, err := counter.Count(limit(t, time.Minute)); err == nil && got.Open != 3 || err != nil && !errors.Is(err, ErrConnection) {
			t.Errorf("after a cut: %+v, %v", got, err)
		}
	}
	// Nothing of it stays behind.
	s.cut(t)
	counter.Close()
	eventually(t, "the shells are gone", func() bool {
		u, err := user.Lookup(opUser)
		if err != nil {
			t.Fatal(err)
		}
		return !shellOf(u.Uid)
	})
	h.Close()
	if _, err := counter.Count(limit(t, time.Minute)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// BenchmarkCount is what a reading costs, with and without SSH.
func BenchmarkCount(b *testing.B) {
	makeUsers(b)
	ssh := startServer(b, serverOptions{}).connect(b, opUser)
	for _, h := range []Host{Local(nil), ssh} {
		b.Run(h.Name(), func(b *testing.B) {
			counter := NewCounter(h, ports(80))
			defer counter.Close()
			for b.Loop() {
				if _, err := counter.Count(limit(b, time.Minute)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestParseEnd(t *testing.T) {
	for in, want := range map[string]string{
		"[::ffff:127.0.0.1]:18080": "127.0.0.1:18080", "192.168.1.2%eth0:80": "192.168.1.2:80", "[fe80::1]%eth0:80": "[fe80::1%eth0]:80",
		"[2001:db8::2]:5": "[2001:db8::2]:5", "*:18080": "[::]:18080", "*:*": "[::]:0", "0.0.0.0:*": "0.0.0.0:0",
		"10.0.0.2:http": "", "10.0.0.1": "", "10.0.0:80": "", "10.0.0.1:99999": "", "": "",
	} {
		got, err := ParseEnd(in)
		if (want == "") != (err != nil) || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestParseCount(t *testing.T) {
	for _, bad := range []string{
		"", "end 0", "open 1 1\npeer 1 10.0.0.1", "open 1 1\npeer 1 10.0.0.1\nend unknown", "open 1 1\npeer x 10.0.0.1\nend 0",
		"open 1 1\npeer 1 host\nend 0", "open -1 1\nend 0", "open 0 0\nend 1", "open 0 0\nend 0\nmore", "open\nend 0", "open 1 0\nend 0",
		"open 2 1\npeer 1 10.0.0.1\nend 0", "open 1 2\npeer 1 10.0.0.1\nend 0", "open 0 0\nerror oh\nend 0",
	} {
		if got, err := parseCount(strings.Split(bad, "\n")); err == nil {
			t.Errorf("%q: %+v, no error", bad, got)
		}
	}
	// One that is held and cannot be read is left out, and the count stands.
	for _, odd := range []string{"held", "held x", "held 10.0.0.1:5 1", "held 10.0.0.1:5 1 x", "held 10.0.0.1:5 -1 1", "held 10.0.0.1:5 99999999999 1", "held 10.0.0.1:5 1 2 3"} {
		got, err := parseCount([]string{"open 1 1", "peer 1 10.0.0.1", odd, "end 0"})
		if err != nil || got.Open != 1 || len(got.Held) != 0 {
			t.Errorf("%q: %+v, %v", odd, got, err)
		}
	}
	got, err := parseCount([]string{"open 5 3", "peer 1 fe80::1%eth0", "peer 2 ::ffff:10.0.0.1", "end 0"})
	want := Count{Open: 5, Peers: []Peer{{addr("10.0.0.1"), 2}, {addr("fe80::1%eth0"), 1}}, MorePeers: 1}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("open 3 2\npeer 2 ::ffff:10.0.0.1\npeer 1 fe80::1%eth0\nend 0")
	f.Add("open 0 0\nend 255")
	f.Add("open 2 1\npeer 2 10.0.0.1\nheld [::ffff:10.0.0.1]:5 12 0\nheld 10.0.0.1:6\nend 0")
	f.Add("client [::ffff:127.0.0.1]:18080\nclient *:80\nmore 3\nend 0")
	f.Fuzz(func(t *testing.T, out string) {
		lines := strings.Split(out, "\n")
		if c, err := parseCount(lines); err == nil {
			sum := 0
			for _, p := range c.Peers {
				sum += p.Count
			}
			for _, h := range c.Held {
				if !h.Far.IsValid() || h.Far.Addr().Is4In6() {
					t.Errorf("not an address: %+v", h)
				}
			}
			if c.Open < sum || c.MorePeers < 0 || c.MorePeers == 0 && c.Open != sum {
				t.Errorf("%+v", c)
			}
		}
		clients, _ := parseClients(lines)
		for _, a := range clients {
			if !a.IsValid() || a.Addr().Is4In6() {
				t.Errorf("not an address: %v", a)
			}
		}
	})
}
