package backend

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// How the wait samples. A stop must follow the last request closely, and a
// single low reading proves nothing: a worker of the earlier generation may open
// one more connection for a request it already holds.
const (
	LowReadings  = 3                     // in a row before the backend counts as drained
	lowInterval  = 2 * time.Millisecond  // between two low readings
	nearInterval = 10 * time.Millisecond // when the end is near
	nearCount    = 16                    // connections above the threshold that count as near the end
	nearTime     = 2 * time.Second       // for how long a change is followed closely
	// dutyFactor keeps the readings to half of the backend's time: it rests at
	// least this many times what a reading took.
	dutyFactor = 1
	// countGrace is for how long the connections may not be countable before the
	// wait gives up: an SSH connection may break and come back.
	countGrace = 60 * time.Second
	// A wait is stuck when the connections have not become fewer for so long, and
	// for so many readings: the interval may be longer.
	stuckAfter    = 10 * time.Second
	stuckReadings = 3
)

// A Wait says what to wait for, and who is told of it.
type Wait struct {
	Threshold int           // connections that may be open
	Interval  time.Duration // between two readings, far from the end
	Timeout   time.Duration // 0: no limit
	// Others looks for other clients too: Known are the addresses of the LBs, and
	// Ignored the networks whose connections do not matter.
	Others  bool
	Known   []netip.Addr
	Ignored []netip.Prefix
	// Settle is how long no connection of an unknown process may appear before the backend counts as
	// drained.
	Settle time.Duration
	// MaySend tells that nginx may send requests to the backend in another way than by its servers.
	MaySend bool

	// Look checks, beside a reading, that the LBs keep requests away, at most once
	// in a while. With must or buffered it always checks; buffered asks for requests
	// that they hold, too. If hold is true, the reading does not count.
	Look func(ctx context.Context, must, buffered bool) (hold bool, err error)
	// Reading is told each reading, and Client another client: quiet is how long
	// nobody else must connect.
	Reading func(Reading)
	Client  func(c Client, isNew bool, quiet time.Duration)
}

// A Reading is one look at the connections.
type Reading struct {
	Count   remote.Count
	Err     error // why they could not be counted now
	Low     int   // low readings in a row
	Elapsed time.Duration
	// Held are the connections at the last look at them, the longest open first;
	// none where the counter cannot tell.
	Held  []Held
	Stuck bool // the connections have not become fewer for a while
}

// A TimedOutError is the end of a wait whose time was up.
type TimedOutError struct {
	Backend      string
	Count        remote.Count
	Threshold    int
	Limit        time.Duration
	OtherClients bool // connections kept arriving from others than nginx on the LBs
	Unknown      bool // connections kept arriving, and who opens them is not known
}

func (e *TimedOutError) Error() string {
	if e.OtherClients && e.Count.Open <= e.Threshold {
		return fmt.Sprintf("not drained after %s: connections kept arriving from others than nginx on the load balancer", Span(e.Limit))
	}
	if e.Unknown && e.Count.Open <= e.Threshold {
		return fmt.Sprintf("not drained after %s: connections from the load balancer kept arriving, and which process opens them is not known", Span(e.Limit))
	}
	if e.Count.Open <= e.Threshold {
		return fmt.Sprintf("not drained after %s: other clients may still connect: which ones cannot be told", Span(e.Limit))
	}
	return fmt.Sprintf("not drained after %s: %s open, more than %d%s", Span(e.Limit), Number(e.Count.Open, "connection"), e.Threshold, PeersText(e.Count.Peers, e.Count.MorePeers))
}

// A StillSendsError says that nginx opens connections to a server that is down in its configuration.
type StillSendsError struct {
	Opener  remote.Opener
	Backend string
}

func (e *StillSendsError) Error() string {
	on := ""
	if e.Opener.LB != "" {
		on = " on " + e.Opener.LB
	}
	return fmt.Sprintf("after the reload, %s (PID %d)%s opened a connection from %s to %s: nginx sends requests there, and not by the upstream\nhint: look for a variable, a module or an address that leads there; --ignore-peer %s allows it if these are health checks",
		e.Opener.Process, e.Opener.PID, on, e.Opener.Near, e.Backend, e.Opener.Near)
}

// PeersText names the far ends of connections, such as ", from 192.168.1.2 (2), and 4 more".
func PeersText(peers []remote.Peer, more int) (text string) {
	for i, p := range peers {
		text += fmt.Sprintf("%s%s (%d)", map[bool]string{true: ", from ", false: ", "}[i == 0], p.Addr, p.Count)
	}
	if more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

// Number counts things for a person, such as "1 connection" or "2 connections".
func Number(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// waiting is a wait under way.
type waiting struct {
	Wait
	backend  *Backend
	clients  *otherClients
	held     held
	began    time.Time
	good     time.Time // the last time that the connections could be counted
	took     time.Duration
	count    remote.Count
	err      error     // why they could not be counted
	low      int       // low readings in a row
	fewest   int       // connections of all readings so far
	fell     time.Time // when they became so few
	changed  time.Time // when the count was last another one
	same     int       // readings since then
	arriving bool      // other clients have connected lately
	settled  time.Time // until when the backend does not count as drained: see Wait.Settle
	first    time.Time // until when it does not at the earliest
	hold     bool      // the reading does not count: see Wait.Look
}

// Drained waits until the open connections are at or below the threshold,
// several readings in a row, and gives the last one. The error is a
// *[TimedOutError] when the time is up.
func (b *Backend) Drained(ctx context.Context, w Wait) (Reading, error) {
	now := time.Now()
	r := &waiting{Wait: w, backend: b, held: held{counter: b.Counter}, began: now, good: now}
	for {
		if err := r.sample(ctx); err != nil {
			return Reading{}, err
		}
		reading := Reading{Count: r.count, Err: r.err, Low: r.low, Elapsed: time.Since(r.began), Held: r.held.list, Stuck: r.stuck()}
		w.Reading(reading)
		switch {
		case r.low >= LowReadings:
			return reading, nil
		case r.err != nil && time.Since(r.good) > countGrace:
			return reading, fmt.Errorf("the open connections could not be counted for %s: %w", countGrace, r.err)
		case w.Timeout > 0 && (r.low == 0 || r.isSettling()) && reading.Elapsed >= w.Timeout && !r.isBeginning():
			if r.err != nil {
				return reading, fmt.Errorf("the open connections could not be counted when the time was up: %w", r.err)
			}
			return reading, &TimedOutError{
				Backend: b.Name, Count: r.count, Threshold: w.Threshold, Limit: w.Timeout,
				OtherClients: r.arriving && r.clients.seen(), Unknown: r.isSettling(),
			}
		}
		if err := r.rest(ctx, r.pause(reading.Elapsed)); err != nil {
			return reading, err
		}
	}
}

// sample counts the connections, and looks around: now and then, and always
// beside the reading that may be the last. All are asked at once, so that the
// looks delay nothing.
func (r *waiting) sample(ctx context.Context) error {
	isLast, isNextToLast := r.low == LowReadings-1, r.low == LowReadings-2
	looked := make(chan error, 1)
	hold := false
	go func() {
		var err error
		hold, err = r.Look(ctx, isLast, isNextToLast)
		looked <- err
	}()
	started := time.Now()
	count, err := r.read(ctx)
	if err == nil && r.Others && r.clients == nil { // without it, a reading says nothing of other clients
		r.clients, err = newOtherClients(ctx, r.backend, r.Wait)
	}
	r.took = time.Since(started)
	lookErr := <-looked
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if lookErr != nil {
		return lookErr
	}
	if err == nil {
		if err := r.judgeOpeners(count.Openers); err != nil {
			return err
		}
	}
	if err == nil { // a backend that does not answer is not asked twice
		clientsErr := r.clients.look(ctx, isLast)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if clientsErr == nil {
			r.arriving = r.clients.isArriving()
		} else if isLast {
			r.arriving = true // not known is not none
		}
	}
	r.hold = hold
	r.err = err
	if err == nil {
		now := time.Now()
		if r.changed.IsZero() || count.Open != r.count.Open {
			r.changed = now
		}
		r.count, r.good = count, now
		if r.same++; r.fell.IsZero() || count.Open < r.fewest {
			r.fewest, r.fell, r.same = count.Open, r.good, 0
		}
	}
	switch low := err == nil && count.Open <= r.Threshold && !r.arriving; {
	case !low:
		r.low = 0
	case r.isSettling():
		r.low = 1
	case !r.hold:
		r.low++
	}
	return nil
}

// judgeOpeners judges who has opened connections on the LBs since the reload.
func (r *waiting) judgeOpeners(all []remote.Opener) error {
	now := time.Now()
	if r.settled.IsZero() {
		r.settled = now.Add(r.Settle)
		r.first = r.settled
	}
	for _, o := range all {
		at := now.Add(-o.Ago)
		switch {
		case r.MaySend && (o.By != remote.OpenedByOther || o.Process == ""): // expected: nginx may
		case o.By == remote.OpenedByWorker && !r.ignoresAlone(o.Near):
			return &StillSendsError{o, r.backend.Name}
		case r.ignores(o.Near):
		case o.By == remote.OpenedByOther && r.clients != nil:
			r.clients.arrive(Client{Address: o.Near, LB: o.LB, Process: o.Process, PID: o.PID, IsLocal: true}, at)
		default:
			if until := at.Add(r.Settle); until.After(r.settled) {
				r.settled = until
			}
		}
	}
	return nil
}

// isSettling reports whether the LBs have to watch longer before the backend counts as drained.
func (r *waiting) isSettling() bool { return time.Now().Before(r.settled) }

// isBeginning reports whether the first look at who opens connections is not over yet.
func (r *waiting) isBeginning() bool {
	return time.Now().Before(r.first) && r.count.Open <= r.Threshold
}

// read counts the connections. Between the first and the last low reading, the LBs' own sockets are
// enough; the last one asks the backend again.
func (r *waiting) read(ctx context.Context) (remote.Count, error) {
	f, ok := r.backend.Counter.(Floorer)
	switch {
	case r.low == 0:
		return r.held.count(ctx, r.Interval)
	case ok && r.low < LowReadings-1 && r.count.Open == 0:
		return f.Floor(ctx)
	}
	return r.backend.Counter.Count(ctx)
}

// stuck tells whether the wait does not get on.
func (r *waiting) stuck() bool {
	return r.err == nil && r.count.Open > r.Threshold && r.same >= stuckReadings && time.Since(r.fell) >= stuckAfter
}

// near reports whether few connections are left.
func (r *waiting) near() bool { return r.count.Open <= r.Threshold+nearCount && !r.arriving }

// rest pauses. If few connections are left, the LBs tell when one of them ends: nothing is counted until
// then, however long it takes.
func (r *waiting) rest(ctx context.Context, pause time.Duration) error {
	a, ok := r.backend.Counter.(Awaiter)
	if !ok || !r.near() || r.count.Open == 0 || r.err != nil || pause <= nearInterval {
		return remote.Sleep(ctx, pause)
	}
	if err := remote.Sleep(ctx, nearInterval); err != nil {
		return err
	}
	a.Await(ctx, pause-nearInterval)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// pause is how long to wait before the next reading.
func (r *waiting) pause(elapsed time.Duration) time.Duration {
	interval := r.Interval
	switch {
	case r.err != nil:
	case r.low > 0:
		interval = min(interval, lowInterval)
	case r.near() && time.Since(r.changed) < nearTime:
		interval = min(interval, max(nearInterval, dutyFactor*r.took))
	}
	if left := time.Until(r.settled); left > 0 && r.count.Open <= r.Threshold { // the LBs look meanwhile
		interval = min(r.Interval, left)
	}
	if r.Timeout > 0 && r.low == 0 {
		interval = min(interval, max(r.Timeout-elapsed, nearInterval))
	}
	if r.hold {
		interval = max(interval, nearInterval, dutyFactor*r.took)
	}
	return interval
}
