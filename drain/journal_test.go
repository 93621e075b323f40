package drain

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// journalOf writes records of one operation to a journal and gives its bytes.
func journalOf(t *testing.T, records ...Record) (journal, []byte) {
	t.Helper()
	j := journal{host: remote.Local(nil), dir: t.TempDir()}
	for _, r := range records {
		if err := j.write(t.Context(), "op", r); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(j.file("op"))
	if err != nil {
		t.Fatal(err)
	}
	return j, b
}

var someServer = Marked{Module: "http", Upstream: "app", Address: "10.0.0.1:80", Offset: 40}

// someDrain is the records of a drain that is done.
func someDrain() []Record {
	mark := someServer
	mark.Text = " down"
	return []Record{
		{Kind: RecordBegin, Begin: &Begin{ID: "op", Operation: Drain, Target: "10.0.0.1", User: "ann", Host: "lb", Reason: "disk", Servers: []Marked{someServer}, Settings: Settings{Service: "app"}}},
		{Kind: RecordStart, Step: StepClose, Way: Forward},
		{Kind: RecordEdit, Edit: &Edited{Path: "/nginx.conf", Before: "old", After: "new", Marks: []Marked{mark}}},
		{Kind: RecordDone, Step: StepClose, Way: Forward, Changed: true},
		{Kind: RecordEnd, End: &End{Result: ResultDone}},
	}
}

// server is the server of someServer in a configuration.
func server(t *testing.T) *nginx.Server {
	t.Helper()
	a, err := nginx.ParseAddress(someServer.Address)
	if err != nil {
		t.Fatal(err)
	}
	return &nginx.Server{Upstream: &nginx.Upstream{Name: "app", Module: "http"}, Address: a}
}

// A crash or a full disk at any byte leaves a journal that can be read: the
// records before it are there, and the torn one is set aside.
func TestJournalTornAtEveryByte(t *testing.T) {
	records := someDrain()
	_, whole := journalOf(t, records...)
	for cut := 0; cut <= len(whole); cut++ {
		o, err := parseOperation(whole[:cut])
		if err != nil {
			t.Fatalf("cut at byte %d: %v", cut, err)
		}
		complete := strings.Count(string(whole[:cut]), "\n")
		torn := 0
		if cut > 0 && whole[cut-1] != '\n' {
			torn = 1
		}
		if len(o.Records) != complete || o.Torn != torn {
			t.Fatalf("cut at byte %d: %d records and %d torn, want %d and %d", cut, len(o.Records), o.Torn, complete, torn)
		}
	}
}

// An operation that goes on after a torn record is read on from there.
func TestJournalGoesOnAfterATornRecord(t *testing.T) {
	records := someDrain()
	j, _ := journalOf(t, records[:3]...)
	f, err := os.OpenFile(j.file("op"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"v":1,"record":"done","st`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, r := range records[3:] {
		if err := j.write(t.Context(), "op", r); err != nil {
			t.Fatal(err)
		}
	}
	all, _, err := j.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Torn != 1 || all[0].End == nil || len(all[0].Records) != len(records) {
		t.Fatalf("read %d operations, the first with %d records, %d torn, end %v", len(all), len(all[0].Records), all[0].Torn, all[0].End)
	}
}

func TestJournalOfALaterVersion(t *testing.T) {
	_, err := parseOperation([]byte(`{"v":2,"record":"begin"}` + "\n"))
	if !errors.Is(err, ErrJournalVersion) {
		t.Fatalf("error %v, want one that says a later drainctl wrote it", err)
	}
}

func TestJournalThatIsNotThere(t *testing.T) {
	j := journal{host: remote.Local(nil), dir: filepath.Join(t.TempDir(), "none")}
	all, _, err := j.read(t.Context())
	if err != nil || len(all) != 0 {
		t.Fatalf("%d operations, error %v", len(all), err)
	}
}

// What stands, by the records an operation lived to write.
func TestLedger(t *testing.T) {
	undrain := []Record{
		{Kind: RecordBegin, Begin: &Begin{ID: "op2", Operation: Undrain, Target: "10.0.0.1", Servers: []Marked{someServer}}},
		{Kind: RecordStart, Step: StepClose, Way: Back},
		{Kind: RecordDone, Step: StepClose, Way: Back, Changed: true},
		{Kind: RecordEnd, End: &End{Result: ResultDone}},
	}
	d := someDrain()
	rolledBack := append(append([]Record{}, d[:4]...), Record{Kind: RecordBack},
		Record{Kind: RecordDone, Step: StepClose, Way: Back, Changed: true}, Record{Kind: RecordEnd, End: &End{Result: ResultRolledBack}})
	for _, c := range []struct {
		name       string
		ops        [][]Record
		marked     bool
		unfinished int
	}{
		{"nothing", nil, false, 0},
		{"crash after the begin", [][]Record{d[:1]}, false, 1},
		{"crash after the edit was announced", [][]Record{d[:3]}, true, 1},
		{"crash after the edit was loaded", [][]Record{d[:4]}, true, 1},
		{"drained", [][]Record{d}, true, 0},
		{"rolled back", [][]Record{rolledBack}, false, 0},
		{"drained and put back", [][]Record{d, undrain}, false, 0},
		{"crash, and put back", [][]Record{d[:3], undrain}, false, 0},
		{"drained, and the undrain crashed", [][]Record{d, undrain[:2]}, true, 1},
		{"drained, and the undrain crashed after it was loaded", [][]Record{d, undrain[:3]}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all []*Recorded
			for _, records := range c.ops {
				o := &Recorded{Records: records}
				for _, r := range records {
					if r.Begin != nil {
						o.Begin = *r.Begin
					}
					if r.End != nil {
						o.End = r.End
					}
				}
				all = append(all, o)
			}
			l := NewLedger(all)
			if got := l.Mark(server(t)) != nil; got != c.marked {
				t.Errorf("marked by drainctl: %t, want %t", got, c.marked)
			}
			if got := len(l.Unfinished()); got != c.unfinished {
				t.Errorf("%d operations half-way, want %d", got, c.unfinished)
			}
		})
	}
}

// Whatever is in a journal's file, reading it ends, and reads the records that
// are whole.
func FuzzJournal(f *testing.F) {
	for _, seed := range []string{"", "\n", "{}", "{}\n", `{"v":1,"record":"begin","begin":{"id":"x"}}` + "\n", "\x00\x00\x00", `{"v":99}` + "\n", "[]\n", "null\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOperation(b)
		if err != nil {
			if !errors.Is(err, ErrJournalVersion) {
				t.Fatal(err)
			}
			return
		}
		if lines := strings.Count(string(b), "\n") + 1; len(o.Records)+o.Torn > lines {
			t.Fatalf("%d records and %d torn out of %d lines", len(o.Records), o.Torn, lines)
		}
		NewLedger([]*Recorded{o}).Unfinished()
	})
}

// The names of operations sort as they followed each other, though the clock was
// set back in between.
func TestIDsFollowEachOther(t *testing.T) {
	noon := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	last := ""
	for _, now := range []time.Time{noon, noon, noon.Add(time.Second), noon.Add(-time.Hour), noon.Add(-time.Hour), noon.Add(500 * time.Microsecond), noon.Add(time.Minute)} {
		id := newID(now, last)
		if id <= last {
			t.Errorf("at %s: %s does not follow %s", now, id, last)
		}
		last = id
	}
	if !strings.HasPrefix(last, "20260504-120100.000-") {
		t.Errorf("the last ID is %s", last)
	}
	if id := newID(noon, "nonsense"); !strings.HasPrefix(id, "20260504-120000.000-") {
		t.Errorf("after nonsense: %s", id)
	}
}

// operation is one as the journal would have it.
func operation(id string, op Operation, result string, edits ...*Edited) *Recorded {
	o := &Recorded{Begin: Begin{ID: id, Operation: op, Target: "10.0.0.1", Servers: []Marked{someServer}}}
	for _, e := range edits {
		o.Records = append(o.Records, Record{Kind: RecordEdit, Edit: e})
	}
	switch result {
	case ResultDone:
		way := Forward
		if op == Undrain {
			way = Back
		}
		o.Records = append(o.Records, Record{Kind: RecordDone, Step: StepClose, Way: way})
		o.End = &End{Result: ResultDone}
	case ResultRolledBack:
		o.Records = append(o.Records, Record{Kind: RecordDone, Step: StepClose, Way: Back})
		o.End = &End{Result: ResultRolledBack}
	}
	return o
}

// edit puts the word on lines of someServer, by their offsets.
func edit(before, after string, offsets ...int) *Edited {
	e := &Edited{Path: "/nginx.conf", Before: before, After: after}
	for _, offset := range offsets {
		m := someServer
		m.Offset, m.Text = offset, " down"
		e.Marks = append(e.Marks, m)
	}
	return e
}

// How many lines of a server are drainctl's: what was announced and never
// written does not count.
func TestMarkedLines(t *testing.T) {
	for _, test := range []struct {
		name  string
		ops   []*Recorded
		lines int
	}{
		{"one", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40))}, 1},
		{"an upstream that names it twice", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40, 80))}, 2},
		{"the file changed, and the edit was begun anew", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40), edit("a2", "b2", 60))}, 1},
		{"a crash before the writing, and a resume", []*Recorded{operation("1", Drain, "", edit("a", "b", 40)), operation("2", Drain, ResultDone, edit("a", "b", 40))}, 1},
		{"a crash after the writing, and a line that came later", []*Recorded{operation("1", Drain, "", edit("a", "b", 40)), operation("2", Drain, ResultDone, edit("c", "d", 80))}, 2},
		{"a second drain was rolled back", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40)), operation("2", Drain, ResultRolledBack, edit("c", "d", 80))}, 1},
		{"rolled back", []*Recorded{operation("1", Drain, ResultRolledBack, edit("a", "b", 40))}, 0},
		{"put back", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40)), operation("2", Undrain, ResultDone)}, 0},
		{"put back, and drained again", []*Recorded{operation("1", Drain, ResultDone, edit("a", "b", 40)), operation("2", Undrain, ResultDone), operation("3", Drain, ResultDone, edit("a", "b", 40))}, 1},
	} {
		lines := 0
		if m := NewLedger(test.ops).Mark(server(t)); m != nil {
			lines = m.Lines()
		}
		if lines != test.lines {
			t.Errorf("%s: %d lines, want %d", test.name, lines, test.lines)
		}
	}
}

// A file is as drainctl left it if its last edit says so, whoever began first.
func TestLedgerOurs(t *testing.T) {
	noon := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	early := operation("1", Undrain, "", edit("b", "c"))
	late := operation("2", Drain, ResultDone, edit("a", "b"))
	early.Records[0].Time, late.Records[0].Time = noon.Add(time.Minute), noon
	l := NewLedger([]*Recorded{early, late})
	for sha, want := range map[string]bool{"a": false, "b": true, "c": true, "d": false} {
		if l.Ours("/nginx.conf", sha) != want {
			t.Errorf("%s is ours: %t", sha, !want)
		}
	}
	if l.Ours("/other.conf", "c") || (*Ledger)(nil).Ours("/nginx.conf", "c") || NewLedger(nil).Ours("/nginx.conf", "") {
		t.Error("another file is ours")
	}
}

// An undrain is told by the journal how nginx was run, but not where that is not
// one answer.
func TestInheritNginx(t *testing.T) {
	with := func(id, conf, reload string) *Recorded {
		o := operation(id, Drain, ResultDone, edit("a", "b", 40))
		o.Conf = conf
		if reload != "" {
			o.Settings.ReloadCommand = []string{reload}
		}
		return o
	}
	other := with("2", "/two.conf", "")
	other.Servers = []Marked{{Module: "http", Upstream: "app", Address: "10.0.0.1:81"}}
	req := &Request{Operation: Undrain, Target: nginx.Target{}}
	var err error
	if req.Target, err = nginx.ParseTarget("10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	p := &Plan{Request: req}

	lb := &LB{Nginx: nginx.Binary{Path: DefaultBinary}}
	if err := p.inheritNginx(lb, NewLedger([]*Recorded{with("1", "/one.conf", "again")})); err != nil || lb.Conf != "/one.conf" || !lb.Foreign || len(lb.Nginx.ReloadCommand) != 1 {
		t.Errorf("%v, %+v", err, lb)
	}
	lb = &LB{Conf: "/said.conf", Nginx: nginx.Binary{Path: "/opt/nginx", ReloadCommand: []string{"said"}}}
	if err := p.inheritNginx(lb, NewLedger([]*Recorded{with("1", "/one.conf", "again"), other})); err != nil || lb.Conf != "/said.conf" || lb.Nginx.ReloadCommand[0] != "said" || lb.Nginx.Path != "/opt/nginx" {
		t.Errorf("%v, %+v", err, lb)
	}
	lb = &LB{Nginx: nginx.Binary{Path: DefaultBinary}}
	err = p.inheritNginx(lb, NewLedger([]*Recorded{with("1", "/one.conf", ""), other}))
	if KindOf(err) != Refused || !strings.Contains(err.Error(), "drained in different configurations: /one.conf (1) and /two.conf (2)") {
		t.Errorf("%v", err)
	}
	for _, l := range []*Ledger{nil, NewLedger(nil), NewLedger([]*Recorded{with("1", "/one.conf", ""), operation("2", Undrain, ResultDone)})} {
		lb = &LB{Nginx: nginx.Binary{Path: DefaultBinary}}
		if err := p.inheritNginx(lb, l); err != nil || lb.Conf != "" || lb.Foreign {
			t.Errorf("%v, %+v", err, lb)
		}
	}
}
