package drain

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Kind is how a run ended, as far as a script cares.
type Kind int

// The kinds. They are the program's exit codes.
const (
	Done        Kind = 0   // done, or already so
	Failed      Kind = 1   // failed, and everything is as it was before
	Misused     Kind = 2   // the request makes no sense
	NotDrained  Kind = 3   // not drained in time
	Refused     Kind = 4   // a guard refused, nothing was touched
	PartDone    Kind = 5   // left part-done: a person must look
	Interrupted Kind = 130 // interrupted, and rolled back
)

// A Failure is an end other than done.
type Failure struct {
	Kind Kind
	Err  error  // what failed, in the words of what failed
	Now  string // what stands now
	Next string // the command that goes on from there; empty when there is none to give
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// KindOf is how err ends a run.
func KindOf(err error) Kind {
	var f *Failure
	switch {
	case err == nil:
		return Done
	case errors.As(err, &f):
		return f.Kind
	}
	return Failed
}

// A NotDrainedError is the end of a wait whose time was up.
type NotDrainedError struct {
	Reading
	Threshold int
	Limit     time.Duration
	Strangers bool // connections kept arriving from elsewhere
}

func (e *NotDrainedError) Error() string {
	if e.Strangers && e.Count <= e.Threshold {
		return fmt.Sprintf("not drained after %s: connections kept arriving from elsewhere than the load balancer", Span(e.Limit))
	}
	return fmt.Sprintf("not drained after %s: %s open, more than %d%s", Span(e.Limit), connections(e.Count), e.Threshold, e.from())
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// A Refusal is every reason why nothing was touched.
type Refusal struct{ Findings []Finding }

func (r *Refusal) Error() string {
	texts := make([]string, len(r.Findings))
	for i, f := range r.Findings {
		texts[i] = f.Text
	}
	return strings.Join(texts, "\n")
}

// refuse is the failure of findings; the first kind that is not Refused wins.
func refuse(findings []Finding) *Failure {
	kind := Refused
	for _, f := range findings {
		if f.Kind != Refused {
			kind = f.Kind
			break
		}
	}
	return &Failure{Kind: kind, Err: &Refusal{findings}, Now: "nothing was touched"}
}
