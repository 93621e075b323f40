package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// statusLimit bounds asking the LBs for their servers once an operation is over.
const statusLimit = 30 * time.Second

// publishRecord tells those who are told at the end. That one cannot be told
// changes nothing in how the operation ended.
func (s *session) publishRecord(r *show.Record) {
	var tellers []func() error
	if file := os.Getenv("GITHUB_STEP_SUMMARY"); show.OnGithub() && file != "" {
		tellers = append(tellers, func() error { return show.WriteSummary(file, r) })
	}
	if s.metrics != "" {
		tellers = append(tellers, func() error { return s.measure(r) })
	}
	for _, tell := range tellers {
		if err := tell(); err != nil {
			show.NewText(s.stdout, s.stderr, show.Options{}).Warn(err)
		}
	}
}

// measure writes the metrics of an operation, and of the servers after it.
func (s *session) measure(r *show.Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	sp := spec.Default("")
	sp.LBs, sp.Nginx, sp.Parallel = r.Spec.LBs, r.Spec.Nginx, r.Spec.Parallel
	// The view has shown the end: it is told no more.
	st, err := status.Read(ctx, sp, fleet.Machines{Version: versionText(), Passphrase: passphrase(s.view)})
	if st == nil {
		st = &status.Status{}
	}
	if err != nil {
		err = fmt.Errorf("--metrics %s: the servers are not in it: %w", s.metrics, err)
	}
	return cmp.Or(show.WriteMetrics(s.metrics, r, sp, st), err)
}
