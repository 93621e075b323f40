package nginx

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
)

// logMarks are the places where nginx's error logs ended at some moment.
type logMarks struct {
	sizes        map[string]int64 // by file
	unit, cursor string           // of systemd's journal; empty where it is not asked
}

// markLogs notes where the logs end. A log that does not exist counts as empty:
// nginx creates it when it needs it. Under systemd, an nginx without a log file
// of its own writes to the journal of its unit.
func markLogs(ctx context.Context, paths []string, master int) logMarks {
	m := logMarks{sizes: map[string]int64{}}
	for _, p := range paths {
		m.sizes[p] = 0
		if info, err := os.Stat(p); err == nil {
			m.sizes[p] = info.Size()
		}
	}
	if len(paths) == 0 {
		m.unit = unitOf(master)
	}
	if m.unit != "" {
		out, _, _ := run(ctx, "journalctl", "-q", "-n", "1", "-o", "cat", "--show-cursor", "-u", m.unit)
		_, m.cursor, _ = strings.Cut(out, "-- cursor: ")
		m.cursor = strings.TrimSpace(m.cursor)
	}
	return m
}

var unitInCgroup = regexp.MustCompile(`(?m)[^/\n]*\.service$`)

// unitOf is the systemd unit that a process belongs to; empty if none.
func unitOf(pid int) string {
	cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return unitInCgroup.FindString(string(cgroup))
}

// loadFailure is what the logs say since the marks about a load that failed; empty if
// nothing.
func (m logMarks) loadFailure(ctx context.Context, master int) string {
	for p, size := range m.sizes {
		if why := loadFailure(readTail(p, size), master); why != "" {
			return why
		}
	}
	if m.cursor == "" {
		return ""
	}
	out, _, _ := run(ctx, "journalctl", "-q", "-o", "cat", "-u", m.unit, "-n", "1000", "--after-cursor="+m.cursor)
	return loadFailure(out, master)
}

// maxLogTail bounds how many bytes of an error log are read: a log at level
// debug grows by megabytes a second.
const maxLogTail = 1 << 20

// readTail is what the log has from the offset on; nothing if it is no file.
func readTail(path string, from int64) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	// A pipe or a terminal, such as /dev/stderr, would keep its reader waiting.
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	text, _ := io.ReadAll(io.NewSectionReader(f, from, maxLogTail))
	return string(text)
}

// loadFailure finds the line in which the master seems to say why it gave up. Only a person
// may believe it: nginx logs the paths of requests decoded, so clients can write such lines.
// The master says why at level emerg, except that it tries a port that is taken five times
// before it says "still could not bind()" (ngx_open_listening_sockets).
func loadFailure(log string, master int) string {
	entry := regexp.MustCompile(fmt.Sprintf(`^[0-9/]{10} [0-9:]{8} \[emerg\] %d#`, master))
	bind := ""
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\r\n")
		if !entry.MatchString(line) {
			continue
		}
		switch {
		case strings.Contains(line, "still could not bind()"):
			return cmp.Or(bind, line)
		case strings.Contains(line, "bind() to "):
			bind = line
		default:
			return line
		}
	}
	return ""
}
