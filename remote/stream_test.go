package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// TestOneSession has an sshd that allows one session: commands, a stream and a
// counter take turns.
func TestOneSession(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{config: "MaxSessions 1"})
	port := established(t, "tcp4", "127.0.0.1:0", 3, true).(*net.TCPAddr).Port
	for _, user := range []string{"root", opUser} {
		t.Run(user, func(t *testing.T) {
			h := s.connect(t, user)
			before := logins(t, s)
			counters := []*Counter{NewCounter(h, ports(port)), NewCounter(h, ports(port))}
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", fmt.Sprint(i)}})
					if err != nil || string(r.Stdout) != fmt.Sprintf("%d\n", i) {
						t.Errorf("%q, %v", r.Stdout, err)
					}
				})
				wg.Go(func() {
					if got, err := counters[i%2].Count(limit(t, time.Minute)); err != nil || got.Open != 3 {
						t.Errorf("%+v, %v", got, err)
					}
				})
			}
			wg.Wait()
			stream, err := h.Start(limit(t, time.Minute), Command{Args: []string{"cat"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Run(limit(t, 100*time.Millisecond), Command{Args: []string{"true"}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("while a stream holds the session: %v", err)
			}
			if _, err := counters[0].Count(limit(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("while a stream holds the session: %v", err)
			}
			if _, err := io.WriteString(stream, "still here\n"); err != nil {
				t.Error(err)
			}
			if line, err := bufio.NewReader(stream).ReadString('\n'); line != "still here\n" {
				t.Errorf("%q, %v", line, err)
			}
			stream.Close()
			if got, err := counters[0].Count(limit(t, time.Minute)); err != nil || got.Open != 3 {
				t.Errorf("%+v, %v", got, err)
			}
			for _, c := range counters { // one of them lost its session to the other
				c.Close()
				if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); err != nil {
					t.Error(err)
				}
			}
			if n := logins(t, s); n != before {
				t.Errorf("%d new connections", n-before)
			}
			// A command that hangs keeps its session; the next one does not wait for it.
			begin := time.Now()
			if _, err := h.Run(limit(t, 200*time.Millisecond), Command{Args: []string{"sleep", "8"}, Root: true}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", "ok"}}); err != nil || string(r.Stdout) != "ok\n" || time.Since(begin) > 5*time.Second {
				t.Errorf("%q, %v, after %v", r.Stdout, err, time.Since(begin))
			}
		})
	}
	t.Run("none at all", func(t *testing.T) {
		s := startServer(t, serverOptions{config: "MaxSessions 0"})
		fast := quick()
		fast.refusal = 100 * time.Millisecond
		h, err := s.ssh(opUser).connect(limit(t, time.Minute), fast)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); err == nil {
			t.Error("no error")
		}
	})
}

// BenchmarkStop is what a command costs that comes right after a reading.
func BenchmarkStop(b *testing.B) {
	makeUsers(b)
	h := startServer(b, serverOptions{config: "MaxSessions 1"}).connect(b, opUser)
	counter := NewCounter(h, ports(80))
	defer counter.Close()
	for b.Loop() {
		if _, err := counter.Count(limit(b, time.Minute)); err != nil {
			b.Fatal(err)
		}
		if _, err := h.Run(limit(b, time.Minute), Command{Args: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
	}
}
