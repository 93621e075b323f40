package lab_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A second operator on the same target is told who works on it, since when and why, and
// may wait.
func TestSecondOperatorOnTheSameTarget(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	s := openStream(t, l, app)
	first := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--reason", "new kernel")
	first.until(" open, from 192.168.1.2 ")
	for _, line := range [][]string{{"drain", app.Addr, "-s", lab.AppUnit}, {"undrain", app.Addr}, {"resume"}} {
		drainctl(t, l, line...).wants(t, 4, "192.168.1.10 is locked by drain 192.168.1.10 by root on lb, 20", `"new kernel"`, "--wait", "nothing was touched")
	}
	drainctl(t, l, "status", app.Addr).wants(t, 0, "draining", "new kernel")
	waiting := start(t, l, "drainctl", "undrain", app.Addr, "--wait")
	waiting.until("waiting for another operation to end: drain 192.168.1.10 by root on lb")
	s.end()
	first.wait().wants(t, 0, "is drained")
	waiting.wait().wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// Two operators drain two servers of one load balancer at the same time. Both get what
// they want where enough servers are left, else one of them is refused.
func TestTwoOperatorsOnTwoTargets(t *testing.T) {
	l := labFor(t)
	before := configuration(t, l)
	load := lightLoad(t, l, l.Apps[0])
	both := func(minUp string) []ending {
		var running []*typed
		for _, app := range l.Apps[:2] {
			running = append(running, start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--min-up", minUp))
		}
		return []ending{running[0].wait(), running[1].wait()}
	}
	ends := both("2")
	codes := []int{ends[0].code, ends[1].code}
	slices.Sort(codes)
	if !slices.Equal(codes, []int{0, 4}) {
		t.Errorf("exit codes %v, want one 0 and one 4:\n%v", codes, ends)
	}
	for _, end := range ends {
		if end.code == 4 {
			end.wants(t, 4, "would keep 1 live server, fewer than 2", "--min-up 1", "nothing was touched")
		}
	}
	if n := strings.Count(configuration(t, l)[lab.NginxConfPath].text, " down;"); n != 1 {
		t.Errorf("%d servers are down, want 1", n)
	}
	for _, app := range l.Apps[:2] {
		drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	}
	sameFiles(t, before, configuration(t, l))

	for _, end := range both("1") {
		end.wants(t, 0, "is drained")
	}
	for _, app := range l.Apps[:2] {
		stoppedIdle(t, app)
	}
	var back []*typed
	for _, app := range l.Apps[:2] {
		back = append(back, start(t, l, "drainctl", "undrain", app.Addr))
	}
	for _, c := range back {
		c.wait().wants(t, 0, "is back")
	}
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, l.Apps[0])
	servesAgain(t, load, l.Apps[1])
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// Configuration management writes its template over the file while the drain waits, and
// reloads nginx: requests are sent to the backend again, so it is not stopped, and what
// was written stays.
func TestTemplateWrittenInTheWait(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)
	s := openStream(t, l, app)
	c := waitingDrain(t, l, before)
	onlyOpen(t, app, 1)

	// One that has the server down, as somebody would who knows: the drain goes on.
	knowing := strings.Replace(lab.NginxConf, app1Line, "server 192.168.1.10:8080 down;", 1) + "# managed\n"
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: knowing}); err != nil {
		t.Fatal(err)
	}
	drainctl(t, l, "status", app.Addr).wants(t, 0, "draining")

	template := lab.NginxConf + "# managed by config management\n"
	written := time.Now()
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: template}); err != nil {
		t.Fatal(err)
	}
	c.until("down was removed from the configuration by another process")
	t.Logf("noticed %s after the file was written, with the reload", time.Since(written))
	s.echoes(t)
	c.wait().wants(t, 1, "192.168.1.10:8080 in backend_servers", "everything is as it was before")
	if text := configuration(t, l)[lab.NginxConfPath].text; text != template {
		t.Errorf("the template is not what stands:\n%s", text)
	}
	s.echoes(t)
	wantState(t, app, "active")
	for _, e := range events(t, app) {
		if e.Kind == "TERM" {
			t.Errorf("the app was told to stop: %+v", e)
		}
	}
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// otherLB is the nginx of a load balancer that nobody has told.
const otherLB = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
events {}
http {
    access_log off;
    server {
        listen 8090;
        location / { proxy_pass http://192.168.1.10:8080; }
    }
}
`

// Another load balancer goes on sending requests to the backend: it is said from where,
// and the service is not stopped while they come.
func TestAnotherLoadBalancerStillSends(t *testing.T) {
	l := labFor(t)
	app, other, before := l.Apps[0], l.Apps[2], configuration(t, l)
	if err := other.WriteFile(t.Context(), lab.NginxConfPath, []byte(otherLB), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, other, "systemctl", "start", "nginx")
	load := lightLoad(t, l, app)
	stop := requests(t, l, "http://"+other.Addr+":8090/")

	const says = "192.168.1.12 still opens connections: another load balancer?"
	end := drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--timeout", "5s").wants(t, 3, says, "everything is as it was before")
	t.Logf("%s", end.stderr)
	if n := strings.Count(end.stdout, says); n != 1 {
		t.Errorf("it is said %d times, want once:\n%s", n, end.stdout)
	}
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")

	// It stops sending while the drain waits.
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
	c.until(says)
	if failed := stop(); failed > 0 {
		t.Errorf("%d of the other load balancer's requests failed", failed)
	}
	c.wait().wants(t, 0, "is drained")
	stoppedIdle(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)

	// It may send, as monitoring may.
	stop = requests(t, l, "http://"+other.Addr+":8090/health")
	drained := drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--ignore-peer", "192.168.1.12/31").wants(t, 0)
	if strings.Contains(drained.stdout, says) {
		t.Errorf("it tells of a peer that is ignored:\n%s", drained.stdout)
	}
	stop()
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	noneFailed(t, load)
}

// requests sends one request after another from the clients' network, some a second,
// until it is stopped; it then tells how many had no good answer.
func requests(t *testing.T, l *lab.Lab, url string) (stop func() (failed int)) {
	t.Helper()
	const loop = `trap 'exit 0' INT; while :; do curl -sS --fail --max-time 20 -o /dev/null "$1" || echo failed; sleep 0.1; done`
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	cmd := l.Client.Command(ctx, "bash", "-c", loop, "requests", url)
	said := &screen{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() int {
		if err := l.Client.Signal(cmd, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // by the signal
		cancel()
		return strings.Count(said.String(), "failed")
	}
}

// elsewhere makes a host a place to work from: drainctl, and the operator's keys.
func elsewhere(t *testing.T, l *lab.Lab, m *lab.Machine) {
	t.Helper()
	if err := l.MakeOperator(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// startAt types a command on any host.
func startAt(t *testing.T, l *lab.Lab, m *lab.Machine, args ...string) *typed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	c := &typed{t: t, l: l, line: m.Name + ": " + strings.Join(args, " "), cancel: cancel, stdout: &screen{}, stderr: &screen{}}
	c.cmd = m.Command(ctx, args...)
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	if err := c.cmd.Start(); err != nil {
		cancel()
		t.Fatalf("%s: %v", c.line, err)
	}
	return c
}

const lbFlag = lab.LBFlag

// What was begun on the load balancer and killed is gone on with, and taken back, from
// another machine, and the other way round.
func TestFromAnotherMachine(t *testing.T) {
	l := labFor(t)
	app, desk, before := l.Apps[0], l.Apps[2], configuration(t, l)
	drained := withDown(t, before, lab.NginxConfPath, app1Line)
	elsewhere(t, l, desk)
	load := lightLoad(t, l, app)

	s := openStream(t, l, app)
	c := waitingDrain(t, l, before)
	c.signal(unix.SIGKILL)
	c.wait()
	s.end()
	startAt(t, l, desk, "drainctl", "status", lbFlag).wait().wants(t, 0, "interrupted", "root on lb")
	startAt(t, l, desk, "drainctl", "resume", lbFlag).wait().wants(t, 0, "192.168.1.10 is drained")
	stoppedIdle(t, app)
	sameFiles(t, drained, configuration(t, l))
	startAt(t, l, desk, "drainctl", "undrain", app.Addr, lbFlag).wait().wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	nothingInterrupted(t, l)

	// Begun there and killed, taken back here. Its claim dies with its connection.
	s = openStream(t, l, app)
	c = startAt(t, l, desk, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, lbFlag)
	c.until(" open, from 192.168.1.2 ")
	drainctl(t, l, "undrain", app.Addr).wants(t, 4, "by root on app3")
	c.signal(unix.SIGKILL)
	c.wait()
	drainctl(t, l, "undrain", app.Addr, "--wait").wants(t, 0)
	s.echoes(t)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// The operator's machine loses its network in the middle of the wait. Its claim ends by
// itself, the drain is taken back from the load balancer, and drainctl at the other end
// says what it last knew.
func TestOperatorIsCutOff(t *testing.T) {
	l := labFor(t)
	app, desk, before := l.Apps[0], l.Apps[2], configuration(t, l)
	elsewhere(t, l, desk)
	s := openStream(t, l, app)
	c := startAt(t, l, desk, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, lbFlag)
	c.until(" open, from 192.168.1.2 ")
	if err := desk.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	drainctl(t, l, "undrain", app.Addr).wants(t, 4, "by root on app3")
	drainctl(t, l, "undrain", app.Addr, "--wait").wants(t, 0, "waiting for another operation to end", "is back")
	sameFiles(t, before, configuration(t, l))
	s.echoes(t)
	end := c.wait().wants(t, 5, "the connection to the load balancer root@192.168.1.2 broke", "marked down", "not touched by this run")
	if err := desk.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", end.stderr)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}
