package nginx

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// starting starts a process like an nginx that reads a configuration: it has not titled itself yet.
func starting(t *testing.T, conf string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	shell, err := os.ReadFile("/bin/sh")
	if err == nil {
		err = os.WriteFile(dir+"/nginx", shell, 0o755)
	}
	write(t, dir, map[string]string{"sleeps": "kill -STOP $$"})
	cmd := exec.Command(dir+"/nginx", dir+"/sleeps", "-c", conf)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// nginx is stopped only if no process may have the configuration: whatever the PID file says.
func TestStopped(t *testing.T) {
	const short = 200 * time.Millisecond
	n, other := startNginx(t, ""), startNginx(t, "")
	conf, err := Load(t.Context(), n.binary.Conf)
	if err != nil {
		t.Fatal(err)
	}
	running, pidFile := n.running(), conf.PIDPath(Build{})
	master := running.Master.PID
	stopped := func(what string, want bool, wantErr string, processes ...int) {
		t.Helper()
		b := n.binary
		b.proc = proc(t, processes...)
		is, err := b.Stopped(t.Context(), conf, short)
		if is != want || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%s: %t, %v; want %t, %q", what, is, err, want, wantErr)
		}
	}
	theirs := append([]int{other.running().Master.PID}, other.running().Workers[0].PID)
	stopped("a master runs", false, "", master)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(pidFile)
	must(err)
	must(os.Remove(pidFile))
	stopped("a master without its PID file", false, " nginx with "+conf.Path, append(theirs, master)...)
	stopped("workers without a master", false, " nginx with "+conf.Path+" (PID "+strconv.Itoa(running.Workers[0].PID), append(theirs, running.Workers[0].PID)...)
	stopped("another nginx", true, "", theirs...)
	stopped("nothing", true, "")
	must(os.WriteFile(pidFile, []byte("x\n"), 0o644))
	stopped("no PID in the file", true, "", theirs...)
	stopped("it starts", false, " nginx (PID ", starting(t, conf.Path).Process.Pid)
	stopped("another nginx starts", true, "", starting(t, other.binary.Conf).Process.Pid)
	must(os.WriteFile(pidFile, content, 0o644))
}

// An nginx that starts is waited for: it may become the master, or it has only tested the files.
func TestStoppedAwaitsAStart(t *testing.T) {
	n := startNginx(t, "")
	conf, err := Load(t.Context(), n.binary.Conf)
	if err != nil {
		t.Fatal(err)
	}
	pidFile, master := conf.PIDPath(Build{}), n.running().Master.PID
	for _, becomes := range []bool{true, false} {
		if err := os.Rename(pidFile, pidFile+".kept"); err != nil {
			t.Fatal(err)
		}
		start := starting(t, conf.Path)
		b := n.binary
		b.proc = proc(t, start.Process.Pid)
		go func() {
			time.Sleep(100 * time.Millisecond)
			if becomes {
				_ = os.Symlink("/proc/"+strconv.Itoa(master), filepath.Join(b.proc, strconv.Itoa(master)))
				_ = os.Rename(pidFile+".kept", pidFile)
			}
			_ = start.Process.Signal(syscall.SIGKILL)
			_ = start.Wait()
		}()
		stopped, err := b.Stopped(t.Context(), conf, time.Minute)
		if err != nil || stopped == becomes {
			t.Errorf("it becomes the master %t: stopped %t, %v", becomes, stopped, err)
		}
		_ = os.Rename(pidFile+".kept", pidFile)
	}
}
