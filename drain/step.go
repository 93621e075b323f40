package drain

import "context"

// A StepName names a step of the one list.
type StepName string

// The steps, in the order of a drain.
const (
	StepClose StepName = "close" // mark the servers down, see the new generation serve
	StepEmpty StepName = "empty" // wait until the gauge is low; backward: until healthy
	StepStop  StepName = "stop"  // stop the service; backward: start it
)

// A Way is the direction a step is taken in.
type Way string

// The ways: a drain goes forward, an undrain back.
const (
	Forward Way = "forward"
	Back    Way = "back"
)

// A step knows its way forward and its way back. Each way may be taken again
// after it was taken, or half taken: it then does what is left. changed tells
// that something is not as it was before, also when err is not nil.
type step interface {
	name() StepName
	describe(Way) string
	forward(ctx context.Context) (changed bool, text string, err error)
	back(ctx context.Context) (changed bool, text string, err error)
}

// steps is the one list.
func (r *run) steps() []step {
	list := []step{r.close, r.empty}
	if r.req.Service != "" {
		list = append(list, r.stop)
	}
	return list
}

func take(ctx context.Context, s step, w Way) (bool, string, error) {
	if w == Forward {
		return s.forward(ctx)
	}
	return s.back(ctx)
}

func (w Way) opposite() Way {
	if w == Forward {
		return Back
	}
	return Forward
}
