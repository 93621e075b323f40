package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

// Protocol is the version of what a client and an agent say to each other. It
// changes with every change of the calls or their types.
const Protocol = 10

// A greeting is the agent's first line.
type greeting struct {
	Agent    string `json:"agent"` // greetingName
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of drainctl
	// Caller is the user on whose behalf the agent acts.
	Caller journal.Recorder `json:"caller"`
}

const greetingName = "drainctl"

// maxMessage bounds one message, in bytes. The largest is the report of a status
// over all servers of a large configuration.
const maxMessage = 64 << 20

// Serve is the agent: it offers b over a stream until that ends, and closes b.
// Whoever is at the other end can ask for what a [Balancer] does and for nothing
// else: it runs no command line and writes no file of its caller's choosing.
// version is drainctl's own.
func Serve(ctx context.Context, in io.Reader, out io.WriteCloser, b Balancer, version string) error {
	defer b.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := newChannel(in, out, maxRequest)
	server := &server{ch: ch, methods: methods(b), large: make(chan struct{}, 1), running: map[uint64]context.CancelFunc{}}
	ended := make(chan error, 1)
	go func() {
		if err := ch.send(greeting{greetingName, Protocol, version, b.Caller()}); err != nil {
			ended <- fmt.Errorf("greet: %w", err)
			return
		}
		ended <- server.serve(ctx)
	}()
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-ch.watch(ctx, Lease):
		return err // reading or writing may go on for ever: the process ends with it
	}
}

const (
	// Lease is for how long an agent goes on without hearing from its client, or while that
	// reads nothing: the network may be gone without a word. Then its locks are free again.
	Lease = 30 * time.Second
	// pingInterval is how often a client says that it is there.
	pingInterval = 5 * time.Second
)

// maxRequest bounds one message to the agent, in bytes. The largest begins an operation: what
// the journal takes of it, and as much for the history.
const maxRequest = 2 << 20

// maxPending bounds the requests of all calls that are under way together, in bytes. What
// is read from them can take fifty times as much.
const maxPending = maxRequest

// MemoryLimit is the bytes from which on an agent collects garbage more eagerly, for
// debug.SetMemoryLimit. What it needs at once is less: see maxPending and hasLargeAnswers.
const MemoryLimit = 256 << 20

// methods are all that an agent can be asked.
func methods(b Balancer) map[string]method {
	return map[string]method{
		"plan":        call(b.Plan),
		"lock":        act(b.Lock),
		"begin":       act(b.Begin),
		"stage":       call(b.Stage),
		"load":        call(b.Load),
		"watch":       call(b.Watch),
		"connections": call(b.Connections),
		"probe":       call(b.Probe),
		"health":      act(b.Health),
		"record":      act(b.Record),
		"end":         act(b.End),
		"state":       call(func(ctx context.Context, _ struct{}) (journal.State, error) { return b.State(ctx) }),
		"history":     call(b.History),
	}
}

// call is a method that takes and gives a value.
func call[P, R any](f func(context.Context, P) (R, error)) method {
	return func(ctx context.Context, params json.RawMessage) (any, error) {
		var p P
		if err := Decode(params, &p); err != nil {
			return nil, &Error{Code: CodeRefused, Message: fmt.Sprintf("parameters: %v", err)}
		}
		return f(ctx, p)
	}
}

// act is a method that gives nothing back.
func act[P any](f func(context.Context, P) error) method {
	return call(func(ctx context.Context, p P) (bool, error) { return true, f(ctx, p) })
}
