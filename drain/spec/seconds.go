package spec

import "time"

// Seconds is a span of time in an event.
type Seconds float64

// InSeconds is d for an event.
func InSeconds(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// Duration is the span for the program.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }
