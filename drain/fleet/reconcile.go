package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
)

// A Round is one reconciliation of the marks on all LBs.
type Round struct {
	event.Header // of its events, without an LB
	// BestEffort tells that an LB that fails keeps no other LB from the change: in a rollback, and where
	// servers return to the pool.
	BestEffort bool
	// Request returns the wants of an LB and the hashes of the files that they were planned with.
	Request func(*LB) balancer.StageRequest
	// Replan plans the part of an LB again whose files have changed since, and checks the guards again.
	Replan        func(context.Context, *LB) error
	ReloadTimeout time.Duration
	Locks         balancer.LockRequest // for a connection that is made anew
	Emit          func(event.Event)
}

// Reconcile brings the marks on all LBs to the wanted state. On the way there it is all or nothing: it
// edits and tests every file before it reloads any LB. On the way back it changes as many LBs as
// possible. It reports whether it has changed an LB.
func (f Fleet) Reconcile(ctx context.Context, r Round) (changed bool, err error) {
	staged := make([]balancer.Staged, len(f))
	stage := func(ctx context.Context, lb *LB) (err error) {
		staged[slices.Index(f, lb)], err = r.stage(ctx, lb)
		return err
	}
	load := func(ctx context.Context, lb *LB) error {
		if staged[slices.Index(f, lb)].NeedsLoad {
			return r.load(ctx, lb)
		}
		return nil
	}
	if r.BestEffort {
		err = f.Each(ctx, func(ctx context.Context, lb *LB) error {
			err := lb.Reconnect(ctx, r.Locks)
			if err == nil {
				err = stage(ctx, lb)
			}
			if err == nil {
				err = load(ctx, lb)
			}
			return err
		})
	} else if err = f.Each(ctx, stage); err == nil {
		err = f.Each(ctx, load)
	}
	changed = slices.ContainsFunc(staged, func(s balancer.Staged) bool { return s.NeedsLoad || len(s.Edited) > 0 })
	return changed, err
}

// maxReplans bounds how often an LB is planned again because another process edits its files at the
// same time.
const maxReplans = 5

// stage edits and tests one LB. It plans files again that have changed since they were planned.
func (r Round) stage(ctx context.Context, lb *LB) (staged balancer.Staged, err error) {
	head := r.on(lb)
	for try := 0; ; try++ {
		q := r.Request(lb)
		if len(q.Wants) == 0 {
			return staged, nil
		}
		lb.Loaded = false
		staged, err = lb.Stage(ctx, q)
		if balancer.CodeOf(err) != balancer.CodeChanged || try == maxReplans {
			break
		}
		r.Emit(&event.Warning{Header: head, Text: fmt.Sprintf("%v: planning again", err)})
		if err = r.Replan(ctx, lb); err != nil {
			return staged, err
		}
	}
	for _, text := range staged.Notices {
		r.Emit(&event.Warning{Header: head, Text: text})
	}
	if err != nil {
		return staged, err
	}
	lb.Loaded = !staged.NeedsLoad
	if len(staged.Stale) > 0 {
		r.Emit(&event.NotLoaded{Header: head, Files: staged.Stale})
	}
	if len(staged.Edited) > 0 {
		r.Emit(&event.Edited{Header: head, Edits: staged.Edited, Diff: staged.Diff})
	}
	return staged, nil
}

// load has one LB load what was staged there.
func (r Round) load(ctx context.Context, lb *LB) error {
	loaded, err := lb.Load(ctx, balancer.LoadRequest{Timeout: r.ReloadTimeout})
	if err != nil {
		return err
	}
	for _, text := range loaded.Notices {
		r.Emit(&event.Warning{Header: r.on(lb), Text: text})
	}
	if lb.Loaded = true; loaded.Stopped {
		return nil
	}
	r.Emit(&event.Reloaded{Header: r.on(lb), Generation: loaded.Generation})
	return nil
}

// on returns the header of an event on one LB.
func (r Round) on(lb *LB) event.Header {
	head := r.Header
	head.LB = lb.Name
	return head
}
