package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReplaced(t *testing.T) {
	worker := func(pid, started int) Process {
		return Process{PID: pid, Started: uint64(started), Title: "nginx: worker process"}
	}
	exiting := func(pid, started int) Process {
		return Process{PID: pid, Started: uint64(started), Title: "nginx: worker process is shutting down"}
	}
	running := func(all ...Process) Running { return Running{Workers: all} }
	before := running(worker(1, 100), worker(2, 100), exiting(9, 50))
	cases := []struct {
		name              string
		after             Running
		started, replaced bool
	}{
		{"nothing happened", before, false, false},
		{"new ones beside the old", running(worker(1, 100), worker(2, 100), worker(3, 200)), true, false},
		{"one of the old still serves", running(exiting(1, 100), worker(2, 100), worker(3, 200), worker(4, 200)), true, false},
		{"the old are exiting", running(exiting(1, 100), exiting(2, 100), worker(3, 200), worker(4, 200)), true, true},
		{"the old are gone", running(worker(3, 200), worker(4, 200)), true, true},
		{"an old number used again", running(worker(1, 200), worker(2, 200)), true, true},
		{"a worker that died was replaced", running(worker(1, 100), worker(3, 200)), true, false},
		{"all are exiting", running(exiting(1, 100), exiting(2, 100)), false, false},
		{"none are left", running(), false, false},
		{"fewer workers", running(exiting(1, 100), exiting(2, 100), worker(3, 200)), true, true},
	}
	for _, c := range cases {
		if got := c.after.Started(before); got != c.started {
			t.Errorf("%s: Started is %t", c.name, got)
		}
		if got := c.after.Replaced(before); got != c.replaced {
			t.Errorf("%s: Replaced is %t", c.name, got)
		}
	}
}

func TestConfOf(t *testing.T) {
	build := Build{Prefix: "/usr/share/nginx"}
	cases := []struct{ args, want string }{
		{"/usr/sbin/nginx", ""},
		{"/usr/sbin/nginx -c /srv/nginx.conf", "/srv/nginx.conf"},
		{"/usr/sbin/nginx -g daemon on; master_process on; -c /srv/nginx.conf -q", "/srv/nginx.conf"},
		{"nginx -c conf/x.conf", "/usr/share/nginx/conf/x.conf"},
		{"nginx -p /opt/n/ -c x.conf", "/opt/n/x.conf"},
		{"nginx -c x.conf -p /opt/n", "/opt/n/x.conf"},
		{"nginx -c", ""},
	}
	for _, c := range cases {
		r := Running{Master: Process{Title: "nginx: master process " + c.args}}
		if got := r.ConfOf(build); got != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
}

// generous is how long the slowest machine may take for what is polled for.
const generous = 60 * time.Second

// eventually polls until ok, or fails the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(generous); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", generous, what)
		}
	}
}

// A realNginx is a master on loopback that belongs to the test.
type realNginx struct {
	t       *testing.T
	workers int
	dir     string
	port    int
	binary  Binary
	since   time.Time
	events  string // lines within events
}

// startNginx starts nginx with two workers and the given lines within http.
func startNginx(t *testing.T, http string) *realNginx {
	t.Helper()
	return startWorkers(t, 2, http)
}

func startWorkers(t *testing.T, workers int, http string, children ...string) *realNginx {
	t.Helper()
	needNginx(t)
	for {
		n := &realNginx{t: t, workers: workers, dir: t.TempDir(), port: freePort(t), since: time.Now()}
		n.binary = Binary{Path: "nginx", Conf: n.dir + "/nginx.conf"}
		n.write(http)
		why := n.start(children)
		if why == "" {
			return n
		}
		// Somebody else was quicker to take the port.
		if !strings.Contains(why, "bind() to") || time.Since(n.since) > generous {
			t.Fatalf("nginx ended: %s", why)
		}
	}
}

// start starts nginx with shell commands as further children of its master, and waits until its
// workers serve. If nginx ends instead, why is what it said.
func (n *realNginx) start(children []string) (why string) {
	n.t.Helper()
	script := `exec nginx -p "$0" -c "$1" -g "daemon off;"`
	for i, command := range children {
		script = fmt.Sprintf("%s >/dev/null 2>&1 & echo $! >$0/child%d\n", command, i) + script
	}
	cmd := exec.Command("sh", "-c", script, n.dir, n.binary.Conf)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended does not matter
		close(ended)
	}()
	n.t.Cleanup(func() {
		files, _ := filepath.Glob(n.dir + "/child*")
		for _, f := range files {
			text, _ := os.ReadFile(f)
			if pid, _ := strconv.Atoi(strings.TrimSpace(string(text))); pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
		case <-time.After(generous):
			n.t.Errorf("nginx master %d does not end", cmd.Process.Pid)
			_ = cmd.Process.Kill()
		}
	})
	eventually(n.t, "nginx runs with its workers", func() bool {
		select {
		case <-ended:
			why = "it said: " + said.String()
			return true
		default:
		}
		r, err := n.binary.Processes(cmd.Process.Pid)
		return err == nil && len(r.Serving()) == n.workers && fileExists(n.pidFile())
	})
	return why
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func (n *realNginx) pidFile() string { return n.dir + "/nginx.pid" }

// write writes its configuration. Its temporary files are its own, so that
// those of the machine's nginx keep their owner.
func (n *realNginx) write(http string) {
	n.t.Helper()
	paths := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, n.dir, kind)
	}
	src := fmt.Sprintf("worker_processes %d;\npid %s;\nerror_log %s/error.log notice;\nevents {%s}\nhttp {\naccess_log off;\n%s%s\n"+
		"server { listen 127.0.0.1:%d; location /status { stub_status; } }\n}\n", n.workers, n.pidFile(), n.dir, n.events, paths, http, n.port)
	write(n.t, n.dir, map[string]string{"nginx.conf": src})
}

func (n *realNginx) running() Running {
	n.t.Helper()
	r, err := n.binary.Running(n.t.Context(), n.pidFile())
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// reload tests the configuration and sends the signal, both of which must
// work.
func (n *realNginx) reload() {
	n.t.Helper()
	if err := n.binary.Test(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	if err := n.binary.Reload(n.t.Context(), n.running().Master); err != nil {
		n.t.Fatal(err)
	}
}

// holdPort listens on a port of loopback.
func holdPort(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestReload(t *testing.T) {
	n := startNginx(t, "upstream u { server 127.0.0.1:1; }")
	before := n.running()
	if loaded := before.Loaded(); loaded.Before(n.since.Add(-time.Second)) || loaded.After(time.Now().Add(time.Second)) {
		t.Errorf("the workers are said to have started at %v, and the test started at %v", loaded, n.since)
	}
	if age, most := before.Age, time.Since(n.since)+100*time.Millisecond; age < 0 || age > most {
		t.Errorf("the workers' age is %v, and the test's %v", age, most)
	}
	if got := before.ConfOf(Build{Prefix: "/nowhere"}); got != n.binary.Conf {
		t.Errorf("the master runs %q, want %q", got, n.binary.Conf)
	}
	conf, err := Load(t.Context(), n.binary.Conf)
	if err != nil {
		t.Fatal(err)
	}
	if got := conf.PIDPath(Build{}); got != n.pidFile() {
		t.Errorf("PIDPath %q, want %q", got, n.pidFile())
	}
	eventually(t, "the workers' age grows", func() bool { return n.running().Age >= 200*time.Millisecond })

	// A request that is not sent to its end keeps one of the old workers.
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /status HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nginx has the request's beginning", func() bool { return n.status().Reading > 0 })

	marks := n.binary.markLogs(conf.LogPaths(Build{}), before.Master.PID)
	n.write("upstream u { server 127.0.0.1:1 down; server 127.0.0.1:2; }")
	n.reload()
	eventually(t, "the new generation serves alone, and one worker is kept", func() bool {
		r := n.running()
		return r.Replaced(before) && len(r.Serving()) == 2 && len(r.Exiting()) == 1
	})
	after := n.running()
	if len(after.Serving()) != 2 || len(after.Exiting()) != 1 || !after.Started(before) || after.Master.PID != before.Master.PID {
		t.Errorf("after the reload: %+v", after)
	}
	if why := marks.loadFailure(t.Context(), after.Master.PID); why != "" {
		t.Errorf("a load that worked is said to have failed: %s", why)
	}
	if _, err := io.WriteString(conn, "Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if page, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(page), "HTTP/1.1 200") {
		t.Errorf("the request that was open: %q, %v", page, err)
	}
	eventually(t, "the old generation is gone", func() bool { return len(n.running().Exiting()) == 0 })
}

// status is the stub_status page of this nginx.
func (n *realNginx) status() StubStatus {
	n.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: generous}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/status", n.port))
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	s, err := ParseStubStatus(page)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

func TestStubStatusOfRealNginx(t *testing.T) {
	n := startNginx(t, "")
	eventually(t, "nobody but the poll is connected", func() bool { return n.status().Open() == 0 })
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one more is connected", func() bool { return n.status().Open() == 1 })
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody but the poll is connected again", func() bool { return n.status().Open() == 0 })
}

// Both of these loads pass nginx -t, and nginx -s reload exits 0.
func TestSilentReloadFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	const zone = "limit_req_zone $binary_remote_addr zone=one:1m rate=1r/s;"
	cases := []struct{ name, http, want string }{
		{"the key of a zone", "limit_req_zone $uri zone=one:1m rate=1r/s;", `limit_req "one" uses the "$uri" key`},
		{"a port that is taken", zone + "server { listen " + taken.Addr().String() + "; }", "bind() to " + taken.Addr().String() + " failed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := startNginx(t, zone)
			before := n.running()
			marks := n.binary.markLogs([]string{n.dir + "/error.log"}, before.Master.PID)
			n.write(c.http)
			n.reload()
			why := ""
			eventually(t, "the log says why", func() bool {
				if r := n.running(); r.Started(before) || r.Replaced(before) {
					t.Fatalf("a load that failed is taken for one that worked: %+v", r)
				}
				why = marks.loadFailure(t.Context(), before.Master.PID)
				return why != ""
			})
			if !strings.Contains(why, c.want) || !strings.Contains(why, "[emerg]") {
				t.Errorf("the log says %q, want %q", why, c.want)
			}
			for range 20 {
				if r := n.running(); r.Started(before) || r.Replaced(before) {
					t.Fatalf("a load that failed is taken for one that worked: %+v", r)
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

func TestKilledWorker(t *testing.T) {
	n := startNginx(t, "")
	before := n.running()
	if err := syscall.Kill(before.Serving()[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the master starts another", func() bool { r := n.running(); return len(r.Serving()) == 2 && r.Started(before) })
	if n.running().Replaced(before) {
		t.Error("a worker that died and was started again is taken for a new generation")
	}
}

// proc is a directory like /proc in which only these processes are.
func proc(t *testing.T, pids ...int) string {
	t.Helper()
	dir := t.TempDir()
	for _, pid := range pids {
		if err := os.Symlink(fmt.Sprintf("/proc/%d", pid), filepath.Join(dir, strconv.Itoa(pid))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMasterOfStalePIDFile(t *testing.T) {
	n, other := startNginx(t, ""), startNginx(t, "")
	real := n.running()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	pidFiles := map[string]string{
		"missing":           "",
		"empty":             "\n",
		"no number":         "x\n",
		"zero":              "0\n",
		"negative":          "-1\n",
		"a dead process":    strconv.Itoa(gone.Process.Pid) + "\n",
		"another program":   strconv.Itoa(os.Getpid()) + "\n",
		"a worker of nginx": strconv.Itoa(real.Workers[0].PID) + "\n",
	}
	one := proc(t, append([]int{os.Getpid(), real.Master.PID}, real.Workers[0].PID, real.Workers[1].PID)...)
	two := proc(t, real.Master.PID, other.running().Master.PID)
	for name, content := range pidFiles {
		file := filepath.Join(t.TempDir(), "nginx.pid")
		if content != "" {
			write(t, filepath.Dir(file), map[string]string{"nginx.pid": content})
		}
		own := []string{"docker", "exec", "lb", "nginx", "-s", "reload"}
		if _, err := (Binary{proc: one}).Running(t.Context(), file); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s, and no reload command of one's own: %v", name, err)
		}
		if r, err := (Binary{proc: one, ReloadCommand: own}).Running(t.Context(), file); err != nil || r.Master.PID != real.Master.PID || len(r.Serving()) != 2 {
			t.Errorf("%s: %+v, %v, want master %d", name, r, err, real.Master.PID)
		}
		if _, err := (Binary{proc: t.TempDir(), ReloadCommand: own}).Running(t.Context(), file); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s, and no master: %v", name, err)
		}
		_, err := Binary{Path: "nginx", proc: two, ReloadCommand: own}.Running(t.Context(), file)
		if err == nil || errors.Is(err, ErrNotRunning) || strings.Count(err.Error(), "nginx.conf)") != 2 {
			t.Fatalf("%s, and two masters: %v", name, err)
		}
		for _, nginx := range []*realNginx{n, other} {
			if want := fmt.Sprintf("%d (%s)", nginx.running().Master.PID, nginx.binary.Conf); !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
		if !strings.Contains(err.Error(), "--nginx-conf") {
			t.Errorf("%q does not say how to choose", err)
		}
	}
	if _, err := n.binary.Processes(gone.Process.Pid); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a process that is gone: %v", err)
	}
	if all, err := processes("/proc"); err != nil || !slices.ContainsFunc(all, real.Master.same) {
		t.Errorf("master %d is not among all processes: %+v, %v", real.Master.PID, all, err)
	}
}

func TestRunningTimes(t *testing.T) {
	boot, now := 1000*time.Second+500*time.Millisecond, time.Unix(1767323045, 12345678)
	const master, worker = "nginx: master process nginx", "nginx: worker process"
	all := []Process{
		{PID: 70, Started: 90000, Title: master, Parent: 1}, {PID: 71, Started: 90050, Title: worker + " is shutting down", Parent: 70}, {PID: 72, Started: 95050, Title: worker, Parent: 70}, {PID: 73, Started: 96050, Title: worker, Parent: 70},
		{PID: 74, Started: 96050, Title: "nginx: cache manager process", Parent: 70}, {PID: 75, Started: 1, Title: worker, Parent: 99}, {PID: 76, Started: 2, Title: master, Parent: 70},
	}
	r, err := running(all, 70, boot, now, 3*time.Microsecond)
	if err != nil {
		t.Fatal(err)
	}
	if r.Master != all[0] || r.Age != 50*time.Second || !slices.Equal(r.Workers, all[1:4]) || !slices.Equal(r.Serving(), all[2:4]) || !slices.Equal(r.Exiting(), all[1:2]) {
		t.Errorf("Running = %+v", r)
	}
	// A child that has the title of a master becomes a worker, unless it has children of its own.
	other, err := running(append(all, Process{PID: 77, Started: 3, Title: worker, Parent: 76}), 70, boot, now, 0)
	if err != nil || !r.isStarting(Running{}) || other.isStarting(Running{}) {
		t.Errorf("a worker is set up: %t; another master: %t, %v", r.isStarting(Running{}), other.isStarting(Running{}), err)
	}
	if !r.Now.Equal(now) || !r.Loaded().Equal(now.Add(-50*time.Second)) {
		t.Errorf("Now %v, Loaded %v", r.Now, r.Loaded())
	}
	if late := r.LoadedAtLatest().Sub(r.Loaded()); late != tick+3*time.Microsecond {
		t.Errorf("LoadedAtLatest is %v after Loaded, want a tick and what it took to take the time", late)
	}
	for _, pid := range []int{71, 74, 1} {
		if r, err := running(all, pid, boot, now, 0); !errors.Is(err, ErrNotRunning) {
			t.Errorf("process %d: %+v, %v", pid, r, err)
		}
	}
	// A file that is written before a process starts is older than it.
	for range 20 {
		before := time.Now()
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, started, err := parseStat(string(stat))
		boot, now, took := clocks()
		r, rerr := running([]Process{{PID: 1, Started: 1, Title: master}, {PID: 2, Started: started, Title: worker, Parent: 1}}, 1, boot, now, took)
		if err != nil || rerr != nil || r.Loaded().After(after) || r.LoadedAtLatest().Before(before) {
			t.Errorf("started from %v to %v; told: %v to %v (%v, %v)", before, after, r.Loaded(), r.LoadedAtLatest(), err, rerr)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func TestReloadAndVerify(t *testing.T) {
	n := startNginx(t, "limit_req_zone $binary_remote_addr zone=one:1m rate=1r/s;")
	before := n.running()
	conf, err := Load(t.Context(), n.binary.Conf)
	if err != nil {
		t.Fatal(err)
	}
	after, err := n.binary.ReloadAndVerify(t.Context(), conf, generous)
	if err != nil || !after.Replaced(before) || !slices.EqualFunc(after.Serving(), n.running().Serving(), Process.same) {
		t.Fatalf("after the reload: %+v, %v", after, err)
	}

	// This passes nginx -t, and nginx -s reload exits 0.
	n.write("limit_req_zone $uri zone=one:1m rate=1r/s;")
	var failed *ReloadError
	if _, err := n.binary.ReloadAndVerify(t.Context(), conf, generous); !errors.As(err, &failed) || !failed.Sure || !strings.Contains(failed.Reason, `uses the "$uri" key`) {
		t.Errorf("a load that fails: %v", err)
	}
	// It became so after nginx -t.
	n.write("x")
	if _, err := n.binary.ReloadAndVerify(t.Context(), conf, generous); !errors.As(err, &failed) || !failed.Sure || !strings.Contains(failed.Reason, "; its error log says: ") || !strings.Contains(failed.Reason, `[emerg]`) || !strings.Contains(failed.Reason, n.binary.Conf+":") {
		t.Errorf("a configuration that is broken: %v", err)
	}

	// A reload that sends no signal.
	idle := n.binary
	idle.ReloadCommand = []string{"true"}
	if _, err := idle.ReloadAndVerify(t.Context(), conf, 100*time.Millisecond); !errors.As(err, &failed) || failed.Sure || !strings.Contains(failed.Reason, "no new generation") {
		t.Errorf("a reload that does nothing: %v", err)
	}
	// Both workers crash, and the master's load fails: what looks like a new
	// generation is the old one.
	crash := n.binary
	n.write("limit_req_zone $uri zone=one:1m rate=1r/s;")
	pids := n.running().Serving()
	crash.ReloadCommand = []string{"sh", "-c", fmt.Sprintf("nginx -s reload -c %s; sleep 0.3; kill -9 %d %d; sleep 0.3", n.binary.Conf, pids[0].PID, pids[1].PID)}
	if _, err := crash.ReloadAndVerify(t.Context(), conf, generous); !errors.As(err, &failed) || !failed.Sure {
		t.Errorf("workers that crashed: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if _, err := n.binary.ReloadAndVerify(ctx, conf, generous); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
}
