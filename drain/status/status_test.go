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
	asked, closed     int
	done              chan struct{}
}

func (s *statusLB) Plan(context.Context, balancer.Query) (*balancer.Report, error) {
	s.asked++
	return &balancer.Report{Servers: s.servers}, nil
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
	for _, address := range []string{"10.0.0.1:" + port, "10.0.0.1:1", "down.invalid:80", l.Addr().String(), "unix:/run/app.sock", "10.0.0.9:80"} {
		servers = append(servers, balancer.Server{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: address}}})
	}
	c := &countingHosts{statusLBs: statusLBs{lbs: map[string]*statusLB{"": {servers: servers, done: make(chan struct{})}}}}
	sp := spec.Default("")
	sp.Parallel = 1
	sp.PerBackend = map[string]json.RawMessage{"10.0.0.9": json.RawMessage(`{"counter": "lb"}`)}
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
		if want := []string{"1", "0", "no route", "-", "-", "-"}; !slices.Equal(got, want) {
			t.Errorf("counted %q, want %q", got, want)
		}
	}
	if len(c.asked) != 2 {
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
