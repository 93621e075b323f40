package drain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A checkedLB reports what a case makes of a good report. What is not below must
// not be asked: a check changes nothing.
type checkedLB struct {
	balancer.Balancer
	connect error
	plan    error
	spoil   func(*balancer.Report)
	moved   time.Duration // of its clock
}

func (f *checkedLB) Plan(_ context.Context, q balancer.Query) (*balancer.Report, error) {
	if f.plan != nil && !(q.Itself && balancer.CodeOf(f.plan) == balancer.CodeUsage) {
		return nil, f.plan
	}
	r := &balancer.Report{ConfPath: "/nginx.conf", Version: "1.22.1", Generation: &balancer.Generation{Serving: 2}, Free: 1 << 30, Now: time.Now().Add(f.moved)}
	if !q.Itself {
		r.Servers = []balancer.Server{{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}, File: "/nginx.conf"}, Name: "pool"}}
	}
	if f.spoil != nil {
		f.spoil(r)
	}
	if q.Itself {
		r.Missing = nil
	}
	return r, nil
}

func (*checkedLB) Connections(context.Context, balancer.ConnectionsQuery) (remote.Count, error) {
	return remote.Count{}, nil
}

// The app is down: no counter has to be proved.
func (*checkedLB) Probe(context.Context, balancer.ProbeRequest) ([]balancer.Probed, error) {
	return nil, nil
}

// Health is that of an app that is stopped.
func (*checkedLB) Health(context.Context, balancer.HealthCheck) error { return errFault }

func (*checkedLB) Close() error { return nil }

// A checkedFleet is LBs by their names, and the hosts of backends.
type checkedFleet struct {
	lbs     map[string]*checkedLB
	backend func() (remote.Host, error)
}

func (f checkedFleet) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	if lb := f.lbs[name]; lb.connect == nil {
		return lb, nil
	}
	return nil, f.lbs[name].connect
}

func (f checkedFleet) Backend(context.Context, plan.Backend) (remote.Host, error) { return f.backend() }

// newCheckedFleet is three good LBs, and a spec that names them and no backend.
func newCheckedFleet() (checkedFleet, spec.Spec) {
	f := checkedFleet{lbs: map[string]*checkedLB{}}
	sp := spec.Default(spec.Run)
	sp.LBs = []string{"lb0", "lb1", "lb2"}
	for _, name := range sp.LBs {
		f.lbs[name] = &checkedLB{}
	}
	return f, sp
}

// resultsOf is the checks of one place that did not pass, as "name: result".
func resultsOf(r *CheckReport, where string) (bad []string, n int) {
	for _, c := range r.Checks {
		if c.LB+c.Backend != where {
			continue
		}
		n++
		if c.Result != event.CheckOK {
			text := fmt.Sprintf("%s: %s", c.Name, c.Result)
			if c.Needs != "" {
				text += " (" + string(c.Needs) + ")"
			}
			bad = append(bad, text)
		}
		if (c.Finding != nil) != (c.Result == event.CheckFailed || c.Result == event.CheckWarning) || (c.Needs != "") != (c.Result == event.NotChecked) {
			bad = append(bad, fmt.Sprintf("%s is %s with finding %v and needs %q", c.Name, c.Result, c.Finding, c.Needs))
		}
	}
	return bad, n
}

func notChecked(needs event.CheckName, names ...event.CheckName) (all []string) {
	for _, n := range names {
		all = append(all, fmt.Sprintf("%s: not checked (%s)", n, needs))
	}
	return all
}

// One LB of three has something wrong, at each point. The other two are checked
// all the same, and so is all of the one that can be.
func TestCheckOfLBs(t *testing.T) {
	itself := []event.CheckName{event.CheckConfiguration, event.CheckNginx, event.CheckTest, event.CheckPending, event.CheckJournal, event.CheckSpace, event.CheckClock}
	problem := func(codes ...string) func(*balancer.Report) {
		return func(r *balancer.Report) {
			for _, code := range codes {
				r.Problems = append(r.Problems, balancer.Problem{Code: code, Text: code})
			}
		}
	}
	pending := balancer.PendingFile{Path: "/x", Changed: time.Unix(2, 0), Loaded: time.Unix(1, 0)}
	future := pending
	future.Future = true
	sudo := spec.RefuseFor(&remote.SudoError{Host: "lb1", User: "deploy", Problem: remote.SudoPassword, Commands: [][]string{{"drainctl", "agent"}}}, spec.Finding{Code: "load-balancer"})
	for _, test := range []struct {
		name string
		lb   checkedLB
		want []string
		exit spec.Exit
	}{
		{"nothing", checkedLB{}, nil, spec.Done},
		{"unreachable", checkedLB{connect: fmt.Errorf("dial: %w", remote.ErrConnection)},
			append([]string{"ssh: failed"}, notChecked(event.CheckSSH, append([]event.CheckName{event.CheckHostKey, event.CheckSudo, event.CheckAgent}, itself...)...)...), spec.Refused},
		{"ssh that has no way there", checkedLB{connect: spec.RefuseFor(errors.New("no route"), spec.Finding{Code: "ssh"})},
			append([]string{"ssh: failed"}, notChecked(event.CheckSSH, append([]event.CheckName{event.CheckHostKey, event.CheckSudo, event.CheckAgent}, itself...)...)...), spec.Refused},
		{"login", checkedLB{connect: spec.RefuseFor(&remote.AuthError{Host: "lb1"}, spec.Finding{Code: "ssh"})},
			append([]string{"ssh: failed"}, notChecked(event.CheckSSH, append([]event.CheckName{event.CheckHostKey, event.CheckSudo, event.CheckAgent}, itself...)...)...), spec.Refused},
		{"host key", checkedLB{connect: spec.RefuseFor(&remote.HostKeyError{Host: "lb1"}, spec.Finding{Code: "ssh"})},
			slices.Concat(notChecked(event.CheckHostKey, event.CheckSSH), []string{"host-key: failed"}, notChecked(event.CheckHostKey, append([]event.CheckName{event.CheckSudo, event.CheckAgent}, itself...)...)), spec.Refused},
		{"sudo", checkedLB{connect: sudo}, append([]string{"sudo: failed"}, notChecked(event.CheckSudo, append([]event.CheckName{event.CheckAgent}, itself...)...)...), spec.Refused},
		{"version", checkedLB{connect: spec.RefuseFor(&balancer.VersionError{Name: "lb1"}, spec.Finding{Code: "load-balancer"})},
			append([]string{"agent: failed"}, notChecked(event.CheckAgent, itself...)...), spec.Refused},
		{"configuration", checkedLB{plan: &balancer.Error{Code: balancer.CodeRefused, Message: "unexpected }"}},
			append([]string{"configuration: failed"}, notChecked(event.CheckConfiguration, itself[1:]...)...), spec.Refused},
		{"stopped", checkedLB{spoil: func(r *balancer.Report) {
			r.Generation = nil
			problem(balancer.ProblemRunning)(r)
		}}, []string{"nginx: failed", "pending: not checked (nginx)"}, spec.Refused},
		{"other configuration", checkedLB{spoil: problem(balancer.ProblemConf)}, []string{"nginx: failed"}, spec.Refused},
		{"test and journal", checkedLB{spoil: problem(balancer.ProblemTest, balancer.ProblemJournal)}, []string{"nginx-test: failed", "journal: failed"}, spec.Refused},
		{"journal that is not known", checkedLB{spoil: func(r *balancer.Report) {
			r.Free = 0
			problem(balancer.ProblemJournal)(r)
		}}, []string{"journal: failed", "space: not checked (journal)"}, spec.Refused},
		{"torn journal", checkedLB{spoil: func(r *balancer.Report) { r.StateError = &balancer.Error{Code: balancer.CodeFailed, Message: "torn"} }},
			[]string{"journal: failed"}, spec.Refused},
		{"pending", checkedLB{spoil: func(r *balancer.Report) { r.Pending = []balancer.PendingFile{pending} }}, []string{"pending: failed"}, spec.Refused},
		{"changed in the future", checkedLB{spoil: func(r *balancer.Report) { r.Pending = []balancer.PendingFile{future} }}, []string{"clock: warning"}, spec.Done},
		{"file that was skipped", checkedLB{spoil: func(r *balancer.Report) { r.Skipped = []balancer.Skipped{{File: "/x", Error: "odd"}} }},
			[]string{"configuration: warning"}, spec.Done},
		{"something that has no check yet", checkedLB{spoil: problem("new")}, []string{"configuration: failed"}, spec.Refused},
		{"full disk", checkedLB{spoil: func(r *balancer.Report) { r.Free = 0 }}, []string{"space: failed"}, spec.Refused},
		{"little space", checkedLB{spoil: func(r *balancer.Report) { r.Free = minFree - 1 }}, []string{"space: failed"}, spec.Refused},
		{"enough space", checkedLB{spoil: func(r *balancer.Report) { r.Free = minFree }}, nil, spec.Done},
		{"clock ahead", checkedLB{moved: time.Hour}, []string{"clock: warning"}, spec.Done},
		{"clock behind", checkedLB{moved: -time.Hour}, []string{"clock: warning"}, spec.Done},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, sp := newCheckedFleet()
			f.lbs["lb1"] = &test.lb
			r, err := CheckAll(t.Context(), sp, f)
			if err != nil {
				t.Fatal(err)
			}
			if bad, _ := resultsOf(r, "lb1"); !slices.Equal(bad, test.want) {
				t.Errorf("lb1: %q, want %q", bad, test.want)
			}
			for _, other := range []string{"lb0", "lb2"} {
				if bad, n := resultsOf(r, other); len(bad) > 0 || n != len(itself)+4 {
					t.Errorf("%s: %d checks, and %q", other, n, bad)
				}
			}
			if r.ExitCode != test.exit || spec.ExitOf(r.Refusal()) != test.exit {
				t.Errorf("exit code %d (%v), want %d", r.ExitCode, r.Refusal(), test.exit)
			}
		})
	}
}

// What is named is looked for on every LB. Where one has it, it is enough.
func TestCheckOfServers(t *testing.T) {
	missing := func(r *balancer.Report) {
		r.Servers, r.Missing = nil, []balancer.Missing{{Target: "192.168.1.10", Error: &balancer.Error{Code: balancer.CodeUsage, Message: "no server 192.168.1.10"}}}
	}
	wrong := &balancer.Error{Code: balancer.CodeUsage, Message: `no upstream "pool"`}
	for _, test := range []struct {
		name  string
		spoil func(checkedFleet)
		upstr bool
		want  map[string][]string
		exit  spec.Exit
	}{
		{"all have it", func(checkedFleet) {}, false, nil, spec.Done},
		{"one has not", func(f checkedFleet) { f.lbs["lb1"].spoil = missing }, false, map[string][]string{"lb1": {"server: warning"}}, spec.Done},
		{"none has", func(f checkedFleet) {
			for _, lb := range f.lbs {
				lb.spoil = missing
			}
		}, false, map[string][]string{"lb0": {"server: failed"}, "lb1": {"server: failed"}, "lb2": {"server: failed"}}, spec.Refused},
		{"an upstream that all have", func(checkedFleet) {}, true, nil, spec.Done},
		{"an upstream that one has not", func(f checkedFleet) { f.lbs["lb1"].plan = wrong }, true, map[string][]string{"lb1": {"server: failed"}}, spec.Refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, sp := newCheckedFleet()
			sp.Counter = spec.CounterLB
			if sp.Targets = []string{"192.168.1.10"}; test.upstr {
				sp.Targets, sp.Upstreams = nil, []string{"pool"}
			}
			test.spoil(f)
			r, err := CheckAll(t.Context(), sp, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, lb := range sp.LBs {
				if bad, n := resultsOf(r, lb); !slices.Equal(bad, test.want[lb]) || n < 12 {
					t.Errorf("%s: %d checks, and %q, want %q", lb, n, bad, test.want[lb])
				}
			}
			bad, n := resultsOf(r, "192.168.1.10")
			if want := map[bool]int{false: 1, true: 0}[test.name == "none has"]; len(bad) > 0 || n != want {
				t.Errorf("the backend has %d checks, and %q; want %d that pass", n, bad, want)
			}
			if r.ExitCode != test.exit {
				t.Errorf("exit code %d, want %d", r.ExitCode, test.exit)
			}
		})
	}
}

// A checkedHost is a backend on which some commands fail.
type checkedHost struct {
	remote.Host
	user string
	bad  string // a word of the commands that fail
}

func (h checkedHost) Name() string { return h.user + "@192.168.1.10" }

func (h checkedHost) User() string { return h.user }

func (h checkedHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	line := strings.Join(c.Args, " ")
	switch {
	case h.bad != "" && strings.Contains(line, h.bad):
		return remote.Result{Code: 1, Stderr: []byte("no")}, nil
	case c.Args[0] == "systemctl":
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=active\nSubState=x\nResult=success\n")}, nil
	case c.Args[0] == "id":
		return remote.Result{Stdout: []byte("1000\n")}, nil
	case strings.Contains(line, "sudo -n -l"):
		return remote.Result{Stdout: []byte("Sudoers entry:\n    RunAsUsers: root\n    Options: !authenticate\n    Commands:\n\tALL\n")}, nil
	}
	return h.Host.Run(ctx, c)
}

// What fails on a backend hides nothing that does not need it, there or on the LBs.
func TestCheckOfBackends(t *testing.T) {
	everything := []event.CheckName{event.CheckUnit, event.CheckSudo, event.CheckReboot, event.CheckCounter}
	for _, test := range []struct {
		name   string
		login  error
		bad    string
		change func(*spec.Spec)
		cut    bool // the LBs cannot be reached
		want   []string
	}{
		{name: "nothing"},
		{name: "unreachable", login: fmt.Errorf("dial: %w", remote.ErrConnection),
			want: append([]string{"ssh: failed"}, notChecked(event.CheckSSH, append([]event.CheckName{event.CheckHostKey}, everything...)...)...)},
		{name: "host key", login: &remote.HostKeyError{Host: "a"},
			want: slices.Concat(notChecked(event.CheckHostKey, event.CheckSSH), []string{"host-key: failed"}, notChecked(event.CheckHostKey, everything...))},
		{name: "login, with a counter that needs none", login: &remote.AuthError{Host: "a"}, change: func(s *spec.Spec) { s.Counter = spec.CounterLB },
			want: append([]string{"ssh: failed"}, notChecked(event.CheckSSH, event.CheckHostKey, event.CheckUnit, event.CheckSudo, event.CheckReboot)...)},
		{name: "unit", bad: "systemctl show", want: []string{"unit: failed"}},
		{name: "right to stop", bad: "stop app", want: []string{"sudo: failed"}},
		{name: "right to start", bad: "start app", want: []string{"sudo: failed"}},
		{name: "right to reboot", bad: "systemctl reboot", want: []string{"reboot: failed"}},
		{name: "LBs", cut: true, want: notChecked(event.CheckServer, event.CheckCounter)},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, sp := newCheckedFleet()
			f.backend = func() (remote.Host, error) {
				if test.login != nil {
					return nil, test.login
				}
				return checkedHost{remote.Local(nil), "deploy", test.bad}, nil
			}
			sp.Targets, sp.Service, sp.Rollout.Reboot = []string{"192.168.1.10"}, "app", true
			if test.change != nil {
				test.change(&sp)
			}
			for _, lb := range f.lbs {
				// Nothing listens on that port here, and nothing answers for it.
				if lb.spoil = func(r *balancer.Report) {
					for i := range r.Servers {
						r.Servers[i].Down = true
					}
				}; test.cut {
					lb.connect = remote.ErrConnection
				}
			}
			r, err := CheckAll(t.Context(), sp, f)
			if err != nil {
				t.Fatal(err)
			}
			if bad, n := resultsOf(r, "192.168.1.10"); !slices.Equal(bad, test.want) || n != len(everything)+2 {
				t.Errorf("%d checks, and %q, want %q", n, bad, test.want)
			}
			if bad, _ := resultsOf(r, "lb1"); (len(bad) > 0) != test.cut {
				t.Errorf("lb1: %q", bad)
			}
		})
	}
}

// A namedHost is this machine under the name of a backend.
type namedHost struct{ remote.Host }

func (namedHost) Name() string { return "app-1" }

// proofLB has some connections to a server, and connects to it when it is asked to.
type proofLB struct {
	balancer.Balancer
	probes []balancer.Probed
	open   remote.Count
	closed int // probes
}

func (l *proofLB) Probe(_ context.Context, r balancer.ProbeRequest) ([]balancer.Probed, error) {
	l.closed += len(r.Close)
	if len(r.Servers) == 0 {
		return nil, nil
	}
	return slices.Clone(l.probes), nil
}

func (l *proofLB) Connections(context.Context, balancer.ConnectionsQuery) (remote.Count, error) {
	return l.open, nil
}

// TestCounterIsProved: a counter is believed if it sees what the LB sends.
func TestCounterIsProved(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far := l.Addr().(*net.TCPAddr).AddrPort()
	seen, unseen := conn.LocalAddr().(*net.TCPAddr).AddrPort(), netip.MustParseAddrPort("192.0.2.1:9")
	refused := balancer.Probed{Ends: balancer.Ends{Far: far}, Error: "connection refused", Refused: true}
	hung := balancer.Probed{Ends: balancer.Ends{Far: far}, Error: "i/o timeout"}
	for _, test := range []struct {
		name    string
		probes  []balancer.Probed
		held    []netip.AddrPort
		counter bool   // on the backend
		says    string // of the refusal
	}{
		{"it sees the connection", []balancer.Probed{{Ends: balancer.Ends{Near: seen, Far: far}}}, nil, true, ""},
		{"it does not", []balancer.Probed{{Ends: balancer.Ends{Near: unseen, Far: far}}}, nil, true, "connected from 192.0.2.1:9 to " + far.String() + ", and app-1 does not see it; the load balancer counts 0 open, app-1 1: "},
		{"it sees one of two", []balancer.Probed{{Ends: balancer.Ends{Near: seen, Far: far}}, {Ends: balancer.Ends{Near: unseen, Far: far}}}, nil, true, "192.0.2.1:9"},
		{"one of two servers is down", []balancer.Probed{{Ends: balancer.Ends{Near: seen, Far: far}}, refused}, nil, true, ""},
		{"the app is down", []balancer.Probed{refused}, nil, true, ""},
		{"the app takes no more, and what is open is seen", []balancer.Probed{refused}, []netip.AddrPort{unseen, seen}, true, ""},
		{"the app takes no more, and what is open is not seen", []balancer.Probed{refused}, []netip.AddrPort{unseen}, true, "has 1 connection open"},
		{"the app hangs", []balancer.Probed{hung, refused}, nil, true, "could not be tried: i/o timeout"},
		{"counted elsewhere", []balancer.Probed{{Ends: balancer.Ends{Near: unseen, Far: far}}}, nil, false, ""},
	} {
		w, _ := waitOf(holding(nil), nil)
		lb := &proofLB{probes: test.probes, open: remote.Count{Open: len(test.held)}}
		for _, near := range test.held {
			lb.open.Held = append(lb.open.Held, remote.Held{Far: near})
		}
		w.o.lbs = fleet.Fleet{{Balancer: lb, Name: fleet.ThisMachine}}
		m := w.rows[0]
		m.Host = namedHost{remote.Local(nil)}
		if test.counter {
			m.Sockets = remote.NewCounter(m.Host, []uint16{far.Port()})
			defer m.Sockets.Close()
		}
		connected := slices.ContainsFunc(test.probes, func(p balancer.Probed) bool { return p.Error == "" })
		isRefused := test.probes[0] == refused
		found, refuses := w.o.proveCounter(t.Context(), m)
		if (len(found) > 0) != (test.says != "") || len(found) > 0 && (!strings.Contains(found[0].Text, test.says) || found[0].Override != "--poll lb or --ssh-host" && !found[0].Warning) {
			t.Errorf("%s: %+v, want %q", test.name, found, test.says)
		}
		if test.counter && (connected != (lb.closed > 0) || refuses != isRefused) {
			t.Errorf("%s: %d probes were closed, the server refuses connections: %t", test.name, lb.closed, refuses)
		}
	}
}

// A check that is interrupted is no report.
func TestCheckInterrupted(t *testing.T) {
	f, sp := newCheckedFleet()
	ctx, cancel := context.WithCancelCause(t.Context())
	f.lbs["lb1"].spoil = func(*balancer.Report) { cancel(spec.ErrInterrupted) }
	if r, err := CheckAll(ctx, sp, f); r != nil || spec.ExitOf(err) != spec.Interrupted {
		t.Errorf("%v, %v", r, err)
	}
}
