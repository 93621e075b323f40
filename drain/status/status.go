// Package status reports the state of servers, lists the operations of the past, and says what to type
// next.
package status

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// A State is what a server is, by the configuration and the journal together.
type State string

// The states.
const (
	StateUp          State = "up"
	StateDown        State = "down"             // by whom is not known: the journal cannot be read
	StateUnmanaged   State = "down (unmanaged)" // marked down outside drainctl
	StateDrained     State = "drained"
	StateNotDrained  State = "down, not drained" // --on-timeout leave: the app still runs, with connections
	StateDraining    State = "draining"
	StateUndraining  State = "undraining"
	StateInterrupted State = "interrupted"
	StateUpAgain     State = "up again" // drainctl has drained it, and somebody else has removed the down
	StateRemoved     State = "removed"  // from the configuration; the journal still has it
)

// A Status is what the LBs' configuration and journals say of their servers, and
// what their sockets say now.
type Status struct {
	LBs   []LBStatus `json:"lbs"`
	Error string     `json:"error,omitempty"` // of the LBs that could not be asked
	// Unreachable are these LBs: what is so there is not known.
	Unreachable []string `json:"unreachable,omitempty"`
}

// An LBStatus is one LB.
type LBStatus struct {
	LB       string         `json:"lb"`
	ConfPath string         `json:"configuration"`
	Servers  []ServerStatus `json:"servers"`
	Warnings []string       `json:"warnings"`
	// Uncounted is why no connections could be counted.
	Uncounted string `json:"not_counted,omitempty"`
	// JournalError is why the journal could not be read.
	JournalError string `json:"journal_error,omitempty"`
}

// A ServerStatus is one server line.
type ServerStatus struct {
	balancer.Server
	State State `json:"state"`
	// Operation is the one that the state comes from, nil when there is none.
	Operation *journal.Operation `json:"operation,omitempty"`
	// Holder is who works on it now.
	Holder *journal.Holder `json:"holder,omitempty"`
	Next   []spec.Command  `json:"next,omitempty"`
	// Stopped are the units that the operation has stopped, as the journal says.
	Stopped spec.Units `json:"service_stopped,omitempty"`
	// OnBackend is the connections that the backend itself has on the server's port,
	// of whoever it is; nil where they were not counted. BackendError is why not.
	OnBackend    *int   `json:"connections_on_backend,omitempty"`
	BackendError string `json:"backend_not_counted,omitempty"`
}

// Read asks the LBs of a spec for the servers that it names, or for all, once.
func Read(ctx context.Context, sp spec.Spec, c fleet.Connector) (*Status, error) {
	r := NewReader(sp, c, nil)
	defer r.Close()
	return r.Read(ctx)
}

// retryAfter is how long a machine that could not be reached is left alone: to
// wait for it each time would hold up the others.
const retryAfter = 15 * time.Second

// A Reader asks the LBs of a spec as often as it is told, over connections
// that it keeps.
type Reader struct {
	spec     spec.Spec
	lbs      fleet.Fleet
	lost     []lostLB // by LB
	backends *backendCounts
}

// A lostLB is an LB that could not be reached, and when.
type lostLB struct {
	err error
	at  time.Time
}

// NewReader is a reader that has reached nothing yet. With a connector for
// backends, the connections are counted on these as well.
func NewReader(sp spec.Spec, c, backends fleet.Connector) *Reader {
	lbs := fleet.New(sp, c)
	r := &Reader{spec: sp, lbs: lbs, lost: make([]lostLB, len(lbs))}
	if backends != nil {
		r.backends = &backendCounts{spec: sp, connect: backends, hosts: map[string]*countedHost{}}
	}
	return r
}

// Close ends the connections.
func (r *Reader) Close() {
	r.lbs.Close()
	r.backends.close()
}

// Read asks for the servers. An LB that cannot be asked is an error, and the
// others' status comes with it.
func (r *Reader) Read(ctx context.Context) (*Status, error) {
	reports, err := fleet.Gather(ctx, r.lbs, r.ask)
	st := &Status{LBs: []LBStatus{}}
	var answered []plan.LBPlan
	for i, lb := range reports {
		if lb.Report == nil {
			st.Unreachable = append(st.Unreachable, r.lbs[i].Name)
			continue
		}
		if first, text := lb.TwinIn(answered); first >= 0 {
			st.LBs[first].Warnings = append(st.LBs[first].Warnings, text)
			continue
		}
		answered = append(answered, lb)
		st.LBs = append(st.LBs, statusOf(r.spec, lb))
	}
	if err == nil {
		err = plan.MissingEverywhere(r.spec, answered)
	}
	if err != nil && len(r.lbs) == 1 {
		return nil, spec.BeforeTouching(ctx, err)
	}
	if err != nil {
		st.Error = err.Error()
	}
	r.backends.count(ctx, st)
	return st, spec.BeforeTouching(ctx, err)
}

// ask asks one LB. A connection that broke is made anew.
func (r *Reader) ask(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
	lost := &r.lost[slices.Index(r.lbs, lb)]
	if lost.err != nil && time.Since(lost.at) < retryAfter {
		return plan.LBPlan{}, lost.err
	}
	if lb.Balancer == nil || lb.IsBroken() {
		fleet.Fleet{lb}.Close()
		err := lb.Open(ctx, r.spec.Nginx)
		if *lost = (lostLB{err, time.Now()}); err != nil {
			lb.Balancer = nil
			return plan.LBPlan{}, err
		}
	}
	return lb.Ask(ctx, balancer.Query{Targets: r.spec.Targets, Upstreams: r.spec.Upstreams, Connections: true})
}

func statusOf(sp spec.Spec, lb plan.LBPlan) LBStatus {
	r := lb.Report
	st := LBStatus{LB: lb.LB, ConfPath: r.ConfPath, Servers: []ServerStatus{}, Warnings: []string{}, Uncounted: r.Uncounted}
	for _, sk := range r.Skipped {
		st.Warnings = append(st.Warnings, fmt.Sprintf("%s was skipped: %s", sk.File, sk.Error))
	}
	if r.StateError != nil {
		st.JournalError = r.StateError.Message
		st.Warnings = append(st.Warnings, "who drained what is not known: "+r.StateError.Message)
	}
	for _, s := range r.Servers {
		st.Servers = append(st.Servers, serverStatus(sp, r, s))
	}
	for _, s := range plan.GoneServers(sp, r) {
		st.Servers = append(st.Servers, removedStatus(sp, r, s))
	}
	return st
}

// removedStatus is a server that was removed from the configuration.
func removedStatus(sp spec.Spec, r *balancer.Report, s balancer.Server) ServerStatus {
	s.Down, s.Managed = false, false // there is no line
	st := ServerStatus{Server: s, State: StateRemoved}
	for _, op := range plan.RecordsOf(r.State, s.Server) {
		st.Operation = &op
		st.Stopped = cmp.Or(plan.StoppedService(op, s.Server), st.Stopped)
	}
	st.Next = forgetCommand(s.Address, sp.Words(append([]string{"nginx-conf"}, spec.WhereFlags...)...), "clears the record")
	return st
}

// serverStatus works out what a server is.
func serverStatus(sp spec.Spec, r *balancer.Report, s balancer.Server) ServerStatus {
	st := ServerStatus{Server: s, State: StateUp}
	standing := r.State.Standing(s.Server)
	if s.Down && s.Managed {
		standing = acting(r.State, s.Server)
	}
	var latest *journal.Operation
	if len(standing) > 0 {
		latest = &standing[len(standing)-1]
	}
	holder := holderOf(r.Locks, s)
	switch {
	case holder != nil:
		st.Holder, st.State = holder, StateDraining
		switch {
		case holder.Kind == string(spec.Undrain):
			st.State = StateUndraining
		case holder.Kind == string(spec.Run) && !s.Down:
			st.State = StateUp
		}
		if latest != nil && latest.ID == holder.ID {
			st.Operation = latest
		}
	case drainOf(r, s) != nil:
		st.Operation, st.State = drainOf(r, s), StateUpAgain
		st.Stopped = plan.StoppedService(*st.Operation, s.Server)
		st.Next = UndrainCommand([]string{s.Address}, sp.Words(spec.WhereFlags...), "starts what was stopped, and clears the record")
	case latest != nil && latest.Result == journal.ResultNotDrained && s.Down && (len(latest.NotDrained) == 0 || slices.Contains(latest.NotDrained, s.Server)):
		st.Operation, st.State = latest, StateNotDrained
		st.Next = next(sp, latest, s, "waits again")
	case latest != nil && latest.Kind == journal.KindRun && !s.Down:
		// A rolling run that has not come to it, or is done with it.
	case latest != nil && latest.Result != journal.ResultDone && latest.Result != journal.ResultNotDrained:
		st.Operation, st.State = latest, StateInterrupted
		st.Next = next(sp, latest, s, "continues")
	case s.Down && s.Managed:
		st.Operation, st.State = latest, StateDrained
		if by, ok := r.State.Find(r.State.MarksOn(s.Server)[0].Operation); ok {
			st.Operation = &by
		}
	case s.Down && r.StateError != nil:
		st.State = StateDown
	case s.Down:
		st.State = StateUnmanaged
	}
	return st
}

// drainOf returns the operation that has drained a server which is up again; nil if there is none. A
// drain that has not ended may not have written its mark yet, and a partial one may have put the file
// back itself.
func drainOf(r *balancer.Report, s balancer.Server) *journal.Operation {
	if s.Down || slices.ContainsFunc(r.Servers, func(other balancer.Server) bool { return other.Server == s.Server && other.Down }) {
		return nil
	}
	for _, m := range r.State.MarksOn(s.Server) {
		op, ok := r.State.Find(m.Operation)
		isInterrupted := op.Result == "" || op.Result == journal.ResultPartial && op.Kind == journal.KindDrain
		if ok && !isInterrupted && m.Cleared == nil {
			return &op
		}
	}
	return nil
}

// acting is the operations on a server that is marked down which have a say in its state,
// oldest first: those of the users who marked it and of root, and those that have edited its
// line. Any user can record others.
func acting(state journal.State, server journal.Server) (all []journal.Operation) {
	standing, marks := state.Standing(server), state.MarksOn(server)
	marked := func(op journal.Operation) bool {
		return slices.ContainsFunc(marks, func(m journal.Mark) bool { return m.Operation == op.ID })
	}
	for _, op := range standing {
		ofOwner := slices.ContainsFunc(state.Operations, func(o journal.Operation) bool { return marked(o) && o.Recorder.IsSame(op.Recorder) })
		ofRoot := op.Recorder != nil && op.Recorder.UID == 0
		edited := len(state.EditsOf(op.ID, server)) > 0
		if ofOwner || ofRoot || edited {
			all = append(all, op)
		}
	}
	return all
}

// holderOf is who holds the lock of a server's backend.
func holderOf(locks []journal.Holder, s balancer.Server) *journal.Holder {
	a, err := nginx.ParseAddress(s.Address)
	if err != nil {
		return nil
	}
	name := fleet.LockName(a.String())
	i := slices.IndexFunc(locks, func(h journal.Holder) bool { return balancer.BackendOf(h) == name })
	if i < 0 {
		return nil
	}
	return &locks[i]
}

// next is the commands that go on from an operation that was not done.
func next(sp spec.Spec, op *journal.Operation, s balancer.Server, resumes string) []spec.Command {
	where, targets := sp.Words(spec.WhereFlags...), op.Targets
	if op.Kind == journal.KindRun { // others of its backends are up
		targets = []string{fleet.LockName(s.Address)}
	}
	return append(ResumeCommand(op.ID, where, resumes), UndrainCommand(targets, where, "puts it back")...)
}
