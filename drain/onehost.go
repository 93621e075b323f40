package drain

import (
	"context"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// checkOneHost asks the host of a name with several addresses, such as an A and an AAAA record,
// whether all of them are its own. Over SSH one host is watched and stopped; nginx sends to all.
func (o *Operation) checkOneHost(ctx context.Context, m *row, c *checker, broken event.CheckName) {
	names := o.plan.SeveralAddresses(m.plan)
	if len(names) == 0 || !o.plan.Spec.Needs(m.plan.Settings) || o.plan.Spec.Kind == spec.Undrain {
		return
	}
	c.try(broken, event.CheckOneHost, func() (event.Seen, []spec.Finding) {
		own, err := remote.Addresses(ctx, m.Host)
		if err != nil {
			return event.Seen{}, missing("several-addresses", err)
		}
		for _, n := range names {
			for _, a := range n.Addresses {
				if !slices.Contains(own, a.WithZone("")) {
					return event.Seen{}, []spec.Finding{{Code: "several-addresses", Text: plan.AddressesText(n) + ", and " + a.String() + " is none of " + m.Host.Name() +
						": over SSH only one host would be watched and stopped\nhint: drain the addresses one by one where nginx.conf has them, or use --poll lb without --service"}}
				}
			}
		}
		return event.Seen{Host: m.Host.Name()}, nil
	})
}

// stopsUnproved tells whether something is done over SSH to the host of a backend whose counter is
// elsewhere, so that it does not prove that SSH leads to the host that nginx sends to. --ssh-host is
// the operator's word for that.
func (o *Operation) stopsUnproved(m *row) bool {
	return m.Host != nil && m.plan.Address != "" && m.plan.Settings.SSH.Host == "" && o.plan.Spec.Needs(m.plan.Settings)
}

// proveHost checks that what the LBs connect to are addresses of the host.
func proveHost(ctx context.Context, m *row, probes []balancer.Probed) []spec.Finding {
	if len(probes) == 0 {
		return nil
	}
	own, err := remote.Addresses(ctx, m.Host)
	if err != nil {
		return missing("elsewhere", err)
	}
	for _, p := range probes {
		if a := p.Far.Addr().WithZone(""); !slices.Contains(own, a) {
			return []spec.Finding{{Code: "elsewhere", Override: "--ssh-host", Text: fmt.Sprintf(
				"nginx sends to %s, which is no address of %s: the app of another host may be stopped (or an address is translated on the way)", a, m.Host.Name())}}
		}
	}
	return nil
}
