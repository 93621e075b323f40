// Package backend is one backend in a run: the host behind a target, where the
// app runs. It counts its connections, waits until they are gone, and stops and
// starts its service.
package backend

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A Backend is one host.
type Backend struct {
	Name    string
	Host    remote.Host // nil when nothing is run there
	Units   []*Unit     // of the service, in the order in which they stop
	Counter Counter
	Sockets *remote.Counter // of the backend itself; nil where they are not listed
	// Dependents are the units that systemd stops with the service. They ran before.
	Dependents []string
}

// Active reports whether a unit was active when everything was checked.
func (b *Backend) Active() bool {
	return slices.ContainsFunc(b.Units, func(u *Unit) bool { return u.Active })
}

// Touched reports whether this run has stopped or started a unit, or tried to.
func (b *Backend) Touched() bool {
	return slices.ContainsFunc(b.Units, func(u *Unit) bool { return u.Touched })
}

// Log is the last lines of the logs of the units.
func (b *Backend) Log(ctx context.Context) (lines []string) {
	for _, u := range b.Units {
		lines = append(lines, u.Log(ctx)...)
	}
	return lines
}

// Close ends what runs on the host, and the connection to it.
func (b *Backend) Close() {
	if b.Counter != nil {
		b.Counter.Close()
	}
	if b.Host != nil {
		_ = b.Host.Close()
	}
}

// A Counter counts the open connections of a backend.
type Counter interface {
	Count(context.Context) (remote.Count, error)
	Close() error
}

// An Awaiter is a [Counter] that is told when a connection ends.
type Awaiter interface {
	// Await returns when a connection has ended since the last count, or after the limit.
	Await(ctx context.Context, limit time.Duration)
}

// A Floorer is a [Counter] that asks the LBs and the backend. The LBs' own count costs less.
type Floorer interface {
	Floor(context.Context) (remote.Count, error)
}

// StatusCounter is the stub_status of the backend's own nginx, asked on the
// backend.
type StatusCounter struct {
	Host remote.Host
	URL  string
}

// Count implements [Counter].
func (c StatusCounter) Count(ctx context.Context) (remote.Count, error) {
	code, body, err := remote.Get(ctx, c.Host, c.URL)
	if err != nil {
		return remote.Count{}, err
	}
	if code != 200 {
		return remote.Count{}, fmt.Errorf("%s answered with status %d", c.URL, code)
	}
	s, err := nginx.ParseStubStatus(body)
	if err != nil {
		return remote.Count{}, fmt.Errorf("%s: %w", c.URL, err)
	}
	return remote.Count{Open: s.Open()}, nil
}

// Close implements [Counter].
func (StatusCounter) Close() error { return nil }

// logLines is how many lines of a unit's log a failure shows.
const logLines = 10

// Log is the last lines of the unit's log, where they can be had. They are recorded,
// so they have no secret of a URL.
func (u *Unit) Log(ctx context.Context) []string {
	text, err := u.Logs(ctx, logLines)
	if err != nil || text == "" {
		return nil
	}
	return strings.Split(strings.TrimRight(remote.Redact(text), "\n"), "\n")
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
