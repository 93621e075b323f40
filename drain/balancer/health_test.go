package balancer

import (
	"net"
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
