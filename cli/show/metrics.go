package show

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/journal"
)

// WriteMetrics replaces file by the metrics of an operation, if there was one, and
// of the servers that are drained now, in Prometheus' text format.
func WriteMetrics(file string, r *Record, spec drain.Spec, st *drain.Status) error {
	all := &metrics{prometheus.NewRegistry()}
	if r != nil {
		all.operation(r)
	}
	all.servers(spec, st)
	if err := prometheus.WriteToTextfile(file, all.registry); err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	return nil
}

type metrics struct{ registry *prometheus.Registry }

// gauge adds a gauge; what it gives adds to the value for some labels.
func (m *metrics) gauge(name, help string, labels ...string) func(v float64, values ...string) {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "drainctl_" + name, Help: help}, labels)
	m.registry.MustRegister(g)
	return func(v float64, values ...string) {
		for i, text := range values {
			values[i] = strings.ToValidUTF8(text, "\uFFFD")
		}
		g.WithLabelValues(values...).Add(v)
	}
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

func (m *metrics) servers(spec drain.Spec, st *drain.Status) {
	read := m.gauge("lb_read", "1 if the load balancer's servers and journal could be read.", "lb")
	since := m.gauge("server_drained_since_seconds", "Unix time of the operation that took a server, which is down now, out of its pool.", "lb", "upstream", "server")
	for _, name := range lbsOf(spec) {
		i := slices.IndexFunc(st.LBs, func(lb drain.LBStatus) bool { return lb.LB == name })
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
