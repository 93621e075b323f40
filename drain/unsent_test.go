package drain

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A busyLB is a host whose earlier workers hold so many requests that no server has,
// one look after the other; the last number stays.
type busyLB struct {
	remote.Host
	held  []int
	looks int
}

func (b *busyLB) Name() string { return "lb1" }

func (b *busyLB) Run(_ context.Context, c remote.Command) (remote.Result, error) {
	if !c.Root {
		return remote.Result{}, fmt.Errorf("not as root: %q", c.Args)
	}
	n := b.held[min(b.looks, len(b.held)-1)]
	b.looks++
	if n < 0 {
		return remote.Result{}, &remote.SudoError{Host: "lb1", Commands: [][]string{{"ss"}}}
	}
	mark := c.Args[4] // sh -c SCRIPT sh MARK
	return remote.Result{Stdout: fmt.Appendf(nil, "%s\nsockets %d 0\nend 0\n", mark, n)}, nil
}

// waitBeside runs the wait on a backend that is empty, beside a load balancer.
func waitBeside(t *testing.T, lb *busyLB, earlier ...int) (reads int, told []string) {
	t.Helper()
	req := &Request{Operation: Drain, Interval: time.Millisecond, Timeout: time.Millisecond}
	s := &script{counts: []int{0}}
	r := &run{req: req, plan: &Plan{Request: req}, gauge: s, close: &closeStep{lbs: []*closing{{lb: &LB{Host: lb}, earlier: earlier}}}}
	// The wait of a way back does not watch the configuration, which there is none of.
	r.undoing, r.stop = true, &stopStep{touched: true}
	r.tell = func(e Event) {
		if p, ok := e.(Progress); ok {
			told = append(told, p.Text)
		}
	}
	if _, text, err := (&emptyStep{r: r}).forward(t.Context()); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s.reads, told
}

// As long as earlier workers hold what they may yet send, a backend is not empty, and
// a reading comes after the look that finds none.
func TestWaitForWhatIsStillToBeSent(t *testing.T) {
	lb := &busyLB{held: []int{3, 3, 1, 0}}
	reads, told := waitBeside(t, lb, 11, 12)
	if lb.looks != 4 || reads != lowReadings+3 {
		t.Errorf("%d looks and %d readings, want 4 and %d", lb.looks, reads, lowReadings+3)
	}
	if len(told) != 1 || !strings.Contains(told[0], "hold 3 requests that may yet be sent to the backend") {
		t.Errorf("it tells %q, want it once", told)
	}
	// Without earlier workers nobody is asked, and without root nobody can be.
	lb = &busyLB{held: []int{3}}
	if reads, told := waitBeside(t, lb); lb.looks != 0 || reads != lowReadings || told != nil {
		t.Errorf("without earlier workers: %d looks, %d readings, told %q", lb.looks, reads, told)
	}
	if reads, told := waitBeside(t, &busyLB{held: []int{-1}}, 11); reads != lowReadings || told != nil {
		t.Errorf("without root: %d readings, told %q", reads, told)
	}
}

// What never goes away, such as a long download from nginx itself, does not hold up the
// drain for ever.
func TestWaitForWhatIsStillToBeSentEnds(t *testing.T) {
	var warned []string
	r := &run{close: &closeStep{lbs: []*closing{{lb: &LB{Host: &busyLB{held: []int{1}}}, earlier: []int{11}}}}}
	r.tell = func(e Event) {
		if w, ok := e.(Warned); ok {
			warned = append(warned, w.Text)
		}
	}
	u := &unsent{r: r}
	if !u.look(t.Context()) {
		t.Error("the first look finds nothing")
	}
	u.since = u.since.Add(-unsentGrace)
	for range 3 {
		if u.look(t.Context()) {
			t.Error("it goes on for ever")
		}
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "still hold 1 request without a server after 10s") {
		t.Errorf("it warns %q, want it once", warned)
	}
}
