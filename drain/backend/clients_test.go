package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A crowd is the clients of a backend, made up: those on loopback would be this
// machine's own. An ss of its own tells of them.
type crowd struct {
	t       *testing.T
	file    string
	backend *Backend
	wait    Wait
	told    *told
}

// fakeSS answers like ss: all connections, for the other clients, or none that
// are established, for the counter.
const fakeSS = `#!/bin/sh
test -e "$CROWD.broken" && { echo "ss: made to fail" >&2; exit 1; }
case "$*" in *connected*)
	test -e "$CROWD.coming" && echo "ESTAB 0 0 192.168.1.10:8080 192.168.1.3:$$"
	test -e "$CROWD.unknown" && { echo "ss: made to fail" >&2; exit 1; }
	cat "$CROWD" ;;
esac
`

func newCrowd(t *testing.T, change ...func(*Wait)) *crowd {
	t.Helper()
	bin := t.TempDir()
	c := &crowd{t: t, file: filepath.Join(bin, "connections")}
	if err := os.WriteFile(filepath.Join(bin, "ss"), []byte(fakeSS), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("CROWD", c.file)
	c.are()
	counter := remote.NewCounter(remote.Local(nil), []uint16{8080})
	t.Cleanup(func() { counter.Close() })
	c.backend, c.wait, c.told = waitOf(counter, append([]func(*Wait){func(w *Wait) {
		w.Interval, w.Others = 20*time.Millisecond, true
		w.Known = []netip.Addr{netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("::1")}
	}}, change...)...)
	c.backend.Sockets = counter
	return c
}

// are says which connections there are now, by their far ends.
func (c *crowd) are(peers ...string) {
	c.t.Helper()
	var b strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&b, "ESTAB 0 0 192.168.1.10:8080 %s\n", p)
	}
	if err := os.WriteFile(c.file+".new", []byte(b.String()), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.file+".new", c.file); err != nil {
		c.t.Fatal(err)
	}
}

func TestOtherClients(t *testing.T) {
	c := newCrowd(t, func(w *Wait) {
		w.Interval = time.Hour // nothing here waits for it: see later
		w.Ignored = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	})
	c.are("192.168.1.3:4000", "10.9.1.1:1")
	others, err := newOtherClients(t.Context(), c.backend, c.wait)
	if err != nil {
		t.Fatal(err)
	}
	look := func(what string, want bool) {
		t.Helper()
		if err := others.look(t.Context(), true); err != nil || others.isArriving() != want {
			t.Errorf("%s: arriving %t, %v; want %t", what, others.isArriving(), err, want)
		}
	}
	// later is as if nobody had connected for long enough.
	later := func() { others.arrived = others.arrived.Add(-others.quiet()) }
	look("one that was there before", true)
	later()
	look("nothing new", false)
	c.are()
	look("gone", false)
	c.are("192.168.1.3:4000")
	look("known from the start", false)
	c.are("10.9.1.1:2", "127.0.0.1:99", "[::1]:7", "192.168.1.2:555", "[::ffff:192.168.1.2]:556", "192.168.1.10:557")
	look("ignored, loopback, the load balancer's own, the backend's own", false)
	if told := c.told.clients; len(told) != 1 || told[0].Address.String() != "192.168.1.3" || told[0].isNew || told[0].quiet != others.quiet() {
		t.Errorf("told %+v", told)
	}

	c.are("192.168.1.3:4001", "[::ffff:192.168.1.4]:4002")
	look("new ones", true)
	c.are("192.168.1.3:4002")
	look("one more", true)
	seen := map[string]int{}
	for _, e := range c.told.clients {
		if e.isNew {
			seen[e.Address.String()]++
		}
	}
	if len(seen) != 2 || seen["192.168.1.3"] != 1 || seen["192.168.1.4"] != 1 {
		t.Errorf("told of %v, want each once", seen)
	}
	// After a while without a new one they are not arriving any more.
	c.are()
	later()
	look("quiet", false)

	// What cannot be looked at is said to be so.
	touch(t, c.file+".broken")
	if err := others.look(t.Context(), true); err == nil || !strings.Contains(err.Error(), "made to fail") {
		t.Errorf("got %v", err)
	}
}

// come has another client connect anew each time that ss is asked, until it is stopped.
func (c *crowd) come() (stop func()) {
	c.t.Helper()
	touch(c.t, c.file+".coming")
	return func() {
		if err := os.Remove(c.file + ".coming"); err != nil {
			c.t.Error(err)
		}
	}
}

// A backend is not drained while other clients keep coming, whatever the counter
// reads between them; when they stop, it is.
func TestWaitForOtherClients(t *testing.T) {
	c := newCrowd(t)
	stop := c.come()
	const while = 20
	n := 0
	c.wait.Reading = func(Reading) {
		if n++; n == while {
			stop()
		}
	}
	if _, err := c.backend.Drained(t.Context(), c.wait); err != nil || n <= while {
		t.Errorf("%v after %d readings, and they came during %d", err, n, while)
	}
}

// If they go on, the time is up, and what is said names them.
func TestWaitForOtherClientsTimesOut(t *testing.T) {
	c := newCrowd(t, func(w *Wait) { w.Timeout = 300 * time.Millisecond })
	c.come()
	_, err := c.backend.Drained(t.Context(), c.wait)
	var late *TimedOutError
	if !errors.As(err, &late) || !late.OtherClients || late.Error() != "not drained after 300ms: connections kept arriving from others than nginx on the load balancer" {
		t.Errorf("got %v", err)
	}
}

// Other clients whose number is not known, or that are more than can be listed, do
// not count as none.
func TestWaitForUnknownOtherClients(t *testing.T) {
	var many []string
	for i := range 2001 { // ss's answer is read up to 2,000
		many = append(many, fmt.Sprintf("192.168.%d.%d:4000", 3+i/250, i%250))
	}
	for _, test := range []struct {
		name    string
		ignored []netip.Prefix
		peers   []string
		unknown bool // from the first reading on
	}{
		{"more than can be listed, and all were there before", nil, many, false},
		{"more than can be listed, and those that are can be ignored", []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, many, false},
		{"ss cannot tell", nil, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c *crowd
			c = newCrowd(t, func(w *Wait) {
				w.Timeout, w.Ignored = 500*time.Millisecond, test.ignored
				w.Reading = func(Reading) {
					if test.unknown {
						touch(t, c.file+".unknown")
					}
				}
			})
			c.are(test.peers...)
			_, err := c.backend.Drained(t.Context(), c.wait)
			var late *TimedOutError
			const says = "not drained after 500ms: other clients may still connect: which ones cannot be told"
			if !errors.As(err, &late) || err.Error() != says {
				t.Errorf("got %v, want %q", err, says)
			}
		})
	}
}

// A first look at the other clients that fails is made again: the SSH connection may come back.
func TestWaitMakesTheFirstLookAgain(t *testing.T) {
	c := newCrowd(t)
	touch(t, c.file+".unknown")
	failed := 0
	c.wait.Reading = func(r Reading) {
		switch {
		case r.Err != nil:
			if failed++; failed == 3 {
				if err := os.Remove(c.file + ".unknown"); err != nil {
					t.Error(err)
				}
			}
		case failed < 3:
			t.Errorf("a reading counts before the first look: %+v", r)
		}
	}
	if _, err := c.backend.Drained(t.Context(), c.wait); err != nil || failed != 3 {
		t.Errorf("%v after %d looks that failed", err, failed)
	}
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A hostile backend names new clients without an end: what is kept and told of them is bounded.
func TestEndlessOtherClients(t *testing.T) {
	c := newCrowd(t, func(w *Wait) { w.Interval = time.Minute })
	others, err := newOtherClients(t.Context(), c.backend, c.wait)
	if err != nil {
		t.Fatal(err)
	}
	var peers []string
	for i := range 2 * maxNamed {
		peers = append(peers, fmt.Sprintf("10.0.%d.%d:4000", i/250, i%250))
	}
	c.are(peers...)
	for range 2 {
		if err := others.look(t.Context(), true); err != nil || !others.isArriving() {
			t.Errorf("arriving %t, %v", others.isArriving(), err)
		}
	}
	if n := len(c.told.clients); n != maxNamed {
		t.Errorf("told of %d clients, want %d", n, maxNamed)
	}
	for i := range maxBefore {
		others.before[netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 1)] = true
	}
	c.are("10.1.0.1:4000")
	for range 2 { // beyond the bound it stays a new one
		others.arrived = time.Time{}
		if err := others.look(t.Context(), true); err != nil || !others.isArriving() || len(others.before) > maxBefore+len(peers) {
			t.Errorf("arriving %t, %d known, %v", others.isArriving(), len(others.before), err)
		}
	}
}
