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
	"time"
)

// logMarks are the places where nginx's error logs ended at some moment.
type logMarks struct {
	sizes map[string]int64 // by file
	unit  string           // in systemd's journal; empty where that is not asked
	at    time.Time
}

// markLogs notes where the logs end. A log that does not exist counts as empty:
// nginx creates it when it needs it. Under systemd, an nginx without a log file
// of its own writes to the journal of its unit.
func (b Binary) markLogs(paths []string, master int) logMarks {
	m := logMarks{sizes: map[string]int64{}, at: time.Now()}
	for _, p := range paths {
		m.sizes[p] = 0
		if info, err := os.Stat(p); err == nil {
			m.sizes[p] = info.Size()
		}
	}
	if len(paths) == 0 {
		cgroup, _ := b.readProc(master, "cgroup")
		m.unit = unitInCgroup.FindString(cgroup)
	}
	return m
}

// unitInCgroup matches the systemd unit that a process belongs to.
var unitInCgroup = regexp.MustCompile(`(?m)[^/\n]*\.service$`)

// loadFailure is what the logs say since the marks about a load that failed; empty if
// nothing.
func (m logMarks) loadFailure(ctx context.Context, master int) string {
	for p, size := range m.sizes {
		if why := loadFailure(readTail(p, size), master); why != "" {
			return why
		}
	}
	if m.unit == "" {
		return ""
	}
	since := fmt.Sprintf("--since=@%d.%06d", m.at.Unix(), m.at.Nanosecond()/1000) // systemd.time(7)
	out, _, _ := run(ctx, "journalctl", "-q", "-o", "cat", "-u", m.unit, "-n", "1000", since)
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
