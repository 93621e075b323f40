package drain

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A street is a backend whose connections are made up: strangers on loopback
// would be the machine's own. An ss of its own tells of them.
type street struct {
	t    *testing.T
	file string
	run  *run
	told *told
}

// fakeSS answers like ss: all connections, for the strangers, or none that are
// established, for the gauge.
const fakeSS = `#!/bin/sh
test -e "$STREET.broken" && { echo "ss: made to fail" >&2; exit 1; }
case "$*" in *connected*) cat "$STREET" ;; esac
`

func newStreet(t *testing.T, change ...func(*Request)) *street {
	t.Helper()
	bin := t.TempDir()
	s := &street{t: t, file: filepath.Join(bin, "connections"), told: &told{}}
	if err := os.WriteFile(filepath.Join(bin, "ss"), []byte(fakeSS), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("STREET", s.file)
	s.are()
	host := remote.Local(nil)
	req := &Request{Operation: Drain, LBs: []*LB{{Host: host}}, Interval: 20 * time.Millisecond, Timeout: patience, Poll: PollSS}
	for _, c := range change {
		c(req)
	}
	s.run = &run{req: req, plan: &Plan{Request: req, LBs: []LBPlan{{LB: req.LBs[0]}}}, tell: s.told.tell, gauge: backendGauge{host: host, ports: []uint16{8080}}}
	// No load balancer was closed, so that there is none to watch.
	s.run.close = &closeStep{r: s.run}
	return s
}

// are says which connections there are now, by their far ends.
func (s *street) are(peers ...string) {
	s.t.Helper()
	var b strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&b, "ESTAB 0 0 192.168.1.10:8080 %s\n", p)
	}
	if err := os.WriteFile(s.file+".new", []byte(b.String()), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.file+".new", s.file); err != nil {
		s.t.Fatal(err)
	}
}

func TestStrangers(t *testing.T) {
	s := newStreet(t, func(r *Request) { r.IgnorePeers = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")} })
	own, err := remote.Addresses(t.Context(), remote.Local(nil))
	if err != nil {
		t.Fatal(err)
	}
	own = slices.DeleteFunc(own, func(a netip.Addr) bool { return !a.Is4() })
	if len(own) == 0 {
		t.Fatal("this machine has no IPv4 address of its own, not even on loopback")
	}
	s.are("192.168.1.3:4000", "10.9.1.1:1")
	st, err := s.run.newStrangers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := func(what string, want bool) {
		t.Helper()
		if got, err := st.look(t.Context(), true); err != nil || got != want {
			t.Errorf("%s: arriving %t, %v; want %t", what, got, err, want)
		}
	}
	look("one that was there before", true)
	time.Sleep(st.quiet() + 10*time.Millisecond)
	look("nothing new", false)
	s.are()
	look("gone", false)
	s.are("192.168.1.3:4000")
	look("known from the start", false)
	s.are("10.9.1.1:2", "127.0.0.1:99", "[::1]:7", own[0].String()+":555", "[::ffff:"+own[0].String()+"]:556")
	look("ignored, the machine's own, the load balancer's own", false)
	if want := (Progress{StepEmpty, "192.168.1.3 was connected within the last minute, besides the load balancer: whether it connects again is looked at for 120ms"}); len(s.told.events) != 1 || s.told.events[0] != want {
		t.Errorf("told %v, want %v", s.told.events, want)
	}

	s.are("192.168.1.3:4001", "[::ffff:192.168.1.4]:4002")
	look("new ones", true)
	s.are("192.168.1.3:4002")
	look("one more", true)
	w := s.told.warnings()
	for _, a := range []string{"192.168.1.3", "192.168.1.4"} {
		if strings.Count(w, a+" still opens connections: another load balancer? (--ignore-peer "+a+" if it may)") != 1 {
			t.Errorf("warned of %q, want %s in it once", w, a)
		}
	}
	// After a while without a new one they are not arriving any more.
	s.are()
	time.Sleep(st.quiet() + 10*time.Millisecond)
	look("quiet", false)

	// What cannot be looked at is said to be so.
	if err := os.WriteFile(s.file+".broken", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := st.look(t.Context(), true); err == nil || !strings.Contains(err.Error(), "made to fail") {
		t.Errorf("got %v", err)
	}
}

// Only ss on the backend can tell of strangers, and only on another host.
func TestStrangersNotLookedFor(t *testing.T) {
	for _, change := range []func(*run){
		func(r *run) { r.gauge = &script{counts: []int{0}} },
		func(r *run) { r.gauge = lbGauge{} },
		func(r *run) { r.req.Local = true },
	} {
		s := newStreet(t)
		change(s.run)
		st, err := s.run.newStrangers(t.Context())
		if st != nil || err != nil {
			t.Errorf("%v, %v", st, err)
		}
		if arriving, err := st.look(t.Context(), true); arriving || err != nil {
			t.Errorf("arriving %t, %v", arriving, err)
		}
	}
}

// A backend is not empty while strangers keep coming, whatever the gauge reads
// between them; when they stop, it is.
func TestWaitForStrangers(t *testing.T) {
	s := newStreet(t)
	quiet := make(chan struct{})
	stop := time.AfterFunc(500*time.Millisecond, func() { close(quiet) })
	defer stop.Stop()
	arrived := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for port := 5000; ; port++ {
			select {
			case <-quiet:
				s.are()
				return
			default:
				s.are(fmt.Sprintf("192.168.1.3:%d", port))
				arrived = time.Now()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, _, err := (&emptyStep{r: s.run}).forward(t.Context())
	ended := time.Now()
	<-done
	if err != nil || ended.Before(arrived) {
		t.Errorf("%v, %s before the last one came", err, arrived.Sub(ended))
	}
	if w := s.told.warnings(); strings.Count(w, "192.168.1.3 still opens connections") != 1 {
		t.Errorf("warned of %q", w)
	}
}

// If they go on, the time is up, and what is said names them.
func TestWaitForStrangersTimesOut(t *testing.T) {
	s := newStreet(t, func(r *Request) { r.Timeout = 300 * time.Millisecond })
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for port := 5000; ; port++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				s.are(fmt.Sprintf("192.168.1.3:%d", port))
			}
		}
	}()
	_, _, err := (&emptyStep{r: s.run}).forward(t.Context())
	close(stop)
	<-done
	var nd *NotDrainedError
	if !errors.As(err, &nd) || !nd.Strangers || nd.Error() != "not drained after 300ms: connections kept arriving from elsewhere than the load balancer" {
		t.Errorf("got %v", err)
	}
}
