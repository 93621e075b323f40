package balancer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// stopped is wants where nginx may be stopped.
func stopped(want Want, addresses ...string) StageRequest {
	q := wants(want, addresses...)
	q.AcceptPending, q.AllowStopped = false, true
	return q
}

// load loads what was staged, and returns what it has done.
func (r *rig) load(l Balancer) Loaded {
	r.t.Helper()
	done, err := l.Load(r.t.Context(), LoadRequest{patience})
	r.must(err)
	return done
}

// beginStart starts nginx and returns when nginx has read its files. Until finish is called, nginx then waits
// to open its log, a FIFO without a reader, and has neither a title nor a PID file (nginx opens its logs after
// ngx_conf_parse).
func (r *rig) beginStart() (finish func()) {
	r.t.Helper()
	fifo := fmt.Sprintf("%s/start%d.log", r.dir, time.Now().UnixNano())
	r.must(syscall.Mkfifo(fifo, 0o600))
	r.nginx = exec.Command("nginx", "-c", r.conf, "-e", r.dir+"/error.log", "-g", "error_log "+fifo+";")
	r.must(r.nginx.Start())
	r.master = r.nginx.Process.Pid
	r.until("nginx waits for the reader of its log", func() bool {
		wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", r.master))
		return strings.Contains(string(wchan), "fifo") || strings.Contains(string(wchan), "wait_for_partner")
	})
	var reader *os.File
	r.t.Cleanup(func() { reader.Close() })
	return func() {
		reader, _ = os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0) // an error: the test is over
	}
}

// isLoaded reports whether the nginx that runs has loaded a file that is older than it.
func (r *rig) isLoaded() bool {
	r.t.Helper()
	now, err := nginx.Binary{Path: "nginx"}.Processes(r.master)
	r.must(err)
	at, err := nginx.ChangeTime(r.pool)
	r.must(err)
	return len(now.Serving()) > 0 && now.Loaded().After(at)
}

// If it is allowed, drainctl edits and tests the files of a stopped nginx, there and back. Doing it twice
// changes nothing, and the watch continues when nginx starts with these files.
func TestStoppedNginx(t *testing.T) {
	r := newRig(t)
	r.stop()
	l, _ := r.begins(0, journal.KindDrain)
	if _, err := l.Stage(t.Context(), wants(Out, "127.0.0.2")); !errors.Is(err, nginx.ErrNotRunning) || r.read(r.pool) != r.was {
		t.Fatalf("not allowed: %v", err)
	}
	down := strings.Replace(r.was, "127.0.0.2:8080 weight=2", "127.0.0.2:8080 weight=2 down", 1)
	if a, err := l.Stage(t.Context(), stopped(Out, "127.0.0.2")); err != nil || !a.NeedsLoad || r.read(r.pool) != down {
		t.Fatalf("%+v, %v; the file is\n%s", a, err, r.read(r.pool))
	}
	if done := r.load(l); !done.Stopped || len(done.Notices) != 1 || !strings.Contains(done.Notices[0], "nginx is not running") {
		t.Errorf("loaded: %+v", done)
	}
	if names := r.lockNames(); len(names) > 0 {
		t.Errorf("the locks %q are held", names)
	}
	if a := r.stage(l, stopped(Out, "127.0.0.2")); len(a.Edited) > 0 || a.NeedsLoad {
		t.Errorf("again: %+v", a)
	}
	watch := WatchRequest{Targets: []string{"127.0.0.2"}}
	for _, state := range []string{"stopped", "started"} {
		if seen, err := l.Watch(t.Context(), watch); err != nil || seen.Drift != nil {
			t.Errorf("%s: %+v, %v", state, seen, err)
		}
		if seen, err := l.Watch(t.Context(), WatchRequest{Generation: true}); err != nil || seen.Generation == nil || (seen.Generation.Serving > 0) != (state == "started") {
			t.Errorf("%s: %+v, %v", state, seen.Generation, err)
		}
		if state == "stopped" {
			time.Sleep(apart)
			r.start()
		}
	}
	r.stop()
	r.stage(l, stopped(AsBefore, "127.0.0.2"))
	if now := r.read(r.pool); now != r.was {
		t.Errorf("not as before:\n%s", now)
	}
	r.must(l.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack}))
	if s := r.state(); len(s.Marks) > 0 || len(s.Operations) > 0 {
		t.Errorf("the journal has %+v, %+v", s.Marks, s.Operations)
	}
}

// Somebody clears the down of an nginx that is stopped, and starts it.
func TestDriftWhileStopped(t *testing.T) {
	r := newRig(t)
	r.stop()
	l, _ := r.begins(0, journal.KindDrain)
	r.stage(l, stopped(Out, "127.0.0.2"))
	r.write(r.pool, r.was)
	for _, state := range []string{"stopped", "started"} {
		seen, err := l.Watch(t.Context(), WatchRequest{Targets: []string{"127.0.0.2"}})
		if err != nil || seen.Drift == nil || seen.Drift.Reason != DriftDownRemoved {
			t.Errorf("%s: %+v, %v", state, seen.Drift, err)
		}
		if state == "stopped" {
			r.start()
		}
	}
}

// A failover starts nginx at any moment. What it has read before the edit is not taken for what it
// serves: it is reloaded then as any other, however late its master is seen.
func TestNginxStartsDuringTheEdit(t *testing.T) {
	for name, test := range map[string]struct {
		at     string // before which effect it starts
		finish time.Duration
	}{
		"before the edit":                  {"replace ", 0},
		"before the edit, and is slow":     {"replace ", 500 * time.Millisecond},
		"before the reload":                {"journal: reload", 0},
		"before the look, and is slow":     {"reload nginx", 300 * time.Millisecond},
		"before the last look":             {"look for processes of nginx", 0},
		"before the last look and is slow": {"look for processes of nginx", 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.stop()
			o, edited, started := r.options(), false, false
			o.Around = func(what string, do func() error) error {
				edited = edited || strings.HasPrefix(what, "replace ")
				if strings.HasPrefix(what, test.at) && edited && !started {
					started = true
					finish := r.beginStart()
					if test.finish == 0 {
						finish()
						r.until("nginx serves", func() bool { return len(r.workers()) > 0 })
					} else {
						time.AfterFunc(test.finish, finish)
					}
				}
				return do()
			}
			l := NewLocal(o)
			defer l.Close()
			r.began(l, testID, down("127.0.0.2"))
			if _, err := l.Stage(t.Context(), stopped(Out, "127.0.0.2")); err != nil {
				t.Fatal(err)
			}
			if done := r.load(l); done.Stopped || done.Generation.Serving != 1 || !started || !r.isLoaded() {
				t.Errorf("loaded: %+v; nginx serves the edit: %t", done, r.isLoaded())
			}
		})
	}
}

// nginx reads an edit while it starts, and the edit is undone before anything was sent: nginx loads the
// files as they were.
func TestNginxStartsBeforeTheUndo(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprint("slow ", slow), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.stop()
			l, _ := r.begins(0, journal.KindDrain)
			if _, err := l.Stage(t.Context(), stopped(Out, "127.0.0.2")); err != nil {
				t.Fatal(err)
			}
			finish := r.beginStart()
			if slow {
				time.AfterFunc(300*time.Millisecond, finish)
			} else {
				finish()
				r.until("nginx serves", func() bool { return len(r.workers()) > 0 })
			}
			if a := r.stage(l, stopped(AsBefore, "127.0.0.2")); !a.NeedsLoad || r.read(r.pool) != r.was || !r.isLoaded() {
				t.Errorf("%+v; nginx serves the files: %t", a, r.isLoaded())
			}
		})
	}
}

// The plan says of an nginx that does not run whether it is known to be stopped.
func TestPlanOfStoppedNginx(t *testing.T) {
	r := newRig(t)
	worker := r.workers()[0]
	r.must(r.nginx.Process.Kill()) // its workers go on
	_ = r.nginx.Wait()
	problem := func() Problem {
		t.Helper()
		report, err := NewLocal(r.options()).Plan(t.Context(), down("127.0.0.2"))
		r.must(err)
		if len(report.Problems) != 1 || report.Problems[0].Code != ProblemRunning {
			t.Fatalf("problems: %+v", report.Problems)
		}
		return report.Problems[0]
	}
	if p := problem(); p.Override != "" || !strings.Contains(p.Text, fmt.Sprintf("nginx (PID %d) may have", worker)) {
		t.Errorf("workers without a master: %+v", p)
	}
	r.must(syscall.Kill(worker, syscall.SIGKILL))
	r.until("the worker has ended", func() bool { return syscall.Kill(worker, 0) != nil })
	if p := problem(); p.Override != AllowStopped || !strings.Contains(p.Text, "nginx is not running") {
		t.Errorf("stopped: %+v", p)
	}
}
