package drain

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A host that cannot be reached is told apart from one that refuses, also within a
// refusal: as many as --skip-unreachable-lb says are left out.
func TestUnreachableIsKnownAsSuch(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = fleet.Machines{}.LB(t.Context(), l.Addr().String(), spec.Nginx{})
	if !errors.Is(err, remote.ErrConnection) || spec.ExitOf(err) != spec.Refused {
		t.Errorf("exit code %d: %v", spec.ExitOf(err), err)
	}
}

// Ctrl-C while an LB does not answer is no refusal.
func TestInterruptedWhileConnecting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, interrupt := context.WithCancelCause(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			interrupt(spec.ErrInterrupted)
			<-t.Context().Done()
		}
	}()
	for _, lbs := range [][]string{{l.Addr().String()}, {l.Addr().String(), l.Addr().String()}} {
		sp := spec.Default(spec.Drain)
		sp.Targets, sp.LBs = []string{"192.168.1.10"}, lbs
		_, err = Prepare(ctx, sp, Options{Connect: fleet.Machines{}})
		if spec.ExitOf(err) != spec.Interrupted || err.Error() != "interrupted" {
			t.Errorf("%d LBs: exit code %d: %v", len(lbs), spec.ExitOf(err), err)
		}
	}
}

// begun is an LB that notes what it is to record.
type begun struct {
	balancer.Balancer
	operation journal.Operation
}

func (b *begun) Begin(_ context.Context, of balancer.Beginning) error {
	b.operation = of.Operation
	return nil
}

// A journal has no commands: root may run them when going on with the operation.
func TestCommandsAreNotRecorded(t *testing.T) {
	asked := spec.Default(spec.Drain)
	asked.Targets, asked.Nginx = []string{"10.0.0.1"}, spec.Nginx{ReloadCommand: "sh -c evil", TestCommand: "evil"}
	text, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	lb := &begun{}
	agent := &served{lb, spec.Nginx{ReloadCommand: "systemctl reload nginx"}}
	if err := agent.Begin(t.Context(), balancer.Beginning{Operation: journal.Operation{ID: "1", Spec: text}}); err != nil {
		t.Fatal(err)
	}
	var recorded spec.Spec
	if err := json.Unmarshal(lb.operation.Spec, &recorded); err != nil {
		t.Fatal(err)
	}
	if recorded.Nginx != (spec.Nginx{}) || len(recorded.Targets) != 1 || recorded.Timeout != asked.Timeout {
		t.Errorf("recorded: %s", lb.operation.Spec)
	}
}

// TestCommandsWhileAnLBIsDead: what a run without one LB prints can be typed as it is.
func TestCommandsWhileAnLBIsDead(t *testing.T) {
	for _, test := range []struct {
		name  string
		kind  spec.Kind
		fault poolFault
		exit  spec.Exit
		next  []string // commands
		says  string
	}{
		{"a drain", spec.Drain, poolFault{who: "192.168.1.11", call: "systemctl stop", kind: answerLost}, spec.Partial, []string{"undrain"}, "--skip-unreachable-lb 1 while dead cannot be reached"},
		{"another LB is gone too", spec.Drain, poolFault{who: "lb1", call: "watch", kind: lbGone}, spec.Partial, []string{"undrain", "resume"}, "--skip-unreachable-lb 2 while dead, lb1 cannot be reached"},
		{"a run", spec.Run, poolFault{who: "192.168.1.11", call: "systemctl stop", kind: answerLost}, spec.Failed, []string{"resume"}, "--skip-unreachable-lb 1 while dead cannot be reached"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPool(t, 2)
			sp := p.firstOf(2, test.kind)
			sp.LBs, sp.SkipUnreachable = append(sp.LBs, "dead"), 1
			p.fault = test.fault
			out := p.run(sp)
			if out.exit != test.exit || len(out.result.Next) != len(test.next) {
				t.Fatalf("exit %d, next %v: %v", out.exit, out.result.Next, out.err)
			}
			for i, c := range out.result.Next {
				if c.Words[1] != test.next[i] || !strings.Contains(c.Reason, test.says) {
					t.Errorf("next: %s (%s), want %s and %q", c, c.Reason, test.next[i], test.says)
				}
			}
		})
	}
}
