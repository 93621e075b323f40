package drain

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// Whatever is drained and undrained again is as it was, byte for byte, and twice
// is once.
func TestThereAndBack(t *testing.T) {
	for i, conf := range []string{
		"upstream web {\n\tserver 10.0.0.1:8080;\n\tserver 10.0.0.2:8080 weight=3 down;\n\tserver 10.0.0.3:8080;\n}",
		"upstream web {server 10.0.0.1:8080;server 10.0.0.2;}",
		"upstream web {\r\n\tserver\t10.0.0.1:8080\t;\r\n\tserver 10.0.0.2;\r\n}\r\n",
		"upstream web { server '10.0.0.1:8080' # the old one;\n weight=2\n; server 10.0.0.2; }",
		"upstream web { server 10.0.0.1:8080; server 10.0.0.2; } upstream api { server 10.0.0.1:9000 backup; server 10.0.0.2; }",
		"upstream web { include pool.inc; server 10.0.0.2; } upstream api { include pool.inc; server 10.0.0.2; }",
		"upstream web { include pool.inc; include pool.inc; server 10.0.0.2; }",
	} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			pool := r.dir + "/pool.inc"
			const fragment = "server 10.0.0.1:8080 weight=2;server 10.0.0.4;"
			if err := os.WriteFile(pool, []byte(fragment), 0o644); err != nil {
				t.Fatal(err)
			}
			r.was = strings.Replace(r.was, "    upstream app {", conf+"\n    upstream app {", 1)
			r.write(r.was)
			r.reload()
			down := r.configure(spec.Drain)
			if slices.ContainsFunc(down.Servers, func(s balancer.Server) bool { return !s.NeedsEdit }) {
				t.Errorf("not all of it is drained: %+v", down.Servers)
			}
			if again := r.configure(spec.Drain); again.Diff != "" {
				t.Errorf("drained twice: %s", again.Diff)
			}
			up := r.configure(spec.Undrain)
			sp := r.spec(spec.Undrain)
			sp.Targets = []string{"10.0.0.1"}
			if p := plan.New(sp, []plan.LBPlan{{LB: "lb1", Report: up}}, false); len(p.Findings) > 0 {
				t.Errorf("findings of the undrain: %+v", p.Findings)
			}
			if r.read() != r.was {
				t.Errorf("there and back: %q, want %q", r.read(), r.was)
			}
			if b, err := os.ReadFile(pool); err != nil || string(b) != fragment {
				t.Errorf("there and back: %q, %v", b, err)
			}
		})
	}
}

// configure does the first step alone, on the target 10.0.0.1, and gives the
// report that it went by.
func (r *rig) configure(k spec.Kind) *balancer.Report {
	r.t.Helper()
	ctx := r.t.Context()
	sp := r.spec(k)
	sp.Targets = []string{"10.0.0.1"}
	lb, err := connector{r}.LB(ctx, "", sp.Nginx)
	if err != nil {
		r.t.Fatal(err)
	}
	defer lb.Close()
	o := &Operation{options: Options{Emit: valid}, lbs: fleet.Fleet{{Balancer: lb, Name: fleet.ThisMachine}}}
	reports, err := o.report(ctx, sp, false)
	if err != nil {
		r.t.Fatal(err)
	}
	o.plan, o.id = plan.New(sp, reports, false), newID(reports)
	o.whole = o.newWhole()
	if err := o.begin(ctx); err != nil {
		r.t.Fatal(err)
	}
	v := o.whole.doStep(ctx, map[spec.Kind]plan.Phase{spec.Drain: plan.Marking, spec.Undrain: plan.Clearing}[k], false)
	if v.Err != nil {
		r.t.Fatal(v.Err)
	}
	for _, row := range o.whole.rows {
		row.end = done
	}
	o.end(ctx, true, nil)
	return reports[0].Report
}

// A dry run has nginx judge, and says what it could not ask. It locks nothing
// and leaves no journal.
func TestDryRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dry := func(sp spec.Spec) *plan.Plan {
		t.Helper()
		p, err := DryRun(t.Context(), sp, Options{Connect: connector{r}})
		if err != nil {
			t.Fatal(err)
		}
		if !p.DryRun || (p.ExitCode == spec.Refused) != (p.Refusal() != nil) {
			t.Errorf("dry %t, exit %d, verdict %v", p.DryRun, p.ExitCode, p.Refusal())
		}
		return p
	}
	sp := r.spec(spec.Drain)
	p := dry(sp)
	isUnchecked := func(text string) bool { // the other server of the rig is on the host, too
		return strings.HasPrefix(text, "which unit serves ") && strings.HasSuffix(text, ", the unit app, the right to stop and start it, "+p.Backends[0].CounterText()+" (the real run looks)")
	}
	if len(refusalsOf(p)) > 0 || !slices.ContainsFunc(p.Unchecked, isUnchecked) {
		t.Errorf("refused %q, not checked %q", refusalsOf(p), p.Unchecked)
	}
	if p.LBs[0].Report.Generation == nil || p.LBs[0].Report.Generation.Serving != 1 {
		t.Errorf("the generation is %+v", p.LBs[0].Report.Generation)
	}
	if got := p.LBs[0].Report.Diff; strings.Count(got, "\n-") != 1 || strings.Count(got, "\n+") != 2 || !strings.Contains(got, "server "+r.unit.addr+" down; …\n") {
		t.Errorf("the diff is %q", got)
	}
	other := balancer.NewLocal(balancer.Options{Nginx: nginx.Binary{Conf: r.conf}, StateDir: r.stateDir() + "2"})
	lock := balancer.LockRequest{Backends: []string{fleet.LockName(r.unit.addr), "10.9.9.9"}, Holder: journal.Holder{ID: journal.NewID(time.Now(), ""), Kind: journal.KindDrain, Targets: sp.Targets, User: "ann", Host: "desk"}}
	if err := other.Lock(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} {
		locked := r.spec(k)
		locked.Nginx.StateDir += "2"
		p := dry(locked)
		if got := strings.Join(p.Unchecked, "\n"); p.ExitCode != spec.Done || strings.Count(got, "the lock on") != 1 || !strings.Contains(got, " by drain "+r.unit.addr) {
			t.Errorf("%s of what another operator has locked: exit code %d, not checked: %q", k, p.ExitCode, got)
		}
	}
	other.Close()
	refused := errors.New("not this one")
	if _, err := DryRun(t.Context(), sp, Options{Connect: connector{r}, Accept: func(*plan.Plan) error { return refused }}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	r.write(strings.Replace(r.was, "access_log off;", "access_log off; nonsense on;", 1))
	got := strings.Join(refusalsOf(dry(sp)), "\n")
	if !strings.Contains(got, `unknown directive "nonsense"`) || !strings.Contains(got, "changed on disk after nginx was last loaded") {
		t.Errorf("refused %q", got)
	}
	r.write(r.was)
	sp.Targets = []string{"10.9.9.9"}
	if _, err := DryRun(t.Context(), sp, Options{Connect: connector{r}}); spec.ExitOf(err) != spec.Usage {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(r.stateDir()); !os.IsNotExist(err) {
		t.Errorf("a dry run has left a journal: %v", err)
	}
}
