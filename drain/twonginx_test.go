package drain

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// second starts another nginx in front of the same apps, with its own configuration. Both have one
// state directory.
func (r *rig) second() *rig {
	r.t.Helper()
	front := freeAddrs(r.t, strings.Split(r.front, ":")[0], 1)[0]
	if err := os.Mkdir(r.dir+"/second", 0o755); err != nil {
		r.t.Fatal(err)
	}
	two := &rig{t: r.t, dir: r.dir, conf: r.dir + "/second/nginx.conf", front: front, unit: r.unit}
	two.was = strings.ReplaceAll(strings.ReplaceAll(r.was, r.front, front), "nginx.pid", "second/nginx.pid")
	two.write(two.was)
	time.Sleep(apart)
	cmd := exec.Command("nginx", "-c", two.conf, "-e", r.dir+"/error.log")
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	two.master = cmd.Process.Pid
	r.until("the second nginx serves", func() bool { return len(two.workers()) > 0 })
	time.Sleep(apart)
	return two
}

// targetState returns what the target is in the configuration, and the operation that this comes from.
func (r *rig) targetState() (status.State, string) {
	r.t.Helper()
	st, err := status.Read(r.t.Context(), r.spec(spec.Drain), connector{r})
	if err != nil {
		r.t.Fatal(err)
	}
	s := st.LBs[0].Servers[0]
	if s.Operation == nil {
		return s.State, ""
	}
	return s.State, s.Operation.ID
}

func (r *rig) mustRun(k spec.Kind) {
	r.t.Helper()
	sp := r.spec(k)
	sp.Service, sp.Counter = "", spec.CounterLB
	if _, err := r.run(sp); err != nil {
		r.t.Errorf("%s in %s: %v", k, r.conf, err)
	}
}

// Two nginx of one LB have the same server in the same upstream, and one journal. What is drained in one
// of them is not drained in the other one.
func TestTwoNginxWithOneJournal(t *testing.T) {
	one := newRig(t)
	two := one.second()
	is := func(r *rig, want status.State) (id string) {
		t.Helper()
		got, id := r.targetState()
		if got != want {
			t.Errorf("%s: %q by %q, not %q", r.conf, got, id, want)
		}
		return id
	}
	one.mustRun(spec.Drain)
	is(one, status.StateDrained)
	is(two, status.StateUp)
	two.mustRun(spec.Drain)
	if is(one, status.StateDrained) == is(two, status.StateDrained) {
		t.Error("both are drained by one operation")
	}
	one.mustRun(spec.Undrain)
	is(one, status.StateUp)
	is(two, status.StateDrained)
	one.mustRun(spec.Drain)
	two.mustRun(spec.Undrain)
	is(one, status.StateDrained)
	is(two, status.StateUp)
	one.mustRun(spec.Undrain)
	for _, r := range []*rig{one, two} {
		if r.read() != r.was {
			t.Errorf("%s is not as it was", r.conf)
		}
	}
	if s, err := one.journal().State(); err != nil || len(s.Marks) > 0 || len(s.Operations) > 0 {
		t.Errorf("the journal has %d marks and %s, %v", len(s.Marks), listOf(s.Operations), err)
	}
}

// A configuration may be named in several ways, and move: its records are found all the same.
func TestConfigurationOfAnotherName(t *testing.T) {
	r := newRig(t)
	path := r.conf
	r.mustRun(spec.Drain)
	link := r.dir + "/link.conf"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	r.conf = link
	if got, _ := r.targetState(); got != status.StateDrained {
		t.Errorf("by a link: %q", got)
	}
	r.mustRun(spec.Undrain)
	r.mustRun(spec.Drain)
	if err := os.Rename(path, r.dir+"/moved.conf"); err != nil {
		t.Fatal(err)
	}
	r.conf = r.dir + "/moved.conf"
	if got, _ := r.targetState(); got != status.StateDrained {
		t.Errorf("moved: %q", got)
	}
}

// The drains of the two have different services. An undrain in one configuration takes over its own.
func TestServiceOfOneConfiguration(t *testing.T) {
	one := newRig(t)
	two := one.second()
	for _, service := range []string{"app", "other"} {
		r := map[string]*rig{"app": one, "other": two}[service]
		sp := r.spec(spec.Drain)
		sp.Service, sp.Counter = spec.Units(service), spec.CounterLB
		if _, err := r.run(sp); err != nil {
			t.Fatalf("%s: %v", r.conf, err)
		}
	}
	for _, r := range []*rig{one, two} {
		if _, err := r.run(r.spec(spec.Undrain)); err != nil {
			t.Errorf("%s: %v", r.conf, err)
		}
	}
}
