package drain

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A script is a gauge that reads what it is told to, and then its last value
// for ever. A negative number is a reading that fails.
type script struct {
	counts []int
	reads  int
	onRead func(n int)
}

func (s *script) describe() string { return "a script" }

func (s *script) read(context.Context) (Reading, error) {
	i := min(s.reads, len(s.counts)-1)
	s.reads++
	if s.onRead != nil {
		s.onRead(s.reads)
	}
	if s.counts[i] < 0 {
		return Reading{}, errors.New("the line is cut")
	}
	return Reading{Count: s.counts[i]}, nil
}

// wait runs the wait on a script.
func wait(t *testing.T, ctx context.Context, s *script, change ...func(*Request)) (text string, told []Waiting, err error) {
	t.Helper()
	req := &Request{Operation: Drain, Interval: time.Millisecond, Timeout: time.Minute, OnTimeout: TimeoutRollback}
	for _, c := range change {
		c(req)
	}
	r := &run{req: req, plan: &Plan{Request: req}, gauge: s, tell: func(e Event) { told = append(told, e.(Waiting)) }}
	r.close = newCloseStep(r)
	changed, text, err := (&emptyStep{r: r}).forward(ctx)
	if changed {
		t.Error("a wait changed something")
	}
	return text, told, err
}

// One low reading proves nothing: as many in a row are needed.
func TestWaitNeedsSeveralLowReadings(t *testing.T) {
	for _, test := range []struct {
		counts    []int
		threshold int
		reads     int
	}{
		{[]int{0}, 0, 3},
		{[]int{5, 3, 1, 0}, 0, 6},
		{[]int{0, 0, 1, 0, 1, 0}, 0, 8},
		{[]int{0, 0, -1, 0}, 0, 6},
		{[]int{-1, -1, 0}, 0, 5},
		{[]int{4, 3, 2}, 2, 5},
		{[]int{2, 2, 3, 2, 1, 0}, 2, 6},
	} {
		s := &script{counts: test.counts}
		text, told, err := wait(t, t.Context(), s, func(r *Request) { r.Threshold = test.threshold })
		if err != nil || s.reads != test.reads || len(told) != test.reads || !strings.Contains(text, " open after ") {
			t.Errorf("%v: %d readings, %d told, %q, %v; want %d", test.counts, s.reads, len(told), text, err, test.reads)
		}
		if last := told[len(told)-1]; last.Low != lowReadings {
			t.Errorf("%v: the last reading is low %d times in a row", test.counts, last.Low)
		}
	}
}

func TestWaitTimesOut(t *testing.T) {
	s := &script{counts: []int{2}}
	_, _, err := wait(t, t.Context(), s, func(r *Request) { r.Timeout = 30 * time.Millisecond })
	var nd *NotDrainedError
	if !errors.As(err, &nd) || nd.Count != 2 || nd.Error() != "not drained after 30ms: 2 connections open, more than 0" {
		t.Errorf("got %v", err)
	}
	// What cannot be counted has not been drained, and was not seen to hold.
	_, _, err = wait(t, t.Context(), &script{counts: []int{-1}}, func(r *Request) { r.Timeout = 30 * time.Millisecond })
	if err == nil || errors.As(err, &nd) || !strings.Contains(err.Error(), "could not be counted when the time was up: the line is cut") {
		t.Errorf("got %v", err)
	}
	// When the time is up during the last low readings, they are finished.
	s = &script{counts: []int{1, 0}}
	s.onRead = func(n int) {
		if n == 2 {
			time.Sleep(600 * time.Millisecond)
		}
	}
	if _, _, err = wait(t, t.Context(), s, func(r *Request) { r.Timeout = 500 * time.Millisecond }); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestWaitIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := &script{counts: []int{1}, onRead: func(n int) {
		if n == 3 {
			cancel(ErrInterrupted)
		}
	}}
	if _, _, err := wait(t, ctx, s, func(r *Request) { r.Interval = time.Hour; r.Timeout = 0 }); !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v", err)
	}
}

// Far from the end the operator's interval counts; near it, and for the low
// readings, it is sampled faster, but never so fast that counting is most of
// what the backend does.
func TestPause(t *testing.T) {
	const interval = 500 * time.Millisecond
	for _, test := range []struct {
		name       string
		count, low int
		took       time.Duration
		w          Waiting
		want       time.Duration
	}{
		{"far", 1000, 0, time.Millisecond, Waiting{}, interval},
		{"near", 10, 0, time.Millisecond, Waiting{}, nearInterval},
		{"near, and counting is slow", 10, 0, 100 * time.Millisecond, Waiting{}, 200 * time.Millisecond},
		{"near, and counting is very slow", 10, 0, time.Second, Waiting{}, interval},
		{"low", 0, 1, 5 * time.Millisecond, Waiting{}, lowInterval - 5*time.Millisecond},
		{"low, and counting is slow", 0, 1, 50 * time.Millisecond, Waiting{}, 0},
		{"not counted", 0, 0, time.Millisecond, Waiting{Lost: errors.New("cut")}, interval},
		{"the time is nearly up", 1000, 0, time.Millisecond, Waiting{Limit: time.Minute, Elapsed: time.Minute - 100*time.Millisecond}, 100 * time.Millisecond},
		{"the time is up", 1000, 0, time.Millisecond, Waiting{Limit: time.Minute, Elapsed: time.Minute}, lowInterval},
		{"no limit", 1000, 0, time.Millisecond, Waiting{Elapsed: time.Hour}, interval},
	} {
		w := &emptying{r: &run{req: &Request{Interval: interval}}, Waiting: test.w, took: test.took}
		w.Count, w.Low = test.count, test.low
		if got := w.pause(); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	fast := &emptying{r: &run{req: &Request{Interval: time.Millisecond}}, took: time.Millisecond}
	fast.Count = 1000
	if got := fast.pause(); got != time.Millisecond {
		t.Errorf("the operator's own interval became %s", got)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 500 * time.Millisecond: "500ms", 30 * time.Second: "30s", 10 * time.Second: "10s", time.Minute: "1m", 90 * time.Second: "1m30s",
		5 * time.Minute: "5m", 10 * time.Minute: "10m", time.Hour: "1h", 10 * time.Hour: "10h", time.Hour + time.Second: "1h0m1s", 90 * time.Minute: "1h30m",
	} {
		if got := Span(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
