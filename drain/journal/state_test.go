package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	one   = Server{"http", "app", "10.0.0.1:80"}
	two   = Server{"http", "app", "10.0.0.2:80"}
	three = Server{"stream", "app", "10.0.0.1:80"}
)

const conf = "/nginx.conf"

// A script is what happens to a state, one call after the other.
type script []func(*State) error

func begin(id, kind string, servers ...Server) func(*State) error {
	op := Operation{ID: id, Kind: kind}
	for _, s := range servers {
		op.Servers = append(op.Servers, Located{Server: s, File: conf})
	}
	return func(s *State) error { return s.Begin(op) }
}

// mark stages an edit that puts `down` on lines of a server.
func mark(id, before, after string, server Server, at ...int) func(*State) error {
	return func(s *State) error { return s.Stage(id, markEdit(before, after, server, at...)) }
}

func markEdit(before, after string, server Server, at ...int) Edit {
	e := Edit{Path: conf, Before: before, After: after}
	for _, a := range at {
		e.Splices = append(e.Splices, Splice{Server: server, At: a, New: " down", Line: a})
	}
	return e
}

func clearMark(id, before, after string, server Server) func(*State) error {
	return func(s *State) error {
		return s.Stage(id, Edit{Path: conf, Before: before, After: after, Splices: []Splice{{Server: server, At: 40, Old: " down"}}})
	}
}

// undone undoes all edits of an operation.
func undone(id string) func(*State) error {
	return func(s *State) error { return s.Undone(id, s.EditsOf(id)...) }
}

// withdraw undoes the last edit of an operation.
func withdraw(id string) func(*State) error {
	return func(s *State) error {
		edits := s.EditsOf(id)
		return s.Undone(id, edits[max(0, len(edits)-1):]...)
	}
}

func sent(id string) func(*State) error   { return func(s *State) error { return s.Sent(id) } }
func loaded(id string) func(*State) error { return func(s *State) error { return s.Loaded(id) } }

func end(id string, r Result, supersede ...string) func(*State) error {
	return func(s *State) error { return s.End(id, Ending{Result: r, Supersede: supersede}) }
}

func (c script) run(t *testing.T) *State {
	t.Helper()
	s := &State{}
	for i, do := range c {
		if err := do(s); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	return s
}

func ids(ops []Operation) string {
	var all []string
	for _, o := range ops {
		all = append(all, o.ID)
	}
	return strings.Join(all, " ")
}

// What stands on a server, by what its operations lived to do.
func TestWhatStands(t *testing.T) {
	drain := script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), end("1", ResultDone)}
	undrain := script{begin("2", KindUndrain, one), clearMark("2", "b", "a", one), end("2", ResultDone)}
	for _, c := range []struct {
		name                 string
		script               script
		marks                int
		standing, unfinished string
	}{
		{"nothing", nil, 0, "", ""},
		{"crash after the begin", drain[:1], 0, "1", "1"},
		{"crash after the edit was announced", drain[:2], 1, "1", "1"},
		{"drained", drain, 1, "1", ""},
		{"rolled back", slices.Concat(drain[:2], script{undone("1"), end("1", ResultRolledBack)}), 0, "", ""},
		{"undone before any reload, and a crash", slices.Concat(drain[:2], script{undone("1")}), 0, "1", "1"},
		{"loaded, undone, and a crash before the reload", slices.Concat(drain[:2], script{sent("1"), loaded("1"), undone("1")}), 1, "1", "1"},
		{"loaded, undone, and loaded again", slices.Concat(drain[:2], script{sent("1"), loaded("1"), undone("1"), loaded("1")}), 0, "1", "1"},
		{"loaded, undone, and marked again", slices.Concat(drain[:2], script{sent("1"), loaded("1"), undone("1"), mark("1", "a", "b", one, 40)}), 1, "1", "1"},
		{"put back by the operation itself, and not loaded", slices.Concat(drain[:2], script{sent("1"), clearMark("1", "b", "a", one)}), 1, "1", "1"},
		{"put back by the operation itself", slices.Concat(drain[:2], script{sent("1"), clearMark("1", "b", "a", one), sent("1"), loaded("1")}), 0, "1", "1"},
		{"put back by the operation itself, and that was undone", slices.Concat(drain[:2], script{sent("1"), clearMark("1", "b", "a", one), func(s *State) error { return s.Undone("1", s.UnsentOf("1")...) }, loaded("1")}), 1, "1", "1"},
		{"cleared by an undrain, and loaded", slices.Concat(drain, undrain[:2], script{sent("2"), loaded("2")}), 1, "1 2", "2"},
		{"cleared by an undrain, and undone", slices.Concat(drain, undrain[:2], script{sent("2"), loaded("2"), undone("2"), end("2", ResultRolledBack)}), 1, "1", ""},
		{"a down of others, cleared", script{begin("1", KindUndrain, one), clearMark("1", "b", "a", one)}, 0, "1", "1"},
		{"partial", slices.Concat(drain[:2], script{end("1", ResultPartial)}), 1, "1", "1"},
		{"not drained", slices.Concat(drain[:2], script{end("1", ResultNotDrained)}), 1, "1", "1"},
		{"not drained, and undrained", slices.Concat(drain[:2], script{end("1", ResultNotDrained)}, undrain), 0, "", ""},
		{"drained and undrained", slices.Concat(drain, undrain), 0, "", ""},
		{"crash, and undrained", slices.Concat(drain[:2], undrain), 0, "", ""},
		{"drained, and the undrain crashed", slices.Concat(drain, undrain[:2]), 1, "1 2", "2"},
		{"drained, and the undrain was rolled back", slices.Concat(drain, undrain[:2], script{end("2", ResultRolledBack)}), 1, "1", ""},
		{"the undrain crashed, and was resumed", slices.Concat(drain, undrain[:2], script{begin("3", KindUndrain, one), end("3", ResultDone)}), 0, "", ""},
		{"a crash, resumed", slices.Concat(drain[:2], script{begin("2", KindDrain, one), end("2", ResultDone, "1")}), 1, "2", ""},
		{"a crash, and the resume crashed", slices.Concat(drain[:2], script{begin("2", KindDrain, one)}), 1, "1 2", "2"},
		{"a crash, and the resume was rolled back", slices.Concat(drain[:2], script{begin("2", KindDrain, one), end("2", ResultRolledBack, "1")}), 1, "1", "1"},
		{"drained twice", slices.Concat(drain, script{begin("2", KindDrain, one), end("2", ResultDone)}), 1, "1 2", ""},
		{"drained again while an undrain was running", slices.Concat(drain[:2], undrain[:2], script{begin("3", KindDrain, one), mark("3", "a", "b", one, 40), end("2", ResultDone)}), 1, "3", "3"},

		{"the file changed, and the edit was begun anew", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), withdraw("1"), mark("1", "a2", "b2", one, 60)}, 1, "1", "1"},
		{"restored, and begun anew", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), undone("1"), mark("1", "a2", "b2", one, 60)}, 1, "1", "1"},
		{"withdrawn", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), withdraw("1"), withdraw("1")}, 0, "1", "1"},
		{"the second edit was withdrawn", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), mark("1", "b", "c", one, 80), withdraw("1")}, 1, "1", "1"},
		{"two edits, one after the other", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), mark("1", "b", "c", one, 80)}, 2, "1", "1"},
		{"an upstream that names it twice", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40, 80)}, 2, "1", "1"},
		{"a fragment included twice is one line", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40, 40)}, 1, "1", "1"},
		{"a crash before the writing, and a resume", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), begin("2", KindDrain, one), mark("2", "a", "b", one, 40), end("2", ResultDone, "1")}, 1, "2", ""},
		{"a crash after the writing, and a line that came later", script{begin("1", KindDrain, one), mark("1", "a", "b", one, 40), begin("2", KindDrain, one), mark("2", "c", "d", one, 80), end("2", ResultDone, "1")}, 2, "2", ""},
		{"a second drain was rolled back", slices.Concat(drain, script{begin("2", KindDrain, one), mark("2", "c", "d", one, 80), end("2", ResultRolledBack)}), 1, "1", ""},
		{"undrained, and drained again", slices.Concat(drain, undrain, script{begin("3", KindDrain, one), mark("3", "a", "b", one, 40), end("3", ResultDone)}), 1, "3", ""},
	} {
		s := c.script.run(t)
		if got := len(s.MarksOn(one)); got != c.marks {
			t.Errorf("%s: %d marks, want %d", c.name, got, c.marks)
		}
		if got := ids(s.Standing(one)); got != c.standing {
			t.Errorf("%s: %q stand, want %q", c.name, got, c.standing)
		}
		if got := ids(s.Unfinished()); got != c.unfinished {
			t.Errorf("%s: %q unfinished, want %q", c.name, got, c.unfinished)
		}
		for _, m := range s.Marks {
			if _, ok := s.Find(m.Operation); !ok && m.Operation != "" {
				t.Errorf("%s: a mark of operation %s, which does not stand", c.name, m.Operation)
			}
		}
	}
}

// Servers leave an operation one by one; servers of another upstream or module are others.
func TestServersOfAnOperation(t *testing.T) {
	s := script{
		begin("1", KindDrain, one, two, three), mark("1", "a", "b", one, 40), mark("1", "b", "c", two, 80), mark("1", "c", "d", three, 120),
		begin("2", KindUndrain, one), end("2", ResultDone),
	}.run(t)
	if len(s.MarksOn(one)) != 0 || len(s.MarksOn(two)) != 1 || len(s.MarksOn(three)) != 1 {
		t.Errorf("marks %v", s.Marks)
	}
	if ids(s.Standing(one)) != "" || ids(s.Standing(two)) != "1" || ids(s.Unfinished()) != "1" {
		t.Errorf("operations %v", s.Operations)
	}
	for _, do := range (script{begin("3", KindDrain, two), end("3", ResultDone)}) {
		if err := do(s); err != nil {
			t.Fatal(err)
		}
	}
	if ids(s.Unfinished()) != "1" {
		t.Errorf("%q unfinished: nothing has gone on from 1 for its third server", ids(s.Unfinished()))
	}
}

// An undrain takes its servers out of earlier operations. Of those of a user who does not trust
// who ends it, it takes only servers whose backends are locked, and that are up.
func TestServersOfAnotherUser(t *testing.T) {
	for _, c := range []struct {
		name         string
		uid          uint32
		locked, down []Server
		standing     string
	}{
		{"root", 0, nil, nil, ""},
		{"the same user", 1000, nil, nil, ""},
		{"another user", 1001, nil, nil, "1"},
		{"another user, with the lock", 1001, []Server{one}, nil, ""},
		{"another user, with the lock, and the server is down", 1001, []Server{one}, []Server{one}, "1"},
	} {
		s := script{
			func(s *State) error {
				return s.Begin(Operation{ID: "1", Kind: KindDrain, Recorder: &Recorder{UID: 1000}, Servers: []Located{{Server: one}}})
			},
			begin("2", KindUndrain, one),
			func(s *State) error {
				return s.End("2", Ending{Result: ResultDone, By: Recorder{UID: c.uid}, Locked: c.locked, Down: c.down})
			},
		}.run(t)
		if got := ids(s.Standing(one)); got != c.standing {
			t.Errorf("%s: %q stand, want %q", c.name, got, c.standing)
		}
	}
}

// A user controls what they have recorded themselves, and root controls all of it.
func TestControls(t *testing.T) {
	deploy := &Recorder{UID: 1000, Name: "deploy"}
	for _, c := range []struct {
		user     Recorder
		recorder *Recorder
		want     bool
	}{
		{Recorder{UID: 1000}, deploy, true}, {Recorder{UID: 1001}, deploy, false}, {Recorder{UID: 1000}, nil, false},
		{Recorder{UID: 1000}, &Recorder{}, false}, {Recorder{}, deploy, true}, {Recorder{}, nil, true},
	} {
		if got := c.user.Controls(c.recorder); got != c.want {
			t.Errorf("%s controls what %v recorded: %t", c.user, c.recorder, got)
		}
	}
}

// An operation without a server here ends and leaves nothing, whatever ends meanwhile.
func TestOperationWithoutServers(t *testing.T) {
	s := script{begin("1", KindDrain), begin("2", KindDrain, one), begin("3", KindUndrain, one), end("3", ResultDone)}.run(t)
	if ids(s.Operations) != "1" || ids(s.Unfinished()) != "1" {
		t.Fatalf("operations %v", s.Operations)
	}
	if err := s.End("1", Ending{Result: ResultDone}); err != nil || len(s.Operations) != 0 {
		t.Errorf("error %v, operations %v", err, s.Operations)
	}
}

// An operation that is not in the state is an error, and changes nothing.
func TestGoneOperation(t *testing.T) {
	for i, do := range (script{mark("2", "a", "b", one, 40), withdraw("2"), undone("2"), end("2", ResultDone)}) {
		s := script{begin("1", KindDrain, one)}.run(t)
		if err := do(s); !errors.Is(err, ErrGone) || len(s.Operations) != 1 || len(s.Marks) != 0 || len(s.Edits) != 0 {
			t.Errorf("call %d: error %v, state %+v", i, err, s)
		}
	}
}

func TestBeginRefuses(t *testing.T) {
	s := script{begin("1", KindDrain, one)}.run(t)
	for _, op := range []Operation{
		{ID: "1"}, {}, {ID: "../1"}, {ID: ".1"}, {ID: "a/b"}, {ID: strings.Repeat("x", 65)}, {ID: "a\n"},
		{ID: "2", Servers: []Located{{Server: Server{"http", "caf\xe9", "10.0.0.1:80"}}}},
		{ID: "2", Servers: []Located{{Server: one, File: "/etc/\xff.conf"}}},
	} {
		if err := s.Begin(op); err == nil || len(s.Operations) != 1 || s.LastID != "1" {
			t.Errorf("%q: error %v, state %+v", op.ID, err, s)
		}
	}
}

// A file is as drainctl left it if its last edit says so, whoever began first and
// whatever has ended since.
func TestOurs(t *testing.T) {
	s := script{
		begin("2", KindUndrain, one), begin("1", KindDrain, one), mark("1", "a", "b", one, 40), clearMark("2", "b", "c", one),
		end("1", ResultDone), end("2", ResultDone),
	}.run(t)
	for sha, want := range map[string]bool{"a": false, "b": true, "c": true, "d": false, "": false} {
		if s.Ours(conf, sha) != want {
			t.Errorf("%q is ours: %t", sha, !want)
		}
	}
	if s.Ours("/other.conf", "c") || s.Ours("/other.conf", "") || (&State{}).Ours(conf, "") {
		t.Error("another file is ours")
	}
}

// An operation that gets another ID keeps its marks, and its changes to the marks of others.
func TestRename(t *testing.T) {
	s := script{
		begin("1", KindDrain, one), mark("1", "a", "b", one, 40), end("1", ResultDone), begin("2", KindUndrain, one), clearMark("2", "b", "a", one),
		func(s *State) error { return s.Rename("1", "3") },
		func(s *State) error { return s.Rename("2", "4") },
	}.run(t)
	if edits := s.EditsOf("4"); len(edits) != 1 || len(s.EditsOf("2")) != 0 || s.LastID != "4" {
		t.Errorf("edits %+v, last ID %s", edits, s.LastID)
	}
	if err := undone("4")(s); err != nil {
		t.Fatal(err)
	}
	if m := s.MarksOn(one); ids(s.Operations) != "3 4" || len(m) != 1 || m[0].Operation != "3" || m[0].Cleared != nil {
		t.Errorf("operations %s, marks %+v", ids(s.Operations), m)
	}
	if err := s.Rename("2", "5"); !errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
}

// An operation that is resumed has not ended, and is the latest one on its servers.
func TestResume(t *testing.T) {
	s := script{
		begin("1", KindDrain, one, two),
		func(s *State) error {
			return s.End("1", Ending{Result: ResultNotDrained, Open: 3, NotDrained: []Server{two}, At: time.Now()})
		},
		begin("2", KindDrain, three),
		func(s *State) error {
			return s.Resume(Operation{ID: "1", Recorder: &Recorder{UID: 1000}, Servers: []Located{{Server: two}, {Server: three}}})
		},
	}.run(t)
	if op, _ := s.Find("1"); op.Result != "" || !op.Ended.IsZero() || op.Open != 0 || len(op.NotDrained) > 0 || op.Recorder.UID != 1000 || len(op.Servers) != 3 {
		t.Errorf("operation %+v", op)
	}
	if ids(s.Unfinished()) != "1" {
		t.Errorf("%q unfinished", ids(s.Unfinished()))
	}
}

// LastID never goes back: the next ID follows it, though all operations are gone.
func TestLastID(t *testing.T) {
	s := script{begin("2", KindDrain), begin("1", KindDrain), end("1", ResultDone), end("2", ResultRolledBack)}.run(t)
	if s.LastID != "2" || len(s.Operations) != 0 {
		t.Errorf("state %+v", s)
	}
}

// A user other than root has so many open operations, whatever they are; root has more.
func TestOperationsOfAUserAreBounded(t *testing.T) {
	for _, c := range []struct {
		uid       uint32
		size, fit int
	}{
		{1000, 1, maxOfRecorder},
		{1000, 3 << 20, maxBytesOfRecorder / (3 << 20)},
		{0, 3 << 20, maxBytesOfRecorder/(3<<20) + 2},
	} {
		s := State{}
		op := Operation{Kind: KindDrain, Recorder: &Recorder{UID: c.uid}, Spec: json.RawMessage(`"` + strings.Repeat("x", c.size) + `"`)}
		for i := range c.fit {
			op.ID = fmt.Sprintf("%d", i)
			if err := s.Begin(op); err != nil {
				t.Fatalf("uid %d, operation %d of %d bytes: %v", c.uid, i+1, c.size, err)
			}
		}
		op.ID = "more"
		if err := s.Begin(op); (err == nil) != (c.uid == 0) {
			t.Errorf("uid %d, one more of %d bytes: error %v", c.uid, c.size, err)
		}
		op.ID, op.Recorder = "another", &Recorder{UID: 1001}
		if err := s.Begin(op); err != nil {
			t.Errorf("another user's operation: %v", err)
		}
	}
}

// The marks that a user has made or cleared take up the user's bytes, whoever made those that
// are cleared.
func TestMarksOfAUserAreBounded(t *testing.T) {
	const fit = maxBytesOfRecorder/(1<<20) - 1
	for _, cleared := range []bool{false, true} {
		s := State{}
		for id, uid := range map[string]uint32{"root": 0, "user": 1000} {
			if err := s.Begin(Operation{ID: id, Kind: KindDrain, Recorder: &Recorder{UID: uid}}); err != nil {
				t.Fatal(err)
			}
		}
		for n := range fit + 1 {
			large := Server{"http", fmt.Sprint(n, strings.Repeat("x", 1<<20)), "10.0.0.1:80"}
			stage := mark("user", "a", "b", large, n)
			if cleared {
				if err := mark("root", "a", "b", large, n)(&s); err != nil {
					t.Fatal(err)
				}
				stage = clearMark("user", "b", "a", large)
			}
			if err := stage(&s); (err == nil) != (n < fit) {
				t.Errorf("cleared %t, %d marks of 1 MiB: error %v", cleared, n+1, err)
			}
		}
	}
}

// An operation ends with a result that this package knows, and within the bounds of what
// it may record.
func TestEndRefuses(t *testing.T) {
	for _, r := range []Result{"", "zzz", "Done", Result(strings.Repeat("x", 2<<20))} {
		s := script{begin("1", KindDrain, one)}.run(t)
		if err := s.End("1", Ending{Result: r}); err == nil || len(err.Error()) > 200 {
			t.Errorf("%.20q: error %.200v", r, err)
		}
	}
	for _, r := range []Result{ResultDone, ResultPartial, ResultNotDrained, ResultRolledBack} {
		s := script{begin("1", KindDrain, one)}.run(t)
		many := make([]Server, maxOperation/40)
		for i := range many {
			many[i] = one
		}
		err := s.End("1", Ending{Result: r, NotDrained: many})
		if refused := r != ResultRolledBack; (err != nil) != refused {
			t.Errorf("%s with %d servers: error %v", r, len(many), err)
		}
	}
}

// An undrain ends the drains of its own configuration. An operation without one, of an earlier version,
// is about each.
func TestConfigurations(t *testing.T) {
	in := func(conf, id, kind string) func(*State) error {
		return func(s *State) error {
			return s.Begin(Operation{ID: id, Kind: kind, Conf: conf, Servers: []Located{{Server: one, File: conf}}})
		}
	}
	for _, c := range []struct {
		drain, undrain string
		stands         bool
	}{{"/a", "/a", false}, {"/a", "/b", true}, {"", "/b", false}, {"/a", "", false}} {
		s := script{
			in(c.drain, "1", KindDrain), mark("1", "a", "b", one, 40), sent("1"), loaded("1"), end("1", ResultDone),
			in(c.undrain, "2", KindUndrain), clearMark("2", "b", "a", one), sent("2"), loaded("2"),
		}.run(t)
		for _, when := range []string{"before", "after"} {
			other := s.WithoutConf(func(conf string) bool { return c.undrain != "" && conf != c.undrain })
			if n := len(other.MarksOn(one)); (n == 0) != (c.stands || when == "after") {
				t.Errorf("drained in %q, %s the undrain in %q: it sees %d marks", c.drain, when, c.undrain, n)
			}
			if when == "before" {
				if err := s.End("2", Ending{Result: ResultDone}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(s.Marks) == 1 != c.stands || len(s.Standing(one)) == 1 != c.stands {
			t.Errorf("drained in %q, undrained in %q: marks %v, operations %s", c.drain, c.undrain, s.Marks, ids(s.Operations))
		}
	}
}
