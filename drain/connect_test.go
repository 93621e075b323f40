package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
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

// An LB that has no drainctl gets a copy of this one, if it is the same kind of machine. An agent of
// another version is not replaced. An LB without an agent is a refusal: nothing was touched.
func TestAgentOverSSH(t *testing.T) {
	here, other := "x86_64", "aarch64"
	if runtime.GOARCH == "arm64" {
		here, other = other, here
	}
	newer := greeting(balancer.Protocol + 1)
	newer.err = "rvm: command not found\n"
	missing := answer{err: "sh: drainctl: not found\n", code: 127}
	for _, test := range []struct {
		name    string
		user    string
		agent   answer
		machine string
		says    string // the error; empty: there is an agent
		want    []string
	}{
		{"installed", "root", greeting(balancer.Protocol), here, "", []string{"agent"}},
		{"missing", "root", missing, here, "", []string{"agent", "uname", "agent of the copy", "copy", "agent of the copy"}},
		{"missing on another kind of machine", "root", missing, other, "does not run on", []string{"agent", "uname"}},
		{"another version, and a login shell that complains", "root", newer, here, "hint: update drainctl here", []string{"agent"}},
		{"sudo asks for a password", "op", answer{err: "sudo: a password is required\n", code: 1}, here, "password", []string{"agent"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			copied := 0
			h := startSSH(t, test.user, func(command string) answer {
				switch {
				case strings.Contains(command, "uname"):
					got = append(got, "uname")
					return answer{out: runtime.GOOS + " " + test.machine + "\n"}
				case strings.Contains(command, "mkdir"):
					got, copied = append(got, "copy"), copied+1
					return answer{}
				case strings.Contains(command, "/var/cache/drainctl/"):
					got = append(got, "agent of the copy")
					if copied == 0 {
						return missing
					}
					return greeting(balancer.Protocol)
				case strings.Contains(command, "drainctl"):
					got = append(got, "agent")
					return test.agent
				}
				return answer{out: "1000\n"} // id -u
			})
			told := 0
			lb, err := fleet.Machines{Copied: func(string, string) { told++ }}.LB(t.Context(), h.address, spec.Nginx{})
			if err == nil {
				lb.Close()
			}
			if (err == nil) != (test.says == "") || err != nil && (spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("exit code %d, want %d and %q: %v", spec.ExitOf(err), spec.Refused, test.says, err)
			}
			if h.mu.Lock(); !slices.Equal(got, test.want) || told != copied {
				t.Errorf("it ran %q, want %q; told of %d copies", got, test.want, told)
			}
			h.mu.Unlock()
		})
	}
}

// missingLBs are LBs of which some cannot be reached.
type missingLBs map[string]error

func (m missingLBs) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	return &begun{}, m[name]
}

func (missingLBs) Backend(context.Context, plan.Backend) (remote.Host, error) { return nil, nil }

// As many LBs are left out as --skip-unreachable-lb says, but not all, and the operator is told of
// each. One that refuses is not left out, and neither is any after Ctrl-C.
func TestUnreachableLBsAreLeftOut(t *testing.T) {
	gone, refused := fmt.Errorf("dial: %w", remote.ErrConnection), errors.New("permission denied")
	interrupted, interrupt := context.WithCancelCause(t.Context())
	interrupt(spec.ErrInterrupted)
	for _, test := range []struct {
		name string
		ctx  context.Context
		lbs  missingLBs
		skip int
		want []string // LBs that are reached; nil: it fails
		told int
	}{
		{"none is gone", t.Context(), missingLBs{"a": nil, "b": nil}, 1, []string{"a", "b"}, 0},
		{"two are gone", t.Context(), missingLBs{"a": gone, "b": nil, "c": gone}, 2, []string{"b"}, 2},
		{"more are gone", t.Context(), missingLBs{"a": gone, "b": nil, "c": gone}, 1, nil, 0},
		{"none may be gone", t.Context(), missingLBs{"a": nil, "b": gone}, 0, nil, 0},
		{"all are gone", t.Context(), missingLBs{"a": gone, "b": gone}, 2, nil, 0},
		{"one refuses", t.Context(), missingLBs{"a": nil, "b": refused}, 1, nil, 0},
		{"interrupted", interrupted, missingLBs{"a": nil, "b": gone}, 1, nil, 0},
	} {
		sp := spec.Default(spec.Drain)
		sp.LBs, sp.SkipUnreachable = slices.Sorted(maps.Keys(test.lbs)), test.skip
		var told []string
		f, err := fleet.New(sp, test.lbs).Open(test.ctx, sp, func(e event.Event) {
			if e, ok := e.(*event.LBSkipped); ok {
				told = append(told, e.LB)
			}
		})
		var reached []string
		for _, lb := range f {
			reached = append(reached, lb.Name)
		}
		if (err == nil) != (test.want != nil) || err == nil && !slices.Equal(reached, test.want) || len(told) != test.told {
			t.Errorf("%s: %v with %q, told of %q; want %q", test.name, err, reached, told, test.want)
		}
	}
}

// No more LBs are asked at once than --parallel says.
func TestLBsAreAskedInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sp := spec.Default(spec.Drain)
		sp.LBs, sp.Parallel = []string{"a", "b", "c", "d", "e"}, 2
		var at, most atomic.Int32
		err := fleet.New(sp, missingLBs{}).Each(t.Context(), func(context.Context, *fleet.LB) error {
			most.Store(max(most.Load(), at.Add(1)))
			time.Sleep(time.Second) // until all that may have begun
			at.Add(-1)
			return nil
		})
		if err != nil || most.Load() != 2 {
			t.Errorf("%d at once, %v", most.Load(), err)
		}
	})
}

// A noticingLB has something to say of each edit and each load.
type noticingLB struct {
	balancer.Balancer
	err error // of the edit
}

func (n noticingLB) Stage(context.Context, balancer.StageRequest) (balancer.Staged, error) {
	return balancer.Staged{NeedsLoad: true, Notices: []string{"of the edit"}, Stale: []string{"/stale.conf"}}, n.err
}

func (noticingLB) Load(context.Context, balancer.LoadRequest) (balancer.Loaded, error) {
	return balancer.Loaded{Notices: []string{"of the load"}}, nil
}

// What an LB has to say of an edit or a load is a warning, also where the edit fails.
func TestNoticesAreWarnings(t *testing.T) {
	for _, test := range []struct {
		err  error
		want []string
	}{{nil, []string{"of the edit", "of the load"}}, {errFault, []string{"of the edit"}}} {
		var l told
		lb := &fleet.LB{Balancer: noticingLB{err: test.err}, Name: "lb1"}
		_, err := fleet.Fleet{lb}.Reconcile(t.Context(), fleet.Round{
			Emit:    l.emit,
			Request: func(*fleet.LB) balancer.StageRequest { return balancer.StageRequest{Wants: []balancer.Wanted{{}}} },
		})
		if got := strings.Split(l.warnings(), "\n"); !errors.Is(err, test.err) || !slices.Equal(got, test.want) {
			t.Errorf("%v, warned of %q, want %q", err, got, test.want)
		}
		if stale := eventsOf[*event.NotLoaded](&l); (len(stale) == 1) != (test.err == nil) || lb.Loaded != (test.err == nil) {
			t.Errorf("with %v: told of files that are not loaded %d times, loaded %t", test.err, len(stale), lb.Loaded)
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
