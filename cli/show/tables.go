package show

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/status"
)

// clockFormat is how times are shown, in the local zone.
const clockFormat = "2006-01-02 15:04:05"

// table prints rows whose cells are separated by tabs.
func (v *Text) table(rows []string) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, row)
	}
	w.Flush()
	for line := range strings.Lines(text.String()) {
		v.line("%s", strings.TrimRight(line, " \n"))
	}
}

// A ConfigValue is a setting and where it comes from.
type ConfigValue struct {
	Section string `json:"section"`
	Key     string `json:"key"`
	Value   any    `json:"value"` // a list, a number, a bool or text
	From    string `json:"from"`  // built-in, environment, flag, or FILE:LINE
}

// Config shows settings and where they come from.
func (v *Text) Config(files []string, values []ConfigValue) {
	files, values = cleaned(files), cleaned(values)
	v.mu.Lock()
	defer v.mu.Unlock()
	rows := []string{"SECTION\tKEY\tVALUE\tFROM"}
	for _, c := range values {
		text := ""
		if list, ok := c.Value.([]string); ok {
			text = strings.Join(list, ", ")
		} else if c.Value != nil {
			text = fmt.Sprint(c.Value)
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s", c.Section, c.Key, cmp.Or(text, "-"), c.From))
	}
	v.table(rows)
	if len(files) == 0 {
		v.line("there is no configuration file")
	}
}

// resultText is how an operation of the history ended.
func resultText(e status.HistoryEntry) string {
	if e.Ended == nil {
		return "not ended"
	}
	return string(e.Ended.Result)
}

// History shows the list of operations, the latest last.
func (v *Text) History(entries []status.HistoryEntry, unreadable []string) {
	entries, unreadable = cleaned(entries), cleaned(unreadable)
	v.mu.Lock()
	defer v.mu.Unlock()
	rows := []string{"ID\tBEGAN\tOPERATION\tTARGET\tRESULT\tTOOK\tBY\tREASON"}
	for _, e := range entries {
		took, reason := "-", "-"
		if e.Ended != nil {
			took = backend.Span(e.Ended.Time.Sub(e.Began.Time).Round(100 * time.Millisecond))
		}
		if e.Began.Reason != "" {
			reason = e.Began.Reason
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", e.ID, e.Began.Time.Local().Format(clockFormat), e.Began.Kind,
			cmp.Or(strings.Join(e.Began.Targets, ", "), "-"), resultText(e), took, journal.By(e.Began.Recorder, e.Began.User, e.Began.Host), reason))
	}
	v.table(rows)
	if len(entries) == 0 {
		v.line("the history is empty")
	}
	for _, e := range entries {
		if e.Truncated > 0 {
			v.warning(e.ID + ": " + truncatedText(e.Truncated))
		}
	}
	for _, name := range unreadable {
		v.warning(unreadableText(name))
	}
}

func unreadableText(name string) string { return name + " has no operation and was skipped" }

// truncatedText says that lines of an operation were set aside.
func truncatedText(n int) string {
	return count(n, "line") + " could not be read: cut short by a crash or a full disk"
}
