package balancer

import (
	"testing"
	"time"
)

// TestUndoneEditNeedsNoReload: an edit that was undone before nginx has loaded it is
// nothing to reload for, unless somebody has reloaded nginx in between.
func TestUndoneEditNeedsNoReload(t *testing.T) {
	r := newRig(t)
	l := NewLocal(r.options())
	defer l.Close()
	apply := func(isDown, reload bool) {
		t.Helper()
		q := down("127.0.0.2")
		q.Want, q.Force = wantOf(isDown), true
		report, err := l.Plan(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Stage(t.Context(), stageOf(report, q.Want))
		if err != nil || len(a.Edited) == 0 || a.NeedsLoad != reload {
			t.Errorf("down %t: needs a reload %t, edited %d files, %v; want %t", isDown, a.NeedsLoad, len(a.Edited), err, reload)
		}
	}
	r.began(l, testID, down("127.0.0.2"))
	apply(true, true)
	apply(false, false)
	apply(true, true)
	if _, err := l.Load(t.Context(), LoadRequest{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	apply(false, true)
	apply(true, false)
	apply(false, true)
	r.reloadByOthers()
	apply(true, true)
}
