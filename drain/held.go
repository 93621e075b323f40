package drain

import (
	"net/netip"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

const (
	// quietLimit is for how long nothing may be sent on a connection that still
	// counts as one on which something is. Nginx itself ends one on which the server
	// sends nothing for longer, unless proxy_read_timeout says otherwise.
	quietLimit = time.Minute
	// seenSlack is by how much the times of two looks at a connection may differ.
	seenSlack = time.Second
)

// stuckOrder is which reason a person hears of first, however many connections
// have another one: the wait is over when the last is gone, and these are in the
// order of what it takes. Nothing that a drain does ends another client's; an
// upgraded one ends when its client leaves; a silent one with the app's answer or
// proxy_read_timeout; and what is being sent comes to its end.
var stuckOrder = []event.StuckReason{event.StuckClients, event.StuckUpgraded, event.StuckSilent, event.StuckSending}

// stuckReason says what a connection looks like. lb is whose it is; empty: another
// client's. Empty: it cannot be told, or only the LB sends, as in an upload.
func stuckReason(h backend.Held, lb string) event.StuckReason {
	switch {
	case lb == "":
		return event.StuckClients
	case h.Idle() < 0:
		return ""
	}
	// What was sent before the wait began says nothing: it may have been the request.
	recent := min(h.Open-seenSlack, quietLimit)
	switch sends, receives := h.Sent < recent, h.Received < recent; {
	case sends && receives:
		return event.StuckUpgraded
	case receives:
		return ""
	case sends, h.Sent < h.Received: // the answer has begun
		return event.StuckSending
	}
	return event.StuckSilent
}

// stuckBy is why a wait is not over; nil where that cannot be told.
func stuckBy(held []backend.Held, owner func(netip.Addr) string) *event.Stuck {
	reasons := map[event.StuckReason]*event.Stuck{}
	for _, h := range held {
		reason := stuckReason(h, owner(h.Far.Addr()))
		s := reasons[reason]
		if s == nil {
			s = &event.Stuck{Reason: reason}
			reasons[reason] = s
		}
		s.Connections++
		s.OpenFor = max(s.OpenFor, spec.InSeconds(max(h.Open, h.Idle())))
	}
	for _, reason := range stuckOrder {
		if s := reasons[reason]; s != nil {
			return s
		}
	}
	return nil
}

// stuck is why the wait for one backend is not over.
func (b *batch) stuck(m *row, held []backend.Held, owner func(netip.Addr) string) *event.Stuck {
	s := stuckBy(held, owner)
	if s == nil {
		return nil
	}
	if s.Reason != event.StuckClients {
		s.ShutdownTimeout = spec.InSeconds(b.o.plan.CutAfter())
	}
	s.CanStop = b.o.plan.Spec.Kind != spec.Undrain && b.o.plan.Spec.OnTimeout != spec.TimeoutStop && m.plan.Settings.Service != ""
	return s
}

// heldOf is the first of the connections for an event.
func heldOf(held []backend.Held, most int, owner func(netip.Addr) string) (all []event.Held) {
	for _, h := range held[:min(len(held), most)] {
		e := event.Held{Address: h.Far.Addr().String(), Port: h.Far.Port(), LB: owner(h.Far.Addr()), OpenFor: spec.InSeconds(max(h.Open, h.Idle())), Idle: spec.InSeconds(h.Idle())}
		if h.Idle() < 0 {
			e.Idle = -1
		}
		all = append(all, e)
	}
	return all
}
