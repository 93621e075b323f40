package balancer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

// A stuck balancer has calls that do not end, and large answers.
type stuck struct {
	Balancer
	free   chan struct{} // closed to let locks go
	locks  atomic.Int64  // calls of Lock that have not returned
	closed atomic.Bool
}

func (s *stuck) Caller() journal.Recorder { return journal.Recorder{} }

func (s *stuck) Lock(context.Context, LockRequest) error {
	s.locks.Add(1)
	defer s.locks.Add(-1)
	<-s.free
	return nil
}

func (s *stuck) State(context.Context) (journal.State, error) {
	return journal.State{LastID: strings.Repeat("x", 1<<20)}, nil
}

func (s *stuck) Close() error {
	s.closed.Store(true)
	return nil
}

const ping = `{"id":0,"method":"ping","params":{}}` + "\n"

// greeted serves b to a client that has read the greeting.
func greeted(t *testing.T, b Balancer) (far pipe, in *bufio.Reader, ended <-chan error) {
	t.Helper()
	far, ended = serve(b)
	in = bufio.NewReader(far.ReadCloser)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return far, in, ended
}

// endsAfter sends text again and again, and wants the agent to end within the lease and one
// look more, counted from now.
func endsAfter(t *testing.T, send func() error, every time.Duration, ended <-chan error, why string) {
	t.Helper()
	began := time.Now()
	for {
		select {
		case err := <-ended:
			if took := time.Since(began); took < Lease-Lease/looks || took > Lease+Lease/looks || err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("the agent ended after %s: %v", took, err)
			}
			return
		case <-time.After(every):
			if time.Since(began) > time.Hour {
				t.Fatal("the agent goes on")
			}
			_ = send() // fails when the agent has just ended
		}
	}
}

// A client that pings keeps its agent. One that is silent loses it, as does one that pings,
// but does not read.
func TestClientThatIsGone(t *testing.T) {
	nothing := func() error { return nil }
	t.Run("silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &stuck{}
			far, _, ended := greeted(t, b)
			for range 1000 {
				time.Sleep(pingInterval)
				if _, err := io.WriteString(far, ping); err != nil {
					t.Fatal(err)
				}
			}
			endsAfter(t, nothing, time.Second, ended, "nothing was heard")
			if !b.closed.Load() {
				t.Error("its locks are still held")
			}
		})
	})
	t.Run("does not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &stuck{}
			far, _, ended := greeted(t, b)
			if _, err := io.WriteString(far, `{"id":1,"method":"state","params":{}}`+"\n"); err != nil {
				t.Fatal(err)
			}
			endsAfter(t, func() error { _, err := io.WriteString(far, ping); return err }, pingInterval, ended, "nothing of a response was read")
			if !b.closed.Load() {
				t.Error("its locks are still held")
			}
			far.Close()
		})
	})
	t.Run("reads slowly", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			far, in, ended := greeted(t, &stuck{})
			if _, err := io.WriteString(far, `{"id":1,"method":"state","params":{}}`+"\n"); err != nil {
				t.Fatal(err)
			}
			part := make([]byte, sendPart)
			for read := 0; read < 1<<20; {
				time.Sleep(Lease / 2)
				n, err := io.ReadFull(in, part)
				if err != nil {
					t.Fatalf("after %d bytes: %v", read, err)
				}
				read += n
				if _, err := io.WriteString(far, ping); err != nil {
					t.Fatal(err)
				}
			}
			go func() { _, _ = io.Copy(io.Discard, in) }()
			endsAfter(t, nothing, time.Second, ended, "nothing was heard")
		})
	})
}

// A cancelled call counts as long as it runs, and so do its bytes.
func TestCancelledCallsCount(t *testing.T) {
	for name, test := range map[string]struct{ size, want int }{
		"number": {0, maxCalls},
		"bytes":  {maxPending / 4, 3}, // a request has more than its reason
	} {
		t.Run(name, func(t *testing.T) {
			b := &stuck{free: make(chan struct{})}
			far, in, ended := greeted(t, b)
			params := fmt.Sprintf(`{"backends":[],"holder":{"name":"","reason":%q}}`, strings.Repeat("x", test.size))
			go func() {
				for id := 1; id <= 60; id++ {
					fmt.Fprintf(far, `{"id":%d,"method":"lock","params":%s}`+"\n"+`{"id":%d,"method":"cancel","params":{}}`+"\n", id, params, id)
				}
			}()
			for range 60 - test.want {
				line, err := in.ReadBytes('\n')
				var r response
				if err != nil || json.Unmarshal(line, &r) != nil || r.Error == nil || r.Error.Code != CodeBusy || !strings.Contains(r.Error.Message, "under way") {
					t.Fatalf("answer %.200q, error %v", line, err)
				}
			}
			if n := b.locks.Load(); int(n) > test.want {
				t.Errorf("%d calls run, more than %d", n, test.want)
			}
			close(b.free)
			for range test.want {
				if _, err := in.ReadBytes('\n'); err != nil {
					t.Fatal(err)
				}
			}
			far.Close()
			<-ended
		})
	}
}
