package balancer

import (
	"testing"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// edited stages a request and does not have it loaded.
func (r *rig) edited(l *Local, address string, want Want) {
	r.t.Helper()
	if a, err := l.Stage(r.t.Context(), wants(want, address)); err != nil || len(a.Edited) == 0 {
		r.t.Fatalf("%s %s: %+v, %v", address, want, a, err)
	}
}

// An edit takes a server out; a later one puts it back and takes another out. What of them nginx has not
// loaded is undone when the client dies, and when the agent is killed.
func TestSeveralEditsAreUndone(t *testing.T) {
	for name, test := range map[string]struct{ loaded, killed bool }{
		"neither is loaded":           {},
		"the first is loaded":         {loaded: true},
		"neither is loaded, killed":   {killed: true},
		"the first is loaded, killed": {loaded: true, killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l, id := r.begins(0, journal.KindRun)
			r.edited(l, "127.0.0.2", Out)
			want, marks := r.was, 0
			if test.loaded {
				want, marks = r.read(r.pool), 1
				_, err := l.Load(t.Context(), LoadRequest{patience})
				r.must(err)
			}
			q := wants(Out, "127.0.0.3")
			q.Wants = append(q.Wants, wants(Back, "127.0.0.2").Wants...)
			_, err := l.Stage(t.Context(), q)
			r.must(err)
			if test.killed {
				r.kill(l)
				next, _ := r.begins(1000, journal.KindDrain)
				_, err := next.Stage(t.Context(), wants(Back, "127.0.0.9"))
				r.must(err)
			}
			r.must(l.Close())
			if now := r.read(r.pool); now != want {
				t.Errorf("the file is\n%s\nwant\n%s", now, want)
			}
			s := r.state()
			if len(s.Marks) != marks || marks == 1 && s.Marks[0].Operation != id || len(s.UnsentOf(id)) > 0 {
				t.Errorf("the journal has the marks %+v", s.Marks)
			}
		})
	}
}

// FuzzInverse: whatever edits of one file were made, the splices that the journal
// keeps of them give the old bytes back.
func FuzzInverse(f *testing.F) {
	f.Add("server a down down;", []byte{8, 5, 0, 13, 5, 0})
	f.Add("0123456789", []byte{2, 0, 1, 2, 0, 1, 8, 2, 0})
	f.Add("server a; server b down;", []byte{8, 0, 1, 18, 5, 0})
	f.Fuzz(func(t *testing.T, src string, raw []byte) {
		var edits []nginx.Edit
		var splices []journal.Splice
		at := map[int]bool{}
		for ; len(raw) >= 3; raw = raw[3:] {
			e := nginx.Edit{Start: int(raw[0]), End: int(raw[0]) + int(raw[1])}
			if raw[2]%2 == 1 {
				e.New = " down"
			}
			if at[e.Start] || e.End > len(src) { // each line is edited in one way
				continue
			}
			at[e.Start] = true
			edits = append(edits, e)
			splices = append(splices, journal.Splice{At: e.Start, Old: src[e.Start:e.End], New: e.New})
		}
		now, err := nginx.Apply(src, edits)
		if err != nil {
			return
		}
		// A fragment that two upstreams include has each of its splices twice.
		for _, all := range [][]journal.Splice{splices, append(splices, splices...)} {
			if was := inverse(now, all); was != src {
				t.Fatalf("%q became %q by %v, and %q by the inverse", src, now, edits, was)
			}
		}
	})
}
