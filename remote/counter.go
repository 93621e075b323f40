package remote

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/command"
)

var (
	// ErrNoSS says that a host has no ss.
	ErrNoSS = errors.New("ss is not there; install iproute2")
	// ErrManyClients says that there are more clients than the 2,000 that
	// are listed.
	ErrManyClients = errors.New("more clients than can be listed")
)

// Count is how many connections are open, and with whom.
type Count struct {
	Open      int    `json:"open"`
	Peers     []Peer `json:"-"`              // those with the most of them, at most eight, the most first
	MorePeers int    `json:"-"`              // how many others there are
	Held      []Held `json:"held,omitempty"` // of CountHeld
	// Openers are those that have opened connections from an LB since its last reload, the latest first.
	Openers []Opener `json:"openers,omitempty"`
}

// An Opener is a process on an LB that has opened a connection to a server that nginx sends nothing to.
type Opener struct {
	LB      string        `json:"-"` // its name
	Near    netip.Addr    `json:"near"`
	By      OpenedBy      `json:"by"`
	Process string        `json:"process,omitempty"` // for a person; empty: not known
	PID     int           `json:"pid,omitempty"`
	Ago     time.Duration `json:"ago_ns"`
}

// OpenedBy says what a process is.
type OpenedBy string

// The processes.
const (
	OpenedByWorker  OpenedBy = "worker"  // of the generation of nginx that serves
	OpenedByOther   OpenedBy = "other"   // than nginx, or than this nginx
	OpenedByUnknown OpenedBy = "unknown" // it may be a worker that sends the requests that it still holds
)

// Peer is who is at the other end of connections.
type Peer struct {
	Addr  netip.Addr `json:"addr"`
	Count int        `json:"count"`
}

// Held is one open connection, and how long ago something was last sent on it. Its names in JSON are
// those of the host at its far end, an LB: what that host sends, this one receives.
type Held struct {
	Far      netip.AddrPort `json:"near"`
	Sent     time.Duration  `json:"received_ns"` // by the host whose connection it is; negative: not known
	Received time.Duration  `json:"sent_ns"`     // by it; negative: not known
}

// counterScript counts connections when it is told to: see there.
//
//go:embed counter.sh
var counterScript string

// Counter counts the connections to ports of a host, and lists their far ends. It is one command there, which is told what to look for, so
// that a reading costs one round trip. Where
// another command needs the one session of the host, it is ended, and started
// again by the next reading. It needs no root. A count that cannot be had is an
// error, never 0. It is safe for concurrent use.
type Counter struct {
	host    Host
	ports   []uint16
	ignored []netip.Prefix

	mutex  sync.Mutex
	stream *Stream // nil while there is none
	lines  *bufio.Reader
	id     int // of the last request
}

// NewCounter returns a Counter of the connections to ports of h. Those from ignored networks are not
// counted. Nothing is started before the first reading.
func NewCounter(h Host, ports []uint16, ignored ...netip.Prefix) *Counter {
	return &Counter{host: h, ports: ports, ignored: ignored}
}

// Count counts the connections that the clients take for established. After an error, ErrConnection or
// another, the next reading starts anew.
func (c *Counter) Count(ctx context.Context) (Count, error) { return ask(ctx, c, "count", parseCount) }

// CountHeld is Count, and lists the connections, 2,000 of them at most. What cannot
// be read of one is left out: the count is worth more.
func (c *Counter) CountHeld(ctx context.Context) (Count, error) {
	return ask(ctx, c, "held", parseCount)
}

// Clients lists the far ends, sorted, of all connections that there are or were
// until a minute ago: one that the host's side closed stays in TIME-WAIT for
// that long (tcp(7)). Left out is who is at except, and the host itself. With
// ErrManyClients comes the part that is listed.
func (c *Counter) Clients(ctx context.Context, except []netip.Addr) ([]netip.AddrPort, error) {
	request := "clients"
	for _, a := range except {
		request += " " + a.Unmap().WithZone("").String()
	}
	return ask(ctx, c, request, parseClients)
}

// Sees returns those of some far ends whose connection the host has, in whatever state.
func (c *Counter) Sees(ctx context.Context, far []netip.AddrPort) ([]netip.AddrPort, error) {
	request := "sees "
	for i, end := range far {
		request += map[bool]string{true: " or "}[i > 0] + "dst " + end.String()
	}
	return ask(ctx, c, request, parseClients)
}

// Close ends the command on the host.
func (c *Counter) Close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.drop()
	return nil
}

// drop ends the command, if there is one.
func (c *Counter) drop() {
	if c.stream != nil {
		c.stream.Close()
		c.stream = nil
	}
}

// ask sends a request and parses the lines of the answer.
func ask[T any](ctx context.Context, c *Counter, request string, parse func([]string) (T, error)) (value T, err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("look at the sockets on %s: %w", c.host.Name(), err)
		}
	}()
	if err := c.begin(ctx); err != nil {
		return value, err
	}
	c.id++
	verb, args, _ := strings.Cut(request, " ")
	last := fmt.Sprintf("end %d ", c.id)
	var lines []string
	err = c.exchange(ctx, fmt.Sprintf("%s %d %s\n", verb, c.id, args), func(line string) bool {
		status, ended := strings.CutPrefix(line, last)
		if ended {
			line = "end " + status
		}
		lines = append(lines, line)
		return ended
	})
	if err != nil {
		c.drop()
		return value, err
	}
	c.stream.park()
	return parse(lines)
}

// begin has the command run and takes the host's turn.
func (c *Counter) begin(ctx context.Context) error {
	if c.stream != nil {
		alive, err := c.stream.resume(ctx)
		if alive || err != nil {
			return err
		}
		c.drop()
	}
	filter, err := portFilter(c.ports)
	if err != nil {
		return err
	}
	if c.stream, err = c.host.Start(ctx, Command{Args: []string{"sh"}}); err != nil {
		return err
	}
	c.lines = bufio.NewReaderSize(c.stream, maxLine)
	counted := filter
	for _, p := range c.ignored {
		counted += " and not dst " + p.Masked().String()
	}
	if err := c.greet(ctx, filter, counted); err != nil {
		c.drop()
		return err
	}
	return nil
}

// greet sends the script and waits until it runs: the shell may read ahead, and
// would take a request for more of the script. What a login script prints comes
// before that.
func (c *Counter) greet(ctx context.Context, filter, counted string) error {
	ready, missing := rand.Text(), ""
	err := c.exchange(ctx, fmt.Sprintf("ready=%s filter='%s' counted='%s'\n%s", ready, filter, counted, counterScript), func(line string) (last bool) {
		missing, last = strings.CutPrefix(strings.TrimSpace(line), ready)
		return last
	})
	switch {
	case err != nil || missing == "":
		return err
	case missing == " no ss":
		return ErrNoSS
	}
	return fmt.Errorf("the host has%s", clip(missing))
}

// exchange sends a text and reads lines up to the one that isLast recognizes. The length of
// all lines and the time for them are bounded. The end of that time, or of ctx, ends the
// command.
func (c *Counter) exchange(ctx context.Context, text string, isLast func(line string) bool) error {
	s, closed := c.stream, make(chan struct{})
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.command, fmt.Errorf("no answer within %v", s.limits.command))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		s.process.Close()
		close(closed)
	})
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	_, err := io.WriteString(s, text)
	for read := 0; err == nil; {
		var line []byte
		line, err = c.lines.ReadSlice('\n')
		read += len(line)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return command.TooLongError(maxLine)
		case read > maxOutput:
			return command.TooLongError(maxOutput)
		case err == nil && isLast(strings.TrimSuffix(string(line), "\n")):
			return nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrConnection):
		return err
	}
	if text := lastLines([]byte(s.Stderr()), outputLines); text != "" {
		return fmt.Errorf("the shell there ended: %s", indentRest(text))
	}
	return fmt.Errorf("the shell there ended: %w", err)
}

// parseCount reads the answer to "count" or "held".
func parseCount(lines []string) (Count, error) {
	lines, err := answer(lines)
	if err != nil {
		return Count{}, err
	}
	var c Count
	var peers int
	bad := fmt.Errorf("unexpected output: %q", clip(strings.Join(lines, "\n")))
	if len(lines) == 0 {
		return Count{}, bad
	}
	if _, err := fmt.Sscanf(lines[0], "open %d %d", &c.Open, &peers); err != nil || c.Open < 0 || c.Open > maxOpen || peers < 0 || peers > c.Open {
		return Count{}, bad
	}
	sum := 0
	for _, line := range lines[1:] {
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "held" {
			if h, ok := parseHeld(words[1:]); ok && len(c.Held) < maxHeld {
				c.Held = append(c.Held, h)
			}
			continue
		}
		if len(words) != 3 || words[0] != "peer" {
			return Count{}, bad
		}
		n, err := strconv.Atoi(words[1])
		addr, aerr := netip.ParseAddr(words[2])
		if err != nil || aerr != nil || n <= 0 || n > c.Open-sum || len(c.Peers) == maxPeers {
			return Count{}, bad
		}
		sum += n
		c.Peers = append(c.Peers, Peer{Addr: addr.Unmap(), Count: n})
	}
	if c.MorePeers = peers - len(c.Peers); c.MorePeers < 0 || c.MorePeers == 0 && sum != c.Open {
		return Count{}, bad
	}
	slices.SortFunc(c.Peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), a.Addr.Compare(b.Addr))
	})
	return c, nil
}

// parseHeld reads "FAR" or "FAR SENT RECEIVED".
func parseHeld(words []string) (Held, bool) {
	if len(words) != 1 && len(words) != 3 {
		return Held{}, false
	}
	far, err := ParseEnd(words[0])
	h := Held{Far: far, Sent: -1, Received: -1}
	if err != nil || len(words) == 1 {
		return h, err == nil
	}
	sent, err1 := strconv.ParseUint(words[1], 10, 32) // as the kernel has it
	received, err2 := strconv.ParseUint(words[2], 10, 32)
	if err1 != nil || err2 != nil {
		return h, false
	}
	h.Sent, h.Received = time.Duration(sent)*time.Millisecond, time.Duration(received)*time.Millisecond
	return h, true
}

// parseClients reads the answer to "clients".
func parseClients(lines []string) ([]netip.AddrPort, error) {
	lines, err := answer(lines)
	if err != nil {
		return nil, err
	}
	var clients []netip.AddrPort
	var more error
	for _, line := range lines {
		verb, value, _ := strings.Cut(line, " ")
		switch verb {
		case "client":
			end, err := ParseEnd(value)
			if err != nil {
				return nil, fmt.Errorf("unexpected output: %q: %w", clip(line), err)
			}
			if len(clients) == maxClients {
				return nil, fmt.Errorf("unexpected output: more than %d clients", maxClients)
			}
			clients = append(clients, end)
		case "more":
			more = fmt.Errorf("%w (%s more)", ErrManyClients, clip(value))
		default:
			return nil, fmt.Errorf("unexpected output: %q", clip(line))
		}
	}
	slices.SortFunc(clients, netip.AddrPort.Compare)
	return clients, more
}

// answer returns the lines of an answer without its end, if that is a good one.
func answer(lines []string) ([]string, error) {
	last := len(lines) - 1
	var said []string
	for _, line := range lines {
		if text, found := strings.CutPrefix(line, "error "); found && len(said) < outputLines {
			said = append(said, clip(text))
		}
	}
	switch {
	case len(said) > 0:
		return nil, fmt.Errorf("ss: %s", strings.Join(said, "\n  "))
	case last >= 0 && lines[last] != "end 0" && strings.HasPrefix(lines[last], "end "):
		return nil, fmt.Errorf("ss ended with exit status %s", clip(strings.TrimPrefix(lines[last], "end ")))
	case last < 0 || lines[last] != "end 0":
		return nil, fmt.Errorf("unexpected output of ss: %q", clip(strings.Join(lines, "\n")))
	}
	return lines[:last], nil
}
