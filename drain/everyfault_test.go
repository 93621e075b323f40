package drain

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"sync"
	"testing"
)

// TestEveryOperationFailsOnce runs a whole drain, and a whole undrain, with
// each of their operations on the host failing once, hanging once, and with the
// process gone right before and right after it. Whatever happens, the
// configuration is whole and accepted by nginx, the app runs unless the drain
// had come to its stop, and one undrain, or one resume, ends as it promises.
//
// Most of a case is waiting, so many are run at once, each nginx with its own
// share of the operations.
func TestEveryOperationFailsOnce(t *testing.T) {
	var all sync.WaitGroup
	var mu sync.Mutex
	cases := map[string]int{}
	slots := make(chan struct{}, casesAtOnce)
	for _, op := range []Operation{Drain, Undrain} {
		for _, kind := range []fault{faultFail, faultHang, faultBefore, faultAfter} {
			for _, by := range []string{"undrain", "resume"} {
				if by == "resume" && kind != faultBefore && kind != faultAfter {
					// What did not crash is rolled back: there is nothing to resume.
					continue
				}
				name := fmt.Sprintf("%s/%s/%s", op, kind, by)
				shares := sharesOf(kind)
				for share := range shares {
					all.Go(func() {
						t.Run(fmt.Sprintf("%s/%d", name, share), func(t *testing.T) {
							n := everyFault(t, slots, share, shares, op, kind, by)
							mu.Lock()
							defer mu.Unlock()
							cases[name] += n
						})
					})
				}
			}
		}
	}
	all.Wait()
	total := 0
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		fmt.Printf("%4d %s\n", cases[name], name)
		total += cases[name]
	}
	fmt.Printf("every operation fails once: %d cases\n", total)
}

const (
	// casesAtOnce keeps the machine busy, and each case far from its limits.
	casesAtOnce = 16
	// maxOperations bounds a run: more would be a loop.
	maxOperations = 400
)

// sharesOf is by how many rigs the operations of one kind of case are shared.
func sharesOf(kind fault) int {
	if kind == faultHang {
		// What hangs when a record is written is waited for, for noteLimit.
		return 10
	}
	return 4
}

// everyFault has one operation after the other go wrong, those of its share,
// until a run ends before its fault. It returns how many cases there were.
func everyFault(t *testing.T, slots chan struct{}, share, shares int, op Operation, kind fault, by string) int {
	r := newRig(t)
	start := r.now()
	if op == Undrain {
		if err := r.run(t.Context(), t.Context(), r.request(Drain, r.clean())); err != nil {
			t.Fatalf("the drain before: %v", err)
		}
		start = r.now()
	}
	for n := 0; n*shares < maxOperations; n++ {
		if f := r.faultAt(slots, n*shares+share+1, op, kind, by); f.what == "" {
			return n
		}
		r.rewind(start)
	}
	t.Fatalf("a run with more than %d operations", maxOperations)
	return 0
}

// faultAt is one case.
func (r *rig) faultAt(slots chan struct{}, at int, op Operation, kind fault, by string) *faulty {
	r.t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	f, hard, soft, done := r.newFaulty(kind, at)
	defer done()
	err := r.run(hard, soft, r.request(op, f))
	what := fmt.Sprintf("operation %d (%s) %s, the run ended with: %v", at, f.what, kind, err)
	r.holds(what, op, err, f)
	r.mend(what, op, by, f)
	return f
}

// holds checks what must be so right after a fault.
func (r *rig) holds(what string, op Operation, err error, f *faulty) {
	r.t.Helper()
	now := r.read()
	if now != r.was && now != r.drained() {
		r.t.Fatalf("%s\nthe configuration is neither the old nor the new:\n%s", what, now)
	}
	if out, err := exec.Command("nginx", "-t", "-q", "-c", r.conf).CombinedOutput(); err != nil {
		r.t.Fatalf("%s\nnginx -t: %s", what, out)
	}
	before, stopped := r.was, false
	if op == Undrain {
		before, stopped = r.drained(), true
	}
	switch KindOf(err) {
	case Done:
	case Failed, Refused, Interrupted:
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
	case PartDone:
	default:
		r.t.Fatalf("%s\nended as %d", what, KindOf(err))
	}
	if !r.unit.active() && now == r.was {
		r.t.Fatalf("%s\nthe app is stopped, and nginx's configuration sends requests to it", what)
	}
	if op == Drain && !r.unit.active() && !r.cameToItsStop() {
		r.t.Fatalf("%s\nthe app is stopped, and the drain had not come to its stop", what)
	}
}

// cameToItsStop tells whether the last operation had announced its stop.
func (r *rig) cameToItsStop() bool {
	ledger, err := ReadJournal(context.Background(), &LB{Host: r.clean()}, r.request(Drain, nil).StateDir)
	if err != nil {
		r.t.Fatal(err)
	}
	last := ledger.Operations[len(ledger.Operations)-1]
	return slices.ContainsFunc(last.Records, func(rec Record) bool {
		return rec.Kind == RecordStart && rec.Step == StepStop && rec.Way == Forward
	})
}

// mend is the one command after a fault, and what it promises.
func (r *rig) mend(what string, op Operation, by string, f *faulty) {
	r.t.Helper()
	ctx := context.Background()
	if by == "resume" {
		r.resume(ctx, what)
	}
	if err := r.run(ctx, ctx, r.request(Undrain, r.clean())); err != nil {
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
	ledger, err := ReadJournal(ctx, &LB{Host: r.clean()}, r.request(Drain, nil).StateDir)
	if err != nil {
		r.t.Fatalf("%s\njournal: %v", what, err)
	}
	if left := ledger.Unfinished(); len(left) > 0 {
		r.t.Fatalf("%s\nafter undrain the journal still has %s half-way", what, left[0].ID)
	}
}

// resume goes on with what was left half-way, if anything was, and checks that
// it ends as the operation would have.
func (r *rig) resume(ctx context.Context, what string) {
	r.t.Helper()
	lb := &LB{Host: r.clean(), Conf: r.conf}
	ledger, err := ReadJournal(ctx, lb, r.request(Drain, nil).StateDir)
	if err != nil {
		r.t.Fatalf("%s\njournal: %v", what, err)
	}
	if len(ledger.Unfinished()) == 0 {
		return
	}
	o, err := FindUnfinished(ledger, "")
	if err != nil {
		r.t.Fatalf("%s\n%v", what, err)
	}
	req := r.request(o.Operation, r.clean())
	if err := o.Restore(req); err != nil {
		r.t.Fatalf("%s\n%v", what, err)
	}
	if err := r.run(ctx, ctx, req); err != nil {
		r.t.Fatalf("%s\nresume: %v", what, err)
	}
	want, active := r.drained(), false
	if o.Operation == Undrain {
		want, active = r.was, true
	}
	if now := r.read(); now != want || r.unit.active() != active {
		r.t.Fatalf("%s\nafter resume of the %s the app is active: %t, and the configuration:\n%s", what, o.Operation, r.unit.active(), now)
	}
}
