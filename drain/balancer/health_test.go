package balancer

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Whatever answers a health check, it costs no more than bounded time and memory, and the
// error shows no more than a little of the answer.
func TestHealthOfAHostileServer(t *testing.T) {
	for name, answer := range map[string]struct{ first, again string }{
		"silence":                {"", ""},
		"no HTTP":                {strings.Repeat("secret.", 5_000) + "\r\n", ""},
		"an endless status line": {"HTTP/1.1 200 ", "xxxxxxxxxxxxxxxx"},
		"an endless header":      {"HTTP/1.1 200 OK\r\n", "X: " + strings.Repeat("x", 1000) + "\r\n"},
		"an endless error":       {"HTTP/1.1 500 no\r\n\r\n", "xxxxxxxxxxxxxxxx"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, err = conn.Write([]byte(answer.first))
				for answer.again != "" && err == nil {
					_, err = conn.Write([]byte(answer.again))
				}
				if answer.again == "" {
					_, _ = conn.Read(make([]byte, 1<<10))
					_, _ = conn.Read(make([]byte, 1<<10)) // until the other end closes
				}
			}()
			began := time.Now()
			err = NewLocal(Options{}).Health(t.Context(), HealthCheck{URL: "http://" + l.Addr().String() + "/"})
			if err == nil || len(err.Error()) > 400 || time.Since(began) > time.Minute {
				t.Errorf("after %v: %.500v", time.Since(began), err)
			}
		})
	}
}

// The code of a failure tells a sick app from a URL that no restart of the app mends.
func TestCodeOfFailure(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch status, err := strconv.Atoi(r.URL.Path[1:]); {
		case err == nil:
			w.WriteHeader(status)
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		default:
			panic(http.ErrAbortHandler) // closes the connection
		}
	}))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer secure.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	for url, want := range map[string]Code{
		plain.URL + "/204":   "",
		plain.URL + "/301":   CodeWrongURL,
		plain.URL + "/401":   CodeWrongURL,
		plain.URL + "/404":   CodeWrongURL,
		plain.URL + "/408":   CodeUnhealthy,
		plain.URL + "/429":   CodeUnhealthy,
		plain.URL + "/500":   CodeUnhealthy,
		plain.URL + "/503":   CodeUnhealthy,
		plain.URL + "/slow":  CodeUnhealthy,
		plain.URL + "/abort": CodeUnhealthy,
		closed.URL:           CodeUnreachable,
		secure.URL:           CodeWrongURL, // nobody has signed its certificate
		strings.Replace(plain.URL, "http:", "https:", 1):  CodeWrongURL,
		strings.Replace(secure.URL, "https:", "http:", 1): CodeWrongURL,
		"http://" + other.Addr().String():                 CodeWrongURL,
		"http://no-such-host.invalid/":                    CodeWrongURL, // RFC 6761
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := NewLocal(Options{}).Health(ctx, HealthCheck{URL: url})
		cancel()
		if got := CodeOf(err); got != want {
			t.Errorf("%s: %q, want %q: %v", url, got, want, err)
		}
	}
}

// The Host header names an app behind an address, and the name that its certificate must have. A
// private CA is trusted beside the LB's own.
func TestHealthOfANamedApp(t *testing.T) {
	app := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := strings.Cut(r.Host, ":"); host != "example.com" {
			http.Error(w, "no such site", http.StatusMisdirectedRequest)
		}
	}))
	defer app.Close()
	app.Config.ErrorLog = log.New(io.Discard, "", 0)
	// The certificate of httptest is for example.com and 127.0.0.1, and signs itself.
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: app.Certificate().Raw}))
	for _, test := range []struct {
		name, host, ca, says string
	}{
		{"both", "example.com", ca, ""},
		{"a port", "example.com:8443", ca, ""},
		{"no host", "", ca, "status 421: no such site"},
		{"another host", "example.org", ca, "not example.org"},
		{"no CA", "example.com", "", "certificate signed by unknown authority"},
		{"no certificate", "example.com", "/etc/shadow", "no certificates in PEM"},
		{"too many", "example.com", strings.Repeat(ca, MaxCA/len(ca)+1), "no certificates in PEM"},
	} {
		err := NewLocal(Options{}).Health(t.Context(), HealthCheck{URL: app.URL, Host: test.host, CA: test.ca})
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
	}
}
