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

// A script is a counter that reads what it is told to, and then its last value
// for ever. A negative number is a reading that fails.
type script struct {
	counts []int
	reads  int
	onRead func(n int)
}

func (s *script) Count(context.Context) (remote.Count, error) {
	i := min(s.reads, len(s.counts)-1)
	s.reads++
	if s.onRead != nil {
		s.onRead(s.reads)
	}
	if s.counts[i] < 0 {
		return remote.Count{}, errors.New("the line is cut")
	}
	return remote.Count{Open: s.counts[i]}, nil
}

func (*script) Close() error { return nil }

// A watchedLB is watched during a wait.
type watchedLB struct {
	balancer.Balancer // nil: nothing else is asked

	mu       sync.Mutex
	held     []int // buffered requests, look after look; the last number stays; -1: not known
	drift    *balancer.Drift
	errs     []error // of the looks, one after the other; then none
	looks    int
	buffered int // looks for buffered requests
}

func (w *watchedLB) Watch(_ context.Context, r balancer.WatchRequest) (balancer.Watched, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	if len(w.errs) > 0 {
		err := w.errs[0]
		w.errs = w.errs[1:]
		if err != nil {
			return balancer.Watched{}, err
		}
	}
	seen := balancer.Watched{Drift: w.drift, Buffered: -1}
	if r.Buffered && len(w.held) > 0 {
		seen.Buffered = w.held[min(w.buffered, len(w.held)-1)]
		w.buffered++
	}
	return seen, nil
}

// add adds a backend whose counter is made up.
func (b *batch) add(name string, c backend.Counter) {
	sp := b.o.plan.Spec
	b.rows = append(b.rows, &row{Backend: &backend.Backend{Name: name, Counter: c}, plan: plan.Backend{Name: name, Targets: sp.Targets, Settings: sp.Settings}})
}

// waitOf is the batch of a drain with a counter and an LB that are made up.
func waitOf(c backend.Counter, lb *watchedLB, change ...func(*spec.Spec)) (*batch, *told) {
	sp := spec.Default(spec.Drain)
	sp.Interval, sp.Timeout = time.Millisecond, time.Minute
	for _, ch := range change {
		ch(&sp)
	}
	l := &told{}
	sp.Targets = []string{"10.0.0.1"}
	server := balancer.Server{Located: journal.Located{Server: keyed("10.0.0.1:80"), Down: true}, Managed: true}
	lbs := []plan.LBPlan{{LB: fleet.ThisMachine, Report: &balancer.Report{Servers: []balancer.Server{server}}}}
	o := &Operation{options: Options{Emit: l.emit, bounds: bounds{settle: 1}}, plan: &plan.Plan{Spec: sp, LBs: lbs}}
	if lb != nil {
		o.lbs = fleet.Fleet{{Balancer: lb, Name: fleet.ThisMachine}}
	}
	o.whole = &batch{o: o, lbs: lbs}
	o.whole.add("app-1", c)
	return o.whole, l
}

// Several backends are waited for side by side, and the first that fails ends
// the wait for all.
func TestWaitForSeveralBackends(t *testing.T) {
	s, other := &script{counts: []int{3, 2, 0}}, &script{counts: []int{9, 8, 7, 0}}
	w, _ := waitOf(s, &watchedLB{})
	w.add("app-2", other)
	if v := w.await(t.Context(), plan.Draining, false); v.Err != nil || s.reads != 5 || other.reads != 6 {
		t.Errorf("%+v after %d and %d readings", v, s.reads, other.reads)
	}
	for _, counts := range [][2]int{{0, 4}, {4, 0}} {
		w, _ = waitOf(&script{counts: counts[:1]}, &watchedLB{}, func(s *spec.Spec) { s.Timeout = 50 * time.Millisecond })
		w.add("app-2", &script{counts: counts[1:]})
		if v := w.await(t.Context(), plan.Draining, false); v.Outcome != StepTimedOut {
			t.Errorf("%v: %+v", counts, v)
		}
	}
}

// Each backend has its own threshold.
func TestThresholdOfOneOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := waitOf(&script{counts: []int{2}}, &watchedLB{})
		w.rows[0].plan.Settings.Threshold = 2
		w.add("app-2", &script{counts: []int{2}})
		v := w.await(t.Context(), plan.Draining, false)
		if v.Outcome != StepTimedOut || !slices.Equal(namesOf(v.Failed), []string{"app-2"}) {
			t.Errorf("%+v, failed for %v", v, namesOf(v.Failed))
		}
	})
}

// No LB is another client of a backend, whichever.
func TestLBsAreNoOtherClients(t *testing.T) {
	w, _ := waitOf(nil, &watchedLB{})
	w.o.plan.LBs = nil
	var want []netip.Addr
	for i := range byte(2) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, i})
		want = append(want, a)
		w.o.plan.LBs = append(w.o.plan.LBs, plan.LBPlan{Report: &balancer.Report{Addresses: []netip.Addr{a}}})
	}
	if got := w.wait(w.rows[0], newLookout(w), false).Known; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Whose app is stopped anyway, or left, ends nobody else's wait: each backend has its own
// time, also together. Only a rollback is everyone's.
func TestTimeoutOfOneOfSeveral(t *testing.T) {
	for _, test := range []struct {
		do      spec.OnTimeout
		drained bool
	}{{spec.TimeoutStop, true}, {spec.TimeoutLeave, true}, {spec.TimeoutRollback, false}} {
		synctest.Test(t, func(t *testing.T) {
			busy := slices.Repeat([]int{1}, 1000)
			w, _ := waitOf(&script{counts: busy[:1]}, &watchedLB{}, func(s *spec.Spec) {
				s.Together, s.OnTimeout, s.Timeout, s.Interval = true, test.do, time.Second, time.Second
			})
			w.add("app-2", &script{counts: append(busy, 0)})
			w.rows[1].plan.Settings.Timeout = time.Hour
			v := w.await(t.Context(), plan.Draining, false)
			if drained := len(v.Failed) == 1 && v.Failed[0].Name == "app-1"; v.Outcome != StepTimedOut || drained != test.drained {
				t.Errorf("%s: %+v, failed for %v", test.do, v, namesOf(v.Failed))
			}
		})
	}
}

// The wait of a rollback looks whether nginx sends nothing to what is stopped again, and at no
// other client.
func TestWaitOfARollback(t *testing.T) {
	s, lb := &script{counts: []int{0}}, &watchedLB{}
	w, _ := waitOf(s, lb)
	if v := w.await(t.Context(), plan.Draining, true); v.Err != nil || s.reads != backend.LowReadings || lb.looks == 0 {
		t.Errorf("%+v after %d readings and %d looks", v, s.reads, lb.looks)
	}
}

// As long as earlier workers hold what they may yet send, a backend is not
// drained, and the readings that count come after the look that finds none.
func TestWaitForBufferedRequests(t *testing.T) {
	lb, s := &watchedLB{held: []int{3, 3, 1, 0}}, &script{counts: []int{0}}
	w, l := waitOf(s, lb)
	if v := w.await(t.Context(), plan.Draining, false); v.Err != nil || lb.buffered != 4 || s.reads != backend.LowReadings+3 {
		t.Errorf("%+v after %d looks and %d readings, want 4 and %d", v, lb.buffered, s.reads, backend.LowReadings+3)
	}
	if told := eventsOf[*event.Buffered](l); len(told) != 1 || told[0].Requests != 3 || told[0].GaveUp {
		t.Errorf("told %+v, want it once", told)
	}
	// Where they cannot be counted, the connections alone have to do.
	lb, s = &watchedLB{held: []int{-1}}, &script{counts: []int{0}}
	w, l = waitOf(s, lb)
	if v := w.await(t.Context(), plan.Draining, false); v.Err != nil || s.reads != backend.LowReadings || len(eventsOf[*event.Buffered](l)) != 0 {
		t.Errorf("%+v after %d readings", v, s.reads)
	}
}

// What never goes away, such as a long download from nginx itself, does not hold
// up the drain for ever.
func TestWaitForBufferedRequestsEnds(t *testing.T) {
	w, l := waitOf(nil, &watchedLB{held: []int{1}})
	look := newLookout(w)
	if held, err := look.look(t.Context(), false, true); !held || err != nil {
		t.Errorf("the first look: %t, %v", held, err)
	}
	look.since = look.since.Add(-bufferedGrace)
	for range 3 {
		if held, err := look.look(t.Context(), false, true); held || err != nil {
			t.Errorf("it goes on for ever: %t, %v", held, err)
		}
	}
	if told := eventsOf[*event.Buffered](l); len(told) != 2 || told[0].GaveUp || !told[1].GaveUp {
		t.Errorf("told %+v", told)
	}
	// The time begins with the first request that is held, not with the first look.
	synctest.Test(t, func(t *testing.T) {
		w, _ := waitOf(nil, &watchedLB{held: []int{0, 1}})
		look := newLookout(w)
		if held, err := look.look(t.Context(), false, true); held || err != nil {
			t.Errorf("nothing is held: %t, %v", held, err)
		}
		time.Sleep(2 * bufferedGrace)
		if held, err := look.look(t.Context(), false, true); !held || err != nil {
			t.Errorf("a request that came late is not waited for: %t, %v", held, err)
		}
	})
}

// The wait looks now and then whether the LB still keeps requests away, and
// always right before the end.
func TestWaitWatches(t *testing.T) {
	lb := &watchedLB{}
	w, _ := waitOf(&script{counts: []int{0}}, lb, func(s *spec.Spec) { s.Interval = time.Hour })
	if v := w.await(t.Context(), plan.Draining, false); v.Err != nil || lb.looks != 2 {
		t.Errorf("%+v after %d looks", v, lb.looks)
	}
	for _, d := range []struct {
		drift balancer.Drift
		want  string
	}{
		{balancer.Drift{Reason: balancer.DriftDownRemoved, Places: []string{"a", "b"}}, "down was removed from the configuration by another process: a, b"},
		{balancer.Drift{Reason: balancer.DriftDownRemoved, Places: []string{"a"}, Reloaded: true}, "down was removed from the configuration by another process, and nginx was reloaded: a"},
		{balancer.Drift{Reason: balancer.DriftServerRemoved, Places: []string{"a"}}, "the server was removed from the configuration by another process: a"},
		{balancer.Drift{Reason: balancer.DriftUnknown, Places: []string{"/x"}, Reloaded: true}, "another process reloaded nginx and then changed /x: what nginx has loaded is not known"},
	} {
		w, _ := waitOf(&script{counts: []int{1}}, &watchedLB{drift: &d.drift})
		if v := w.await(t.Context(), plan.Draining, false); v.Outcome != StepError || v.Err.Error() != d.want {
			t.Errorf("got %+v, want %q", v, d.want)
		}
	}
}

// Somebody who writes a file not atomically leaves it half written for a moment.
// That is looked at again, but never taken for seen.
func TestLookThatFails(t *testing.T) {
	const says = "whether nginx still keeps requests away could not be seen: "
	broken := errors.New("half written")
	lb := &watchedLB{errs: []error{broken, broken, nil, broken, broken, broken}}
	w, _ := waitOf(nil, lb)
	look := newLookout(w)
	for n, wantHold := range []bool{true, true, false, true, true} {
		hold, err := look.look(t.Context(), true, false)
		if err != nil || hold != wantHold {
			t.Errorf("look %d: hold %t, %v; want %t and no error", n+1, hold, err, wantHold)
		}
	}
	// For too long.
	look.failing = time.Now().Add(-failingIntervals * w.o.plan.Spec.Interval)
	if _, err := look.look(t.Context(), true, false); err == nil || !errors.Is(err, broken) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %q", err, says)
	}
	// A look in between that has seen begins the time anew.
	synctest.Test(t, func(t *testing.T) {
		w, _ := waitOf(nil, &watchedLB{errs: []error{broken, nil, broken}})
		look := newLookout(w)
		for n, wantHold := range []bool{true, false, true} {
			if hold, err := look.look(t.Context(), true, false); err != nil || hold != wantHold {
				t.Errorf("look %d, much later: hold %t, %v; want %t and no error", n+1, hold, err, wantHold)
			}
			time.Sleep(2 * failingIntervals * w.o.plan.Spec.Interval)
		}
	})
	// The last look before the stop must have seen: a reading beside one that failed
	// does not count.
	lb = &watchedLB{errs: []error{nil, broken, broken, nil}}
	w, _ = waitOf(&script{counts: []int{0}}, lb, func(s *spec.Spec) { s.Interval = time.Hour })
	if v := w.await(t.Context(), plan.Draining, false); v.Err != nil || lb.looks != 4 {
		t.Errorf("%+v after %d looks, want 4", v, lb.looks)
	}
	// Before its time, nothing is looked at.
	lb = &watchedLB{}
	w, _ = waitOf(nil, lb, func(s *spec.Spec) { s.Interval = time.Hour })
	_, _ = newLookout(w).look(t.Context(), false, false)
	if lb.looks != 0 {
		t.Errorf("%d looks", lb.looks)
	}
}

// A sickLB is one whose servers answer one check after the other as told.
type sickLB struct {
	balancer.Balancer
	checks []error // and then the last one
	n      int
}

func (s *sickLB) Health(context.Context, balancer.HealthCheck) error {
	s.n++
	return s.checks[min(s.n, len(s.checks))-1]
}

func (*sickLB) Done() <-chan struct{} { return nil }

func TestHealthMustPassSeveralTimes(t *testing.T) {
	sick := errors.New("connection refused")
	check := func(limit time.Duration, checks ...error) (Verdict, *sickLB, *told) {
		lb := &sickLB{checks: checks}
		w, l := waitOf(nil, nil, func(s *spec.Spec) { s.Kind, s.HealthTimeout = spec.Undrain, limit })
		w.o.lbs, w.o.options.bounds = fleet.Fleet{{Balancer: lb, Name: fleet.ThisMachine}}, shortBounds
		return w.await(t.Context(), plan.Checking, false), lb, l
	}
	v, lb, _ := check(time.Minute, nil)
	if v.Err != nil || lb.n != healthChecks || v.Detail.Checks != healthChecks {
		t.Errorf("%+v after %d checks", v, lb.n)
	}
	v, lb, l := check(time.Minute, sick, nil, nil, sick, nil)
	if told := eventsOf[*event.HealthChecked](l); v.Err != nil || lb.n != 4+healthChecks || told[2].Passed != 2 || told[3].Passed != 0 || told[3].Error != sick.Error() {
		t.Errorf("%+v after %d checks", v, lb.n)
	}
	v, _, _ = check(50*time.Millisecond, sick)
	if want := fmt.Sprintf("not healthy after 50ms (%s): connection refused", HealthText(spec.HealthTCP)); v.Outcome != StepError || !strings.HasPrefix(v.Err.Error(), want) {
		t.Errorf("got %v, want %q", v.Err, want)
	}
}

// The health of what is in the pool, or comes back to it, is asked for, and of nothing else.
func TestHealthOfWhatComesBack(t *testing.T) {
	for _, test := range []struct {
		name          string
		down, managed bool
		kind          spec.Kind
		force, asked  bool
	}{
		{"up", false, false, spec.Undrain, false, true},
		{"drained", true, true, spec.Undrain, false, true},
		{"down outside drainctl", true, false, spec.Undrain, false, false},
		{"down outside drainctl, with --force", true, false, spec.Undrain, true, true},
		{"down outside drainctl before a drain", true, false, spec.Drain, true, false},
	} {
		lb := &sickLB{checks: []error{nil}}
		w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Kind, s.Force = test.kind, test.force })
		w.o.lbs = fleet.Fleet{{Balancer: lb, Name: fleet.ThisMachine}}
		w.lbs[0].Report.Servers[0].Down, w.lbs[0].Report.Servers[0].Managed = test.down, test.managed
		if err := w.health(t.Context(), w.rows[0]); err != nil || (lb.n > 0) != test.asked {
			t.Errorf("%s: asked %d times, %v; want %t", test.name, lb.n, err, test.asked)
		}
	}
}

// Where no health comes, the log of the app is shown: of one that runs on, and of one that ended.
func TestLogOfASickApp(t *testing.T) {
	for state, says := range map[string]string{"active": "not healthy after 1m", "failed": "app is failed"} {
		synctest.Test(t, func(t *testing.T) {
			host := &scriptedHost{states: []string{state}, log: "boom"}
			w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Kind, s.HealthTimeout = spec.Undrain, time.Minute })
			w.o.lbs = fleet.Fleet{{Balancer: &sickLB{checks: []error{errFault}}, Name: fleet.ThisMachine}}
			w.rows[0].Units = unitsOn(host, "app")
			v := w.await(t.Context(), plan.Checking, false)
			if v.Outcome != StepError || !strings.Contains(v.Err.Error(), says) || !slices.Equal(v.Log, []string{"boom"}) {
				t.Errorf("%s: %v, the log is %q", state, v.Err, v.Log)
			}
		})
	}
}

// Only ss on another host can tell of other clients.
func TestOtherClientsNotLookedFor(t *testing.T) {
	host := remote.Local(nil)
	for _, test := range []struct {
		spec    func(*spec.Spec)
		backend plan.Backend
		want    bool
	}{
		{func(*spec.Spec) {}, plan.Backend{Name: "a", Address: "10.0.0.1", Ports: []uint16{80}}, true},
		{func(*spec.Spec) {}, plan.Backend{Name: "this machine", Ports: []uint16{80}}, false},
		{func(*spec.Spec) {}, plan.Backend{Name: "this machine", Sockets: []string{"/a.sock"}}, false},
		{func(s *spec.Spec) { s.Counter = spec.CounterLB }, plan.Backend{Name: "a", Address: "10.0.0.1", Ports: []uint16{80}}, false},
		{func(s *spec.Spec) { s.Counter, s.StatusURL = spec.CounterStubStatus, "http://localhost/" }, plan.Backend{Name: "a", Address: "10.0.0.1", Ports: []uint16{80}}, false},
	} {
		w, _ := waitOf(nil, nil, test.spec)
		test.backend.Settings = w.o.plan.Spec.Settings
		m := &row{Backend: &backend.Backend{Host: host}, plan: test.backend}
		m.Counter = w.o.newCounter(m)
		if looked := m.Sockets != nil && w.wait(m, newLookout(w), false).Others; looked != test.want {
			t.Errorf("%+v: looked for %t, want %t", test.backend, looked, test.want)
		}
	}
}

// A reading is told of when something has changed, at most once an interval.
func TestReadingsAreToldOnChange(t *testing.T) {
	for _, test := range []struct {
		name     string
		counts   []int
		interval time.Duration
		told     int
	}{
		{"nothing changes", []int{2}, time.Second, 1},
		{"all at once", []int{5, 4, 3, 2, 1}, time.Second, 2}, // the first, and the last of them a second later
		{"one after the other", []int{3, 2, 1}, time.Millisecond, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, l := waitOf(&script{counts: test.counts}, &watchedLB{}, func(s *spec.Spec) { s.Timeout, s.Interval = 20*time.Second, test.interval })
			if v := w.await(t.Context(), plan.Draining, false); v.Outcome != StepTimedOut {
				t.Fatalf("%+v", v)
			}
			if told := eventsOf[*event.Waiting](l); len(told) != test.told || told[len(told)-1].Open != test.counts[len(test.counts)-1] {
				t.Errorf("%s: told of %d readings, want %d", test.name, len(told), test.told)
			}
		})
	}
}

// A wait tells why the connections cannot be counted whenever the reason is another one.
func TestWaitTellsAnotherReason(t *testing.T) {
	o := &Operation{plan: &plan.Plan{Spec: spec.Default(spec.Drain)}}
	at := func(elapsed time.Duration, reason string) *event.Waiting {
		return &event.Waiting{Header: event.Header{Target: "a"}, Elapsed: spec.InSeconds(elapsed), Error: reason}
	}
	for i, test := range []struct {
		reason string
		want   bool
	}{{"", true}, {"the session broke off", true}, {"the session broke off", false}, {"connection refused", true}, {"connection refused", false}, {"", true}} {
		if got := o.worthTelling(at(time.Duration(i)*time.Minute, test.reason)); got != test.want {
			t.Errorf("%d, %q: told %t, want %t", i, test.reason, got, test.want)
		}
	}
}
