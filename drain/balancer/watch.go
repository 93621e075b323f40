package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Watch implements [Balancer].
func (l *Local) Watch(ctx context.Context, w WatchRequest) (Watched, error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	seen := Watched{Buffered: -1}
	if w.Generation {
		now, err := l.now(ctx)
		if err != nil && !errors.Is(err, nginx.ErrNotRunning) { // that one has no generation
			return seen, asError(err)
		}
		seen.Generation = generation(now)
		return seen, nil
	}
	if len(w.Targets) == 0 {
		return seen, &Error{Code: CodeRefused, Message: "watch: no target is named"}
	}
	if err := errors.Join(checkNumber("targets", len(w.Targets)), checkNumber("upstreams", len(w.Upstreams))); err != nil {
		return seen, asError(err)
	}
	buffered := make(chan int, 1)
	if w.Buffered {
		finishing := l.after.Exiting()
		go func() { buffered <- bufferedRequests(finishing) }()
	}
	drift, err := l.drift(ctx, w)
	if w.Buffered {
		seen.Buffered = <-buffered
	}
	if err != nil {
		return seen, asError(err)
	}
	seen.Drift = drift
	return seen, nil
}

// generationOverlap is how long the workers of two generations may serve side by
// side: as long as an earlier one takes to read that it is to end.
const generationOverlap = 5 * time.Second

// stableInterval is between two looks at generations that overlap.
const stableInterval = 100 * time.Millisecond

// stable is what runs, once one generation serves alone. During a reload two do,
// and when the later one was started is not known before. A worker that has
// crashed and was replaced looks like that too, but for good.
func (l *Local) stable(ctx context.Context) (nginx.Running, error) {
	for began := time.Now(); ; {
		now, err := l.processes()
		if errors.Is(err, nginx.ErrNotRunning) {
			// Restarted, or upgraded: another master may serve.
			now, err = l.now(ctx)
		}
		if err != nil || !now.Started(l.after) || now.Replaced(l.after) || time.Since(began) > generationOverlap {
			return now, err
		}
		if err := remote.Sleep(ctx, stableInterval); err != nil {
			return now, err
		}
	}
}

// serves notes what runs, after a verified load or without one.
func (l *Local) serves(now nginx.Running, isLoaded bool) {
	l.after = now
	servers := maps.Clone(l.out) // also one that was down before, and has no mark of the operation
	for _, m := range l.own.Marks {
		servers[m.Server] = servers[m.Server] || m.Cleared == nil
	}
	var out []nginx.Address
	for server, isOut := range servers {
		if a, err := nginx.ParseAddress(server.Address); err == nil && isOut {
			out = append(out, a)
		}
	}
	l.traffic.serves(now, out, isLoaded)
}

func (l *Local) processes() (now nginx.Running, err error) {
	err = l.effect("look at nginx's processes", func() (err error) {
		now, err = l.binary().Processes(l.after.Master.PID)
		return err
	})
	return now, err
}

// drift looks whether another process has let requests reach the servers again.
func (l *Local) drift(ctx context.Context, w WatchRequest) (*Drift, error) {
	now, err := l.stable(ctx)
	if err != nil {
		return nil, err
	}
	reloaded := len(now.Serving()) > 0 && now.Started(l.after)
	if !reloaded && l.watched != nil {
		files, err := changeTimes(l.watched)
		if err != nil {
			return nil, err
		}
		if maps.EqualFunc(files, l.watched, time.Time.Equal) {
			return nil, nil
		}
	}
	return l.reread(ctx, w, now, reloaded)
}

// reread reads the configuration again, and looks at the servers in it.
func (l *Local) reread(ctx context.Context, w WatchRequest, now nginx.Running, reloaded bool) (*Drift, error) {
	r := &reading{Report: &Report{Files: map[string]string{}}, query: Query{Targets: w.Targets, Upstreams: w.Upstreams}}
	r.build, _ = l.find(ctx)
	err := l.read(ctx, r)
	if CodeOf(err) == CodeUsage { // an upstream that is not there any more
		return &Drift{Reason: DriftServerRemoved, Places: []string{err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(r.Missing) > 0 {
		return &Drift{Reason: DriftServerRemoved, Places: []string{r.Missing[0].Error.Message}}, nil
	}
	var up []string
	for _, s := range r.Servers {
		if !s.Down {
			up = append(up, fmt.Sprintf("%s in %s (%s:%d)", s.Address, s.Name, s.File, s.Line))
		}
	}
	if len(up) > 0 {
		return &Drift{Reason: DriftDownRemoved, Places: up, Reloaded: reloaded}, nil
	}
	names := map[string]time.Time{}
	for path := range r.Files {
		names[path] = time.Time{}
	}
	files, err := changeTimes(names)
	if err != nil {
		return nil, err
	}
	for path, at := range files {
		if reloaded && at.After(now.LoadedAtLatest()) {
			return &Drift{Reason: DriftUnknown, Places: []string{path}, Reloaded: true}, nil
		}
	}
	l.serves(now, false)
	l.watched = files
	return nil, nil
}

// changeTimes is when each of the files was last changed.
func changeTimes(files map[string]time.Time) (map[string]time.Time, error) {
	times := map[string]time.Time{}
	for path := range files {
		at, err := nginx.ChangeTime(path)
		if err != nil {
			return nil, err
		}
		times[path] = at
	}
	return times, nil
}
