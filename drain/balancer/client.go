package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// A Client asks an agent over a stream.
type Client struct {
	name   string
	agent  string // its version
	caller journal.Recorder
	stream io.ReadWriteCloser
	rpc    *rpcClient
	done   chan struct{}
	once   sync.Once
	calls  atomic.Int64
}

// A VersionError says that an agent speaks another protocol.
type VersionError struct {
	Name           string // of the LB
	Version        string // of the drainctl there
	Theirs, Ours   int    // protocols
	ClientsVersion string
}

func (e *VersionError) Error() string {
	update := "update drainctl there"
	if e.Theirs > e.Ours {
		update = "update drainctl here"
	}
	return fmt.Sprintf("the drainctl on %s is %s (agent protocol %d), and this one is %s (protocol %d)\nhint: %s", e.Name, e.Version, e.Theirs, e.ClientsVersion, e.Ours, update)
}

// maxGreeting bounds what may come before the greeting: what a login shell
// prints at its start.
const maxGreeting = 64 << 10

// Connect is the balancer that an agent at the other end of stream serves. name
// is the LB's, for errors; version is this drainctl's. The client owns the
// stream, unless there is an error.
func Connect(ctx context.Context, name, version string, stream io.ReadWriteCloser) (*Client, error) {
	c := &Client{name: name, stream: stream, done: make(chan struct{})}
	ch := newChannel(stream, stream, maxMessage)
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	hello, err := readGreeting(ch)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil && hello.Protocol != Protocol {
		err = &VersionError{Name: name, Version: hello.Version, Theirs: hello.Protocol, Ours: Protocol, ClientsVersion: version}
	}
	if err != nil {
		return nil, err
	}
	ch.max, c.agent, c.caller = maxMessage, hello.Version, hello.Caller
	c.rpc = &rpcClient{ch: ch, slots: make(chan struct{}, maxCalls), ended: make(chan struct{}), wait: map[uint64]chan response{}}
	go func() {
		c.rpc.receive()
		c.once.Do(func() { close(c.done) })
	}()
	go c.ping()
	return c, nil
}

// ping says now and then that the client is there. It waits for no answer.
func (c *Client) ping() {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
			_ = c.rpc.ch.send(request{Method: methodPing})
		}
	}
}

// readGreeting passes over what a login shell prints before the agent starts.
func readGreeting(ch *channel) (greeting, error) {
	ch.max = maxGreeting
	for read := 0; read < maxGreeting; {
		line, err := ch.receive()
		if err != nil {
			return greeting{}, fmt.Errorf("no agent answered: %w", err)
		}
		read += len(line) + 1
		var g greeting
		if json.Unmarshal(line, &g) == nil && g.Agent == greetingName {
			return g, nil
		}
	}
	return greeting{}, errors.New("no agent answered")
}

// Name is the LB's.
func (c *Client) Name() string { return c.name }

// Version is that of the drainctl that the agent is.
func (c *Client) Version() string { return c.agent }

// Caller implements [Balancer].
func (c *Client) Caller() journal.Recorder { return c.caller }

// Calls is how many round trips were made, the greeting included.
func (c *Client) Calls() int { return int(c.calls.Load()) + 1 }

// Done implements [Balancer].
func (c *Client) Done() <-chan struct{} { return c.done }

// Close implements [Balancer].
func (c *Client) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.stream.Close()
}

// busyInterval is when a call that the agent was too busy for is made again.
const busyInterval = 10 * time.Millisecond

// ask makes one call.
func ask[R any](ctx context.Context, c *Client, method string, params any) (r R, err error) {
	c.calls.Add(1)
	text, err := json.Marshal(params)
	if err != nil {
		return r, err
	}
	answer, err := c.rpc.call(ctx, method, text)
	for CodeOf(err) == CodeBusy && remote.Sleep(ctx, busyInterval) == nil {
		answer, err = c.rpc.call(ctx, method, text)
	}
	var e *Error
	switch {
	case err == nil:
		err = json.Unmarshal(answer, &r)
		return r, err
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case errors.As(err, &e):
		return r, err
	}
	return r, &Error{Code: CodeConnection, Message: fmt.Sprintf("the connection to the load balancer %s broke: %v", c.name, err), cause: err}
}

// Plan implements [Balancer].
func (c *Client) Plan(ctx context.Context, q Query) (*Report, error) {
	return ask[*Report](ctx, c, "plan", q)
}

// Lock implements [Balancer].
func (c *Client) Lock(ctx context.Context, r LockRequest) error {
	_, err := ask[bool](ctx, c, "lock", r)
	return err
}

// Begin implements [Balancer].
func (c *Client) Begin(ctx context.Context, op Beginning) error {
	_, err := ask[bool](ctx, c, "begin", op)
	return err
}

// Stage implements [Balancer].
func (c *Client) Stage(ctx context.Context, r StageRequest) (Staged, error) {
	return ask[Staged](ctx, c, "stage", r)
}

// Load implements [Balancer].
func (c *Client) Load(ctx context.Context, r LoadRequest) (Loaded, error) {
	return ask[Loaded](ctx, c, "load", r)
}

// Watch implements [Balancer].
func (c *Client) Watch(ctx context.Context, w WatchRequest) (Watched, error) {
	return ask[Watched](ctx, c, "watch", w)
}

// Connections implements [Balancer].
func (c *Client) Connections(ctx context.Context, q ConnectionsQuery) (remote.Count, error) {
	return ask[remote.Count](ctx, c, "connections", q)
}

// Probe implements [Balancer].
func (c *Client) Probe(ctx context.Context, r ProbeRequest) ([]Probed, error) {
	return ask[[]Probed](ctx, c, "probe", r)
}

// Health implements [Balancer].
func (c *Client) Health(ctx context.Context, h HealthCheck) error {
	_, err := ask[bool](ctx, c, "health", h)
	return err
}

// Record implements [Balancer].
func (c *Client) Record(ctx context.Context, r Recorded) error {
	_, err := ask[bool](ctx, c, "record", r)
	return err
}

// End implements [Balancer].
func (c *Client) End(ctx context.Context, e journal.Ending) error {
	_, err := ask[bool](ctx, c, "end", e)
	return err
}

// State implements [Balancer].
func (c *Client) State(ctx context.Context) (journal.State, error) {
	return ask[journal.State](ctx, c, "state", struct{}{})
}

// History implements [Balancer].
func (c *Client) History(ctx context.Context, q HistoryQuery) (History, error) {
	return ask[History](ctx, c, "history", q)
}
