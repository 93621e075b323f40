package drain

import (
	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
)

// Of a wait, the history keeps the readings in which something has changed.
const (
	// maxReadings is how many of them are kept of an operation.
	maxReadings = 500
	// curveSteps is how far apart they are: no two are closer than this part of the
	// time that has passed, so that a long wait leaves about as many as a short one.
	curveSteps = 40
)

// A curve is the wait for one backend, as the history has it: its first reading,
// the changes, and its last.
type curve struct {
	kept, latest *event.Waiting
	told         *event.Waiting // the last one that was emitted
	changes      int
}

// worthTelling picks the readings that are emitted: the first, the last, and between them the changes, at
// most one in an interval.
func (o *Operation) worthTelling(e *event.Waiting) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.curveOf(e.Target)
	last := c.told
	if last != nil && e.Elapsed >= last.Elapsed && e.Low < backend.LowReadings { // else it is another wait's first
		if !differs(e, last) && e.Error == last.Error || (e.Elapsed-last.Elapsed).Duration() < o.plan.Spec.Interval {
			return false
		}
	}
	c.told = e
	return true
}

func (o *Operation) curveOf(target string) *curve {
	c := o.curves[target]
	if c == nil {
		c = &curve{}
		if o.curves == nil {
			o.curves = map[string]*curve{}
		}
		o.curves[target] = c
	}
	return c
}

// differs reports whether the connections, or the reason why they stay open, changed.
func differs(a, b *event.Waiting) bool {
	return a.Open != b.Open || a.StuckReason() != b.StuckReason()
}

// worthKeeping picks the readings for the history.
func (o *Operation) worthKeeping(e *event.Waiting) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.curveOf(e.Target)
	c.latest = e
	if c.kept != nil && e.Elapsed >= c.kept.Elapsed { // else it is another wait's first
		if !differs(e, c.kept) || e.Elapsed-c.kept.Elapsed < e.Elapsed/curveSteps || c.changes >= maxReadings/max(1, len(o.plan.Backends)) {
			return false
		}
		c.changes++
	}
	c.kept = e
	return true
}

// keepLast keeps the last reading of a wait.
func (o *Operation) keepLast(target string) {
	o.mu.Lock()
	c := o.curves[target]
	keep := c != nil && c.kept != c.latest
	if keep {
		c.kept = c.latest
	}
	o.mu.Unlock()
	if keep {
		o.keep(c.latest)
	}
}
