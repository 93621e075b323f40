package event

import (
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/spec"
)

// A CheckName says what a check is about.
type CheckName string

// The checks. Those of reaching a host come first, then those of an LB, then those
// of a backend.
const (
	CheckSSH     CheckName = "ssh"
	CheckHostKey CheckName = "host-key"
	CheckSudo    CheckName = "sudo"
	CheckAgent   CheckName = "agent"

	CheckConfiguration CheckName = "configuration" // it can be read
	CheckServer        CheckName = "server"        // it has the targets
	CheckNginx         CheckName = "nginx"         // it runs, and with this configuration
	CheckTest          CheckName = "nginx-test"
	CheckFiles         CheckName = "files" // they can be replaced
	CheckPending       CheckName = "pending"
	CheckJournal       CheckName = "journal"
	CheckSpace         CheckName = "space"
	CheckClock         CheckName = "clock"

	CheckUnit    CheckName = "unit"
	CheckOneHost CheckName = "one-host" // all addresses of its name are of one host
	CheckReboot  CheckName = "reboot"   // the right to it
	CheckCounter CheckName = "counter"
	CheckHealth  CheckName = "health" // the URL passes while the app is up
)

// A CheckResult is how a check ended.
type CheckResult string

// The results.
const (
	CheckOK      CheckResult = "ok"
	CheckWarning CheckResult = "warning" // which stops nothing
	CheckFailed  CheckResult = "failed"
	NotChecked   CheckResult = "not checked" // as one that it needs has failed
)

// A Check is one thing that a run needs of an LB or a backend.
type Check struct {
	LB      string      `json:"lb,omitempty"`
	Backend string      `json:"backend,omitempty"`
	Name    CheckName   `json:"check"`
	Result  CheckResult `json:"result"`
	Seen    Seen        `json:"seen,omitzero"`
	// Finding is what is wrong, and what overrides it.
	Finding *spec.Finding `json:"finding,omitempty"`
	// Needs is the check that failed, of one that was not checked.
	Needs CheckName `json:"needs,omitempty"`
}

// Seen is what a check saw. Each fills what it is about.
type Seen struct {
	Host          string               `json:"host,omitempty"`    // user@host
	User          string               `json:"user,omitempty"`    // whose rights were looked at
	Version       string               `json:"version,omitempty"` // of nginx, or of the agent
	Configuration string               `json:"configuration,omitempty"`
	Servers       []string             `json:"servers,omitempty"`
	Generation    *balancer.Generation `json:"generation,omitempty"`
	Free          uint64               `json:"free,omitempty"` // bytes
	Skew          spec.Seconds         `json:"skew,omitempty"` // that the LB's clock is ahead
	Service       *ServiceState        `json:"service,omitempty"`
	Counter       string               `json:"counter,omitempty"`
	Open          *int                 `json:"open,omitempty"`                // connections
	Refuses       bool                 `json:"refuses_connections,omitempty"` // the app is down
	URL           string               `json:"url,omitempty"`                 // of the health check
}
