package traffic

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whatever an app or a load balancer does wrong is counted, with its reason.
func TestEveryFaultIsSeen(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		reason  string // of the failures; "" for none
	}{
		"whole answers": {answer, ""},
		"bad gateway": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no live upstreams", http.StatusBadGateway)
		}, "status 502"},
		"no last line":        {func(w http.ResponseWriter, r *http.Request) { named(w, "line 1\n") }, "last line"},
		"another's last line": {func(w http.ResponseWriter, r *http.Request) { named(w, "line 1\nEND app2\n") }, "last line"},
		"not from an app":     {func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "welcome\nEND \n") }, "not from an app"},
		"upload in part":      {shortUpload, "begins with"},
		"cut before":          {cutAfter(""), "EOF"},
		"cut in the head":     {cutAfter("HTTP/1.1 200 OK\r\nX-Served-By: app1\r\n"), "EOF"},
		"cut in the body":     {cutAfter("HTTP/1.1 200 OK\r\nX-Served-By: app1\r\nContent-Length: 30\r\n\r\nline 1\nEND app1\n"), "answer cut after 16 bytes"},
		"cut in a chunk":      {cutAfter("HTTP/1.1 200 OK\r\nX-Served-By: app1\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nline 1\nEND app1\n\r\n"), "answer cut after 16 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := run(t, test.handler, Options{Clients: 20, Streams: -1})
			if s.Requests == 0 || s.Uploads == 0 || s.Held == 0 {
				t.Errorf("not every kind of request was sent: %s", s)
			}
			expectFailures(t, s, test.reason)
		})
	}
}

func TestEveryFaultOfAStreamIsSeen(t *testing.T) {
	for name, test := range map[string]struct {
		talk   func(net.Conn, *bufio.Reader) // nil to refuse the stream
		reason string
	}{
		"echo":       {func(c net.Conn, from *bufio.Reader) { _, _ = io.Copy(c, from) }, ""},
		"refused":    {nil, "status 426"},
		"cut":        {func(net.Conn, *bufio.Reader) {}, "cut while"},
		"cut later":  {func(c net.Conn, from *bufio.Reader) { _, _ = io.CopyN(c, from, 40) }, "cut while"},
		"wrong line": {func(c net.Conn, _ *bufio.Reader) { _, _ = io.WriteString(c, "hello\n") }, "came back as"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := run(t, streams(test.talk), Options{Clients: -1, Streams: 3})
			if s.Streams == 0 {
				t.Errorf("no stream was opened: %s", s)
			}
			expectFailures(t, s, test.reason)
		})
	}
}

func TestARetryByNginxIsCountedButNoFailure(t *testing.T) {
	s := run(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Upstream-Addr", "192.168.1.10:8080, 192.168.1.11:8080")
		answer(w, r)
	}, Options{Clients: 5, Streams: -1})
	if s.Retried != s.Requests || s.Failed != 0 {
		t.Errorf("%d of %d retried and %d failed, want all retried and none failed", s.Retried, s.Requests, s.Failed)
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(answer))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	reports := 0
	s := Run(ctx, Options{
		Targets: []string{strings.TrimPrefix(server.URL, "http://")}, Clients: 3, Streams: -1, Limit: time.Hour,
		Every: 10 * time.Millisecond, Progress: func(s Summary) { reports++ },
	})
	if !s.Final || s.Open != 0 || s.Requests == 0 || reports == 0 {
		t.Errorf("%d reports, then %+v, want some reports, and a final summary with nothing open", reports, s)
	}
}

func run(t *testing.T, handler http.HandlerFunc, o Options) Summary {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	o.Targets, o.Limit = []string{strings.TrimPrefix(server.URL, "http://")}, 300*time.Millisecond
	return Run(t.Context(), o)
}

func expectFailures(t *testing.T, s Summary, reason string) {
	t.Helper()
	if reason == "" {
		if s.Failed != 0 {
			t.Errorf("failures where all went well: %s", s)
		}
		return
	}
	for _, f := range s.Failures {
		if strings.Contains(f.Reason, reason) {
			return
		}
	}
	t.Errorf("no failure tells %q: %s", reason, s)
}

// answer does what the lab's app does, without the waiting.
func answer(w http.ResponseWriter, r *http.Request) {
	length, _ := io.Copy(io.Discard, r.Body)
	named(w, fmt.Sprintf("%d bytes\nEND app1\n", length))
}

func named(w http.ResponseWriter, text string) {
	w.Header().Set("X-Served-By", "app1")
	_, _ = io.WriteString(w, text)
}

func shortUpload(w http.ResponseWriter, r *http.Request) {
	length, _ := io.Copy(io.Discard, r.Body)
	named(w, fmt.Sprintf("%d bytes\nEND app1\n", length/2))
}

// cutAfter sends some bytes and closes the connection.
func cutAfter(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, text)
		_ = conn.Close()
	}
}

func streams(talk func(net.Conn, *bufio.Reader)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if talk == nil {
			http.Error(w, "no", http.StatusUpgradeRequired)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\nX-Served-By: app1\r\n\r\n")
		talk(conn, buffered.Reader)
	}
}
