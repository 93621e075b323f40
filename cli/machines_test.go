package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// metricsIn reads a file as Prometheus would: each series and its value.
func metricsIn(t *testing.T, file string) map[string]float64 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(f)
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for name, family := range families {
		if family.GetType() != dto.MetricType_GAUGE || family.GetHelp() == "" {
			t.Errorf("%s is no gauge, or has no help", name)
		}
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			slices.Sort(labels)
			series[name+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue()
		}
	}
	return series
}

func TestMetrics(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	file := filepath.Join(p.dir, "drainctl.prom")
	p.hold(a)
	began := time.Now()
	run := p.begin("drain", a.addr, "--metrics", file)
	run.says("1 open, from")
	a.release()
	run.ends(0)

	since := "drainctl_server_drained_since_seconds{lb=this machine,server=" + a.addr + ",upstream=pool}"
	got := metricsIn(t, file)
	for series, want := range map[string]float64{
		"drainctl_connections_at_start{backend=" + fleet.ThisMachine + "}": 1,
		"drainctl_operation_result{operation=drain,result=done}":           1,
		"drainctl_operation_result{operation=drain,result=rolled back}":    0,
		"drainctl_operation_exit_code{operation=drain}":                    0,
		"drainctl_lb_read{lb=this machine}":                                1,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s is %v (%t), want %v", series, v, ok, want)
		}
	}
	for _, series := range []string{"drainctl_operation_end_time_seconds{operation=drain}", since} {
		if v := got[series]; v < float64(began.Unix()) || v > float64(time.Now().Unix()+1) {
			t.Errorf("%s is %v, want a time of this run", series, v)
		}
	}
	for _, name := range []string{"mark down", "wait"} {
		if v := got["drainctl_step_duration_seconds{direction=forward,operation=drain,step="+name+"}"]; v <= 0 || v > time.Since(began).Seconds() {
			t.Errorf("%s took %v s", name, v)
		}
	}

	// status has the part of the servers, which stays the same while one is drained.
	other := filepath.Join(p.dir, "status.prom")
	p.begin("status", "--metrics", other).ends(0)
	if now := metricsIn(t, other); len(now) != 2 || now[since] != got[since] || now["drainctl_lb_read{lb=this machine}"] != 1 {
		t.Errorf("status writes %v, want %v for %s", now, got[since], since)
	}
	// A run that fails says so, and of what is drained.
	p.begin("drain", b.addr, "--metrics", file).ends(4)
	got = metricsIn(t, file)
	if got["drainctl_operation_exit_code{operation=drain}"] != 4 || got[since] == 0 {
		t.Errorf("after a refusal: %v", got)
	}
	p.begin("undrain", a.addr, "--metrics", file).ends(0)
	got = metricsIn(t, file)
	if _, still := got[since]; still || got["drainctl_operation_result{operation=undrain,result=done}"] != 1 {
		t.Errorf("after the undrain: %v", got)
	}
	// node_exporter, which is another user, may read it.
	if all, _ := filepath.Glob(filepath.Join(p.dir, "*.prom")); len(all) != 2 {
		t.Errorf("left over: %v", all)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the file has %v, %v", info.Mode(), err)
	}
	// What makes no sense was no run.
	p.begin("drain", "192.0.2.1", "--metrics", file).ends(2)
	if now := metricsIn(t, file); now["drainctl_operation_result{operation=undrain,result=done}"] != 1 {
		t.Errorf("after a mistyped target: %v", now)
	}
	p.begin("drain", a.addr, "--metrics", p.dir+"/no/such/dir.prom").ends(2, "--metrics", "no such directory")
}

// A journal that cannot be read is no pool without drained servers.
func TestMetricsWithoutJournal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.prom")
	st := &status.Status{LBs: []status.LBStatus{{LB: "lb1", JournalError: "no"}, {LB: "lb2"}}}
	if err := show.WriteMetrics(file, nil, spec.Spec{LBs: []string{"lb1", "lb2", "lb3"}}, st); err != nil {
		t.Fatal(err)
	}
	got := metricsIn(t, file)
	if len(got) != 3 || got["drainctl_lb_read{lb=lb1}"] != 0 || got["drainctl_lb_read{lb=lb2}"] != 1 || got["drainctl_lb_read{lb=lb3}"] != 0 {
		t.Errorf("%v", got)
	}
}

// No name of a load balancer, upstream or server makes a label or a line of its own.
func TestMetricsOfHostileNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.prom")
	names := []string{
		`a"} 1` + "\n" + `drainctl_lb_read{lb="b`, `\`, `\"`, `\n`, "\n", "\r\n", "a\x00b", "# HELP x y", "\u2028", "{}", ",", "\x1b[2J", "a\xffb",
	}
	st := &status.Status{}
	for i, name := range names {
		st.LBs = append(st.LBs, status.LBStatus{LB: name, Servers: []status.ServerStatus{{
			Server: balancer.Server{Located: journal.Located{Down: true}, Name: name, Text: name, Managed: true}, Operation: &journal.Operation{Began: time.Unix(int64(i), 0)},
		}}})
	}
	if err := show.WriteMetrics(file, nil, spec.Spec{LBs: names}, st); err != nil {
		t.Fatal(err)
	}
	got := metricsIn(t, file)
	if len(got) != 2*len(names) {
		t.Errorf("%d series, want %d: %v", len(got), 2*len(names), got)
	}
	for i, name := range names {
		name = strings.ToValidUTF8(name, "\uFFFD")
		if got["drainctl_lb_read{lb="+name+"}"] != 1 || got["drainctl_server_drained_since_seconds{lb="+name+",server="+name+",upstream="+name+"}"] != float64(i) {
			t.Errorf("%q is not as it is: %v", name, got)
		}
	}
}

// A trace is what a collector is sent: OTLP/JSON, as far as docs/automation.md makes it.
type trace struct {
	ResourceSpans []struct {
		Resource   struct{ Attributes []traceAttribute }
		ScopeSpans []struct {
			Scope struct{ Name string }
			Spans []traceSpan
		}
	}
}

type traceSpan struct {
	Name, TraceID, SpanID, ParentSpanID string
	Kind                                int
	StartTimeUnixNano, EndTimeUnixNano  uint64 `json:",string"`
	Attributes                          []traceAttribute
	Status                              struct {
		Code    int
		Message string
	}
}

type traceAttribute struct {
	Key   string
	Value struct{ StringValue string }
}

// startCollector takes traces as a collector does, one at a time.
func startCollector(t *testing.T) (url string, traces <-chan trace) {
	t.Helper()
	received := make(chan trace, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var got trace
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&got); err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s: %v", r.URL.Path, r.Header.Get("Content-Type"), err)
		}
		received <- got
	}))
	t.Cleanup(server.Close)
	return server.URL, received
}

// The commands in docs/automation.md send an operation to a collector, with a span for
// each step.
func TestTraceInTheDocumentation(t *testing.T) {
	docs, err := os.ReadFile("../docs/automation.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```jq\n(.*?)```.*?    (drainctl history .*?)\n\n").FindSubmatch(docs)
	if found == nil {
		t.Fatal("docs/automation.md has no program for jq")
	}
	url, traces := startCollector(t)
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	p.begin("drain", a.addr, "--timeout", "300ms", "--reason", "\"a\" reason").ends(3)
	a.release()
	list := p.command("drainctl", "history", "--output", "json")
	list.ends(0)
	var history struct{ Operations []struct{ ID string } }
	if err := json.Unmarshal([]byte(list.output()), &history); err != nil || len(history.Operations) != 1 {
		t.Fatalf("%v: %s", err, list.output())
	}
	p.write(p.dir+"/trace.jq", string(found[1]))
	line := regexp.MustCompile(`\d{8}-\d{6}\.\d{3}-\w+`).ReplaceAllString(string(found[2]), history.Operations[0].ID)
	line = strings.NewReplacer("http://localhost:4318", url, "trace.jq", p.dir+"/trace.jq").Replace(line)
	p.command("bash", "-ec", "set -o pipefail; "+line).ends(0)

	checkTrace(t, <-traces, history.Operations[0].ID, a.addr)
}

// checkTrace checks the trace of a drain that was rolled back.
func checkTrace(t *testing.T, got trace, operation, target string) {
	t.Helper()
	if len(got.ResourceSpans) != 1 || len(got.ResourceSpans[0].ScopeSpans) != 1 || len(got.ResourceSpans[0].ScopeSpans[0].Spans) != 4 {
		t.Fatalf("%+v", got)
	}
	spans := got.ResourceSpans[0].ScopeSpans[0].Spans
	root, ids := spans[0], map[string]bool{}
	for i, want := range []struct {
		name, direction string
		failed          bool
	}{{"drainctl drain", "", true}, {"mark down", "forward", false}, {"wait", "forward", true}, {"mark down", "reverse", false}} {
		s := spans[i]
		if s.Name != want.name || attributesOf(s)["direction"] != want.direction || (s.Status.Code == 2) != want.failed || (s.Status.Message != "") != want.failed {
			t.Errorf("span %d is %+v, want %+v", i, s, want)
		}
		if s.TraceID != root.TraceID || len(s.TraceID) != 32 || len(s.SpanID) != 16 || ids[s.SpanID] || i > 0 && s.ParentSpanID != root.SpanID {
			t.Errorf("span %d is no part of the operation: %+v", i, s)
		}
		ids[s.SpanID] = true
		if s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano || s.StartTimeUnixNano > s.EndTimeUnixNano {
			t.Errorf("span %d is not within the operation: %+v", i, s)
		}
		if since := time.Since(time.Unix(0, int64(s.EndTimeUnixNano))); since < 0 || since > patience {
			t.Errorf("span %d ended %s ago", i, since)
		}
	}
	of := attributesOf(root)
	if of["operation"] != operation || of["targets"] != target || of["reason"] != `"a" reason` || of["result"] != "rolled back" || of["exit_code"] != "3" {
		t.Errorf("the operation has %v", of)
	}
}

// attributesOf is the attributes of a span by their names within drainctl.
func attributesOf(s traceSpan) map[string]string {
	all := map[string]string{}
	for _, a := range s.Attributes {
		all[strings.TrimPrefix(a.Key, "drainctl.")] = a.Value.StringValue
	}
	return all
}

// On GitHub each step is a group, a failure an annotation, and the job's summary
// has a table.
func TestOnGitHub(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	summaryFile := filepath.Join(p.dir, "summary.md")
	p.more = []string{"GITHUB_ACTIONS=true", "GITHUB_STEP_SUMMARY=" + summaryFile}
	p.hold(a)
	run := p.begin("drain", a.addr, "--timeout", "300ms")
	run.ends(3)
	a.release()
	p.begin("drain", a.addr).ends(0)

	begun, open := 0, false
	for line := range strings.Lines(run.output()) {
		switch {
		case strings.HasPrefix(line, "::group::"):
			if open {
				t.Errorf("a group in a group: %s", line)
			}
			begun, open = begun+1, true
		case line == "::endgroup::\n":
			if !open {
				t.Error("no group ends here")
			}
			open = false
		case strings.HasPrefix(line, "::"):
			t.Errorf("unknown: %s", line)
		}
	}
	if begun != 3 || open {
		t.Errorf("%d groups, the last open: %t\n%s", begun, open, run.output())
	}
	for _, text := range []string{"::group::1/2 mark ", "::group::2/2 wait ", "::group::rolling back"} {
		if !strings.Contains(run.output(), text) {
			t.Errorf("no %s in %s", text, run.output())
		}
	}
	last := run.err.String()[strings.LastIndex(strings.TrimSpace(run.err.String()), "\n")+1:]
	if !strings.HasPrefix(last, "::error title=drainctl::not drained after 300ms: 1 connection open") || !strings.HasSuffix(last, "; everything is as it was before\n") {
		t.Errorf("the annotation is %q", last)
	}

	text, err := os.ReadFile(summaryFile)
	if err != nil {
		t.Fatal(err)
	}
	row := func(step, result string) string {
		return "<tr><td><code>" + step + "</code></td><td><code>" + fleet.ThisMachine + "</code></td><td><code>" + result + "</code></td>"
	}
	for _, want := range []string{
		"<h3><code>drainctl drain " + a.addr + "</code></h3>", "<tr><th>step</th><th>backends</th><th>result</th><th>time</th></tr>",
		row("mark down", "done"), row("clear down", "done"), row("wait", "done"), strings.TrimSuffix(row("wait", "failed: not drained after 300ms"), "</code></td>"),
		"<p><code>" + a.addr + " is drained; nothing was stopped (no --service)</code></p>",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Count(string(text), "<h3>") != 2 {
		t.Errorf("%s", text)
	}
}
