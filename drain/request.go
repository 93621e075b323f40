// Package drain is the story: take a backend out of the pool, and put it back.
//
// A [Request] says what is wanted. [Read] makes a [Plan] of it, which touches
// nothing; [Check] tries everything the run will need; [Run] does it, forward
// for a drain and backward for an undrain, with one list of steps and one
// runner, and takes back what was done when it fails. What happens is told as
// [Event] values; the package prints nothing.
package drain

import (
	"context"
	"net/netip"
	"net/url"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// An Operation is what an operator asks for.
type Operation string

// The operations.
const (
	Drain   Operation = "drain"
	Undrain Operation = "undrain"
)

// Poll names where open connections are counted.
type Poll string

// The gauges: ss on the backend, ss on the load balancer, or the stub_status
// of the backend's own nginx.
const (
	PollSS         Poll = "ss"
	PollLB         Poll = "lb"
	PollStubStatus Poll = "stub_status"
)

// OnTimeout is what a drain does when the backend is not empty in time.
type OnTimeout string

// What can be done when the time is up: take everything back, leave the server
// down and the app running, or stop the app all the same.
const (
	TimeoutRollback OnTimeout = "rollback"
	TimeoutLeave    OnTimeout = "leave"
	TimeoutStop     OnTimeout = "stop"
)

// HealthTCP is the health check that only connects.
const HealthTCP = "tcp"

// Defaults of a request.
const (
	DefaultInterval      = 500 * time.Millisecond
	DefaultTimeout       = 5 * time.Minute
	DefaultHealthTimeout = 60 * time.Second
	DefaultReloadTimeout = 60 * time.Second
	DefaultStopTimeout   = 2 * time.Minute
	DefaultMinUp         = 1
)

// A Request is everything an operator asks for.
type Request struct {
	Operation Operation
	Target    nginx.Target
	Upstreams []string // narrows the target to these upstreams; empty: all
	LBs       []*LB
	Service   string // systemd unit of the app; empty: it is not touched

	Threshold int           // drained at this many connections or fewer
	Interval  time.Duration // between two readings of the gauge
	Timeout   time.Duration // for the wait; 0: no limit
	OnTimeout OnTimeout
	Poll      Poll
	StatusURL string // of the backend's stub_status, for PollStubStatus

	Health        string        // a URL, or HealthTCP
	HealthTimeout time.Duration // 0: no limit
	ReloadTimeout time.Duration // for a new generation of workers to serve

	// Flags are those of the operator's command line that drain and undrain
	// share, as words, for the commands that a message names.
	Flags []string
	// ResumeFlags are those of them that resume takes.
	ResumeFlags []string

	// SSH is how the backend is reached.
	SSH remote.SSH
	// SSHGiven tells that the operator has said how; an undrain otherwise does
	// as the drain did.
	SSHGiven bool
	// Dial makes the connection to the backend. It is called once, when the
	// backend is first needed, and never in a dry run.
	Dial func(context.Context, remote.SSH) (remote.Host, error)
	// Local tells that the backend is the load balancer itself.
	Local bool
	// BackendName is how the backend is named in a plan.
	BackendName string

	MinUp int // live primaries an upstream must keep
	Allow Allow

	StateDir    string         // of the journal and the locks, on each load balancer
	User, Host  string         // who asks, and where
	Reason      string         // why; for the journal and for others who look
	Continues   string         // ID of the operation that is resumed
	Wait        bool           // for another operator's claim on the target to end
	Force       bool           // undrain: clear a down that drainctl did not put there, too
	StopTimeout time.Duration  // for systemctl stop
	IgnorePeers []netip.Prefix // whose new connections to the backend do not matter
}

// Allow is the guards an operator has overridden.
type Allow struct {
	Direct          bool `json:"direct,omitempty"`           // the target is also reached outside its upstreams
	ShutdownTimeout bool `json:"shutdown_timeout,omitempty"` // nginx cuts requests before the wait is over
	AllAddresses    bool `json:"all_addresses,omitempty"`    // a server's name has several addresses
	Pending         bool `json:"pending,omitempty"`          // files changed since nginx was last loaded
}

// An LB is one load balancer: a host, and how nginx is run on it.
type LB struct {
	Host  remote.Host
	Nginx nginx.Binary
	// Conf is the main configuration file; empty: what the binary says.
	Conf string
	// Foreign tells that nginx is tested or reloaded by the operator's own
	// commands, so that the binary here may not be the one that runs.
	Foreign bool

	built *nginx.Build // what the binary is, once it was asked
}

// needsBackend tells whether the run must log in to the backend.
func (r *Request) needsBackend() bool {
	switch {
	case r.Service != "":
		return true
	case r.Operation != Drain:
		return false
	case r.Poll == PollStubStatus:
		return r.statusOnBackend()
	}
	return r.Poll == PollSS
}

// OverSSH tells whether the run logs in to the backend, and the backend is not
// the load balancer itself.
func (r *Request) OverSSH() bool { return r.needsBackend() && !r.Local }

// statusOnBackend tells whether stub_status answers on the loopback interface
// alone, which then means the backend's.
func (r *Request) statusOnBackend() bool {
	u, err := url.Parse(r.StatusURL)
	return err == nil && isLoopbackName(u.Hostname())
}

// Reach says where the backend is: the host that SSH names already, the load
// balancer itself, or the target's own host.
func (r *Request) Reach() {
	switch {
	case r.SSH.Address != "":
		r.BackendName = r.SSH.Address
	case OnLB(r.Target):
		r.Local, r.BackendName = true, r.LBs[0].Host.Name()
	default:
		r.SSH.Address, r.BackendName = r.Target.Host, r.Target.Host
	}
}
