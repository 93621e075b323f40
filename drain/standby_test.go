package drain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// standby is two load balancers with the same apps. The nginx of lb2 can be stopped and started.
type standby struct {
	*rig
	two *rig
}

func newStandby(t *testing.T) standby {
	one := newRig(t)
	s := standby{one, one.second()}
	s.stop()
	return s
}

// stop stops the nginx of lb2.
func (s standby) stop() {
	s.t.Helper()
	_ = syscall.Kill(s.two.master, syscall.SIGTERM)
	s.until("the nginx of lb2 has ended", func() bool {
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.two.master)) // nobody has waited for it
		return len(title) == 0
	})
}

// start starts the nginx of lb2.
func (s standby) start() {
	s.t.Helper()
	cmd := exec.Command("nginx", "-c", s.two.conf, "-e", s.dir+"/error.log")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	s.two.master = cmd.Process.Pid
	s.until("the nginx of lb2 serves", func() bool { return len(s.two.workers()) > 0 })
}

// LB implements [fleet.Connector].
func (s standby) LB(_ context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	n.Conf, n.StateDir = s.conf, s.stateDir()+name
	if name == "lb2" {
		n.Conf = s.two.conf
	}
	o, err := n.Options()
	return balancer.NewLocal(o), err
}

// Backend implements [fleet.Connector].
func (s standby) Backend(ctx context.Context, b plan.Backend) (remote.Host, error) {
	return connector{s.rig}.Backend(ctx, b)
}

// spec asks for the target on both LBs.
func (s standby) spec(k spec.Kind) spec.Spec {
	sp := s.rig.spec(k)
	sp.LBs, sp.Nginx, sp.Counter = []string{"lb1", "lb2"}, spec.Nginx{}, spec.CounterLB
	sp.Given, sp.Allow.StoppedNginx = nil, true
	return sp
}

func (s standby) run(sp spec.Spec, on func(event.Event)) (*told, error) {
	l := &told{}
	ctx := context.Background()
	return l, run(ctx, ctx, sp, Options{Connect: s, bounds: shortBounds, Emit: func(e event.Event) {
		l.emit(e)
		if on != nil {
			on(e)
		}
	}})
}

// checkFiles compares the files of both LBs with those of before, with the target down or up.
func (s standby) checkFiles(what string, down bool) {
	s.t.Helper()
	for name, r := range map[string]*rig{"lb1": s.rig, "lb2": s.two} {
		want := r.was
		if down {
			want = r.drained()
		}
		if got := r.read(); got != want {
			s.t.Errorf("%s: the file of %s is\n%s", what, name, got)
		}
	}
}

const standbyText = "nginx is not running: its files are edited and tested, and it loads them when it starts"

// A standby LB whose nginx is stopped is named by the refusal. If it is allowed, its file is edited, and
// its nginx sends nothing to the target when it starts. The undrain needs no flag.
func TestStandbyLB(t *testing.T) {
	s := newStandby(t)
	sp := s.spec(spec.Drain)
	sp.Allow.StoppedNginx = false
	_, err := s.run(sp, nil)
	var refusal *spec.Refusal
	if !errors.As(err, &refusal) || len(refusal.Findings) != 1 || refusal.Findings[0].LB != "lb2" || refusal.Findings[0].Override != "--allow-stopped-nginx" {
		t.Fatalf("not allowed: %v, %+v", err, refusal)
	}
	s.checkFiles("not allowed", false)
	l, err := s.run(s.spec(spec.Drain), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.checkFiles("drained", true)
	if s.unit.active() || !strings.Contains(l.warnings(), standbyText) {
		t.Errorf("the app runs: %t; warnings: %s", s.unit.active(), l.warnings())
	}
	for _, e := range eventsOf[*event.Reloaded](l) {
		if e.LB != "lb1" {
			t.Errorf("%s was reloaded", e.LB)
		}
	}
	s.start()
	if served := s.two.served(); served[s.unit.addr] || len(served) != 1 {
		t.Errorf("lb2 sends to %v", served)
	}
	s.stop()
	undrain := s.spec(spec.Undrain)
	undrain.Allow.StoppedNginx = false
	if _, err := s.run(undrain, nil); err != nil {
		t.Fatal(err)
	}
	s.checkFiles("undrained", false)
	s.start()
	if served := s.two.served(); !served[s.unit.addr] {
		t.Errorf("lb2 sends to %v", served)
	}
}

// The standby becomes active during the wait: it has loaded the edited file, and the drain goes on.
func TestStandbyBecomesActive(t *testing.T) {
	s := newStandby(t)
	once := false
	_, err := s.run(s.spec(spec.Drain), func(e event.Event) {
		if e, ok := e.(*event.StepStarted); ok && e.Step == plan.StepWait && !once {
			once = true
			time.Sleep(apart)
			s.start()
		}
	})
	if err != nil || !once {
		t.Fatalf("started %t: %v", once, err)
	}
	s.checkFiles("drained", true)
	if served := s.two.served(); served[s.unit.addr] || s.unit.active() {
		t.Errorf("lb2 sends to %v; the app runs: %t", served, s.unit.active())
	}
}

// A rollback restores the file of an LB whose nginx is stopped, as it does the others.
func TestRollbackOnStandbyLB(t *testing.T) {
	s := newStandby(t)
	sp := s.spec(spec.Drain)
	sp.Service = ""
	_, err := s.run(sp, func(e event.Event) {
		if e, ok := e.(*event.StepStarted); ok && e.Step == plan.StepWait {
			s.rig.write(s.was) // somebody clears the down
		}
	})
	if spec.ExitOf(err) != spec.Failed {
		t.Fatalf("exit code %d: %v", spec.ExitOf(err), err)
	}
	s.checkFiles("rolled back", false)
}

// A rolling run takes a backend out and puts it back on an LB whose nginx is stopped.
func TestRunOnStandbyLB(t *testing.T) {
	s := newStandby(t)
	s.roll("2", func(sp *spec.Spec) { sp.SSH.Host = "app" })
}

// roll runs a command while the target is down on both LBs.
func (s standby) roll(down string, change func(*spec.Spec)) {
	s.t.Helper()
	sp := s.spec(spec.Run)
	sp.Rollout.Command = []string{"sh", "-c", fmt.Sprintf("cat %s %s | grep -c ' down;' >>%s/worked", s.conf, s.two.conf, s.dir)}
	generations := 10
	sp.Rollout.MaxGenerations = &generations
	change(&sp)
	if _, err := s.run(sp, nil); err != nil {
		s.t.Fatal(err)
	}
	s.checkFiles("after the run", false)
	if text, _ := os.ReadFile(s.dir + "/worked"); string(text) != down+"\n" {
		s.t.Errorf("down during the work:\n%s", text)
	}
}

// Where nginx runs on no LB, a drain is an edit, and says so.
func TestAllLBsStopped(t *testing.T) {
	s := newStandby(t)
	sp := s.spec(spec.Drain)
	sp.LBs = []string{"lb2"}
	p, err := DryRun(t.Context(), sp, Options{Connect: s})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, f := range p.Findings {
		texts = append(texts, fmt.Sprint(f.Warning, " ", f.LB, " ", f.Text))
	}
	want := "true lb2 " + standbyText + "\ntrue  nginx runs on no load balancer of this command"
	if got := strings.Join(texts, "\n"); !strings.Contains(got, want) || strings.Contains(strings.Join(p.Unchecked, "\n"), "the running nginx") {
		t.Errorf("the plan says\n%s\nwant\n%s", got, want)
	}
	if _, err := s.run(sp, nil); err != nil || s.two.read() != s.two.drained() {
		t.Errorf("%v; the file is\n%s", err, s.two.read())
	}
}

// Each LB has a backend of its own at the same address. In a rolling run, the one of lb1 comes back with
// the edit that takes the one of lb2 out.
func TestRunOfBackendsOnTheLBs(t *testing.T) {
	s := newStandby(t)
	s.start()
	s.roll("1\n1", func(*spec.Spec) {})
}
