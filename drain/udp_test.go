package drain

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// newUDPRig is a rig whose nginx passes UDP, and nothing else, to the target.
func newUDPRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.unit.stop()
	r.unit.udp = true
	if err := r.unit.start(); err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(r.was, "http {")
	r.was = fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
%s
stream {
    upstream app {
        server %s;
        server 127.0.0.1:9;
    }
    server { listen %s udp; proxy_pass app; proxy_responses 1; }
}
`, before, r.unit.addr, r.front)
	r.write(r.was)
	r.reload()
	return r
}

// spec asks for the rig's target over UDP.
func udpSpec(r *rig, k spec.Kind) spec.Spec {
	s := r.spec(k)
	s.Allow.UDP, s.HealthTimeout = k == spec.Drain, 2*time.Second
	return s
}

// ask sends a datagram through nginx, and returns the answer.
func (r *rig) ask() error {
	conn, err := net.Dial("udp", r.front)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(time.Second)); err == nil {
		_, err = conn.Write([]byte("hello"))
	}
	if err == nil {
		_, err = conn.Read(make([]byte, 100))
	}
	return err
}

// A server that takes UDP alone is counted on the load balancer, and no TCP connection is tried. Its
// health is that of its unit and port.
func TestUDPBackend(t *testing.T) {
	t.Parallel()
	r := newUDPRig(t)
	refused := udpSpec(r, spec.Drain)
	refused.Allow.UDP = false
	if _, err := r.run(refused); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), "nginx passes UDP to app") {
		t.Fatalf("without consent: exit %d, %v", spec.ExitOf(err), err)
	}
	l, err := r.run(udpSpec(r, spec.Drain))
	if err != nil || r.unit.active() || r.read() != r.drained() {
		t.Fatalf("%v; the app is active: %t; the configuration:\n%s", err, r.unit.active(), r.read())
	}
	for _, e := range eventsOf[*event.Checked](l) {
		for _, c := range e.Checks {
			if c.Name == event.CheckCounter && (c.Seen.Counter != "the sockets of the load balancer" || c.Seen.Refuses || c.Result != event.CheckOK) {
				t.Errorf("the counter: %+v", c)
			}
		}
	}
	l, err = r.run(udpSpec(r, spec.Undrain))
	if err != nil || !r.unit.active() || r.read() != r.was {
		t.Fatalf("%v; the app is active: %t; the configuration:\n%s", err, r.unit.active(), r.read())
	}
	if n := len(eventsOf[*event.HealthChecked](l)); n != healthChecks {
		t.Errorf("%d health checks", n)
	}
	if err := r.ask(); err != nil {
		t.Errorf("after the undrain: %v", err)
	}
}

// An app that does not open its port would not be put back: it is not drained either.
func TestUDPBackendWithoutItsPort(t *testing.T) {
	t.Parallel()
	r := newUDPRig(t)
	_, port, _ := net.SplitHostPort(r.unit.addr)
	closed := "has UDP port " + port + " open"
	opens := func(isOpen bool) {
		r.unit.stop()
		r.unit.udp = isOpen // else it opens its TCP port
		if err := r.unit.start(); err != nil {
			t.Fatal(err)
		}
	}
	opens(false)
	run := udpSpec(r, spec.Run)
	run.Service, run.Allow.UDP, run.Rollout.Command = "app", true, []string{"true"}
	for _, sp := range []spec.Spec{run, udpSpec(r, spec.Drain)} {
		if _, err := r.run(sp); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), closed) {
			t.Errorf("%s: exit %d, %v", sp.Kind, spec.ExitOf(err), err)
		}
	}
	opens(true)
	if _, err := r.run(udpSpec(r, spec.Drain)); err != nil {
		t.Fatal(err)
	}
	r.unit.udp = false
	_, err := r.run(udpSpec(r, spec.Undrain))
	if spec.ExitOf(err) != spec.Failed || !strings.Contains(err.Error(), closed) || r.read() != r.drained() {
		t.Errorf("exit %d, %v; the configuration:\n%s", spec.ExitOf(err), err, r.read())
	}
}

// A health URL that does not answer says that the app is sick: there is no TCP server that would take a
// connection.
func TestUDPBackendWithASickURL(t *testing.T) {
	t.Parallel()
	r := newUDPRig(t)
	sp := udpSpec(r, spec.Drain)
	sp.Health = "http://" + r.unit.addr + "/"
	if _, err := r.run(sp); err != nil {
		t.Error(err)
	}
}

// Without a service nothing can be asked, and the plan says so.
func TestUDPBackendWithoutAService(t *testing.T) {
	t.Parallel()
	r := newUDPRig(t)
	sp := udpSpec(r, spec.Drain)
	sp.Service = ""
	if _, err := r.run(sp); err != nil {
		t.Fatal(err)
	}
	op, err := Prepare(t.Context(), udpSpec(r, spec.Undrain), Options{Connect: connector{r}, Emit: valid})
	if err != nil {
		t.Fatal(err)
	}
	unchecked := op.Plan().Unchecked
	op.Close()
	if !slices.ContainsFunc(unchecked, func(s string) bool { return strings.Contains(s, "it takes UDP alone") }) {
		t.Errorf("not checked: %q", unchecked)
	}
	l, err := r.run(udpSpec(r, spec.Undrain))
	if err != nil || r.read() != r.was {
		t.Fatalf("%v; the configuration:\n%s", err, r.read())
	}
	if n := len(eventsOf[*event.HealthChecked](l)); n > 0 {
		t.Errorf("%d health checks of a backend that cannot be asked", n)
	}
}
