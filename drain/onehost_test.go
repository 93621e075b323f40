package drain

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A hostWith is a backend with some addresses.
type hostWith struct {
	checkedHost
	addresses string // as ip -o address prints them
}

func (h hostWith) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	if slices.Contains(c.Args, "ip") {
		return remote.Result{Stdout: []byte(h.addresses)}, nil
	}
	return h.checkedHost.Run(ctx, c)
}

// A name with an A and an AAAA record may be one host, which can be drained with its service. The
// host is asked for its addresses.
func TestNameOfOneHost(t *testing.T) {
	const v4, v6 = "2: eth0    inet 192.168.1.10/24 brd 192.168.1.255 scope global eth0\n", "2: eth0    inet6 2001:db8::10/64 scope global\n"
	for name, test := range map[string]struct {
		own, says string
		addresses []string
	}{
		"one host":  {v4 + v6, "", []string{"192.168.1.10", "2001:db8::10"}},
		"two hosts": {v4, "app has 2 addresses (192.168.1.10, 2001:db8::10), and 2001:db8::10 is none of deploy@192.168.1.10: over SSH only one host", []string{"192.168.1.10", "2001:db8::10"}},
	} {
		f, sp := newCheckedFleet()
		f.backend = func() (remote.Host, error) {
			return hostWith{checkedHost{remote.Local(nil), "deploy", ""}, test.own}, nil
		}
		sp.Targets, sp.Service, sp.Counter = []string{"app"}, "app", spec.CounterLB
		for _, lb := range f.lbs {
			lb.spoil = func(r *balancer.Report) {
				for i := range r.Servers {
					r.Servers[i].Address = "app:8080"
				}
				r.Names = []balancer.Name{{Host: "app"}}
				for _, a := range test.addresses {
					r.Names[0].Addresses = append(r.Names[0].Addresses, netip.MustParseAddr(a))
				}
			}
		}
		r, err := CheckAll(t.Context(), sp, f)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(r.Checks, func(c event.Check) bool { return c.Name == event.CheckOneHost })
		switch {
		case i < 0:
			t.Errorf("%s: not checked", name)
		case test.says == "" && r.Checks[i].Result != event.CheckOK,
			test.says != "" && (r.Checks[i].Finding == nil || !strings.HasPrefix(r.Checks[i].Finding.Text, test.says)):
			t.Errorf("%s: %+v, %+v", name, r.Checks[i], r.Checks[i].Finding)
		}
	}
}

// The counter of the LBs says nothing of the host that SSH leads to, whose app would be stopped.
func TestHostIsProved(t *testing.T) {
	far := netip.MustParseAddrPort("192.168.1.10:8080")
	for name, test := range map[string]struct {
		own, service, sshHost, says string
	}{
		"its own address":             {"192.168.1.10", "app", "", ""},
		"another host":                {"192.168.1.11", "app", "", "nginx sends to 192.168.1.10, which is no address of deploy@192.168.1.10: "},
		"another host, and no app":    {"192.168.1.11", "", "", ""},
		"another host that is named":  {"192.168.1.11", "app", "192.168.1.11", ""},
		"the answer has no addresses": {"", "app", "", "which is no address of"},
	} {
		w, _ := waitOf(holding(nil), nil)
		w.o.lbs = fleet.Fleet{{Balancer: &proofLB{probes: []balancer.Probed{{Ends: balancer.Ends{Far: far}, Error: "connection refused"}}}, Name: fleet.ThisMachine}}
		m := w.rows[0]
		m.Host = hostWith{checkedHost{remote.Local(nil), "deploy", ""}, "2: eth0    inet " + test.own + "/24 scope global eth0\n"}
		m.plan.Address, m.plan.Settings.Service, m.plan.Settings.SSH.Host = "192.168.1.10", spec.Units(test.service), test.sshHost
		m.plan.Settings.Counter = spec.CounterLB
		found, _ := w.o.proveCounter(t.Context(), m)
		if (len(found) > 0) != (test.says != "") || len(found) > 0 && !strings.Contains(found[0].Text, test.says) {
			t.Errorf("%s: %+v, want %q", name, found, test.says)
		}
	}
}
