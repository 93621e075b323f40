package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// state is what systemd says of a unit.
func state(t *testing.T, m *lab.Machine, unit string) string {
	t.Helper()
	out, _ := m.Run(t.Context(), "systemctl", "is-active", unit) // fails unless active
	return strings.TrimSpace(out)
}

func wantState(t *testing.T, m *lab.Machine, want string) {
	t.Helper()
	if now := state(t, m, lab.AppUnit); now != want {
		t.Errorf("%s on %s is %s, want %s", lab.AppUnit, m.Name, now, want)
	}
}

func events(t *testing.T, app *lab.Machine) []lab.AppEvent {
	t.Helper()
	all, err := app.AppEvents()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// stoppedIdle checks by the app's own record that it had served and then, at its last
// stop, held nothing.
func stoppedIdle(t *testing.T, app *lab.Machine) {
	t.Helper()
	all := events(t, app)
	last := len(all) - 1
	if last < 1 || all[last].Kind != "TERM" {
		t.Fatalf("the record of %s does not end with its stop: %v", app.Name, all[max(0, last-3):])
	}
	if all[last].Open != 0 || all[last-1].Kind != "END" {
		t.Errorf("%s was stopped with %d requests open: %v", app.Name, all[last].Open, all[max(0, last-3):])
		return
	}
	t.Logf("%s was stopped %s after the end of its last request", app.Name, all[last].Time.Sub(all[last-1].Time))
}

// options restarts nothing: it sets with which flags the app starts the next time.
func options(t *testing.T, app *lab.Machine, flags string) {
	t.Helper()
	if err := app.WriteFile(t.Context(), "/etc/default/"+lab.AppUnit, []byte("OPTIONS="+flags+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// startLoad starts load and returns once it is in full swing on an app.
func startLoad(t *testing.T, l *lab.Lab, busy *lab.Machine) *lab.Load {
	t.Helper()
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	waitBusy(t, busy)
	return load
}

// goesOn waits until the load has had that many more answers.
func goesOn(t *testing.T, load *lab.Load, requests int) {
	t.Helper()
	enough := load.Snapshot().Requests + requests
	if err := load.WaitFor(t.Context(), patience, func(s traffic.Summary) bool { return s.Requests >= enough }); err != nil {
		t.Fatal(err)
	}
}

// servesAgain waits until an app has answered a request that came after now.
func servesAgain(t *testing.T, load *lab.Load, app *lab.Machine) {
	t.Helper()
	since := time.Now()
	err := load.WaitFor(t.Context(), patience, func(s traffic.Summary) bool { return s.Servers[app.Name].Last.After(since) })
	if err != nil {
		t.Fatalf("%s got no request: %v", app.Name, err)
	}
}

// noneFailed ends the load and checks that no client has seen a fault.
func noneFailed(t *testing.T, load *lab.Load) traffic.Summary {
	t.Helper()
	s, err := load.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", s)
	if s.Failed != 0 {
		t.Errorf("%d requests and streams failed, want none", s.Failed)
	}
	if s.Requests+s.Streams < 20 {
		t.Errorf("the load was too thin to prove anything: %s", s)
	}
	return s
}

// A held request is open on an app until it is let go or cut.
type held struct {
	path string
	from *lab.Machine
}

// hold opens requests through the load balancer until one of them is held by the app.
// They end with the test, if nobody ends them before.
func hold(t *testing.T, l *lab.Lab, app *lab.Machine, port int) held {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := held{path: fmt.Sprintf("/hold?s=299&t=%d", time.Now().UnixNano()), from: app}
	var ended []<-chan struct{}
	t.Cleanup(func() {
		cancel()
		for _, done := range ended {
			<-done
		}
	})
	for range 30 {
		cmd := l.Client.Command(ctx, "curl", "-sS", "--max-time", "299", fmt.Sprintf("http://%s:%d%s", lab.LBAddr, port, h.path))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		ended = append(ended, done)
		go func() {
			defer close(done)
			_ = cmd.Wait() // cut, or killed at the end
		}()
		for range 20 {
			if h.open(t) {
				return h
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	t.Fatalf("none of 30 requests reached %s", app.Name)
	return h
}

// open tells whether the app still holds the request.
func (h held) open(t *testing.T) bool {
	t.Helper()
	open := map[int]bool{}
	for _, e := range events(t, h.from) {
		switch {
		case e.Kind == "BOOT", e.Kind == "TERM":
			clear(open) // what was open then is cut
		case e.Kind == "START" && strings.Contains(e.What, h.path):
			open[e.Request] = true
		case e.Kind == "END":
			delete(open, e.Request)
		}
	}
	return len(open) > 0
}
