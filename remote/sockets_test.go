package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
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

func TestSockets(t *testing.T) {
	makeUsers(t)
	needTool(t, "ss")
	s := startServer(t, serverOptions{})
	for _, h := range []Host{Local(nil), s.connect(t, opUser)} {
		t.Run(h.User(), func(t *testing.T) {
			// Dual stack: IPv4 connections in IPv6 sockets, and one by IPv6.
			both := established(t, "tcp", "[::]:0", 3, false).(*net.TCPAddr).Port
			connectTo(t, "tcp", joinPort("::1", both), 1)
			connectTo(t, "tcp", joinPort("127.0.0.2", both), 2)
			v4 := established(t, "tcp4", "127.0.0.1:0", 5, true).(*net.TCPAddr).Port
			idle := established(t, "tcp4", "127.0.0.1:0", 0, false).(*net.TCPAddr).Port
			ctx := limit(t, time.Minute)
			for _, c := range []struct {
				ports []int
				want  Sockets
			}{
				{[]int{both}, Sockets{Count: 6, Total: 2, Peers: []Peer{{netip.MustParseAddr("127.0.0.1"), 5}, {netip.MustParseAddr("::1"), 1}}}},
				{[]int{v4}, Sockets{Count: 5, Total: 1, Peers: []Peer{{netip.MustParseAddr("127.0.0.1"), 5}}}},
				{[]int{both, v4, idle}, Sockets{Count: 11, Total: 2, Peers: []Peer{{netip.MustParseAddr("127.0.0.1"), 10}, {netip.MustParseAddr("::1"), 1}}}},
				{[]int{idle}, Sockets{}},
				{[]int{1}, Sockets{}},
			} {
				got, err := LocalSockets(ctx, h, ports(c.ports))
				if err != nil || !reflect.DeepEqual(got, c.want) {
					t.Errorf("%v: %+v, %v, not %+v", c.ports, got, err, c.want)
				}
			}
			at := func(addr string, port int) netip.AddrPort {
				return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
			}
			got, err := RemoteSockets(ctx, h, []netip.AddrPort{at("127.0.0.1", v4), at("::1", both), at("127.0.0.9", both)})
			want := Sockets{Count: 6, Total: 2, Peers: []Peer{{netip.MustParseAddr("127.0.0.1"), 5}, {netip.MustParseAddr("::1"), 1}}}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("from here: %+v, %v", got, err)
			}
			conns, err := Conns(ctx, h, ports([]int{both}))
			if err != nil || len(conns) != 6 || conns[0].Addr() != netip.MustParseAddr("127.0.0.1") || !slices.IsSortedFunc(conns, netip.AddrPort.Compare) {
				t.Errorf("%v, %v", conns, err)
			}
			sums, err := CountByPeer(ctx, h, ports([]int{both, v4, idle}))
			if wantSums := map[netip.AddrPort]int{
				at("127.0.0.1", both): 3, at("127.0.0.2", both): 2, at("::1", both): 1, at("127.0.0.1", v4): 5,
			}; err != nil || !reflect.DeepEqual(sums, wantSums) {
				t.Errorf("by peer: %v, %v", sums, err)
			}
			listening, err := Listening(ctx, h, ports([]int{both, 1, v4, idle}))
			if err != nil || !slices.Equal(listening, []bool{true, false, true, true}) {
				t.Errorf("listening: %v, %v", listening, err)
			}
		})
	}
	for _, bad := range [][]uint16{nil, {0}, make([]uint16, 1000)} {
		if _, err := LocalSockets(limit(t, time.Minute), Local(nil), bad); err == nil {
			t.Errorf("%d ports: no error", len(bad))
		}
	}
	// As many addresses as are allowed are not too many for ss.
	var many []netip.AddrPort
	for i := range maxFilter {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), 80))
	}
	if got, err := RemoteSockets(limit(t, time.Minute), Local(nil), many); err != nil || got.Count != 0 {
		t.Errorf("%d addresses: %+v, %v", len(many), got, err)
	}
}

func ports(numbers []int) []uint16 {
	var ports []uint16
	for _, n := range numbers {
		ports = append(ports, uint16(n))
	}
	return ports
}

func TestUnixSockets(t *testing.T) {
	makeUsers(t)
	s := startServer(t, serverOptions{})
	dir := place(t)
	path := dir + "/an [odd] *.sock"
	decoy := dir + "/an o .sock"
	established(t, "unix", path, 3, true)
	connectTo(t, "unix", path, 2) // nobody has accepted these
	established(t, "unix", decoy, 7, true)
	admin(t, `ln -s "$1" "$1/self"; ln -s "an [odd] *.sock" "$1/link"`, dir)
	for _, h := range []Host{Local(nil), s.connect(t, opUser)} {
		for name, want := range map[string]int{
			path: 5, decoy: 7, dir + "/self/an [odd] *.sock": 5, dir + "/link": 5, dir + "/nowhere": 0, dir + "/an": 0,
		} {
			got, err := UnixSockets(limit(t, time.Minute), h, name)
			if err != nil || got.Count != want {
				t.Errorf("%s: %s: %+v, %v, not %d", h.User(), name, got, err, want)
			}
		}
	}
	for _, bad := range []string{"", "relative", "/new\nline", "@abstract"} {
		if _, err := UnixSockets(limit(t, time.Minute), Local(nil), bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestSocketsFail stands in other programs for ss: a count that cannot be had
// must be an error.
func TestSocketsFail(t *testing.T) {
	needRoot(t)
	bin := filepath.Join(place(t), "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	tools := func(ss string, without ...string) {
		t.Helper()
		run(t, "sh", "-c", `rm -f "$1"/*; for t in sh awk cat head; do ln -s "$(command -v $t)" "$1/$t"; done`, "sh", bin)
		if ss != "" {
			if err := os.WriteFile(bin+"/ss", []byte("#!/bin/sh\n"+ss+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range without {
			os.Remove(filepath.Join(bin, name))
		}
	}
	h := rawHost{path: bin, Host: Local(nil)}
	counts := map[string]func() error{
		"local":     func() error { _, err := LocalSockets(limit(t, time.Minute), h, []uint16{80}); return err },
		"conns":     func() error { _, err := Conns(limit(t, time.Minute), h, []uint16{80}); return err },
		"listening": func() error { _, err := Listening(limit(t, time.Minute), h, []uint16{80}); return err },
		"by peer":   func() error { _, err := CountByPeer(limit(t, time.Minute), h, []uint16{80}); return err },
	}
	const line = "0 0 10.0.0.1:80 10.0.0.2:5000"
	for _, c := range []struct {
		name, ss, want string
		without        []string
		good           bool
	}{
		{name: "it works", ss: "echo '" + line + "'", good: true},
		{name: "it fails", ss: "exit 255", want: "exit status"},
		{name: "it fails after some output", ss: "echo '" + line + "'; exit 1", want: "exit status"},
		{name: "it complains and succeeds", ss: "echo 'Cannot open netlink socket: Permission denied' >&2", want: "Cannot open netlink socket"},
		{name: "it complains at length", ss: "echo \"ss: invalid option -- 'H'\" >&2; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo usage $i >&2; done; exit 255", want: "invalid option"},
		{name: "it is killed", ss: "echo '" + line + "'; kill -9 $$", want: "Killed"},
	} {
		for name, count := range counts {
			tools(c.ss, c.without...)
			err := count()
			if c.good != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.want) && !strings.Contains(err.Error(), "did not end well")) {
				t.Errorf("%s: %s: %v", c.name, name, err)
			}
		}
	}
	for name, count := range counts {
		tools("")
		if err := count(); !errors.Is(err, ErrNoSS) {
			t.Errorf("no ss: %s: %v", name, err)
		}
	}
	tools("echo '"+line+"'", "awk")
	if err := counts["local"](); err == nil {
		t.Error("no awk: no error")
	}
}

// rawHost runs scripts with nothing but the programs in one directory.
type rawHost struct {
	Host
	path string
}

func (h rawHost) Run(ctx context.Context, c Command) (Result, error) {
	// The scripts add the system's directories to the path; these come not after.
	for i, a := range c.Args {
		c.Args[i] = strings.Replace(a, "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin", "PATH="+h.path, 1)
	}
	return h.Host.Run(ctx, c)
}

func TestManySockets(t *testing.T) {
	needRoot(t)
	bin := place(t)
	script := "#!/bin/sh\nexec awk 'BEGIN { for (i = 0; i < 100000; i++) printf \"0 0 10.0.0.1:80 10.%d.%d.%d:%d\\n\", i % 3, i / 7 % 250, i % 250, 1024 + i % 60000 }'\n"
	if err := os.WriteFile(bin+"/ss", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h := rawHost{path: bin + ":" + os.Getenv("PATH"), Host: Local(nil)}
	got, err := LocalSockets(limit(t, time.Minute), h, []uint16{80})
	if err != nil || got.Count != 100_000 || len(got.Peers) != maxPeers || got.Total < 1000 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseSS(t *testing.T) {
	for out, want := range map[string]string{
		"":   "[]",
		"\n": "[]",
		"0      0      [::ffff:127.0.0.1]:18080 [::ffff:127.0.0.1]:46986\n": "[127.0.0.1:18080-127.0.0.1:46986]",
		"0 0 192.168.1.2%eth0:80 10.0.0.1:5\n":                              "[192.168.1.2:80-10.0.0.1:5]",
		"0 0 [fe80::1]%eth0:80 [fe80::2]%eth0:5\n":                          "[[fe80::1%eth0]:80-[fe80::2%eth0]:5]",
		"0 0 [fe80::1%eth0]:80 [2001:db8::2]:5\n":                           "[[fe80::1%eth0]:80-[2001:db8::2]:5]",
		"4 50 *:18080 *:*\n":                                                "[[::]:18080-[::]:0]",
		"4 50 0.0.0.0:80 0.0.0.0:*  users:((\"x\",pid=1,fd=2))\n":           "[0.0.0.0:80-0.0.0.0:0]",
		"0 0 10.0.0.1:80\n":                                                 "error",
		"0 0 10.0.0.1:80 10.0.0.2:http\n":                                   "error",
		"0 0 10.0.0.1 10.0.0.2:1\n":                                         "error",
		"0 0 10.0.0:80 10.0.0.2:1\n":                                        "error",
		"0 0 10.0.0.1:99999 10.0.0.2:1\n":                                   "error",
		"State Recv-Q Send-Q Local Peer\n":                                  "error",
	} {
		pairs, err := parseSS(out)
		got := make([]string, 0)
		for _, p := range pairs {
			got = append(got, p.near.String()+"-"+p.far.String())
		}
		text := fmt.Sprint(got)
		if err != nil {
			text = "error"
		}
		if text != want {
			t.Errorf("%q: %s (%v), not %s", out, text, err, want)
		}
	}
}

func TestParseSum(t *testing.T) {
	for _, bad := range []string{
		"", "end 0", "sockets 1 1\npeer 1 10.0.0.1", "sockets 1 1\npeer 1 10.0.0.1\nend unknown", "sockets 1 1\npeer x 10.0.0.1\nend 0",
		"sockets 1 1\npeer 1 host\nend 0", "sockets -1 1\nend 0", "sockets 0 0\nend 1", "sockets 0 0\nend 0\nmore", "sockets\nend 0",
	} {
		if got, err := parseSum(bad); err == nil {
			t.Errorf("%q: %+v, no error", bad, got)
		}
	}
	got, err := parseSum("sockets 3 2\npeer 2 ::ffff:10.0.0.1\npeer 1 fe80::1%eth0\nend 0\n")
	want := Sockets{Count: 3, Total: 2, Peers: []Peer{{netip.MustParseAddr("10.0.0.1"), 2}, {netip.MustParseAddr("fe80::1%eth0"), 1}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParseSS(f *testing.F) {
	f.Add("0      0      [::ffff:127.0.0.1]:18080 [::ffff:127.0.0.1]:46986\n4 50 *:80 *:*\n")
	f.Add("0 0 [fe80::1]%eth0:80 192.168.1.2%eth0:80 users\n")
	f.Fuzz(func(t *testing.T, out string) {
		pairs, err := parseSS(out)
		if err != nil {
			return
		}
		lines := 0
		for line := range strings.Lines(out) {
			if len(strings.Fields(line)) > 0 {
				lines++
			}
		}
		if len(pairs) != lines {
			t.Errorf("%d lines, %d sockets", lines, len(pairs))
		}
		for _, p := range pairs {
			if !p.near.IsValid() || !p.far.IsValid() || p.near.Addr().Is4In6() {
				t.Errorf("not an address: %v", p)
			}
		}
	})
}

func FuzzParseSum(f *testing.F) {
	f.Add("sockets 3 2\npeer 2 ::ffff:10.0.0.1\npeer 1 fe80::1%eth0\nend 0\n")
	f.Add("sockets 0 0\nend 255\n")
	f.Fuzz(func(t *testing.T, out string) {
		s, err := parseSum(out)
		if err == nil && (s.Count < 0 || s.Total < 0) {
			t.Errorf("%+v", s)
		}
		sums := make(map[netip.AddrPort]int)
		_ = addDestinations(sums, out)
	})
}
