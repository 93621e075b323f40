package nginx

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// A LogMark is where the error logs ended at some moment: files by how long
// they were, systemd's journal by a cursor.
type LogMark map[string]int64

// journalPrefix begins the key of a place in systemd's journal; the unit and
// the cursor follow.
const journalPrefix = "journal "

// MarkJournal adds the place where the journal of the master's unit ends now.
// Under systemd, an nginx without a log file of its own writes there. A master
// that is in no unit, or a host without a journal, adds nothing.
func (b Binary) MarkJournal(ctx context.Context, m LogMark, master int) {
	script := `unit=$(grep -o '[^/]*\.service$' "/proc/$1/cgroup" | head -n 1)
[ -n "$unit" ] || exit 1
echo "$unit"
journalctl -q -n 1 -o cat --show-cursor -u "$unit" | sed -n 's/^-- cursor: //p'`
	out, _, code, err := b.Host.Exec(ctx, "sh", "-c", script, "sh", strconv.Itoa(master))
	if f := strings.Fields(out); err == nil && code == 0 && len(f) == 2 {
		m[journalPrefix+f[0]+" "+f[1]] = 0
	}
}

// MarkLogs notes how long the logs are now. A log that does not exist counts
// as empty: nginx makes it when it needs it.
func (b Binary) MarkLogs(ctx context.Context, paths []string) LogMark {
	m := LogMark{}
	for _, p := range paths {
		out, _, code, err := b.Host.Exec(ctx, "stat", "-L", "-c", "%s", p)
		if err != nil || code != 0 {
			m[p] = 0
			continue
		}
		m[p], _ = strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	}
	return m
}

// maxLogTail bounds how many bytes of an error log are read: a log at level
// debug grows by megabytes a second.
const maxLogTail = 1 << 20

// LoadFailure is what the master wrote in its error logs since the mark, if
// that says that it could not load a configuration; empty otherwise. nginx
// writes at level emerg what makes it give up, except that it tries a port
// that is taken five times before it says "still could not bind()"
// (ngx_open_listening_sockets).
func (b Binary) LoadFailure(ctx context.Context, since LogMark, master int) string {
	mark := fmt.Sprintf("[emerg] %d#", master)
	// A log that is a pipe or a terminal, such as /dev/stderr, would keep its
	// reader waiting.
	const tail = `[ -f "$1" ] && tail -c "+$2" -- "$1" | head -c "$3"`
	for p, size := range since {
		args := []string{"sh", "-c", tail, "sh", p,
			strconv.FormatInt(size+1, 10), strconv.Itoa(maxLogTail)}
		if place, ok := strings.CutPrefix(p, journalPrefix); ok {
			unit, cursor, _ := strings.Cut(place, " ")
			args = []string{"journalctl", "-q", "-o", "cat", "-u", unit, "--after-cursor=" + cursor}
		}
		out, _, _, err := b.Host.Exec(ctx, args...)
		if err != nil {
			continue
		}
		if why := loadFailure(out, mark); why != "" {
			return why
		}
	}
	return ""
}

func loadFailure(log, mark string) string {
	bind := ""
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\r\n")
		if !strings.Contains(line, mark) {
			continue
		}
		switch {
		case strings.Contains(line, "still could not bind()"):
			if bind != "" {
				return bind
			}
			return line
		case strings.Contains(line, "bind() to "):
			bind = line
		default:
			return line
		}
	}
	return ""
}
