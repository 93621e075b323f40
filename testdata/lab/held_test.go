package lab_test

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/testdata/lab"
)

// A wait that does not get on names the connection that holds it up and what it looks
// like, as seen on the backend and on the load balancer.
func TestWaitSaysWhoHolds(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	for _, test := range []struct {
		reason event.StuckReason
		open   func(t *testing.T)
		polls  []string
		lb     string
		idle   bool
	}{
		{event.StuckSilent, func(t *testing.T) { hold(t, l, app, 80) }, []string{"ss", "lb"}, fleet.ThisMachine, true},
		{event.StuckUpgraded, func(t *testing.T) { openStream(t, l, app).talks(t) }, []string{"ss", "lb"}, fleet.ThisMachine, false},
		{event.StuckClients, func(t *testing.T) { dialApp(t, l, app) }, []string{"ss"}, "", true}, // an LB does not see it
	} {
		t.Run(string(test.reason), func(t *testing.T) {
			test.open(t)
			for _, poll := range test.polls {
				out := drainctl(t, l, "drain", app.Addr, "--poll", poll, "--timeout", "15s", "--output", "json").wants(t, 3).stdout
				last := lastWaiting(t, out)
				if s := last.Stuck; s == nil || s.Reason != test.reason || s.Connections != 1 || s.OpenFor < 5 || s.CanStop {
					t.Errorf("--poll %s: stuck is %+v, want %s", poll, s, test.reason)
				}
				if len(last.Held) != 1 || last.Held[0].LB != test.lb || last.Held[0].OpenFor < 5 || (last.Held[0].Idle > 5) != test.idle {
					t.Errorf("--poll %s: held by %+v", poll, last.Held)
				}
			}
		})
	}
}

// lastWaiting is the last reading of a wait.
func lastWaiting(t *testing.T, events string) *event.Waiting {
	t.Helper()
	lines := strings.Split(events, "\n")
	for _, line := range slices.Backward(lines) {
		if !strings.Contains(line, `"event":"waiting"`) {
			continue
		}
		e := &event.Waiting{}
		if err := json.Unmarshal([]byte(line), e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		return e
	}
	t.Fatalf("no reading among %d lines", len(lines))
	return nil
}

// talks has a stream say something all the time, until it ends.
func (s *stream) talks(t *testing.T) {
	t.Helper()
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := fmt.Fprintln(s.conn, "still here"); err != nil {
				return
			}
			if _, err := s.from.ReadString('\n'); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
}

// dialApp connects to an app, past the load balancer.
func dialApp(t *testing.T, l *lab.Lab, app *lab.Machine) {
	t.Helper()
	conn, err := l.Client.Dial("tcp", fmt.Sprintf("%s:%d", app.Addr, lab.AppPort), streamLimit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET /hold?s=299 HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}
