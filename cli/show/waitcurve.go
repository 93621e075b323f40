package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/backend"
)

// A waitCurve is the open connections to one backend during a wait.
type waitCurve struct {
	Backend   string
	Points    []point // when the count was another one; at least one
	Threshold int
	Limit     time.Duration // 0: none
	Length    time.Duration // of the wait
	Failed    bool
	Held      []drain.Held // that were last seen to hold on longest
	Stuck     *drain.Stuck
}

// A point of a waitCurve is a reading.
type point struct {
	At   time.Duration
	Open int
}

// reading adds a reading of the connection counter.
func (e *entry) reading(w *drain.Waiting) {
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

func (s *waitCurve) add(at drain.Seconds, open int) {
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

// at is the connections at a time.
func (s *waitCurve) at(t time.Duration) int {
	open := s.first()
	for _, p := range s.Points {
		if p.At <= t {
			open = p.Open
		}
	}
	return open
}

// curveWidth is of the curve of a wait, in characters.
const curveWidth = 24

// draw is the curve as text: the most of each part of it, and the end.
func (s *waitCurve) draw() string {
	const each = 20
	values := s.samples(each * (curveWidth - 1))
	return curve(append(values, slices.Repeat([]int{s.end()}, each)...), curveWidth)
}

// samples is the curve at n times that are as far from each other.
func (s *waitCurve) samples(n int) (all []int) {
	for i := range n {
		all = append(all, s.at(s.Length*time.Duration(i)/time.Duration(max(1, n-1))))
	}
	return all
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

func seconds(s drain.Seconds) string { return backend.Span(s.Duration().Round(time.Second)) }

// stuckReasons are what the connections look like that keep a wait from ending.
var stuckReasons = map[drain.StuckReason]string{
	drain.StuckUpgraded: "upgraded (WebSocket, long polls?)",
	drain.StuckSending:  "only the backend sends (a download, an event stream?)",
	drain.StuckSilent:   "nothing is sent (the app has not answered)",
	drain.StuckClients:  "of other clients than the load balancers",
}

// stuckSummary says why a wait was not over.
func stuckSummary(s *drain.Stuck) string {
	text := fmt.Sprintf("%s, open for up to %s", count(s.Connections, "connection"), seconds(s.OpenFor))
	if why := stuckReasons[s.Reason]; why != "" {
		text += ": " + why
	}
	return text
}
