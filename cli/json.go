package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain"
)

// A jsonView prints one JSON object a line and nothing else on standard output.
// What went wrong is on standard error as well, in words.
type jsonView struct {
	mu      sync.Mutex
	out     io.Writer
	errors  *textView
	options viewOptions
}

func newJSONView(out, errOut io.Writer, options viewOptions) *jsonView {
	return &jsonView{out: out, errors: newTextView(io.Discard, errOut, options), options: options}
}

func (v *jsonView) print(object any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := json.Marshal(object)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"event": "error", "error": err.Error()})
	}
	fmt.Fprintf(v.out, "%s\n", b)
}

// document prints what is no event of a run, under a name.
func (v *jsonView) document(name string, fields map[string]any) {
	fields["event"], fields["time"] = name, time.Now()
	v.print(fields)
}

func (v *jsonView) event(e drain.Event) {
	v.print(e)
	if r, ok := e.(*drain.Result); ok {
		v.errors.event(r)
	}
}

func (v *jsonView) status(st *drain.Status) {
	v.document("status", map[string]any{"lbs": st.LBs})
}

func (v *jsonView) checks(r *drain.CheckReport) {
	v.document("check", map[string]any{"checks": r.Checks, "exit_code": r.ExitCode})
}

func (v *jsonView) history(entries []drain.HistoryEntry, unreadable []string) {
	for _, e := range entries {
		fields := map[string]any{"id": e.ID, "kind": e.Began.Kind, "targets": e.Began.Targets, "user": e.Began.User,
			"host": e.Began.Host, "reason": e.Began.Reason, "began": e.Began.Time, "result": resultText(e), "truncated": e.Truncated}
		if e.Ended != nil {
			fields["ended"] = e.Ended.Time
		}
		v.document("operation", fields)
	}
	for _, name := range unreadable {
		v.document("warning", map[string]any{"text": unreadableText(name)})
	}
}

func (v *jsonView) operation(id string, events []drain.Event, truncated int) {
	v.document("operation", map[string]any{"id": id, "events": events, "truncated": truncated})
}

func (v *jsonView) config(files []string, values []configValue) {
	v.document("config", map[string]any{"files": files, "values": values})
}

func (v *jsonView) trace(host, command string) {
	if v.options.verbose {
		v.document("command", map[string]any{"host": host, "command": command})
	}
}

func (v *jsonView) signal(_ drain.Kind, first bool) {
	v.document("signal", map[string]any{"rolling_back": first})
}

func (v *jsonView) pause(f func()) { f() }
