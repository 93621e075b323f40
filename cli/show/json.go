package show

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// A jsonView prints JSON and nothing else on standard output: an object a line
// for the events of an operation, or one document. What went wrong is on standard
// error as well, in words; beside a document, everything else.
type jsonView struct {
	mu      sync.Mutex
	out     io.Writer
	beside  *Text
	options Options
	printed bool
}

// NewJSON is the view for a program.
func NewJSON(out, errOut io.Writer, options Options) View {
	besideOut := io.Discard
	if options.Document {
		besideOut = errOut
	}
	return &jsonView{out: out, beside: NewText(besideOut, errOut, options), options: options}
}

// What is no event of an operation has these types.
type (
	// A commandLine is a command as it is run.
	commandLine struct {
		Event   string    `json:"event" jsonschema:"enum=command"`
		Time    time.Time `json:"time"`
		Host    string    `json:"host"`
		Command string    `json:"command"`
	}
	// A signalLine says that a signal was received.
	signalLine struct {
		Event       string    `json:"event" jsonschema:"enum=signal"`
		Time        time.Time `json:"time"`
		RollingBack bool      `json:"rolling_back"` // false: it stops at once
	}
	// A statusDocument is what the servers are now.
	statusDocument struct {
		Event string    `json:"event" jsonschema:"enum=status"`
		Time  time.Time `json:"time"`
		*status.Status
	}
	// A checkDocument is what was tried of all that a run needs.
	checkDocument struct {
		Event string    `json:"event" jsonschema:"enum=check"`
		Time  time.Time `json:"time"`
		*drain.CheckReport
	}
	// A configDocument is the settings of a run, and the files that were read.
	configDocument struct {
		Event  string        `json:"event" jsonschema:"enum=config"`
		Time   time.Time     `json:"time"`
		Files  []string      `json:"files"`
		Values []ConfigValue `json:"values"`
	}
	// A historyDocument lists operations, the latest last.
	historyDocument struct {
		Event      string             `json:"event" jsonschema:"enum=history"`
		Time       time.Time          `json:"time"`
		Operations []historyOperation `json:"operations"`
		Unreadable []string           `json:"unreadable"` // files that hold no operation
	}
	historyOperation struct {
		ID        string            `json:"id"`
		Kind      spec.Kind         `json:"kind"`
		Targets   []string          `json:"targets"`
		Recorder  *journal.Recorder `json:"recorder,omitempty"` // as the load balancer saw them
		User      string            `json:"user"`
		Host      string            `json:"host"`
		Reason    string            `json:"reason"`
		Began     time.Time         `json:"began"`
		Ended     time.Time         `json:"ended,omitzero"`
		Result    journal.Result    `json:"result"`
		Truncated int               `json:"truncated"` // lines that could not be read
	}
	// An operationDocument is one operation and its events.
	operationDocument struct {
		Event     string        `json:"event" jsonschema:"enum=operation"`
		Time      time.Time     `json:"time"`
		ID        string        `json:"id"`
		Events    []event.Event `json:"events"`
		Truncated int           `json:"truncated"`
	}
)

func (v *jsonView) print(object any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := json.Marshal(object)
	if err != nil {
		b, _ = json.Marshal(event.Stamp(&event.Warning{Text: err.Error()}))
	}
	b = cleanJSON(b)
	if v.beside.onGithub {
		b = bytes.ReplaceAll(b, []byte("##["), []byte(`\u0023#[`)) // see noCommand
	}
	fmt.Fprintf(v.out, "%s\n", b)
	v.printed = true
}

func (v *jsonView) Event(e event.Event) {
	_, isPlan := e.(*event.Planned)
	_, isResult := e.(*event.Result)
	if !v.options.Document || isPlan || isResult && !v.printed {
		v.print(e)
	}
	if isResult || v.options.Document && !isPlan {
		v.beside.Event(e)
	}
}

func (v *jsonView) Status(st *status.Status) { v.print(statusDocument{"status", time.Now(), st}) }

func (v *jsonView) Checks(r *drain.CheckReport) {
	v.print(checkDocument{"check", time.Now(), r})
}

func (v *jsonView) History(entries []status.HistoryEntry, unreadable []string) {
	doc := historyDocument{Event: "history", Time: time.Now(), Operations: []historyOperation{}, Unreadable: append([]string{}, unreadable...)}
	for _, e := range entries {
		op := historyOperation{
			ID: e.ID, Kind: e.Began.Kind, Targets: e.Began.Targets, Recorder: e.Began.Recorder, User: e.Began.User, Host: e.Began.Host, Reason: e.Began.Reason,
			Began: e.Began.Time, Result: journal.Result(resultText(e)), Truncated: e.Truncated,
		}
		if e.Ended != nil {
			op.Ended = e.Ended.Time
		}
		doc.Operations = append(doc.Operations, op)
	}
	v.print(doc)
}

func (v *jsonView) Operation(op Operation) {
	v.print(operationDocument{"operation", time.Now(), op.ID, op.Events, op.Truncated})
}

func (v *jsonView) Config(files []string, values []ConfigValue) {
	v.print(configDocument{"config", time.Now(), files, values})
}

func (v *jsonView) Trace(host, command string) {
	switch {
	case v.options.Document:
		v.beside.Trace(host, command)
	case v.options.Verbose:
		v.print(commandLine{"command", time.Now(), host, command})
	}
}

func (v *jsonView) Signal(kind spec.Kind, first bool) {
	if v.options.Document {
		v.beside.Signal(kind, first)
		return
	}
	v.print(signalLine{"signal", time.Now(), first})
}

func (v *jsonView) Pause(f func()) { f() }
