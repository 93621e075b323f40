package balancer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// channel sends and receives messages, one JSON text a line.
type channel struct {
	in  *bufio.Reader
	out io.WriteCloser
	max int

	sending sync.Mutex
	heard   atomic.Bool // something has arrived since the last look
	writing atomic.Bool // a part of a message is being written
	taken   atomic.Bool // the other end took a part since the last look
}

func newChannel(in io.Reader, out io.WriteCloser, max int) *channel {
	return &channel{in: bufio.NewReader(in), out: out, max: max}
}

// errTorn says that the stream ended in the middle of a message.
var errTorn = errors.New("the message was cut short")

// sendPart is how many bytes are written at once. The other end counts as alive if it takes
// that much in time.
const sendPart = 32 << 10

// send sends one message.
func (c *channel) send(v any) error {
	message, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	for part := range slices.Chunk(append(message, '\n'), sendPart) {
		c.writing.Store(true)
		_, err := c.out.Write(part)
		c.writing.Store(false)
		if err != nil {
			return err
		}
		c.taken.Store(true)
	}
	return nil
}

// receive is the next message.
func (c *channel) receive() ([]byte, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if len(part) > 0 {
			c.heard.Store(true)
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

// looks is how often watch looks within its limit.
const looks = 6

// watch says when the other end is gone: when nothing has arrived, or nothing of a message
// was taken, at so many looks in a row. It reads no clock: a process or machine that was
// paused for longer than the limit, or whose clock was set, has looked once meanwhile, and
// then reads what waits.
func (c *channel) watch(ctx context.Context, limit time.Duration) <-chan error {
	gone := make(chan error, 1)
	go func() {
		for silent, stuck := 0, 0; ; {
			if remote.Sleep(ctx, limit/looks) != nil {
				return
			}
			if silent++; c.heard.Swap(false) {
				silent = 0
			}
			if stuck++; c.taken.Swap(false) || !c.writing.Load() {
				stuck = 0
			}
			switch {
			case silent == looks:
				gone <- fmt.Errorf("nothing was heard for %s", limit)
				return
			case stuck == looks:
				gone <- fmt.Errorf("nothing of a response was read for %s", limit)
				return
			}
		}
	}()
	return gone
}
