package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hinshun/vt10x"
)

// These tests drain for real: a private nginx on loopback with its own
// configuration, backends in this process, and the program as an operator runs
// it. A backend on loopback is the load balancer itself, so no SSH is needed.

func TestDrainAndUndrain(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	p.answers("a", "b")
	held := p.hold(a)

	run := p.begin("drain", a.addr)
	run.says("a new generation serves")
	p.has(marked(before, a))
	p.answers("b") // and the one that is held goes on
	run.says("1 open")
	select {
	case <-run.ended:
		t.Fatal("it ended while a request was open")
	case err := <-held:
		t.Fatalf("a held request ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.release()
	a.release()
	run.ends(0, "0 connections open", a.addr+" is drained; nothing was stopped (no --service)")
	if err := <-held; err != nil {
		t.Errorf("the request that was open was cut: %v", err)
	}
	p.answers("b")
	after := p.workers()
	if slices.ContainsFunc(after, func(pid string) bool { return slices.Contains(workers, pid) }) {
		t.Errorf("workers %v of the earlier generation still serve: %v", workers, after)
	}

	// Once more: it is so already.
	p.begin("drain", a.addr).ends(0, "unchanged: ", "; unchanged")
	p.has(marked(before, a))
	if now := p.workers(); !slices.Equal(now, after) {
		t.Errorf("workers %v became %v: it was reloaded for nothing", after, now)
	}

	p.begin("undrain", a.addr).ends(0, "healthy: 3 of 3 checks passed", a.addr+" is back: nginx sends requests to it")
	p.has(before)
	p.answers("a", "b")
	after = p.workers()
	p.begin("undrain", a.addr).ends(0, "unchanged: ", "; unchanged")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, after) {
		t.Errorf("workers %v became %v: it was reloaded for nothing", after, now)
	}
}

// What the file says already, nginx may not serve yet. That is somebody's
// unfinished work, until the operator takes it on.
func TestDrainOfWhatIsMarkedButNotLoaded(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.write(p.conf, marked(before, a))
	p.answers("a", "b")
	p.begin("drain", a.addr).ends(4, "changed on disk after nginx was last loaded", p.conf+" (", "hint: use --accept-pending to override", "nothing was touched")
	p.answers("a", "b")
	p.begin("drain", a.addr, "--accept-pending").ends(0, "warning: changed on disk after nginx was last loaded", "was changed after nginx was last loaded", "a new generation serves")
	p.answers("b")
	p.write(p.conf, before)
	p.begin("undrain", a.addr).ends(4, "--accept-pending")
	p.answers("b")
	p.begin("undrain", a.addr, "--accept-pending").ends(0, "a new generation serves")
	p.answers("a", "b")
}

// Who edits and reloads in one command line has loaded what they wrote, however quickly
// the one follows the other.
func TestEditedAndLoadedAtOnce(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	for range 20 {
		before := p.workers()
		edit := exec.Command("sh", "-ec", `echo "# edited" >>"$1"; kill -HUP "$2"`, "sh", p.conf, strconv.Itoa(p.cmd.Process.Pid))
		if out, err := edit.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		eventually(t, "a new generation serves", func() bool {
			return !slices.ContainsFunc(p.workers(), func(w string) bool { return slices.Contains(before, w) })
		})
		p.begin("drain", a.addr, "--dry-run").ends(0, "what was checked passed")
	}
}

func TestTimeout(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)

	p.begin("drain", a.addr, "--timeout", "300ms").ends(3,
		"drainctl: error: not drained after 300ms: 1 connection open, more than 0, from 127.0.0.1 (1)",
		"rolling back",
		"drainctl: state: everything is as it was before")
	p.has(before)
	p.answers("a", "b")

	p.begin("drain", a.addr, "--timeout", "300ms", "--on-timeout", "leave").ends(3,
		"not drained after 300ms",
		a.addr+" in pool in the configuration: marked down",
		"drainctl: next: drainctl resume ", "drainctl: next: drainctl undrain "+a.addr+" --state-dir "+p.stateDir()+"   (puts it back)")
	p.has(marked(before, a))
	p.answers("b")

	// As many as the threshold are few enough.
	p.begin("drain", a.addr, "--threshold", "1").ends(0, "1 connection open", "is drained")
	select {
	case err := <-held:
		t.Fatalf("a held request ended: %v", err)
	default:
	}
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
}

func TestInterrupt(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)

	run := p.begin("drain", a.addr)
	run.says("1 open")
	run.signal()
	run.ends(130, "interrupted: rolling back; Ctrl-C again stops at once", "drainctl: error: interrupted", "drainctl: state: everything is as it was before")
	p.has(before)
	p.answers("a", "b")

	// Somebody's edit during the wait survives the way back.
	run = p.begin("drain", a.addr)
	run.says("1 open")
	p.write(p.conf, "# note to self\n"+p.read())
	run.signal()
	run.ends(130, "everything is as it was before")
	p.has("# note to self\n" + before)
	p.answers("a", "b")
	p.write(p.conf, before)

	// SIGTERM is the same.
	run = p.begin("drain", a.addr)
	run.says("1 open")
	if err := run.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	run.ends(130)
	p.has(before)
	select {
	case err := <-held:
		t.Errorf("a held request ended: %v", err)
	default:
	}
}

// A terminal that closes is an interrupt, and says so to nobody.
func TestTerminalCloses(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.hold(a)
	run := p.begin("drain", a.addr)
	run.says("1 open")
	run.send(syscall.SIGHUP)
	run.ends(130, "everything is as it was before")
	p.has(before)

	// A real one: its end of the line is gone, too.
	terminal := p.command("script", "-qefc", "drainctl drain "+a.addr+" -c "+p.conf, os.DevNull)
	terminal.says("1 open")
	p.has(marked(before, a))
	terminal.send(syscall.SIGKILL)
	<-terminal.ended
	eventually(t, "the file is put back", func() bool { return p.read() == before })
	eventually(t, "the journal has its end", func() bool {
		r := p.begin("status")
		<-r.ended
		return r.cmd.ProcessState.ExitCode() == 0 && !strings.Contains(r.output(), "draining")
	})
	p.answers("a", "b")

	// With nohup the operator has said that it shall go on.
	run = p.command("nohup", "drainctl", "drain", a.addr, "-c", p.conf)
	run.says("1 open")
	run.send(syscall.SIGHUP)
	a.release()
	run.ends(0, "is drained")
	p.has(marked(before, a))
}

// A second signal stops at once, and says what stands and how to go on.
func TestInterruptTwice(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.hold(a)
	slow := "sh -c 'if test -e " + p.dir + "/slow; then sleep 30; fi; nginx -s reload -c " + p.conf + "'"

	run := p.begin("drain", a.addr, "--reload-command", slow)
	run.says("1 open")
	p.write(p.dir+"/slow", "")
	began := time.Now()
	run.signal()
	run.says("rolling back")
	eventually(t, "the file is put back", func() bool { return p.read() == before })
	run.signal()
	run.ends(5, "interrupted again: stopping at once", "the rollback was interrupted too", "drainctl: state: ", "nginx",
		"drainctl: next: drainctl undrain "+a.addr+" --reload-command ", " --state-dir "+p.stateDir()+"   (puts it back)", "drainctl: next: drainctl resume ")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s to stop at once", took)
	}
	if err := os.Remove(p.dir + "/slow"); err != nil {
		t.Fatal(err)
	}
	p.has(before)
	// The command that it names sets all right.
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	p.answers("a", "b")
}

// While nothing is touched yet, an interrupt just ends the run, whatever it is
// waiting for.
func TestInterruptBeforeAnythingIsTouched(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	for _, more := range [][]string{nil, {"--dry-run"}} {
		mark := p.dir + "/asked"
		run := p.begin(append([]string{"drain", a.addr, "--test-command", "sh -c 'touch " + mark + "; sleep 300'"}, more...)...)
		eventually(t, "the test is run", func() bool { _, err := os.Stat(mark); return err == nil })
		run.signal()
		run.ends(130, "interrupted")
		p.has(before)
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
	}
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// The file is edited, and nginx's test of it takes long.
func TestInterruptInTheTest(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	run := p.begin("drain", a.addr, "--test-command", "sh -c 'if grep -q \" down;\" "+p.conf+"; then sleep 300; fi'")
	eventually(t, "the file is edited", func() bool { return p.read() == marked(before, a) })
	run.signal()
	run.ends(130, "interrupted", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// An exit code is not seeing: a reload that does nothing is no reload.
func TestReloadThatDoesNothing(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	p.begin("drain", a.addr, "--reload-command", "true", "--reload-timeout", "500ms").
		ends(1, "no new generation of workers was seen within 500ms", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	p.begin("drain", a.addr, "--reload-command", "sh -c 'echo the container is gone >&2; exit 3'").
		ends(1, "the container is gone", "everything is as it was before")
	p.has(before)
}

// Every reason not to begin is told at once, and nothing is touched.
func TestRefusedBeforeAnythingIsTouched(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")

	t.Run("nginx does not run", func(t *testing.T) {
		p := newProxy(t, pool(a, b))
		before := p.read()
		p.write(p.dir+"/nginx.pid", "999999999\n")
		p.begin("drain", a.addr, "--min-up", "2").ends(4, "nginx", "drainctl: hint: use --min-up 1 to override", "drainctl: state: nothing was touched")
		p.has(before)
	})
	t.Run("nginx runs another configuration", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		other := p.dir + "/other.conf"
		p.write(other, p.read())
		q := *p
		q.conf = other
		q.begin("drain", a.addr).ends(4, "was started with "+p.conf+", not with "+other, "hint: use --nginx-conf "+p.conf+" to override")
		q.has(p.read())
	})
	t.Run("the test fails", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		workers := p.workers()
		broken := strings.Replace(p.read(), "access_log off;", "access_log off; nonsense on;", 1)
		p.write(p.conf, broken)
		p.begin("drain", a.addr).ends(4, `unknown directive "nonsense" in `+p.conf, "nothing was touched")
		p.has(broken)
		if now := p.workers(); !slices.Equal(now, workers) {
			t.Errorf("workers %v became %v", workers, now)
		}
	})
	t.Run("no such unit", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		before := p.read()
		p.begin("drain", a.addr, "--service", "drainctl-no-such-unit").ends(4, "nothing was touched")
		p.has(before)
	})
	t.Run("no rights", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		before := p.read()
		letAllIn(t, p.dir)
		r := p.command("nobody", "drainctl", "drain", a.addr, "-c", p.conf)
		r.ends(4, "sudo", "nothing was touched")
		p.has(before)
	})
}

// letAllIn opens a directory, and that of the programs, to every user.
func letAllIn(t *testing.T, dir string) {
	t.Helper()
	program, err := exec.LookPath("drainctl")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dir, filepath.Dir(program)} {
		if err := openUp(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that cannot be replaced is seen before anything is touched.
func TestFileCannotBeReplaced(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	if err := os.Link(p.conf, p.dir+"/second-name"); err != nil {
		t.Fatal(err)
	}
	p.begin("drain", a.addr).ends(4, "hard links", "nothing was touched")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// So is a read-only file system under one of two files. Only drainctl sees it
// read-only, in a mount namespace of its own.
func TestFileSystemIsReadOnly(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	dir := t.TempDir()
	p := newProxy(t, pool(a, b)+"\n    include "+dir+"/*.conf;")
	p.write(dir+"/other.conf", "upstream other { server "+a.addr+"; server "+b.addr+"; }")
	p.start()
	before, workers := p.read(), p.workers()
	r := p.command("unshare", "-m", "sh", "-c", `mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"`, "sh", dir,
		"drainctl", "drain", a.addr, "-c", p.conf)
	r.ends(4, dir+"/other.conf: ", "read-only file system", "nothing was touched")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// A disk that is full when the journal is written, at any record of it, ends the
// run with everything as before; so does one that may not be written at all. Only
// drainctl sees that disk, in a mount namespace of its own.
func TestJournalDiskIsFull(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	if err := os.Mkdir(p.stateDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(mount string, args ...string) *typed {
		script := mount + ` "$0" && exec drainctl "$@"`
		return p.command("unshare", slices.Concat([]string{"-m", "sh", "-c", script, p.stateDir()}, args, []string{"-c", p.conf})...)
	}
	ends := map[int]int{}
	for pages := 1; pages <= 12; pages++ {
		r := run(fmt.Sprintf("mount -t tmpfs -o size=%dk drainctl", 4*pages), "drain", a.addr)
		<-r.ended
		code := r.cmd.ProcessState.ExitCode()
		ends[code]++
		said := r.output() + r.err.String()
		switch {
		case code == 0 && p.read() == marked(before, a):
			// What could not be written had happened already.
			p.begin("undrain", a.addr, "--force").ends(0)
		case code == 1 && p.read() == before && strings.Contains(said, "no space left on device"):
		default:
			t.Fatalf("with %d pages: exit code %d: %s\nthe file is\n%s", pages, code, said, p.read())
		}
		p.answers("a", "b")
	}
	if ends[0] == 0 || ends[1] == 0 || p.read() != before {
		t.Errorf("exit codes %v, the file is\n%s", ends, p.read())
	}
	t.Logf("exit codes: %v", ends)

	run("mount -t tmpfs -o ro drainctl", "drain", a.addr).ends(4, "lock the target on this machine: ", "read-only file system", "nothing was touched")
	p.has(before)
}

// nginx -t passes, the reload is taken, and the master keeps the old workers
// and says so in its error log alone.
func TestReloadFailsSilently(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	zone := "    limit_req_zone $binary_remote_addr zone=one:1m rate=100r/s;\n"
	p := startProxy(t, zone+pool(a, b))
	workers := p.workers()
	unfinished := strings.Replace(p.read(), "$binary_remote_addr", "$http_host", 1)
	p.write(p.conf, unfinished)
	p.begin("drain", a.addr, "--accept-pending").ends(1, `limit_req "one" uses the "$http_host" key while previously it used the "$binary_remote_addr" key`,
		"everything is as it was before")
	p.has(unfinished)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	p.answers("a", "b")
}

// A backend that is not healthy stays down.
func TestUndrainOfTheUnhealthy(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	dead := &app{addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	p := startProxy(t, strings.Replace(pool(a, b, dead), dead.addr, dead.addr+" down", 1))
	before, workers := p.read(), p.workers()
	p.begin("undrain", dead.addr, "--health-timeout", "500ms", "--force").ends(1, "not healthy after 500ms", "connection refused", "everything is as it was before")
	p.has(before)
	p.begin("undrain", dead.addr, "--health", "http://"+a.addr+"/nowhere", "--health-timeout", "500ms", "--force").ends(1, "status 404")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	// A drain of a dead backend is no problem.
	p.begin("drain", dead.addr).ends(0, "unchanged: ")
}

// Connections can be counted from the other side, too.
func TestPollOnTheLoadBalancer(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	held := p.hold(a)
	run := p.begin("drain", a.addr, "--poll", "lb")
	run.says("1 open")
	a.release()
	b.release()
	run.ends(0, "is drained")
	if err := <-held; err != nil {
		t.Error(err)
	}
}

func TestUnixSocket(t *testing.T) {
	b := startApp(t, "b")
	path := filepath.Join(t.TempDir(), "app.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := serveOn(t, "a", l, "unix:"+path)
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)
	run := p.begin("drain", a.addr)
	run.says("1 open")
	p.has(marked(before, a))
	p.answers("b")
	a.release()
	b.release()
	run.ends(0, "is drained")
	if err := <-held; err != nil {
		t.Error(err)
	}
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	p.answers("a", "b")
}

// A target in several upstreams, of which one is in a symlinked file.
func TestSeveralFiles(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	real := filepath.Join(t.TempDir(), "other.conf")
	p := newProxy(t, pool(a, b)+"\n    include other*.conf;")
	p.write(real, "upstream other { server "+a.addr+"; server "+b.addr+" weight=3; }")
	if err := os.Chmod(real, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, p.dir+"/other.conf"); err != nil {
		t.Fatal(err)
	}
	p.start()
	before := p.read()
	p.begin("drain", a.addr).ends(0, a.addr+" in pool, "+a.addr+" in other: down")
	p.has(marked(before, a))
	now, _ := os.ReadFile(real)
	if want := "upstream other { server " + a.addr + " down; server " + b.addr + " weight=3; }"; string(now) != want {
		t.Errorf("the other file is %q, want %q", now, want)
	}
	if to, err := os.Readlink(p.dir + "/other.conf"); err != nil || to != real {
		t.Errorf("the link is %q, %v", to, err)
	}
	p.begin("undrain", a.addr, "--upstream", "other").ends(0)
	p.has(marked(before, a))
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Who stops reading does not stop a drain.
func TestOutputClosed(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("drainctl", "drain", a.addr, "-c", p.conf)
	cmd.Env = p.env()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	p.has(marked(before, a))
	p.answers("b")
}

// So it is when there is no standard output from the start, nor anything else.
func TestWithoutDescriptors(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.command("sh", "-c", `exec drainctl drain "$0" -c "$1" <&- >&- 2>&-`, a.addr, p.conf).ends(0)
	p.has(marked(before, a))
	p.answers("b")
	p.command("sh", "-c", `exec drainctl undrain "$0" -c "$1" >&-`, a.addr, p.conf).ends(0)
	p.has(before)
	for _, name := range []string{"state.lock", "history/*"} {
		files, err := filepath.Glob(filepath.Join(p.stateDir(), name))
		if err != nil || len(files) == 0 {
			t.Errorf("no %s: %v", name, err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err != nil || len(b) > 0 && name == "state.lock" {
				t.Errorf("%s holds %q (%v)", f, b, err)
			}
		}
	}
}

// While one drainctl edits a load balancer, another one that is to edit it waits,
// even for another backend; the wait ends with the holder.
func TestOneEditsAtATime(t *testing.T) {
	a := startApp(t, "a")
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	b := serveOn(t, "b", l, l.Addr().String())
	c := startApp(t, "c")
	p := startProxy(t, pool(a, b, c))
	before := p.read()
	mark := p.dir + "/reloading"
	slow := "sh -c 'touch " + mark + "; while test -e " + mark + "; do sleep 0.05; done; nginx -s reload -c " + p.conf + "'"

	first := p.begin("drain", a.addr, "--reload-command", slow)
	eventually(t, "the reload is under way", func() bool { _, err := os.Stat(mark); return err == nil })
	second := p.begin("drain", b.addr)
	second.says("1/2 mark " + b.addr)
	time.Sleep(500 * time.Millisecond)
	p.has(marked(before, a))
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	first.ends(0)
	second.ends(0)
	p.has(marked(marked(before, a), b))
	p.answers("c")
	p.begin("undrain", b.addr).ends(0)
	p.begin("undrain", a.addr, "--reload-command", "nginx -s reload -c "+p.conf).ends(0)
	p.has(before)

	// Killed, it holds nothing any more.
	first = p.begin("drain", a.addr, "--reload-command", slow)
	eventually(t, "the reload is under way", func() bool { _, err := os.Stat(mark); return err == nil })
	second = p.begin("drain", b.addr)
	second.says("1/2 mark " + b.addr)
	first.send(syscall.SIGKILL)
	second.ends(0)
	p.has(marked(marked(before, a), b))
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	p.begin("undrain", a.addr, "--reload-command", "nginx -s reload -c "+p.conf).ends(0)
	p.begin("undrain", b.addr).ends(0)
	p.has(before)
	p.answers("a", "b", "c")
}

// The story as JSON.
func TestEventsAsJSON(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	run := p.begin("drain", a.addr, "--output", "json", "--verbose")
	run.says(`"event":"waiting"`)
	a.release()
	b.release()
	run.ends(0)
	if run.err.Len() != 0 {
		t.Errorf("standard error has %q", run.err.String())
	}
	events := parseEvents(t, run.output())
	var order []string
	for _, e := range events {
		name := e["event"].(string)
		if step, ok := e["step"].(string); ok {
			name += " " + step
		}
		if name != "command" && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	want := []string{"plan", "operation_started", "checked", "step_started mark down", "edited mark down", "reloaded mark down", "step_done mark down", "step_started wait", "waiting wait", "step_done wait", "result"}
	if !slices.Equal(order, want) {
		t.Errorf("events %v, want %v", order, want)
	}
	last := events[len(events)-1]
	if last["exit_code"] != 0.0 {
		t.Errorf("the last event is %v", last)
	}

	run = p.begin("drain", b.addr, "--output", "json")
	run.ends(4, `"findings":[{"code":"live-servers","lb":"this machine","text":"upstream pool (`, `nginx answers 502","override":"--min-up 0"}]`)
	parseEvents(t, run.output())
}

// parseEvents reads one JSON object a line, each with its event and time.
func parseEvents(t *testing.T, out string) []map[string]any {
	t.Helper()
	var events []map[string]any
	for line := range strings.Lines(out) {
		e := map[string]any{}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(e["time"])); err != nil || e["event"] == nil {
			t.Fatalf("no event or time (%v): %s", err, line)
		}
		if err := checkSchema(fmt.Sprint(e["event"]), []byte(line)); err != nil {
			t.Error(err)
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		t.Fatal("no event at all")
	}
	return events
}

// On a terminal the wait is drawn in place, and what stays is a line or two a step.
func TestOnATerminal(t *testing.T) {
	if _, err := exec.LookPath("script"); err != nil {
		t.Fatalf("this test needs script(1): install bsdutils (%v)", err)
	}
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	r := p.command("script", "-qefc", "stty cols 120 rows 24; LC_ALL=C.UTF-8 drainctl drain "+a.addr+" -c "+p.conf, os.DevNull)
	r.says("1 open, from 127.0.0.1 (1)")
	r.says("█  1 at most")
	a.release()
	b.release()
	<-r.ended
	if r.failed != nil {
		t.Fatalf("%v: %s", r.failed, r.output())
	}
	terminal := vt10x.New(vt10x.WithSize(120, 24))
	if _, err := io.WriteString(terminal, r.output()); err != nil {
		t.Fatal(err)
	}
	shows := regexp.MustCompile(`(?m) +$`).ReplaceAllString(terminal.String(), "")
	wanted := regexp.MustCompile(`^drain ` + a.addr + `
  ` + a.addr + ` in pool, up \(\S+\)
(warning: .*\n(  .*\n)+)?✓ 1/2 mark ` + a.addr + ` in pool down: done in [0-9.]+s
      a new generation serves: .*
✓ 2/2 wait until no connection is open: done in [0-9.]+s
      0 connections open after [0-9.m]+s
` + a.addr + ` is drained; nothing was stopped \(no --service\)
\n*$`)
	if !wanted.MatchString(shows) {
		t.Errorf("%s\nwant %s", shows, wanted)
	}
	if !terminal.CursorVisible() {
		t.Error("the cursor is hidden")
	}
}
