package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A lister is a counter that can list its connections.
type lister struct {
	open   []remote.Held
	took   time.Duration // by a look
	err    error         // of a look
	looks  int
	counts int
}

func (l *lister) Count(context.Context) (remote.Count, error) {
	l.counts++
	return remote.Count{Open: len(l.open)}, nil
}

func (l *lister) CountHeld(context.Context) (remote.Count, error) {
	l.looks++
	time.Sleep(l.took)
	return remote.Count{Open: len(l.open), Held: l.open}, l.err
}

func (*lister) Close() error { return nil }

func far(port int) remote.Held {
	return remote.Held{Far: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(port))}
}

// Readings are many for a while after a change, then one an interval. Looks are few: one an interval, in
// place of a count.
func TestLooksAreRare(t *testing.T) {
	for _, test := range []struct {
		took  time.Duration
		looks int // in 10 s
	}{
		{0, 20},
		{time.Second / 10, 10}, // a look that costs more comes less often
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &lister{open: []remote.Held{far(1)}, took: test.took}
			b, w, told := waitOf(l, func(w *Wait) { w.Interval, w.Timeout = 500*time.Millisecond, 10*time.Second })
			_, err := b.Drained(t.Context(), w)
			var late *TimedOutError
			if !errors.As(err, &late) || l.looks < test.looks-1 || l.looks > test.looks+1 || len(told.readings) != l.looks+l.counts || l.counts < 100 || len(told.readings) > 230 {
				t.Errorf("%d looks and %d counts in %d readings, want %d looks: %v", l.looks, l.counts, len(told.readings), test.looks, err)
			}
			for _, r := range told.readings {
				if len(r.Held) != 1 {
					t.Fatalf("a reading without the connection: %+v", r)
				}
			}
		})
	}
	// The readings that decide are counts, and nothing else.
	l := &lister{}
	b, w, _ := waitOf(l)
	if _, err := b.Drained(t.Context(), w); err != nil || l.looks != 1 || l.counts != LowReadings-1 {
		t.Errorf("%d looks and %d counts, %v", l.looks, l.counts, err)
	}
}

// A look that fails is no reading that fails, and is not tried again. A connection that
// breaks is another thing.
func TestLookFails(t *testing.T) {
	for _, test := range []struct {
		err           error
		looks, counts int
		broken        bool
	}{
		{errors.New("invalid option -- 'i'"), 1, 3, false},
		{fmt.Errorf("cut: %w", remote.ErrConnection), 3, 0, true},
	} {
		l := &lister{open: []remote.Held{far(1)}, err: test.err}
		h := &held{counter: l}
		for range 3 {
			h.next = time.Time{}
			count, err := h.count(t.Context(), time.Hour)
			if (err != nil) != test.broken || err == nil && count.Open != 1 {
				t.Errorf("%v: %+v, %v", test.err, count, err)
			}
		}
		if l.looks != test.looks || l.counts != test.counts {
			t.Errorf("%v: %d looks and %d counts, want %d and %d", test.err, l.looks, l.counts, test.looks, test.counts)
		}
	}
}

// A look that takes long and fails is a reading that fails: a count would take as long.
func TestSlowLookFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lister{took: 30 * time.Second, err: errors.New("no answer")}
		if _, err := (&held{counter: l}).count(t.Context(), time.Second); err == nil || l.counts != 0 {
			t.Errorf("%d counts, %v", l.counts, err)
		}
	})
}

// The longest open comes first, and of several the one that is idle longest.
func TestHeldLongestFirst(t *testing.T) {
	idle := func(port int, sent, received time.Duration) remote.Held {
		h := far(port)
		h.Sent, h.Received = sent, received
		return h
	}
	h, now := &held{}, time.Now()
	h.see([]remote.Held{far(2), far(9)}, now)
	h.see([]remote.Held{far(1), far(2), idle(3, time.Second, time.Minute), idle(4, time.Minute, time.Hour)}, now.Add(time.Second))
	h.see([]remote.Held{far(1), far(2), idle(3, 2*time.Second, 1900*time.Millisecond), idle(4, time.Hour, time.Minute), idle(5, -1, -1)}, now.Add(3*time.Second))
	var got string
	for _, one := range h.list {
		got += fmt.Sprintf("%d: %s, %s; ", one.Far.Port(), one.Open, one.Idle())
	}
	if want := "2: 3s, 0s; 4: 2s, 1m0s; 3: 2s, 1.9s; 1: 2s, 0s; 5: 0s, -1ns; "; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if len(h.seen) != 5 {
		t.Errorf("it remembers %d connections", len(h.seen))
	}
}

// A wait is stuck when the connections have not become fewer for ten seconds, and three
// readings.
func TestStuck(t *testing.T) {
	const never = time.Hour
	for _, test := range []struct {
		name      string
		open      func(at time.Duration) int
		interval  time.Duration
		threshold int
		from      time.Duration // when it is stuck first
	}{
		{"the same", func(time.Duration) int { return 20 }, time.Second, 0, stuckAfter},
		{"near the end", func(time.Duration) int { return 1 }, time.Second, 0, stuckAfter},
		{"a long interval", func(time.Duration) int { return 20 }, 20 * time.Second, 0, 60 * time.Second},
		{"it falls", func(at time.Duration) int { return 100 - int(at/(9*time.Second)) }, time.Second, 0, never},
		{"it falls once", func(at time.Duration) int { return 20 + int(max(0, 5*time.Second-at)) }, time.Second, 0, 5*time.Second + stuckAfter},
		{"it goes up and down", func(at time.Duration) int { return 30 + int(at/time.Second)%3 }, time.Second, 0, stuckAfter},
		{"few enough, but for others", func(time.Duration) int { return 2 }, time.Second, 2, never},
		{"not to be counted", func(time.Duration) int { return -1 }, time.Second, 0, never},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, first := time.Now(), never
				s := &script{counts: []int{0}}
				s.onRead = func(int) { s.counts[0] = test.open(time.Since(began)) }
				b, w, _ := waitOf(s, func(w *Wait) { w.Interval, w.Threshold, w.Timeout = test.interval, test.threshold, 80*time.Second })
				w.Reading = func(r Reading) {
					if r.Stuck {
						first = min(first, r.Elapsed)
					}
				}
				w.Look = func(context.Context, bool, bool) (bool, error) { return test.threshold > 0, nil } // it is never over
				ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
				defer cancel()
				if _, err := b.Drained(ctx, w); err == nil {
					t.Fatal("it is over")
				}
				if first < test.from || first > test.from+nearInterval {
					t.Errorf("stuck after %s, want %s", first, test.from)
				}
			})
		})
	}
}
