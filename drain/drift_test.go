package drain

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// A meddled connector reaches the rig while somebody else is at work.
type meddled struct {
	connector
	before func(effect string) // before each effect
}

func (m meddled) LB(_ context.Context, _ string, n spec.Nginx) (balancer.Balancer, error) {
	o, err := n.Options()
	o.Around = func(what string, do func() error) error {
		m.before(what)
		return do()
	}
	return balancer.NewLocal(o), err
}

// markedDown has the target down, by an operation that goes on. Its journal
// outlives it: the test ends it.
func (r *rig) markedDown() balancer.Balancer {
	r.t.Helper()
	lb := r.applied()
	if _, err := lb.Load(r.t.Context(), reloadLimit); err != nil {
		r.t.Fatal(err)
	}
	return lb
}

var reloadLimit = balancer.LoadRequest{Timeout: patience}

// applied has the files say down, and nginx not know it.
func (r *rig) applied() balancer.Balancer {
	r.t.Helper()
	ctx, sp := r.t.Context(), r.spec(spec.Drain)
	lb, err := connector{r}.LB(ctx, "", sp.Nginx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { lb.Close() })
	report, err := lb.Plan(ctx, plan.Query(sp))
	if err != nil {
		r.t.Fatal(err)
	}
	op := journal.Operation{ID: journal.NewID(time.Now(), ""), Kind: string(sp.Kind), Targets: sp.Targets}
	for _, s := range report.Servers {
		op.Servers = append(op.Servers, s.Located)
	}
	err = lb.Begin(ctx, balancer.Beginning{Operation: op})
	if err == nil {
		_, err = lb.Stage(ctx, balancer.StageRequest{Wants: []balancer.Wanted{{Want: balancer.Out, Servers: keysOf(report.Servers)}}, Files: report.Files})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return lb
}

// reloadSlowly has nginx load what the file says, and returns while the earlier
// workers still serve beside the new ones.
func (r *rig) reloadSlowly() {
	r.t.Helper()
	time.Sleep(apart)
	before := r.workers()
	r.signal(before, syscall.SIGSTOP)
	if err := syscall.Kill(r.master, syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	r.until("a new worker serves", func() bool { return len(r.workers()) > len(before) })
	time.AfterFunc(300*time.Millisecond, func() { r.signal(before, syscall.SIGCONT) })
}

func (r *rig) signal(pids []string, s syscall.Signal) {
	for _, pid := range pids {
		if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, s) != nil {
			r.t.Errorf("signal %v to worker %s", s, pid)
		}
	}
}

// While it waits, a drain sees that somebody else has nginx serve the target
// again, or may have.
func TestWatch(t *testing.T) {
	for i, test := range []struct {
		name     string
		do       func(r *rig)
		want     balancer.DriftReason // empty: there is none
		reloaded bool
	}{
		{"nothing", func(*rig) {}, "", false},
		{"a reload", func(r *rig) { r.reload() }, "", false},
		{"a note", func(r *rig) { r.write("# a note\n" + r.drained()) }, "", false},
		{"a note, and a reload", func(r *rig) { r.write("# a note\n" + r.drained()); r.reload() }, "", false},
		{"a note, and a reload that is under way", func(r *rig) { r.write("# a note\n" + r.drained()); r.reloadSlowly() }, "", false},
		{"the same bytes written anew", func(r *rig) { r.write(r.drained()) }, "", false},
		{"down removed", func(r *rig) { r.write(r.was) }, balancer.DriftDownRemoved, false},
		{"down removed, and a reload", func(r *rig) { r.write(r.was); r.reload() }, balancer.DriftDownRemoved, true},
		{"another line for the target", func(r *rig) {
			r.write(strings.Replace(r.drained(), "upstream app {", "upstream app {\n        server "+r.unit.addr+" weight=2;", 1))
		}, balancer.DriftDownRemoved, false},
		{"the server removed", func(r *rig) {
			r.write(strings.Replace(r.drained(), "server "+r.unit.addr+" down;", "", 1))
		}, balancer.DriftServerRemoved, false},
		{"down removed, a reload, and down put back", func(r *rig) {
			r.write(r.was)
			r.reload()
			time.Sleep(2 * apart)
			r.write(r.drained())
		}, balancer.DriftUnknown, true},
	} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			lb := r.markedDown()
			look := func() *balancer.Drift {
				t.Helper()
				w, err := lb.Watch(t.Context(), balancer.WatchRequest{Targets: r.spec(spec.Drain).Targets, Buffered: true})
				if err != nil {
					t.Fatalf("%s: %v", test.name, err)
				}
				return w.Drift
			}
			if d := look(); d != nil {
				t.Fatalf("%s: before: %+v", test.name, d)
			}
			test.do(r)
			d := look()
			switch {
			case test.want == "" && d != nil:
				t.Fatalf("%s: %+v, want none", test.name, d)
			case test.want != "" && (d == nil || d.Reason != test.want || d.Reloaded != test.reloaded || len(d.Places) == 0):
				t.Fatalf("%s: %+v, want %s", test.name, d, test.want)
			}
			// What it does then.
			if _, err := restoreAll(t, lb); err != nil {
				t.Fatalf("%s: the rollback: %v", test.name, err)
			}
			if strings.Contains(r.read(), " down;") {
				t.Fatalf("%s: after the rollback the file is\n%s", test.name, r.read())
			}
		})
	}
}

// restored is what a rollback has done on one LB.
type restored struct {
	changed bool
	notices []string
}

// restoreAll has the servers of the last operation be as it found them, reload included.
func restoreAll(t *testing.T, lb balancer.Balancer) (r restored, err error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	s, err := lb.State(ctx)
	if err != nil || len(s.Operations) == 0 {
		t.Fatalf("%d operations, %v", len(s.Operations), err)
	}
	want := balancer.Wanted{Want: balancer.AsBefore}
	for _, l := range s.Operations[len(s.Operations)-1].Servers {
		want.Servers = append(want.Servers, l.Server)
	}
	staged, err := lb.Stage(ctx, balancer.StageRequest{Wants: []balancer.Wanted{want}, AcceptPending: true})
	r.changed, r.notices = len(staged.Edited) > 0 || staged.NeedsLoad, staged.Notices
	if err == nil && staged.NeedsLoad {
		var loaded balancer.Loaded
		loaded, err = lb.Load(ctx, reloadLimit)
		r.notices = append(r.notices, loaded.Notices...)
	}
	return r, err
}

// What a rollback does, by what it finds.
func TestRestore(t *testing.T) {
	has := func(t *testing.T, err error, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("got %v, want %q in it", err, text)
			}
		}
	}
	// zone has nginx accept a file that it then cannot load: the key of a zone
	// that is in use has changed.
	const zone = "access_log off; limit_req_zone $binary_remote_addr zone=one:1m rate=100r/s;"
	zoned := func(t *testing.T) *rig {
		r := newRig(t)
		r.was = strings.Replace(r.was, "access_log off;", zone, 1)
		r.write(r.was)
		r.reload()
		return r
	}
	otherKey := func(r *rig) { r.write(strings.Replace(r.read(), "$binary_remote_addr", "$http_host", 1)) }
	for i, test := range []func(t *testing.T){
		func(t *testing.T) { // no reload was sent
			r := newRig(t)
			lb := r.applied()
			before := r.workers()
			done, err := restoreAll(t, lb)
			if err != nil || !done.changed || !slices.Equal(before, r.workers()) || r.read() != r.was {
				t.Errorf("%+v, %v, workers %v became %v", done, err, before, r.workers())
			}
		},
		func(t *testing.T) { // all is well
			r := newRig(t)
			lb := r.markedDown()
			done, err := restoreAll(t, lb)
			if err != nil || !done.changed || len(done.notices) > 0 || r.read() != r.was || !r.served()[r.unit.addr] {
				t.Errorf("%+v, %v, the file is\n%s", done, err, r.read())
			}
			before := r.workers()
			if done, err := restoreAll(t, lb); err != nil || done.changed || !slices.Equal(before, r.workers()) {
				t.Errorf("again: %+v, %v", done, err)
			}
		},
		func(t *testing.T) { // somebody has broken the file
			r := newRig(t)
			lb := r.markedDown()
			r.write(strings.Replace(r.drained(), "access_log off;", "access_log off; nonsense on;", 1))
			_, err := restoreAll(t, lb)
			has(t, err, "the files hold nothing of this operation any more, but nginx refuses them as they are now", "nonsense")
			if strings.Contains(r.read(), " down;") {
				t.Errorf("the file is\n%s", r.read())
			}
			r.write(r.was)
			if _, err := restoreAll(t, lb); err != nil || !r.served()[r.unit.addr] {
				t.Errorf("when it is mended: %v", err)
			}
		},
		func(t *testing.T) { // somebody else has unfinished work
			r := newRig(t)
			lb := r.markedDown()
			r.write("# halfway through\n" + r.read())
			done, err := restoreAll(t, lb)
			if err != nil || r.read() != "# halfway through\n"+r.was || !strings.Contains(strings.Join(done.notices, "\n"), "so a reload would put it live: "+r.conf) {
				t.Errorf("%+v, %v, the file is\n%s", done, err, r.read())
			}
		},
		func(t *testing.T) { // nginx accepts the reload and does not load
			r := zoned(t)
			lb := r.markedDown()
			// The generation that serves has the target down, and continues with
			// it: that must not pass for being as before.
			otherKey(r)
			_, err := restoreAll(t, lb)
			has(t, err, "the files are as before, but nginx was not seen to load them", "limit_req")
		},
		func(t *testing.T) { // nginx has not even loaded this operation's own change
			r := zoned(t)
			lb := r.applied()
			otherKey(r)
			_, err := lb.Load(t.Context(), reloadLimit)
			has(t, err, "could not load the configuration")
			done, err := restoreAll(t, lb)
			if err != nil || !strings.Contains(strings.Join(done.notices, "\n"), "it continues with the one it had before this operation") || !r.served()[r.unit.addr] {
				t.Errorf("%+v, %v", done, err)
			}
		},
	} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// A drain writes nobody's file over: what somebody writes between the reading
// and the writing is read again, and still there in the end.
func TestSomebodyElseWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	meddle := func(sp spec.Spec, write func()) (*told, error) {
		l := &told{}
		c := meddled{connector{r}, func(effect string) {
			if strings.HasPrefix(effect, "replace ") {
				write()
			}
		}}
		ctx := t.Context()
		return l, run(ctx, ctx, sp, Options{Connect: c, Emit: l.emit, bounds: shortBounds})
	}
	sp := r.spec(spec.Drain)
	sp.Allow.Pending = true
	// Again and again.
	l, err := meddle(sp, func() { r.write(r.read() + "# theirs\n") })
	if err == nil || spec.ExitOf(err) == spec.Partial || !strings.Contains(err.Error(), "was changed in between") || !r.unit.active() {
		t.Fatalf("exit %d, %v", spec.ExitOf(err), err)
	}
	again := strings.Count(l.warnings(), "planning again")
	if want := r.was + strings.Repeat("# theirs\n", again+1); again == 0 || r.read() != want {
		t.Fatalf("planned again %d times, the file is\n%s", again, r.read())
	}
	if s := r.state(); len(s.Operations) > 0 || len(s.Marks) > 0 {
		t.Errorf("left %s, %d marks", listOf(s.Operations), len(s.Marks))
	}
	// Once, and it is read again.
	r.write(r.was)
	r.reload()
	once := func() func() {
		done := false
		return func() {
			if !done {
				done = true
				r.write("# theirs\n" + r.read())
			}
		}
	}
	l, err = meddle(sp, once())
	if err != nil || r.read() != "# theirs\n"+r.drained() || r.unit.active() {
		t.Fatalf("%v, the file is\n%s", err, r.read())
	}
	if !strings.Contains(l.warnings(), "would put it live") {
		t.Errorf("warned of %q", l.warnings())
	}
	// What the journal says is there now is what is: one line of ours.
	if s := r.state(); len(s.Operations) != 1 || len(s.Marks) != 1 {
		t.Fatalf("left %s, %d marks", listOf(s.Operations), len(s.Marks))
	}
	back := r.spec(spec.Undrain)
	back.Allow.Pending = true
	if _, err = meddle(back, once()); err != nil || r.read() != "# theirs\n# theirs\n"+r.was || !r.unit.active() {
		t.Fatalf("%v, the file is\n%s", err, r.read())
	}
}

// What somebody changes between the plan and the edit is planned again, and refused if
// a reload would put it live.
func TestSomebodyElseWritesAfterThePlan(t *testing.T) {
	for _, test := range []struct {
		name    string
		write   func(r *rig)
		pending bool // is accepted
		exit    spec.Exit
		want    func(r *rig) string // the file in the end
	}{
		{"another file", func(r *rig) { writeFile(t, r.dir+"/extra.conf", "# halfway\n") }, false, spec.Refused, func(r *rig) string { return r.was }},
		{"the servers are swapped", func(r *rig) { r.write(r.swapped()) }, true, spec.Done,
			func(r *rig) string {
				return strings.Replace(r.swapped(), "server "+r.unit.addr+";", "server "+r.unit.addr+" down;", 1)
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			writeFile(t, r.dir+"/extra.conf", "# nothing\n")
			r.was = strings.Replace(r.was, "access_log off;", "access_log off; include extra.conf;", 1)
			r.write(r.was)
			r.reload()
			wrote := false
			c := meddled{connector{r}, func(effect string) {
				if effect == "lock the configuration" && !wrote {
					wrote = true
					test.write(r)
				}
			}}
			sp := r.spec(spec.Drain)
			sp.Allow.Pending = test.pending
			err := run(t.Context(), t.Context(), sp, Options{Connect: c, bounds: shortBounds})
			if got := r.read(); spec.ExitOf(err) != test.exit || !wrote || got != test.want(r) {
				t.Errorf("exit %d, %v, the file is\n%s", spec.ExitOf(err), err, got)
			}
			if r.unit.active() != (test.exit == spec.Refused) {
				t.Errorf("exit %d, and the app runs: %t", spec.ExitOf(err), r.unit.active())
			}
		})
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// swapped is the configuration with its two servers in the other order.
func (r *rig) swapped() string {
	lines := strings.SplitAfter(r.was, "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, r.unit.addr) })
	lines[i], lines[i+1] = lines[i+1], lines[i]
	return strings.Join(lines, "")
}

// Files that were changed since nginx was loaded are not put live, and drainctl's
// own are not somebody else's.
func TestPending(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	pending := func(k spec.Kind) string {
		t.Helper()
		p, err := DryRun(t.Context(), r.spec(k), Options{Connect: connector{r}})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(refusalsOf(p), "\n")
	}
	if got := pending(spec.Drain); got != "" {
		t.Errorf("as loaded: %q", got)
	}
	r.write(r.was + "# theirs\n")
	if got, want := pending(spec.Drain), r.conf+" ("+time.Now().Format("2006-01-02 "); !strings.Contains(got, want) || !strings.HasSuffix(got, " | --accept-pending") {
		t.Errorf("changed: %q, want %q and the flag", got, want)
	}
	if _, err := r.run(r.spec(spec.Drain)); spec.ExitOf(err) != spec.Refused || r.read() != r.was+"# theirs\n" {
		t.Errorf("exit %d, %v", spec.ExitOf(err), err)
	}
	r.reload()
	if got := pending(spec.Drain); got != "" {
		t.Errorf("loaded: %q", got)
	}
	r.was = r.read()
	// Announced by drainctl, and not loaded.
	if _, err := r.broken(r.spec(spec.Drain), faultBefore, "reload nginx"); err == nil {
		t.Fatal("the run has not noticed that it is dead")
	}
	if got := pending(spec.Undrain); r.read() != r.drained() || got != "" {
		t.Errorf("drainctl's own: %q", got)
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil || r.read() != r.was {
		t.Error(err)
	}
}
