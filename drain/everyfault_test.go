package drain

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// TestEveryOperationFailsOnce runs a whole drain, and a whole undrain, with
// each of their operations failing once, hanging once, and with the process gone
// right before and right after it; the LB called directly, and through an agent.
// Whatever happens, the configuration is whole and accepted by nginx, the app
// runs unless the drain had come to its stop, and one undrain, or one resume,
// ends as it promises.
//
// Most of a case is waiting, so many are run at once, each nginx with its own
// share of the operations.
func TestEveryOperationFailsOnce(t *testing.T) {
	began := time.Now()
	m := &matrix{t: t, slots: make(chan struct{}, casesAtOnce), cases: map[string]int{}}
	for _, agent := range []bool{false, true} {
		for _, kind := range []spec.Kind{spec.Drain, spec.Undrain} {
			for _, f := range []fault{faultFail, faultHang, faultBefore, faultAfter, faultCut, faultKilled, faultLost} {
				crash := f == faultBefore || f == faultAfter
				if !agent && (f == faultCut || f == faultKilled || f == faultLost) {
					continue
				}
				for _, by := range []string{"undrain", "resume"} {
					if by == "undrain" || crash { // What did not crash is rolled back: there is nothing to resume.
						m.add(kindOfCase{agent, kind, f, by})
					}
				}
			}
		}
	}
	m.all.Wait()
	total := 0
	for _, name := range slices.Sorted(maps.Keys(m.cases)) {
		fmt.Printf("%4d %s\n", m.cases[name], name)
		total += m.cases[name]
	}
	fmt.Printf("every operation fails once: %d cases in %.0f s\n", total, time.Since(began).Seconds())
}

const (
	// casesAtOnce keeps the machine busy, and each case far from its limits.
	casesAtOnce = 16
	// sharesOfAKind is by how many rigs the operations of a kind are shared.
	sharesOfAKind = 1
	// maxOperations bounds a run: more would be a loop.
	maxOperations = 400
)

// A matrix is all cases of the test.
type matrix struct {
	t     *testing.T
	slots chan struct{}
	all   sync.WaitGroup

	mu    sync.Mutex
	cases map[string]int
}

// A kindOfCase is what its cases have in common.
type kindOfCase struct {
	agent bool
	kind  spec.Kind
	fault fault
	by    string // what mends it
}

func (k kindOfCase) String() string {
	how := "called"
	if k.agent {
		how = "agent"
	}
	return fmt.Sprintf("%s/%s/%s/%s", how, k.kind, k.fault, k.by)
}

// add runs the cases of one kind beside the others.
func (m *matrix) add(k kindOfCase) {
	for share := range sharesOfAKind {
		m.all.Go(func() {
			m.t.Run(fmt.Sprintf("%s/%d", k, share), func(t *testing.T) {
				n := m.share(t, k, share)
				m.mu.Lock()
				defer m.mu.Unlock()
				m.cases[k.String()] += n
			})
		})
	}
}

// share has one operation after the other go wrong, those of its share, until a
// run ends before its fault. It returns how many cases there were.
func (m *matrix) share(t *testing.T, k kindOfCase, share int) int {
	r := newRig(t)
	r.unit.onStop = func() {
		if r.served()[r.unit.addr] {
			t.Error("the app is about to be stopped, and nginx sends requests to it")
		}
	}
	if k.kind == spec.Undrain {
		if _, err := r.run(r.spec(spec.Drain)); err != nil {
			t.Fatalf("the drain before: %v", err)
		}
	}
	start := r.now()
	for n := 0; n*sharesOfAKind < maxOperations; n++ {
		m.slots <- struct{}{}
		f := r.newFaulty(k, n*sharesOfAKind+share+1)
		func() {
			defer func() { <-m.slots }()
			f.oneCase(k)
			r.rewind(start)
		}()
		if f.what == "" {
			return n
		}
	}
	t.Fatalf("a run with more than %d operations", maxOperations)
	return 0
}

func (r *rig) newFaulty(k kindOfCase, at int) *faulty {
	return &faulty{t: r.t, rig: r, agent: k.agent, kind: k.fault, at: at}
}

// shortBounds has what hangs when an end is written waited for a moment only.
var shortBounds = bounds{end: 300 * time.Millisecond, health: 10 * time.Millisecond, settle: 1}

// oneCase runs into the fault, and mends what it left.
func (f *faulty) oneCase(k kindOfCase) {
	f.t.Helper()
	err := f.run(f.rig.spec(k.kind))
	what := fmt.Sprintf("operation %d (%s) %s, the run ended with exit %d: %v", f.at, f.what, f.kind, spec.ExitOf(err), err)
	f.rig.holds(what, k.kind, err, f)
	f.rig.mend(what, k)
}

// run runs into the fault.
func (f *faulty) run(sp spec.Spec) error {
	f.t.Helper()
	hard, endHard := context.WithCancelCause(context.Background())
	defer endHard(nil)
	soft, endSoft := context.WithCancelCause(hard)
	defer endSoft(nil)
	f.interrupt, f.gone = func() { endSoft(spec.ErrInterrupted) }, func() { endHard(errGone) }
	err := run(hard, soft, sp, Options{Connect: f, Emit: f.told.emit, bounds: shortBounds})
	f.end()
	return err
}

// holds checks what must be so right after a fault.
func (r *rig) holds(what string, k spec.Kind, err error, f *faulty) {
	r.t.Helper()
	now := r.read()
	if now != r.was && now != r.drained() {
		r.t.Fatalf("%s\nthe configuration is neither the old nor the new:\n%s", what, now)
	}
	if out, err := exec.Command("nginx", "-t", "-q", "-c", r.conf).CombinedOutput(); err != nil {
		r.t.Fatalf("%s\nnginx -t: %s", what, out)
	}
	before, stopped := r.was, false
	if k == spec.Undrain {
		before, stopped = r.drained(), true
	}
	switch spec.ExitOf(err) {
	case spec.Done:
	case spec.Failed, spec.Refused, spec.Interrupted:
		if f.dead {
			break
		}
		// It says that everything is as before.
		if now != before {
			r.t.Fatalf("%s\nit says that everything is as before, and the configuration is not", what)
		}
		if r.unit.active() == stopped {
			r.t.Fatalf("%s\nit says that everything is as before, and the app is active: %t", what, r.unit.active())
		}
	case spec.Partial:
	default:
		r.t.Fatalf("%s\nended as %d", what, spec.ExitOf(err))
	}
	if !r.unit.active() && now == r.was {
		r.t.Fatalf("%s\nthe app is stopped, and nginx's configuration sends requests to it", what)
	}
	if k == spec.Drain && !r.unit.active() && !r.cameToItsStop() {
		r.t.Fatalf("%s\nthe app is stopped, and the drain had not come to its stop", what)
	}
}

// cameToItsStop tells whether the last drain in the history had announced its
// stop.
func (r *rig) cameToItsStop() bool {
	ctx := context.Background()
	entries, _, err := status.ReadHistory(ctx, r.spec(""), connector{r})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range slices.Backward(entries) {
		if e.Began.Kind != spec.Drain {
			continue
		}
		events, _, err := status.ReadOperation(ctx, r.spec(""), e.ID, connector{r})
		if err != nil {
			r.t.Fatal(err)
		}
		return slices.ContainsFunc(events, func(e event.Event) bool {
			s, ok := e.(*event.StepStarted)
			return ok && s.Step == plan.StepService && s.Direction == plan.Forward
		})
	}
	return false
}

// mend is the one command after a fault, and what it promises.
func (r *rig) mend(what string, k kindOfCase) {
	r.t.Helper()
	if k.by == "resume" && !r.resume(what) {
		return // what undrain does then is another kind's case
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil {
		r.t.Fatalf("%s\nundrain: %v", what, err)
	}
	if now := r.read(); now != r.was {
		r.t.Fatalf("%s\nafter undrain the bytes are not as at the start:\n%s", what, now)
	}
	if !r.unit.active() {
		r.t.Fatalf("%s\nafter undrain the app is not active", what)
	}
	if seen := r.served(); !seen[r.unit.addr] {
		r.t.Fatalf("%s\nafter undrain nginx sends nothing to the target: %v", what, seen)
	}
	s := r.state()
	if left := s.Unfinished(); len(left) > 0 {
		r.t.Fatalf("%s\nafter undrain the journal still has %s interrupted", what, left[0].ID)
	}
	if len(s.Marks) > 0 || len(s.Operations) > 0 {
		r.t.Fatalf("%s\nafter undrain the journal still has %d marks, and %s", what, len(s.Marks), listOf(s.Operations))
	}
}

// resume continues what was interrupted, if anything was, and checks that it
// ends as the operation would have.
func (r *rig) resume(what string) bool {
	r.t.Helper()
	s := r.state()
	if len(s.Unfinished()) == 0 {
		return false
	}
	sp, err := Resumed(context.Background(), r.spec(""), "", Options{Connect: connector{r}})
	if err != nil {
		r.t.Fatalf("%s\n%v", what, err)
	}
	if _, err := r.run(sp); err != nil {
		r.t.Fatalf("%s\nresume: %v", what, err)
	}
	want, active := r.drained(), false
	if sp.Kind == spec.Undrain {
		want, active = r.was, true
	}
	if now := r.read(); now != want || r.unit.active() != active {
		r.t.Fatalf("%s\nafter resume of the %s the app is active: %t, and the configuration:\n%s", what, sp.Kind, r.unit.active(), now)
	}
	return true
}
