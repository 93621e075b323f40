package balancer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A rig is a real nginx on loopback with a configuration of two files.
type rig struct {
	t      *testing.T
	dir    string
	conf   string // the main file
	pool   string // the file with the upstream
	was    string // its bytes at the start
	nginx  *exec.Cmd
	master int
}

// patience bounds every wait of these tests; nothing is ever waited for that long.
const patience = time.Minute

// apart is how far a change of a file and a load of nginx must be apart for the
// clocks of files and of processes to tell which came first.
const apart = 100 * time.Millisecond

// newRig starts the nginx, with a command before it if one is given.
func newRig(t *testing.T, under ...string) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test reloads an nginx as drainctl does, and must be root for that")
	}
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, conf: dir + "/nginx.conf", pool: dir + "/pool.conf"}
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	front := l.Addr().String()
	l.Close()
	r.was = "upstream pool {\r\n\tserver 127.0.0.2:8080 weight=2;\n    server 127.0.0.3:8080 ;\n    server 127.0.0.4:8080  down ; # for good\n}"
	r.write(r.pool, r.was)
	r.write(r.conf, fmt.Sprintf(`worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
    include pool.conf;
    server { listen %[2]s; location / { proxy_pass http://pool; } }
}
`, dir, front))
	r.write(dir+"/other.conf", "upstream other { server 127.0.0.9:80; }\n") // which nobody includes
	time.Sleep(apart)
	t.Cleanup(func() { r.stop() })
	r.start(under...)
	time.Sleep(apart)
	return r
}

// start starts the nginx, with a command before it if one is given.
func (r *rig) start(under ...string) {
	r.t.Helper()
	args := append(under, "nginx", "-c", r.conf, "-e", r.dir+"/error.log")
	r.nginx = exec.Command(args[0], args[1:]...)
	if err := r.nginx.Start(); err != nil {
		r.t.Fatalf("this test needs nginx: testdata/lab/setup.sh installs it (%v)", err)
	}
	r.master = r.nginx.Process.Pid
	r.until("nginx serves", func() bool { return len(r.workers()) > 0 })
}

func (r *rig) stop() {
	_ = r.nginx.Process.Signal(syscall.SIGTERM)
	_ = r.nginx.Wait()
}

// reloadByOthers has another process reload nginx.
func (r *rig) reloadByOthers() {
	r.t.Helper()
	time.Sleep(apart)
	before := r.workers()
	r.must(syscall.Kill(r.master, syscall.SIGHUP))
	r.until("another generation serves", func() bool {
		now := r.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) })
	})
}

// restartByOthers has another process restart nginx.
func (r *rig) restartByOthers() {
	r.t.Helper()
	time.Sleep(apart)
	r.stop()
	r.start()
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(path string) string {
	r.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("still not so after %s: %s", patience, what)
		}
	}
}

// workers are the PIDs of the workers that serve.
func (r *rig) workers() []int {
	now, err := nginx.Binary{Path: "nginx"}.Processes(r.master)
	if err != nil {
		return nil
	}
	var pids []int
	for _, p := range now.Serving() {
		pids = append(pids, p.PID)
	}
	return pids
}

func (r *rig) options() Options {
	return Options{Nginx: nginx.Binary{Conf: r.conf}, StateDir: r.dir + "/state"}
}

// A pipe is both ends of a stream as one.
type pipe struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipe) Close() error {
	p.WriteCloser.Close()
	return p.ReadCloser.Close()
}

// serve starts an agent; far is the caller's end, and ended tells how it ended.
func serve(b Balancer) (far pipe, ended <-chan error) {
	in, toAgent := io.Pipe()
	fromAgent, out := io.Pipe()
	end := make(chan error, 1)
	go func() {
		err := Serve(context.Background(), in, out, b, "test")
		out.Close()
		in.Close()
		end <- err
	}()
	return pipe{fromAgent, toAgent}, end
}

// agent is the rig's nginx, asked through an agent.
func (r *rig) agent() *Client {
	r.t.Helper()
	far, ended := serve(NewLocal(r.options()))
	c, err := Connect(r.t.Context(), "lb", "test", far)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		c.Close()
		<-ended // it undoes what nothing has loaded
	})
	return c
}

// tree is the content of every file below the rig's directory but nginx's own
// logs and the locks.
func (r *rig) tree() map[string]string {
	r.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(r.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, ".log") || strings.Contains(path, "/locks/") || strings.HasSuffix(path, ".lock") {
			return err
		}
		files[path] = r.read(path)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

// began plans and begins an operation that is to mark a target.
func (r *rig) began(b Balancer, id string, q Query) *Report {
	r.t.Helper()
	report, err := b.Plan(r.t.Context(), q)
	if err != nil {
		r.t.Fatal(err)
	}
	op := journal.Operation{ID: id, Kind: journal.KindDrain, Targets: q.Targets, User: "ann", Host: "desk", Began: time.Now()}
	for _, s := range report.Servers {
		op.Servers = append(op.Servers, s.Located)
	}
	if err := b.Begin(r.t.Context(), Beginning{Operation: op, Lines: []json.RawMessage{[]byte(`{"event":"operation_started"}`)}}); err != nil {
		r.t.Fatal(err)
	}
	return report
}

// stageOf is what a report is to configure.
func stageOf(report *Report, want Want) StageRequest {
	w := Wanted{Want: want}
	for _, s := range report.Servers {
		w.Servers = append(w.Servers, s.Server)
	}
	return StageRequest{Wants: []Wanted{w}, Files: report.Files, Force: true}
}

func wantOf(isDown bool) Want {
	if isDown {
		return Out
	}
	return Back
}

// undo has servers of a report be as the operation found them, reload included.
func (r *rig) undo(b Balancer, report *Report) error {
	r.t.Helper()
	a, err := b.Stage(r.t.Context(), stageOf(report, AsBefore))
	if err == nil && a.NeedsLoad {
		_, err = b.Load(r.t.Context(), LoadRequest{Timeout: patience})
	}
	return err
}

// down asks to mark targets down, with everything tried first.
func down(targets ...string) Query {
	return Query{Targets: targets, Want: Out, Preflight: true}
}

var testID = journal.NewID(time.Now(), "")
