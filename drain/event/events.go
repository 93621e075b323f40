// Package event has what happens during an operation, as structs. Package show turns them into text;
// their JSON is the interface for programs, and the history stores it.
package event

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A Header is what every event has.
type Header struct {
	Event     string         `json:"event"`
	Time      time.Time      `json:"time"`
	Operation string         `json:"operation,omitempty"` // ID
	LB        string         `json:"lb,omitempty"`
	Target    string         `json:"target,omitempty"` // backend
	Step      plan.StepName  `json:"step,omitempty"`
	Direction plan.Direction `json:"direction,omitempty"`
}

// Head is the header, to be completed by who emits the event.
func (h *Header) Head() *Header { return h }

// An Event is something that happened: one of the types below. It marshals to
// one JSON object.
type Event interface {
	Head() *Header
	name() string
}

// An OperationStarted is the first line of an operation's history.
type OperationStarted struct {
	Header
	Version int       `json:"v"` // of the history's format
	Kind    spec.Kind `json:"kind"`
	Targets []string  `json:"targets"`
	// Recorder is who began it, as the LB saw them; User is what they say.
	Recorder *journal.Recorder `json:"recorder,omitempty"`
	User     string            `json:"user"`
	Host     string            `json:"host"`
	Reason   string            `json:"reason,omitempty"`
	// Continues is the ID of the operation that is resumed: it is this one.
	Continues string            `json:"continues,omitempty"`
	Service   spec.Units        `json:"service,omitempty"`
	Servers   []journal.Located `json:"servers"`
	Drainctl  string            `json:"drainctl,omitempty"` // version
}

// A Checked is what was checked before anything was touched: on one LB, or, without
// one, on the backends.
type Checked struct {
	Header
	Checks []Check `json:"checks"` // at most maxChecked
	More   int     `json:"more,omitempty"`
	// Unchecked is what could not be known, and why.
	Unchecked []string `json:"not_checked,omitempty"`
}

// A Planned says what is about to be done.
type Planned struct {
	Header
	Plan *plan.Plan `json:"plan"`
}

// A LockAwaited says that another operator holds the lock that is waited for.
type LockAwaited struct {
	Header
	Holder *journal.Holder `json:"holder,omitempty"`
}

// A StepStarted says that a step begins.
type StepStarted struct {
	Header
	Number      int              `json:"number"` // from 1, in the order they are taken; 0: a rollback, or a rolling run
	Of          int              `json:"of"`
	Rollback    bool             `json:"rollback,omitempty"` // it undoes what this operation did
	Description plan.Description `json:"description"`
}

// A StepDone says that a step is done and verified.
type StepDone struct {
	Header
	Changed bool         `json:"changed"` // false: it was so already
	Elapsed spec.Seconds `json:"elapsed"`
	Detail  Detail       `json:"detail"`
}

// A Detail is what is so after a step.
type Detail struct {
	Up       []string       `json:"up,omitempty"` // servers
	Down     []string       `json:"down,omitempty"`
	StayDown []string       `json:"stay_down,omitempty"`
	Restored bool           `json:"restored,omitempty"`
	Open     *int           `json:"open,omitempty"` // connections
	Waited   spec.Seconds   `json:"waited,omitempty"`
	Checks   int            `json:"checks,omitempty"` // that passed in a row
	Services []ServiceState `json:"services,omitempty"`
}

// A ServiceState is what systemd says of a unit.
type ServiceState struct {
	Unit    string `json:"unit"`
	Backend string `json:"backend"`
	Active  string `json:"active"`
	// Result is how the unit's last run ended, unless it is active or ended well: "timeout",
	// "signal", "exit-code", ... (systemd.exec(5), $SERVICE_RESULT).
	Result string `json:"result,omitempty"`
}

// A StepFailed says that a step failed.
type StepFailed struct {
	Header
	Error string `json:"error"`
}

// An Edited says which files were edited and tested.
type Edited struct {
	Header
	Edits []journal.Edit `json:"edits"`
	Diff  string         `json:"diff,omitempty"` // of the files; empty where it is too long to keep
}

// A NotLoaded says which files had been changed and not been loaded by nginx.
type NotLoaded struct {
	Header
	Files []string `json:"files"`
}

// A Reloaded says that a new generation serves.
type Reloaded struct {
	Header
	balancer.Generation
}

// A Waiting is one reading of the connection counter.
type Waiting struct {
	Header
	Open      int           `json:"open"`
	Threshold int           `json:"threshold"`
	Peers     []remote.Peer `json:"peers"`
	MorePeers int           `json:"more_peers,omitempty"`
	Elapsed   spec.Seconds  `json:"elapsed"`
	Limit     spec.Seconds  `json:"limit,omitempty"`
	Low       int           `json:"low_in_a_row"`
	Error     string        `json:"error,omitempty"` // the connections cannot be counted now
	// Held are the connections that hold on longest, the longest first, at most
	// MaxHeld. They are looked at once an interval, and not with every counter:
	// readings between two looks repeat what the last one saw.
	Held []Held `json:"held,omitempty"`
	// Stuck is why the wait is not over, once the count has not fallen for a while.
	Stuck *Stuck `json:"stuck,omitempty"`
}

// MaxHeld bounds the connections that a reading names.
const MaxHeld = 5

// A Held is one open connection of a reading.
type Held struct {
	Address string `json:"address"` // of the far end, as the backend sees it
	Port    uint16 `json:"port"`
	LB      string `json:"lb,omitempty"` // whose it is; empty: another client
	// OpenFor is how long at least: since this wait saw it first, or since something was
	// last sent.
	OpenFor spec.Seconds `json:"open_for"`
	// Idle is how long nothing was sent in either direction; -1: not known.
	Idle spec.Seconds `json:"idle_for"`
}

// A StuckReason is what the connections that are left look like.
type StuckReason string

// The reasons.
const (
	StuckUpgraded StuckReason = "upgraded"     // LBs' connections with data in both directions: WebSocket, long polls
	StuckSending  StuckReason = "sending"      // LBs' connections on which only the backend sends: a download, an event stream
	StuckSilent   StuckReason = "silent"       // LBs' connections on which nothing is sent: the app has not answered
	StuckClients  StuckReason = "other_client" // connections of others than the LBs
)

// A Stuck is why a wait is not over, by the connections that are left.
type Stuck struct {
	Reason      StuckReason  `json:"reason"`
	Connections int          `json:"connections"` // of Open, that it is about; at most 2,000 are looked at
	OpenFor     spec.Seconds `json:"open_for"`    // the longest of them
	// ShutdownTimeout is nginx's worker_shutdown_timeout, at which it cuts them; 0: none.
	ShutdownTimeout spec.Seconds `json:"shutdown_timeout,omitempty"`
	// CanStop tells that --on-timeout stop is not set, and a service is there to stop.
	CanStop bool `json:"can_stop,omitempty"`
}

// A HealthChecked is one try of the health check.
type HealthChecked struct {
	Header
	Error   string       `json:"error,omitempty"`
	Passed  int          `json:"passed_in_a_row"`
	Needed  int          `json:"needed"`
	Elapsed spec.Seconds `json:"elapsed"`
	Limit   spec.Seconds `json:"limit,omitempty"`
}

// An OtherClient says that somebody else than nginx on the LBs is connected to a backend.
type OtherClient struct {
	Header
	Address string       `json:"address"`
	OnLB    bool         `json:"on_lb,omitempty"`   // it is a process of an LB, of another nginx for example
	Process string       `json:"process,omitempty"` // that process, for a person; empty: not known
	PID     int          `json:"pid,omitempty"`
	New     bool         `json:"new"`             // it connected after the servers were marked down
	Quiet   spec.Seconds `json:"quiet,omitempty"` // without a new connection that must pass
}

// A Buffered says that earlier workers hold requests that they may yet send to
// the backend.
type Buffered struct {
	Header
	Requests int          `json:"requests"`
	Limit    spec.Seconds `json:"limit"`
	GaveUp   bool         `json:"gave_up,omitempty"` // the limit is over; the drain goes on without them
}

// A BatchStarted says that a rolling run takes its next backends.
type BatchStarted struct {
	Header
	Number   int      `json:"number"` // from 1
	Of       int      `json:"of"`
	Backends []string `json:"backends"`
}

// A BackendSkipped says that a rolling run leaves a backend as it is.
type BackendSkipped struct {
	Header
	Reason string `json:"reason"`
}

// A GenerationsAwaited says that earlier generations of nginx have to end first.
type GenerationsAwaited struct {
	Header
	balancer.Generation
	Limit int `json:"limit"` // earlier generations that may be left
}

// A Paused says that a rolling run waits before its next batch.
type Paused struct {
	Header
	For spec.Seconds `json:"for"`
}

// A Rebooting says that a backend is told to reboot.
type Rebooting struct {
	Header
}

// A WorkOutput is a line that a command of a rolling run prints. It is not kept in
// the history.
type WorkOutput struct {
	Header
	Line string `json:"line"`
}

// A RollingBack says that what was done is being rolled back, and why.
type RollingBack struct {
	Header
	Error string `json:"error"`
}

// A StoppingAnyway says that the time is up and the service is stopped with
// connections open.
type StoppingAnyway struct {
	Header
	Error string `json:"error"`
}

// An LBSkipped says that an LB cannot be reached and is left out: it may still
// send requests.
type LBSkipped struct {
	Header
	Error string `json:"error"`
}

// A Warning is something the operator should know, though it stops nothing.
type Warning struct {
	Header
	Text string `json:"text"`
}

// An AgentCopied says that this drainctl was copied to an LB that has none.
type AgentCopied struct {
	Header
	Path string `json:"path"`
}

// A Result is the last line of an operation.
type Result struct {
	Header
	Kind     spec.Kind           `json:"kind,omitempty"`
	Targets  []string            `json:"targets,omitempty"`
	Result   journal.Result      `json:"result"`
	ExitCode spec.Exit           `json:"exit_code"`
	Changed  bool                `json:"changed"`
	Services []spec.ServiceStand `json:"services,omitempty"`
	StayDown []string            `json:"stay_down,omitempty"` // servers that an undrain left down
	AllDown  bool                `json:"all_down,omitempty"`  // that is all of them
	// StillAnswering are servers that took a connection after their service was stopped.
	StillAnswering []string `json:"still_answering,omitempty"`
	// Of a rolling run: the backends that are done, and those that it did not come to.
	Done      []string    `json:"done,omitempty"`
	Untouched []string    `json:"untouched,omitempty"`
	Skipped   []plan.Skip `json:"skipped,omitempty"`
	// GateClosed says that --gate, or the answer after the canary, began no further batch.
	GateClosed bool `json:"gate_closed,omitempty"`
	// Backends are those for which a step failed.
	Backends []BackendResult `json:"backends,omitempty"`
	Error    string          `json:"error,omitempty"`
	Findings []spec.Finding  `json:"findings"`
	Stands   *spec.Stands    `json:"state,omitempty"`
	Log      []string        `json:"log,omitempty"` // of the app
	Next     []spec.Command  `json:"next"`
}

// A BackendResult is how one backend ended where others went on.
type BackendResult struct {
	Backend string         `json:"backend"`
	Result  journal.Result `json:"result"`
	Error   string         `json:"error"`
}

func (*OperationStarted) name() string   { return "operation_started" }
func (*Planned) name() string            { return "plan" }
func (*Checked) name() string            { return "checked" }
func (*LockAwaited) name() string        { return "lock_awaited" }
func (*StepStarted) name() string        { return "step_started" }
func (*StepDone) name() string           { return "step_done" }
func (*StepFailed) name() string         { return "step_failed" }
func (*Edited) name() string             { return "edited" }
func (*NotLoaded) name() string          { return "not_loaded" }
func (*Reloaded) name() string           { return "reloaded" }
func (*Waiting) name() string            { return "waiting" }
func (*HealthChecked) name() string      { return "health" }
func (*OtherClient) name() string        { return "other_client" }
func (*Buffered) name() string           { return "buffered_requests" }
func (*RollingBack) name() string        { return "rolling_back" }
func (*StoppingAnyway) name() string     { return "stopping_anyway" }
func (*Warning) name() string            { return "warning" }
func (*AgentCopied) name() string        { return "agent_copied" }
func (*LBSkipped) name() string          { return "lb_skipped" }
func (*BatchStarted) name() string       { return "batch_started" }
func (*BackendSkipped) name() string     { return "backend_skipped" }
func (*GenerationsAwaited) name() string { return "generations_awaited" }
func (*Paused) name() string             { return "paused" }
func (*Rebooting) name() string          { return "rebooting" }
func (*WorkOutput) name() string         { return "work_output" }
func (*Result) name() string             { return "result" }

// Stamp completes the header of an event.
func Stamp(e Event) Event {
	h := e.Head()
	h.Event = e.name()
	if h.Time.IsZero() {
		h.Time = time.Now()
	}
	return e
}

// kinds are all events by their names.
var kinds = func() map[string]func() Event {
	all := map[string]func() Event{}
	for _, make := range []func() Event{
		func() Event { return &OperationStarted{} }, func() Event { return &Planned{} }, func() Event { return &Checked{} }, func() Event { return &LockAwaited{} },
		func() Event { return &StepStarted{} }, func() Event { return &StepDone{} }, func() Event { return &StepFailed{} },
		func() Event { return &Edited{} }, func() Event { return &NotLoaded{} }, func() Event { return &Reloaded{} },
		func() Event { return &Waiting{} }, func() Event { return &HealthChecked{} }, func() Event { return &OtherClient{} },
		func() Event { return &Buffered{} }, func() Event { return &RollingBack{} }, func() Event { return &StoppingAnyway{} },
		func() Event { return &Warning{} }, func() Event { return &AgentCopied{} }, func() Event { return &LBSkipped{} }, func() Event { return &BatchStarted{} }, func() Event { return &BackendSkipped{} },
		func() Event { return &GenerationsAwaited{} }, func() Event { return &Paused{} }, func() Event { return &Rebooting{} }, func() Event { return &WorkOutput{} }, func() Event { return &Result{} },
	} {
		all[make().name()] = make
	}
	return all
}()

// All returns an event of each type, sorted by name.
func All() []Event {
	var all []Event
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		all = append(all, Stamp(kinds[name]()))
	}
	return all
}

// Parse reads an event of a history.
func Parse(line []byte) (Event, error) {
	var h Header
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	make, known := kinds[h.Event]
	if !known {
		return nil, fmt.Errorf("event %q is not known: %w", h.Event, journal.ErrVersion)
	}
	e := make()
	if err := json.Unmarshal(line, e); err != nil {
		return nil, fmt.Errorf("event %s: %w", h.Event, err)
	}
	return e, nil
}

// StuckReason returns why the wait is not over; empty if that is not known.
func (e *Waiting) StuckReason() StuckReason {
	if e.Stuck == nil {
		return ""
	}
	return e.Stuck.Reason
}
