package backend

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A script is a counter that reads what it is told to, and then its last value
// for ever. A negative number is a reading that fails.
type script struct {
	counts []int
	reads  int
	onRead func(n int)
}

func (s *script) Count(context.Context) (remote.Count, error) {
	i := min(s.reads, len(s.counts)-1)
	s.reads++
	if s.onRead != nil {
		s.onRead(s.reads)
	}
	if s.counts[i] < 0 {
		return remote.Count{}, errors.New("the line is cut")
	}
	return remote.Count{Open: s.counts[i]}, nil
}

func (*script) Close() error { return nil }

// told keeps what a wait tells.
type told struct {
	readings []Reading
	clients  []client
}

type client struct {
	Client
	isNew bool
	quiet time.Duration
}

// waitOf is a backend whose counter is made up, and a wait for it.
func waitOf(c Counter, change ...func(*Wait)) (*Backend, Wait, *told) {
	l := &told{}
	w := Wait{
		Interval: time.Millisecond, Timeout: time.Minute,
		Look:    func(context.Context, bool, bool) (bool, error) { return false, nil },
		Reading: func(r Reading) { l.readings = append(l.readings, r) },
		Client: func(c Client, isNew bool, quiet time.Duration) {
			l.clients = append(l.clients, client{c, isNew, quiet})
		},
	}
	for _, ch := range change {
		ch(&w)
	}
	return &Backend{Name: "app-1", Counter: c}, w, l
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
		b, w, l := waitOf(s, func(w *Wait) { w.Threshold = test.threshold })
		last, err := b.Drained(t.Context(), w)
		if err != nil || s.reads != test.reads || len(l.readings) != test.reads {
			t.Errorf("%v: %d readings, %d told, %v; want %d", test.counts, s.reads, len(l.readings), err, test.reads)
			continue
		}
		if told := l.readings[len(l.readings)-1]; told.Low != LowReadings || told.Count.Open != last.Count.Open {
			t.Errorf("%v: the last reading is %+v, told %+v", test.counts, last, told)
		}
	}
}

func TestWaitTimesOut(t *testing.T) {
	short := func(w *Wait) { w.Timeout = 30 * time.Millisecond }
	b, w, _ := waitOf(&script{counts: []int{2}}, short)
	_, err := b.Drained(t.Context(), w)
	var late *TimedOutError
	if !errors.As(err, &late) || late.Count.Open != 2 || err.Error() != "not drained after 30ms: 2 connections open, more than 0" {
		t.Errorf("got %v", err)
	}
	// What cannot be counted has not been drained, and was not seen to hold.
	b, w, l := waitOf(&script{counts: []int{-1}}, short)
	_, err = b.Drained(t.Context(), w)
	if err == nil || errors.As(err, &late) || !strings.Contains(err.Error(), "could not be counted when the time was up: the line is cut") {
		t.Errorf("got %v", err)
	}
	if told := l.readings[0].Err; told == nil || told.Error() != "the line is cut" {
		t.Errorf("told %v", told)
	}
	// When the time is up during the last low readings, they are finished.
	s := &script{counts: []int{1, 0}}
	s.onRead = func(n int) {
		if n == 2 {
			time.Sleep(150 * time.Millisecond)
		}
	}
	b, w, _ = waitOf(s, func(w *Wait) { w.Timeout = 100 * time.Millisecond })
	if _, err = b.Drained(t.Context(), w); err != nil {
		t.Errorf("got %v", err)
	}
}

// Without a limit of its own a wait ends too when the connections cannot be counted
// for a minute. Each reading that succeeds begins that minute anew.
func TestWaitGivesUpCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s := &script{counts: []int{1, -1, -1, 1, -1}}
		b, w, _ := waitOf(s, func(w *Wait) { w.Interval, w.Timeout = 40*time.Second, 0 })
		_, err := b.Drained(ctx, w)
		if err == nil || err.Error() != "the open connections could not be counted for 1m0s: the line is cut" {
			t.Errorf("got %v", err)
		}
		// The first is followed at once by another, the others by one 40 s later.
		if s.reads != 6 {
			t.Errorf("%d readings, want 6", s.reads)
		}
	})
}

func TestWaitIsInterrupted(t *testing.T) {
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := &script{counts: []int{1}, onRead: func(n int) {
		if n == 3 {
			cancel(interrupted)
		}
	}}
	b, w, _ := waitOf(s, func(w *Wait) { w.Timeout = 0 })
	if _, err := b.Drained(ctx, w); !errors.Is(err, interrupted) {
		t.Errorf("got %v", err)
	}
}

// A patient is a counter whose only connection ends at a time.
type patient struct {
	end    time.Time
	counts int
	told   bool // of the end
}

func (p *patient) Count(context.Context) (remote.Count, error) {
	p.counts++
	if time.Now().Before(p.end) {
		return remote.Count{Open: 1}, nil
	}
	return remote.Count{}, nil
}

func (p *patient) Await(ctx context.Context, limit time.Duration) {
	if p.told = time.Until(p.end) < limit; p.told {
		limit = time.Until(p.end)
	}
	_ = remote.Sleep(ctx, limit)
}

func (*patient) Close() error { return nil }

// A connection that is open for an hour costs one reading an interval, and its end is noticed at once.
func TestWaitIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const open, interval = time.Hour + 777*time.Millisecond, 5 * time.Second
		p := &patient{end: time.Now().Add(open)}
		b, w, _ := waitOf(p, func(w *Wait) { w.Interval, w.Timeout = interval, 0 })
		last, err := b.Drained(t.Context(), w)
		if err != nil || !p.told {
			t.Fatalf("%v, told of the end: %t", err, p.told)
		}
		if late := last.Elapsed - open; late > 20*time.Millisecond {
			t.Errorf("drained %s after the end", late)
		}
		if most := int(open/interval + nearTime/nearInterval + 10); p.counts > most {
			t.Errorf("%d readings, want at most %d", p.counts, most)
		}
	})
}

// Far from the end the operator's interval counts; near it, and for the low
// readings, it is sampled faster, but never so fast that counting is most of
// what the backend does.
func TestPause(t *testing.T) {
	const interval, slow = 500 * time.Millisecond, 100 * time.Millisecond
	for _, test := range []struct {
		name    string
		r       waiting
		limit   time.Duration
		elapsed time.Duration
		want    time.Duration
	}{
		{"far", waiting{count: remote.Count{Open: 1000}}, 0, 0, interval},
		{"near", waiting{count: remote.Count{Open: 10}, changed: time.Now()}, 0, 0, nearInterval},
		{"near, and counting is slow", waiting{count: remote.Count{Open: 10}, changed: time.Now(), took: slow}, 0, 0, dutyFactor * slow},
		{"near, and counting is very slow", waiting{count: remote.Count{Open: 10}, changed: time.Now(), took: 10 * time.Second}, 0, 0, interval},
		{"near, and nothing changes", waiting{count: remote.Count{Open: 10}, changed: time.Now().Add(-nearTime)}, 0, 0, interval},
		{"near, and others arrive", waiting{arriving: true}, 0, 0, interval},
		{"low", waiting{low: 1}, 0, 0, lowInterval},
		{"low, and requests are buffered", waiting{low: 1, hold: true}, 0, 0, nearInterval},
		{"low, requests are buffered, and counting is slow", waiting{low: 1, hold: true, took: slow}, 0, 0, dutyFactor * slow},
		{"not counted", waiting{err: errors.New("cut")}, 0, 0, interval},
		{"the time is nearly up", waiting{count: remote.Count{Open: 1000}}, time.Minute, time.Minute - 100*time.Millisecond, 100 * time.Millisecond},
		{"the time is up", waiting{count: remote.Count{Open: 1000}}, time.Minute, time.Minute, nearInterval},
		{"no limit", waiting{count: remote.Count{Open: 1000}}, 0, time.Hour, interval},
	} {
		test.r.Wait = Wait{Interval: interval, Timeout: test.limit}
		if got := test.r.pause(test.elapsed); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	if got := (&waiting{Wait: Wait{Interval: time.Millisecond}, count: remote.Count{Open: 1000}}).pause(0); got != time.Millisecond {
		t.Errorf("the operator's own interval became %s", got)
	}
}

func TestTimedOutSaysWhoHolds(t *testing.T) {
	peer := func(addr string, n int) remote.Peer { return remote.Peer{Addr: netip.MustParseAddr(addr), Count: n} }
	for _, test := range []struct {
		count remote.Count
		want  string
	}{
		{remote.Count{Open: 1}, "not drained after 5m: 1 connection open, more than 0"},
		{remote.Count{Open: 3, Peers: []remote.Peer{peer("192.168.1.2", 2), peer("fe80::1", 1)}}, "not drained after 5m: 3 connections open, more than 0, from 192.168.1.2 (2), fe80::1 (1)"},
		{remote.Count{Open: 9, Peers: []remote.Peer{peer("192.168.1.2", 2)}, MorePeers: 4}, "not drained after 5m: 9 connections open, more than 0, from 192.168.1.2 (2), and 4 more"},
	} {
		if got := (&TimedOutError{Count: test.count, Limit: 5 * time.Minute}).Error(); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
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

// openers is a counter that counts 0 connections and reports who has opened some.
type openers struct {
	reads int
	of    func(reads int) []remote.Opener
}

func (o *openers) Count(context.Context) (remote.Count, error) {
	o.reads++
	return remote.Count{Openers: o.of(o.reads)}, nil
}

func (*openers) Close() error { return nil }

// Who has opened a connection to the backend since the reload decides what comes of the wait.
func TestWaitForOpeners(t *testing.T) {
	const settle, interval, reads = 200 * time.Millisecond, time.Second, 5
	lb := netip.MustParseAddr("192.0.2.2")
	ago := time.Duration(0)
	by := func(by remote.OpenedBy) func(int) []remote.Opener {
		return func(n int) []remote.Opener {
			if n > reads {
				ago += time.Hour // nothing new
			}
			return []remote.Opener{{LB: "lb1", Near: lb, By: by, Process: "curl", PID: 7, Ago: ago}}
		}
	}
	ignored := func(bits int) func(*Wait) {
		return func(w *Wait) { w.Ignored = []netip.Prefix{netip.PrefixFrom(lb, bits)} }
	}
	for _, test := range []struct {
		name   string
		of     func(int) []remote.Opener
		change func(*Wait)
		took   time.Duration // at least
		below  time.Duration
		err    string
		told   int
	}{
		{"nobody", func(int) []remote.Opener { return nil }, nil, settle, settle + interval, "", 0},
		{"an unknown process", by(remote.OpenedByUnknown), nil, settle, 2 * interval, "", 0},
		{"another process", by(remote.OpenedByOther), nil, quietIntervals * interval, 20 * interval, "", 1},
		{"another one, in a rollback", by(remote.OpenedByOther), func(w *Wait) { w.Others = false }, settle, 2 * interval, "", 0},
		{"a worker", by(remote.OpenedByWorker), nil, 0, settle, "curl (PID 7) on lb1 opened a connection from 192.0.2.2 to app-1", 0},
		{"a worker that may", by(remote.OpenedByWorker), func(w *Wait) { w.MaySend = true }, settle, settle + interval, "", 0},
		{"another one, where nginx may send", by(remote.OpenedByOther), func(w *Wait) { w.MaySend = true }, quietIntervals * interval, 20 * interval, "", 1},
		{"an unknown one, where nginx may send", by(remote.OpenedByUnknown), func(w *Wait) { w.MaySend = true }, settle, settle + interval, "", 0},
		{"another one of an ignored network", by(remote.OpenedByOther), ignored(16), settle, settle + interval, "", 0},
		{"a worker in an ignored network", by(remote.OpenedByWorker), ignored(16), 0, settle, "curl (PID 7) on lb1 opened", 0},
		{"a worker whose address is ignored", by(remote.OpenedByWorker), ignored(32), settle, settle + interval, "", 0},
		{"one without an end", func(int) []remote.Opener { return by(remote.OpenedByUnknown)(0) }, nil, time.Minute, time.Minute + interval, "not drained after 1m: connections from the load balancer kept arriving", 0},
		{"nobody, and a timeout shorter than the first look", func(int) []remote.Opener { return nil }, func(w *Wait) { w.Timeout = settle / 4 }, settle, settle + interval, "", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ago = 0
			b, w, l := waitOf(&openers{of: test.of}, func(w *Wait) { w.Interval, w.Settle, w.Others = interval, settle, true })
			if test.change != nil {
				test.change(&w)
			}
			began := time.Now()
			_, err := b.Drained(t.Context(), w)
			took := time.Since(began)
			if took < test.took || took >= test.below || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v after %s, want %q after %s", test.name, err, took, test.err, test.took)
			}
			if len(l.clients) != test.told || test.told > 0 && l.clients[0].Client != (Client{lb, "lb1", "curl", 7, true}) {
				t.Errorf("%s: told of %+v", test.name, l.clients)
			}
		})
	}
}

// A pair is a counter of the LBs and the backend, which answer what they are told to.
type pair struct {
	floors, full []int
	asked        []string
}

func (p *pair) Count(context.Context) (remote.Count, error) {
	p.asked = append(p.asked, "both")
	return remote.Count{Open: next(&p.full)}, nil
}

func (p *pair) Floor(context.Context) (remote.Count, error) {
	p.asked = append(p.asked, "LBs")
	return remote.Count{Open: next(&p.floors)}, nil
}

func (*pair) Close() error { return nil }

// next takes the first number off a list that keeps its last one.
func next(numbers *[]int) (n int) {
	if n = (*numbers)[0]; len(*numbers) > 1 {
		*numbers = (*numbers)[1:]
	}
	return n
}

// Between the first and the last low reading the LBs alone are asked, unless others have connections.
func TestWaitAsksTheBackendLast(t *testing.T) {
	for _, test := range []struct {
		name string
		p    pair
		want string
		open int
	}{
		{"none", pair{floors: []int{0}, full: []int{2, 0}}, "both both LBs both", 0},
		{"the LBs have another one", pair{floors: []int{1, 0}, full: []int{0}}, "both LBs both LBs both", 0},
		{"the backend has another one", pair{floors: []int{0}, full: []int{0, 3, 0}}, "both LBs both both LBs both", 0},
		{"others below the threshold", pair{floors: []int{0}, full: []int{1}}, "both both both", 1},
	} {
		b, w, _ := waitOf(&test.p, func(w *Wait) { w.Threshold = test.open })
		last, err := b.Drained(t.Context(), w)
		if asked := strings.Join(test.p.asked, " "); err != nil || asked != test.want || last.Count.Open != test.open {
			t.Errorf("%s: asked %q, %d open, %v; want %q", test.name, asked, last.Count.Open, err, test.want)
		}
	}
}
