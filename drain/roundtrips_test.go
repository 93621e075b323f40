package drain

import (
	"context"
	"net"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/spec"
)

// maxRoundTrips is how many round trips to an LB a drain may take: each costs what the
// way there and back takes.
const maxRoundTrips = 19

// An agentConnector reaches the rig through an agent, and keeps the clients.
type agentConnector struct {
	connector
	clients *[]*balancer.Client
}

func (c agentConnector) LB(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	b, err := c.connector.LB(ctx, name, n)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	go func() { _ = balancer.Serve(context.WithoutCancel(ctx), far, far, b, "test") }()
	client, err := balancer.Connect(ctx, "the LB", "test", near)
	*c.clients = append(*c.clients, client)
	return client, err
}

// TestRoundTrips counts what a drain of an idle backend asks its LB.
func TestRoundTrips(t *testing.T) {
	r := newRig(t)
	var clients []*balancer.Client
	err := run(t.Context(), t.Context(), r.spec(spec.Drain), Options{Connect: agentConnector{connector{r}, &clients}})
	if err != nil || r.read() != r.drained() || r.unit.active() {
		t.Fatalf("%v\n%s", err, r.read())
	}
	calls := 0
	for _, c := range clients {
		calls += c.Calls()
	}
	if t.Logf("%d round trips", calls); calls > maxRoundTrips {
		t.Errorf("%d round trips, want at most %d", calls, maxRoundTrips)
	}
}
