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

// forward reads the gauge until it is low several times in a row. It changes
// nothing.
func (s *emptyStep) forward(ctx context.Context) (bool, string, error) {
	if s.r.undoing && !s.r.stop.touched {
		return false, "", nil
	}
	began := time.Now()
	lastGood := began
	low := 0
	unsent := &unsent{r: s.r}
	for {
		started := time.Now()
		reading, early, err := s.sample(ctx, unsent, low)
		took := time.Since(started)
		if ctx.Err() != nil {
			return false, "", context.Cause(ctx)
		}
		w := Waiting{Reading: reading, Threshold: s.r.req.Threshold, Elapsed: time.Since(began), Limit: s.r.req.Timeout, Lost: err}
		switch {
		case err != nil:
			low = 0
		case early && reading.Count <= s.r.req.Threshold:
			lastGood = time.Now() // and once more
		case reading.Count <= s.r.req.Threshold:
			low++
			lastGood = time.Now()
		default:
			low = 0
			lastGood = time.Now()
		}
		w.Low = low
		s.r.tell(w)
		switch {
		case low >= lowReadings:
			return false, fmt.Sprintf("%s open after %s", connections(reading.Count), w.Elapsed.Round(time.Millisecond)), nil
		case err != nil && time.Since(lastGood) > gaugeGrace:
			return false, "", fmt.Errorf("the open connections could not be counted for %s: %w", gaugeGrace, err)
		case s.r.req.Timeout > 0 && low == 0 && w.Elapsed >= s.r.req.Timeout:
			if err != nil {
				return false, "", fmt.Errorf("the open connections could not be counted when the time was up: %w", err)
			}
			return false, "", &NotDrainedError{Reading: reading, Threshold: s.r.req.Threshold, Limit: s.r.req.Timeout}
		}
		rest := s.pause(reading.Count, low, took, w)
		if early {
			rest = max(rest, nearInterval, dutyFactor*took)
		}
		if err := sleep(ctx, rest); err != nil {
			return false, "", err
		}
	}
}

// sample reads the gauge. Beside the last reading but one it looks for requests
// that are still to come, which takes no time of its own then; early tells that
// there are some.
func (s *emptyStep) sample(ctx context.Context, u *unsent, low int) (r Reading, early bool, err error) {
	looked := make(chan bool, 1)
	go func() { looked <- low == lowReadings-2 && u.look(ctx) }()
	r, err = s.r.gauge.read(ctx)
	return r, <-looked, err
}

// pause is how long to wait before the next reading.
func (s *emptyStep) pause(count, low int, took time.Duration, w Waiting) time.Duration {
	interval := s.r.req.Interval
	switch {
	case w.Lost != nil:
	case low > 0:
		interval = min(interval, max(0, lowInterval-took))
	case count <= s.r.req.Threshold+nearCount:
		interval = min(interval, max(nearInterval, dutyFactor*took))
	}
	if w.Limit > 0 && low == 0 {
		interval = min(interval, max(w.Limit-w.Elapsed, lowInterval))
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
			return false, "", s.r.stop.withLog(ctx, fmt.Errorf("not healthy after %s (%s): %w", Span(h.Limit), s.r.healthText(), err))
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
