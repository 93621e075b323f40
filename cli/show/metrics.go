package show

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// WriteMetrics replaces file by the metrics of an operation, if there was one, and
// of the servers that are drained now, in Prometheus' text format.
func WriteMetrics(file string, r *Record, sp spec.Spec, st *status.Status) error {
	var all metrics
	if r != nil {
		all.operation(r)
	}
	all.servers(sp, st)
	if err := renameio.WriteFile(file, all.text(), 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	return nil
}

// metrics are gauges in the order in which they are written.
type metrics []metric

type metric struct {
	name, help string
	values     map[string]float64 // by labels as they are written: name="value",...
}

// gauge adds a gauge. The function it returns adds v to the series with these label values.
func (m *metrics) gauge(name, help string, labels ...string) func(v float64, values ...string) {
	g := metric{"drainctl_" + name, help, map[string]float64{}}
	*m = append(*m, g)
	return func(v float64, values ...string) {
		pairs := make([]string, len(labels))
		for i, label := range labels {
			pairs[i] = label + `="` + escapeLabel.Replace(strings.ToValidUTF8(values[i], "\uFFFD")) + `"`
		}
		g.values[strings.Join(pairs, ",")] += v
	}
}

// escapeLabel escapes the value of a label.
// https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// text returns the metrics in Prometheus' text format.
func (m metrics) text() []byte {
	var text bytes.Buffer
	for _, g := range m {
		if len(g.values) == 0 {
			continue
		}
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s gauge\n", g.name, g.help, g.name)
		for _, labels := range slices.Sorted(maps.Keys(g.values)) {
			fmt.Fprintf(&text, "%s{%s} %v\n", g.name, labels, g.values[labels])
		}
	}
	return text.Bytes()
}

func (m *metrics) operation(r *Record) {
	steps := m.gauge("step_duration_seconds", "How long a step of the last operation took; over all batches.", "operation", "step", "direction")
	for _, s := range r.steps {
		steps(s.ended.Sub(s.began).Seconds(), r.Kind(), string(s.step), string(s.direction))
	}
	open := m.gauge("connections_at_start", "Connections to the backend when the wait for their end began.", "backend")
	for backend, n := range r.open {
		open(float64(n), backend)
	}
	results := m.gauge("operation_result", "1 for how the last operation ended.", "operation", "result")
	for _, result := range []journal.Result{journal.ResultDone, journal.ResultRolledBack, journal.ResultPartial, journal.ResultNotDrained} {
		is := 0.0
		if r.result.Result == result {
			is = 1
		}
		results(is, r.Kind(), string(result))
	}
	m.gauge("operation_exit_code", "Exit code of the last operation.", "operation")(float64(r.result.ExitCode), r.Kind())
	m.gauge("operation_end_time_seconds", "Unix time of the end of the last operation.", "operation")(float64(r.result.Time.UnixMilli())/1000, r.Kind())
}

func (m *metrics) servers(sp spec.Spec, st *status.Status) {
	read := m.gauge("lb_read", "1 if the load balancer's servers and journal could be read.", "lb")
	since := m.gauge("server_drained_since_seconds", "Unix time of the operation that took a server, which is down now, out of its pool.", "lb", "upstream", "server")
	for _, name := range lbsOf(sp) {
		i := slices.IndexFunc(st.LBs, func(lb status.LBStatus) bool { return lb.LB == name })
		if i < 0 || st.LBs[i].JournalError != "" {
			read(0, name)
			continue
		}
		read(1, name)
		began := map[[2]string]float64{} // a server may stand in an upstream twice
		for _, s := range st.LBs[i].Servers {
			if s.Down && s.Managed && s.Operation != nil {
				began[[2]string{s.Name, s.Text}] = float64(s.Operation.Began.UnixMilli()) / 1000
			}
		}
		for key, at := range began {
			since(at, name, key[0], key[1])
		}
	}
}
