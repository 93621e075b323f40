package drain

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// How the wait samples. A stop must follow the last request closely, and a
// single low reading proves nothing: a worker of the earlier generation may
// open one more connection for a request it already holds.
const (
	lowReadings  = 3                     // low in a row before the backend counts as empty
	lowInterval  = 20 * time.Millisecond // from the start of a low reading to the next
	nearInterval = 40 * time.Millisecond // when the end is near
	nearCount    = 16                    // connections above the threshold that count as near the end
	// dutyFactor keeps the reading of the gauge to a part of the backend's
	// time: it rests at least this many times what a reading took.
	dutyFactor = 2
	// gaugeGrace is for how long a gauge may be unreadable before the wait
	// gives up: an SSH connection may break and come back.
	gaugeGrace = 60 * time.Second
)

// emptyStep waits until the gauge is low; its way back waits until the backend
// is healthy.
type emptyStep struct {
	r *run
}

func (s *emptyStep) name() StepName { return StepEmpty }

func (s *emptyStep) describe(w Way) string {
	if w == Forward {
		return fmt.Sprintf("wait until %s open, by %s (%s)", fewEnough(s.r.req.Threshold), s.r.plan.GaugeText(),
			limit(s.r.req.Timeout, s.r.atTimeout()))
	}
	return fmt.Sprintf("wait until healthy: %s (%s)", s.r.healthText(), limit(s.r.req.HealthTimeout, "roll back"))
}

func fewEnough(threshold int) string {
	if threshold == 0 {
		return "no connection is"
	}
	return connections(threshold) + " or fewer are"
}

// limit says for how long a wait goes on, and what is done then.
func limit(d time.Duration, then string) string {
	if d == 0 {
		return "no limit"
	}
	return fmt.Sprintf("at most %s, then %s", Span(d), then)
}

// Span is a duration without the zeros that say nothing: 5m for 5m0s.
func Span(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// atTimeout is what --on-timeout asks for, in words.
func (r *run) atTimeout() string {
	switch r.req.OnTimeout {
	case TimeoutLeave:
		return "leave it down and running"
	case TimeoutStop:
		return "stop " + r.req.Service + " all the same"
	}
	return "roll back"
}

// forward reads the gauge until it is low several times in a row, and sees
// that nginx still keeps requests away. It changes nothing.
func (s *emptyStep) forward(ctx context.Context) (bool, string, error) {
	if s.r.undoing && !s.r.stop.touched {
		return false, "", nil
	}
	w, err := s.newEmptying(ctx)
	if err != nil {
		return false, "", err
	}
	for {
		if err := w.sample(ctx); err != nil {
			return false, "", err
		}
		s.r.tell(w.Waiting)
		switch {
		case w.Low >= lowReadings:
			return false, fmt.Sprintf("%s open after %s", connections(w.Count), w.Elapsed.Round(time.Millisecond)), nil
		case w.Lost != nil && time.Since(w.good) > gaugeGrace:
			return false, "", fmt.Errorf("the open connections could not be counted for %s: %w", gaugeGrace, w.Lost)
		case w.Limit > 0 && w.Low == 0 && w.Elapsed >= w.Limit:
			if w.Lost != nil {
				return false, "", fmt.Errorf("the open connections could not be counted when the time was up: %w", w.Lost)
			}
			return false, "", &NotDrainedError{Reading: w.Reading, Threshold: w.Threshold, Limit: w.Limit, Strangers: w.arriving && len(w.strangers.named) > 0}
		}
		if err := sleep(ctx, w.pause()); err != nil {
			return false, "", err
		}
	}
}

// An emptying is the wait for an empty backend under way.
type emptying struct {
	Waiting
	r         *run
	watch     *watch
	strangers *strangers
	unsent    *unsent
	began     time.Time
	good      time.Time     // the last time that the gauge could be read
	took      time.Duration // the last reading
	arriving  bool          // strangers have connected lately
	early     bool          // earlier workers hold requests that may still come
}

func (s *emptyStep) newEmptying(ctx context.Context) (*emptying, error) {
	w := &emptying{r: s.r, unsent: &unsent{r: s.r}, began: time.Now(), good: time.Now()}
	w.Threshold, w.Limit = s.r.req.Threshold, s.r.req.Timeout
	if s.r.undoing {
		return w, nil
	}
	w.watch = newWatch(s.r.close, s.r.req.Interval)
	var err error
	w.strangers, err = s.r.newStrangers(ctx)
	return w, err
}

// sample reads the gauge, and looks around: now and then, and always beside the
// reading that may be the last. All are asked at once, so that the looks delay
// nothing.
func (w *emptying) sample(ctx context.Context) error {
	must := w.Low == lowReadings-1
	looked, early := make(chan error, 1), make(chan bool, 1)
	go func() { looked <- w.look(ctx, must) }()
	go func() { early <- w.Low == lowReadings-2 && w.unsent.look(ctx) }()
	started := time.Now()
	reading, err := w.r.gauge.read(ctx)
	w.took = time.Since(started)
	lookErr := <-looked
	w.early = <-early
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case lookErr != nil:
		return lookErr
	}
	w.Reading, w.Lost, w.Elapsed = reading, err, time.Since(w.began)
	if err == nil {
		w.good = time.Now()
	}
	switch low := err == nil && reading.Count <= w.Threshold && !w.arriving; {
	case !low:
		w.Low = 0
	case !w.early:
		w.Low++
	}
	return nil
}

func (w *emptying) look(ctx context.Context, must bool) error {
	if w.watch == nil {
		return nil
	}
	if err := w.watch.look(ctx, must); err != nil {
		return err
	}
	arriving, err := w.strangers.look(ctx, must)
	if err == nil {
		w.arriving = arriving
	} else if must {
		// Not known is not none.
		w.arriving = true
	}
	return nil
}

// pause is how long to wait before the next reading.
func (w *emptying) pause() time.Duration {
	interval := w.r.req.Interval
	switch {
	case w.Lost != nil:
	case w.Low > 0:
		interval = min(interval, max(0, lowInterval-w.took))
	case w.Count <= w.Threshold+nearCount && !w.arriving:
		interval = min(interval, max(nearInterval, dutyFactor*w.took))
	}
	if w.Limit > 0 && w.Low == 0 {
		interval = min(interval, max(w.Limit-w.Elapsed, lowInterval))
	}
	if w.early {
		interval = max(interval, nearInterval, dutyFactor*w.took)
	}
	return interval
}

// How health is judged.
const (
	healthyInARow  = 3 // successes
	healthInterval = 200 * time.Millisecond
	healthTry      = 5 * time.Second // limit of one try
)

// back tries the health check until it succeeds several times in a row.
func (s *emptyStep) back(ctx context.Context) (bool, string, error) {
	if s.r.undoing && !s.r.stop.touched {
		return false, "", nil
	}
	began := time.Now()
	inARow := 0
	for {
		try, cancel := context.WithTimeout(ctx, healthTry)
		err := s.r.healthy(try)
		cancel()
		if ctx.Err() != nil {
			return false, "", context.Cause(ctx)
		}
		inARow++
		if err != nil {
			inARow = 0
		}
		h := HealthTried{Err: err, InARow: inARow, Needed: healthyInARow, Elapsed: time.Since(began), Limit: s.r.req.HealthTimeout}
		s.r.tell(h)
		switch {
		case inARow >= healthyInARow:
			return false, fmt.Sprintf("healthy, %d times in a row (%s)", inARow, s.r.healthText()), nil
		case h.Limit > 0 && h.Elapsed >= h.Limit:
			if err == nil {
				err = errors.New("it did not stay healthy")
			}
			err = fmt.Errorf("not healthy after %s (%s): %w", Span(h.Limit), s.r.healthText(), err)
			if s.r.req.Service == "" {
				return false, "", fmt.Errorf("%w; nothing was started: no service is known (--service)", err)
			}
			return false, "", s.r.stop.withLog(ctx, err)
		}
		if err != nil {
			if ended := s.r.stop.ended(ctx); ended != nil {
				return false, "", fmt.Errorf("not healthy (%s): %w", s.r.healthText(), ended)
			}
		}
		if err := sleep(ctx, healthInterval); err != nil {
			return false, "", err
		}
	}
}
