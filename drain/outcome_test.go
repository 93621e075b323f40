package drain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// The exit codes are a contract with scripts.
func TestExits(t *testing.T) {
	for exit, code := range map[Exit]int{Done: 0, Failed: 1, Usage: 2, TimedOut: 3, Refused: 4, Partial: 5, Interrupted: 130} {
		if int(exit) != code {
			t.Errorf("%d is not exit code %d", exit, code)
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(ErrInterrupted)
	coded := func(c balancer.Code) error { return &balancer.Error{Code: c, Message: "x"} }
	for _, test := range []struct {
		err  error
		want Exit
	}{
		{nil, Done},
		{errors.New("x"), Failed},
		{&Failure{Exit: Partial, Err: errors.New("x")}, Partial},
		{fmt.Errorf("y: %w", &Failure{Exit: TimedOut, Err: errors.New("x")}), TimedOut},
		{usage("x"), Usage},
		{refuse(Finding{}), Refused},
		{beforeTouching(t.Context(), fs.ErrNotExist), Failed},
		{beforeTouching(t.Context(), coded(balancer.CodeUsage)), Usage},
		{beforeTouching(t.Context(), coded(balancer.CodeUnknown)), Usage},
		{beforeTouching(t.Context(), coded(balancer.CodeRefused)), Refused},
		{beforeTouching(t.Context(), coded(balancer.CodePermission)), Refused},
		{beforeTouching(t.Context(), coded(balancer.CodeConnection)), Failed},
		{beforeTouching(t.Context(), fmt.Errorf("x: %w", remote.ErrConnection)), Failed},
		{beforeTouching(gone, coded(balancer.CodeCanceled)), Interrupted},
		{beforeTouching(gone, usage("x")), Usage},
	} {
		if got := ExitOf(test.err); got != test.want {
			t.Errorf("%v: exit %d, want %d", test.err, got, test.want)
		}
	}
}
