package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A versionedNginx serves the version of the configuration that it has loaded.
type versionedNginx struct {
	*realNginx
	page string
	conf *Config
}

const (
	loads = "limit_req_zone $binary_remote_addr zone=one:1m rate=1r/s;"
	fails = "limit_req_zone $uri zone=one:1m rate=1r/s;" // nginx -t takes it, and the master does not
)

func startVersioned(t *testing.T, workers int, children ...string) *versionedNginx {
	t.Helper()
	n := &versionedNginx{page: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	n.realNginx = startWorkers(t, workers, n.http(loads, "old"), children...)
	conf, err := Load(t.Context(), n.binary.Conf)
	if err != nil {
		t.Fatal(err)
	}
	n.conf = conf
	return n
}

func (n *versionedNginx) http(zone, version string) string {
	return fmt.Sprintf("%s\nserver { listen %s; location / { return 200 %s; } }", zone, n.page, version)
}

// version is what one worker serves.
func (n *versionedNginx) version() string {
	n.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: generous}
	resp, err := client.Get("http://" + n.page)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(page)
}

// tells checks that what a reload returned is what nginx serves.
func (n *versionedNginx) tells(err error, zone string) {
	n.t.Helper()
	want := "new"
	var failed *ReloadError
	switch {
	case zone == fails && (!errors.As(err, &failed) || !failed.Sure):
		n.t.Errorf("a load that fails: %v", err)
	case zone == loads && err != nil:
		n.t.Errorf("a load that works: %v", err)
	}
	if err != nil {
		want = "old"
	}
	for range 20 {
		if got := n.version(); got != want {
			n.t.Fatalf("ReloadAndVerify returned %v, and nginx serves the %s configuration", err, got)
		}
	}
}

// Clients can write any line into the error log.
func TestErrorLogDecidesNothing(t *testing.T) {
	n := startVersioned(t, 2)
	const forged = "2026/01/02 03:04:05 [emerg] %d#%[1]d: forged"
	lines := fmt.Sprintf(forged, n.running().Master.PID)
	reload := n.binary
	reload.ReloadCommand = []string{"sh", "-c", fmt.Sprintf("echo '%s' >> %s/error.log; nginx -s reload -c %[3]s; echo '%[1]s' >> %[2]s/error.log", lines, n.dir, n.binary.Conf)}
	n.write(n.http(loads, "new"))
	_, err := reload.ReloadAndVerify(t.Context(), n.conf, generous)
	n.tells(err, loads)

	// A reload that is not seen to happen is explained by it, and is not sure.
	reload.ReloadCommand = []string{"sh", "-c", fmt.Sprintf("echo '%s' >> %s/error.log", lines, n.dir)}
	var failed *ReloadError
	if _, err := reload.ReloadAndVerify(t.Context(), n.conf, 500*time.Millisecond); !errors.As(err, &failed) || failed.Sure || !strings.Contains(err.Error(), "its error log says: "+lines) {
		t.Errorf("no reload, and a forged line: %v", err)
	}
}

// The master replaces a worker that crashes by one with the configuration that it has
// loaded: new workers are no proof of a load.
func TestCrashDuringReload(t *testing.T) {
	moments := []struct{ name, command string }{
		{"before the load", "kill -STOP %[1]d; %[2]s; kill -%[4]s %[3]s; sleep 0.1; kill -CONT %[1]d"},
		{"right after the signal", "%[2]s; kill -%[4]s %[3]s"},
		{"after the load", "%[2]s; sleep 0.05; kill -%[4]s %[3]s"},
		{"after a load that failed", "%[2]s; sleep 0.3; kill -%[4]s %[3]s; sleep 0.3"},
	}
	for _, workers := range []int{1, 2} {
		for _, zone := range []string{loads, fails} {
			for i, m := range moments {
				t.Run(fmt.Sprintf("%d workers, %t, %s", workers, zone == loads, m.name), func(t *testing.T) {
					t.Parallel()
					n := startVersioned(t, workers)
					n.write(n.http(zone, "new"))
					before := n.running()
					var pids []string
					for _, p := range before.Serving() {
						pids = append(pids, fmt.Sprint(p.PID))
					}
					signal := []string{"SEGV", "KILL"}[i%2]
					once := n.dir + "/crashed" // a reload that is sent again is not disturbed
					crash := n.binary
					reload := "nginx -s reload -c " + n.binary.Conf
					script := fmt.Sprintf(m.command, before.Master.PID, reload, strings.Join(pids, " "), signal)
					crash.ReloadCommand = []string{"sh", "-c", fmt.Sprintf("if test -e %s; then %s; else touch %[1]s; { %s; } 2>/dev/null || true; fi", once, reload, script)}
					_, err := crash.ReloadAndVerify(t.Context(), n.conf, generous)
					n.tells(err, zone)
				})
			}
		}
	}
}

// Workers that crash all the time leave a reload unclear at worst. It is never told wrong.
func TestCrashesAtAnyMoment(t *testing.T) {
	n := startVersioned(t, 1)
	const rounds = 10
	unclear := 0
	for i := range rounds {
		zone := []string{fails, loads}[i%2]
		n.write(n.http(zone, fmt.Sprint(i)))
		crashed := make(chan struct{})
		go func() {
			defer close(crashed)
			n.crash(3)
		}()
		_, err := n.binary.ReloadAndVerify(t.Context(), n.conf, generous)
		<-crashed
		var failed *ReloadError
		serves := n.version() == fmt.Sprint(i)
		switch {
		case errors.As(err, &failed) && !failed.Sure:
			unclear++
		case (err == nil) != serves || serves != (zone == loads):
			t.Fatalf("round %d: ReloadAndVerify returned %v, and nginx serves version %s", i, err, n.version())
		}
	}
	t.Logf("%d of %d reloads were unclear", unclear, rounds)
}

// A worker that replaces a crashed one has the title of the master until it is set up. Then it
// accepts connections with the earlier configuration, before it reads that it is to end.
func TestReloadWhileAWorkerIsSetUp(t *testing.T) {
	n := startVersioned(t, 1)
	before := n.running()
	n.events = "worker_connections 500000;" // takes a worker a while to set up
	n.write(n.http(loads, "old"))
	n.reload()
	eventually(t, "a worker with more connections serves", func() bool { return n.running().Replaced(before) })
	n.events = ""
	n.write(n.http(loads, "new"))
	if err := syscall.Kill(n.running().Serving()[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var replacement Process
	eventually(t, "the master replaces it", func() bool {
		r := n.running()
		i := slices.IndexFunc(r.children, Process.isMaster)
		if i >= 0 {
			replacement = r.children[i]
		}
		return i >= 0 || len(r.Serving()) > 0
	})
	after, err := n.binary.reloadOnce(t.Context(), before.Master, generous)
	n.tells(err, loads)
	for _, p := range after.children {
		if p.same(replacement) && !p.IsExiting() {
			t.Errorf("a worker with the earlier configuration is about to serve: %v", p)
		}
	}
}

// Two looks at the children of the master prove a load only if no crash explains them, and
// whatever children others have given it.
func TestOverlap(t *testing.T) {
	worker := func(pid int) Process { return Process{PID: pid, Title: "nginx: worker process"} }
	exits := Process{PID: 9, Title: "nginx: worker process is shutting down"}
	loader := Process{PID: 8, Title: "nginx: cache loader process"}
	of := func(kind childKind, pids ...int) (all []child) {
		for _, pid := range pids {
			all = append(all, child{pid, kind})
		}
		return all
	}
	n := func(pids ...int) []child { return of(ofNginx, pids...) }
	for _, c := range []struct {
		name      string
		listed    []child
		titled    []Process
		last, now []child
		want      bool
	}{
		{"a further worker", n(1), []Process{worker(1)}, n(1, 2), n(1, 2), true},
		{"a further worker in one look only", n(1), []Process{worker(1)}, n(1), n(1, 2), false},
		{"a worker that crashed", n(1), []Process{worker(1)}, n(2), n(2), false},
		{"one of two workers crashed", n(1, 2), []Process{worker(1), worker(2)}, n(1, 3), n(1, 3), false},
		{"a worker was ending", of(ending, 1), nil, n(2), n(2), false},
		{"a worker ended right after the list", n(1), nil, n(2), n(2), false},
		{"one of two workers was ending", append(n(2), of(ending, 1)...), []Process{worker(2)}, n(2, 3), n(2, 3), false},
		{"a worker that the list omitted", nil, []Process{worker(1)}, n(1), n(1), false},
		{"a worker that the list omitted crashed", n(2), []Process{worker(1), worker(2)}, n(2, 3), n(2, 3), false},
		{"an earlier worker ended meanwhile", n(1, 9), []Process{worker(1), exits}, n(1, 2), n(1, 2), true},
		{"the cache loader ended meanwhile", n(1, 8), []Process{worker(1), loader}, n(1, 2), n(1, 2), true},
		{"a foreign child ended meanwhile", append(n(1), of(foreign, 7)...), []Process{worker(1)}, n(1, 2), n(1, 2), true},
		{"a further child is foreign", n(1), []Process{worker(1)}, append(n(1), of(foreign, 7)...), append(n(1), of(foreign, 7)...), false},
		{"a further child is foreign, and has ended", n(1), []Process{worker(1)}, append(n(1), of(foreign, 7)...), append(n(1), of(ending, 7)...), false},
		{"no worker before", nil, nil, n(2), n(2), true},
	} {
		before := look{listed: c.listed, Running: Running{children: c.titled}}
		if got := before.overlaps(c.last, c.now); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}

// The master may have children that are not nginx's: a module has started them, or a container
// has given them to its first process. That one of them ends with each reload does not hide that
// a load worked, and does not prove one.
func TestForeignChildren(t *testing.T) {
	for _, zone := range []string{loads, fails} {
		t.Run(fmt.Sprint(zone == loads), func(t *testing.T) {
			t.Parallel()
			n := startVersioned(t, 1, slices.Repeat([]string{"sleep 60"}, maxReloads+1)...)
			n.write(n.http(zone, "new"))
			b := n.binary
			const end = "f=$(ls %s/child* | head -n 1); kill $(cat $f); rm $f; "
			b.ReloadCommand = []string{"sh", "-c", fmt.Sprintf(end+"nginx -s reload -c %s", n.dir, b.Conf)}
			_, err := b.ReloadAndVerify(t.Context(), n.conf, generous)
			n.tells(err, zone)
		})
	}
}

// crash kills a worker so many times, at any moment.
func (n *versionedNginx) crash(times int) {
	for range times {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		if r, err := n.binary.Running(n.t.Context(), n.pidFile()); err == nil && len(r.Serving()) > 0 {
			_ = syscall.Kill(r.Serving()[0].PID, syscall.SIGKILL)
		}
	}
}

// A load that was under way before the reload may have read the files before their edit.
func TestLoadUnderWay(t *testing.T) {
	n := startVersioned(t, 1)
	taken := freePort(t)
	listen := fmt.Sprintf("server { listen 127.0.0.1:%d; }\n", taken)
	holder := holdPort(t, taken)
	n.write(listen + n.http(loads, "earlier"))
	n.reload() // nginx tries the port for two seconds, and gets it before that
	time.Sleep(300 * time.Millisecond)
	n.write(listen + n.http(loads, "new"))
	go func() {
		time.Sleep(300 * time.Millisecond)
		_ = holder.Close()
	}()
	_, err := n.binary.ReloadAndVerify(t.Context(), n.conf, generous)
	n.tells(err, loads)
}

// Whoever reloads nginx is told within seconds that it gave up, without its log.
func TestFailedLoadIsNoticedWithoutALog(t *testing.T) {
	n := startVersioned(t, 2)
	n.write(n.http(fails, "new"))
	conf := *n.conf
	conf.ErrorLogs = []string{os.DevNull}
	began := time.Now()
	_, err := n.binary.ReloadAndVerify(t.Context(), &conf, generous)
	n.tells(err, fails)
	if took := time.Since(began); took > generous/4 {
		t.Errorf("it took %s", took)
	}
	t.Logf("%s: %v", time.Since(began), err)
}

// The master gets the signal without another nginx, which would read the configuration once
// more, and what is traced is what is done.
func TestReloadSignalsTheMaster(t *testing.T) {
	n := startVersioned(t, 1)
	b := n.binary
	b.Path = n.dir + "/logged"
	write(t, n.dir, map[string]string{"logged": fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s/calls\nexec nginx \"$@\"\n", n.dir)})
	if err := os.Chmod(b.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	var traced []string
	b.Trace = func(args []string) { traced = append(traced, strings.Join(args, " ")) }
	n.write(n.http(loads, "new"))
	if err := b.Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := b.ReloadAndVerify(t.Context(), n.conf, generous)
	n.tells(err, loads)
	want := []string{b.Path + " -t -c " + b.Conf, fmt.Sprintf("kill -HUP %d", n.running().Master.PID)}
	if !slices.Equal(traced, want) {
		t.Errorf("traced %q, want %q", traced, want)
	}
	if calls, err := os.ReadFile(n.dir + "/calls"); err != nil || string(calls) != "-t -c "+b.Conf+"\n-V\n" {
		t.Errorf("nginx was run with %q, %v", calls, err)
	}
}

// A process that has the PID of the master, and is not the master, gets no signal.
func TestReloadSignalsNobodyElse(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	master := Process{PID: other.Process.Pid, Started: 1}
	var b Binary
	if err := b.Reload(t.Context(), master); !errors.Is(err, ErrNotRunning) {
		t.Errorf("another process: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
	if status := other.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("the other process ended with %v", status.Signal())
	}
	if err := b.Reload(t.Context(), master); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a process that is gone: %v", err)
	}
}

// Two looks in a row must show the same serving workers, however soon the second one follows, and
// workers that change all the time do not keep a reload waiting beyond its limit.
func TestFollowConfirms(t *testing.T) {
	const master, old = 10, 11
	for _, c := range []struct {
		name  string
		looks [][]int // the serving workers in each
		limit time.Duration
		want  []int // in the last look; nil: the time is up
	}{
		{"confirmed", [][]int{{old}, {old, 12}, {12}, {12}}, generous, []int{12}},
		{"another worker in the second look", [][]int{{old}, {12}, {12, 13}, {12, 13}}, generous, []int{12, 13}},
		{"another worker in each look", [][]int{{old}, {12}}, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{
				"10/task/10/children": "", "10/cmdline": "nginx: master process nginx", "10/stat": stat(master, 1),
			})
			for _, name := range []string{"status", "task/10/io"} {
				if err := syscall.Mkfifo(dir+"/10/"+name, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			looked := make(chan int, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				n := 0
				for n < len(c.looks) && letLook(ctx, t, dir, c.looks[n]) {
					n++
				}
				looked <- n
			}()
			before := look{Running: Running{Master: Process{PID: master, Started: 1}, Workers: []Process{{PID: old, Started: 1, Title: "nginx: worker process"}}}}
			var loaded atomic.Bool
			loaded.Store(true)
			sent := make(chan error, 1)
			sent <- nil
			after, err := Binary{proc: dir}.follow(ctx, before, &loaded, sent, c.limit)
			cancel()
			if n := <-looked; n != len(c.looks) {
				t.Errorf("%d looks, want %d", n, len(c.looks))
			}
			var late *ReloadError
			if c.want == nil && !errors.As(err, &late) || c.want != nil && err != nil {
				t.Errorf("it ends with %v", err)
			}
			var got []int
			for _, p := range after.Serving() {
				got = append(got, p.PID)
			}
			if c.want != nil && !slices.Equal(got, c.want) {
				t.Errorf("workers %d serve, want %d", got, c.want)
			}
		})
	}
}

func stat(pid, parent int) string {
	return fmt.Sprintf("%d (nginx) S %d %s %d", pid, parent, strings.Repeat("0 ", 17), 1)
}

// letLook lets the next look at a directory like /proc go on when these workers are in it. Each
// look reads two pipes in turn before it looks for workers. It is false if there is no look before
// ctx ends.
func letLook(ctx context.Context, t *testing.T, dir string, workers []int) bool {
	if !feed(ctx, dir+"/10/status", "State:\tS\nvoluntary_ctxt_switches:\t1\n") {
		return false
	}
	for pid := 11; pid <= 13; pid++ {
		_ = os.RemoveAll(fmt.Sprintf("%s/%d", dir, pid))
	}
	for _, pid := range workers {
		name := fmt.Sprint(pid)
		write(t, dir, map[string]string{name + "/cmdline": "nginx: worker process", name + "/stat": stat(pid, 10)})
	}
	return feed(ctx, dir+"/10/task/10/io", "rchar: 1\n")
}

// feed writes a text to who next reads a pipe.
func feed(ctx context.Context, fifo, text string) bool {
	for ctx.Err() == nil {
		pipe, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err != nil { // nobody reads it yet
			time.Sleep(time.Millisecond)
			continue
		}
		_, err = io.WriteString(pipe, text)
		return errors.Join(err, pipe.Close()) == nil
	}
	return false
}
