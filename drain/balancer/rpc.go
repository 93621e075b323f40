package balancer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// A request is one message to an agent.
type request struct {
	ID     uint64          `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// A response is one message from it.
type response struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// The methods that are about the connection itself. They have no response.
const (
	methodPing   = "ping"   // the client is there
	methodCancel = "cancel" // ends the context of the call with this ID
)

// A method does one call.
type method func(ctx context.Context, params json.RawMessage) (any, error)

// Decode reads a JSON value into v. Fields that v does not have are an error, and so
// is anything after it.
func Decode(message []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(message))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// maxCalls bounds how many calls are under way at once. A call that was cancelled is under
// way until its method has returned and its response was sent.
const maxCalls = 16

// hasLargeAnswers reports whether the answers of a method may be as large as a message.
// The memory for them is bounded: one such call runs at a time, until its answer is sent.
func hasLargeAnswers(method string) bool {
	return method == "plan" || method == "state" || method == "history"
}

// A server answers requests.
type server struct {
	ch      *channel
	methods map[string]method
	large   chan struct{} // one for a call that has large answers

	mu      sync.Mutex
	running map[uint64]context.CancelFunc
	pending int // bytes of their requests
	all     sync.WaitGroup
}

// serve reads requests until the stream ends or breaks its rules. Then the calls
// that are under way lose their context, and are waited for.
func (s *server) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.all.Wait()
	defer cancel()
	for {
		message, err := s.ch.receive()
		if err != nil {
			return err
		}
		var r request
		if err := Decode(message, &r); err != nil {
			return fmt.Errorf("not a request: %w", err)
		}
		switch r.Method {
		case methodPing:
		case methodCancel:
			s.cancel(r.ID)
		default:
			s.start(ctx, r)
		}
	}
}

// start runs a call beside the others.
func (s *server) start(ctx context.Context, r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.methods[r.Method]
	refused, code := "", CodeRefused
	switch {
	case m == nil:
		refused = fmt.Sprintf("there is no method %.40q", r.Method)
	case s.running[r.ID] != nil:
		refused = fmt.Sprintf("call %d is under way", r.ID)
	case len(s.running) >= maxCalls:
		refused, code = fmt.Sprintf("more than %d calls are under way", maxCalls), CodeBusy
	case s.pending+len(r.Params) > maxPending:
		refused, code = fmt.Sprintf("the calls that are under way have more than %d bytes", maxPending), CodeBusy
	}
	if refused != "" {
		_ = s.ch.send(response{ID: r.ID, Error: &Error{Code: code, Message: refused}})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	s.running[r.ID] = cancel
	s.pending += len(r.Params)
	s.all.Go(func() {
		defer s.forget(r)
		if hasLargeAnswers(r.Method) {
			s.large <- struct{}{}
			defer func() { <-s.large }()
			if ctx.Err() != nil { // cancelled while it waited
				m = func(context.Context, json.RawMessage) (any, error) { return nil, context.Cause(ctx) }
			}
		}
		_ = s.ch.send(answerTo(ctx, r, m)) // who does not listen any more needs no answer
	})
}

// answerTo makes the call of a request.
func answerTo(ctx context.Context, r request, m method) response {
	answer := response{ID: r.ID}
	result, err := m(ctx, r.Params)
	if err == nil {
		answer.Result, err = json.Marshal(result)
	}
	if err != nil {
		answer.Error = asError(err)
	}
	return answer
}

// cancel ends a call's context.
func (s *server) cancel(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.running[id]; cancel != nil {
		cancel()
	}
}

// forget notes that a call is over.
func (s *server) forget(r request) {
	s.cancel(r.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, r.ID)
	s.pending -= len(r.Params)
}

// An rpcClient makes calls over a channel, maxCalls at a time: others wait.
type rpcClient struct {
	ch    *channel
	slots chan struct{} // one for each call that the other end has not answered
	ended chan struct{} // closed when the stream has ended
	mu    sync.Mutex
	last  uint64
	wait  map[uint64]chan response
	err   error // why the stream ended
}

// receive hands responses to whoever waits for them, until the stream ends.
func (c *rpcClient) receive() {
	for {
		message, err := c.ch.receive()
		var r response
		if err == nil {
			err = json.Unmarshal(message, &r)
		}
		c.mu.Lock()
		if err != nil {
			c.err = err
			close(c.ended)
			for id, waiting := range c.wait {
				close(waiting)
				delete(c.wait, id)
			}
			c.mu.Unlock()
			return
		}
		if waiting := c.wait[r.ID]; waiting != nil {
			waiting <- r
			delete(c.wait, r.ID)
			<-c.slots
		}
		c.mu.Unlock()
	}
}

// call makes one call. When ctx ends, the call is cancelled at the other end, and
// not waited for.
func (c *rpcClient) call(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.ended:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	waiting := make(chan response, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	id := c.last
	c.wait[id] = waiting
	c.mu.Unlock()
	if err := c.ch.send(request{ID: id, Method: method, Params: params}); err != nil {
		return nil, err
	}
	select {
	case r, ok := <-waiting:
		switch {
		case !ok:
			return nil, c.err
		case r.Error != nil:
			return nil, r.Error
		}
		return r.Result, nil
	case <-ctx.Done():
		_ = c.ch.send(request{ID: id, Method: methodCancel})
		return nil, context.Cause(ctx)
	}
}
