package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// AppLogPath is where my-web-app records its requests.
const AppLogPath = "/var/log/my-web-app/requests.log"

// AppEvent is one line of an app's record.
type AppEvent struct {
	Time    time.Time // to the nanosecond; all hosts share one clock
	Kind    string    // BOOT, START, END (of a request), or TERM: the app was told to stop
	Request int       // number of the request, counted from 1 after each BOOT; 0 for BOOT and TERM
	Open    int       // requests that were open after the event
	What    string    // method, URI and client's address of a request
}

// AppEvents reads what an app has recorded since the lab came up or was last reset,
// oldest first.
func (m *Machine) AppEvents() ([]AppEvent, error) {
	// Read from outside: it is read again and again, and a command on the host costs more.
	text, err := os.ReadFile(filepath.Join(m.Root, AppLogPath))
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", m.Name, err)
	}
	var events []AppEvent
	for line := range strings.Lines(string(text)) {
		event, err := parseAppEvent(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s on %s: line %d: %w", AppLogPath, m.Name, len(events)+1, err)
		}
		events = append(events, event)
	}
	return events, nil
}

func parseAppEvent(line string) (AppEvent, error) {
	fields := strings.SplitN(line, " ", 5)
	if len(fields) < 5 {
		return AppEvent{}, fmt.Errorf("%q is no event", line)
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	if err != nil {
		return AppEvent{}, err
	}
	request, err := strconv.Atoi(fields[2])
	if err != nil {
		return AppEvent{}, err
	}
	open, err := strconv.Atoi(strings.TrimPrefix(fields[3], "open="))
	if err != nil {
		return AppEvent{}, err
	}
	return AppEvent{Time: at, Kind: fields[1], Request: request, Open: open, What: fields[4]}, nil
}
