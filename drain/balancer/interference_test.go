package balancer

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// lockNames are the names of the locks that are held on the rig.
func (r *rig) lockNames() (names []string) {
	r.t.Helper()
	holders, err := journal.Journal{Dir: r.options().StateDir}.Holders()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range holders {
		names = append(names, h.Name)
	}
	return names
}

// A caller that is refused one of several locks holds none of them.
func TestRefusedLock(t *testing.T) {
	r := newRig(t)
	lock := func(c *Client, backends ...string) error {
		return c.Lock(t.Context(), LockRequest{Backends: backends, Holder: journal.Holder{User: "ann", Time: time.Now()}})
	}
	first, second, third := r.agent(), r.agent(), r.agent()
	if err := lock(first, "127.0.0.3"); err != nil {
		t.Fatal(err)
	}
	if err := lock(second, "127.0.0.2", "127.0.0.3", "127.0.0.4"); CodeOf(err) != CodeLocked {
		t.Fatalf("a lock that another holds: %v", err)
	}
	if names := r.lockNames(); len(names) != 1 || BackendOf(journal.Holder{Name: names[0]}) != "127.0.0.3" {
		t.Errorf("held after the refusal: %q", names)
	}
	if err := lock(third, "127.0.0.2", "127.0.0.4"); err != nil {
		t.Errorf("the locks that were not refused: %v", err)
	}
}

// An operation keeps others from editing until nginx has loaded its edit, and no longer:
// where there is nothing to load, others may edit at once.
func TestConfigurationLock(t *testing.T) {
	r := newRig(t)
	c := r.agent()
	q := down("127.0.0.2")
	apply := func(isDown, needsReload bool) {
		t.Helper()
		q.Want, q.Force = wantOf(isDown), true
		report, err := c.Plan(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Stage(t.Context(), stageOf(report, q.Want))
		if err != nil || a.NeedsLoad != needsReload {
			t.Fatalf("down %t: needs a reload %t, %v; want %t", isDown, a.NeedsLoad, err, needsReload)
		}
		if names := r.lockNames(); (len(names) > 0) != needsReload {
			t.Fatalf("down %t: the locks %q are held; a reload is needed: %t", isDown, names, needsReload)
		}
	}
	r.began(c, testID, q)
	apply(false, false) // as wanted
	apply(true, true)
	apply(false, false) // undone before any reload
	apply(true, true)
	if _, err := c.Load(t.Context(), LoadRequest{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	if names := r.lockNames(); len(names) > 0 {
		t.Fatalf("after the reload the locks %q are held", names)
	}
	apply(true, false) // as wanted, and loaded
	other := r.agent()
	report := r.began(other, journal.NewID(time.Now(), testID), down("127.0.0.3"))
	if _, err := other.Stage(t.Context(), stageOf(report, Out)); err != nil {
		t.Errorf("another operation: %v", err)
	}
}

// A file that somebody has changed since nginx was loaded is not put live by the way,
// also if it was changed after the plan and holds no server of the operation.
func TestPendingFile(t *testing.T) {
	r := newRig(t)
	c := r.agent()
	report := r.began(c, testID, down("127.0.0.2"))
	r.write(r.conf, r.read(r.conf)+"# halfway through\n")
	all := stageOf(report, Out)
	_, err := c.Stage(t.Context(), all)
	if CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), "a reload would put it live: "+r.conf) || r.read(r.pool) != r.was {
		t.Errorf("error %v, the file is\n%s", err, r.read(r.pool))
	}
	all.AcceptPending = true
	if a, err := c.Stage(t.Context(), all); err != nil || !strings.Contains(strings.Join(a.Notices, "\n"), r.conf) || r.read(r.pool) == r.was {
		t.Errorf("accepted: notices %q, error %v", a.Notices, err)
	}
}

// Somebody changes the file after it was planned or read. It is neither written over nor
// edited at places that were right before, and the journal says nothing of an edit.
func TestFileChangesBeforeTheEdit(t *testing.T) {
	for _, at := range []string{"lock the configuration", "journal: stage an edit", "replace "} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t)
			swap := strings.NewReplacer("127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.2")
			theirs, changed := swap.Replace(r.was), false
			o := r.options()
			o.Around = func(what string, do func() error) error {
				if strings.HasPrefix(what, at) && !changed {
					changed = true
					r.write(r.pool, theirs)
				}
				return do()
			}
			far, ended := serve(NewLocal(o))
			c, err := Connect(t.Context(), "lb", "test", far)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { c.Close(); <-ended }()
			apply := func(report *Report) error {
				all := stageOf(report, Out)
				all.AcceptPending = true
				_, err := c.Stage(t.Context(), all)
				return err
			}
			report := r.began(c, testID, down("127.0.0.2"))
			if err := apply(report); CodeOf(err) != CodeChanged || !changed || r.read(r.pool) != theirs {
				t.Fatalf("error %v, the file is\n%s", err, r.read(r.pool))
			}
			s, err := c.State(t.Context())
			if err != nil || len(s.Marks) > 0 || len(s.Operations) != 1 {
				t.Errorf("the journal has the marks %+v and the operations %+v, error %v", s.Marks, s.Operations, err)
			}
			if report, err = c.Plan(t.Context(), down("127.0.0.2")); err == nil {
				err = apply(report)
			}
			want := strings.Replace(theirs, "127.0.0.2:8080", "127.0.0.2:8080 down", 1)
			if now := r.read(r.pool); err != nil || now != want {
				t.Errorf("planned again: error %v, the file is\n%s\nwant\n%s", err, now, want)
			}
		})
	}
}

// An upstream that drainctl's scanner and gonginx read in different ways is not edited,
// also for a caller that has not asked for a plan.
func TestCrossCheckBeforeTheEdit(t *testing.T) {
	r := newRig(t)
	text := "upstream pool {\n\tserver 127.0.0.2:8080;\n\t\"server\" 127.0.0.3:8080;\n}\n"
	r.write(r.pool, text)
	if err := (nginx.Binary{Path: "nginx", Conf: r.conf}).Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	const says = "the cross-check failed"
	c := r.agent()
	if _, err := c.Plan(t.Context(), down("127.0.0.2")); CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), says) {
		t.Errorf("the plan: %v", err)
	}
	op := journal.Operation{ID: testID, Kind: journal.KindDrain, Targets: []string{"127.0.0.2"}}
	if err := c.Begin(t.Context(), Beginning{Operation: op, Lines: []json.RawMessage{[]byte("{}")}}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Stage(t.Context(), StageRequest{AcceptPending: true, Files: map[string]string{r.pool: hash(text)}, Wants: []Wanted{{Out, []journal.Server{
		{Module: "http", Upstream: "pool", Address: "127.0.0.2:8080"},
	}}}})
	if CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), says) || r.read(r.pool) != text {
		t.Errorf("error %v, the file is\n%s", err, r.read(r.pool))
	}
}

// The files and the workers of nginx are dated by different clocks. drainctl leaves so
// much time between its edit and the reload that both say which came first. The journal knows of
// the reload before nginx does: an agent that is killed right after it has loaded its edit.
func TestReloadComesAfterTheEdit(t *testing.T) {
	r := newRig(t)
	o := r.options()
	o.Nginx.TestCommand = []string{"true"} // takes no time
	var edited time.Time
	var gap time.Duration
	unsent := 0
	o.Around = func(what string, do func() error) error {
		if what == "reload nginx" {
			gap, unsent = time.Since(edited), len(r.state().UnsentOf(testID))
		}
		err := do()
		if what == "replace "+r.pool {
			edited = time.Now()
		}
		return err
	}
	l := NewLocal(o)
	defer l.Close()
	report := r.began(l, testID, down("127.0.0.2"))
	if _, err := l.Stage(t.Context(), stageOf(report, Out)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		reload func() error
	}{
		{"reload", func() error { _, err := l.Load(t.Context(), LoadRequest{Timeout: patience}); return err }},
		{"undo", func() error { return r.undo(l, report) }},
	} {
		if err := step.reload(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if gap < apart {
			t.Errorf("%s: nginx is told %s after the edit", step.name, gap)
		}
		if unsent > 0 {
			t.Errorf("%s: nginx is told, and by the journal it was not", step.name)
		}
	}
}
