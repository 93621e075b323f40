package balancer

import (
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/journal"
)

func poolServer(address string) journal.Server {
	return journal.Server{Module: "http", Upstream: "pool", Address: address + ":8080"}
}

// wants is a request that brings servers to a state.
func wants(want Want, addresses ...string) StageRequest {
	w := Wanted{Want: want}
	for _, a := range addresses {
		w.Servers = append(w.Servers, poolServer(a))
	}
	return StageRequest{Wants: []Wanted{w}, AcceptPending: true}
}

// stage stages a request and has it loaded, if that is needed.
func (r *rig) stage(l Balancer, q StageRequest) Staged {
	r.t.Helper()
	a, err := l.Stage(r.t.Context(), q)
	r.must(err)
	if a.NeedsLoad {
		_, err = l.Load(r.t.Context(), LoadRequest{patience})
		r.must(err)
	}
	return a
}

// begins begins an operation on all servers of the pool.
func (r *rig) begins(uid uint32, kind string) (*Local, string) {
	r.t.Helper()
	l, id := r.as(uid), newOperationID()
	var servers []journal.Located
	for _, a := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		servers = append(servers, journal.Located{Server: poolServer(a), File: r.pool})
	}
	r.must(l.Begin(r.t.Context(), operation(id, kind, servers...)))
	return l, id
}

// Whatever was brought to a state, "as before" gives the bytes of before back. What is as
// wanted already is left alone, and needs no reload.
func TestAsBefore(t *testing.T) {
	for name, do := range map[string]func(r *rig, l *Local){
		"one out":             func(r *rig, l *Local) { r.stage(l, wants(Out, "127.0.0.2")) },
		"all out":             func(r *rig, l *Local) { r.stage(l, wants(Out, "127.0.0.2", "127.0.0.3", "127.0.0.4")) },
		"one after the other": func(r *rig, l *Local) { r.stage(l, wants(Out, "127.0.0.3")); r.stage(l, wants(Out, "127.0.0.2")) },
		"out, and back":       func(r *rig, l *Local) { r.stage(l, wants(Out, "127.0.0.2")); r.stage(l, wants(Back, "127.0.0.2")) },
		"out, and back, and again": func(r *rig, l *Local) {
			r.stage(l, wants(Out, "127.0.0.2"))
			r.stage(l, wants(Back, "127.0.0.2"))
			r.stage(l, wants(Out, "127.0.0.2"))
		},
		"not loaded": func(r *rig, l *Local) {
			_, err := l.Stage(r.t.Context(), wants(Out, "127.0.0.2"))
			r.must(err)
		},
		"out, and back, not loaded": func(r *rig, l *Local) {
			r.stage(l, wants(Out, "127.0.0.2"))
			_, err := l.Stage(r.t.Context(), wants(Back, "127.0.0.2"))
			r.must(err)
		},
		"a down of others, by force": func(r *rig, l *Local) {
			q := wants(Back, "127.0.0.4")
			q.Force = true
			r.stage(l, q)
		},
		"there and back in one edit": func(r *rig, l *Local) {
			r.stage(l, wants(Out, "127.0.0.2"))
			q := wants(Out, "127.0.0.3")
			q.Wants = append(q.Wants, wants(Back, "127.0.0.2").Wants...)
			r.stage(l, q)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l, id := r.begins(1000, journal.KindDrain)
			do(r, l)
			r.stage(l, wants(AsBefore, "127.0.0.2", "127.0.0.3", "127.0.0.4"))
			if now := r.read(r.pool); now != r.was {
				t.Errorf("not as before:\n%s", now)
			}
			if a := r.stage(l, wants(AsBefore, "127.0.0.2", "127.0.0.3", "127.0.0.4")); len(a.Edited) > 0 || a.NeedsLoad {
				t.Errorf("once more: %+v", a)
			}
			r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
			if s := r.state(); len(s.Marks) > 0 || len(s.Operations) > 0 {
				t.Errorf("the journal has %+v, %+v (%s)", s.Marks, s.Operations, id)
			}
		})
	}
}

// A request that was fulfilled changes nothing when it comes again.
func TestStageIsIdempotent(t *testing.T) {
	r := newRig(t)
	l, _ := r.begins(0, journal.KindDrain)
	for _, q := range []StageRequest{wants(Out, "127.0.0.2", "127.0.0.4"), wants(Back, "127.0.0.2", "127.0.0.3")} {
		r.stage(l, q)
		text, workers := r.read(r.pool), r.workers()
		if a := r.stage(l, q); len(a.Edited) > 0 || a.NeedsLoad || r.read(r.pool) != text || r.workers()[0] != workers[0] {
			t.Errorf("%s again: %+v", q.Wants[0].Want, a)
		}
	}
	if now := r.read(r.pool); now != r.was {
		t.Errorf("there and back:\n%s", now)
	}
}

// A server is as before where others are not.
func TestSomeAsBefore(t *testing.T) {
	r := newRig(t)
	l, _ := r.begins(0, journal.KindDrain)
	r.stage(l, wants(Out, "127.0.0.2", "127.0.0.3"))
	r.stage(l, wants(AsBefore, "127.0.0.2"))
	want := strings.Replace(r.was, "127.0.0.3:8080 ;", "127.0.0.3:8080 down ;", 1)
	if now := r.read(r.pool); now != want {
		t.Errorf("the file is\n%s\nwant\n%s", now, want)
	}
	r.stage(l, wants(AsBefore, "127.0.0.3"))
	if now := r.read(r.pool); now != r.was {
		t.Errorf("not as before:\n%s", now)
	}
}

// A down that an operator sets while the operation edits is the operator's: it stays when
// the operation is undone. Where the file has changed and which line is whose is not known, the
// undo is refused.
func TestDownOfAnOperatorStays(t *testing.T) {
	once := "upstream pool { server 127.0.0.2:8080; server 127.0.0.3:8080; }"
	twice := "upstream pool {\n server 127.0.0.2:8080;\n server 127.0.0.2:8080 weight=2;\n server 127.0.0.3:8080;\n}\n"
	for name, test := range map[string]struct {
		was, then, more string
		refused         bool
	}{
		"on the same line":                             {once, strings.Replace(once, "2:8080;", "2:8080 down;", 1), "", false},
		"on the same line, and the file has changed":   {once, strings.Replace(once, "2:8080;", "2:8080 down;", 1), "# by hand\n", false},
		"on another line":                              {twice, strings.Replace(twice, "weight=2;", "weight=2 down;", 1), "", false},
		"on another line, and the file has changed":    {twice, strings.Replace(twice, "weight=2;", "weight=2 down;", 1), "# by hand\n", true},
		"on the line before, and the file has changed": {twice, strings.Replace(twice, "2:8080;", "2:8080 down;", 1), "# by hand\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.write(r.pool, test.was)
			l, _ := r.begins(0, journal.KindDrain)
			report, err := l.Plan(t.Context(), down("127.0.0.2"))
			r.must(err)
			r.write(r.pool, test.then)
			q := stageOf(report, Out)
			q.AcceptPending, q.Force = true, false
			if _, err := l.Stage(t.Context(), q); CodeOf(err) != CodeChanged {
				t.Fatalf("the file was changed since the plan: %v", err)
			}
			report, err = l.Plan(t.Context(), down("127.0.0.2"))
			r.must(err)
			q.Files = report.Files
			r.stage(l, q)
			text := test.more + r.read(r.pool)
			r.write(r.pool, text)
			a, err := l.Stage(t.Context(), wants(AsBefore, "127.0.0.2"))
			if (err != nil) != test.refused {
				t.Errorf("undone: %v", err)
			}
			if err == nil && a.NeedsLoad {
				_, err = l.Load(t.Context(), LoadRequest{patience})
				r.must(err)
			}
			want := test.more + test.then
			if test.refused {
				want = text
			}
			if now := r.read(r.pool); now != want {
				t.Errorf("the file is\n%s\nwant\n%s", now, want)
			}
		})
	}
}

// The agent of a caller whose ID has become root's undoes nothing of root's, nor does one whose
// operation has ended.
func TestAsBeforeOfAnother(t *testing.T) {
	r := newRig(t)
	l, id := r.begins(1000, journal.KindDrain)
	r.drained(id, "127.0.0.2")
	text := r.read(r.pool)
	if _, err := l.Stage(t.Context(), wants(AsBefore, "127.0.0.2")); err == nil || r.read(r.pool) != text {
		t.Errorf("root's drain was undone: %v", err)
	}
	own, _ := r.begins(1000, journal.KindDrain)
	r.stage(own, wants(Out, "127.0.0.3"))
	r.must(own.End(t.Context(), journal.Ending{Result: journal.ResultDone}))
	text = r.read(r.pool)
	if _, err := own.Stage(t.Context(), wants(AsBefore, "127.0.0.3")); err == nil || r.read(r.pool) != text {
		t.Errorf("what has ended was undone: %v", err)
	}
}

// Two operations of a user that take a server out and put it back in turns leave no more marks
// than there are lines.
func TestMarksAreBounded(t *testing.T) {
	r := newRig(t)
	out, _ := r.begins(1000, journal.KindDrain)
	back, _ := r.begins(1000, journal.KindUndrain)
	var n []int
	for range 4 {
		r.stage(out, wants(Out, "127.0.0.2", "127.0.0.3"))
		r.stage(back, wants(Back, "127.0.0.2", "127.0.0.3"))
		n = append(n, len(r.state().Marks))
	}
	if n[3] > n[0] {
		t.Errorf("%v marks", n)
	}
}

// What a killed agent has left is undone also where it had undone a part of it itself.
func TestPartlyUndoneByAKilledAgent(t *testing.T) {
	r := newRig(t)
	l, _ := r.begins(0, journal.KindRun)
	r.stage(l, wants(Out, "127.0.0.2"))
	loaded := r.read(r.pool)
	q := wants(Out, "127.0.0.3")
	q.Wants = append(q.Wants, wants(Back, "127.0.0.2").Wants...)
	_, err := l.Stage(t.Context(), q)
	r.must(err)
	_, err = l.Stage(t.Context(), wants(AsBefore, "127.0.0.3"))
	r.must(err)
	r.kill(l)
	next, _ := r.begins(1000, journal.KindDrain)
	q = wants(Back, "127.0.0.9")
	q.AcceptPending = false
	if _, err := next.Stage(t.Context(), q); err != nil {
		t.Error(err)
	}
	if now := r.read(r.pool); now != loaded {
		t.Errorf("the file is\n%s\nand nginx has loaded\n%s", now, loaded)
	}
}

// Somebody puts the bytes of before back into the file, and nginx does not know it yet: as
// before means that nginx loads it.
func TestAsBeforeIsLoaded(t *testing.T) {
	r := newRig(t)
	l, _ := r.begins(0, journal.KindDrain)
	r.stage(l, wants(Out, "127.0.0.2"))
	without := r.workers()
	r.write(r.pool, r.was)
	if a := r.stage(l, wants(AsBefore, "127.0.0.2")); !a.NeedsLoad || r.workers()[0] == without[0] {
		t.Errorf("nginx still serves what was undone: %+v", a)
	}
}

// An undrain that is undone gives the mark back to the drain that made it, also after nginx
// has loaded the configuration without it, and also by another agent.
func TestUndrainAsBefore(t *testing.T) {
	for _, another := range []bool{false, true} {
		r := newRig(t)
		drain := newOperationID()
		r.drained(drain, "127.0.0.2")
		drained, serving := r.read(r.pool), r.workers()
		l, id := r.begins(0, journal.KindUndrain)
		r.stage(l, wants(Back, "127.0.0.2"))
		if now := r.read(r.pool); now != r.was {
			t.Fatalf("not put back:\n%s", now)
		}
		if another {
			_, err := l.Stage(t.Context(), wants(AsBefore, "127.0.0.2")) // and it dies before the load
			r.must(err)
			l.needsLoad = false
			r.must(l.Close())
			l = r.as(0)
			r.must(l.Begin(t.Context(), resumption(id, journal.KindUndrain)))
		}
		if a := r.stage(l, wants(AsBefore, "127.0.0.2")); !a.NeedsLoad {
			t.Errorf("another agent %t: nginx was not told", another)
		}
		r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
		s := r.state()
		if marks := s.MarksOn(poolServer("127.0.0.2")); r.read(r.pool) != drained || len(marks) != 1 || marks[0].Operation != drain || marks[0].Cleared != nil || r.workers()[0] == serving[0] {
			t.Errorf("another agent %t: marks %+v, the file is\n%s", another, marks, r.read(r.pool))
		}
	}
}

// The edit of a rolling run puts one server back and takes another out. An agent that is
// killed before the reload leaves nothing of it.
func TestEditOfAKilledRun(t *testing.T) {
	r := newRig(t)
	l, id := r.begins(0, journal.KindRun)
	r.stage(l, wants(Out, "127.0.0.2"))
	loaded := r.read(r.pool)
	q := wants(Out, "127.0.0.3")
	q.Wants = append(q.Wants, wants(Back, "127.0.0.2").Wants...)
	_, err := l.Stage(t.Context(), q)
	r.must(err)
	r.kill(l)
	next, _ := r.begins(1000, journal.KindDrain)
	if _, err := next.Stage(t.Context(), wants(Back, "127.0.0.9")); err != nil {
		t.Error(err)
	}
	if now := r.read(r.pool); now != loaded {
		t.Errorf("the file is\n%s\nand nginx has loaded\n%s", now, loaded)
	}
	s := r.state()
	if marks := s.MarksOn(poolServer("127.0.0.2")); len(marks) != 1 || marks[0].Operation != id || marks[0].Cleared != nil || len(s.MarksOn(poolServer("127.0.0.3"))) > 0 {
		t.Errorf("the journal has the marks %+v", s.Marks)
	}
}
