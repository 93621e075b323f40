package spec

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// An Exit is how a run ended, as far as a script cares.
type Exit int

// The exits. They are the program's exit codes.
const (
	Done        Exit = 0   // done, or unchanged
	Failed      Exit = 1   // failed, and everything is as it was before
	Usage       Exit = 2   // the request makes no sense
	TimedOut    Exit = 3   // not drained in time
	Refused     Exit = 4   // refused by a guard, nothing touched
	Partial     Exit = 5   // a person must look
	Interrupted Exit = 130 // interrupted, and rolled back
)

// ErrInterrupted is the cause of a context that a signal ended.
var ErrInterrupted = errors.New("interrupted")

// A Command is what to type next, and why. Its words are runnable as they are.
type Command struct {
	Words  []string `json:"words"`
	Reason string   `json:"reason,omitempty"`
	On     string   `json:"on,omitempty"` // the host to type it on; empty: here
}

// String is the command as a shell takes it.
func (c Command) String() string { return remote.Quote(c.Words...) }

// A Failure is an end other than done.
type Failure struct {
	Exit   Exit
	Err    error    // what failed
	Stands Stands   // what is so now
	Log    []string // the app's last log lines, where they explain it
	Next   []Command
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// A Standing is what is so after a run, in one word.
type Standing string

// What can be so.
const (
	Untouched Standing = "nothing was touched"
	AsBefore  Standing = "everything is as it was before"
	AllBack   Standing = "every backend that was taken out is back in the pool"
	// Repeatable is the end of a forget that failed on a load balancer.
	Repeatable Standing = "no file and no service was touched; the command can be repeated"
	Changed    Standing = "changed" // the rest of Stands says what
)

// Stands is what is so after a run that was not done.
type Stands struct {
	Standing Standing       `json:"standing"`
	LBs      []LBStands     `json:"lbs,omitempty"`
	Services []ServiceStand `json:"services,omitempty"`
	// Open is the connections that are left of a drain that left them.
	Open *int `json:"open,omitempty"`
}

// An LBStands is what is so on one LB.
type LBStands struct {
	LB      string   `json:"lb"`
	Servers []string `json:"servers"`
	Down    bool     `json:"down"`              // what this run marks the servers; false: it clears them
	Edited  bool     `json:"edited"`            // by this run
	Loaded  bool     `json:"loaded"`            // nginx was seen to serve what the files say
	Unknown string   `json:"unknown,omitempty"` // why nothing can be said
}

// A ServiceStand is what is so of a service.
type ServiceStand struct {
	Unit    string `json:"unit"`
	Backend string `json:"backend"`
	Touched bool   `json:"touched"` // stopped or started by this run
}

// ExitOf is how err ends a run.
func ExitOf(err error) Exit {
	var f *Failure
	switch {
	case err == nil:
		return Done
	case errors.As(err, &f):
		return f.Exit
	}
	return Failed
}

// A Finding is one reason to refuse, or to warn.
type Finding struct {
	Code string `json:"code"`
	LB   string `json:"lb,omitempty"`
	// Text is what is found, in its first line. Lines that begin with "hint: " say what
	// to do about it, as in the text of any error.
	Text string `json:"text"`
	// Override is the flag that overrides it; empty: none does.
	Override string `json:"override,omitempty"`
	// Warning tells that it stops nothing.
	Warning bool `json:"warning,omitempty"`
}

// A Refusal is every reason why nothing was touched.
type Refusal struct {
	Findings []Finding
	Cause    error // of a single one that came from an error
}

// Unwrap is the error that the refusal came from, if there is one.
func (r *Refusal) Unwrap() error { return r.Cause }

func (r *Refusal) Error() string {
	texts := make([]string, len(r.Findings))
	for i, f := range r.Findings {
		texts[i] = f.Text
	}
	return strings.Join(texts, "\n")
}

// Refuse is the failure of findings.
func Refuse(findings ...Finding) *Failure {
	return &Failure{Exit: Refused, Err: &Refusal{Findings: findings}, Stands: Stands{Standing: Untouched}}
}

// RefuseFor is the failure of a finding that err is the cause of.
func RefuseFor(err error, f Finding) *Failure {
	f.Text = err.Error()
	return &Failure{Exit: Refused, Err: &Refusal{[]Finding{f}, err}, Stands: Stands{Standing: Untouched}}
}

// BeforeTouching is the failure of err, which came before anything was touched. A refusal that an error
// caused, such as a login that failed, is an interruption if ctx has ended: that broke the login off.
func BeforeTouching(ctx context.Context, err error) error {
	var f *Failure
	var r *Refusal
	broken := ctx.Err() != nil && errors.As(err, &r) && r.Cause != nil
	if err == nil || !broken && errors.As(err, &f) {
		return err
	}
	f = &Failure{Exit: Failed, Err: err, Stands: Stands{Standing: Untouched}}
	switch code := balancer.CodeOf(err); {
	case ctx.Err() != nil:
		f.Exit, f.Err = Interrupted, context.Cause(ctx)
	case code == balancer.CodeUsage, code == balancer.CodeUnknown:
		f.Exit = Usage
	case code == balancer.CodeRefused, code == balancer.CodePermission, code == balancer.CodeMissing:
		var e *balancer.Error
		errors.As(err, &e)
		return Refuse(Finding{Code: string(code), Text: err.Error(), Override: e.Override})
	}
	return f
}

// UsageError is the failure of a request that makes no sense.
func UsageError(format string, args ...any) error {
	return &Failure{Exit: Usage, Err: fmt.Errorf(format, args...), Stands: Stands{Standing: Untouched}}
}
