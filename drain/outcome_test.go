package drain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// The exit codes are a contract with scripts.
func TestExits(t *testing.T) {
	for exit, code := range map[spec.Exit]int{spec.Done: 0, spec.Failed: 1, spec.Usage: 2, spec.TimedOut: 3, spec.Refused: 4, spec.Partial: 5, spec.Interrupted: 130} {
		if int(exit) != code {
			t.Errorf("%d is not exit code %d", exit, code)
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(spec.ErrInterrupted)
	coded := func(c balancer.Code) error { return &balancer.Error{Code: c, Message: "x"} }
	for _, test := range []struct {
		err  error
		want spec.Exit
	}{
		{nil, spec.Done},
		{errors.New("x"), spec.Failed},
		{&spec.Failure{Exit: spec.Partial, Err: errors.New("x")}, spec.Partial},
		{fmt.Errorf("y: %w", &spec.Failure{Exit: spec.TimedOut, Err: errors.New("x")}), spec.TimedOut},
		{spec.UsageError("x"), spec.Usage},
		{spec.Refuse(spec.Finding{}), spec.Refused},
		{spec.BeforeTouching(t.Context(), fs.ErrNotExist), spec.Failed},
		{spec.BeforeTouching(t.Context(), coded(balancer.CodeUsage)), spec.Usage},
		{spec.BeforeTouching(t.Context(), coded(balancer.CodeUnknown)), spec.Usage},
		{spec.BeforeTouching(t.Context(), coded(balancer.CodeRefused)), spec.Refused},
		{spec.BeforeTouching(t.Context(), coded(balancer.CodePermission)), spec.Refused},
		{spec.BeforeTouching(t.Context(), coded(balancer.CodeConnection)), spec.Failed},
		{spec.BeforeTouching(t.Context(), fmt.Errorf("x: %w", remote.ErrConnection)), spec.Failed},
		{spec.BeforeTouching(gone, coded(balancer.CodeCanceled)), spec.Interrupted},
		{spec.BeforeTouching(gone, spec.UsageError("x")), spec.Usage},
		{spec.BeforeTouching(gone, spec.Refuse(spec.Finding{})), spec.Refused},
		{spec.BeforeTouching(gone, spec.RefuseFor(remote.ErrConnection, spec.Finding{})), spec.Interrupted},
	} {
		if got := spec.ExitOf(test.err); got != test.want {
			t.Errorf("%v: exit %d, want %d", test.err, got, test.want)
		}
	}
	// An LB says what overrides its refusal.
	var r *spec.Refusal
	refused := &balancer.Error{Code: balancer.CodeRefused, Message: "x", Override: "--force"}
	if err := spec.BeforeTouching(t.Context(), refused); !errors.As(err, &r) || r.Findings[0].Override != "--force" {
		t.Errorf("refused with %+v", err)
	}
}
