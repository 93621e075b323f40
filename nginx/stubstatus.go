package nginx

import (
	"fmt"
	"strconv"
	"strings"
)

// A StubStatus is the page of ngx_http_stub_status_module.
type StubStatus struct {
	Active                     int // client connections, the waiting ones and the one that asks included
	Accepts, Handled, Requests int // since nginx started
	Reading, Writing, Waiting  int
}

// ParseStubStatus reads the page, which has had the same four lines since
// nginx 0.1.18. Anything else is an error.
func ParseStubStatus(page []byte) (StubStatus, error) {
	var s StubStatus
	text := strings.ReplaceAll(string(page), "\r\n", "\n")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 4 || strings.TrimSpace(lines[1]) != "server accepts handled requests" {
		return s, fmt.Errorf("not a stub_status page: %q", cut(text))
	}
	fields := strings.Fields(lines[0] + " " + lines[2] + " " + lines[3])
	want := []struct {
		word string
		n    *int
	}{
		{"Active", nil}, {"connections:", nil}, {"", &s.Active},
		{"", &s.Accepts}, {"", &s.Handled}, {"", &s.Requests},
		{"Reading:", nil}, {"", &s.Reading}, {"Writing:", nil}, {"", &s.Writing}, {"Waiting:", nil}, {"", &s.Waiting},
	}
	if len(fields) != len(want) {
		return StubStatus{}, fmt.Errorf("not a stub_status page: %q", cut(text))
	}
	for i, w := range want {
		if w.n == nil {
			if fields[i] != w.word {
				return StubStatus{}, fmt.Errorf("not a stub_status page: %q where %q was expected", cut(fields[i]), w.word)
			}
			continue
		}
		n, err := strconv.Atoi(fields[i])
		if err != nil || n < 0 {
			return StubStatus{}, fmt.Errorf("not a stub_status page: %q is no number", cut(fields[i]))
		}
		*w.n = n
	}
	return s, nil
}

// Open is the connections that are somebody else's than the one that asked.
func (s StubStatus) Open() int { return max(0, s.Active-1) }

func cut(s string) string {
	if len(s) > maxErrorText {
		return s[:maxErrorText] + "…"
	}
	return s
}
