package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// ServeAgent offers this machine's nginx to the caller over in and out until in ends. n is
// how the agent's command line says that nginx is run, and system how this machine's own
// file does. Only n is recorded: whoever goes on with an operation starts an agent with it.
// It bounds the memory of the process.
func ServeAgent(ctx context.Context, n, system spec.Nginx, version string, caller journal.Recorder, in io.Reader, out io.WriteCloser) error {
	options, err := n.Or(system).Options()
	if err != nil {
		return err
	}
	options.Caller, options.Served = caller, true
	debug.SetMemoryLimit(balancer.MemoryLimit)
	return balancer.Serve(ctx, in, out, &served{balancer.NewLocal(options), n}, version)
}

// A served is an LB as its agent offers it. It reads what a caller wants recorded into
// the types that later commands read it with, and records what it has read.
type served struct {
	balancer.Balancer
	nginx spec.Nginx // as the agent's command line says
}

// Begin implements [balancer.Balancer].
func (s *served) Begin(ctx context.Context, b balancer.Beginning) error {
	var sp spec.Spec
	op := &b.Operation
	if err := balancer.Decode(op.Spec, &sp); err != nil {
		return refused("the spec of operation %s: %w", op.ID, err)
	}
	var err error
	if sp.PerUpstream, err = canonical(sp.PerUpstream); err != nil {
		return refused("the settings of upstreams: %w", err)
	}
	if sp.PerBackend, err = canonical(sp.PerBackend); err != nil {
		return refused("the settings of backends: %w", err)
	}
	if err := errors.Join(spec.Spec{Targets: op.Targets}.CheckToRecord(), sp.CheckToRecord()); err != nil {
		return refused("the spec of operation %s: %w", op.ID, err)
	}
	sp.Nginx = s.nginx
	op.Kind, op.Targets, op.User, op.Host, op.Reason = string(sp.Kind), sp.Targets, sp.User, sp.Host, sp.Reason
	if op.Spec, err = json.Marshal(sp.Recordable()); err != nil {
		return err
	}
	if op.Progress, err = canonicalTable(op.Progress); err != nil {
		return err
	}
	return s.Balancer.Begin(ctx, b)
}

// End implements [balancer.Balancer].
func (s *served) End(ctx context.Context, e journal.Ending) (err error) {
	if e.Progress, err = canonicalTable(e.Progress); err != nil {
		return err
	}
	return s.Balancer.End(ctx, e)
}

// Record implements [balancer.Balancer].
func (s *served) Record(ctx context.Context, r balancer.Recorded) (err error) {
	if r.Progress, err = canonicalTable(r.Progress); err != nil {
		return err
	}
	return s.Balancer.Record(ctx, r)
}

// canonicalTable is the table of an operation as this program writes it.
func canonicalTable(text json.RawMessage) (json.RawMessage, error) {
	if text == nil {
		return nil, nil
	}
	var t table
	if err := balancer.Decode(text, &t); err != nil {
		return nil, refused("the table of the operation: %w", err)
	}
	return json.Marshal(t)
}

// canonical is settings by name as this program writes them: each is an object of fields
// that Settings has, by their exact names.
func canonical(per map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	for name, text := range per {
		var set spec.Settings
		if err := balancer.Decode(text, &set); err != nil {
			return nil, fmt.Errorf("%.80q: %w", name, err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			return nil, fmt.Errorf("%.80q: %w", name, err)
		}
		for field := range fields {
			if !spec.SettingsFields[field] {
				return nil, fmt.Errorf("%.80q: unknown field %.80q", name, field)
			}
		}
		var err error
		if per[name], err = json.Marshal(fields); err != nil {
			return nil, err
		}
	}
	return per, nil
}

func refused(format string, args ...any) error {
	return &balancer.Error{Code: balancer.CodeRefused, Message: fmt.Errorf(format, args...).Error()}
}
