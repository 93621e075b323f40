package lab_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// With --poll lb the connections are counted on the load balancer: no SSH is needed, and
// none is to be had here.
func TestPollOnTheLoadBalancerNeedsNoSSH(t *testing.T) {
	l := labFor(t)
	mustRun(t, l.LB, "rm", "-r", "/root/.ssh")
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	drainctl(t, l, "drain", app.Addr, "--poll", "lb").wants(t, 0, "is drained", "nothing was stopped")
	emptySince(t, app)
	wantState(t, app, "active")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	goesOn(t, load, 100)
	emptySince(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// emptySince checks that an app holds nothing, and that its last event is an end.
func emptySince(t *testing.T, app *lab.Machine) {
	t.Helper()
	all := events(t, app)
	if last := all[len(all)-1]; last.Kind != "END" || last.Open != 0 {
		t.Errorf("%s is not empty: its last event is %+v", app.Name, last)
	}
}

// ownNginx is what a backend runs that is itself nginx: a proxy with a stub_status.
const ownNginx = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
events {}
http {
    access_log off;
    client_max_body_size 64m;
    map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
    server {
        listen 8081;
        location = /status { stub_status; }
        location / {
            proxy_pass http://127.0.0.1:8080;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }
    }
}
`

// throughOwnNginx puts nginx on the first app host between the load balancer and the
// app, and returns the line of its server.
func throughOwnNginx(t *testing.T, l *lab.Lab) string {
	t.Helper()
	app := l.Apps[0]
	if err := app.WriteFile(t.Context(), lab.NginxConfPath, []byte(ownNginx), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app, "systemctl", "start", "nginx")
	const line = "server 192.168.1.10:8081;"
	conf := strings.Replace(lab.NginxConf, app1Line, line, 1)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: conf}); err != nil {
		t.Fatal(err)
	}
	return line
}

// A backend that is nginx is counted by its own stub_status, asked from the load
// balancer or on the backend itself. The question is a connection too, and the only one
// that is left at the end.
func TestPollStubStatus(t *testing.T) {
	l := labFor(t)
	line := throughOwnNginx(t, l)
	app, before := l.Apps[0], configuration(t, l)
	if idle := mustRun(t, l.LB, "curl", "-sS", "http://192.168.1.10:8081/status"); !strings.Contains(idle, "Active connections: 1") {
		t.Fatalf("the idle nginx on %s counts %q, want the question's own connection", app.Name, idle)
	}
	load := startLoad(t, l, app)
	for _, url := range []string{"http://192.168.1.10:8081/status", "http://127.0.0.1:8081/status"} {
		drainctl(t, l, "drain", app.Addr, "--poll", "stub_status", "--status-url", url, "--service", "nginx").
			wants(t, 0, "stub_status at "+url, "nginx is inactive")
		emptySince(t, app)
		sameFiles(t, withDown(t, before, lab.NginxConfPath, line), configuration(t, l))
		drainctl(t, l, "undrain", app.Addr, "--service", "nginx").wants(t, 0)
		sameFiles(t, before, configuration(t, l))
		servesAgain(t, load, app)
		waitBusy(t, app)
	}
	noneFailed(t, load)
}

// status shows how many connections each server has from this load balancer.
func TestStatusShowsConnections(t *testing.T) {
	l := labFor(t)
	h := hold(t, l, l.Apps[0], 80)
	drainctl(t, l, "drain", "192.168.1.10", "--timeout", "1s", "--on-timeout", "leave").wants(t, 3)
	out, _, _ := strings.Cut(drainctl(t, l, "status", "--output", "json").wants(t, 0).stdout, "\n")
	type server struct {
		Server, State string
		Connections   int
	}
	var all struct{ LBs []struct{ Servers []server } }
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.LBs) != 1 {
		t.Fatalf("status --output json: %v\n%s", err, out)
	}
	status := all.LBs[0]
	if len(status.Servers) != 3 {
		t.Fatalf("status shows %d servers, want 3:\n%s", len(status.Servers), out)
	}
	for i, s := range status.Servers {
		address := fmt.Sprintf("%s:%d", l.Apps[i].Addr, lab.AppPort)
		ss := mustRun(t, l.LB, "ss", "-Htn", "state", "established", "dst "+address)
		if s.Server != address || s.Connections != strings.Count(ss, "\n") || (s.State == "up") != (i > 0) {
			t.Errorf("status says %+v of %s; ss shows:\n%s", s, address, ss)
		}
	}
	if status.Servers[0].Connections != 1 || !h.open(t) {
		t.Errorf("%d connections to app1, which holds one request", status.Servers[0].Connections)
	}
	text := drainctl(t, l, "status", "192.168.1.10").wants(t, 0, "backend_servers", "192.168.1.10:8080").stdout
	if strings.Contains(text, "192.168.1.11") {
		t.Errorf("status of one server shows another:\n%s", text)
	}
}

// A load balancer with many idle connections elsewhere still counts only the backend's.
func TestPollCountsOnlyTheBackend(t *testing.T) {
	l := labFor(t)
	other := hold(t, l, l.Apps[1], 80)
	for _, poll := range []string{"ss", "lb"} {
		began := time.Now()
		drainctl(t, l, "drain", "192.168.1.12", "--poll", poll, "--timeout", "1m").wants(t, 0)
		t.Logf("--poll %s took %s", poll, time.Since(began))
		drainctl(t, l, "undrain", "192.168.1.12").wants(t, 0)
	}
	if !other.open(t) {
		t.Error("the request that app2 held was cut")
	}
}
