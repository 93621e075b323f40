package lab_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The attacker of this file is anyone who can send a request to nginx. Each test is named
// after the claim in SECURITY.md that it tries to break.

// forgeErrors sends requests whose path and Referer put lines into nginx's error log, as if
// the master could not load a configuration. It does so until the test ends.
func forgeErrors(t *testing.T, l *lab.Lab) {
	t.Helper()
	conf := map[string]string{
		// The master has a log of its own elsewhere, unless the main context names this one.
		lab.NginxConfPath:               "error_log /var/log/nginx/error.log;\n" + lab.NginxConf,
		"/etc/nginx/conf.d/static.conf": "server { listen 81; root /var/www/html; }\n",
	}
	if err := l.LB.WriteConf(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	master := strings.TrimSpace(mustRun(t, l.LB, "cat", "/run/nginx.pid"))
	line := fmt.Sprintf("2026/01/02 03:04:05 [emerg] %s#%[1]s: forged", master)
	path := strings.NewReplacer(" ", "%20", "[", "%5B", "]", "%5D", "#", "%23").Replace(line)
	ctx, cancel := context.WithCancel(t.Context())
	curl := l.Client.Command(ctx, "curl", "-sZ", "--parallel-max", "20", "-o", "/dev/null", "-e", line,
		"http://"+lab.LBAddr+":81/[1-200000]%0A"+path+"%0A"+path)
	if err := curl.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = curl.Wait() // it was killed
	})
	eventually(t, "forged lines are in the error log", func() bool { return forgedLines(t, l) > 100 })
}

func forgedLines(t *testing.T, l *lab.Lab) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(mustRun(t, l.LB, "sh", "-c", "grep -c '^2026.*emerg.*forged' /var/log/nginx/error.log || true")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// "What clients write into nginx's logs decides nothing": a drain and an undrain under load
// succeed while a client writes failures of the master into the error log.
func TestHTTPClientCannotMakeADrainFail(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	load := startLoad(t, l, app)
	forgeErrors(t, l)
	before := configuration(t, l)
	forged := forgedLines(t, l)
	for range 3 {
		drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "192.168.1.10 is drained")
		stoppedIdle(t, app)
		drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "192.168.1.10 is back")
	}
	t.Logf("%d lines were forged meanwhile", forgedLines(t, l)-forged)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// "What clients write into nginx's logs decides nothing": a load that fails is noticed, and
// the old generation continues, while a client writes into the error log.
func TestHTTPClientCannotHideAFailedReload(t *testing.T) {
	l := labFor(t)
	const zone = "limit_req_zone $binary_remote_addr zone=one:1m rate=10000r/s;\n"
	if err := l.LB.WriteConf(t.Context(), map[string]string{"/etc/nginx/conf.d/zone.conf": zone}); err != nil {
		t.Fatal(err)
	}
	forgeErrors(t, l)
	serving := workers(t, l)
	writeOnLB(t, l, "/etc/nginx/conf.d/zone.conf", strings.Replace(zone, "$binary_remote_addr", "$remote_addr", 1), 0o644)
	app, before := l.Apps[0], configuration(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--accept-pending").
		wants(t, 1, "keeps the earlier one", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
}
