package lab_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

func TestEveryAppAnswersThroughTheLoadBalancer(t *testing.T) {
	l := labFor(t)
	seen := map[string]int{}
	for range 9 {
		out := mustRun(t, l.Client, "curl", "-sS", "--fail", "--max-time", "10", "http://"+lab.LBAddr+"/")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		seen[lines[len(lines)-1]]++
	}
	for _, app := range l.Apps {
		if seen["END "+app.Name] != 3 {
			t.Errorf("of 9 answers %v came from the apps, want 3 from each", seen)
			break
		}
	}
}

func TestLoadWithoutFaultHasNoFailure(t *testing.T) {
	l := labFor(t)
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	s, err := load.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", s)
	if s.Failed != 0 || s.Retried != 0 {
		t.Errorf("%d failed and %d retried, want none: nothing happened to the lab", s.Failed, s.Retried)
	}
	if s.Requests < 100 || s.Held < 10 || s.Uploads < 1 || s.Streams < 20 || s.Lines < 100 {
		t.Errorf("the load is thin: %s", s)
	}
	for _, app := range l.Apps {
		if s.Servers[app.Name].Requests == 0 || s.Servers[app.Name].Streams == 0 {
			t.Errorf("%s got no share of it: %v", app.Name, s.Servers)
		}
	}
}

// What the lab is there to see, it does see.
func TestStoppingAnAppUnderLoadIsSeen(t *testing.T) {
	l := labFor(t)
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	waitBusy(t, l.Apps[0])
	mustRun(t, l.Apps[0], "systemctl", "stop", lab.AppUnit)
	s, err := load.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", s)
	streams := 0
	for _, f := range s.Failures {
		if strings.HasPrefix(f.What, "stream") {
			streams++
		}
	}
	if streams == 0 || s.Failed == streams {
		t.Errorf("an app with streams and requests open was stopped, and %d streams and %d requests failed, want some of both", streams, s.Failed-streams)
	}
	events, err := l.Apps[0].AppEvents()
	if err != nil {
		t.Fatal(err)
	}
	last := events[len(events)-1]
	if last.Kind != "TERM" || last.Open == 0 {
		t.Fatalf("the app's last event is %+v, want TERM with requests open", last)
	}
	// One that was just ending may have got all of its answer.
	if seen := s.Failed + s.Retried; seen < last.Open/2 {
		t.Errorf("the app had %d open when it was stopped, and the clients saw only %d", last.Open, seen)
	}
}

// waitBusy waits until an app has some streams and some held requests open.
func waitBusy(t *testing.T, app *lab.Machine) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		events, err := app.AppEvents()
		if err != nil {
			t.Fatal(err)
		}
		open := map[int]string{}
		for _, e := range events {
			switch e.Kind {
			case "START":
				open[e.Request] = e.What
			case "END":
				delete(open, e.Request)
			}
		}
		streams, held := 0, 0
		for _, what := range open {
			switch {
			case strings.HasPrefix(what, "GET /ws"):
				streams++
			case strings.HasPrefix(what, "GET /slow"), strings.HasPrefix(what, "POST /hold"):
				held++
			}
		}
		if streams >= 3 && held >= 3 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d streams and %d held requests open, want 3 of each", app.Name, streams, held)
		}
	}
}

func TestReloadUnderLoadIsNoFailure(t *testing.T) {
	l := labFor(t)
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		before := load.Snapshot().Requests
		conf := map[string]string{lab.NginxConfPath: lab.NginxConf + "# " + time.Now().String() + "\n"}
		if err := l.LB.WriteConf(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
		more := func(s traffic.Summary) bool { return s.Requests > before+50 }
		if err := load.WaitFor(t.Context(), time.Minute, more); err != nil {
			t.Fatal(err)
		}
	}
	s, err := load.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", s)
	if s.Failed != 0 {
		t.Errorf("%d failed, want none", s.Failed)
	}
}

func TestCutAndMend(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	reach := func() error {
		_, err := l.LB.Run(t.Context(), "ssh", "-o", "ConnectTimeout=2", "-o", "BatchMode=yes", app.Addr, "true")
		return err
	}
	if err := reach(); err != nil {
		t.Fatal(err)
	}
	if err := app.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if reach() == nil {
		t.Errorf("%s is reached with its cable pulled", app.Name)
	}
	if err := app.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for err := reach(); err != nil; err = reach() {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not reached again: %v", app.Name, err)
		}
	}
}

func TestUsersMayDoWhatTheyShould(t *testing.T) {
	l := labFor(t)
	as := func(user, command string) (string, error) {
		return l.LB.Run(t.Context(), "ssh", "-o", "BatchMode=yes", user+"@"+lab.App1Addr, command)
	}
	for _, test := range []struct {
		user, command string
		ok            bool
		says          string
	}{
		{"root", "systemctl is-active my-web-app", true, "active"},
		{lab.DeployUser, "sudo -n systemctl stop my-web-app", true, ""},
		{lab.DeployUser, "systemctl is-active my-web-app", false, "inactive"},
		{lab.DeployUser, "sudo -n systemctl start my-web-app", true, ""},
		{lab.DeployUser, "sudo -n systemctl stop ssh", false, "a password is required"},
		{lab.DeployUser, "ss -Htn state established '( sport = :22 )'", true, "192.168.1.10:22"},
		{lab.NoSudoUser, "sudo -n systemctl stop my-web-app", false, "a password is required"},
		{lab.NoSudoUser, "echo drainctl | sudo -S systemctl is-active my-web-app", true, "active"},
	} {
		out, err := as(test.user, test.command)
		if (err == nil) != test.ok || !strings.Contains(out, test.says) {
			t.Errorf("%s: %s: got %q, error %v; want %q, success %t", test.user, test.command, out, err, test.says, test.ok)
		}
	}
}

func TestHostsHaveFilesOfTheirOwn(t *testing.T) {
	l := labFor(t)
	const name = "/usr/local/share/drainctl-lab-test/file"
	if err := l.LB.WriteFile(t.Context(), name, []byte("on lb\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, l.LB, "stat", "-c", "%a %U", name); out != "640 root\n" {
		t.Errorf("the file has mode and owner %q, want 640 root", out)
	}
	for _, other := range []string{name, filepath.Join(l.Apps[0].Root, name)} {
		if _, err := os.Lstat(other); !os.IsNotExist(err) {
			t.Errorf("%s is there too: %v", other, err)
		}
	}
	// An absolute symlink leads to the host's file and not to the machine's.
	mustRun(t, l.LB, "ln", "-s", name, "/etc/nginx/sites-enabled/link")
	if data, err := l.LB.ReadFile(t.Context(), "/etc/nginx/sites-enabled/link"); err != nil || string(data) != "on lb\n" {
		t.Errorf("read through a symlink: %q, %v", data, err)
	}
	if err := l.LB.WriteFile(t.Context(), "/etc/nginx/sites-enabled/link", []byte("# again\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(l.LB.Root, name)); err != nil || string(data) != "# again\n" {
		t.Errorf("the file seen from outside: %q, %v", data, err)
	}
}

func TestResetPutsEverythingBack(t *testing.T) {
	l := labFor(t)
	app := l.Apps[1]
	if err := l.LB.WriteConf(t.Context(), map[string]string{
		lab.NginxConfPath:             strings.Replace(lab.NginxConf, "server 192.168.1.11:8080;", "server 192.168.1.11:8080 down;", 1),
		"/etc/nginx/conf.d/more.conf": "upstream more { server 192.168.1.10:8080; }\n",
	}); err != nil {
		t.Fatal(err)
	}
	mustRun(t, l.LB, "sh", "-c", "rm /root/.ssh/known_hosts; mkdir -p /var/lib/drainctl; touch /var/lib/drainctl/journal")
	if err := app.WriteFile(t.Context(), "/etc/default/my-web-app", []byte("OPTIONS=-ignore-term\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	mustRun(t, app, "sh", "-c", "rm /etc/ssh/ssh_host_*; systemctl start nginx")
	for _, m := range []*lab.Machine{l.LB, app} {
		if err := m.WriteFile(t.Context(), "/usr/local/bin/ss", []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := app.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conf, err := l.LB.ReadFile(t.Context(), lab.NginxConfPath); err != nil || string(conf) != lab.NginxConf {
		t.Errorf("nginx.conf is not as it was: %q, %v", conf, err)
	}
	mustRun(t, l.LB, "sh", "-c", "test ! -e /etc/nginx/conf.d/more.conf && test ! -e /var/lib/drainctl")
	mustRun(t, l.LB, "ssh", "-o", "BatchMode=yes", app.Addr, "systemctl is-active my-web-app && ! systemctl is-active nginx && ss -H >/dev/null")
	mustRun(t, l.LB, "ss", "-H")
}

func TestCommandsEndWithTheirContext(t *testing.T) {
	l := labFor(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.LB.Run(ctx, "sleep", "98765"); err == nil {
		t.Error("a command outlived its context")
	}
	if out, err := l.LB.Run(t.Context(), "pgrep", "-f", "^sleep 98765"); err == nil {
		t.Errorf("the command still runs on the host: %s", out)
	}
}

// A command that shells have built in is the host's program all the same: a number of a
// process means one of the host's.
func TestCommandsRunInsideTheHost(t *testing.T) {
	l := labFor(t)
	if out := mustRun(t, l.LB, "kill", "--version"); !strings.HasPrefix(out, "kill from ") {
		t.Errorf("kill is not a program: %s", out)
	}
	outside, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	if inside := strings.TrimSpace(mustRun(t, l.LB, "readlink", "/proc/self/ns/pid")); inside == outside {
		t.Errorf("a command runs among the machine's processes: %s", inside)
	}
}

// Two labs are up side by side, have the same addresses, and know nothing of each other.
func TestLabsSideBySide(t *testing.T) {
	l := labFor(t)
	other, err := lab.Up(t.Context(), lab.Options{Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Down() })
	if other.Number == l.Number {
		t.Fatalf("both labs are number %d", l.Number)
	}
	mustRun(t, l.Apps[0], "systemctl", "stop", lab.AppUnit)
	wantState(t, other.Apps[0], "active")
	if err := l.Apps[1].Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, other.LB, "ssh", "-o", "BatchMode=yes", lab.App2Addr, "true")
	if err := takeDown(other); err != nil {
		t.Error(err)
	}
	wantState(t, l.Apps[1], "active")
	if err := l.Reset(t.Context()); err != nil {
		t.Error(err)
	}
}

func mustRun(t *testing.T, m *lab.Machine, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
