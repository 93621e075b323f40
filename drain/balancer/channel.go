package balancer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// channel sends and receives messages, one JSON text a line.
type channel struct {
	in  *bufio.Reader
	out io.WriteCloser
	max int

	sending sync.Mutex
	heard   atomic.Int64 // when something arrived, in nanoseconds since the epoch
}

func newChannel(in io.Reader, out io.WriteCloser, max int) *channel {
	c := &channel{in: bufio.NewReader(in), out: out, max: max}
	c.heard.Store(time.Now().UnixNano())
	return c
}

// errTorn says that the stream ended in the middle of a message.
var errTorn = errors.New("the message was cut short")

// send sends one message.
func (c *channel) send(v any) error {
	message, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err = c.out.Write(append(message, '\n'))
	return err
}

// receive is the next message.
func (c *channel) receive() ([]byte, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if len(part) > 0 {
			c.heard.Store(time.Now().UnixNano())
		}
		if len(line)+len(part) > c.max {
			return nil, fmt.Errorf("a message of more than %d bytes", c.max)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, errTorn
		default:
			return nil, err
		}
	}
}

// silent is closed when nothing has arrived for a time.
func (c *channel) silent(ctx context.Context, limit time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for left := limit; left > 0; left = limit - time.Since(time.Unix(0, c.heard.Load())) {
			if sleep(ctx, left) != nil {
				return
			}
		}
		close(done)
	}()
	return done
}
