package drain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// heldOn is a connection that a wait has seen for so long.
func heldOn(addr string, open, sent, received time.Duration) backend.Held {
	return backend.Held{Held: remote.Held{Far: netip.AddrPortFrom(netip.MustParseAddr(addr), 5000), Sent: sent, Received: received}, Open: open}
}

func TestStuckReason(t *testing.T) {
	const s = time.Second
	for _, test := range []struct {
		name           string
		lb             string
		open           time.Duration
		sent, received time.Duration // ago, by the backend
		want           event.StuckReason
	}{
		{"a stream, both ways all the time", "lb", 10 * s, s / 20, s / 20, event.StuckUpgraded},
		{"a WebSocket that is asked for a sign of life now and then", "lb", 120 * s, 29 * s, 28 * s, event.StuckUpgraded},
		{"the same, before the first sign: the backend spoke last", "lb", 10 * s, 15 * s, 16 * s, event.StuckSending},
		{"a download", "lb", 10 * s, s / 10, 12 * s, event.StuckSending},
		{"a download that its client holds up", "lb", 120 * s, 100 * s, 130 * s, event.StuckSending},
		{"an answer that began a while after its request", "lb", 30 * s, 5 * s, 31 * s, event.StuckSending},
		{"a request without an answer", "lb", 10 * s, 12 * s, 12 * s, event.StuckSilent},
		{"the same on a connection that was used before", "lb", 10 * s, 50 * s, 12 * s, event.StuckSilent},
		{"a request of the moment that the wait began", "lb", 10 * s, 100 * s, 9900 * time.Millisecond, event.StuckSilent},
		{"a request an hour ago", "lb", 3600 * s, 3605 * s, 3605 * s, event.StuckSilent},
		{"a stream on which nothing was sent for long", "lb", 3600 * s, 3000 * s, 3000 * s, event.StuckSilent},
		{"just seen", "lb", 0, 0, 0, event.StuckSilent},
		{"an upload", "lb", 10 * s, 60 * s, s / 10, ""},
		{"nothing is known of it", "lb", 10 * s, -1, -1, ""},
		{"another client", "", 10 * s, s / 20, s / 20, event.StuckClients},
		{"another client, and no more is known", "", 10 * s, -1, -1, event.StuckClients},
	} {
		if got := stuckReason(heldOn("10.0.0.1", test.open, test.sent, test.received), test.lb); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// Of several reasons, the one that is told first is what the longest has to be waited for.
func TestStuckBy(t *testing.T) {
	const s, lb = time.Second, "10.0.0.1"
	owner := func(a netip.Addr) string { return map[string]string{lb: "lb"}[a.String()] }
	client, upgraded := heldOn("10.9.9.9", 3*s, 0, 0), heldOn(lb, 10*s, 0, 0)
	silent, sending, unknown := heldOn(lb, 20*s, 30*s, 30*s), heldOn(lb, 15*s, 0, 30*s), heldOn(lb, 15*s, -1, -1)
	for _, test := range []struct {
		held []backend.Held
		want *event.Stuck
	}{
		{nil, nil},
		{[]backend.Held{unknown}, nil},
		{[]backend.Held{sending, unknown, sending}, &event.Stuck{Reason: event.StuckSending, Connections: 2, OpenFor: 15}},
		{[]backend.Held{sending, sending, silent}, &event.Stuck{Reason: event.StuckSilent, Connections: 1, OpenFor: 30}},
		{[]backend.Held{silent, sending, upgraded, heldOn(lb, 90*s, s, s)}, &event.Stuck{Reason: event.StuckUpgraded, Connections: 2, OpenFor: 90}},
		{[]backend.Held{silent, sending, upgraded, client}, &event.Stuck{Reason: event.StuckClients, Connections: 1, OpenFor: 3}},
	} {
		got := stuckBy(test.held, owner)
		if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%+v: %+v, want %+v", test.held, got, test.want)
		}
	}
}

func TestOwner(t *testing.T) {
	addrs := func(all ...string) (of []netip.Addr) {
		for _, a := range all {
			of = append(of, netip.MustParseAddr(a))
		}
		return of
	}
	p := &plan.Plan{LBs: []plan.LBPlan{
		{LB: "a", Report: &balancer.Report{Addresses: addrs("127.0.0.1", "::1", "10.0.0.1", "172.17.0.1", "fe80::1")}},
		{LB: "b", Report: &balancer.Report{Addresses: addrs("127.0.0.1", "10.0.0.2", "172.17.0.1")}},
	}}
	for _, test := range []struct {
		on, address, want string
	}{
		{"", "10.0.0.1", "a"}, {"", "10.0.0.2", "b"}, {"", "172.17.0.1", "a"}, {"", "fe80::1%eth0", "a"},
		{"", "10.0.0.3", ""},
		{"", "127.0.0.1", ""}, // of the backend itself
		{"b", "127.0.0.1", "b"},
	} {
		if got := p.Owner(plan.Backend{LB: test.on})(netip.MustParseAddr(test.address)); got != test.want {
			t.Errorf("%s, on %q: %q, want %q", test.address, test.on, got, test.want)
		}
	}
}

// A heldLB has one connection to a server.
type heldLB struct {
	balancer.Balancer
	held remote.Held
	err  error
}

func (lb heldLB) Connections(_ context.Context, q balancer.ConnectionsQuery) (remote.Count, error) {
	if lb.err != nil {
		return remote.Count{}, lb.err
	}
	c := remote.Count{Open: 1}
	if q.Held {
		c.Held = []remote.Held{lb.held}
	}
	return c, nil
}

// Each LB counts its own connections, and all see the same page of stub_status. One that cannot
// count does not count as none.
func TestCountOfLBs(t *testing.T) {
	servers := map[*fleet.LB][]journal.Server{}
	lbs := fleet.Fleet{{Balancer: heldLB{}, Name: "lb1"}, {Balancer: heldLB{}, Name: "lb2"}}
	for _, lb := range lbs {
		servers[lb] = []journal.Server{keyed("10.0.0.9:80")}
	}
	of := func(lb *fleet.LB) []journal.Server { return servers[lb] }
	for want, c := range map[int]lbCounter{2: {last: &sync.Map{}, lbs: lbs, servers: of}, 1: {last: &sync.Map{}, lbs: lbs, statusURL: "http://10.0.0.9/status"}} {
		if got, err := c.Count(t.Context()); err != nil || got.Open != want {
			t.Errorf("%+v, %v; want %d", got, err, want)
		}
	}
	for _, lb := range lbs {
		lb.Balancer = heldLB{err: errFault}
		if got, err := (lbCounter{last: &sync.Map{}, lbs: lbs, servers: of}).Count(t.Context()); !errors.Is(err, errFault) {
			t.Errorf("without %s: %+v, %v", lb.Name, got, err)
		}
		lb.Balancer = heldLB{}
	}
}

// What an LB sends, the backend receives, whichever of them is asked.
func TestHeldOfLBs(t *testing.T) {
	var lbs fleet.Fleet
	var want []remote.Held
	for i, addr := range []string{"10.0.0.1:5000", "10.0.0.2:5000"} {
		near := netip.MustParseAddrPort(addr)
		lbs = append(lbs, &fleet.LB{Balancer: heldLB{held: remote.Held{Far: near, Sent: time.Minute, Received: time.Duration(i)}}, Name: addr})
		want = append(want, remote.Held{Far: near, Sent: time.Minute, Received: time.Duration(i)})
	}
	servers := map[*fleet.LB][]journal.Server{lbs[0]: {keyed("10.0.0.9:80")}, lbs[1]: {keyed("10.0.0.9:80")}}
	c := lbCounter{last: &sync.Map{}, lbs: lbs, servers: func(lb *fleet.LB) []journal.Server { return servers[lb] }}
	if got, err := c.CountHeld(t.Context()); err != nil || got.Open != 2 || !slices.Equal(got.Held, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := c.Count(t.Context()); err != nil || got.Open != 2 || got.Held != nil {
		t.Errorf("%+v, %v", got, err)
	}
	// One LB has no server of the backend. If none has, nothing was counted.
	servers[lbs[0]] = nil
	if got, err := c.Count(t.Context()); err != nil || got.Open != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	servers = nil
	if got, err := c.Count(t.Context()); err == nil {
		t.Errorf("no error, but %+v", got)
	}
}

// A server that is added to nginx during an operation is counted where an LB counts, and refused where
// the backend does: its counter has the ports of the beginning.
func TestServerIsAddedMeanwhile(t *testing.T) {
	w, _ := waitOf(holding(nil), nil)
	w.o.lbs = fleet.Fleet{{Balancer: &sickLB{}, Name: fleet.ThisMachine}}
	r := w.rows[0]
	r.plan.Settings.Counter, r.plan.Ports = spec.CounterLB, []uint16{80}
	c := w.o.newCounter(r).(lbCounter)
	was := c.servers(w.o.lbs[0])
	report := *w.lbs[0].Report
	added := balancer.Server{Located: journal.Located{Server: keyed(r.plan.Targets[0] + ":8081")}}
	report.Servers = append(slices.Clone(report.Servers), added)
	part := plan.LBPlan{LB: w.lbs[0].LB, Report: &report}
	if err := w.checkCounted(part); err != nil {
		t.Errorf("counted by the LB: %v", err)
	}
	w.o.learn(0, part)
	if now := c.servers(w.o.lbs[0]); len(now) != len(was)+1 {
		t.Errorf("counts %v, and counted %v before", now, was)
	}
	r.Host, r.Sockets = namedHost{}, remote.NewCounter(namedHost{}, r.plan.Ports)
	if err := w.checkCounted(part); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), added.Address) {
		t.Errorf("counted on the backend: %v", err)
	}
}

// A holding is a counter with connections that never end.
type holding []remote.Held

func (h holding) Count(context.Context) (remote.Count, error) {
	return remote.Count{Open: len(h)}, nil
}

func (h holding) CountHeld(context.Context) (remote.Count, error) {
	return remote.Count{Open: len(h), Held: h}, nil
}

func (holding) Close() error { return nil }

// A reading names a few connections, and after a while why it does not get on.
func TestReadingsSayWhoHolds(t *testing.T) {
	for _, test := range []struct {
		name          string
		kind          spec.Kind
		onTimeout     spec.OnTimeout
		service, far  string
		first, second time.Duration // worker_shutdown_timeout of two LBs
		sent          time.Duration
		want          event.Stuck
		idle          spec.Seconds
	}{
		{"what can be told", spec.Drain, spec.TimeoutRollback, "app", "10.0.0.1", time.Hour, 2 * time.Hour, 20 * time.Second, event.Stuck{Reason: event.StuckSilent, ShutdownTimeout: 7200, CanStop: true}, 20},
		{"one LB cuts nothing", spec.Drain, spec.TimeoutLeave, "app", "10.0.0.1", time.Hour, 0, 20 * time.Second, event.Stuck{Reason: event.StuckSilent, CanStop: true}, 20},
		{"it stops anyway", spec.Drain, spec.TimeoutStop, "app", "10.0.0.1", 0, 0, 20 * time.Second, event.Stuck{Reason: event.StuckSilent}, 20},
		{"nothing to stop", spec.Drain, spec.TimeoutRollback, "", "10.0.0.1", 0, 0, 20 * time.Second, event.Stuck{Reason: event.StuckSilent}, 20},
		{"an undrain that goes back", spec.Undrain, spec.TimeoutRollback, "app", "10.0.0.1", 0, 0, 20 * time.Second, event.Stuck{Reason: event.StuckSilent}, 20},
		{"another client, which no nginx cuts", spec.Drain, spec.TimeoutRollback, "app", "10.0.0.9", time.Hour, time.Hour, -1, event.Stuck{Reason: event.StuckClients, CanStop: true}, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var open holding
				for port := range 20 {
					open = append(open, remote.Held{Far: netip.AddrPortFrom(netip.MustParseAddr(test.far), uint16(1000+port)), Sent: test.sent, Received: test.sent})
				}
				w, l := waitOf(open, nil, func(s *spec.Spec) {
					s.Kind, s.OnTimeout, s.Service, s.Interval, s.Timeout = test.kind, test.onTimeout, spec.Units(test.service), time.Second, 12*time.Second
				})
				w.o.plan.LBs = nil
				for i, cut := range []time.Duration{test.first, test.second} {
					w.o.plan.LBs = append(w.o.plan.LBs, plan.LBPlan{LB: string(rune('a' + i)), Report: &balancer.Report{ShutdownTimeout: cut, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})}}})
				}
				if v := w.await(t.Context(), plan.Draining, false); v.Outcome != StepTimedOut {
					t.Fatalf("%+v", v)
				}
				told := eventsOf[*event.Waiting](l)
				first, last := told[0], told[len(told)-1]
				if first.Stuck != nil || last.Stuck == nil {
					t.Fatalf("stuck: %+v at first, %+v at last", first.Stuck, last.Stuck)
				}
				test.want.Connections, test.want.OpenFor = len(open), max(last.Elapsed, test.idle)
				lb := ""
				if test.want.Reason != event.StuckClients {
					lb = "a"
				}
				if *last.Stuck != test.want || len(last.Held) != event.MaxHeld || last.Held[0] != (event.Held{Address: test.far, Port: 1000, LB: lb, OpenFor: test.want.OpenFor, Idle: test.idle}) {
					t.Errorf("%+v, %+v; want %+v", *last.Stuck, last.Held, test.want)
				}
				for _, e := range told {
					valid(e)
				}
			})
		})
	}
}

// The history keeps a wait's first reading, the changes and its last one, and no more than
// a curve needs.
func TestHistoryOfAWait(t *testing.T) {
	const hour = 3600
	stuck := func(reason event.StuckReason) *event.Stuck { return &event.Stuck{Reason: reason} }
	for _, test := range []struct {
		name  string
		every spec.Seconds // a reading
		until spec.Seconds
		open  func(at spec.Seconds) (int, *event.Stuck)
		kept  []spec.Seconds // nil: not all of them
		most  int
	}{
		{"an hour of the same", 0.5, hour, func(at spec.Seconds) (int, *event.Stuck) {
			switch {
			case at < 10:
				return 5, nil
			case at < 600:
				return 5, stuck(event.StuckSilent)
			}
			return 5, stuck(event.StuckUpgraded)
		}, []spec.Seconds{0, 10, 600, hour}, 4},
		{"an hour, and then the end", 0.5, hour, func(at spec.Seconds) (int, *event.Stuck) {
			if at < hour-1 {
				return 5, nil
			}
			return 0, nil
		}, []spec.Seconds{0, hour - 1, hour}, 3},
		{"another one at every reading", 0.01, hour, func(at spec.Seconds) (int, *event.Stuck) { return int(1e6 - at*100), nil }, nil, maxReadings},
		{"ten hours", 0.5, 10 * hour, func(at spec.Seconds) (int, *event.Stuck) { return int(1e6 - at*2), nil }, nil, maxReadings},
		{"a moment", 0.01, 0.02, func(at spec.Seconds) (int, *event.Stuck) { return 0, nil }, []spec.Seconds{0, 0.02}, 2},
		{"one reading", 1, 0, func(at spec.Seconds) (int, *event.Stuck) { return 0, nil }, []spec.Seconds{0}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, _ := waitOf(nil, &watchedLB{})
			w.o.options.Emit = func(event.Event) {}
			var last *event.Waiting
			for n := 0; ; n++ {
				last = &event.Waiting{Header: event.Header{Target: "app-1"}, Elapsed: spec.Seconds(n) * test.every}
				last.Open, last.Stuck = test.open(last.Elapsed)
				w.o.emit(last)
				if last.Elapsed >= test.until {
					break
				}
			}
			w.o.keepLast("app-1")
			w.o.keepLast("app-1")
			w.o.keepLast("another")
			var at []spec.Seconds
			for _, line := range w.o.lbs[0].TakeHistory() {
				e, err := event.Parse(line)
				if err != nil {
					t.Fatal(err)
				}
				at = append(at, e.(*event.Waiting).Elapsed)
			}
			if test.kept != nil && !slices.Equal(at, test.kept) || len(at) > test.most || len(at) < min(test.most, 100) {
				t.Errorf("%d are kept, want at most %d: %v, want %v", len(at), test.most, at, test.kept)
			}
			if at[0] != 0 || at[len(at)-1] != last.Elapsed {
				t.Errorf("kept from %v to %v, want the first and the last", at[0], at[len(at)-1])
			}
			for i := 1; i < len(at); i++ { // no gap is wider than a step, where something changes all the time
				if test.kept == nil && at[i]-at[i-1] > at[i]/curveSteps+2*test.every {
					t.Errorf("nothing is kept between %v and %v", at[i-1], at[i])
				}
			}
		})
	}
}

// The last reading of a wait is in the history though nothing had changed.
func TestHistoryHasTheLastReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := waitOf(&script{counts: []int{2}}, &watchedLB{}, func(s *spec.Spec) { s.Timeout = 5 * time.Second })
		if v := w.await(t.Context(), plan.Draining, false); v.Outcome != StepTimedOut {
			t.Fatalf("%+v", v)
		}
		lines := w.o.lbs[0].TakeHistory()
		e, err := event.Parse(lines[len(lines)-1])
		if err != nil || len(lines) != 2 || e.(*event.Waiting).Elapsed.Duration() != 5*time.Second {
			t.Errorf("%s, %v", lines, err)
		}
	})
}

// Many backends share what is kept, and each has its first reading and its last.
func TestHistoryOfManyWaits(t *testing.T) {
	w, _ := waitOf(nil, &watchedLB{})
	w.o.options.Emit = func(event.Event) {}
	w.o.plan.Backends = make([]plan.Backend, 50)
	for n := range 1000 {
		for i := range w.o.plan.Backends {
			w.o.emit(&event.Waiting{Header: event.Header{Target: string(rune('A' + i))}, Open: 1000 - n, Elapsed: spec.Seconds(n)})
		}
	}
	for i := range w.o.plan.Backends {
		w.o.keepLast(string(rune('A' + i)))
	}
	if n := len(w.o.lbs[0].TakeHistory()); n != maxReadings+2*50 {
		t.Errorf("%d are kept, want %d and the first and last of each", n, maxReadings)
	}
}

// An awaitedLB has some connections, and waits as an LB does.
type awaitedLB struct {
	balancer.Balancer
	open  int
	after time.Duration // when one ends
	busy  bool          // too many calls wait
	err   error
	calls int
}

func (l *awaitedLB) Connections(ctx context.Context, q balancer.ConnectionsQuery) (remote.Count, error) {
	l.calls++
	if q.Wait > 0 && l.err == nil && !l.busy && q.Known == l.open {
		limit := min(q.Wait, 10*time.Second)
		if l.after > 0 && l.after <= limit {
			l.open--
			limit = l.after
		}
		l.after -= limit
		_ = remote.Sleep(ctx, limit)
	}
	return remote.Count{Open: l.open}, l.err
}

// TestAwait: a wait ends with the first connection that ends on an LB, and otherwise with its limit. It
// does not ask an LB again and again.
func TestAwait(t *testing.T) {
	const limit = 30 * time.Second
	for _, test := range []struct {
		name  string
		lbs   []*awaitedLB
		want  time.Duration
		calls int // at most
	}{
		{"nothing ends", []*awaitedLB{{open: 1}}, limit, 5},
		{"one ends", []*awaitedLB{{open: 1, after: time.Second}}, time.Second, 2},
		{"one ends late", []*awaitedLB{{open: 1, after: 12 * time.Second}}, 12 * time.Second, 3},
		{"on the second LB", []*awaitedLB{{open: 3}, {open: 1, after: time.Second}}, time.Second, 4},
		{"too many wait", []*awaitedLB{{open: 1, busy: true}}, limit, 2},
		{"one LB cannot be asked", []*awaitedLB{{open: 1, err: errFault}, {open: 1, after: time.Second}}, time.Second, 4},
		{"no LB", nil, limit, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var lbs fleet.Fleet
			for i, lb := range test.lbs {
				lbs = append(lbs, &fleet.LB{Balancer: lb, Name: fmt.Sprint("lb", i)})
			}
			c := lbCounter{last: &sync.Map{}, lbs: lbs, servers: func(*fleet.LB) []journal.Server { return []journal.Server{{}} }}
			_, _ = c.Count(t.Context())
			began, calls := time.Now(), 0
			c.Await(t.Context(), limit)
			for _, lb := range test.lbs {
				calls += lb.calls
			}
			if took := time.Since(began); took != test.want || calls > test.calls {
				t.Errorf("%s: %s and %d calls, want %s and at most %d", test.name, took, calls, test.want, test.calls)
			}
		})
	}
}
