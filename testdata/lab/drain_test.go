package lab_test

import (
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// The main job: a busy backend is taken out and put back, and no client sees it.
func TestDrainAndUndrainUnderLoad(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)

	drainctl(t, l, "drain", app.Addr, "--service", lab.AppUnit).
		wants(t, 0, "192.168.1.10 is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	wantState(t, app, "inactive")
	drained := configuration(t, l)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), drained)
	drainctl(t, l, "status", app.Addr).wants(t, 0, "drained by root on ")
	goesOn(t, load, 100)

	drainctl(t, l, "undrain", app.Addr, "--service", lab.AppUnit).
		wants(t, 0, "192.168.1.10 is back", "my-web-app is active")
	wantState(t, app, "active")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// nginx reads all of an upload before it connects to a server, and the workers from
// before the reload may choose the one that is going away for what they are reading.
// The gauge reads 0 meanwhile.
func TestDrainWaitsForUploadsThatNoServerHasYet(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{Only: traffic.Uploads, Streams: -1})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		servesAgain(t, load, app)
		goesOn(t, load, 60)
		drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
		stoppedIdle(t, app)
		drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	}
	// One that finds the server gone is sent to another; only luck keeps it from being
	// sent a moment earlier.
	if n := noneFailed(t, load).Retried; n > 0 {
		t.Errorf("%d requests were sent to a server that was stopped", n)
	}
}

// The backend is reached as a user who may do two things with sudo: once named on the
// line, once in ssh's configuration.
func TestDrainAsUserWithSudo(t *testing.T) {
	l := labFor(t)
	before := configuration(t, l)
	load := startLoad(t, l, l.Apps[0])
	writeOnLB(t, l, "/root/.ssh/config", "Host 192.168.1.11\n    User deploy\n", 0o600)

	for _, test := range []struct {
		app   *lab.Machine
		flags []string
	}{{l.Apps[0], []string{"--ssh-user", lab.DeployUser}}, {l.Apps[1], nil}} {
		args := append([]string{test.app.Addr, "--service", lab.AppUnit, "--verbose"}, test.flags...)
		drainctl(t, l, append([]string{"drain"}, args...)...).
			wants(t, 0, "[deploy@"+test.app.Addr+"]", "sudo -n systemctl stop my-web-app", "is drained")
		stoppedIdle(t, test.app)
		wantState(t, test.app, "inactive")
		drainctl(t, l, append([]string{"undrain"}, args...)...).
			wants(t, 0, "[deploy@"+test.app.Addr+"]", "sudo -n systemctl start my-web-app", "is back")
		sameFiles(t, before, configuration(t, l))
		servesAgain(t, load, test.app)
	}
	noneFailed(t, load)
}

const (
	shopFile = "/etc/nginx/sites-available/shop.conf"
	shopLink = "/etc/nginx/sites-enabled/shop"
	shopSite = "upstream shop {\n\tserver 192.168.1.10:8080 weight=2;\n\tserver 192.168.1.11:8080;\n}\n" +
		"server {\n\tlisten 81;\n\tlocation / {\n\t\tproxy_pass http://shop;\n" +
		"\t\tproxy_http_version 1.1;\n\t\tproxy_set_header Upgrade $http_upgrade;\n\t\tproxy_set_header Connection $connection_upgrade;\n" +
		"\t\tadd_header X-Upstream-Addr $upstream_addr always;\n\t}\n}"
)

// enableShop adds a second upstream, as Debian lays out sites: a file that does not
// end in a newline, reached through a relative symlink.
func enableShop(t *testing.T, l *lab.Lab) {
	t.Helper()
	writeOnLB(t, l, shopFile, shopSite, 0o640)
	mustRun(t, l.LB, "chgrp", "adm", shopFile)
	mustRun(t, l.LB, "ln", "-s", "../sites-available/shop.conf", shopLink)
	if err := l.LB.ReloadNginx(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The target is in two upstreams, one of them behind a symlink. Both are edited, under
// load on both.
func TestDrainFromTwoUpstreams(t *testing.T) {
	l := labFor(t)
	enableShop(t, l)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	shop, err := l.StartLoad(t.Context(), lab.LoadOptions{Targets: []string{lab.LBAddr + ":81"}, Clients: 15, Streams: 5})
	if err != nil {
		t.Fatal(err)
	}
	servesAgain(t, shop, app)

	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).
		wants(t, 0, "192.168.1.10:8080 in backend_servers", "192.168.1.10:8080 weight=2 in shop", shopLink+":2")
	stoppedIdle(t, app)
	want := withDown(t, before, lab.NginxConfPath, app1Line)
	want = withDown(t, want, shopFile, "server 192.168.1.10:8080 weight=2;")
	sameFiles(t, want, configuration(t, l))
	goesOn(t, load, 50)
	goesOn(t, shop, 20)

	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	servesAgain(t, shop, app)
	noneFailed(t, shop)
	noneFailed(t, load)
}

// --upstream takes the target out of one of its upstreams; the others are not edited,
// and go on sending requests.
func TestDrainFromOneOfTwoUpstreams(t *testing.T) {
	l := labFor(t)
	enableShop(t, l)
	app, before := l.Apps[0], configuration(t, l)

	refused(t, l, []string{"drain", app.Addr, "--upstream", "shop", "-s", lab.AppUnit},
		"192.168.1.10:8080 in backend_servers stays up", "hint: leave out --service, or drain that one too")
	drainctl(t, l, "drain", "--upstream", "shop", app.Addr).wants(t, 0, "warning: ", "in backend_servers stays up", "nothing was stopped")
	sameFiles(t, withDown(t, before, shopFile, "server 192.168.1.10:8080 weight=2;"), configuration(t, l))
	wantState(t, app, "active")
	reached := func(port string) bool {
		for range 12 {
			if strings.Contains(mustRun(t, l.Client, "curl", "-sS", "--fail", "http://"+lab.LBAddr+":"+port+"/"), "END app1") {
				return true
			}
		}
		return false
	}
	if reached("81") {
		t.Error("the upstream shop still sends requests to app1")
	}
	if !reached("80") {
		t.Error("the upstream backend_servers sends no more requests to app1")
	}
	drainctl(t, l, "undrain", app.Addr, "--upstream", "shop").wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// twins is a stream upstream that has the name of the one for http.
const twins = `
stream {
    upstream backend_servers {
        server 192.168.1.10:8080 max_fails=3; # raw
        server 192.168.1.11:8080;
    }
    server {
        listen 82;
        proxy_pass backend_servers;
    }
}
`

// The same name in http and in stream is two upstreams: a drain takes the target out of
// both, and --upstream tells them apart.
func TestDrainFromTwins(t *testing.T) {
	l := labFor(t)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: lab.NginxConf + twins}); err != nil {
		t.Fatal(err)
	}
	app, before := l.Apps[0], configuration(t, l)
	streamLine := "server 192.168.1.10:8080 max_fails=3;"
	drainctl(t, l, "drain", app.Addr, "--upstream", "backend_servers").
		wants(t, 2, "http/backend_servers", "stream/backend_servers")
	untouched(t, before, configuration(t, l))

	load := startLoad(t, l, app)
	raw, err := l.StartLoad(t.Context(), lab.LoadOptions{Targets: []string{lab.LBAddr + ":82"}, Clients: -1, Streams: 10})
	if err != nil {
		t.Fatal(err)
	}
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "http/backend_servers", "stream/backend_servers")
	stoppedIdle(t, app)
	sameFiles(t, withDown(t, withDown(t, before, lab.NginxConfPath, app1Line), lab.NginxConfPath, streamLine), configuration(t, l))
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	noneFailed(t, raw)
	noneFailed(t, load)

	drainctl(t, l, "drain", app.Addr, "--upstream", "stream/backend_servers").wants(t, 0)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, streamLine), configuration(t, l))
	drainctl(t, l, "undrain", app.Addr, "--upstream", "stream/backend_servers").wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// What took effect already is not done again: nothing is written, nothing is loaded.
func TestRepeatChangesNothing(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	for _, command := range []string{"drain", "undrain"} {
		line := []string{command, app.Addr, "-s", lab.AppUnit}
		drainctl(t, l, line...).wants(t, 0)
		files, serving := configuration(t, l), workers(t, l)
		booted := mustRun(t, app, "systemctl", "show", "--property=InvocationID", lab.AppUnit)
		drainctl(t, l, line...).wants(t, 0, "unchanged")
		untouched(t, files, configuration(t, l))
		sameWorkers(t, serving, workers(t, l))
		if now := mustRun(t, app, "systemctl", "show", "--property=InvocationID", lab.AppUnit); now != booted {
			t.Errorf("after a second %s the app is another one: %s, was %s", command, now, booted)
		}
	}
}

// Somebody edits the configuration while the backend is out: that stays.
func TestUndrainKeepsWhatSomebodyWroteMeanwhile(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	edited := maps.Clone(before)
	f := edited[lab.NginxConfPath]
	f.text = strings.Replace(f.text, "    upstream backend_servers {\n", "    # moved by somebody\n    upstream backend_servers {\n        least_conn;\n", 1)
	edited[lab.NginxConfPath] = f
	drained := withDown(t, edited, lab.NginxConfPath, app1Line)
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: drained[lab.NginxConfPath].text}); err != nil {
		t.Fatal(err)
	}
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, edited, configuration(t, l))
}

func writeOnLB(t *testing.T, l *lab.Lab, name, text string, mode fs.FileMode) {
	t.Helper()
	if err := l.LB.WriteFile(t.Context(), name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
