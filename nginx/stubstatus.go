package nginx

import (
	"fmt"
	"regexp"
	"strconv"
)

// A StubStatus is the page of ngx_http_stub_status_module.
type StubStatus struct {
	Active                     int // client connections, the waiting ones and the one that asks included
	Accepts, Handled, Requests int // since nginx started
	Reading, Writing, Waiting  int
}

// stubStatusPage has been the same since nginx 0.1.18.
var stubStatusPage = regexp.MustCompile(`^\s*Active connections: +(\d+) *\r?\nserver accepts handled requests *\r?\n +(\d+) +(\d+) +(\d+) *\r?\nReading: +(\d+) +Writing: +(\d+) +Waiting: +(\d+)\s*$`)

// ParseStubStatus reads the page. Anything else is an error.
func ParseStubStatus(page []byte) (StubStatus, error) {
	fields := stubStatusPage.FindSubmatch(page)
	if fields == nil {
		return StubStatus{}, fmt.Errorf("not a stub_status page: %q", cut(string(page)))
	}
	var s StubStatus
	for i, n := range []*int{&s.Active, &s.Accepts, &s.Handled, &s.Requests, &s.Reading, &s.Writing, &s.Waiting} {
		var err error
		if *n, err = strconv.Atoi(string(fields[i+1])); err != nil {
			return StubStatus{}, fmt.Errorf("not a stub_status page: %w", err)
		}
	}
	return s, nil
}

// Open is the connections that are somebody else's than the one that asked.
func (s StubStatus) Open() int { return max(0, s.Active-1) }

// maxErrorText bounds how much of a text an error carries.
const maxErrorText = 120

func cut(s string) string {
	if len(s) > maxErrorText {
		return s[:maxErrorText] + "…"
	}
	return s
}
