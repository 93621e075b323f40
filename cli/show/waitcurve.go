package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// A waitCurve is the open connections to one backend during a wait.
type waitCurve struct {
	Backend   string
	Points    []point // when the count was another one; at least one
	Threshold int
	Limit     time.Duration // 0: none
	Length    time.Duration // of the wait
	Failed    bool
	Held      []event.Held // that were last seen to hold on longest
	Stuck     *event.Stuck
}

// A point of a waitCurve is a reading.
type point struct {
	At   time.Duration
	Open int
}

// reading adds a reading of the connection counter.
func (e *entry) reading(w *event.Waiting) {
	if w.Error != "" {
		e.note(strings.TrimPrefix(w.Target+": ", ": ")+"the connections could not be counted for a while: "+w.Error, "", moodWarning)
		return
	}
	i := slices.IndexFunc(e.Curves, func(had *waitCurve) bool { return had.Backend == w.Target })
	if i < 0 {
		i, e.Curves = len(e.Curves), append(e.Curves, &waitCurve{Backend: w.Target})
	}
	s := e.Curves[i]
	s.Threshold, s.Limit = w.Threshold, w.Limit.Duration()
	s.add(w.Elapsed, w.Open)
	if len(w.Held) > 0 {
		s.Held = w.Held
	}
	if w.Stuck != nil {
		s.Stuck = w.Stuck
	}
}

func (s *waitCurve) add(at spec.Seconds, open int) {
	s.Points = append(s.Points, point{max(0, at.Duration()), max(0, open)})
}

// close says how long the wait was.
func (s *waitCurve) close(took time.Duration) {
	slices.SortStableFunc(s.Points, func(a, b point) int { return cmp.Compare(a.At, b.At) })
	s.Length = max(took, s.Points[len(s.Points)-1].At)
}

func (s *waitCurve) first() int { return s.Points[0].Open }
func (s *waitCurve) end() int   { return s.Points[len(s.Points)-1].Open }

func (s *waitCurve) peak() (n int) {
	for _, p := range s.Points {
		n = max(n, p.Open)
	}
	return n
}

// curveWidth is of the curve of a wait, in characters.
const curveWidth = 24

// draw is the curve as text.
func (s *waitCurve) draw() string {
	counts := series{span: max(s.Length/curveWidth, time.Millisecond)}
	for _, p := range s.Points {
		counts.add(p.At, p.Open)
	}
	counts.add(s.Length, s.end())
	return curve(counts.values, curveWidth)
}

// timedOut tells whether the wait went on until its time was up.
func (s *waitCurve) timedOut() bool { return s.Failed && s.Limit > 0 && s.Length >= s.Limit }

// summary is the curve in numbers.
func (s *waitCurve) summary() string {
	text := fmt.Sprintf("%d at first", s.first())
	if s.peak() > s.first() {
		text += fmt.Sprintf(", %d at most", s.peak())
	}
	text += fmt.Sprintf(", %d at the end", s.end())
	if s.peak() == 0 {
		text = "none at any time"
	}
	if s.timedOut() {
		text += ", when the time was up"
	}
	return text
}

// limits says what was waited for.
func (s *waitCurve) limits() string {
	text := "waited until none is open"
	if s.Threshold > 0 {
		text = fmt.Sprintf("waited until %d or fewer are open", s.Threshold)
	}
	if s.Limit > 0 {
		return text + ", for at most " + backend.Span(s.Limit)
	}
	return text + ", without a limit"
}
