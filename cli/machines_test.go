package cli

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain"
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
		"drainctl_connections_at_start{backend=" + drain.ThisMachine + "}": 1,
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
	if left, _ := filepath.Glob(file + "?*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
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
	st := &drain.Status{LBs: []drain.LBStatus{{LB: "lb1", JournalError: "no"}, {LB: "lb2"}}}
	if err := show.WriteMetrics(file, nil, drain.Spec{LBs: []string{"lb1", "lb2", "lb3"}}, st); err != nil {
		t.Fatal(err)
	}
	got := metricsIn(t, file)
	if len(got) != 3 || got["drainctl_lb_read{lb=lb1}"] != 0 || got["drainctl_lb_read{lb=lb2}"] != 1 || got["drainctl_lb_read{lb=lb3}"] != 0 {
		t.Errorf("%v", got)
	}
}

// A collectorServer takes traces, as a collector does.
type collectorServer struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*trace.Span
	names []string // of the services
}

func startCollector(t *testing.T) *collectorServer {
	c := &collectorServer{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		text, err := io.ReadAll(body)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(text, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range request.ResourceSpans {
			c.names = append(c.names, attributesOf(resource.Resource.Attributes)["service.name"])
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(c.Close)
	return c
}

func attributesOf(all []*common.KeyValue) map[string]string {
	texts := map[string]string{}
	for _, kv := range all {
		var values []string
		for _, v := range kv.Value.GetArrayValue().GetValues() {
			values = append(values, v.GetStringValue())
		}
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			texts[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			texts[kv.Key] = fmt.Sprint(v.IntValue)
		case *common.AnyValue_BoolValue:
			texts[kv.Key] = fmt.Sprint(v.BoolValue)
		default:
			texts[kv.Key] = strings.Join(values, " ")
		}
	}
	return texts
}

func TestTrace(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	c := startCollector(t)
	p.more = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL}
	run := p.begin("drain", a.addr, "--timeout", "300ms")
	run.ends(3)
	if strings.Contains(run.err.String(), "trace") {
		t.Errorf("%s", run.err.String())
	}
	a.release()

	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) != 1 || c.names[0] != "drainctl" {
		t.Errorf("services %v", c.names)
	}
	spans := map[string]*trace.Span{}
	var root *trace.Span
	for _, s := range c.spans {
		of := attributesOf(s.Attributes)
		spans[s.Name+" "+of["drainctl.direction"]] = s
		if len(s.ParentSpanId) == 0 {
			root = s
		}
		if s.StartTimeUnixNano == 0 || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("%s: from %d to %d", s.Name, s.StartTimeUnixNano, s.EndTimeUnixNano)
		}
	}
	if root == nil || len(c.spans) != 4 {
		t.Fatalf("%d spans, %v", len(c.spans), c.spans)
	}
	for key, failed := range map[string]bool{"drainctl drain ": true, "mark down forward": false, "wait forward": true, "mark down reverse": false} {
		s := spans[key]
		if s == nil {
			t.Errorf("no span %q", key)
			continue
		}
		if s != root && (!bytes.Equal(s.ParentSpanId, root.SpanId) || !bytes.Equal(s.TraceId, root.TraceId)) {
			t.Errorf("%s is no part of the operation", key)
		}
		if got := s.Status.GetCode() == trace.Status_STATUS_CODE_ERROR; got != failed || (len(s.Events) == 1) != failed {
			t.Errorf("%s: failed %t, %v, want %t", key, got, s.Events, failed)
		}
		if s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano {
			t.Errorf("%s is not within the operation", key)
		}
	}
	of := attributesOf(root.Attributes)
	if of["drainctl.targets"] != a.addr || of["drainctl.lbs"] != drain.ThisMachine || of["drainctl.result"] != "rolled back" ||
		of["drainctl.exit_code"] != "3" || of["drainctl.operation"] == "" {
		t.Errorf("attributes %v", of)
	}
}

// A collector that cannot be reached, or does not answer, changes nothing, and is
// told of once.
func TestCollectorIsAway(t *testing.T) {
	a, b := startApp(t, "a"), startApp(t, "b")
	p := startProxy(t, pool(a, b))
	silent := make(chan struct{})
	mute := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent }))
	defer mute.Close()
	defer close(silent)
	away := httptest.NewServer(http.NotFoundHandler())
	away.Close()
	for _, endpoint := range []string{mute.URL, away.URL} {
		p.more = []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + endpoint}
		for _, command := range []string{"drain", "undrain"} {
			run := p.begin(command, a.addr)
			run.ends(0)
			if text := run.err.String(); strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "drainctl: warning: the trace was not sent: ") {
				t.Errorf("%s with %s: %q", command, endpoint, text)
			}
		}
	}
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
	var shown []string // without the times
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 4 {
			line = strings.Join(cells[:3], " | ")
		}
		shown = append(shown, strings.TrimSpace(line))
	}
	for _, want := range []string{
		"### drainctl drain " + a.addr, "| step | backends | result", "|---|---|---|---|", "| mark down | " + drain.ThisMachine + " | done",
		"| clear down | " + drain.ThisMachine + " | done", "| wait | " + drain.ThisMachine + " | done", a.addr + " is drained; nothing was stopped (no --service)",
	} {
		if !slices.Contains(shown, want) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	if strings.Count(string(text), "### ") != 2 || !strings.Contains(string(text), "| wait | "+drain.ThisMachine+" | failed: not drained after 300ms") {
		t.Errorf("%s", text)
	}
}
