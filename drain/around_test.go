package drain

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// everyFault is how many of the faults a surrounding meets. Each surrounding begins with another one,
// so that the surroundings together meet all of them.
var everyFault = flag.Int("every-fault", 5, "of how many faults each surrounding meets one: 1 is all of them")

// A surrounding is what others have done before an operation, or do at the moment of its fault.
type surrounding struct {
	name      string
	before    func(*pool)
	meanwhile func(*pool)
}

// Of the backends, the first two are drained. The third is another operator's.
var surroundings = []surrounding{
	{"another drain of the backend", func(p *pool) { p.otherDrains(0) }, nil},
	{"another drain of another backend", func(p *pool) { p.otherDrains(2) }, nil},
	{"another drain, which is rolled back", func(p *pool) { p.otherBegins(2) }, func(p *pool) { p.otherRollsBack(2) }},
	{"a second port", func(p *pool) { p.addPort(0) }, nil},
	{"down by hand", func(p *pool) { p.downByHand(0, p.lbs...) }, nil},
	{"down by hand on one LB", func(p *pool) { p.downByHand(0, p.lbs[0]) }, nil},
	{"a dead LB", func(p *pool) { p.deadLBs = 1 }, nil},
	{"a slow LB", func(p *pool) { p.delay[p.lbs[1].name] = 2 * time.Millisecond }, nil},
	{"an edit meanwhile", nil, func(p *pool) { p.eachLB(func(lb *poolLB) { lb.comment += "#" }) }},
	{"a reload meanwhile", nil, func(p *pool) { p.eachLB((*poolLB).load) }},
	{"down by hand meanwhile", nil, func(p *pool) { p.downByHand(0, p.lbs[0]) }},
	{"another drain of the backend meanwhile", nil, func(p *pool) { p.otherDrains(0) }},
	{"another drain of another backend meanwhile", nil, func(p *pool) { p.otherDrains(2) }},
}

// addPort has a backend listen on a second port.
func (p *pool) addPort(i int) {
	for _, lb := range p.lbs {
		lb.lines = append(lb.lines, poolLine{address: p.apps[i].name + ":9090", serving: true})
	}
}

// A course is an operation in a surrounding, from what comes before it.
type course struct {
	*pool
	kind     spec.Kind
	original map[string]string // what was so before the operation, also before a process that crashed
}

// A beginning is a new operation, or the resume of a crashed one.
type beginning struct {
	name    string
	kind    spec.Kind
	crashed bool // it is resumed
}

var beginnings = []beginning{
	{"drain", spec.Drain, false},
	{"undrain", spec.Undrain, false},
	{"run", spec.Run, false},
	{"resume of a drain", spec.Drain, true},
	{"resume of an undrain", spec.Undrain, true},
	{"resume of a run", spec.Run, true},
}

// begin makes a pool with its surrounding, up to the operation that meets the fault.
func (b beginning) begin(t *testing.T, s surrounding) (*course, spec.Spec) {
	c := &course{pool: newPool(t, 2), kind: b.kind}
	c.unchecked = true
	fourth := &poolApp{pool: c.pool, name: "192.168.1.13", active: true}
	c.apps = append(c.apps, fourth)
	c.eachLB(func(lb *poolLB) {
		lb.lines = append(lb.lines, poolLine{address: fourth.name + ":8080", serving: true})
	})
	if s.before != nil {
		s.before(c.pool)
		c.eachLB((*poolLB).load)
	}
	if b.kind == spec.Undrain {
		c.run(c.specOf(spec.Drain)).ended(t, spec.Done, "", "")
	}
	c.original = c.now()
	sp := c.specOf(b.kind)
	if !b.crashed {
		return c, sp
	}
	at := map[spec.Kind]string{spec.Drain: "stop", spec.Undrain: "start", spec.Run: "reboot"}
	c.fault = poolFault{who: c.apps[1].name, call: "systemctl " + at[b.kind], kind: crashBefore}
	c.run(sp)
	return c, c.resumed("", sp)
}

// specOf is of the first two backends.
func (c *course) specOf(k spec.Kind) spec.Spec {
	sp := c.firstOf(2, k)
	sp.SkipUnreachable = c.deadLBs
	if c.deadLBs > 0 {
		sp.LBs = append(sp.LBs, "dead")
	}
	return sp
}

// resumed is the spec that resumes an operation.
func (c *course) resumed(id string, given spec.Spec) spec.Spec {
	c.t.Helper()
	if ids := c.ours(); id == "" && len(ids) > 0 {
		id = ids[len(ids)-1]
	}
	given.Targets = nil
	sp, err := Resumed(context.Background(), given, id, Options{Connect: c.pool})
	c.over()
	if err != nil {
		c.t.Errorf("resume %s: %v", id, err)
	}
	return sp
}

// ours is the operations of this operator that can be resumed.
func (c *course) ours() []string {
	var theirs []string
	for _, lb := range c.lbs {
		for _, op := range lb.state.Operations {
			if op.User == otherUser {
				theirs = append(theirs, op.ID)
			}
		}
	}
	return slices.DeleteFunc(c.unfinished(), func(id string) bool { return slices.Contains(theirs, id) })
}

// now is what the files and the nginxes say, but for what others have down, and which apps run.
func (p *pool) now() map[string]string {
	all := map[string]string{}
	for _, lb := range p.lbs {
		for _, l := range lb.lines {
			if lb.other(l.address) == "" {
				all[lb.name+" "+l.address] = fmt.Sprintf("down %t, served %t", l.down, l.serving)
			}
		}
	}
	for _, a := range p.apps {
		all[a.name] = fmt.Sprintf("active %t", a.active)
	}
	return all
}

// is checks the state of each server, without those that others have down.
func (c *course) is(says string, want map[string]string) {
	c.t.Helper()
	now := c.now()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got, ok := now[name]; ok && got != want[name] {
			c.t.Errorf("%s, and %s is %s, not %s", says, name, got, want[name])
		}
	}
}

// done returns the state of each server after an operation.
func (c *course) done(k spec.Kind) map[string]string {
	all := map[string]string{}
	for _, lb := range c.lbs {
		for _, l := range lb.lines {
			out := k == spec.Drain && slices.Contains(c.apps[:2], c.app(l.address))
			all[lb.name+" "+l.address] = fmt.Sprintf("down %t, served %t", out, !out)
		}
	}
	for i, a := range c.apps {
		all[a.name] = fmt.Sprintf("active %t", k != spec.Drain || i > 1)
	}
	return all
}

// judge makes sure that what a run says of the pool is so. before is what was so when it began.
func (c *course) judge(k spec.Kind, out outcome, before map[string]string) {
	c.t.Helper()
	s := out.stands()
	says := fmt.Sprintf("%s: exit %d, %q", k, out.exit, s.Standing)
	switch {
	case out.exit == spec.Done:
		c.undrained(k)
		c.is(says, c.done(k))
		if k == spec.Run {
			c.hasWorked(says, out)
		}
	case s.Standing == spec.Untouched:
		c.is(says, before)
	case out.exit == spec.Partial, s.Standing == spec.Changed:
		c.undrained(k)
		out.truthful(c.pool)
	case s.Standing == spec.AsBefore, s.Standing == spec.AllBack:
		c.is(says, c.original)
	default:
		c.t.Errorf("%s: %v", says, out.err)
	}
	c.othersStay(says)
}

// hasWorked makes sure that a run that is done has worked on each of its backends, or says that it has
// not. What a run skips is not in its resume.
func (c *course) hasWorked(says string, out outcome) {
	c.t.Helper()
	for _, a := range c.apps[:2] {
		if !slices.Contains(out.result.Targets, a.name) {
			continue
		}
		skipped := slices.ContainsFunc(out.result.Skipped, func(s plan.Skip) bool { return s.Backend == a.name })
		if done := slices.Contains(out.result.Done, a.name); done == skipped || done && a.works == 0 {
			c.t.Errorf("%s, and %s is done: %t, skipped: %t, and worked on %d times", says, a.name, done, skipped, a.works)
		}
	}
}

// undrained has others' drains of the backends end where an undrain has cleared their marks.
func (c *course) undrained(k spec.Kind) {
	for _, lb := range c.lbs {
		for _, l := range lb.lines[:2] {
			if k == spec.Undrain && !l.down && lb.other(l.address) == byDrain {
				delete(c.others, lb.name+" "+l.address)
			}
		}
	}
}

// othersStay makes sure that what others have down is down, with its mark.
func (c *course) othersStay(says string) {
	c.t.Helper()
	for _, lb := range c.lbs {
		for _, l := range lb.lines {
			other := lb.other(l.address)
			if other != "" && !l.down {
				c.t.Errorf("%s, and %s on %s was down %s", says, l.address, lb.name, other)
			}
			if other == byDrain && !lb.hasMark(l.address, !slices.Contains(c.apps[:2], c.app(l.address))) {
				c.t.Errorf("%s, and the mark of another drain on %s on %s is gone", says, l.address, lb.name)
			}
		}
	}
}

// hasMark reports whether a server has a mark of an operation: of another operator, where only they
// have drained it. A later drain takes over the marks of an earlier one.
func (lb *poolLB) hasMark(address string, ofOther bool) bool {
	return slices.ContainsFunc(lb.state.MarksOn(keyed(address)), func(m journal.Mark) bool {
		op, ok := lb.state.Find(m.Operation)
		return ok && (!ofOther || op.User == otherUser)
	})
}

// skipFlag is what a command's reason says of LBs that cannot be reached.
var skipFlag = regexp.MustCompile(`--skip-unreachable-lb (\d+)`)

// typed is the spec of a command that was printed.
func (c *course) typed(next spec.Command) spec.Spec {
	c.t.Helper()
	given := c.specOf(spec.Kind(next.Words[1]))
	given.LBs, given.Targets, given.SkipUnreachable = nil, nil, 0
	for i := 2; i < len(next.Words); i++ {
		if next.Words[i] == "--lb" {
			i++
			given.LBs = append(given.LBs, next.Words[i])
		} else {
			given.Targets = append(given.Targets, next.Words[i])
		}
	}
	if n := skipFlag.FindStringSubmatch(next.Reason); n != nil {
		given.SkipUnreachable, _ = strconv.Atoi(n[1])
	}
	if next.Words[1] == "resume" {
		return c.resumed(given.Targets[0], given)
	}
	return given
}

// goOn does what an operator does after a run: what it says is next, or the same again. choice chooses
// among several commands.
func (c *course) goOn(sp spec.Spec, out outcome, choice int) {
	c.t.Helper()
	switch {
	case out.exit == spec.Done:
		return
	case out.result != nil && len(out.result.Next) > 0:
		next := out.result.Next[choice%len(out.result.Next)]
		c.t.Logf("next: %s (%s)", next, next.Reason)
		sp = c.typed(next)
	case len(c.ours()) > 0: // it crashed
		sp = c.resumed("", c.specOf(sp.Kind))
	default:
		sp = c.specOf(c.kind)
	}
	if c.t.Failed() {
		return
	}
	before, want := c.now(), spec.Done
	switch {
	case c.isDrainedSince(sp.Continues): // a resume is refused until the other drain is undone
		want = spec.Refused
	case sp.Kind == spec.Undrain && sp.Continues == "" && len(sp.Targets) == 2:
		want = c.endOfUndrain()
	}
	out = c.run(sp)
	c.t.Logf("%s of %v: exit %d: %v", sp.Kind, sp.Targets, out.exit, out.err)
	if out.exit != want {
		c.t.Errorf("the next command, %s, ended with exit %d: %v", sp.Kind, out.exit, out.err)
	}
	if sp.Kind != spec.Undrain || len(sp.Targets) == 2 {
		c.judge(sp.Kind, out, before)
	}
}

// endOfUndrain is how an undrain of both backends is to end: it is refused if there is nothing to undrain,
// and an operator has a server down by hand.
func (c *course) endOfUndrain() spec.Exit {
	end := spec.Done
	for _, lb := range c.lbs {
		for _, l := range lb.lines[:2] {
			isDrain := func(op journal.Operation) bool { return op.Kind != journal.KindUndrain }
			if server := keyed(l.address); len(lb.state.MarksOn(server)) > 0 || slices.ContainsFunc(lb.state.Standing(server), isDrain) {
				return spec.Done
			}
			if lb.other(l.address) == byHand {
				end = spec.Refused
			}
		}
	}
	return end
}

// isDrainedSince reports whether another operator has drained a backend of an operation after it began.
func (c *course) isDrainedSince(id string) bool {
	return slices.ContainsFunc(c.lbs, func(lb *poolLB) bool { return len(lb.state.DrainsSince(id)) > 0 })
}

// back undrains all, and makes sure that this is enough.
func (c *course) back() {
	c.t.Helper()
	want := c.endOfUndrain()
	out := c.run(c.specOf(spec.Undrain))
	if out.exit != want {
		c.t.Errorf("undrain: exit %d, want %d: %v", out.exit, want, out.err)
	}
	if want == spec.Refused && len(c.ours()) > 0 { // one LB was not told of the end
		c.run(c.resumed("", c.specOf(spec.Undrain))).ended(c.t, spec.Done, "", "")
	}
	c.undrained(spec.Undrain)
	c.whole()
	c.othersStay("undrained")
	if ids := c.ours(); len(ids) > 0 {
		c.t.Errorf("after the undrain, %v can be resumed", ids)
	}
}

// TestSurroundingsEveryFault has others do something around an operation: before it, or at the moment
// in which a call goes wrong. What a result says is so, what others have down stays down, and the next
// command leads to the end.
func TestSurroundingsEveryFault(t *testing.T) {
	kinds := []poolFaultKind{callFails, answerLost, linkBreaks, lbGone, crashBefore, crashAfter, interrupts, interruptsTwice, nothingFails}
	began, cases := time.Now(), 0
	for offset, s := range surroundings {
		t.Run(s.name, func(t *testing.T) {
			n := offset
			for _, b := range beginnings {
				c, sp := b.begin(t, s)
				c.run(sp).ended(t, spec.Done, "", "")
				var faults []poolFault
				for _, who := range slices.Sorted(maps.Keys(c.calls)) {
					for i := range c.calls[who] {
						for _, kind := range kinds {
							if strings.HasPrefix(who, "192.") && (kind == linkBreaks || kind == lbGone) {
								continue
							}
							if n++; n%*everyFault == 0 {
								faults = append(faults, poolFault{who: who, n: i + 1, kind: kind})
							}
						}
					}
				}
				t.Run(b.name, func(t *testing.T) {
					eachFault(t, faults, func(t *testing.T, f poolFault) { b.meets(t, s, f) })
				})
				cases += len(faults)
			}
		})
	}
	fmt.Printf("surroundings and faults: %d cases in %.0f s\n", cases, time.Since(began).Seconds())
}

// meets runs an operation with a fault in a surrounding, and then its next commands to the end.
func (b beginning) meets(t *testing.T, s surrounding, f poolFault) {
	c, sp := b.begin(t, s)
	before := c.now()
	c.fault = f
	if s.meanwhile != nil {
		c.meanwhile = func() { s.meanwhile(c.pool) }
	}
	c.unchecked, c.hit = false, ""
	out := c.run(sp)
	c.unchecked = true
	t.Logf("%s %s: exit %d: %v", c.hit, f.kind, out.exit, out.err)
	if f.kind == crashBefore || f.kind == crashAfter {
		c.happens()
		c.undrained(b.kind)
		c.othersStay("crashed")
		out = outcome{told: out.told, exit: spec.Partial}
	} else {
		c.judge(b.kind, out, before)
	}
	c.meanwhile = nil
	if f.kind == nothingFails && out.exit != spec.Done && !(b.crashed && out.exit == spec.Refused && c.isDrainedSince(sp.Continues)) {
		t.Errorf("exit %d, though nothing failed", out.exit)
	}
	isInterrupt := f.kind == interrupts || f.kind == interruptsTwice
	if out.exit == spec.Interrupted && !isInterrupt || isInterrupt && c.hit != "" && (out.exit == spec.Failed || out.exit == spec.Refused) {
		t.Errorf("exit %d after %s", out.exit, f.kind)
	}
	c.goOn(sp, out, f.n)
	if !t.Failed() {
		c.back()
	}
}
