package show

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// aServer is a server that is up.
func aServer(upstream, address string, open int, params ...string) status.ServerStatus {
	return status.ServerStatus{State: status.StateUp, Server: balancer.Server{
		Located: journal.Located{Server: journal.Server{Module: "http", Upstream: upstream, Address: address}, File: "/etc/nginx/conf.d/" + upstream + ".conf", Line: 4},
		Name:    upstream, Text: address, Parameters: params, Open: open,
	}}
}

// aDrained is one that was drained three days ago.
func aDrained(s status.ServerStatus) status.ServerStatus {
	s.State, s.Parameters = status.StateDrained, append(s.Parameters, "down")
	s.Operation = &journal.Operation{
		ID: "20261122-031205.123-ab12", Kind: "drain", User: "ann", Host: "desk", Reason: "new kernel",
		Began: time.Now().Add(-80 * time.Hour), Ended: time.Now().Add(-79 * time.Hour),
	}
	return s
}

// shownStatus is a status as a terminal of a width has it.
func shownStatus(width int, options Options, st *status.Status) string {
	return strings.Join(NewText(io.Discard, io.Discard, options).statusLines(st, width), "\n") + "\n"
}

func TestStatusOfOneLB(t *testing.T) {
	counted := aServer("web", "10.0.0.3:80", 7, "weight=5", "max_fails=3", "fail_timeout=30s")
	n := 9
	counted.OnBackend = &n
	interrupted := aServer("pool", "10.0.0.9:80", -1)
	interrupted.State = status.StateInterrupted
	interrupted.Operation = &journal.Operation{ID: "x", User: "bob", Host: "desk", Began: time.Now().Add(-5 * time.Minute)}
	interrupted.Next = []spec.Command{{Words: []string{"drainctl", "resume", "x"}, Reason: "continues"}}
	lost := aServer("pool", "10.0.0.10:80", 0)
	lost.BackendError = "ssh to 10.0.0.10: no answer"
	st := &status.Status{LBs: []status.LBStatus{{LB: fleet.ThisMachine, Servers: []status.ServerStatus{
		aDrained(aServer("web", "10.0.0.1:80", 0)), aDrained(aServer("web", "10.0.0.2:80", 1)), counted, interrupted, lost,
	}}}}
	for width, want := range map[int]string{
		60: `  SERVER        STATE        OPEN  BACKEND  PARAMETERS
web
  10.0.0.1:80   drained         0        -
  10.0.0.2:80   drained         1        -
    these 2: drained by ann on desk, 3 d ago, "new kernel"
      (operation 20261122-031205.123-ab12)
  10.0.0.3:80   up              7        9
    weight=5 max_fails=3 fail_timeout=30s
pool
  10.0.0.9:80   interrupted     ?        -
    interrupted by bob on desk, 5 m ago (operation x)
  10.0.0.10:80  up              0        ?
next: drainctl resume x   (continues)
warning: connections on the backend could not be counted:
  ssh to 10.0.0.10: no answer
`,
		25: `  SERVER  STATE        OPEN  BACKEND
web
  10.0.0.1:80
          drained         0        -
`,
	} {
		got := shownStatus(width, Options{}, st)
		if got = strings.ReplaceAll(got, "\u00a0", " "); !strings.HasPrefix(got, want) {
			t.Errorf("at %d columns:\n%s\nwant\n%s", width, got, want)
		}
	}
}

// The LBs of a fleet are compared: what differs is said in words.
// Connections that cannot be counted, and who holds a lock unnamed, are told of, on one LB as on several.
func TestStatusOfWhatIsNotKnown(t *testing.T) {
	locked := aServer("web", "10.0.0.1:80", -1)
	locked.State, locked.Holder = status.StateDraining, &journal.Holder{Name: "backend 10.0.0.1"}
	one := status.LBStatus{LB: "lb1", Servers: []status.ServerStatus{locked}, Uncounted: "no netlink"}
	two := one
	two.LB = "lb2"
	for on, st := range map[string]*status.Status{"": {LBs: []status.LBStatus{one}}, "on lb2: ": {LBs: []status.LBStatus{one, two}}} {
		got := shownStatus(0, Options{}, st)
		for _, want := range []string{"warning: " + on + "connections could not be counted: no netlink\n", "draining by another drainctl, which has not recorded yet what it does\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s\nwant %q", got, want)
			}
		}
	}
}

func TestStatusOfLBsThatDiffer(t *testing.T) {
	lb := func(name string, servers ...status.ServerStatus) status.LBStatus {
		return status.LBStatus{LB: name, Servers: servers}
	}
	a, b := "app1.production.eu-west-1.internal.example.com:8080", "10.0.0.2:80"
	st := &status.Status{Unreachable: []string{"lb4"}, LBs: []status.LBStatus{
		lb("ann@lb1", aDrained(aServer("web", a, 0)), aServer("web", b, 12, "weight=5")),
		lb("ann@lb2:22", aServer("web", b, 3), aServer("web", a, 4), aServer("only", b, 0)),
		lb("ann@lb3", aServer("web", a, -1)),
	}}
	want := `warning: without lb4, which could not be asked:
  SERVER       STATE    OPEN lb1  lb2  lb3  PARAMETERS
web
  app1.production.eu-west-1.internal.example.com:8080
               DIFFERS         0    4    ?
    on lb1: drained by ann on desk, 3 d ago, "new kernel" (operation
      20261122-031205.123-ab12)
    on lb2, lb3: up
  10.0.0.2:80  up             12    3    -  differ
    on lb1: parameters: weight=5
    on lb2: parameters: none
    not on lb3
only (on lb2 only)
  10.0.0.2:80  up              -    0    -
`
	if got := strings.ReplaceAll(shownStatus(80, Options{}, st), "\u00a0", " "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A narrow one has the sum.
	if got := shownStatus(40, Options{}, st); !strings.Contains(got, "DIFFERS   4+?") || !strings.Contains(got, "up         15") {
		t.Errorf("got\n%s", got)
	}
	// In a pipe a server is a line with its upstream, and says the same at any time.
	got := shownStatus(0, Options{}, st)
	if again := shownStatus(0, Options{}, st); !strings.Contains(got, "\nweb       10.0.0.2:80 ") || strings.Contains(got, "ago") || got != again {
		t.Errorf("got\n%s", got)
	}
}

// Whatever the servers are called, no line but a command to copy is wider than the
// terminal, and no word of them is lost.
func TestStatusFits(t *testing.T) {
	long := strings.Repeat("a_name_that_a_template_has_made-", 4)
	var servers []status.ServerStatus
	for i := range 200 {
		s := aServer(fmt.Sprint(long, i/50), fmt.Sprintf("app%d.%s.example.com:8080", i, strings.Repeat("x", i%60)), i*7, "weight=5", "max_fails=3")
		if i%3 == 0 {
			s = aDrained(s)
		}
		servers = append(servers, s)
	}
	st := &status.Status{LBs: []status.LBStatus{{LB: "lb1", Servers: servers}, {LB: "lb2", Servers: servers[:100]}}}
	for _, width := range []int{30, 40, 80, 132, 200} {
		text := shownStatus(width, Options{Verbose: true}, st)
		for line := range strings.Lines(text) {
			if w := ansi.StringWidth(strings.TrimRight(line, "\n")); w > width {
				t.Errorf("at %d columns, %d: %q", width, w, line)
			}
		}
		joined := strings.Join(strings.Fields(text), "")
		for _, s := range servers {
			if !strings.Contains(joined, s.Text) {
				t.Fatalf("at %d columns, %s is not shown", width, s.Text)
			}
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Minute: "0 s", 59 * time.Second: "59 s", time.Minute: "1 m", 119 * time.Minute: "1 h", 25 * time.Hour: "1 d", 1000 * time.Hour: "41 d",
	} {
		if got := strings.ReplaceAll(age(d), "\u00a0", " "); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

func TestShortHosts(t *testing.T) {
	for _, c := range [][2][]string{
		{{"ann@lb1:22", "lb2"}, {"lb1", "lb2"}},
		{{"ann@lb1", "bob@lb1"}, {"ann@lb1", "bob@lb1"}},
		{{"lb1:22", "lb1:23"}, {"lb1:22", "lb1:23"}},
		{{"2001:db8::1", "this machine"}, {"2001:db8::1", "this machine"}},
	} {
		if got := shortHosts(c[0]); !slices.Equal(got, c[1]) {
			t.Errorf("%q are %q, want %q", c[0], got, c[1])
		}
	}
}
