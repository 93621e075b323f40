// Command app is the web application that the lab's app hosts run as the unit
// my-web-app. It is made to show every request that is cut short: on SIGTERM it
// dies at once, whatever it holds, and every answer ends in a line of its own
// ("END host") that a client can look for.
//
//	/            and every other path: a short text
//	/hold?s=2.5  says nothing for 2.5 s, then answers in full
//	/slow?s=2.5  sends its text line by line over 2.5 s
//	/upload?s=1  reads the whole body, waits 1 s, answers with its length
//	/large?n=9   answers with 9 bytes before the end, and closes the connection
//	/ws          upgrades to a raw stream and echoes what it reads
//	/health      200 once healthy, 503 before
//
// With -raw it also answers without HTTP, over TCP and UDP: see raw.go.
//
// It logs the start and the end of every request with the time in nanoseconds.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// maxSeconds bounds how long a request may ask to be held.
const maxSeconds = 300

func main() {
	addr := flag.String("addr", ":8080", "`address` to listen on")
	logPath := flag.String("log", "", "`file` for the record of requests (default: standard output)")
	failStart := flag.Bool("fail-start", false, "exit 1 at once, as an app with a broken configuration does")
	listenAfter := flag.Duration("listen-after", 0, "start listening this long after the start")
	healthyAfter := flag.Duration("healthy-after", 0, "answer /health with 503 for this long after the start")
	raw := flag.String("raw", "", "`address` to answer at without HTTP, over TCP and UDP (default: none)")
	ignoreTerm := flag.Bool("ignore-term", false, "ignore SIGTERM, as an app that hangs on stop does")
	flag.Parse()
	if *failStart {
		fmt.Fprintln(os.Stderr, "my-web-app: cannot start: database migration 42 has failed")
		os.Exit(1)
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatalf("my-web-app: host name: %v", err)
	}
	out := os.Stdout
	if *logPath != "" {
		if out, err = os.OpenFile(*logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			log.Fatalf("my-web-app: %v", err)
		}
	}
	a := &app{host: host, record: out, healthyAt: time.Now().Add(*healthyAfter)}
	a.say("BOOT", 0, *addr)
	go a.dieOnTerm(*ignoreTerm)
	time.Sleep(*listenAfter)
	if *raw != "" {
		if err := a.serveRaw(*raw); err != nil {
			log.Fatalf("my-web-app: %v", err)
		}
	}
	server := &http.Server{Addr: *addr, Handler: a, ReadHeaderTimeout: time.Minute}
	log.Fatalf("my-web-app: %v", server.ListenAndServe())
}

type app struct {
	host      string
	record    *os.File
	healthyAt time.Time
	last      atomic.Int64 // number of the newest request
	open      atomic.Int64 // requests begun and not ended
}

// say writes one line to the record in one write, so that a death at any moment
// leaves whole lines: time, event, request number, requests open, the rest.
func (a *app) say(event string, id int64, rest string) {
	_, _ = fmt.Fprintf(a.record, "%s %s %d open=%d %s\n",
		time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), event, id, a.open.Load(), rest)
}

// dieOnTerm ends the process on SIGTERM without finishing anything: a request
// that is open then is cut, and whoever sent it sees that.
func (a *app) dieOnTerm(ignore bool) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	for range signals {
		a.say("TERM", 0, "")
		if !ignore {
			os.Exit(0)
		}
	}
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/health" {
		a.health(w)
		return
	}
	defer a.begin(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), r.RemoteAddr))()
	w.Header().Set("X-Served-By", a.host)
	switch r.URL.Path {
	case "/hold":
		time.Sleep(seconds(r))
		a.answer(w, r.Method+" held\n")
	case "/large":
		a.large(w, r)
		return
	case "/slow":
		a.slow(w, seconds(r))
	case "/upload":
		a.upload(w, r)
	case "/ws":
		a.stream(w, r)
		return // the connection is no longer HTTP's to flush
	default:
		a.answer(w, a.text())
	}
	// The end of a request is when its last byte has left, not when the handler
	// has no more to say.
	_ = http.NewResponseController(w).Flush()
}

// begin records the start of a request, and returns what records its end.
func (a *app) begin(what string) (end func()) {
	id := a.last.Add(1)
	a.open.Add(1)
	a.say("START", id, what)
	return func() {
		a.open.Add(-1)
		a.say("END", id, what)
	}
}

func (a *app) health(w http.ResponseWriter) {
	if time.Now().Before(a.healthyAt) {
		http.Error(w, "warming up", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// text is a page of some lines, so that a cut can fall inside it.
func (a *app) text() string {
	var page strings.Builder
	for line := 1; line <= 40; line++ {
		fmt.Fprintf(&page, "line %d of 40 from %s\n", line, a.host)
	}
	return page.String()
}

func (a *app) answer(w http.ResponseWriter, text string) {
	body := text + "END " + a.host + "\n"
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = io.WriteString(w, body)
}

// slow sends its first line at once, then ten a second.
func (a *app) slow(w http.ResponseWriter, duration time.Duration) {
	w.Header().Set("Content-Type", "text/plain")
	control := http.NewResponseController(w)
	end := time.Now().Add(duration)
	for line := 1; ; line++ {
		_, _ = fmt.Fprintf(w, "line %d from %s\n", line, a.host)
		_ = control.Flush()
		left := time.Until(end)
		if left <= 0 {
			break
		}
		time.Sleep(min(left, 100*time.Millisecond))
	}
	_, _ = fmt.Fprintf(w, "END %s\n", a.host)
}

func (a *app) upload(w http.ResponseWriter, r *http.Request) {
	length, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(seconds(r))
	a.answer(w, fmt.Sprintf("%d bytes\n", length))
}

// large leaves as much of its answer as it can to the kernel, and is done with it when the
// kernel has it all.
func (a *app) large(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.Atoi(r.URL.Query().Get("n"))
	conn, _, hijackErr := http.NewResponseController(w).Hijack()
	if err != nil || hijackErr != nil {
		http.Error(w, "want /large?n=BYTES over HTTP/1.1", http.StatusBadRequest)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetWriteBuffer(4 << 20) // the kernel grants what it may
	end := "END " + a.host + "\n"
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s%s", size+len(end), strings.Repeat("x", size), end)
}

// stream is an upgraded connection (as WebSocket makes one) without framing:
// every line comes back as it was sent.
func (a *app) stream(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "echo") {
		http.Error(w, "want the header Upgrade: echo", http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\nX-Served-By: %s\r\n\r\n", a.host)
	echo(conn, buffered.Reader)
}

func echo(conn net.Conn, from *bufio.Reader) {
	for {
		line, err := from.ReadBytes('\n')
		if err != nil {
			return
		}
		if _, err := conn.Write(line); err != nil {
			return
		}
	}
}

func seconds(r *http.Request) time.Duration { return secondsOf(r.URL.Query().Get("s")) }

func secondsOf(text string) time.Duration {
	s, err := strconv.ParseFloat(text, 64)
	if err != nil || s < 0 || s != s {
		return 0
	}
	return time.Duration(min(s, maxSeconds) * float64(time.Second))
}
