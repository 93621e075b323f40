package lab_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A stream is an upgraded connection from the clients' network through the load
// balancer to an app. Unlike a held request it ends when the test wants it to, so that
// nothing depends on how fast the machine is.
type stream struct {
	conn net.Conn
	from *bufio.Reader
	said int
}

// streamLimit bounds each exchange on a stream.
const streamLimit = time.Minute

// openStream opens streams until one of them is with the app. It ends with the test, if
// nobody ends it before.
func openStream(t *testing.T, l *lab.Lab, app *lab.Machine) *stream {
	t.Helper()
	for range 30 {
		s, server, err := upgrade(l.Client, lab.LBAddr+":80")
		if err != nil {
			t.Fatal(err)
		}
		if server == app.Name {
			t.Cleanup(s.end)
			s.echoes(t)
			return s
		}
		s.end()
	}
	t.Fatalf("none of 30 streams reached %s", app.Name)
	return nil
}

func upgrade(client *lab.Machine, target string) (s *stream, server string, err error) {
	conn, err := client.Dial("tcp", target, streamLimit)
	if err != nil {
		return nil, "", err
	}
	s = &stream{conn: conn, from: bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(streamLimit)); err != nil {
		return nil, "", err
	}
	if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: lab\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
		return nil, "", err
	}
	response, err := http.ReadResponse(s.from, nil)
	if err != nil {
		return nil, "", err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return nil, "", fmt.Errorf("%s grants no stream: %s", target, response.Status)
	}
	return s, response.Header.Get("X-Served-By"), nil
}

// echoes checks that the stream is whole: what is sent comes back.
func (s *stream) echoes(t *testing.T) {
	t.Helper()
	s.said++
	line := fmt.Sprintf("line %d\n", s.said)
	if err := s.conn.SetDeadline(time.Now().Add(streamLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s.conn, line); err != nil {
		t.Fatalf("the stream was cut: %v", err)
	}
	if back, err := s.from.ReadString('\n'); err != nil || back != line {
		t.Fatalf("the stream was cut: %q came back as %q: %v", line, back, err)
	}
}

// end closes the stream, if it was ever opened.
func (s *stream) end() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// lightLoad is load for where a stream that the test holds is what is waited for: it has
// no streams of its own, whose ends would only be waited for too.
func lightLoad(t *testing.T, l *lab.Lab, busy *lab.Machine) *lab.Load {
	t.Helper()
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{Clients: 15, Streams: -1})
	if err != nil {
		t.Fatal(err)
	}
	servesAgain(t, load, busy)
	return load
}
