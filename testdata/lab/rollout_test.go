package lab_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// bothLBs names both load balancers, as the user deploy reaches them.
var bothLBs = []string{"--lb", lab.DeployUser + "@" + lab.LBAddr, "--lb", lab.DeployUser + "@" + lab.LB2Addr}

// atDesk starts drainctl on the desk as the user deploy, over both load balancers.
func atDesk(t *testing.T, l *lab.Lab, args ...string) *typed {
	t.Helper()
	end := len(args)
	if i := slices.Index(args, "--"); i >= 0 { // what follows is the command of a run
		end = i
	}
	line := slices.Concat([]string{"drainctl"}, args[:end], bothLBs, args[end:])
	return startAt(t, l, l.Desk, lab.As(lab.DeployUser, line...)...)
}

// A rolled is a fleet, and how it was before a run.
type rolled struct {
	t      *testing.T
	l      *lab.Lab
	before []map[string]file
}

func newRolled(t *testing.T) *rolled {
	t.Helper()
	l := fleetFor(t)
	return &rolled{t, l, []map[string]file{configurationOf(t, l.LB), configurationOf(t, l.LB2)}}
}

// asBefore checks that both configurations are as they were, byte for byte, and that
// every app runs.
func (r *rolled) asBefore() {
	r.t.Helper()
	for i, lb := range r.l.LBs() {
		sameFiles(r.t, r.before[i], configurationOf(r.t, lb))
	}
	for _, app := range r.l.Apps {
		wantState(r.t, app, "active")
	}
	for _, lb := range r.l.LBs() {
		eventually(r.t, "no agent is left on "+lb.Name, func() bool {
			_, err := lb.Run(r.t.Context(), "pgrep", "-f", "drainctl agent")
			return err != nil
		})
	}
	nothingInterrupted(r.t, r.l)
}

// reloads is how often a run said that a load balancer serves with new workers.
func reloads(said, lb string) int {
	return strings.Count(said, "@"+lb+": a new generation serves")
}

// worked is the hosts that a run has worked on, in order.
func (r *rolled) worked() []string {
	r.t.Helper()
	return strings.Fields(mustRun(r.t, r.l.Desk, "cat", "/home/deploy/worked"))
}

// A deploy over the whole pool, from a third host, as a user with one line in sudoers,
// over a jump host: nobody sees it, and three batches cost four reloads on each.
func TestRollingDeploy(t *testing.T) {
	r := newRolled(t)
	load := startLoad(t, r.l, r.l.Apps[0])
	said := atDesk(t, r.l, "run", "--upstream", "backend_servers", "--service", lab.AppUnit, "--",
		"sh", "-c", "echo deployed {host}; echo {host} >>/home/deploy/worked").wait().
		wants(t, 0, "batch 3/3", lab.App2Addr+": deployed "+lab.App2Addr, "3 backends done and back in the pool").stdout
	for _, lb := range r.l.LBs() {
		if n := reloads(said, lb.Addr); n != 4 {
			t.Errorf("%d reloads on %s, want 4:\n%s", n, lb.Name, said)
		}
	}
	if got := r.worked(); !slices.Equal(got, []string{lab.App1Addr, lab.App2Addr, lab.App3Addr}) {
		t.Errorf("worked on %q", got)
	}
	for _, app := range r.l.Apps {
		stopped := slices.IndexFunc(events(t, app), func(e lab.AppEvent) bool { return e.Kind == "TERM" && e.Open == 0 })
		if stopped < 0 {
			t.Errorf("%s was not stopped, or with requests open", app.Name)
		}
		servesAgain(t, load, app)
	}
	r.asBefore()
	bothServed(t, r.l, noneFailed(t, load))
}

// The hosts themselves are rebooted, one after the other; one that needs no reboot is
// left alone.
func TestRollingReboot(t *testing.T) {
	r := newRolled(t)
	boots := map[string]string{}
	for _, app := range r.l.Apps {
		rule := lab.DeployUser + " ALL=(root) NOPASSWD: /usr/bin/systemctl reboot\n"
		if err := app.WriteFile(t.Context(), "/etc/sudoers.d/reboot", []byte(rule), 0o440); err != nil {
			t.Fatal(err)
		}
		boots[app.Name] = bootID(t, app)
		if app != r.l.Apps[1] {
			mustRun(t, app, "touch", "/var/tmp/reboot-required")
		}
	}
	load := startLoad(t, r.l, r.l.Apps[0])
	atDesk(t, r.l, "run", "--upstream", "backend_servers", "--service", lab.AppUnit, "--reboot", "--only-if", "test -e /var/tmp/reboot-required").wait().
		wants(t, 0, "skipped: "+lab.App2Addr+": --only-if: exit status 1", "2 backends done and back in the pool")
	for _, app := range r.l.Apps {
		if same := bootID(t, app) == boots[app.Name]; same != (app == r.l.Apps[1]) {
			t.Errorf("%s has the same boot ID: %t", app.Name, same)
		}
		servesAgain(t, load, app)
	}
	r.asBefore()
	bothServed(t, r.l, noneFailed(t, load))
}

// The operator is killed in the middle of the second batch: one backend is out, and
// nobody sees it. The run is resumed, and what is done is not done again.
func TestRunIsKilledAndResumed(t *testing.T) {
	r := newRolled(t)
	load := startLoad(t, r.l, r.l.Apps[0])
	// The work of the second backend waits, the first time.
	work := fmt.Sprintf("echo {host} >>/home/deploy/worked; if [ {host} = %s ] && mkdir /home/deploy/once; then echo waiting; sleep 60; fi", lab.App2Addr)
	c := atDesk(t, r.l, "run", "--upstream", "backend_servers", "--service", lab.AppUnit, "--", "sh", "-c", work)
	c.until(lab.App2Addr + ": waiting")
	mustRun(t, r.l.Desk, "sh", "-c", `kill -KILL $(pgrep -x drainctl)`)
	if end := c.wait(); end.code == 0 {
		t.Fatalf("it was not killed: %+v", end)
	}
	atDesk(t, r.l, "status").wait().wants(t, 0, "interrupted", "next: drainctl resume")
	goesOn(t, load, 100)
	atDesk(t, r.l, "resume").wait().wants(t, 0, "batch 2/2", "3 backends done and back in the pool")
	if got := r.worked(); !slices.Equal(got, []string{lab.App1Addr, lab.App2Addr, lab.App2Addr, lab.App3Addr}) {
		t.Errorf("worked on %q", got)
	}
	servesAgain(t, load, r.l.Apps[1])
	r.asBefore()
	noneFailed(t, load)
}

// Ctrl-C in a run ends it when the batch under way is back.
func TestRunIsInterrupted(t *testing.T) {
	r := newRolled(t)
	load := startLoad(t, r.l, r.l.Apps[0])
	c := atDesk(t, r.l, "run", "--upstream", "backend_servers", "--service", lab.AppUnit, "--", "sh", "-c", "echo working; sleep 2; echo {host} >>/home/deploy/worked")
	c.until("working")
	mustRun(t, r.l.Desk, "sh", "-c", `kill -INT $(pgrep -x drainctl)`)
	c.wait().wants(t, 130, "no further batch begins", "done: "+lab.App1Addr, "not begun: "+lab.App2Addr+", "+lab.App3Addr, "every backend that was taken out is back in the pool")
	if got := r.worked(); !slices.Equal(got, []string{lab.App1Addr}) {
		t.Errorf("worked on %q", got)
	}
	r.asBefore()
	noneFailed(t, load)
}

// onTest has a load balancer's nginx do something when it is asked to test a
// configuration with a server down, in place of the test.
func onTest(t *testing.T, lb *lab.Machine, then string) {
	t.Helper()
	const wrapper = "/usr/local/sbin/nginx"
	script := "#!/bin/sh\ncase \"$*\" in *-t*) if grep -q ' down;' /etc/nginx/nginx.conf; then\n" + then + "\nfi ;; esac\nexec /usr/sbin/nginx \"$@\"\n"
	if err := lb.WriteFile(t.Context(), wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := lb.Run(context.Background(), "rm", "-f", wrapper); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// All or nothing: what one load balancer refuses, or does not load, is put live on
// none.
func TestOneOfTwoLoadBalancersFails(t *testing.T) {
	drain := []string{"drain", lab.App1Addr, lab.App2Addr, "--service", lab.AppUnit, "--min-up", "1"}
	roll := []string{"run", "--upstream", "backend_servers", "--service", lab.AppUnit, "--accept-pending", "--", "touch", "/home/deploy/worked"}
	// rolled has a run end in its first batch, before its work.
	rolled := func(t *testing.T, r *rolled, why string) {
		t.Helper()
		atDesk(t, r.l, roll...).wait().wants(t, 1, "on deploy@"+lab.LB2Addr, why, "every backend that was taken out is back in the pool")
		mustRun(t, r.l.Desk, "test", "!", "-e", "/home/deploy/worked")
		r.asBefore()
	}
	t.Run("its test", func(t *testing.T) {
		r := newRolled(t)
		serving := workers(t, r.l)
		onTest(t, r.l.LB2, "echo 'policy: no server may be down' >&2; exit 1")
		atDesk(t, r.l, drain...).wait().wants(t, 1, "on deploy@"+lab.LB2Addr, "the edited configuration was refused", "everything is as it was before")
		r.asBefore()
		rolled(t, r, "the edited configuration was refused")
		sameWorkers(t, serving, workers(t, r.l))
	})
	t.Run("its reload, without a word", func(t *testing.T) {
		r := newRolled(t)
		const zone = "limit_req_zone $binary_remote_addr zone=one:1m rate=10000r/s;\n"
		if err := r.l.LB2.WriteConf(t.Context(), map[string]string{"/etc/nginx/conf.d/zone.conf": zone}); err != nil {
			t.Fatal(err)
		}
		if err := r.l.LB2.WriteFile(t.Context(), "/etc/nginx/conf.d/zone.conf", []byte(strings.Replace(zone, "$binary_remote_addr", "$remote_addr", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		r.before[1] = configurationOf(t, r.l.LB2)
		load := startLoad(t, r.l, r.l.Apps[0])
		atDesk(t, r.l, append(drain, "--accept-pending")...).wait().wants(t, 1, "on deploy@"+lab.LB2Addr, "keeps the earlier one", "everything is as it was before")
		r.asBefore()
		rolled(t, r, "keeps the earlier one")
		servesAgain(t, load, r.l.Apps[0])
		noneFailed(t, load)
	})
	t.Run("it dies between test and reload", func(t *testing.T) {
		r := newRolled(t)
		onTest(t, r.l.LB2, "/usr/sbin/nginx \"$@\" || exit; touch /root/tested; sleep 3; exit 0")
		c := atDesk(t, r.l, drain...)
		eventually(t, "lb2 has tested the edited configuration", func() bool {
			_, err := r.l.LB2.Run(t.Context(), "test", "-e", "/root/tested")
			return err == nil
		})
		if err := r.l.LB2.Cut(t.Context()); err != nil {
			t.Fatal(err)
		}
		end := c.wait().wants(t, 5, "rolling back", "deploy@"+lab.LB2Addr, "drainctl: next: drainctl undrain",
			"with --skip-unreachable-lb 1 while deploy@"+lab.LB2Addr+" cannot be reached")
		for _, app := range r.l.Apps {
			wantState(t, app, "active")
		}
		sameFiles(t, r.before[0], configurationOf(t, r.l.LB))
		mustRun(t, r.l.LB2, "rm", "/usr/local/sbin/nginx")
		if err := r.l.LB2.Mend(t.Context()); err != nil {
			t.Fatal(err)
		}
		startAt(t, r.l, r.l.Desk, lab.As(lab.DeployUser, end.next(t)...)...).wait().wants(t, 0, "are back")
		r.asBefore()
	})
}

// Two targets are one edit and one reload on each load balancer, and one that cannot be
// reached may be left out, if the operator says so.
func TestTwoTargetsOverTwoLoadBalancers(t *testing.T) {
	r := newRolled(t)
	load := startLoad(t, r.l, r.l.Apps[0])
	targets := []string{lab.App1Addr, lab.App2Addr}
	said := atDesk(t, r.l, append([]string{"drain", "--service", lab.AppUnit}, targets...)...).wait().
		wants(t, 0, lab.App1Addr+", "+lab.App2Addr+" are drained").stdout
	for _, lb := range r.l.LBs() {
		if n := reloads(said, lb.Addr); n != 1 {
			t.Errorf("%d reloads on %s, want 1:\n%s", n, lb.Name, said)
		}
	}
	for _, app := range r.l.Apps[:2] {
		stoppedIdle(t, app)
	}
	goesOn(t, load, 100)
	atDesk(t, r.l, append([]string{"undrain"}, targets...)...).wait().wants(t, 0, "are back")
	servesAgain(t, load, r.l.Apps[1])
	r.asBefore()
	noneFailed(t, load)

	if err := r.l.LB2.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	atDesk(t, r.l, "drain", lab.App1Addr).wait().wants(t, 4, "nothing was touched")
	atDesk(t, r.l, "drain", lab.App1Addr, "--skip-unreachable-lb", "1").wait().
		wants(t, 0, "deploy@"+lab.LB2Addr, "may still send requests", "is drained")
	atDesk(t, r.l, "undrain", lab.App1Addr, "--skip-unreachable-lb", "1").wait().wants(t, 0, "is back")
	if err := r.l.LB2.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.asBefore()
}
