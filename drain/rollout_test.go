package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// worked makes sure how often each backend was worked on.
func (p *pool) worked(want ...int) {
	p.t.Helper()
	for i, a := range p.apps {
		if a.works != want[i] {
			p.t.Errorf("%s was worked on %d times, want %d", a.name, a.works, want[i])
		}
	}
}

// ended makes sure how a run ended.
func (o outcome) ended(t *testing.T, exit spec.Exit, s spec.Standing, says string) {
	t.Helper()
	if o.exit != exit || o.stands().Standing != s || !strings.Contains(fmt.Sprint(o.err), says) {
		t.Errorf("exit %d, %q: %v; want exit %d, %q and %q", o.exit, o.stands().Standing, o.err, exit, s, says)
	}
}

// putBack undrains all of it, and makes sure that this is enough.
func (p *pool) putBack() {
	p.t.Helper()
	if out := p.run(p.spec(spec.Undrain)); out.exit != spec.Done {
		p.t.Errorf("undrain: exit %d: %v", out.exit, out.err)
	}
	p.whole()
	for _, lb := range p.lbs {
		if len(lb.state.Operations) > 0 {
			p.t.Errorf("%s: after the undrain the journal has %+v", lb.name, lb.state.Operations)
		}
	}
}

// TestRolloutReloads: the reload that brings a batch back takes the next one out,
// unless somebody is to look at it in between.
func TestRolloutReloads(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*spec.Rollout)
		reloads int
	}{
		{"three batches", func(*spec.Rollout) {}, 4},
		{"two batches", func(r *spec.Rollout) { r.Batch = "2" }, 3},
		{"a percentage", func(r *spec.Rollout) { r.Batch = "67%" }, 3},
		{"a small percentage", func(r *spec.Rollout) { r.Batch = "1%" }, 4},
		{"with a pause", func(r *spec.Rollout) { r.Pause = time.Millisecond }, 6},
		{"with a canary", func(r *spec.Rollout) { r.Canary, r.CanaryWait = true, time.Millisecond }, 5},
		{"a canary, and the rest at once", func(r *spec.Rollout) { r.Canary, r.CanaryWait, r.Batch = true, time.Millisecond, "2" }, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPool(t, 2)
			sp := p.spec(spec.Run)
			test.change(&sp.Rollout)
			out := p.run(sp)
			out.ended(t, spec.Done, "", "")
			for _, lb := range p.lbs {
				if lb.reloads != test.reloads {
					t.Errorf("%s was reloaded %d times, want %d", lb.name, lb.reloads, test.reloads)
				}
				if len(lb.state.Operations) > 0 {
					t.Errorf("%s: the journal has %+v", lb.name, lb.state.Operations)
				}
			}
			p.whole()
			p.worked(1, 1, 1)
			if out.result.Result != journal.ResultDone || len(out.result.Done) != 3 || !out.result.Changed {
				t.Errorf("result %+v", out.result)
			}
		})
	}
}

// TestRolloutPauses: a run pauses between two batches as long as the longer of --pause and, after
// the canary, --canary-wait says.
func TestRolloutPauses(t *testing.T) {
	const short, long = time.Millisecond, 2 * time.Millisecond
	for _, test := range []struct{ pause, canary, first time.Duration }{{long, short, long}, {short, long, long}} {
		p := newPool(t, 1)
		sp := p.spec(spec.Run)
		sp.Rollout.Pause, sp.Rollout.Canary, sp.Rollout.CanaryWait = test.pause, true, test.canary
		out := p.run(sp)
		out.ended(t, spec.Done, "", "")
		told := eventsOf[*event.Paused](out.told)
		if len(told) != 2 || told[0].For.Duration() != test.first || told[1].For.Duration() != test.pause {
			t.Errorf("--pause %s, --canary-wait %s: told %+v", test.pause, test.canary, told)
		}
	}
}

// TestRolloutOfWhatNotEveryLBHas rolls backends of which one LB has two, or one, in any place of
// the order. What was taken out there comes back there.
func TestRolloutOfWhatNotEveryLBHas(t *testing.T) {
	for lacks := range 3 {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("lacks %d, has one %t", lacks, alone), func(t *testing.T) {
				t.Parallel()
				p := newPool(t, 2)
				sp, lb := p.spec(spec.Run), p.lbs[1]
				lb.lines = slices.Delete(lb.lines, lacks, lacks+1)
				if alone {
					p.apps = append(p.apps, &poolApp{pool: p, name: "192.168.1.99", active: true})
					lb.lines = append(lb.lines[:1], poolLine{address: "192.168.1.99:8080", serving: true})
				}
				p.run(sp).ended(t, spec.Done, "", "")
				for _, lb := range p.lbs {
					for _, l := range lb.lines {
						if l.down || !l.serving {
							t.Errorf("%s: %s is down %t, served %t", lb.name, l.address, l.down, l.serving)
						}
					}
					if len(lb.state.Marks)+len(lb.state.Operations) > 0 {
						t.Errorf("%s: the journal has %+v", lb.name, lb.state)
					}
				}
			})
		}
	}
}

// TestRolloutGuards: a batch that leaves too few is refused, and nothing is touched.
func TestRolloutGuards(t *testing.T) {
	p := newPool(t, 2)
	sp := p.spec(spec.Run)
	sp.Rollout.Batch = "100%"
	out := p.run(sp)
	out.ended(t, spec.Refused, spec.Untouched, "would have no live server left")
	p.whole()
	p.worked(0, 0, 0)
	sp.Rollout.Batch, sp.MinUp = "2", 2
	p.run(sp).ended(t, spec.Refused, spec.Untouched, "fewer than 2")
	if n := p.lbs[0].reloads; n != 0 {
		t.Errorf("%d reloads", n)
	}
}

// TestRolloutWorkFails: a backend whose work fails stays out or is put back, and the
// run ends with it, or goes on.
func TestRolloutWorkFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		breaks func(*poolApp)
		change func(*spec.Spec) // the limits of the one that fails alone are short
		exit   spec.Exit
		stands spec.Standing
		says   string
		out    bool  // the one that fails stays out
		works  []int // of each
		done   int
	}{
		{"leave", func(a *poolApp) { a.noBoot = true }, func(*spec.Spec) {}, spec.Partial, spec.Changed, "reboot", true, []int{1, 0, 0}, 1},
		{"undrain", func(a *poolApp) { a.noBoot = true }, func(s *spec.Spec) { s.Rollout.OnFailure = spec.FailureUndrain }, spec.Failed, spec.AllBack, "reboot", false, []int{1, 0, 0}, 1},
		{"leave, and go on", func(a *poolApp) { a.noBoot = true }, func(s *spec.Spec) { s.Rollout.MaxFailures = 1 }, spec.Partial, spec.Changed, "reboot", true, []int{1, 0, 1}, 2},
		{"undrain, and go on", func(a *poolApp) { a.noBoot = true }, func(s *spec.Spec) { s.Rollout.MaxFailures, s.Rollout.OnFailure = 1, spec.FailureUndrain }, spec.Failed, spec.AllBack, "reboot", false, []int{1, 0, 1}, 2},
		{"in a batch with one that does not", func(a *poolApp) { a.noBoot = true }, func(s *spec.Spec) { s.Rollout.Batch = "2" }, spec.Partial, spec.Changed, "reboot", true, []int{1, 0, 0}, 1},
		{"does not come up", func(a *poolApp) { a.noStart = true }, func(s *spec.Spec) { s.Rollout.MaxFailures = 1 }, spec.Partial, spec.Changed, "systemctl start", true, []int{1, 1, 1}, 2},
		{"is sick", func(a *poolApp) { a.sick = true }, func(*spec.Spec) {}, spec.Partial, spec.Changed, "not healthy", true, []int{1, 1, 0}, 1},
		{"cannot be stopped", func(a *poolApp) { a.noStop = true }, func(*spec.Spec) {}, spec.Failed, spec.AllBack, "systemctl stop", false, []int{1, 0, 0}, 1},
		{"is not drained", func(a *poolApp) { a.open = 1 }, func(*spec.Spec) {}, spec.Failed, spec.AllBack, "not drained", false, []int{1, 0, 0}, 1},
		{"is not drained, and go on", func(a *poolApp) { a.open = 1 }, func(s *spec.Spec) { s.Rollout.MaxFailures = 1 }, spec.Failed, spec.AllBack, "not drained", false, []int{1, 0, 1}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			ill := p.apps[1]
			test.breaks(ill)
			sp := p.spec(spec.Run)
			test.change(&sp)
			shortenLimits(t, &sp, ill)
			out := p.run(sp)
			out.ended(t, test.exit, test.stands, test.says)
			p.worked(test.works...)
			if len(out.result.Done) != test.done || len(out.result.Done)+len(out.result.Untouched)+1 != 3 {
				t.Errorf("done %v, untouched %v", out.result.Done, out.result.Untouched)
			}
			if r := out.result.Backends; len(r) != 1 || r[0].Backend != ill.name {
				t.Errorf("ended in another way: %+v", r)
			}
			for _, lb := range p.lbs {
				var want []string
				if test.out {
					want = []string{ill.name + ":8080"}
				}
				if got := lb.out(); !slices.Equal(got, want) {
					t.Errorf("%s is without %v, want %v", lb.name, got, want)
				}
			}
			out.truthful(p)
			*ill = poolApp{pool: p, name: ill.name, active: ill.active, works: ill.works, boots: ill.boots}
			// What is done is not done again, the rest is, with as much time as it takes.
			again := p.resumes()
			again.PerBackend = nil
			p.run(again).ended(t, spec.Done, "", "")
			p.whole()
			for i, a := range p.apps {
				if a.works < 1 || test.works[i] == 1 && slices.Contains(out.result.Done, a.name) && a.works != 1 {
					t.Errorf("after the resume, %s was worked on %d times", a.name, a.works)
				}
			}
		})
	}
}

// TestRolloutAwaitsGenerations: no batch begins while an LB, whichever, has more earlier
// generations than allowed.
func TestRolloutAwaitsGenerations(t *testing.T) {
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			sp, limit := p.spec(spec.Run), 1
			sp.Targets, sp.Rollout.MaxGenerations = sp.Targets[:1], &limit
			slow := p.lbs[i]
			slow.earlier = limit + 1
			looks := 0
			p.at[slow.name+" watch"] = func() {
				if looks++; looks == 2 {
					slow.earlier = limit
				}
			}
			for _, lb := range p.lbs {
				p.at[lb.name+" stage"] = func() {
					if slow.earlier > limit {
						t.Errorf("%s is edited while %s has %d earlier generations", lb.name, slow.name, slow.earlier)
					}
				}
			}
			out := p.run(sp)
			out.ended(t, spec.Done, "", "")
			if told := eventsOf[*event.GenerationsAwaited](out.told); len(told) != 1 || told[0].LB != slow.name {
				t.Errorf("told %+v", told)
			}
			p.whole()
		})
	}
}

// resumes is the spec that continues with what was interrupted.
func (p *pool) resumes() spec.Spec {
	p.t.Helper()
	sp, err := Resumed(context.Background(), p.spec(spec.Run), "", Options{Connect: p})
	p.over()
	if err != nil {
		p.t.Error(err)
	}
	return sp
}

// resumed continues with what was interrupted.
func resumed(p *pool) outcome {
	p.t.Helper()
	return p.run(p.resumes())
}

// truthful makes sure that what a run says of what stands is so: an exit code that
// promises it is not taken at its word.
func (o outcome) truthful(p *pool) {
	p.t.Helper()
	s := o.stands()
	if s.Standing == spec.Untouched { // whatever was so before
		return
	}
	if o.exit != spec.Partial {
		p.serving()
		return
	}
	if s.Standing != spec.Changed {
		p.t.Errorf("exit 5, and it stands %q", s.Standing)
	}
	for _, lb := range p.lbs {
		all := slices.DeleteFunc(slices.Clone(s.LBs), func(l spec.LBStands) bool { return l.LB != lb.name })
		if len(all) == 0 {
			p.t.Errorf("nothing is said of %s", lb.name)
			continue
		}
		for _, l := range lb.lines {
			if lb.other(l.address) != "" {
				continue // it is not of this run
			}
			if o.keeps(p.app(l.address)) {
				if !l.down || l.serving {
					p.t.Errorf("%s has %s, and it is said that its undrain was rolled back", lb.name, l.address)
				}
				continue
			}
			i := slices.IndexFunc(all, func(s spec.LBStands) bool { return slices.Contains(s.Servers, l.address+" in pool") })
			said := i >= 0
			if (l.down || !l.serving) && !said && all[0].Unknown == "" {
				p.t.Errorf("%s is without %s, which is not said: %+v", lb.name, l.address, s)
			}
			if said && !l.down && l.serving && all[i].Edited && all[i].Loaded && all[i].Unknown == "" {
				p.t.Errorf("%s has %s, and it is said that it has not: %+v", lb.name, l.address, s)
			}
		}
	}
	for _, a := range p.apps {
		if o.keeps(a) {
			if a.active {
				p.t.Errorf("%s: the app runs, and it is said that its undrain was rolled back", a.name)
			}
			continue
		}
		if !a.active && !slices.ContainsFunc(s.Services, func(st spec.ServiceStand) bool { return st.Backend == a.name }) {
			p.t.Errorf("%s: the app is stopped, which is not said: %+v", a.name, s)
		}
	}
	if len(o.result.Next) == 0 {
		p.t.Error("it is not said what to do next")
	}
	for _, c := range o.result.Next {
		if c.Words[1] == "resume" && !slices.Contains(p.unfinished(), c.Words[2]) {
			p.t.Errorf("%q is said to be next, and the journals have nothing to resume", c.Words)
		}
	}
}

// keeps reports whether the run says that a backend is out as before its undrain.
func (o outcome) keeps(a *poolApp) bool {
	return o.result.Kind == spec.Undrain && slices.ContainsFunc(o.result.Backends, func(b event.BackendResult) bool {
		return b.Backend == a.name && b.Result == journal.ResultRolledBack
	})
}

// TestRolloutGate: when the gate is closed, no further batch begins.
func TestRolloutGate(t *testing.T) {
	p := newPool(t, 2)
	sp := p.spec(spec.Run)
	sp.Rollout.Gate = "false"
	out := p.run(sp)
	out.ended(t, spec.Refused, spec.Untouched, "the gate is closed: false ended with exit status 1")
	p.whole()
	p.worked(0, 0, 0)
	if len(p.lbs[0].state.Operations) > 0 || p.lbs[0].reloads > 0 || out.result.Changed || !out.result.GateClosed {
		t.Errorf("%+v after %d reloads", p.lbs[0].state.Operations, p.lbs[0].reloads)
	}

	closed := filepath.Join(t.TempDir(), "closed")
	sp.Rollout.Gate = "test ! -e " + closed
	p.at[p.apps[1].name+" systemctl reboot"] = func() { touch(t, closed) }
	out = p.run(sp)
	out.ended(t, spec.Failed, spec.AllBack, "the gate is closed: test ! -e")
	p.whole()
	p.worked(1, 1, 0)
	r := out.result
	if r.Result != journal.ResultPartial || !r.GateClosed || !slices.Equal(r.Untouched, []string{p.apps[2].name}) || len(r.Done) != 2 || r.Next[0].Words[1] != "resume" {
		t.Errorf("result %+v", r)
	}
	resumed(p).ended(t, spec.Failed, spec.AllBack, "the gate is closed")
	untouch(t, closed)
	resumed(p).ended(t, spec.Done, "", "")
	p.whole()
	p.worked(1, 1, 1)
}

// TestRolloutOnlyIf: who says no is left as it is, and is no part of the run.
func TestRolloutOnlyIf(t *testing.T) {
	p := newPool(t, 2)
	p.apps[1].skip = true
	sp := p.spec(spec.Run)
	sp.Rollout.OnlyIf = "test -e /run/reboot-required"
	out := p.run(sp)
	out.ended(t, spec.Done, "", "")
	p.worked(1, 0, 1)
	p.whole()
	if s := out.result.Skipped; len(s) != 1 || s[0].Backend != p.apps[1].name || p.lbs[0].reloads != 3 {
		t.Errorf("skipped %v, after %d reloads", s, p.lbs[0].reloads)
	}
	// Only 1 is a no: test(1), grep(1) and a signal end with more where there is no answer.
	for code, hint := range map[int]string{
		2: "0 is yes and 1 is no", 126: "it is a command and its words", 127: "it is a command and its words", 128 + 9: "0 is yes and 1 is no", 255: "0 is yes and 1 is no",
	} {
		sp.Rollout.OnlyIf = fmt.Sprint("ends-with ", code)
		p.run(sp).ended(t, spec.Failed, spec.Untouched, fmt.Sprintf("--only-if on %s: ends-with %d: exit status %d\nhint: %s", p.apps[0].name, code, code, hint))
		p.worked(1, 0, 1)
		p.whole()
	}
	sp.Rollout.OnlyIf = "test -e /run/reboot-required"
	for _, a := range p.apps {
		a.skip = true
	}
	out = p.run(sp)
	out.ended(t, spec.Done, "", "")
	if len(out.result.Skipped) != 3 || out.result.Changed || p.lbs[0].reloads != 3 {
		t.Errorf("skipped %v, changed %t", out.result.Skipped, out.result.Changed)
	}
}

// TestRolloutLeavesTheDrained: what somebody else has taken out is no part of the
// run, and stays theirs.
func TestRolloutLeavesTheDrained(t *testing.T) {
	p := newPool(t, 2)
	theirs := p.spec(spec.Drain)
	theirs.Targets = theirs.Targets[1:2]
	p.run(theirs).ended(t, spec.Done, "", "")
	before := p.lbs[0].state.Marks
	out := p.run(p.spec(spec.Run))
	out.ended(t, spec.Done, "", "")
	p.worked(1, 0, 1)
	if s := out.result.Skipped; len(s) != 1 || !strings.Contains(s[0].Reason, "drained by tester on pool") {
		t.Errorf("skipped %+v", s)
	}
	for _, lb := range p.lbs {
		if got := lb.out(); !slices.Equal(got, []string{p.apps[1].name + ":8080"}) || p.apps[1].active {
			t.Errorf("%s is without %v", lb.name, got)
		}
		if !slices.Equal(lb.state.Marks, before) || len(lb.state.Operations) != 1 || lb.state.Operations[0].Kind != journal.KindDrain {
			t.Errorf("%s: the journal has %+v", lb.name, lb.state)
		}
	}
	back := p.spec(spec.Undrain)
	back.Targets = theirs.Targets
	p.run(back).ended(t, spec.Done, "", "")
	p.whole()
}

// TestRolloutPlansNothingForTheSkipped: what a run leaves as it is, its plan does not describe as drained.
func TestRolloutPlansNothingForTheSkipped(t *testing.T) {
	p := newPool(t, 2)
	for _, lb := range p.lbs {
		lb.lines[0].down, lb.lines[0].serving = true, false
	}
	pl, err := DryRun(t.Context(), p.spec(spec.Run), Options{Connect: p})
	p.over()
	if err != nil || len(pl.Skipped) != 1 {
		t.Fatalf("%v, %+v", err, pl)
	}
	text, err := json.Marshal([]any{pl.Steps, pl.Unchecked})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), p.apps[0].name) || !strings.Contains(string(text), p.apps[1].name) {
		t.Errorf("%s is skipped, and described: %s", p.apps[0].name, text)
	}
}

// A dry run asks --only-if, and its batches are those of the real run. It asks nothing of a run that is
// refused, and tells an answer that is none.
func TestDryRunAsksOnlyIf(t *testing.T) {
	dry := func(p *pool, sp spec.Spec) (*plan.Plan, *told, error) {
		l := &told{}
		pl, err := DryRun(t.Context(), sp, Options{Connect: p, Emit: l.emit})
		p.over()
		return pl, l, err
	}
	p := newPool(t, 2)
	p.apps[1].skip = true
	sp := p.spec(spec.Run)
	sp.Rollout.OnlyIf = "test -e /run/reboot-required"
	pl, l, err := dry(p, sp)
	if err != nil {
		t.Fatal(err)
	}
	left := plan.Skip{Backend: p.apps[1].name, Reason: "--only-if: exit status 1"}
	text, _ := json.Marshal([]any{pl.Batches, pl.Steps, pl.Unchecked, pl.BatchDiffs, pl.Backends, pl.LBs[0].Report.Servers})
	if !slices.Equal(pl.Skipped, []plan.Skip{left}) || len(pl.Batches) != len(p.apps)-1 || strings.Contains(string(text), p.apps[1].name) || !strings.Contains(string(text), p.apps[2].name) {
		t.Errorf("left as it is: %v; the plan: %s", pl.Skipped, text)
	}
	if unchecked := strings.Join(pl.Unchecked, "\n"); strings.Contains(unchecked, "SSH") || strings.Contains(unchecked, "--only-if") || !strings.Contains(unchecked, "the right to reboot") {
		t.Errorf("not checked: %s", unchecked)
	}
	if len(l.events) > 0 {
		t.Errorf("%d events beside the plan", len(l.events))
	}
	p.worked(0, 0, 0)
	p.whole()

	sp.MinUp = 3 // the run is refused before it asks
	if pl, _, err := dry(p, sp); err != nil || pl.ExitCode != spec.Refused || len(pl.Skipped) > 0 || !strings.Contains(strings.Join(pl.Unchecked, "\n"), "which backends --only-if leaves out") {
		t.Errorf("refused: %v, %+v", err, pl)
	}
	sp.MinUp, sp.Rollout.OnlyIf = 1, "ends-with 2"
	if _, _, err := dry(p, sp); spec.ExitOf(err) != spec.Failed || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("no answer: %v", err)
	}
	sp.Rollout.OnlyIf = "test -e /run/reboot-required"
	for _, a := range p.apps {
		a.skip = true
	}
	if pl, _, err := dry(p, sp); err != nil || pl.ExitCode != spec.Done || len(pl.Skipped) != len(p.apps) || len(pl.Batches) > 0 {
		t.Errorf("nothing to do: %v, %+v", err, pl)
	}
}

// TestRolloutLeavesWhatIsDrainedOnOneLB: another operator drains a backend on one LB only. It is no part
// of the run, and their mark stays.
func TestRolloutLeavesWhatIsDrainedOnOneLB(t *testing.T) {
	for i := range 2 {
		p := newPool(t, 2)
		theirs := p.spec(spec.Drain)
		theirs.Targets, theirs.LBs, theirs.Service = theirs.Targets[1:2], theirs.LBs[i:i+1], ""
		p.run(theirs).ended(t, spec.Done, "", "")
		out := p.run(p.spec(spec.Run))
		out.ended(t, spec.Done, "", "")
		p.worked(1, 0, 1)
		if s := out.result.Skipped; len(s) != 1 || !strings.Contains(s[0].Reason, "drained by tester on pool") {
			t.Errorf("skipped %+v", s)
		}
		if lb := p.lbs[i]; len(lb.out()) != 1 || len(lb.state.Marks) != 1 {
			t.Errorf("%s is without %v, and has the marks %+v", lb.name, lb.out(), lb.state.Marks)
		}
		p.putBack()
	}
}

// TestRolloutCanary: one first, and then it is asked.
func TestRolloutCanary(t *testing.T) {
	for _, yes := range []bool{true, false} {
		p := newPool(t, 2)
		sp := p.spec(spec.Run)
		sp.Rollout.Canary, sp.Rollout.Batch = true, "2"
		asked := 0
		out := p.run(sp, func(o *Options) {
			o.Ask = func(_ context.Context, question string) (bool, error) {
				asked++
				p.whole() // and healthy, and back
				if !strings.Contains(question, p.apps[0].name) {
					t.Errorf("asked %q", question)
				}
				return yes, nil
			}
		})
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		p.whole()
		if yes {
			out.ended(t, spec.Done, "", "")
			p.worked(1, 1, 1)
			continue
		}
		out.ended(t, spec.Failed, spec.AllBack, "the answer was no")
		p.worked(1, 0, 0)
	}
}

// TestRolloutAfterAFailedBatch: what was not put back is not said to be, and nobody waits for it.
func TestRolloutAfterAFailedBatch(t *testing.T) {
	p := newPool(t, 2)
	p.apps[0].noBoot = true
	sp := p.spec(spec.Run)
	sp.Rollout.Canary, sp.Rollout.MaxFailures, sp.Rollout.Pause, sp.MinUp = true, 2, time.Millisecond, 0
	p.apps[1].noBoot = true // the second batch
	question := ""
	out := p.run(sp, func(o *Options) {
		o.Ask = func(_ context.Context, text string) (bool, error) {
			question = text
			return true, nil
		}
	})
	out.ended(t, spec.Partial, spec.Changed, "")
	if question != "192.168.1.10 failed; go on with the rest?" {
		t.Errorf("asked %q", question)
	}
	if paused := eventsOf[*event.Paused](out.told); len(paused) > 0 {
		t.Errorf("paused %d times", len(paused))
	}
	p.worked(0, 0, 1)
}

// TestRolloutCanaryAfterResume: what was answered is not asked again; what was not, is, or ends the run
// where nobody can be asked.
func TestRolloutCanaryAfterResume(t *testing.T) {
	for _, test := range []struct {
		name  string
		at    string // where the first process ends: a backend of the second batch, or before the answer
		asks  bool
		exit  spec.Exit
		works []int
	}{
		{"answered", "192.168.1.11", true, spec.Done, []int{1, 1, 1}},
		{"answered, and nobody is there", "192.168.1.11", false, spec.Done, []int{1, 1, 1}},
		{"not answered", "", true, spec.Done, []int{1, 1, 1}},
		{"not answered, and nobody is there", "", false, spec.Failed, []int{1, 1, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			sp := p.spec(spec.Run)
			sp.Rollout.Canary = true
			if test.at != "" {
				p.fault = poolFault{who: test.at, call: "systemctl stop", kind: crashBefore}
			}
			answer := func(o *Options) {
				o.Ask = func(context.Context, string) (bool, error) { return test.at != "", nil }
			}
			p.run(sp, answer)
			asked := 0
			out := p.run(p.resumes(), func(o *Options) {
				if test.asks {
					o.Ask = func(context.Context, string) (bool, error) {
						asked++
						return true, nil
					}
				}
			})
			if out.exit != test.exit {
				t.Errorf("exit %d: %v", out.exit, out.err)
			}
			if want := test.asks && test.at == ""; (asked > 0) != want {
				t.Errorf("asked %d times", asked)
			}
			p.worked(test.works...)
			p.serving()
		})
	}
}

// TestRolloutInterrupted: the first Ctrl-C ends the run when the batch is whole
// again, the second at once.
func TestRolloutInterrupted(t *testing.T) {
	second := "192.168.1.11"
	for _, test := range []struct {
		name, who, call string
		pause           bool
		works           []int
	}{
		{"in the wait", "lb0", "watch", false, nil}, // of the first batch
		{"in the stop", second, "systemctl stop", false, []int{1, 0, 0}},
		{"in the work", second, "systemctl reboot", false, []int{1, 1, 0}},
		{"in the start", second, "systemctl start", false, []int{1, 1, 0}},
		{"in the pause", "", "", true, []int{1, 0, 0}},
	} {
		for _, kind := range []poolFaultKind{interrupts, interruptsTwice} {
			t.Run(fmt.Sprintf("%s/%s", test.name, kind), func(t *testing.T) {
				t.Parallel()
				p := newPool(t, 2)
				p.fault = poolFault{who: test.who, call: test.call, kind: kind}
				sp := p.spec(spec.Run)
				if test.pause {
					sp.Rollout.Pause = 100 * time.Millisecond
				}
				paused := 0
				out := p.run(sp, func(o *Options) {
					emit := o.Emit
					o.Emit = func(e event.Event) {
						if _, ok := e.(*event.Paused); ok {
							paused++
							p.end(kind)
						}
						emit(e)
					}
				})
				if test.pause != (paused == 1) {
					t.Errorf("paused %d times", paused)
				}
				out.truthful(p)
				if kind == interrupts {
					out.ended(t, spec.Interrupted, spec.AllBack, "interrupted")
				} else if want := map[bool]spec.Exit{false: spec.Partial, true: spec.Interrupted}[test.pause]; out.exit != want {
					t.Errorf("exit %d: %v, want %d", out.exit, out.err, want)
				}
				if test.works != nil {
					p.worked(test.works...)
				}
				if len(out.result.Next) == 0 { // nothing is done that was to be remembered
					p.run(sp).ended(t, spec.Done, "", "")
				} else {
					resumed(p).ended(t, spec.Done, "", "")
				}
				p.whole()
			})
		}
	}
}

// TestRolloutHealthAfterResume: a backend that was out when drainctl ended comes
// back only when it is healthy.
func TestRolloutHealthAfterResume(t *testing.T) {
	p := newPool(t, 2)
	p.fault = poolFault{who: p.apps[1].name, call: "systemctl reboot", kind: crashAfter}
	p.run(p.spec(spec.Run))
	p.apps[1].sick = true
	sp := p.resumes()
	sp.HealthTimeout = 20 * time.Millisecond
	out := p.run(sp)
	out.ended(t, spec.Partial, spec.Changed, "not healthy")
	out.truthful(p)
	if got := p.lbs[0].out(); !slices.Equal(got, []string{p.apps[1].name + ":8080"}) {
		t.Errorf("out is %v", got)
	}
}

// TestRolloutEveryFault has each call of each LB and each backend go wrong once, in
// each way, in a run of three batches.
func TestRolloutEveryFault(t *testing.T) {
	kinds := []poolFaultKind{callFails, answerLost, linkBreaks, lbGone, crashBefore, crashAfter, interrupts, interruptsTwice}
	p := newPool(t, 2)
	p.run(p.spec(spec.Run)).ended(t, spec.Done, "", "")
	var faults []poolFault
	for who, n := range p.calls {
		for i := range n {
			for _, kind := range kinds {
				if !strings.HasPrefix(who, "192.") || kind != linkBreaks && kind != lbGone {
					faults = append(faults, poolFault{who: who, n: i + 1, kind: kind})
				}
			}
		}
	}
	eachFault(t, faults, oneFault)
}

// eachFault runs many cases, which do little but wait, beside each other.
func eachFault(t *testing.T, faults []poolFault, do func(*testing.T, poolFault)) {
	slots := make(chan struct{}, 64)
	var all sync.WaitGroup
	for _, f := range faults {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			t.Run(fmt.Sprintf("%s/%d/%s", f.who, f.n, f.kind), func(t *testing.T) { do(t, f) })
		})
	}
	all.Wait()
	t.Logf("%d cases", len(faults))
}

// TestRolloutEveryFaultOfResume has drainctl crash in the middle of a run, and each call
// of its resume go wrong. The next resume knows what both have done.
func TestRolloutEveryFaultOfResume(t *testing.T) {
	crashed := func(t *testing.T) *pool {
		p := newPool(t, 2)
		p.fault = poolFault{who: p.apps[1].name, call: "systemctl reboot", kind: crashBefore}
		p.run(p.spec(spec.Run))
		p.worked(1, 0, 0)
		return p
	}
	p := crashed(t)
	resumed(p).ended(t, spec.Done, "", "")
	p.whole()
	p.worked(1, 1, 1)
	var faults []poolFault
	for who, n := range p.calls {
		for i := range n {
			for _, kind := range []poolFaultKind{crashBefore, crashAfter, callFails, interrupts, interruptsTwice} {
				faults = append(faults, poolFault{who: who, n: i + 1, kind: kind})
			}
		}
	}
	eachFault(t, faults, func(t *testing.T, f poolFault) {
		p := crashed(t)
		sp := p.resumes()
		p.fault = f
		out := p.run(sp)
		t.Logf("%s %s: exit %d: %v", p.hit, f.kind, out.exit, out.err)
		if f.kind != crashBefore && f.kind != crashAfter {
			out.truthful(p)
		}
		resumeToTheEnd(t, p)
		if p.apps[0].works != 1 {
			t.Errorf("%s was worked on %d times", p.apps[0].name, p.apps[0].works)
		}
	})
}

// TestUndrainOfWhatAResumedRunLeft: a run crashes and leaves a backend out, its app stopped.
// The run that goes on cannot drain it either, and leaves it as it found it. An undrain puts
// it back, app and all.
func TestUndrainOfWhatAResumedRunLeft(t *testing.T) {
	p := newPool(t, 2)
	left := p.apps[1]
	p.fault = poolFault{who: left.name, call: "systemctl reboot", kind: crashBefore}
	p.run(p.spec(spec.Run))
	if left.active {
		t.Fatal("the app runs, so leaving it would prove nothing")
	}
	left.open = 1 // whatever holds it
	sp := p.resumes()
	sp.Rollout.MaxFailures = 1
	shortenLimits(t, &sp, left)
	out := p.run(sp)
	if out.exit == spec.Done {
		t.Fatal("the run has drained what cannot be drained")
	}
	left.open = 0
	undrain := p.spec(spec.Undrain)
	undrain.Targets = []string{left.name}
	p.run(undrain).ended(t, spec.Done, "", "")
	if !left.active {
		t.Error("the app is left stopped")
	}
	p.whole()
}

func oneFault(t *testing.T, f poolFault) {
	p := newPool(t, 2)
	p.fault = f
	out := p.run(p.spec(spec.Run))
	t.Logf("%s %s: exit %d: %v", p.hit, f.kind, out.exit, out.err)
	crashed := f.kind == crashBefore || f.kind == crashAfter
	if !crashed {
		out.truthful(p)
		if out.exit != spec.Partial && f.kind != lbGone {
			p.whole()
		}
		if f.kind == lbGone {
			for _, lb := range p.lbs {
				if lb.name != f.who && len(lb.out()) > 1 {
					t.Errorf("%s is without %v, though it can be asked", lb.name, lb.out())
				}
			}
			for _, a := range p.apps {
				if !a.active {
					t.Errorf("%s: the app is left stopped, though only an LB is gone", a.name)
				}
			}
		}
		p.putBack()
		return
	}
	resumeToTheEnd(t, p)
}

// resumeToTheEnd resumes after a crash. What is recorded as done is not done again, and
// all is back at the end.
func resumeToTheEnd(t *testing.T, p *pool) {
	t.Helper()
	if len(p.unfinished()) == 0 { // not begun, or ended
		p.whole()
		return
	}
	done, works := recordedDone(t, p), map[string]int{}
	for _, a := range p.apps {
		works[a.name] = a.works
	}
	resumed(p).ended(t, spec.Done, "", "")
	p.whole()
	for _, a := range p.apps {
		if slices.Contains(done, a.name) && a.works != works[a.name] {
			t.Errorf("%s was recorded as done, and worked on again", a.name)
		}
		if a.works == 0 {
			t.Errorf("%s was never worked on", a.name)
		}
	}
	for _, lb := range p.lbs {
		if len(lb.state.Operations) > 0 {
			t.Errorf("%s: the journal has %+v", lb.name, lb.state.Operations)
		}
	}
}

// unfinished is the operations that can be resumed.
func (p *pool) unfinished() (ids []string) {
	for _, lb := range p.lbs {
		for _, op := range lb.state.Unfinished() {
			ids = append(ids, op.ID)
		}
	}
	return plan.Once(ids)
}

// recordedDone is the backends whose work is recorded as done.
func recordedDone(t *testing.T, p *pool) (names []string) {
	for _, lb := range p.lbs {
		for _, op := range lb.state.Operations {
			var did table
			if err := json.Unmarshal(op.Progress, &did); err != nil {
				t.Error(err)
			}
			for _, r := range did.Rows {
				if r.isWorked() {
					names = append(names, r.Backend)
				}
			}
		}
	}
	return names
}

func touch(t *testing.T, path string) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Error(err)
	}
}

func untouch(t *testing.T, path string) {
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}

// TestRolloutJournalFull: what cannot be written down is no reason to leave an app
// stopped.
func TestRolloutJournalFull(t *testing.T) {
	p := newPool(t, 2)
	p.at[p.apps[1].name+" systemctl reboot"] = func() { p.fault = poolFault{who: "lb0", call: "record", kind: callFails} }
	out := p.run(p.spec(spec.Run))
	out.ended(t, spec.Failed, spec.AllBack, errFault.Error())
	out.truthful(p)
	p.worked(1, 1, 0)
	p.putBack()
}

// TestRolloutFileChanges: somebody writes another line into the file in the moment of
// each edit, also of those that lead back.
func TestRolloutFileChanges(t *testing.T) {
	p := newPool(t, 2)
	p.apps[1].noStop = true
	for _, lb := range p.lbs {
		planned := ""
		p.at[lb.name+" stage"] = func() {
			if lb.comment == planned {
				lb.comment += "#"
				return
			}
			planned = lb.comment
		}
	}
	out := p.run(p.spec(spec.Run))
	out.ended(t, spec.Failed, spec.AllBack, "systemctl stop")
	p.whole()
	p.worked(1, 0, 0)
	if n := len(p.lbs[0].comment); n != 3 {
		t.Errorf("the file was changed %d times", n)
	}
}

// TestRolloutLeavesNothingRunning: no goroutine outlives a run, however it ends.
func TestRolloutLeavesNothingRunning(t *testing.T) {
	for _, f := range []poolFault{
		{},
		{call: "stage", kind: callFails},
		{call: "watch", kind: linkBreaks},
		{call: "watch", kind: lbGone},
		{call: "load", kind: interrupts},
		{call: "watch", kind: interruptsTwice},
	} {
		t.Run("with "+string(f.kind), func(t *testing.T) {
			p := newPool(t, 2)
			before := goleak.IgnoreCurrent()
			f.who = p.lbs[1].name
			if f.call != "" {
				p.fault = f
			}
			out := p.run(p.spec(spec.Run))
			if f.call != "" && p.hit == "" {
				t.Fatalf("the fault was not met: %v", out.err)
			}
			goleak.VerifyNone(t, before)
		})
	}
}

// A mark that vanishes during the work is said at once. The batch comes back as usual, no further one
// begins, and the run can be resumed.
func TestMarkVanishesDuringTheWork(t *testing.T) {
	p := newPool(t, 2)
	a := p.apps[0]
	p.delay[a.name] = 100 * time.Millisecond
	p.at[a.name+" systemctl reboot"] = func() { p.lbs[1].lines[0].down = false }
	out := p.run(p.spec(spec.Run), func(o *Options) { o.bounds.watch = 10 * time.Millisecond })
	out.ended(t, spec.Failed, spec.AllBack, "during the work: on lb1: down was removed from the configuration by another process: "+a.name+":8080")
	if !strings.Contains(out.warnings(), "down was removed from the configuration by another process: "+a.name+":8080; the run ends after this batch") {
		t.Errorf("it warned of %q", out.warnings())
	}
	p.worked(1, 0, 0)
	p.serving()
	clear(p.at)
	if out := p.run(p.resumes()); out.exit != spec.Done {
		t.Errorf("resumed: exit %d: %v", out.exit, out.err)
	}
	p.worked(1, 1, 1)
	p.whole()
}
