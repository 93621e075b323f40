package backend

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// A stuckHost has an inactive unit, of which the start never ends.
type stuckHost struct{ remote.Host }

func (stuckHost) Name() string { return "app-1" }

func (stuckHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	if slices.Contains(c.Args, "show") {
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n")}, nil
	}
	<-ctx.Done()
	return remote.Result{}, context.Cause(ctx)
}

// A start that never ends is given up, and so are the locks that an operation has meanwhile.
func TestStartIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Unit{Service: remote.Service{Host: stuckHost{}, Unit: "app"}}
		began := time.Now()
		_, changed, err := b.Start(t.Context(), time.Minute)
		if err == nil || !strings.Contains(err.Error(), "did not end within 15m") || !changed || time.Since(began) != maxStarting {
			t.Errorf("changed %t after %v: %v", changed, time.Since(began), err)
		}
	})
}
