package balancer

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// loadsByOthers are the ways in which another process has nginx load the files.
var loadsByOthers = map[string]func(*rig){"reload": (*rig).reloadByOthers, "restart": (*rig).restartByOthers}

// edited stages a request and does not have it loaded.
func (r *rig) edited(l *Local, address string, want Want) {
	r.t.Helper()
	if a, err := l.Stage(r.t.Context(), wants(want, address)); err != nil || len(a.Edited) == 0 {
		r.t.Fatalf("%s %s: %+v, %v", address, want, a, err)
	}
}

// Another process has nginx load an edit before drainctl does. "As before" means that nginx loads the
// restored file.
func TestAsBeforeIsLoadedAfterAReloadByOthers(t *testing.T) {
	for how, load := range loadsByOthers {
		for name, edit := range map[string]func(*rig, *Local){
			"one edit": func(r *rig, l *Local) { r.edited(l, "127.0.0.2", Out); load(r) },
			"between two edits": func(r *rig, l *Local) {
				r.edited(l, "127.0.0.2", Out)
				load(r)
				r.edited(l, "127.0.0.3", Out)
			},
			"put back, not loaded": func(r *rig, l *Local) {
				r.edited(l, "127.0.0.2", Out)
				load(r)
				r.edited(l, "127.0.0.2", Back)
			},
			"the down of an operator": func(r *rig, l *Local) {
				q := wants(Back, "127.0.0.4")
				q.Force = true
				_, err := l.Stage(r.t.Context(), q)
				r.must(err)
				load(r)
			},
			"one operation after another": func(r *rig, l *Local) {
				r.stage(l, wants(Out, "127.0.0.2"))
				r.stage(l, wants(AsBefore, "127.0.0.2"))
				r.edited(l, "127.0.0.3", Out)
				load(r)
			},
			"nginx refuses the edit": func(r *rig, l *Local) {
				tests := 0
				l.options.Around = func(what string, do func() error) error {
					if what == "nginx -t" {
						tests++
					}
					if what == "nginx -t" && tests == 2 {
						load(r)
						return errors.New("it refuses")
					}
					return do()
				}
				q := wants(Back, "127.0.0.4")
				q.Force = true
				if _, err := l.Stage(r.t.Context(), q); err == nil {
					r.t.Error("the edit was not refused")
				}
			},
			"a file is not loaded": func(r *rig, l *Local) {
				more := r.include()
				l.options.Around = func(what string, do func() error) error {
					if what == "replace "+more {
						l.options.Around = nil
						load(r)
					}
					return do()
				}
				q := wants(Out, "127.0.0.2")
				q.Wants[0].Servers = append(q.Wants[0].Servers, journal.Server{Module: "http", Upstream: "more", Address: "127.0.0.7:80"})
				_, err := l.Stage(r.t.Context(), q)
				r.must(err)
			},
			"the second edit is refused": func(r *rig, l *Local) {
				r.edited(l, "127.0.0.2", Out)
				load(r)
				if _, err := l.Stage(r.t.Context(), wants(Out, "127.0.0.99")); err == nil {
					r.t.Error("there is no such server")
				}
			},
		} {
			t.Run(how+", "+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				l, _ := r.begins(1000, journal.KindDrain)
				edit(r, l)
				without := r.workers()
				q := wants(AsBefore, "127.0.0.2", "127.0.0.3", "127.0.0.4")
				q.Wants[0].Servers = append(q.Wants[0].Servers, journal.Server{Module: "http", Upstream: "more", Address: "127.0.0.7:80"})
				a := r.stage(l, q)
				if more, err := os.ReadFile(r.dir + "/more.conf"); err == nil && string(more) != moreServers {
					t.Errorf("the other file is\n%s", more)
				}
				if now := r.read(r.pool); now != r.was || !a.NeedsLoad || r.workers()[0] == without[0] {
					t.Errorf("needs a load %t, the file is\n%s", a.NeedsLoad, now)
				}
				r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
				if s := r.state(); len(s.Marks) > 0 || len(s.Operations) > 0 {
					t.Errorf("the journal has %+v, %+v", s.Marks, s.Operations)
				}
			})
		}
	}
}

// An edit that another process has had nginx load stays when the client dies, as an edit does that
// drainctl has loaded. A later edit is undone. Who resumes the operation can undo the first.
func TestEditLoadedByOthersStays(t *testing.T) {
	for how, load := range loadsByOthers {
		for _, more := range []bool{false, true} {
			name := how
			if more {
				name += ", between two edits"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				l, id := r.begins(1000, journal.KindDrain)
				r.edited(l, "127.0.0.2", Out)
				loaded := r.read(r.pool)
				load(r)
				if more {
					r.edited(l, "127.0.0.3", Out)
				}
				r.must(l.Close())
				if now := r.read(r.pool); now != loaded {
					t.Errorf("the file is\n%s\nand nginx has loaded\n%s", now, loaded)
				}
				if s := r.state(); len(s.Marks) != 1 || s.Marks[0].Server != poolServer("127.0.0.2") || s.Marks[0].Unsent {
					t.Errorf("the journal has the marks %+v", s.Marks)
				}
				without := r.workers()
				next := r.as(1000)
				r.must(next.Begin(t.Context(), resumption(id, journal.KindDrain)))
				a := r.stage(next, wants(AsBefore, "127.0.0.2", "127.0.0.3"))
				if now := r.read(r.pool); now != r.was || !a.NeedsLoad || r.workers()[0] == without[0] {
					t.Errorf("resumed: needs a load %t, the file is\n%s", a.NeedsLoad, now)
				}
			})
		}
	}
}

// An operation cannot end as rolled back while an edit of it stays that others have had nginx load.
func TestEndAfterAReloadByOthers(t *testing.T) {
	r := newRig(t)
	l, id := r.begins(1000, journal.KindDrain)
	r.edited(l, "127.0.0.2", Out)
	loaded := r.read(r.pool)
	r.reloadByOthers()
	r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
	s := r.state()
	if op, _ := s.Find(id); op.Result != journal.ResultPartial || len(s.MarksOn(poolServer("127.0.0.2"))) != 1 || r.read(r.pool) != loaded {
		t.Errorf("the operation has ended as %q, with the marks %+v and the file\n%s", op.Result, s.Marks, r.read(r.pool))
	}
}

// An undrain that others have had nginx load gives the mark back to the drain when it is undone.
func TestUndrainLoadedByOthersAsBefore(t *testing.T) {
	for _, another := range []bool{false, true} {
		r := newRig(t)
		drain := newOperationID()
		r.drained(drain, "127.0.0.2")
		drained := r.read(r.pool)
		l, id := r.begins(0, journal.KindUndrain)
		r.edited(l, "127.0.0.2", Back)
		r.reloadByOthers()
		if another {
			r.must(l.Close())
			if now := r.read(r.pool); now != r.was {
				t.Errorf("the file is\n%s\nand nginx has loaded\n%s", now, r.was)
			}
			l = r.as(0)
			r.must(l.Begin(t.Context(), resumption(id, journal.KindUndrain)))
		}
		a := r.stage(l, wants(AsBefore, "127.0.0.2"))
		r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
		s := r.state()
		if marks := s.MarksOn(poolServer("127.0.0.2")); !a.NeedsLoad || r.read(r.pool) != drained || len(marks) != 1 || marks[0].Operation != drain || marks[0].Cleared != nil {
			t.Errorf("another agent %t: needs a load %t, marks %+v, the file is\n%s", another, a.NeedsLoad, marks, r.read(r.pool))
		}
	}
}

// An edit takes a server out; a later one puts it back and takes another out. What of them nginx has not
// loaded is undone when the client dies, and when the agent is killed.
func TestSeveralEditsAreUndone(t *testing.T) {
	for name, test := range map[string]struct{ loaded, killed, again bool }{
		"neither is loaded":                           {},
		"the first is loaded":                         {loaded: true},
		"neither is loaded, killed":                   {killed: true},
		"the first is loaded, killed":                 {loaded: true, killed: true},
		"the first is loaded, and made again":         {loaded: true, again: true},
		"the first is loaded, and made again, killed": {loaded: true, again: true, killed: true},
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
			if test.again {
				r.edited(l, "127.0.0.2", Out)
			}
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

// Another process reloads nginx, which reads the edited file and takes its time for the rest of the
// configuration. Its workers come after drainctl has begun to undo the edit.
func TestReloadByOthersIsUnderWay(t *testing.T) {
	for name, test := range map[string]struct {
		undo func(*rig, *Local) (needsLoad bool)
		kept bool
	}{
		"as before": {func(r *rig, l *Local) bool { return r.stage(l, wants(AsBefore, "127.0.0.2")).NeedsLoad }, false},
		"closed":    {func(r *rig, l *Local) bool { r.must(l.Close()); return true }, true},
		"killed": {func(r *rig, l *Local) bool {
			r.kill(l)
			next, _ := r.begins(0, journal.KindDrain)
			r.stage(next, wants(Back, "127.0.0.9"))
			return true
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			// nginx reads this file when it loads the configuration; drainctl does not.
			slow := r.dir + "/slow"
			r.write(slow, "")
			r.write(r.conf, strings.Replace(r.read(r.conf), "include pool.conf;", "include pool.conf; ssl_password_file slow;", 1))
			l, _ := r.begins(0, journal.KindDrain)
			r.edited(l, "127.0.0.2", Out)
			edited, before := r.read(r.pool), r.workers()
			time.Sleep(apart)
			r.must(os.Remove(slow), syscall.Mkfifo(slow, 0o600))
			r.must(syscall.Kill(r.master, syscall.SIGHUP))
			r.until("nginx waits for the file", func() bool {
				in, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", r.master))
				return err == nil && strings.Contains(string(in), "wait_for_partner")
			})
			r.must(os.Rename(slow, slow+".old"))
			r.write(slow, "")
			time.AfterFunc(time.Second/2, func() {
				if f, err := os.OpenFile(slow+".old", os.O_WRONLY, 0); err == nil {
					f.Close()
				}
			})
			needsLoad := test.undo(r, l)
			r.until("nginx serves the edit", func() bool {
				now := r.workers()
				return len(now) > 0 && now[0] != before[0]
			})
			want := r.was
			if test.kept {
				want = edited
			}
			if now := r.read(r.pool); now != want || !needsLoad {
				t.Errorf("needs a load %t, the file is\n%s", needsLoad, now)
			}
		})
	}
}

// An edit that nginx has not loaded is undone without a reload.
func TestEditNotLoadedByOthers(t *testing.T) {
	for name, others := range map[string]func(*rig){
		"their reload fails": func(r *rig) {
			was := r.read(r.conf)
			r.write(r.conf, was+"nonsense;\n")
			r.must(syscall.Kill(r.master, syscall.SIGHUP))
			r.until("the reload has failed", func() bool { return strings.Contains(r.read(r.dir+"/error.log"), "nonsense") })
			r.write(r.conf, was)
		},
		"their reload fails, and the configuration stays broken": func(r *rig) {
			r.write(r.conf, "}\n"+r.read(r.conf))
			r.must(syscall.Kill(r.master, syscall.SIGHUP))
			r.until("the reload has failed", func() bool { return strings.Contains(r.read(r.dir+"/error.log"), `unexpected "}"`) })
		},
		"nginx was stopped": (*rig).stop,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, undo := range []func(*rig, *Local) error{
				func(r *rig, l *Local) error {
					a, err := l.Stage(t.Context(), wants(AsBefore, "127.0.0.2"))
					if a.NeedsLoad {
						t.Error("it is to be loaded")
					}
					return err
				},
				func(r *rig, l *Local) error { return l.Close() },
			} {
				r := newRig(t)
				l, _ := r.begins(1000, journal.KindDrain)
				r.edited(l, "127.0.0.2", Out)
				others(r)
				r.must(undo(r, l))
				if now := r.read(r.pool); now != r.was {
					t.Errorf("the file is\n%s", now)
				}
				if s := r.state(); len(s.Marks) > 0 {
					t.Errorf("the journal has the marks %+v", s.Marks)
				}
			}
		})
	}
}

// An operator edits the file after drainctl, and has nginx load both edits. The operator's stays.
func TestEditOfAnOperatorIsLoaded(t *testing.T) {
	for how, load := range loadsByOthers {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l, _ := r.begins(1000, journal.KindDrain)
			r.edited(l, "127.0.0.2", Out)
			r.write(r.pool, "# by hand\n"+r.read(r.pool))
			load(r)
			without := r.workers()
			a := r.stage(l, wants(AsBefore, "127.0.0.2"))
			if now := r.read(r.pool); now != "# by hand\n"+r.was || !a.NeedsLoad || r.workers()[0] == without[0] {
				t.Errorf("needs a load %t, the file is\n%s", a.NeedsLoad, now)
			}
		})
	}
}

// nginx serves an edit, and does not load the restored file. It continues with the edit, whoever has had
// nginx load that: this is not as before.
func TestEditIsServedAfterAFailedReload(t *testing.T) {
	for name, edit := range map[string]func(*rig, *Local, string) *Local{
		"of another agent": func(r *rig, l *Local, id string) *Local {
			r.stage(l, wants(Out, "127.0.0.2"))
			r.must(l.Close())
			next := r.as(0)
			r.must(next.Begin(r.t.Context(), resumption(id, journal.KindDrain)))
			r.stage(next, wants(Out, "127.0.0.2"))
			return next
		},
		"the second edit": func(r *rig, l *Local, id string) *Local {
			r.stage(l, wants(Out, "127.0.0.2"))
			r.edited(l, "127.0.0.3", Out)
			return l
		},
		"loaded by others": func(r *rig, l *Local, id string) *Local {
			r.edited(l, "127.0.0.2", Out)
			r.reloadByOthers()
			r.edited(l, "127.0.0.3", Out)
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			// nginx accepts another key for a zone that is in use, and then cannot load it.
			r.write(r.conf, strings.Replace(r.read(r.conf), "access_log off;", "access_log off; limit_req_zone $binary_remote_addr zone=one:1m rate=100r/s;", 1))
			r.reloadByOthers()
			l, id := r.begins(0, journal.KindDrain)
			l = edit(r, l, id)
			r.write(r.conf, strings.Replace(r.read(r.conf), "$binary_remote_addr", "$http_host", 1))
			a, err := l.Stage(t.Context(), wants(AsBefore, "127.0.0.2", "127.0.0.3"))
			r.must(err)
			if now := r.read(r.pool); now != r.was || !a.NeedsLoad {
				t.Errorf("needs a load %t, the file is\n%s", a.NeedsLoad, now)
			}
			if done, err := l.Load(t.Context(), LoadRequest{patience}); err == nil {
				t.Errorf("as before: %q", done.Notices)
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
