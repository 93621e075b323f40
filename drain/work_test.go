package drain

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/remote"
)

// A line of a command's output is told in pieces if it is long, and nothing of it is lost.
func TestOutputOfLongLines(t *testing.T) {
	var told []string
	o := &Operation{options: Options{Emit: func(e event.Event) { told = append(told, e.(*event.WorkOutput).Line) }}}
	long := strings.Repeat("x", 10*maxWorkLine+5)
	if err := <-o.tell(strings.NewReader("one\r\n"+long+"\ntwo\nthree"), "app-1", plan.StepWork); err != nil {
		t.Fatal(err)
	}
	if n := len(told); n != 14 || told[0] != "one" || told[n-2] != "two" || told[n-1] != "three" || strings.Join(told[1:n-2], "") != long {
		t.Errorf("%d lines were told, want 14", n)
	}
	for _, line := range told {
		if len(line) > maxWorkLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// What a command leaves running does not count against it, though it holds the output open:
// here and on the backend.
func TestWorkThatLeavesAProcess(t *testing.T) {
	const background = 15 * time.Second // longer than workGrace
	m := &row{Backend: &backend.Backend{Name: "app-1", Host: remote.Local(nil)}}
	for where, run := range map[string]func(o *Operation, words []string) (int, error){
		"here": func(o *Operation, words []string) (int, error) {
			return o.runHere(t.Context(), words, plan.Backend{}, plan.StepWork)
		},
		"on the backend": func(o *Operation, words []string) (int, error) { return o.runThere(t.Context(), m, words) },
	} {
		for status, script := range []string{"sleep 15 & echo started", "sleep 15 & echo started; exit 1"} {
			t.Run(where, func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				var told []string
				o := &Operation{options: Options{Emit: func(e event.Event) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, e.(*event.WorkOutput).Line)
				}}}
				began := time.Now()
				code, err := run(o, []string{"sh", "-c", script})
				if code != status || err != nil {
					t.Errorf("exit status %d, %v; want %d", code, err, status)
				}
				if time.Since(began) >= background {
					t.Error("it was waited for until the process in the background ended")
				}
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(told, []string{"started"}) {
					t.Errorf("told %q", told)
				}
			})
		}
	}
}

// A command on a backend has failed if the connection breaks before the end of its output, even if its
// exit status was 0.
func TestOutputOfWorkThatBreaksOff(t *testing.T) {
	h := startSSH(t, "root", func(string) answer { return answer{out: "half a li", lost: true} })
	host, err := fleet.Machines{}.Backend(t.Context(), plan.Backend{LB: h.address})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	o := &Operation{options: Options{Emit: func(event.Event) {}}}
	if code, err := o.runThere(t.Context(), &row{Backend: &backend.Backend{Host: host}}, []string{"upgrade"}); !errors.Is(err, remote.ErrConnection) {
		t.Errorf("exit status %d, %v; want %v", code, err, remote.ErrConnection)
	}
}
