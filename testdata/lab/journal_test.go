package lab_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// An operation is one as the load balancer's history has it. It is read without
// drainctl, so that a fault of its reader is no fault of the test.
type operation struct {
	id, kind string
	records  []recorded
}

// recorded is one line of it, as far as the tests look at it.
type recorded struct {
	Event     string `json:"event"`
	Operation string `json:"operation"`
	Kind      string `json:"kind"`
	Step      string `json:"step"`
	Direction string `json:"direction"`
	Result    string `json:"result"`
	Code      int    `json:"exit_code"`
}

// operations reads the history, the oldest operation first.
func operations(t *testing.T, l *lab.Lab) []operation {
	t.Helper()
	names, _ := l.LB.Run(t.Context(), "sh", "-c", "ls "+stateDir+"/history/*.jsonl") // fails when there is none
	if !strings.HasPrefix(names, "/var") {
		return nil
	}
	var all []operation
	for _, name := range strings.Fields(names) {
		text, err := l.LB.ReadFile(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		o := operation{}
		for line := range strings.Lines(string(text)) {
			var r recorded
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				continue // cut short
			}
			if r.Event == "operation_started" {
				o.id, o.kind = r.Operation, r.Kind
			}
			o.records = append(o.records, r)
		}
		all = append(all, o)
	}
	return all
}

// result is how the operation ended; empty when it does not say.
func (o operation) result() string {
	for _, r := range slices.Backward(o.records) {
		if r.Event == "result" {
			return r.Result
		}
	}
	return ""
}

// reached is the last thing the operation wrote down, such as "drain: mark down edited".
func (o operation) reached() string {
	if len(o.records) == 0 {
		return "nothing"
	}
	step := "-"
	for _, r := range o.records {
		if r.Step != "" {
			step = r.Step
		}
	}
	return o.kind + ": " + step + " " + o.records[len(o.records)-1].Event
}

// lastEnds checks how the journal says that the last operation ended; empty is that it
// does not say.
func lastEnds(t *testing.T, l *lab.Lab, result string) operation {
	t.Helper()
	all := operations(t, l)
	if len(all) == 0 {
		t.Fatal("the journal is empty")
	}
	last := all[len(all)-1]
	if last.result() != result {
		t.Errorf("the journal says that %s %s ended %q, want %q: %v", last.kind, last.id, last.result(), result, last.records)
	}
	return last
}

// nothingInterrupted checks that status knows of nothing that was interrupted, and that every
// server is up.
func nothingInterrupted(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, s := range states(t, l) {
		if s != "up" {
			t.Errorf("status says that a server is %q, want all up", s)
		}
	}
}

// states is what status says of each server.
func states(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	out := drainctl(t, l, "status", "--output", "json").wants(t, 0).stdout
	var status struct {
		LBs []struct{ Servers []struct{ State string } }
	}
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &status); err != nil {
		t.Fatalf("status --output json: %v\n%s", err, out)
	}
	var all []string
	for _, s := range status.LBs[0].Servers {
		all = append(all, s.State)
	}
	return all
}
