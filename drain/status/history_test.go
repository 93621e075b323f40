package status

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// strangerLB is an LB whose journal has no operation. It answers once all of asked are asked.
type strangerLB struct {
	historyLB
	asked *sync.WaitGroup
}

func (s *strangerLB) History(context.Context, balancer.HistoryQuery) (balancer.History, error) {
	s.asked.Done()
	s.asked.Wait()
	return balancer.History{}, &balancer.Error{Code: balancer.CodeUnknown, Message: "no such operation"}
}

// historyLBs are LBs by name.
type historyLBs map[string]balancer.Balancer

func (lbs historyLBs) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	return lbs[name], nil
}

func (historyLBs) Backend(context.Context, plan.Backend) (remote.Host, error) { return nil, nil }

// LBs are asked at the same time. An operation is unknown only if none of them knows it.
func TestReadOperationOfSeveralLBs(t *testing.T) {
	stranger := &strangerLB{historyLB{caller: rootRecorder}, new(sync.WaitGroup)}
	known := &historyLB{caller: rootRecorder, recorder: rootRecorder, lines: []json.RawMessage{lineOf(t, &event.OperationStarted{Targets: []string{"127.0.0.2"}})}}
	sp := spec.Default("")
	sp.LBs, sp.Parallel = []string{"lb1", "lb2", "lb3"}, 3
	stranger.asked.Add(3)
	events, _, err := ReadOperation(t.Context(), sp, plantedID, historyLBs{"lb1": stranger, "lb2": stranger, "lb3": stranger})
	if spec.ExitOf(err) != spec.Usage || len(events) != 0 {
		t.Errorf("no LB knows it: %d events, %v", len(events), err)
	}
	stranger.asked.Add(2)
	events, _, err = ReadOperation(t.Context(), sp, plantedID, historyLBs{"lb1": stranger, "lb2": known, "lb3": stranger})
	if err != nil || len(events) != 1 {
		t.Errorf("one LB knows it: %d events, %v", len(events), err)
	}
}

// An operation ended as the LB says that has its latest line: another one was lost before the end, or a
// resume ended without it. What another user recorded under the same ID is not asked.
func TestReadHistoryOfLBsThatDiffer(t *testing.T) {
	began := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	line := func(e event.Event, minute int) json.RawMessage {
		e.Head().Time = began.Add(time.Duration(minute) * time.Minute)
		return lineOf(t, e)
	}
	started := func() json.RawMessage { return line(&event.OperationStarted{Kind: spec.Drain}, 0) }
	step := func(minute int) json.RawMessage { return line(&event.StepStarted{}, minute) }
	ended := func(r journal.Result, minute int) json.RawMessage { return line(&event.Result{Result: r}, minute) }
	for _, test := range []struct {
		name          string
		recorder      *journal.Recorder // of the second LB's history
		first, second json.RawMessage   // the last lines
		want          journal.Result    // empty: it has not ended
	}{
		{"the first LB was lost", rootRecorder, step(1), ended(journal.ResultDone, 2), journal.ResultDone},
		{"the second LB was lost", rootRecorder, ended(journal.ResultDone, 2), step(1), journal.ResultDone},
		{"resumed without the first", rootRecorder, ended(journal.ResultNotDrained, 1), ended(journal.ResultDone, 2), journal.ResultDone},
		{"resumed, and crashed", rootRecorder, ended(journal.ResultNotDrained, 1), step(2), ""},
		{"planted", deployRecorder, ended(journal.ResultNotDrained, 1), ended(journal.ResultDone, 2), journal.ResultNotDrained},
	} {
		c := historyLBs{
			"lb1": &historyLB{caller: rootRecorder, recorder: rootRecorder, lines: []json.RawMessage{started(), test.first}},
			"lb2": &historyLB{caller: rootRecorder, recorder: test.recorder, lines: []json.RawMessage{started(), test.second}},
		}
		sp := spec.Default("")
		sp.LBs = []string{"lb1", "lb2"}
		entries, unreadable, err := ReadHistory(t.Context(), sp, c)
		if err != nil || len(entries) != 1 || len(unreadable) != 0 {
			t.Fatalf("%s: %+v, %q, %v", test.name, entries, unreadable, err)
		}
		got := journal.Result("")
		if e := entries[0].Ended; e != nil {
			got = e.Result
		}
		if got != test.want {
			t.Errorf("%s: ended %q, want %q", test.name, got, test.want)
		}
	}
}
