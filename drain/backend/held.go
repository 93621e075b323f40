package backend

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// Held is an open connection, as a wait has seen it.
type Held struct {
	remote.Held
	Open time.Duration // since the wait first saw it
}

// Idle is how long nothing was sent on it in either direction; negative: not known.
func (h Held) Idle() time.Duration { return min(h.Sent, h.Received) }

// A Holder is a [Counter] that can list what it counts.
type Holder interface {
	CountHeld(context.Context) (remote.Count, error)
}

// lookFactor keeps the looks at the connections, which cost more than a count
// where there are thousands, to one part in so many of the backend's time.
const lookFactor = 10

// lookLimit is how long a look may have taken for a count to follow it when it failed:
// where the host does not answer, the count would cost the same time again.
const lookLimit = 10 * time.Second

// held is what a wait knows of the open connections. It looks at them in place
// of a count, so that no count waits for the look.
type held struct {
	counter Counter
	refused bool // a look failed, and the count did not
	next    time.Time
	seen    map[netip.AddrPort]time.Time
	list    []Held // at the last look, the longest open first
}

// count counts the connections, and looks at them if it is time to.
func (h *held) count(ctx context.Context, interval time.Duration) (remote.Count, error) {
	holder, ok := h.counter.(Holder)
	began := time.Now()
	if !ok || h.refused || began.Before(h.next) {
		return h.counter.Count(ctx)
	}
	count, err := holder.CountHeld(ctx)
	now := time.Now()
	h.next = now.Add(max(interval, lookFactor*now.Sub(began)))
	switch {
	case err == nil:
		h.see(count.Held, now)
	case ctx.Err() == nil && now.Sub(began) < lookLimit && !errors.Is(err, remote.ErrConnection):
		count, err = h.counter.Count(ctx)
		h.refused = err == nil
	}
	return count, err
}

// see takes in what a look saw.
func (h *held) see(open []remote.Held, now time.Time) {
	seen := make(map[netip.AddrPort]time.Time, len(open))
	h.list = make([]Held, 0, len(open))
	for _, o := range open {
		first, known := h.seen[o.Far]
		if !known {
			first = now
		}
		seen[o.Far] = first
		h.list = append(h.list, Held{o, now.Sub(first)})
	}
	h.seen = seen
	// The order must not change with every little pause.
	slices.SortStableFunc(h.list, func(a, b Held) int {
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(b.Idle()/time.Second, a.Idle()/time.Second), a.Far.Compare(b.Far))
	})
}
