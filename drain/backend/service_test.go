package backend

import (
	"context"
	"errors"
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

// A pendingHost has a unit whose stop waits for that of another one, as a socket's for its service.
type pendingHost struct {
	remote.Host
	did *[]string
}

func (pendingHost) Name() string { return "app-1" }

func (h pendingHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	switch {
	case slices.Contains(c.Args, "show"):
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nJob=417\n")}, nil
	case slices.Contains(c.Args, "stop"):
		<-ctx.Done()
		return remote.Result{}, context.Cause(ctx)
	}
	*h.did = append(*h.did, strings.Join(c.Args, " "))
	return remote.Result{}, nil
}

// systemd keeps a stop that has not begun when the time is up. Stop reports it as late, and Start cancels it.
func TestStopThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var did []string
		u := &Unit{Service: remote.Service{Host: pendingHost{did: &did}, Unit: "shop.socket"}, Active: true}
		_, changed, err := u.Stop(t.Context(), time.Minute)
		var late *StoppingError
		if !changed || !errors.As(err, &late) {
			t.Errorf("%t, %v", changed, err)
		}
		if _, changed, err = u.Start(t.Context(), time.Minute); !changed || err != nil || len(did) != 1 || !strings.Contains(did[0], "start") {
			t.Errorf("%t, %v, did %q", changed, err, did)
		}
	})
}
