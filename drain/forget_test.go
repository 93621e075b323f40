package drain

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// other is the address of the rig's second server.
func (r *rig) other() string {
	_, rest, _ := strings.Cut(r.was, "# the target\n        server ")
	address, _, _ := strings.Cut(rest, ";")
	return address
}

// decommission removes the line of the target, as the owner of the configuration does.
func (r *rig) decommission() {
	r.write(strings.Replace(r.read(), "server "+r.unit.addr+" down; # the target", "", 1))
	r.reload()
}

// forget forgets the target.
func (r *rig) forget() (*event.Result, error) {
	sp := r.spec(spec.Forget)
	return Forget(context.Background(), sp, Options{Connect: connector{r}}, false)
}

// A drain of a server that was removed does not keep an operation that began before it from being
// resumed, which goes on with the servers that are left.
func TestResumeBesideAServerThatIsGone(t *testing.T) {
	r := newRig(t)
	sp := r.spec(spec.Drain)
	sp.Service, sp.Counter = "", spec.CounterLB
	sp.Targets = []string{r.unit.addr, r.other()}
	text, err := json.Marshal(sp.Recordable())
	if err != nil {
		t.Fatal(err)
	}
	sp.MinUp, sp.Given = 0, append(sp.Given, "min-up")
	target := journal.Server{Module: "http", Upstream: "app", Address: r.unit.addr}
	both := []journal.Located{{Server: target, File: r.conf}, {Server: journal.Server{Module: "http", Upstream: "app", Address: r.other()}, File: r.conf}}
	id := journal.NewID(time.Now().Add(-time.Hour), "")
	if err := r.journal().Update(t.Context(), func(s *journal.State) error {
		return s.Begin(journal.Operation{ID: id, Kind: journal.KindDrain, Targets: sp.Targets, Spec: text, Servers: both, Recorder: &journal.Recorder{}})
	}); err != nil {
		t.Fatal(err)
	}
	alone := r.spec(spec.Drain)
	alone.Counter = spec.CounterLB
	if _, err := r.run(alone); err != nil {
		t.Fatal(err)
	}
	r.decommission()
	// Another server keeps the pool up.
	resumed, err := Resumed(t.Context(), sp, id, Options{Connect: connector{r}})
	if err != nil {
		t.Fatal(err)
	}
	resumed.MinUp = 0
	told, err := r.run(resumed)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.read(), "server "+r.other()+" down;") {
		t.Errorf("the server that is left is not down: %s\n%v", r.read(), told.warnings())
	}
}

// A drain of a server that was removed does not contradict a later drain of the same host in another
// upstream.
func TestUndrainBesideARecordThatIsGone(t *testing.T) {
	r := newRig(t)
	old := r.spec(spec.Drain)
	old.Service = "old-app"
	if _, err := r.run(old); err != nil {
		t.Fatal(err)
	}
	r.write(strings.Replace(r.read(), "server "+r.unit.addr+" down; # the target", "", 1))
	r.write(strings.Replace(r.read(), "    server { listen", "    upstream another { server "+r.unit.addr+"; server "+r.other()+"; }\n    server { listen", 1))
	r.reload()
	if err := r.unit.start(); err != nil {
		t.Fatal(err)
	}
	was := r.read()
	if _, err := r.run(r.spec(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil {
		t.Fatal(err)
	}
	if r.read() != was || !r.unit.active() {
		t.Errorf("after the undrain the app runs: %t\n%s", r.unit.active(), r.read())
	}
}

// Forget clears what the journal has of a server that was removed, with an operation of its own in the
// history, and nothing else.
func TestForget(t *testing.T) {
	r := newRig(t)
	if _, err := r.run(r.spec(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	was := r.now()
	if _, err := r.forget(); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), "is still in the configuration\nhint: drainctl undrain") {
		t.Errorf("forgot a server that is there: %v", err)
	}
	if now := r.now(); !slices.Equal(now.state, was.state) {
		t.Errorf("the refusal has changed the journal:\n%s", now.state)
	}
	r.decommission()
	conf := r.read()
	result, err := r.forget()
	if err != nil || !result.Changed {
		t.Fatalf("%+v, %v", result, err)
	}
	s := r.state()
	if len(s.Marks) > 0 || len(s.Operations) > 0 || r.read() != conf || r.unit.active() {
		t.Errorf("it left %d marks, the operations %s, the app running: %t, and the file\n%s", len(s.Marks), listOf(s.Operations), r.unit.active(), r.read())
	}
	all, _, err := r.journal().List(t.Context())
	if err != nil || len(all) != 2 || !strings.Contains(string(all[1].First), `"kind":"forget"`) || !strings.Contains(string(all[1].Last), `"result":"done"`) {
		t.Errorf("the history has %d operations, %v", len(all), err)
	}
	if result, err = r.forget(); err != nil || result.Changed {
		t.Errorf("again: %+v, %v", result, err)
	}
}

// A forget that was killed is done by the next one, and is not resumed.
func TestForgetThatWasKilled(t *testing.T) {
	r := newRig(t)
	if _, err := r.run(r.spec(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	r.decommission()
	drained := r.state().Operations[0]
	killed := journal.Operation{ID: journal.NewID(time.Now(), drained.ID), Kind: journal.KindForget, Targets: drained.Targets, Servers: drained.Servers, Spec: drained.Spec, Recorder: &journal.Recorder{}}
	if err := r.journal().Update(t.Context(), func(s *journal.State) error { return s.Begin(killed) }); err != nil {
		t.Fatal(err)
	}
	if _, err := Resumed(t.Context(), r.spec(""), "", Options{Connect: connector{r}}); err == nil {
		t.Error("it can be resumed")
	}
	if _, err := r.forget(); err != nil {
		t.Fatal(err)
	}
	if s := r.state(); len(s.Marks) > 0 || len(s.Operations) > 0 {
		t.Errorf("it left %d marks and %s", len(s.Marks), listOf(s.Operations))
	}
}
