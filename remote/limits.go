package remote

import (
	"context"
	"time"

	"github.com/drainctl/drainctl/command"
)

// A host may be broken or hostile. Nothing that it sends is kept without a bound, and
// nothing that is asked of it is waited for without one. An answer that is too long is an
// error: a part of it is never taken for the whole.
const (
	maxOutput  = 1 << 20  // bytes of a command's output, and of an answer of the counter
	maxStderr  = 64 << 10 // bytes of a command's standard error that are kept, the last
	maxLine    = 64 << 10 // bytes of a line of the counter
	maxText    = 4 << 10  // bytes of a line that an error or a log repeats
	maxBody    = 64 << 10 // bytes of the body, and of the header, of an answer over HTTP
	maxPeers   = 8        // that a count lists
	maxHeld    = 2000     // connections that a count lists
	maxClients = 2000     // that are listed
	// maxOpen is more connections than a host can have; a greater count is an error.
	maxOpen = 1 << 28
)

// limits are those bounds that tests shorten.
type limits struct {
	command   time.Duration // for a command to end, if it has no limit of its own
	answer    time.Duration // for sshd to answer a request
	output    int           // bytes: see maxOutput
	keepalive time.Duration // a connection silent for so long is asked for a sign of life
	grace     time.Duration // for a command to end when it is told to
	pipe      time.Duration // for output after the end of a command, where something it left behind holds it open
	refusal   time.Duration // for sshd to have room for another session
}

func defaultLimits() limits {
	return limits{
		command: 30 * time.Second, answer: 15 * time.Second, output: maxOutput,
		keepalive: 3 * time.Second, grace: time.Second, pipe: 2 * time.Second, refusal: 5 * time.Second,
	}
}

// clip shortens s for an error.
func clip(s string) string { return command.Clip(s, 200) }

// A clippedError has a text of bounded length, whatever a host put into it.
type clippedError struct{ error }

func (e clippedError) Error() string { return command.Clip(e.error.Error(), maxText) }
func (e clippedError) Unwrap() error { return e.error }

// Sleep waits for d or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
