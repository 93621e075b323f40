package traffic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxFailures bounds how many failures a Summary describes; all are counted.
const maxFailures = 100

// Summary is what the clients have seen.
type Summary struct {
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"` // of the summary: now, while clients still run
	Final bool      `json:"final"` // no client runs any more

	Requests int `json:"requests"` // that ended, well or not; streams are counted apart
	Failed   int `json:"failed"`   // requests and streams that were cut or answered with anything but the whole right answer
	Held     int `json:"held"`     // of the requests: those that the app held open or answered slowly
	Uploads  int `json:"uploads"`  // of the requests: slow uploads
	// Retried counts the requests that nginx sent to more than one server because
	// the first failed. The client got its answer, but a server had let it down.
	Retried int `json:"retried"`
	// Reopened counts the requests for which a kept-alive connection to nginx had just
	// been closed, and a new one was taken. HTTP allows that at any time (RFC 9112,
	// section 9.3.1), and every reload of nginx does it.
	Reopened int `json:"reopened"`

	Streams int `json:"streams"` // upgraded connections that ended, well or not
	Lines   int `json:"lines"`   // sent on them and echoed
	Open    int `json:"open"`    // requests and streams that are open now

	Servers  map[string]Server `json:"servers"`  // by the app host's name
	Targets  map[string]int    `json:"targets"`  // requests and streams that ended well, by the load balancer's host:port
	Slowest  float64           `json:"slowest"`  // seconds that the longest request took
	Failures []Failure         `json:"failures"` // the first hundred
}

// Server is what one app host has answered.
type Server struct {
	Requests int       `json:"requests"`
	Streams  int       `json:"streams"`
	Last     time.Time `json:"last"` // when its last answer ended
}

// Failure is one request or stream that failed.
type Failure struct {
	Time   time.Time `json:"time"`
	Began  time.Time `json:"began"`
	What   string    `json:"what"`
	Server string    `json:"server,omitempty"` // the app host, if its answer had begun
	Reason string    `json:"reason"`
}

// String is a summary for people: a few short lines.
func (s Summary) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d requests in %.1f s (%d held up to seconds, %d slow uploads), %d upgraded streams with %d lines echoed: %d failed",
		s.Requests, s.Ended.Sub(s.Began).Seconds(), s.Held, s.Uploads, s.Streams, s.Lines, s.Failed)
	fmt.Fprintf(&text, "\n%d sent to a second server by nginx, %d on a new connection because nginx had closed the idle one; slowest %.2f s",
		s.Retried, s.Reopened, s.Slowest)
	names := make([]string, 0, len(s.Servers))
	for name := range s.Servers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&text, "\n  %-6s %6d requests, %4d streams", name, s.Servers[name].Requests, s.Servers[name].Streams)
	}
	for _, f := range s.Failures[:min(len(s.Failures), 10)] {
		fmt.Fprintf(&text, "\n  failed at %s after %.2f s: %s (%s): %s",
			f.Time.Format("15:04:05.000"), f.Time.Sub(f.Began).Seconds(), f.What, f.Server, f.Reason)
	}
	return text.String()
}

// tally collects what all clients see.
type tally struct {
	mu sync.Mutex
	s  Summary
}

func newTally() *tally {
	return &tally{s: Summary{Began: time.Now(), Servers: map[string]Server{}, Targets: map[string]int{}}}
}

func (t *tally) update(change func(*Summary)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.s)
}

func (t *tally) fail(f Failure) {
	f.Time = time.Now()
	t.update(func(s *Summary) {
		s.Failed++
		if len(s.Failures) < maxFailures {
			s.Failures = append(s.Failures, f)
		}
	})
}

// summary is a copy that nobody changes any more.
func (t *tally) summary(final bool) Summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.s
	s.Ended, s.Final = time.Now(), final
	s.Failures = slices.Clone(t.s.Failures)
	s.Targets = maps.Clone(t.s.Targets)
	s.Servers = maps.Clone(t.s.Servers)
	return s
}
