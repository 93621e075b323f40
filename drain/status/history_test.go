package status

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
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
