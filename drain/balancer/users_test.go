package balancer

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

// What one user can do to the operations, marks and locks of another. The caller is uid 1000.

// as is the LB on behalf of a user.
func (r *rig) as(uid uint32) *Local {
	o := r.options()
	o.Caller = journal.Recorder{UID: uid, Name: fmt.Sprint("u", uid)}
	l := NewLocal(o)
	r.t.Cleanup(func() { l.Close() })
	return l
}

func newOperationID() string { return journal.NewID(time.Now(), "") }

// must fails the test for any of the errors.
func (r *rig) must(errs ...error) {
	r.t.Helper()
	for _, err := range errs {
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// staged is an agent of a user that has edited and not reloaded.
func (r *rig) staged(uid uint32, q Query) (*Local, string) {
	r.t.Helper()
	l, id := r.as(uid), newOperationID()
	report := r.began(l, id, q)
	c := stageOf(report, q.Want)
	c.AcceptPending = true
	_, err := l.Stage(r.t.Context(), c)
	r.must(err)
	return l, id
}

// kill frees the lock of an agent that has edited, as the kernel does when the agent is killed.
func (r *rig) kill(l *Local) {
	r.t.Helper()
	r.must(l.editLock.Unlock())
	l.staged.Stop()
	l.editLock = nil
}

// drained has root drain a server; the operation has its ID.
func (r *rig) drained(id, target string) {
	r.t.Helper()
	root := r.as(0)
	report := r.began(root, id, down(target))
	a, err := root.Stage(r.t.Context(), stageOf(report, Out))
	r.must(err)
	if a.NeedsLoad {
		_, err = root.Load(r.t.Context(), LoadRequest{patience})
		r.must(err)
	}
	r.must(root.End(r.t.Context(), journal.Ending{Result: journal.ResultDone}), root.Close())
}

// state is what the journal has.
func (r *rig) state() *journal.State {
	r.t.Helper()
	s, err := r.as(0).State(context.Background())
	r.must(err)
	return &s
}

func operation(id, kind string, servers ...journal.Located) Beginning {
	return Beginning{Operation: journal.Operation{ID: id, Kind: kind, Servers: servers}, Lines: []json.RawMessage{[]byte("{}")}}
}

func resumption(id, kind string) Beginning {
	b := operation(id, kind)
	b.Resume, b.Operation.Recorder = true, &journal.Recorder{}
	return b
}

// An edit for which no reload was sent does not outlast its operation, however that ends.
func TestStagedEditEnds(t *testing.T) {
	for name, end := range map[string]func(r *rig, l *Local, id string) error{
		"close": func(r *rig, l *Local, id string) error { return nil },
		"done": func(r *rig, l *Local, id string) error {
			return l.End(r.t.Context(), journal.Ending{Result: journal.ResultDone})
		},
		"rolled back": func(r *rig, l *Local, id string) error {
			return l.End(r.t.Context(), journal.Ending{Result: journal.ResultRolledBack})
		},
		"partial": func(r *rig, l *Local, id string) error {
			return l.End(r.t.Context(), journal.Ending{Result: journal.ResultPartial})
		},
		"begun again": func(r *rig, l *Local, id string) error {
			if err := l.Begin(r.t.Context(), operation(id, journal.KindDrain)); err == nil {
				return fmt.Errorf("operation %s has begun twice", id)
			}
			return nil
		},
		"adopted and ended by another agent": func(r *rig, l *Local, id string) error {
			other := r.as(1000)
			r.must(other.Begin(r.t.Context(), resumption(id, journal.KindDrain)))
			return other.End(r.t.Context(), journal.Ending{Result: journal.ResultRolledBack})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l, id := r.staged(1000, down("127.0.0.2"))
			r.must(end(r, l, id), l.Close())
			if now := r.read(r.pool); now != r.was {
				t.Errorf("the edit is left behind:\n%s", now)
			}
		})
	}
}

// Nor does it outlast its time: others want to edit. The time of an edit that was loaded is not
// that of the next one.
func TestTimeOfAStagedEdit(t *testing.T) {
	r := newRig(t)
	l, _ := r.staged(1000, down("127.0.0.2"))
	first := l.staged
	_, err := l.Load(t.Context(), LoadRequest{patience})
	r.must(err)
	loaded := r.read(r.pool)
	stage := func() {
		t.Helper()
		report, err := l.Plan(t.Context(), down("127.0.0.3"))
		r.must(err)
		_, err = l.Stage(t.Context(), stageOf(report, Out))
		r.must(err)
	}
	stage()
	first.Reset(0) // as if the time was up just when nginx was told
	time.Sleep(apart)
	if r.read(r.pool) == loaded || len(r.lockNames()) != 1 {
		t.Fatalf("the locks %q are held, the file is\n%s", r.lockNames(), r.read(r.pool))
	}
	l.staged.Reset(0)
	r.until("others can edit", func() bool { return len(r.lockNames()) == 0 })
	if now := r.read(r.pool); now != loaded {
		t.Errorf("the edit is left behind:\n%s", now)
	}
	if _, err := l.Load(t.Context(), LoadRequest{patience}); CodeOf(err) != CodeRefused {
		t.Errorf("a reload without an edit: %v", err)
	}
}

// The edit of an agent that was killed before its reload is undone by the next operation that
// edits, whatever it edits; and one that was loaded is not.
func TestEditOfAKilledAgent(t *testing.T) {
	for _, loaded := range []bool{false, true} {
		t.Run(fmt.Sprint("loaded ", loaded), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			killed, _ := r.staged(0, down("127.0.0.2"))
			if loaded {
				_, err := killed.Load(t.Context(), LoadRequest{patience})
				r.must(err)
			} else {
				r.kill(killed)
			}
			next := r.as(1000)
			report := r.began(next, newOperationID(), down("127.0.0.3"))
			_, err := next.Stage(t.Context(), stageOf(report, Out))
			if !loaded {
				if CodeOf(err) != CodeChanged {
					t.Fatalf("the file was put back, and the plan of before is taken: %v", err)
				}
				report, err = next.Plan(t.Context(), down("127.0.0.3"))
				r.must(err)
				_, err = next.Stage(t.Context(), stageOf(report, Out))
			}
			r.must(err)
			if has := strings.Contains(r.read(r.pool), "127.0.0.2:8080 weight=2 down"); has != loaded {
				t.Errorf("the file:\n%s", r.read(r.pool))
			}
		})
	}
}

// What a killed agent has edited stays as another process has left it: loaded by somebody
// else's reload, changed since, or with its file gone. Nobody is kept from editing by it.
func TestEditOfAKilledAgentThatOthersTouched(t *testing.T) {
	const more = "/more.conf"
	for name, test := range map[string]struct {
		do   func(r *rig)
		down bool // what the agent has marked is down afterwards
	}{
		"reloaded":  {(*rig).reloadByOthers, true},
		"restarted": {(*rig).restartByOthers, true},
		"changed":   {func(r *rig) { r.write(r.dir+more, r.read(r.dir+more)+"# by hand\n") }, true},
		"gone":      {func(r *rig) { r.must(os.Remove(r.dir + more)) }, false},
		"put back":  {func(r *rig) { r.write(r.dir+more, moreServers) }, false},
		"put back, and reloaded": {func(r *rig) {
			r.write(r.dir+more, moreServers)
			r.reloadByOthers()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.include()
			killed, _ := r.staged(0, down("127.0.0.7"))
			r.kill(killed)
			test.do(r)
			next := r.as(0)
			report := r.began(next, newOperationID(), down("127.0.0.2"))
			c := stageOf(report, Out)
			c.AcceptPending = true
			_, err := next.Stage(t.Context(), c)
			r.must(err)
			if text, err := os.ReadFile(r.dir + more); strings.Contains(string(text), "down") != test.down {
				t.Errorf("%v:\n%s", err, text)
			}
			s := r.state()
			if edits := s.UnsentOf(s.Operations[0].ID); len(edits) > 0 {
				t.Errorf("still to be undone: %+v", edits)
			}
			marks := s.MarksOn(journal.Server{Module: "http", Upstream: "more", Address: "127.0.0.7:80"})
			if (len(marks) > 0) != test.down {
				t.Errorf("marks %+v", marks)
			}
		})
	}
}

// include adds another file to the configuration, which may be removed.
func (r *rig) include() (path string) {
	path = r.dir + "/more.conf"
	r.write(path, moreServers)
	r.write(r.conf, strings.Replace(r.read(r.conf), "include pool.conf;", "include pool.conf; include "+r.dir+"/more*.conf;", 1))
	return path
}

const moreServers = "upstream more { server 127.0.0.7:80; server 127.0.0.8:80; }\n"

// A reload has an edit to load: what was loaded, or has ended, is not reloaded again.
func TestNoReloadWithoutAnEdit(t *testing.T) {
	r := newRig(t)
	l, id := r.staged(1000, down("127.0.0.2"))
	_, err := l.Load(t.Context(), LoadRequest{patience})
	r.must(err)
	for _, ended := range []bool{false, true} {
		if ended {
			r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultDone}))
		}
		again := r.as(1000)
		r.must(again.Begin(t.Context(), resumption(id, journal.KindDrain)))
		if _, err := again.Load(t.Context(), LoadRequest{patience}); err == nil {
			t.Errorf("ended %t: nginx was reloaded, and nothing had been edited", ended)
		}
	}
}

// Whoever has learned root's ID before root begins cannot have root's operation, nor keep
// root from it.
func TestIDOfAnother(t *testing.T) {
	for name, take := range map[string]func(r *rig, l *Local, id string){
		"refused for its kind": func(r *rig, l *Local, id string) {
			if err := l.Begin(r.t.Context(), operation(id, "nonsense")); err == nil {
				r.t.Error("an operation of an unknown kind has begun")
			}
		},
		"begun": func(r *rig, l *Local, id string) { r.must(l.Begin(r.t.Context(), operation(id, journal.KindDrain))) },
		"begun, and ended by another agent": func(r *rig, l *Local, id string) {
			r.must(l.Begin(r.t.Context(), operation(id, journal.KindDrain)))
			other := r.as(1000)
			r.must(other.Begin(r.t.Context(), resumption(id, journal.KindDrain)))
			r.must(other.End(r.t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id, l := newOperationID(), r.as(1000)
			take(r, l, id)
			r.drained(id, "127.0.0.2")
			before := r.state()
			if op, _ := before.Find(id); op.Recorder == nil || op.Recorder.UID != 0 {
				t.Errorf("root's drain is recorded as that of %v", op.Recorder)
			}
			for _, err := range []error{
				l.Record(t.Context(), Recorded{Lines: []json.RawMessage{[]byte("{}")}, Progress: []byte("1")}),
				l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}),
			} {
				if err == nil {
					t.Error("root's operation was changed by another")
				}
			}
			if now := r.state(); len(now.Marks) != len(before.Marks) || len(now.Operations) != len(before.Operations) || len(now.Marks) != 1 {
				t.Errorf("%d marks and %d operations, before %d and %d", len(now.Marks), len(now.Operations), len(before.Marks), len(before.Operations))
			}
		})
	}
}

// An undrain that is only recorded, and puts nothing back, takes nothing from another's
// operation; nor does one that puts something back and undoes that.
func TestOthersKeepTheirOperations(t *testing.T) {
	pretend := func(r *rig, servers []journal.Located) {
		l := r.as(1000)
		r.must(l.Begin(r.t.Context(), operation(newOperationID(), journal.KindUndrain, servers...)))
		r.must(l.End(r.t.Context(), journal.Ending{Result: journal.ResultDone}))
	}
	for _, test := range []struct {
		name, target string
		marks        int
		do           func(r *rig, id string)
	}{
		{"marked", "127.0.0.2", 1, func(r *rig, id string) {
			op, _ := r.state().Find(id)
			pretend(r, op.Servers)
		}},
		{"down already", "127.0.0.4", 0, func(r *rig, id string) {
			op, _ := r.state().Find(id)
			pretend(r, op.Servers)
		}},
		{"while the file cannot be read", "127.0.0.2", 1, func(r *rig, id string) {
			op, _ := r.state().Find(id)
			text := r.read(r.pool)
			r.write(r.pool, strings.Replace(text, "}", "", 1))
			pretend(r, op.Servers)
			r.write(r.pool, text)
		}},
		{"put back, and not loaded yet", "127.0.0.2", 1, func(r *rig, id string) {
			op, _ := r.state().Find(id)
			l, _ := r.staged(1000, Query{Targets: []string{"127.0.0.2"}, Want: Back})
			other := r.as(1000)
			r.must(other.Lock(r.t.Context(), LockRequest{Backends: []string{"127.0.0.2"}}))
			r.must(other.Begin(r.t.Context(), operation(newOperationID(), journal.KindUndrain, op.Servers...)))
			r.must(other.End(r.t.Context(), journal.Ending{Result: journal.ResultDone}), l.Close())
		}},
		{"put back, and undone", "127.0.0.2", 1, func(r *rig, id string) {
			drained := r.read(r.pool)
			l, _ := r.staged(1000, Query{Targets: []string{"127.0.0.2"}, Want: Back})
			report, err := l.Plan(r.t.Context(), down("127.0.0.3"))
			r.must(err)
			_, err = l.Stage(r.t.Context(), stageOf(report, Out))
			both, planErr := l.Plan(r.t.Context(), down("127.0.0.2", "127.0.0.3"))
			r.must(err, planErr, r.undo(l, both), l.End(r.t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
			if now := r.read(r.pool); now != drained {
				r.t.Fatalf("not as root left it:\n%s", now)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := newOperationID()
			r.drained(id, test.target)
			time.Sleep(apart)
			test.do(r, id)
			s := r.state()
			if _, ok := s.Find(id); !ok || len(s.Marks) != test.marks {
				t.Errorf("%d marks; root's operation is there: %t", len(s.Marks), ok)
			}
		})
	}
}

// Nor does it end what root has begun and not edited yet.
func TestOthersKeepWhatTheyBegan(t *testing.T) {
	r := newRig(t)
	root := r.as(0)
	report := r.began(root, newOperationID(), down("127.0.0.2"))
	l := r.as(1000)
	r.must(l.Begin(t.Context(), operation(newOperationID(), journal.KindUndrain, journal.Located{Server: report.Servers[0].Server})))
	r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultDone}))
	_, err := root.Stage(t.Context(), stageOf(report, Out))
	r.must(err)
}

// The history of an operation that has ended is nobody else's to write in.
func TestHistoryOfAnother(t *testing.T) {
	r := newRig(t)
	id := newOperationID()
	root := r.as(0)
	r.must(root.Begin(t.Context(), operation(id, journal.KindDrain)), root.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
	before, err := root.History(t.Context(), HistoryQuery{ID: id})
	r.must(err)
	for range 2 {
		l := r.as(1000)
		if err := l.Begin(t.Context(), operation(id, journal.KindDrain)); err == nil {
			t.Error("the ID of root's operation is begun by another")
		}
		if err := l.Record(t.Context(), Recorded{Lines: []json.RawMessage{[]byte("{}")}}); err == nil {
			t.Error("its history is written by another")
		}
	}
	if now, err := root.History(t.Context(), HistoryQuery{ID: id}); err != nil || len(now.Lines) != len(before.Lines) {
		t.Errorf("%d lines became %d, %v", len(before.Lines), len(now.Lines), err)
	}
	// A file of an earlier version does not say whose it is: it is root's.
	old := newOperationID()
	r.write(r.dir+"/state/history/"+old+".jsonl", "{}\n")
	resumed := operation(old, journal.KindDrain)
	resumed.Resume = true
	if err := r.as(1000).Begin(t.Context(), resumed); CodeOf(err) != CodeRefused {
		t.Errorf("a history of nobody is continued by another: %v", err)
	}
	r.must(r.as(0).Begin(t.Context(), resumed))
}

// What an operation has marked and left down is not forgotten because it says that it was
// rolled back.
func TestRolledBackInName(t *testing.T) {
	r := newRig(t)
	l, id := r.staged(1000, down("127.0.0.2"))
	_, err := l.Load(t.Context(), LoadRequest{patience})
	r.must(err, l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
	s := r.state()
	if op, ok := s.Find(id); !ok || op.Result != journal.ResultPartial || len(s.Marks) != 1 {
		t.Errorf("%d marks, result %q", len(s.Marks), op.Result)
	}
}

// A user who writes to the journal without end keeps nobody from it.
func TestJournalIsShared(t *testing.T) {
	r := newRig(t)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	for range 4 {
		l := r.as(1000)
		op := operation(newOperationID(), journal.KindDrain)
		for range 5000 {
			op.Operation.Servers = append(op.Operation.Servers, journal.Located{Server: journal.Server{Module: "http", Upstream: strings.Repeat("u", 60), Address: "127.0.0.9:80"}})
		}
		r.must(l.Begin(ctx, op))
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_ = l.Record(ctx, Recorded{Progress: fmt.Append(nil, n)})
			}
		})
	}
	for range 5 {
		if err := r.as(0).Begin(ctx, operation(newOperationID(), journal.KindDrain)); err != nil {
			t.Error(err)
		}
	}
}

// While an edit waits for its reload, its operation waits for no lock: others want to edit.
func TestNoLockWhileStaged(t *testing.T) {
	r := newRig(t)
	l, _ := r.staged(1000, down("127.0.0.2"))
	if err := l.Lock(t.Context(), LockRequest{Backends: []string{"127.0.0.99"}, Wait: -1}); CodeOf(err) != CodeRefused {
		t.Errorf("a lock was taken: %v", err)
	}
}

// A crash between the two files of the journal leaves an operation without a history: whoever
// goes on with it has one.
func TestHistoryIsBegunAgain(t *testing.T) {
	r := newRig(t)
	id := newOperationID()
	crashed := r.as(1000)
	r.must(crashed.Begin(t.Context(), operation(id, journal.KindDrain)), os.Remove(r.dir+"/state/history/"+id+".jsonl"))
	l := r.as(1000)
	r.must(l.Begin(t.Context(), resumption(id, journal.KindDrain)), l.Record(t.Context(), Recorded{Lines: []json.RawMessage{[]byte(`{"event":"x"}`)}}))
	h, err := l.History(t.Context(), HistoryQuery{ID: id})
	if err != nil || len(h.Lines) != 2 || h.Recorder == nil || h.Recorder.UID != 1000 {
		t.Errorf("%+v, %v", h, err)
	}
}

// Whoever began an operation resumes it, and root does, whose it is from then on. Its history goes
// on in the same file.
func TestResume(t *testing.T) {
	const ann, bob = 1000, 1001
	server := func(address string) journal.Located {
		return journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: address}}
	}
	for name, test := range map[string]struct {
		by     uint32
		result journal.Result // with which ann's ended; empty: it has not
		says   string         // of the refusal
	}{
		"who began it, after a crash":   {ann, "", ""},
		"who began it, after a failure": {ann, journal.ResultPartial, ""},
		"what is not drained":           {ann, journal.ResultNotDrained, ""},
		"root":                          {0, journal.ResultPartial, ""},
		"another user":                  {bob, journal.ResultPartial, "who began it can resume it, and root can"},
		"what is done here alone":       {ann, journal.ResultDone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, ctx := newRig(t), t.Context()
			id := newOperationID()
			first := r.as(ann)
			r.must(first.Begin(ctx, operation(id, journal.KindDrain, server("127.0.0.2"))))
			if test.result != "" {
				r.must(first.End(ctx, journal.Ending{Result: test.result}))
			}
			other := r.as(bob)
			r.must(first.Close(), other.Begin(ctx, operation(journal.NewID(time.Now(), id), journal.KindDrain, server("127.0.0.3"))), other.Close())

			again := operation(id, journal.KindDrain, server("127.0.0.2"), server("127.0.0.4"))
			again.Resume, again.Operation.Progress, again.Operation.Recorder = true, []byte(`{"steps":3}`), &journal.Recorder{UID: ann}
			l := r.as(test.by)
			err := l.Begin(ctx, again)
			if test.says != "" {
				if CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), test.says) {
					t.Errorf("%v", err)
				}
				return
			}
			r.must(err, l.Record(ctx, Recorded{Lines: []json.RawMessage{[]byte(`{"third":true}`)}}), l.Close())
			s := r.state()
			op := s.Operations[len(s.Operations)-1]
			if len(s.Operations) != 2 || op.ID != id || op.Result != "" || len(op.Servers) != 2 || string(op.Progress) != `{"steps":3}` || op.Recorder.UID != test.by {
				t.Errorf("%+v", s.Operations)
			}
			h, err := r.as(0).History(ctx, HistoryQuery{ID: id})
			if err != nil || len(h.Lines) != 3 || h.Recorder.UID != ann {
				t.Errorf("the history has %s of %v, %v", h.Lines, h.Recorder, err)
			}
		})
	}
}

// An operation that an LB has not seen begin is resumed there as well. One that began long ago, root
// alone resumes there.
func TestResumeOfWhatTheLBDoesNotKnow(t *testing.T) {
	r := newRig(t)
	recent := operation(newOperationID(), journal.KindDrain)
	recent.Resume = true
	r.must(r.as(1000).Begin(t.Context(), recent))
	old := operation(journal.NewID(time.Now().Add(-24*time.Hour), ""), journal.KindDrain)
	for range 2 {
		if err := r.as(1000).Begin(t.Context(), old); CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), "clock") {
			t.Errorf("an operation of yesterday: %v", err)
		}
		old.Resume = true
	}
	r.must(r.as(0).Begin(t.Context(), old))
	future := operation(journal.NewID(time.Now().Add(24*time.Hour), ""), journal.KindDrain)
	future.Resume = true
	if err := r.as(1000).Begin(t.Context(), future); CodeOf(err) != CodeRefused {
		t.Errorf("an operation of tomorrow: %v", err)
	}
}

// Root resumes an operation, and on one LB a user has begun another one with its ID: of another
// kind, or in another name than root has consented to. Root does not go on with that one.
func TestPlantedOperationIsNotResumed(t *testing.T) {
	const ann, bob = 1000, 1001
	for name, planted := range map[string]struct {
		by   uint32
		kind string
	}{"by another user": {bob, journal.KindDrain}, "of another kind": {ann, journal.KindUndrain}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, id := newRig(t), newOperationID()
			l := r.as(planted.by)
			r.must(l.Begin(t.Context(), operation(id, planted.kind)), l.Close())
			resumed := operation(id, journal.KindDrain)
			resumed.Resume, resumed.Operation.Recorder = true, &journal.Recorder{UID: ann}
			root := r.as(0)
			err := root.Begin(t.Context(), resumed)
			r.must(err, root.Close())
			s := r.state()
			op, _ := s.Find(id)
			if len(s.Operations) != 2 || op.Kind != journal.KindDrain || op.Recorder.UID != 0 {
				t.Errorf("%+v", s.Operations)
			}
			if h, err := r.as(0).History(t.Context(), HistoryQuery{ID: id}); err != nil || h.Recorder.UID != 0 {
				t.Errorf("the history is of %v, %v", h.Recorder, err)
			}
		})
	}
}

// A journal that is removed after an operation was resumed keeps nobody from undoing what it did.
func TestJournalIsRemovedAfterAResume(t *testing.T) {
	r := newRig(t)
	l, id := r.staged(0, down("127.0.0.2"))
	_, err := l.Load(t.Context(), LoadRequest{patience})
	r.must(err, l.Close())
	again := operation(id, journal.KindDrain)
	again.Resume, again.Operation.Recorder = true, &journal.Recorder{}
	next := r.as(0)
	r.must(next.Begin(t.Context(), again), os.Remove(filepath.Join(r.options().StateDir, "state.json")))
	report, err := next.Plan(t.Context(), down("127.0.0.2"))
	r.must(err, r.undo(next, report))
	if now := r.read(r.pool); now != r.was {
		t.Errorf("the edit is left behind:\n%s", now)
	}
}

// Who may drain may forget what anyone has drained, once the server is gone and its backend is locked.
// What the configuration has down, or may have, stays.
func TestForgetOfAnother(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(pool string) string
		locked  bool
		cleared bool
	}{
		{"gone", func(pool string) string { return strings.Replace(pool, "server 127.0.0.2", "# 127.0.0.2", 1) }, true, true},
		{"gone, and not locked", func(pool string) string { return strings.Replace(pool, "server 127.0.0.2", "# 127.0.0.2", 1) }, false, false},
		{"there", func(pool string) string { return pool }, true, false},
		{"in a file that cannot be read", func(pool string) string { return strings.Replace(pool, "}", "", 1) }, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := newOperationID()
			r.drained(id, "127.0.0.2")
			op, _ := r.state().Find(id)
			r.write(r.pool, test.change(r.read(r.pool)))
			l := r.as(1000)
			if test.locked {
				r.must(l.Lock(t.Context(), LockRequest{Backends: []string{"127.0.0.2"}}))
			}
			r.must(l.Begin(t.Context(), operation(newOperationID(), journal.KindForget, op.Servers...)))
			r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultDone}))
			s := r.state()
			if _, found := s.Find(id); found == test.cleared {
				t.Errorf("root's operation is there: %t; %d marks", found, len(s.Marks))
			}
		})
	}
}
