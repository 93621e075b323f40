// Package traffic is the load of the lab: clients that use my-web-app through the
// load balancer as browsers, scripts and streams do, and check every answer to its
// last line. It does not aim at the most requests a second but at having requests of
// every kind open at every moment, so that cutting any of them is seen.
package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// Defaults of Options, and limits.
const (
	DefaultClients = 60
	DefaultStreams = 20
	// DefaultLimit ends a load that nobody ends.
	DefaultLimit = 10 * time.Minute

	// requestLimit is how long one request may take before it counts as failed:
	// well above the longest that is asked for, well below the time a test has.
	requestLimit = 30 * time.Second
	longestHold  = 3 * time.Second
	evenHold     = 2 * time.Second
	uploadSize   = 64 << 10
)

// Options say what load to make.
type Options struct {
	Targets []string      // host:port of each load balancer; each client and each stream uses one
	Clients int           // that loop over requests; 0 means DefaultClients, negative none
	Streams int           // upgraded streams open at once; 0 means DefaultStreams, negative none
	Limit   time.Duration // after which no new request begins; 0 means DefaultLimit
	Only    Kind          // what the clients send; "" means all there is
	// Every is how often Progress is called with what was seen so far.
	Every    time.Duration
	Progress func(Summary)
}

// Kind is what the clients send when they do not send everything.
type Kind string

const (
	// Fast is requests that are answered at once. A server that gets a few of them
	// holds none most of the time.
	Fast Kind = "fast"
	// Uploads is uploads that take seconds to send. While one is sent, nginx holds it
	// and no server does; the server then takes a moment, in which it can be cut.
	Uploads Kind = "uploads"
	// Even is requests that all take the same time, so that every wait for those that
	// are open takes the same time too.
	Even Kind = "even"
	// Varied is requests that take a random time, up to that of the even ones.
	Varied Kind = "varied"
)

// Kinds are all there are.
var Kinds = []Kind{Fast, Uploads, Even, Varied}

// Run makes load until ctx ends or the limit is reached. Then it begins nothing new,
// lets what is open end well, and returns what was seen. It ends at most
// requestLimit later.
func Run(ctx context.Context, o Options) Summary {
	if o.Clients == 0 {
		o.Clients = DefaultClients
	}
	if o.Streams == 0 {
		o.Streams = DefaultStreams
	}
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	t := newTally()
	var running sync.WaitGroup
	for n := range o.Clients {
		c := newClient(n, o.target(n), t)
		c.only = o.Only
		running.Go(func() { c.loop(ctx) })
	}
	for n := range o.Streams {
		s := &stream{number: n, target: o.target(n), tally: t}
		running.Go(func() { s.loop(ctx) })
	}
	stopProgress := report(t, o)
	running.Wait()
	stopProgress()
	return t.summary(true)
}

// target is the load balancer of the n-th client or stream. Each has as many clients that
// keep their connections, every second one, as it has others.
func (o Options) target(n int) string { return o.Targets[n/2%len(o.Targets)] }

// report calls Progress at regular times until the function it returns is called.
func report(t *tally, o Options) (stop func()) {
	if o.Progress == nil || o.Every <= 0 {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(o.Every)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				o.Progress(t.summary(false))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// client sends one request after another.
type client struct {
	target string
	tally  *tally
	keep   *http.Client // reuses its connection, as a browser does
	fresh  *http.Client // opens a connection for each request, as a script does
	random *rand.Rand
	turn   int
	only   Kind
}

// newClient makes the n-th client. Half of the clients keep their connections. What
// each does is drawn from its number, the same in every run.
func newClient(n int, target string, t *tally) *client {
	c := &client{
		target: target, tally: t,
		fresh:  &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: requestLimit},
		random: rand.New(rand.NewPCG(uint64(n), 1)),
		turn:   n, // so that not all clients hold at the same time
	}
	c.keep = c.fresh
	if n%2 == 0 {
		c.keep = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: requestLimit}
	}
	return c
}

func (c *client) loop(ctx context.Context) {
	defer c.keep.CloseIdleConnections()
	if c.only == Even || c.only == Varied { // or they would begin and end together, again and again
		pause(ctx, c.random, 0, evenHold)
	}
	for ctx.Err() == nil {
		c.turn++
		c.request()
		pause(ctx, c.random, 10*time.Millisecond, 150*time.Millisecond)
	}
}

// request sends the client's next request: one in five is held, and the kind of
// holding takes turns; one in twenty is a slow upload.
func (c *client) request() {
	hold := time.Duration(c.random.Int64N(int64(longestHold))).Seconds()
	switch {
	case c.only == Varied:
		c.do(c.fresh, held, http.MethodPost, fmt.Sprintf("/hold?s=%.2f", hold*evenHold.Seconds()/longestHold.Seconds()))
	case c.only == Fast:
		c.do(c.keep, fast, http.MethodGet, fmt.Sprintf("/page/%d", c.turn))
	case c.only == Even:
		c.do(c.fresh, held, http.MethodPost, fmt.Sprintf("/hold?s=%.2f", evenHold.Seconds()))
	case c.only == Uploads:
		c.do(c.fresh, upload, http.MethodPost, "/upload?s=0.05")
	case c.turn%20 == 7:
		c.do(c.fresh, upload, http.MethodPost, "/upload")
	case c.turn%15 == 0:
		// nginx sends a POST to no second server once it has sent it to one, and
		// neither does Go's client: it fails if it is cut.
		c.do(c.fresh, held, http.MethodPost, fmt.Sprintf("/hold?s=%.2f", hold))
	case c.turn%15 == 5:
		c.do(c.keep, held, http.MethodGet, fmt.Sprintf("/slow?s=%.2f", hold))
	case c.turn%15 == 10:
		c.do(c.keep, held, http.MethodGet, fmt.Sprintf("/hold?s=%.2f", hold))
	default:
		c.do(c.keep, fast, http.MethodGet, fmt.Sprintf("/page/%d", c.turn))
	}
}

type kind int

const (
	fast kind = iota
	held
	upload
)

func (c *client) do(with *http.Client, k kind, method, path string) {
	began := time.Now()
	c.tally.update(func(s *Summary) { s.Open++ })
	server, connections, retried, err := c.exchange(with, k, method, path)
	took := time.Since(began)
	c.tally.update(func(s *Summary) {
		s.Open--
		s.Requests++
		switch k {
		case held:
			s.Held++
		case upload:
			s.Uploads++
		}
		if retried {
			s.Retried++
		}
		if connections > 1 {
			s.Reopened++
		}
		s.Slowest = max(s.Slowest, took.Seconds())
		if err == nil {
			seen := s.Servers[server]
			seen.Requests, seen.Last = seen.Requests+1, time.Now()
			s.Servers[server] = seen
			s.Targets[c.target]++
		}
	})
	if err != nil {
		c.tally.fail(Failure{Began: began, What: method + " " + path, Server: server, Reason: err.Error()})
	}
}

// exchange sends one request and checks the answer. It returns the app host that
// answered, on how many connections the request was tried, and whether nginx tried a
// second server for it.
func (c *client) exchange(with *http.Client, k kind, method, path string) (server string, connections int, retried bool, err error) {
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections++ },
	})
	var body io.Reader
	want := ""
	if k == upload {
		pieces := 16
		if c.only == Uploads {
			pieces += c.random.IntN(32) // so that they do not all end soon after a reload
		}
		body = &slowReader{left: uploadSize, piece: uploadSize / pieces}
		want = fmt.Sprintf("%d bytes\n", uploadSize)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+c.target+path, body)
	if err != nil {
		return "", 0, false, err
	}
	if k == upload {
		request.ContentLength = uploadSize
	}
	response, err := with.Do(request)
	if err != nil {
		return "", connections, false, err
	}
	defer func() { _ = response.Body.Close() }()
	server = response.Header.Get("X-Served-By")
	retried = strings.Contains(response.Header.Get("X-Upstream-Addr"), ",")
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return server, connections, retried, fmt.Errorf("answer cut after %d bytes: %w", len(text), err)
	}
	return server, connections, retried, check(response, text, want)
}

// check says what is wrong with an answer: it has to be whole, from one app host,
// and begin as wanted.
func check(response *http.Response, text []byte, want string) error {
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	server := response.Header.Get("X-Served-By")
	if server == "" {
		return errors.New("answer without X-Served-By: not from an app")
	}
	if !bytes.HasSuffix(text, []byte("\nEND "+server+"\n")) {
		return fmt.Errorf("answer of %d bytes does not end in its last line", len(text))
	}
	if !bytes.HasPrefix(text, []byte(want)) {
		return fmt.Errorf("answer begins with %.20q, want %q", text, want)
	}
	return nil
}

// slowReader is a body that takes a tenth of a second for each piece.
type slowReader struct {
	left, piece int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(100 * time.Millisecond)
	n := min(len(p), r.piece, r.left)
	for i := range p[:n] {
		p[i] = 'u'
	}
	r.left -= n
	return n, nil
}

// stream opens one upgraded connection after another.
type stream struct {
	number int
	target string
	tally  *tally
}

func (s *stream) loop(ctx context.Context) {
	random := rand.New(rand.NewPCG(uint64(s.number), 2))
	for ctx.Err() == nil {
		began := time.Now()
		life := time.Second + time.Duration(random.Int64N(int64(4*time.Second)))
		s.tally.update(func(sum *Summary) { sum.Open++ })
		server, lines, err := s.converse(ctx, life)
		s.tally.update(func(sum *Summary) {
			sum.Open--
			sum.Streams++
			sum.Lines += lines
			if err == nil {
				seen := sum.Servers[server]
				seen.Streams, seen.Last = seen.Streams+1, time.Now()
				sum.Servers[server] = seen
				sum.Targets[s.target]++
			}
		})
		if err != nil {
			s.tally.fail(Failure{Began: began, What: fmt.Sprintf("stream %d", s.number), Server: server, Reason: err.Error()})
		}
		pause(ctx, random, 10*time.Millisecond, 100*time.Millisecond)
	}
}

// converse opens a stream, sends a numbered line every 50 ms and wants each back, and
// closes it after its life, or when ctx ends. It closes right after a line has come
// back: nothing is under way then, and the stream was whole to its end.
func (s *stream) converse(ctx context.Context, life time.Duration) (server string, lines int, err error) {
	conn, err := net.DialTimeout("tcp", s.target, requestLimit)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = conn.Close() }()
	from := bufio.NewReader(conn)
	if server, err = upgrade(conn, from); err != nil {
		return server, 0, err
	}
	end := time.Now().Add(life)
	for last := false; !last; lines++ {
		time.Sleep(50 * time.Millisecond)
		last = time.Now().After(end) || ctx.Err() != nil
		if err := exchangeLine(conn, from, fmt.Sprintf("stream %d line %d\n", s.number, lines)); err != nil {
			return server, lines, err
		}
	}
	return server, lines, nil
}

// exchangeLine sends a line and wants it back.
func exchangeLine(conn net.Conn, from *bufio.Reader, line string) error {
	if err := conn.SetDeadline(time.Now().Add(requestLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, line); err != nil {
		return fmt.Errorf("send %q: %w", line, err)
	}
	back, err := from.ReadString('\n')
	if err != nil {
		return fmt.Errorf("cut while %q was under way: %w", line, err)
	}
	if back != line {
		return fmt.Errorf("%q came back as %q", line, back)
	}
	return nil
}

// upgrade asks for a raw stream and returns the app host that grants it.
func upgrade(conn net.Conn, from *bufio.Reader) (server string, err error) {
	if err := conn.SetDeadline(time.Now().Add(requestLimit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: lab\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
		return "", fmt.Errorf("ask for a stream: %w", err)
	}
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		return "", fmt.Errorf("ask for a stream: %w", err)
	}
	server = response.Header.Get("X-Served-By")
	if response.StatusCode != http.StatusSwitchingProtocols {
		return server, fmt.Errorf("ask for a stream: status %s", response.Status)
	}
	return server, nil
}

func pause(ctx context.Context, random *rand.Rand, least, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(least + time.Duration(random.Int64N(int64(most-least)))):
	}
}
