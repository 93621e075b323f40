package drain

import (
	"context"
	"errors"
	"time"
)

// note writes a record to the journal of every load balancer, and returns when
// it is on their disks.
func (r *run) note(ctx context.Context, rec Record) error {
	for _, part := range r.plan.LBs {
		j := part.LB.journal(r.req)
		if r.begun {
			if err := j.there(ctx, r.id); err != nil {
				return err
			}
		}
		if err := j.write(ctx, r.id, rec); err != nil {
			return err
		}
	}
	return nil
}

// noteLimit bounds a record that is written although the run is over or is
// being given up.
const noteLimit = 10 * time.Second

// try is note for what has happened already: that it cannot be written down is
// said, and changes nothing.
func (r *run) try(ctx context.Context, rec Record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteLimit)
	defer cancel()
	if err := r.note(ctx, rec); err != nil {
		r.tell(Warned{err.Error()})
	}
}

// begin writes down who wants what.
func (r *run) begin(ctx context.Context) error {
	b := &Begin{
		ID: r.id, Operation: r.req.Operation, Target: r.req.Target.String(), Upstreams: r.req.Upstreams,
		User: r.req.User, Host: r.req.Host, Reason: r.req.Reason, Continues: r.req.Continues,
		Settings: r.req.settings(),
	}
	for _, part := range r.plan.LBs {
		b.Conf = part.ConfPath
		b.Servers = nil
		b.Settings.Nginx, b.Settings.TestCommand, b.Settings.ReloadCommand = "", part.LB.Nginx.TestCommand, part.LB.Nginx.ReloadCommand
		if part.LB.Nginx.Path != DefaultBinary {
			b.Settings.Nginx = part.LB.Nginx.Path
		}
		for _, s := range part.Servers {
			b.Servers = append(b.Servers, marked(s))
		}
		if err := part.LB.journal(r.req).write(ctx, r.id, Record{Kind: RecordBegin, Begin: b}); err != nil {
			return err
		}
	}
	r.begun = true
	return nil
}

// end writes down how it ended.
func (r *run) end(ctx context.Context, err error) {
	e := &End{ExitCode: int(KindOf(err)), Result: ResultDone}
	var f *Failure
	if errors.As(err, &f) {
		e.Result, e.Stands = ResultRolledBack, f.Now
		if f.Kind == PartDone || (f.Kind == NotDrained && r.req.OnTimeout == TimeoutLeave) {
			e.Result = ResultLeft
		}
		if f.Kind == NotDrained && r.req.OnTimeout == TimeoutStop {
			e.Result = ResultDone
		}
	}
	rec := Record{Kind: RecordEnd, End: e}
	if err != nil {
		rec.Error = err.Error()
	}
	r.try(ctx, rec)
}
