package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

var (
	rootRecorder   = &journal.Recorder{Name: "root"}
	deployRecorder = &journal.Recorder{UID: 1000, Name: "deploy"}
	annRecorder    = &journal.Recorder{UID: 1001, Name: "ann"}
)

// A statusLB answers what a status asks.
type statusLB struct {
	balancer.Balancer // nil: nothing else must be asked
	servers           []balancer.Server
	problems          []balancer.Problem
	asked, closed     int
	done              chan struct{}
}

func (s *statusLB) Plan(_ context.Context, q balancer.Query) (*balancer.Report, error) {
	s.asked++
	r := &balancer.Report{Servers: s.servers}
	if q.Preflight {
		r.Problems, s.problems = s.problems, nil
	}
	return r, nil
}
func (s *statusLB) Done() <-chan struct{} { return s.done }
func (s *statusLB) Close() error          { s.closed++; return nil }

// statusLBs connects to them, but for those that are down.
type statusLBs struct {
	lbs       map[string]*statusLB
	connected []string
}

func (c *statusLBs) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	c.connected = append(c.connected, name)
	if c.lbs[name] == nil {
		return nil, errors.New("no route to " + name)
	}
	return c.lbs[name], nil
}

func (c *statusLBs) Backend(context.Context, plan.Backend) (remote.Host, error) {
	return nil, errors.New("no backend is asked")
}

// A reader keeps its connections; one that broke is made anew, and an LB that cannot
// be reached is not tried each time, and named.
func TestStatusReaderKeepsConnections(t *testing.T) {
	server := balancer.Server{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: "10.0.0.1:80"}}}
	lb1 := &statusLB{servers: []balancer.Server{server}, done: make(chan struct{})}
	c := &statusLBs{lbs: map[string]*statusLB{"lb1": lb1}}
	sp := spec.Default("")
	sp.LBs, sp.Parallel = []string{"lb1", "lb2"}, 1
	r := NewReader(sp, c, nil)
	for range 3 {
		st, err := r.Read(t.Context())
		if err == nil || len(st.LBs) != 1 || !slices.Equal(st.Unreachable, []string{"lb2"}) || !strings.Contains(st.Error, "no route to lb2") {
			t.Fatalf("%v, %+v", err, st)
		}
	}
	if slices.Sort(c.connected); !slices.Equal(c.connected, []string{"lb1", "lb2"}) || lb1.asked != 3 {
		t.Errorf("connected to %q, and asked %d times", c.connected, lb1.asked)
	}
	close(lb1.done)
	lb1.done = make(chan struct{})
	close(lb1.done)
	if _, err := r.Read(t.Context()); err == nil || len(c.connected) != 3 || lb1.closed != 1 {
		t.Errorf("%v: connected to %q, and closed %d", err, c.connected, lb1.closed)
	}
	r.Close()
	if lb1.closed != 2 {
		t.Errorf("closed %d times", lb1.closed)
	}
}

// countingHosts are backends that are this machine, or cannot be reached.
type countingHosts struct {
	statusLBs
	asked []plan.Backend
}

func (c *countingHosts) Backend(_ context.Context, b plan.Backend) (remote.Host, error) {
	c.asked = append(c.asked, b)
	if b.Address == "down.invalid" {
		return nil, errors.New("no route")
	}
	return remote.Local(nil), nil
}

// Backends count for themselves, each port; what is on an LB, or counted elsewhere by
// its settings, is not asked, and one that is off fails nothing.
func TestStatusCountsOnBackends(t *testing.T) {
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
	_, port, _ := net.SplitHostPort(l.Addr().String())
	var servers []balancer.Server
	for _, address := range []string{"10.0.0.1:" + port, "10.0.0.1:1", "down.invalid:80", l.Addr().String(), "unix:/run/app.sock", "10.0.0.9:80", "10.0.0.8:80"} {
		servers = append(servers, balancer.Server{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: address}}})
	}
	servers[6].Upstream = "counted-here"
	c := &countingHosts{statusLBs: statusLBs{lbs: map[string]*statusLB{"": {servers: servers, done: make(chan struct{})}}}}
	sp := spec.Default("")
	sp.Parallel = 1
	sp.PerBackend = map[string]json.RawMessage{"10.0.0.9": json.RawMessage(`{"counter": "lb"}`), "10.0.0.1": json.RawMessage(`{"ssh": {"host": "app-1"}}`)}
	sp.PerUpstream = map[string]json.RawMessage{"counted-here": json.RawMessage(`{"counter": "lb"}`)}
	r := NewReader(sp, c, c)
	defer r.Close()
	for range 2 {
		st, err := r.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range st.LBs[0].Servers {
			switch {
			case s.OnBackend != nil:
				got = append(got, strconv.Itoa(*s.OnBackend))
			default:
				got = append(got, cmp.Or(s.BackendError, "-"))
			}
		}
		if want := []string{"1", "0", "no route", "-", "-", "-", "-"}; !slices.Equal(got, want) {
			t.Errorf("counted %q, want %q", got, want)
		}
	}
	if len(c.asked) != 2 || c.asked[0].Address != "app-1" && c.asked[1].Address != "app-1" {
		t.Errorf("connected to %d backends, want each once: %+v", len(c.asked), c.asked)
	}
}

// An operation that only claims a server does not hide who drained it.
func TestPlantedOperationDoesNotHideADrain(t *testing.T) {
	key := journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}
	server := balancer.Server{Located: journal.Located{Server: key, Down: true}, Name: "pool", Managed: true}
	op := func(id string, kind spec.Kind, result journal.Result, by *journal.Recorder) journal.Operation {
		return journal.Operation{ID: id, Kind: string(kind), Targets: []string{"192.168.1.10"}, Result: result, Recorder: by, Servers: []journal.Located{{Server: key}}}
	}
	// An undrain that has cleared the mark on a server.
	cleared := func(server journal.Server) *journal.Mark {
		return &journal.Mark{Server: server, Change: journal.Change{Operation: "a"}, Cleared: &journal.Change{Operation: "b", After: "sha"}}
	}
	const done, open = journal.ResultDone, journal.Result("")
	for _, c := range []struct {
		name  string
		by    *journal.Recorder // of the mark's operation
		had   journal.Result
		later journal.Operation
		state State
		from  string        // the operation that the state comes from
		mark  *journal.Mark // beside that of a; nil: none
	}{
		{"an open drain of another", rootRecorder, done, op("b", spec.Drain, open, deployRecorder), StateDrained, "a", nil},
		{"a drain of another that is partial", rootRecorder, done, op("b", spec.Drain, journal.ResultPartial, deployRecorder), StateDrained, "a", nil},
		{"a drain of another that was left", rootRecorder, done, op("b", spec.Drain, journal.ResultNotDrained, deployRecorder), StateDrained, "a", nil},
		{"a run of another", deployRecorder, done, op("b", spec.Run, open, annRecorder), StateDrained, "a", nil},
		{"an undrain of another that has edited nothing", rootRecorder, done, op("b", spec.Undrain, open, deployRecorder), StateDrained, "a", nil},
		{"an undrain of another that has edited another server", rootRecorder, done, op("b", spec.Undrain, open, deployRecorder), StateDrained, "a", cleared(journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.11:8080"})},
		{"of an unknown user", rootRecorder, done, op("b", spec.Drain, open, nil), StateDrained, "a", nil},

		{"the owner's own", deployRecorder, done, op("b", spec.Drain, open, deployRecorder), StateInterrupted, "b", nil},
		{"root's", deployRecorder, done, op("b", spec.Undrain, open, rootRecorder), StateInterrupted, "b", nil},
		{"an undrain of another that has edited the server", rootRecorder, done, op("b", spec.Undrain, open, deployRecorder), StateInterrupted, "b", cleared(key)},
		{"of an earlier version", nil, done, op("b", spec.Drain, open, nil), StateInterrupted, "b", nil},
	} {
		r := &balancer.Report{State: journal.State{Operations: []journal.Operation{op("a", spec.Drain, c.had, c.by), c.later}, Marks: []journal.Mark{{Server: key, Change: journal.Change{Operation: "a"}}}}}
		if c.mark != nil {
			r.State.Marks = append(r.State.Marks, *c.mark)
		}
		st := serverStatus(spec.Default(""), r, server)
		if st.State != c.state || st.Operation == nil || st.Operation.ID != c.from || (len(st.Next) > 0) != (c.state == StateInterrupted) {
			t.Errorf("%s: %s of %+v, next %v", c.name, st.State, st.Operation, st.Next)
		}
	}
}

// What a server is, by its line, the journal and the locks.
func TestStateOfAServer(t *testing.T) {
	key := journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}
	other := journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.11:8080"}
	op := func(id string, kind spec.Kind, result journal.Result, notDrained ...journal.Server) journal.Operation {
		return journal.Operation{ID: id, Kind: string(kind), Targets: []string{"192.168.1.10", "192.168.1.11"}, Result: result, Recorder: rootRecorder,
			Servers: []journal.Located{{Server: key}, {Server: other}}, NotDrained: notDrained}
	}
	held := func(kind spec.Kind) []journal.Holder {
		return []journal.Holder{{Name: "backend 192.168.1.11", Kind: string(spec.Undrain)}, {Name: "backend 192.168.1.10", Kind: string(kind)}}
	}
	const up, down, marked, again = "up", "down", "marked", "up again" // but marked in the journal
	const done, left, partial = journal.ResultDone, journal.ResultNotDrained, journal.ResultPartial
	both := []string{"drainctl undrain 192.168.1.10 192.168.1.11 --lb lb1", "drainctl resume a --lb lb1"}
	for _, c := range []struct {
		name   string
		line   string
		ops    []journal.Operation
		locks  []journal.Holder
		broken bool // the journal cannot be read
		want   State
		from   string   // the operation that the state comes from
		next   []string // sorted
	}{
		{"up", up, nil, nil, false, StateUp, "", nil},
		{"down", down, nil, nil, false, StateUnmanaged, "", nil},
		{"down, and nobody knows by whom", down, nil, nil, true, StateDown, "", nil},
		{"drained", marked, []journal.Operation{op("a", spec.Drain, done)}, nil, false, StateDrained, "a", nil},
		{"drained, and drained again", marked, []journal.Operation{op("a", spec.Drain, done), op("b", spec.Drain, done)}, nil, false, StateDrained, "a", nil},
		{"all of them not drained", marked, []journal.Operation{op("a", spec.Drain, left)}, nil, false, StateNotDrained, "a", both},
		{"not drained", marked, []journal.Operation{op("a", spec.Drain, left, key)}, nil, false, StateNotDrained, "a", both},
		{"drained beside one that is not", marked, []journal.Operation{op("a", spec.Drain, left, other)}, nil, false, StateDrained, "a", nil},
		{"interrupted", marked, []journal.Operation{op("a", spec.Drain, partial)}, nil, false, StateInterrupted, "a", both},
		{"left out by a run", marked, []journal.Operation{op("a", spec.Run, partial)}, nil, false, StateInterrupted, "a",
			[]string{"drainctl resume a --lb lb1", "drainctl undrain 192.168.1.10 --lb lb1"}},
		{"back after a run that has left another out", up, []journal.Operation{op("a", spec.Run, partial)}, nil, false, StateUp, "", nil},
		{"a drain works on it", up, nil, held(spec.Drain), false, StateDraining, "", nil},
		{"an undrain works on it", marked, []journal.Operation{op("a", spec.Drain, done)}, held(spec.Undrain), false, StateUndraining, "", nil},
		{"up again", again, []journal.Operation{op("a", spec.Drain, done)}, nil, false, StateUpAgain, "a", []string{"drainctl undrain 192.168.1.10:8080 --lb lb1"}},
		{"up, as a drain that could not load it has put it back", again, []journal.Operation{op("a", spec.Drain, partial)}, nil, false, StateInterrupted, "a", both},
		{"up again after a run that has left it out", again, []journal.Operation{op("a", spec.Run, partial)}, nil, false, StateUpAgain, "a", []string{"drainctl undrain 192.168.1.10:8080 --lb lb1"}},
		{"not written yet", again, []journal.Operation{op("a", spec.Drain, "")}, nil, false, StateInterrupted, "a", both},
		{"up again, and drained anew now", again, []journal.Operation{op("a", spec.Drain, done)}, held(spec.Drain), false, StateDraining, "", nil},
		{"an undrain has cleared it", up, nil, held(spec.Undrain), false, StateUndraining, "", nil},
		{"a run works on it", marked, []journal.Operation{op("a", spec.Run, "")}, held(spec.Run), false, StateDraining, "", nil},
		{"a run will work on it, or has", up, nil, held(spec.Run), false, StateUp, "", nil},
	} {
		r := &balancer.Report{State: journal.State{Operations: c.ops}, Locks: c.locks}
		if c.line == marked || c.line == again {
			r.State.Marks = []journal.Mark{{Server: key, Change: journal.Change{Operation: "a"}}}
		}
		if c.broken {
			r.StateError = &balancer.Error{Message: "torn"}
		}
		sp := spec.Default("")
		sp.LBs = []string{"lb1"}
		r.Servers = []balancer.Server{{Located: journal.Located{Server: key, Down: c.line == down || c.line == marked}, Name: "pool", Managed: c.line == marked}}
		lb := statusOf(sp, plan.LBPlan{LB: "lb1", Report: r})
		st := lb.Servers[0]
		from := ""
		if st.Operation != nil {
			from = st.Operation.ID
		}
		var next []string
		for _, c := range st.Next {
			next = append(next, c.String())
		}
		slices.Sort(next)
		slices.Sort(c.next)
		if st.State != c.want || from != c.from || !slices.Equal(next, c.next) || (st.Holder != nil) != (c.locks != nil) {
			t.Errorf("%s: %s of %q, held by %+v, next %q; want %s of %q, next %q", c.name, st.State, from, st.Holder, next, c.want, c.from, c.next)
		}
		if warned := slices.Contains(lb.Warnings, "who drained what is not known: torn"); warned != c.broken {
			t.Errorf("%s: warned of %q", c.name, lb.Warnings)
		}
	}
}

// An LB that could not be reached is left alone for a while, and then asked again.
func TestLostLBIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &statusLBs{lbs: map[string]*statusLB{}}
		sp := spec.Default("")
		sp.LBs = []string{"lb1", "lb2"}
		r := NewReader(sp, c, nil)
		defer r.Close()
		read := func() (unreachable []string) {
			st, _ := r.Read(t.Context())
			return st.Unreachable
		}
		if lost := read(); len(lost) != 2 {
			t.Errorf("unreachable are %q", lost)
		}
		for _, name := range sp.LBs {
			c.lbs[name] = &statusLB{servers: []balancer.Server{{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: "10.0.0.1:80"}}}}, done: make(chan struct{})}
		}
		if lost := read(); len(lost) != 2 || len(c.connected) != 2 {
			t.Errorf("at once: unreachable are %q, tried %q", lost, c.connected)
		}
		time.Sleep(retryAfter)
		if lost := read(); len(lost) > 0 {
			t.Errorf("later: unreachable are %q", lost)
		}
	})
}

// init asks this machine's nginx for the configuration that it was started with, and takes
// that of no other LB for its own.
func TestSurveyOfAnotherConfiguration(t *testing.T) {
	odd := []balancer.Problem{{Code: balancer.ProblemConf, Override: "--nginx-conf /other.conf"}}
	for _, test := range []struct {
		lbs, given []string
		want       string
	}{{nil, nil, "/other.conf"}, {nil, []string{"nginx-conf"}, ""}, {[]string{"lb1"}, nil, ""}} {
		lb := &statusLB{problems: odd}
		sp := spec.Default("")
		sp.LBs, sp.Given = test.lbs, test.given
		lbs, got, err := Survey(t.Context(), sp, &statusLBs{lbs: map[string]*statusLB{"": lb, "lb1": lb}})
		if err != nil || len(lbs) != 1 || got.Nginx.Conf != test.want {
			t.Errorf("of %q with %q: %q, %v; want %q", test.lbs, test.given, got.Nginx.Conf, err, test.want)
		}
	}
}

// A backend that fails to count has no count, and not the last one.
func TestCountOfABackendThatIsLost(t *testing.T) {
	h := &countedHost{plan: plan.Backend{Name: "10.0.0.1", Address: "down.invalid"}, open: map[uint16]int{80: 3}, ports: map[uint16]bool{80: true}}
	if h.read(t.Context(), &countingHosts{}); h.err == nil || h.open != nil {
		t.Errorf("counted %v, %v", h.open, h.err)
	}
}
