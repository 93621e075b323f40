package show

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/fatih/color"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/status"
)

// Status shows the servers of all LBs in one table, and the operations that their
// states come from. A terminal has a heading for each upstream, and lines that fit
// it. Elsewhere nothing depends on a width or on the time of day: a server is a
// line with its upstream, however long.
func (v *Text) Status(st *status.Status) {
	st = cleaned(st)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, line := range v.statusLines(st, v.width()) {
		v.line("%s", line)
	}
}

// A statusRow is a server on all LBs.
type statusRow struct {
	upstream string                 // with its module
	on       []*status.ServerStatus // by LB; nil: it has none such
}

// any is the server on the first LB that has it.
func (r statusRow) any() *status.ServerStatus {
	return r.on[slices.IndexFunc(r.on, func(s *status.ServerStatus) bool { return s != nil })]
}

// statusRows puts the LBs' servers together: upstream by upstream, in the order of
// their files. Of lines that are alike, the first of one LB is the first of another.
func statusRows(lbs []status.LBStatus) []statusRow {
	var rows []statusRow
	known, upstreams := map[string]int{}, map[string]int{}
	for l, lb := range lbs {
		times := map[string]int{}
		for i := range lb.Servers {
			s := &lb.Servers[i]
			upstream := s.Module + "/" + s.Upstream
			if _, ok := upstreams[upstream]; !ok {
				upstreams[upstream] = len(upstreams)
			}
			key := upstream + " " + s.Address
			times[key]++
			key = fmt.Sprint(key, " ", times[key])
			at, ok := known[key]
			if !ok {
				at = len(rows)
				known[key] = at
				rows = append(rows, statusRow{upstream, make([]*status.ServerStatus, len(lbs))})
			}
			rows[at].on[l] = s
		}
	}
	slices.SortStableFunc(rows, func(a, b statusRow) int { return cmp.Compare(upstreams[a.upstream], upstreams[b.upstream]) })
	return rows
}

// maxLBColumns is of how many LBs each has a column; of more the sum is shown.
const maxLBColumns = 8

// A statusTable is the rows, for a width; 0: any.
type statusTable struct {
	*Text
	lbs     []string // as they are shown
	rows    []statusRow
	having  map[string][]string // the LBs that have an upstream
	width   int
	columns []statusColumn
}

// A statusColumn is one of its columns.
type statusColumn struct {
	head   string
	cell   func(statusRow) string
	number bool // it stands to the right
	width  int
}

func (v *Text) statusLines(st *status.Status, width int) []string {
	t := newStatusTable(v, st, width)
	var lines []string
	warn := func(text string) {
		lines = append(lines, t.wrap("", v.warn.Sprint("warning:")+" "+text)...)
	}
	if lost := st.Unreachable; len(lost) > 0 && len(st.LBs) > 0 {
		warn("without " + listed(lost) + ", which could not be asked:")
	}
	lines = append(append(lines, t.lines()...), t.next()...)
	for i, lb := range st.LBs {
		on := ""
		if len(st.LBs) > 1 {
			on = "on " + t.lbs[i] + ": "
		}
		if len(lb.Servers) == 0 {
			lines = append(lines, t.wrap("", on+"no upstream in "+lb.ConfPath+" has a server")...)
		}
		if lb.Uncounted != "" {
			warn(on + "connections could not be counted: " + lb.Uncounted)
		}
		for _, text := range lb.Warnings {
			warn(on + text)
		}
	}
	for _, text := range t.uncounted() {
		warn("connections on the backend could not be counted: " + text)
	}
	return lines
}

func newStatusTable(v *Text, st *status.Status, width int) *statusTable {
	t := &statusTable{Text: v, rows: statusRows(st.LBs), having: map[string][]string{}, width: width}
	for _, lb := range st.LBs {
		t.lbs = append(t.lbs, lb.LB)
	}
	t.lbs = shortHosts(t.lbs)
	for l, name := range t.lbs {
		for _, r := range t.rows {
			if has := t.having[r.upstream]; r.on[l] != nil && !slices.Contains(has, name) {
				t.having[r.upstream] = append(has, name)
			}
		}
	}
	t.fit()
	return t
}

// shortHosts are hosts without user and port, where they can still be told apart.
func shortHosts(hosts []string) []string {
	var short []string
	for _, h := range hosts {
		_, host, found := strings.Cut(h, "@")
		if !found {
			host = h
		}
		if name, port, found := strings.Cut(host, ":"); found && !strings.Contains(port, ":") {
			host = name
		}
		if slices.Contains(short, host) {
			return hosts
		}
		short = append(short, host)
	}
	return short
}

// fit chooses the columns: all if they fit, else no places, else the LBs' sum.
// Parameters without places stand at the end of a line, or below it.
func (t *statusTable) fit() {
	each := len(t.lbs) > 1 && len(t.lbs) <= maxLBColumns
	t.columns = t.choose(each, true)
	if t.width > 0 && t.needs() > t.width {
		t.columns = t.choose(each, false)
	}
	if t.width > 0 && t.needs() > t.width {
		t.columns = t.choose(false, false)
		name := &t.columns[0].width
		*name = max(len("SERVER"), *name-max(0, t.needs()-t.width))
	}
}

// choose is the columns, with those of each LB and those of places or without.
func (t *statusTable) choose(each, where bool) (columns []statusColumn) {
	limit := math.MaxInt
	add := func(head string, number bool, cell func(statusRow) string) {
		c := statusColumn{head, cell, number, ansi.StringWidth(head)}
		for _, r := range t.rows {
			if w := ansi.StringWidth(cell(r)); w <= limit {
				c.width = max(c.width, w)
			}
		}
		columns = append(columns, c)
	}
	if t.width == 0 {
		add("UPSTREAM", false, func(r statusRow) string { return r.any().Name })
	}
	if t.width > 0 {
		limit = t.width / 2 // a longer name has a line of its own
	}
	add("SERVER", false, func(r statusRow) string { return r.any().Text })
	limit = math.MaxInt
	add("STATE", false, func(r statusRow) string { return same(r, stateOf, differ) })
	for l, name := range t.lbs {
		switch {
		case each:
			add(map[bool]string{true: "OPEN "}[l == 0]+name, true, func(r statusRow) string { return openOn(r.on[l]) })
		case l == 0:
			add("OPEN", true, openSum)
		}
	}
	if slices.ContainsFunc(t.rows, func(r statusRow) bool { return backendOpen(r) != "-" }) {
		add("BACKEND", true, backendOpen)
	}
	if where {
		add("PARAMETERS", false, func(r statusRow) string { return cmp.Or(same(r, parametersOf, "differ"), "-") })
		add("WHERE", false, func(r statusRow) string { return same(r, place, "differs") })
	}
	return columns
}

// needs is how wide the table is.
func (t *statusTable) needs() (width int) {
	for _, c := range t.columns {
		width += 2 + c.width
	}
	return width
}

// where tells whether there is a column of places.
func (t *statusTable) where() bool { return t.columns[len(t.columns)-1].head == "WHERE" }

// lines are the table.
func (t *statusTable) lines() (lines []string) {
	if len(t.rows) == 0 {
		return nil
	}
	lines = t.head()
	alike := 0 // rows before this one that have the same notes
	for i, r := range t.rows {
		if t.width > 0 && (i == 0 || t.rows[i-1].upstream != r.upstream) {
			lines = append(lines, t.heading(r)...)
		}
		lines = append(lines, t.line(r)...)
		notes := t.notes(r)
		if len(notes) > 0 && i+1 < len(t.rows) && t.rows[i+1].upstream == r.upstream && slices.Equal(notes, t.notes(t.rows[i+1])) {
			alike++
			continue
		}
		for _, text := range notes {
			if alike > 0 {
				text = fmt.Sprintf("these %d: %s", alike+1, text)
			}
			lines = append(lines, t.wrap("    ", text)...)
		}
		alike = 0
	}
	return lines
}

func (t *statusTable) head() []string {
	text := t.indent()
	for _, c := range t.columns {
		text += c.pad(c.head) + "  "
	}
	if !t.where() && ansi.StringWidth(text+"PARAMETERS") <= t.width {
		text += "PARAMETERS"
	}
	return []string{strings.TrimRight(text, " ")}
}

// indent is what stands before a row: it is below the heading of its upstream.
func (t *statusTable) indent() string {
	if t.width > 0 {
		return "  "
	}
	return ""
}

// pad fills a cell up.
func (c statusColumn) pad(text string) string {
	gap := strings.Repeat(" ", max(0, c.width-ansi.StringWidth(text)))
	if c.number {
		return gap + text
	}
	return text + gap
}

// heading is an upstream, and the LBs that have it where others have not.
func (t *statusTable) heading(r statusRow) []string {
	text := r.any().Name
	if has := t.having[r.upstream]; len(has) < len(t.lbs) {
		text += " (on " + listed(has) + " only)"
	}
	lines := t.wrap("", text)
	for i := range lines {
		lines[i] = t.bold.Sprint(lines[i])
	}
	return lines
}

// line is one row. A name that is too long has a line of its own.
func (t *statusTable) line(r statusRow) (lines []string) {
	text := t.indent()
	for _, c := range t.columns {
		cell := c.cell(r)
		padded := c.pad(cell)
		switch {
		case ansi.StringWidth(cell) > c.width:
			lines = append(lines, t.wrap("  ", cell)...)
			padded = c.pad("")
		case c.head == "STATE" && cell != string(status.StateUp):
			padded = strings.Replace(padded, cell, t.shade(cell).Sprint(cell), 1)
		}
		text += padded + "  "
	}
	text = strings.TrimRight(text, " ")
	if params := same(r, parametersOf, "differ"); !t.where() && params != "" {
		at := t.needs() + len(t.indent())
		switch {
		case at+ansi.StringWidth(params) <= t.width:
			text += strings.Repeat(" ", at-ansi.StringWidth(text)) + params
		case params != "differ": // a note says how
			return append(append(lines, text), t.wrap("    ", params)...)
		}
	}
	return append(lines, text)
}

// shade is the colour of a state other than up: red is for a person to look at.
func (t *statusTable) shade(state string) *color.Color {
	switch status.State(state) {
	case status.StateDrained, status.StateDraining, status.StateUndraining:
		return t.warn
	}
	return t.bad
}

// wrap is a text in lines that fit.
func (t *statusTable) wrap(indent, text string) (lines []string) {
	for _, line := range Wrap(indent, indent+"  ", text, t.width) {
		lines = append(lines, strings.Split(ansi.Hardwrap(line, t.width, true), "\n")...)
	}
	return lines
}

// differ stands for a state that is not the same on all LBs.
const differ = "DIFFERS"

// same is what all LBs say of a server, else other.
func same(r statusRow, say func(*status.ServerStatus) string, other string) string {
	text := say(r.any())
	for _, s := range r.on {
		if s != nil && say(s) != text {
			return other
		}
	}
	return text
}

func stateOf(s *status.ServerStatus) string { return string(s.State) }

func place(s *status.ServerStatus) string {
	was := ""
	if s.State == status.StateRemoved {
		was = "was "
	}
	return fmt.Sprintf("%s%s:%d", was, s.File, s.Line)
}

func parametersOf(s *status.ServerStatus) string { return strings.TrimSpace(parameters(s.Server)) }

// openOn is the connections from one LB.
func openOn(s *status.ServerStatus) string {
	switch {
	case s == nil, s.State == status.StateRemoved:
		return "-"
	case s.Open < 0:
		return "?"
	}
	return fmt.Sprint(s.Open)
}

// openSum is the connections from all LBs, as far as they are known.
func openSum(r statusRow) string {
	if same(r, stateOf, differ) == string(status.StateRemoved) {
		return "-"
	}
	sum, more := 0, ""
	for _, s := range r.on {
		if s != nil && s.Open < 0 {
			more = "+?"
		} else if s != nil {
			sum += s.Open
		}
	}
	if more != "" && sum == 0 {
		return "?"
	}
	return fmt.Sprint(sum) + more
}

// backendOpen is the connections that the backend itself has.
func backendOpen(r statusRow) string {
	text := "-"
	for _, s := range r.on {
		if s != nil && s.OnBackend != nil {
			return fmt.Sprint(*s.OnBackend)
		}
		if s != nil && s.BackendError != "" {
			text = "?"
		}
	}
	return text
}

// notes are what stands below a row: by whom and why, and where the LBs differ.
func (t *statusTable) notes(r statusRow) []string {
	say := t.cause
	if same(r, stateOf, differ) == differ {
		say = func(s *status.ServerStatus) string { return cmp.Or(t.cause(s), stateOf(s)) }
	}
	notes := t.byLB(r, say)
	if same(r, parametersOf, differ) == differ {
		notes = append(notes, t.byLB(r, func(s *status.ServerStatus) string { return "parameters: " + cmp.Or(parametersOf(s), "none") })...)
	}
	var lacking []string
	for l, s := range r.on {
		if s == nil && slices.Contains(t.having[r.upstream], t.lbs[l]) {
			lacking = append(lacking, t.lbs[l])
		}
	}
	if len(lacking) > 0 {
		notes = append(notes, "not on "+listed(lacking))
	}
	if t.options.Verbose && (!t.where() || same(r, place, differ) == differ) {
		notes = append(notes, t.byLB(r, place)...)
	}
	return notes
}

// byLB is what the LBs say: once where all say the same, else each with whose it is.
func (t *statusTable) byLB(r statusRow, say func(*status.ServerStatus) string) (notes []string) {
	var texts []string
	on := map[string][]string{}
	for l, s := range r.on {
		if s == nil {
			continue
		}
		text := say(s)
		if on[text] == nil {
			texts = append(texts, text)
		}
		on[text] = append(on[text], t.lbs[l])
	}
	for _, text := range texts {
		switch {
		case text == "":
		case len(texts) == 1:
			notes = append(notes, text)
		default:
			notes = append(notes, "on "+listed(on[text])+": "+text)
		}
	}
	return notes
}

// listed is a few names.
func listed(names []string) string {
	const few = 3
	if len(names) > few+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}

// cause is who brought a server to its state, when and why; empty where no
// operation has.
func (t *statusTable) cause(s *status.ServerStatus) string {
	what, by, stopped := string(s.State), "", ""
	if s.Stopped != "" {
		stopped = "; " + s.Stopped.Do("was", "were") + " stopped by it"
	}
	switch h, op := s.Holder, s.Operation; {
	case h != nil && h.Time.IsZero():
		return what + " by another drainctl, which has not recorded yet what it does"
	case h != nil:
		if s.State == status.StateUp {
			what = "locked for a rolling run"
		}
		by = t.author(journal.By(h.Recorder, h.User, h.Host), h.Reason, h.ID, h.Time, "for ", "")
	case op == nil:
		return ""
	default:
		at := op.Began
		switch s.State {
		case status.StateNotDrained:
			what += fmt.Sprintf(", app running, %s left", count(op.Open, "connection"))
			at = cmp.Or(op.Ended, at)
		case status.StateDrained, status.StateRemoved, status.StateUpAgain:
			at = cmp.Or(op.Ended, at)
		}
		if s.State == status.StateRemoved || s.State == status.StateUpAgain {
			what += " after the " + op.Kind
		}
		by = t.author(journal.By(op.Recorder, op.User, op.Host), op.Reason, op.ID, at, "", " ago")
	}
	return what + " by " + by + stopped
}

// author is who did something, when and why. On a terminal it says how long ago
// that was; elsewhere what is said stays so.
func (t *statusTable) author(by, reason, id string, at time.Time, before, after string) string {
	when := at.Local().Format(clockFormat)
	if t.width > 0 {
		when = before + age(time.Since(at)) + after
	}
	text := fmt.Sprintf("%s, %s", by, when)
	if reason != "" {
		text += fmt.Sprintf(", %q", reason)
	}
	if id != "" {
		text += " (operation " + id + ")"
	}
	return text
}

// age is a time in its largest unit, from which no line end parts it.
func age(d time.Duration) string {
	for _, u := range []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if d >= u.of {
			return fmt.Sprintf("%d\u00a0%s", d/u.of, u.name)
		}
	}
	return fmt.Sprintf("%d\u00a0s", max(0, d/time.Second))
}

// next is what to type next, each once.
func (t *statusTable) next() (lines []string) {
	for _, r := range t.rows {
		for _, s := range r.on {
			if s == nil {
				continue
			}
			for _, c := range s.Next {
				if text := "next: " + nextText(c); !slices.Contains(lines, text) {
					lines = append(lines, text)
				}
			}
		}
	}
	return lines
}

// uncounted is why backends could not be asked: of one, and of all if more is to be
// shown.
func (t *statusTable) uncounted() (texts []string) {
	for _, r := range t.rows {
		for _, s := range r.on {
			if s != nil && s.BackendError != "" && !slices.Contains(texts, s.BackendError) {
				texts = append(texts, s.BackendError)
			}
		}
	}
	if len(texts) > 1 && !t.options.Verbose {
		texts = []string{fmt.Sprintf("%s; and of %d more (--verbose says why)", texts[0], len(texts)-1)}
	}
	return texts
}
