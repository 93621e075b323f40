package backend

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// otherClients finds new connections to a backend since its servers were marked down, from elsewhere than the
// LBs, or from a process on an LB that is not its nginx. Such a client still sends requests there. A nil
// *otherClients finds nothing.
type otherClients struct {
	Wait
	counter *remote.Counter // nil: it cannot be asked
	before  map[netip.AddrPort]bool
	named   map[Client]bool
	last    time.Time
	arrived time.Time // the last connection, if one was seen at all
	// nameless is when an LB first saw a connection whose process it does not know.
	nameless time.Time
}

// A Client connects to a backend and is not the nginx of an LB.
type Client struct {
	Address netip.Addr
	LB      string // on which Process runs; empty: this machine, or no LB
	Process string // empty: not known, or on no LB
	PID     int
	IsLocal bool // it is a process of an LB
}

// quietIntervals is how many intervals must pass without a new connection from
// another client before the backend counts as left alone.
const quietIntervals = 6

// A hostile backend has new clients without an end. Beyond maxBefore a client counts as
// new each time that it is seen, and beyond maxNamed nobody is told of new addresses.
const (
	maxBefore = 100_000
	maxNamed  = 100
)

// newOtherClients notes who is connected now. Only ss on the backend can tell of those that are not on
// an LB.
func newOtherClients(ctx context.Context, b *Backend, w Wait) (*otherClients, error) {
	c := &otherClients{Wait: w, counter: b.Sockets, named: map[Client]bool{}, before: map[netip.AddrPort]bool{}, last: time.Now()}
	far, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range far {
		c.before[f] = true
	}
	if len(far) > 0 {
		// Who was there within the last minute may come again, even if the wait
		// for everybody else takes no time.
		c.arrived = time.Now()
		c.Client(Client{Address: far[0].Addr()}, false, c.quiet())
	}
	return c, nil
}

// quiet is how long no other client must have connected.
func (c *otherClients) quiet() time.Duration { return quietIntervals * c.Interval }

func (c *otherClients) list(ctx context.Context) ([]netip.AddrPort, error) {
	if c.counter == nil {
		return nil, nil
	}
	far, err := c.counter.Clients(ctx, c.Known)
	if errors.Is(err, remote.ErrManyClients) {
		// Too many to tell the new ones: it is not left alone.
		c.arrived, err = time.Now(), nil
	}
	return slices.DeleteFunc(far, func(f netip.AddrPort) bool {
		return f.Addr().IsLoopback() || c.ignores(f.Addr())
	}), err
}

func (w Wait) ignores(a netip.Addr) bool {
	return slices.ContainsFunc(w.Ignored, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ignoresAlone reports whether an address is ignored by itself, not as one of a network.
func (w Wait) ignoresAlone(a netip.Addr) bool {
	return slices.ContainsFunc(w.Ignored, func(p netip.Prefix) bool { return p.IsSingleIP() && p.Contains(a) })
}

// seen tells whether a new client was seen at all.
func (c *otherClients) seen() bool { return c != nil && len(c.named) > 0 }

// namelessTime is how long an LB searches for the process that opens connections.
const namelessTime = time.Second

// arrive notes a connection of another client. Each is told once, whatever its PIDs are.
func (c *otherClients) arrive(from Client, at time.Time) {
	if at.After(c.arrived) {
		c.arrived = at
	}
	key := from
	if key.PID = 0; c.named[key] || len(c.named) >= maxNamed {
		return
	}
	if from.IsLocal && from.Process == "" {
		if c.nameless.IsZero() {
			c.nameless = time.Now()
		}
		if time.Since(c.nameless) < namelessTime {
			return
		}
	}
	c.named[key] = true
	c.Client(from, true, c.quiet())
}

// look looks for new connections, if it is time to or if it must.
func (c *otherClients) look(ctx context.Context, must bool) error {
	if c == nil || !must && time.Since(c.last) < c.Interval {
		return nil
	}
	c.last = time.Now()
	far, err := c.list(ctx)
	if err != nil {
		return err
	}
	for _, f := range far {
		if c.before[f] {
			continue
		}
		if len(c.before) < maxBefore {
			c.before[f] = true
		}
		c.arrive(Client{Address: f.Addr()}, time.Now())
	}
	return nil
}

// isArriving tells whether other clients have connected lately.
func (c *otherClients) isArriving() bool {
	return c != nil && !c.arrived.IsZero() && time.Since(c.arrived) < c.quiet()
}
