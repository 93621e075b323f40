package show

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
)

// shows gives what a text view, not on a terminal, prints of what happens.
func shows(t *testing.T, happens func(emit func(event.Event))) string {
	var out bytes.Buffer
	synctest.Test(t, func(*testing.T) {
		v := NewText(&out, io.Discard, Options{})
		happens(func(e event.Event) { v.Event(event.Stamp(e)) })
		synctest.Wait()
	})
	return out.String()
}

func step(name plan.StepName, d plan.Direction) event.Header {
	return event.Header{Step: name, Direction: d}
}

func waitsFor(backend string, open int) *event.Waiting {
	e := &event.Waiting{Header: step(plan.StepWait, plan.Forward), Open: open}
	if e.Target = backend; open == 0 {
		e.Low = 3
	}
	return e
}

// Not on a terminal a wait is a line every 10 s, which names each backend that is
// not done.
func TestWaitInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.Planned{Plan: &plan.Plan{Backends: make([]plan.Backend, 3)}})
		emit(&event.StepStarted{Header: step(plan.StepWait, plan.Forward), Number: 2, Of: 3})
		for second := range 35 {
			emit(waitsFor("a", 3))
			emit(waitsFor("b", 2))
			if second < 15 {
				emit(waitsFor("c", max(0, 1-second/14)))
			}
			time.Sleep(time.Second)
		}
		emit(&event.StepDone{Header: step(plan.StepWait, plan.Forward)})
		emit(&event.Result{})
		time.Sleep(time.Minute)
	})
	_, out, _ = strings.Cut(out, "2/3 ")
	lines := strings.Split(strings.TrimSpace(out), "\n")[1:]
	want := []string{"  a: 3 open; 0s", "  a: 3 open, b: 2 open, c: 1 open; 10s", "  a: 3 open, b: 2 open; 20s", "  a: 3 open, b: 2 open; 30s"}
	if !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
}

// One that is left of several is named, with what is known of it.
func TestLastOfSeveralInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.Planned{Plan: &plan.Plan{Backends: make([]plan.Backend, 2)}})
		emit(&event.StepStarted{Header: step(plan.StepWait, plan.Forward), Number: 2, Of: 3})
		emit(waitsFor("a", 0))
		emit(waitsFor("b", 2))
		time.Sleep(11 * time.Second)
		emit(&event.Result{})
	})
	_, out, _ = strings.Cut(out, "2/3 ")
	if !strings.HasSuffix(out, "\n  a: 0 open; 0s\n  b: 2 open; 0s\n") || strings.Count(out, "\n") != 3 {
		t.Errorf("%q", out)
	}
}

// A step of which nothing is heard is not silent either, nor is one that waits
// for a lock.
func TestNoSilenceInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.LockAwaited{})
		time.Sleep(25 * time.Second)
		emit(&event.StepStarted{Header: step(plan.StepService, plan.Forward), Number: 3, Of: 3, Description: plan.Description{Service: "app", Backend: "a"}})
		time.Sleep(15 * time.Second)
		emit(&event.RollingBack{})
		time.Sleep(5 * time.Second)
		emit(&event.StepDone{Header: step(plan.StepService, plan.Reverse)})
		time.Sleep(14 * time.Second)
		emit(&event.Result{})
		time.Sleep(time.Minute)
	})
	if strings.Count(out, "  still: waiting for another operation to end") != 2 ||
		strings.Count(out, "  still: stop app on a, verify that it is inactive; 10s\n") != 1 || strings.Count(out, "  still: rolling back; 1") != 1 || strings.Count(out, "still: ") != 4 {
		t.Errorf("%s", out)
	}
}
