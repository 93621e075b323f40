package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/bench"
	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// A zone of shared memory cannot get another key. nginx's test and its reload end with
// 0 all the same, and the old workers go on with the old configuration.
func TestSilentReloadFailureByZone(t *testing.T) {
	l := labFor(t)
	const zone = "limit_req_zone $binary_remote_addr zone=one:1m rate=10000r/s;\n"
	if err := l.LB.WriteConf(t.Context(), map[string]string{"/etc/nginx/conf.d/zone.conf": zone}); err != nil {
		t.Fatal(err)
	}
	writeOnLB(t, l, "/etc/nginx/conf.d/zone.conf", strings.Replace(zone, "$binary_remote_addr", "$remote_addr", 1), 0o644)
	silentFailure(t, l, `limit_req "one" uses the "$remote_addr" key while previously it used the "$binary_remote_addr" key`)
}

// A port that another process holds: nginx tries for two seconds, and gives up.
func TestSilentReloadFailureByPort(t *testing.T) {
	l := labFor(t)
	holder := start(t, l, "/usr/sbin/sshd", "-D", "-p", "81", "-o", "PidFile=none")
	defer func() { holder.cancel(); _ = holder.cmd.Wait() }()
	eventually(t, "somebody listens on port 81", func() bool {
		return strings.Contains(mustRun(t, l.LB, "ss", "-Hltn", "sport = :81"), ":81")
	})
	writeOnLB(t, l, "/etc/nginx/conf.d/more.conf", "server { listen 81; }\n", 0o644)
	silentFailure(t, l, "bind() to 0.0.0.0:81 failed")
}

// silentFailure drains where nginx will not load the configuration, though it says
// nothing of it: that is noticed, the file is put back, and nothing was stopped.
func silentFailure(t *testing.T, l *lab.Lab, why string) {
	t.Helper()
	mustRun(t, l.LB, "nginx", "-t")
	app, before, serving := l.Apps[0], configuration(t, l), workers(t, l)
	load := startLoad(t, l, app)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--accept-pending").
		wants(t, 1, "keeps the earlier one", why, "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
	servesAgain(t, load, app)
	noneFailed(t, load)
	for _, e := range events(t, app) {
		if e.Kind == "TERM" {
			t.Errorf("the app was told to stop: %+v", e)
		}
	}
}

// While nginx loads a large configuration the old workers go on accepting, for seconds
// perhaps. Nothing that is counted before they stop means anything: with few fast
// requests the backend is empty most of the time, and yet the next one comes.
func TestSlowReload(t *testing.T) {
	l := labFor(t)
	loadLargeConf(t, l)
	app, before, earlier := l.Apps[0], configuration(t, l), workers(t, l)
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{Only: traffic.Fast, Clients: 6, Streams: -1})
	if err != nil {
		t.Fatal(err)
	}
	servesAgain(t, load, app)
	accepted := watchWorkers(t, l, earlier)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "a new generation serves")
	last := accepted()
	stoppedIdle(t, app)
	all := events(t, app)
	if stop := all[len(all)-1].Time; stop.Before(last) {
		t.Errorf("the app was stopped %s before the earlier workers were last seen to accept", last.Sub(stop))
	}
	drained := configuration(t, l)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), drained)
	stillAccepted(t, app, drained[lab.NginxConfPath].mod)
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	if n := noneFailed(t, load).Retried; n > 0 {
		t.Errorf("%d requests were sent to a server that was stopped", n)
	}
}

// loadLargeConf has nginx load 100,000 servers in 500 files beside the lab's own.
func loadLargeConf(t *testing.T, l *lab.Lab) {
	t.Helper()
	const dir = "/etc/nginx/large"
	if err := bench.Large().Write(filepath.Join(l.LB.Root, dir)); err != nil {
		t.Fatal(err)
	}
	// Of the large configuration only the pools: the rest is the lab's.
	if err := os.Remove(filepath.Join(l.LB.Root, dir, "nginx.conf")); err != nil {
		t.Fatal(err)
	}
	include := "    server_names_hash_max_size 4096;\n    include " + dir + "/pools/*.conf;\n    include /etc/nginx/conf.d/"
	conf := strings.Replace(lab.NginxConf, "    include /etc/nginx/conf.d/", include, 1)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: conf}); err != nil {
		t.Fatal(err)
	}
}

// watchWorkers looks at the earlier workers until none of them accepts connections. The
// function that it returns waits for that, and tells when one was last seen to accept.
func watchWorkers(t *testing.T, l *lab.Lab, earlier []int) (last func() time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	seen := make(chan time.Time, 1)
	go func() {
		defer cancel()
		var latest time.Time
		for accept := true; accept && ctx.Err() == nil; {
			looked := time.Now()
			now, err := l.LB.Workers(ctx)
			accept = err != nil || slices.ContainsFunc(earlier, func(pid int) bool { return now[pid] })
			if err == nil && accept {
				latest = looked
			}
			time.Sleep(20 * time.Millisecond)
		}
		seen <- latest
	}()
	return func() time.Time {
		latest := <-seen
		if latest.IsZero() {
			t.Error("the earlier workers were never seen to accept")
		}
		return latest
	}
}

// stillAccepted checks that the app got requests after the configuration was edited:
// if not, the load of it was not slow, and the test has shown nothing.
func stillAccepted(t *testing.T, app *lab.Machine, edited time.Time) {
	t.Helper()
	late := 0
	var last time.Duration
	for _, e := range events(t, app) {
		if e.Kind == "START" && e.Time.After(edited) {
			late++
			last = e.Time.Sub(edited)
		}
	}
	said := fmt.Sprintf("%s got %d requests after the configuration was edited, the last %s after it", app.Name, late, last)
	if late == 0 {
		t.Error(said)
	}
	t.Log(said)
}
