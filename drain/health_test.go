package drain

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// A rolling run needs its health URL to pass. A drain takes a sick app out, and refuses a URL that
// no restart mends.
func TestJudgeHealth(t *testing.T) {
	const refused, warned = "refused", "warned"
	app := spec.Settings{Service: "app"}
	for _, test := range []struct {
		kind   spec.Kind
		set    spec.Settings
		code   balancer.Code
		serves bool
		want   string
	}{
		{spec.Run, app, balancer.CodeUnhealthy, false, refused},
		{spec.Run, app, balancer.CodeUnreachable, false, refused},
		{spec.Run, spec.Settings{}, balancer.CodeWrongURL, false, refused},
		{spec.Drain, app, balancer.CodeUnhealthy, false, warned},
		{spec.Drain, app, balancer.CodeUnreachable, false, warned},
		{spec.Drain, app, balancer.CodeUnreachable, true, refused}, // a wrong port
		{spec.Drain, app, balancer.CodeWrongURL, false, refused},
		{spec.Drain, app, balancer.CodeConnection, false, refused},
		{spec.Drain, spec.Settings{}, balancer.CodeWrongURL, false, warned},
		{spec.Drain, spec.Settings{}, balancer.CodeUnreachable, true, warned},
	} {
		f := judgeHealth(test.kind, test.set, test.code, test.serves, "text")
		got := map[bool]string{true: warned, false: refused}[f.Warning]
		if got != test.want || (f.Override != "") == f.Warning || f.Code != "health" || !strings.HasPrefix(f.Text, "text; ") && !strings.HasPrefix(f.Text, "text\nhint: ") {
			t.Errorf("%s with service %q, %s, serves %t: %+v, want it %s", test.kind, test.set.Service, test.code, test.serves, f, test.want)
		}
	}
}

// The health URL is tried before anything is touched, by a drain, a rolling run, their dry runs and
// a check. A sick app, a stopped one and one that is out already can be drained.
func TestHealthIsTriedFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/moved":
			http.Redirect(w, q, "/ready", http.StatusMovedPermanently)
		case "/sick":
			http.Error(w, "no database", http.StatusServiceUnavailable)
		}
	}))
	defer app.Close()
	specOf := func(kind spec.Kind, path string) spec.Spec {
		sp := r.spec(kind)
		sp.Service, sp.Counter = "app", spec.CounterLB
		sp.Health = app.URL + path
		return sp
	}
	start := r.now()
	dry := func(sp spec.Spec) spec.Exit {
		p, err := DryRun(t.Context(), sp, Options{Connect: connector{r}})
		if err != nil {
			t.Fatal(err)
		}
		return p.ExitCode
	}
	for _, test := range []struct {
		kind spec.Kind
		path string
		want spec.Exit
		says string
	}{
		{spec.Drain, "/moved", spec.Refused, "answered with status 301: it redirects to /ready\nhint: "},
		{spec.Run, "/moved", spec.Refused, "answered with status 301"},
		{spec.Run, "/sick", spec.Refused, "answered with status 503: no database"},
		{spec.Drain, "/sick", spec.Done, "answered with status 503: no database; undrain waits until it passes"},
		{spec.Drain, "/ready", spec.Done, ""},
	} {
		sp := specOf(test.kind, test.path)
		if got := dry(sp); got != test.want {
			t.Errorf("dry run of %s with %s: exit %d, want %d", test.kind, test.path, got, test.want)
		}
		l, err := r.run(sp)
		if spec.ExitOf(err) != test.want {
			t.Errorf("%s with %s: %v, want exit %d", test.kind, test.path, err, test.want)
		}
		text := l.warnings()
		if err != nil {
			text = err.Error()
			if now := r.now(); now.conf != start.conf || !now.active {
				t.Errorf("%s with %s was refused, and has changed something", test.kind, test.path)
			}
		}
		if !strings.Contains(text, test.says) || test.says == "" && text != "" {
			t.Errorf("%s with %s says %q, want %q", test.kind, test.path, text, test.says)
		}
		r.rewind(start)
	}

	check := func() event.CheckResult {
		report, err := CheckAll(t.Context(), specOf(spec.Run, "/sick"), connector{r})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range report.Checks {
			if c.Name == event.CheckHealth {
				return c.Result
			}
		}
		return ""
	}
	if got := check(); got != event.CheckFailed {
		t.Errorf("the check of a sick app is %q", got)
	}
	r.unit.stop()
	if got := check(); got != event.CheckWarning {
		t.Errorf("the check of a stopped app is %q", got)
	}
	if l, err := r.run(specOf(spec.Drain, "/moved")); err != nil || !strings.Contains(l.warnings(), "was not tried: app does not run") {
		t.Errorf("drain of a stopped app: %v, warnings %q", err, l.warnings())
	}
	if l, err := r.run(specOf(spec.Drain, "/moved")); err != nil || !strings.Contains(l.warnings(), "was not tried: its servers are down already") {
		t.Errorf("drain of what is out already: %v, warnings %q", err, l.warnings())
	}
}
