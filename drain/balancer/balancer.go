// Package balancer is one load balancer (LB): the few things that the steps of
// a drain ask of it. [Local] does them on the LB's own machine, as root.
// [Serve] offers a Local over a byte stream (the agent), and [Connect] is the
// client at the other end of it.
package balancer

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// A Balancer is one nginx, its configuration and its journal. The steps know
// them only as this. It serves one operation: locks and the operation that was
// begun belong to it, and its Close gives the locks back.
//
// Errors are *[Error] where a caller may want to decide on them.
type Balancer interface {
	// Plan reads the configuration and reports what the query asks for. It
	// touches nothing.
	Plan(context.Context, Query) (*Report, error)
	// Lock takes the locks of backends, so that no other operation works on them.
	Lock(context.Context, LockRequest) error
	// Begin records an operation, or resumes one.
	Begin(context.Context, Beginning) error
	// Stage brings servers to a wanted state in the files: it edits the files and has nginx test
	// them. If the test fails, it restores the files. It does not edit servers that are as wanted.
	Stage(context.Context, StageRequest) (Staged, error)
	// Load has nginx load the files and verifies that a new generation of workers serves and
	// that no earlier worker accepts connections.
	Load(context.Context, LoadRequest) (Loaded, error)
	// Watch tells whether nginx still sends nothing to some servers.
	Watch(context.Context, WatchRequest) (Watched, error)
	// Connections counts the connections from here to some servers.
	Connections(context.Context, ConnectionsQuery) (remote.Count, error)
	// Probe connects to some servers and keeps the connections open, so that a counter elsewhere can be
	// tried on them.
	Probe(context.Context, ProbeRequest) ([]Probed, error)
	// Health connects to some servers, or asks for a URL, once.
	Health(context.Context, HealthCheck) error
	// Record writes down how the operation goes. It fails if the operation is no
	// longer in the journal.
	Record(context.Context, Recorded) error
	// End records how the operation ended.
	End(context.Context, journal.Ending) error
	// State returns the operations and the marks in the journal.
	State(context.Context) (journal.State, error)
	// History lists all operations, or has the lines of one.
	History(context.Context, HistoryQuery) (History, error)
	// Caller is the user on whose behalf the LB acts, as the LB sees it: what this
	// caller records carries it.
	Caller() journal.Recorder
	// Close ends what this LB does for the operation, and frees its locks.
	Close() error
	// Done is closed when the LB can no longer be asked.
	Done() <-chan struct{}
}

// A Want is what is to become of a server.
type Want string

// What can be wanted. Each is resolved on the LB, which knows whose a mark is.
const (
	Out      Want = "out"       // it is marked down
	Back     Want = "back"      // no mark of drainctl is on it
	AsBefore Want = "as before" // it is as the operation found it
)

// A Query says which servers are meant, and what shall become of them.
type Query struct {
	Targets   []string `json:"targets,omitempty"`   // none: every server
	Upstreams []string `json:"upstreams,omitempty"` // none: every upstream
	Want      Want     `json:"want,omitempty"`      // Out or Back; empty: nothing is to change
	// Force has Back clear a down too that drainctl has not put there.
	Force bool `json:"force,omitempty"`
	// Returning are targets that come back in the same edit. Their servers that
	// drainctl has marked count as up.
	Returning []string `json:"returning,omitempty"`
	// Preflight tries what a run needs: nginx's test, its processes, the files.
	Preflight bool `json:"preflight,omitempty"`
	// Connections counts the open connections to each server.
	Connections bool `json:"connections,omitempty"`
	// Itself asks about the LB alone, and about no server.
	Itself bool `json:"itself,omitempty"`
}

// A Report answers a Query.
type Report struct {
	ConfPath  string            `json:"configuration"`
	Identity  string            `json:"identity,omitempty"` // equal for two names of one LB; empty: not known
	Version   string            `json:"version,omitempty"`  // of nginx; empty: there is no binary
	Servers   []Server          `json:"servers"`
	Files     map[string]string `json:"files"` // SHA-256 of each file with a server of Servers
	Diff      string            `json:"diff,omitempty"`
	Upstreams []Upstream        `json:"upstreams,omitempty"` // of Servers
	// Excluded are the servers of the targets' hosts that the query leaves out: in other upstreams, or on other ports.
	Excluded []Server `json:"excluded,omitempty"`
	// Returning are the servers that come back in the same edit.
	Returning []Server `json:"returning,omitempty"`
	// Missing are the targets that no upstream here has.
	Missing    []Missing   `json:"missing,omitempty"`
	References []Reference `json:"references,omitempty"`
	Names      []Name      `json:"names,omitempty"`
	OtherNames []OtherName `json:"other_names,omitempty"`
	Skipped    []Skipped   `json:"skipped,omitempty"`
	// ShutdownTimeout is worker_shutdown_timeout; 0 where it is not set.
	ShutdownTimeout time.Duration    `json:"shutdown_timeout_ns,omitempty"`
	UDPServer       string           `json:"udp_server,omitempty"` // where the first server in stream is that listens on UDP
	Addresses       []netip.Addr     `json:"addresses,omitempty"`  // of this machine
	Now             time.Time        `json:"now"`                  // this machine's clock
	Free            uint64           `json:"free,omitempty"`       // bytes, for the journal
	Generation      *Generation      `json:"generation,omitempty"`
	Pending         []PendingFile    `json:"pending,omitempty"`
	Problems        []Problem        `json:"problems,omitempty"`
	State           journal.State    `json:"state"`
	StateError      *Error           `json:"state_error,omitempty"`
	Locks           []journal.Holder `json:"locks,omitempty"`
	// Uncounted is why connections were not counted.
	Uncounted string `json:"uncounted,omitempty"`
}

// A Server is one server line.
type Server struct {
	journal.Located
	Name       string   `json:"name"`   // of the upstream, with its module where both have one of that name
	Text       string   `json:"server"` // the address as it is written
	Parameters []string `json:"parameters,omitempty"`
	At         int      `json:"at"`                // byte offset of the line's first word
	Managed    bool     `json:"managed,omitempty"` // drainctl has marked it down
	NeedsEdit  bool     `json:"configure,omitempty"`
	UDP        bool     `json:"udp,omitempty"`      // nginx passes UDP to its upstream, or may by a variable
	OnlyUDP    bool     `json:"only_udp,omitempty"` // and no TCP
	Open       int      `json:"connections"`        // connections from this LB; -1: not counted
}

// An Upstream is what a plan leaves of an upstream.
type Upstream struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	Line   int    `json:"line"`
	Live   int    `json:"live"`   // primaries that are not down now
	Remain int    `json:"remain"` // of them, those that no target names
	Backup bool   `json:"backup,omitempty"`
	// Survivor is the one primary that remains, where there is one.
	Survivor    string `json:"survivor,omitempty"`
	MaxFails    string `json:"max_fails,omitempty"`
	FailTimeout string `json:"fail_timeout,omitempty"`
}

// A Missing is a target that no upstream has, and why; the error may offer what
// was meant.
type Missing struct {
	Target string `json:"target"`
	Error  *Error `json:"error"`
}

// A Reference is a place outside of upstreams that names a target.
type Reference struct {
	File      string `json:"file"`
	Line      int    `json:"line"`
	Directive string `json:"directive"`
	Text      string `json:"text"`
	Certain   bool   `json:"certain,omitempty"`
}

// A Name is a host name among the servers, and its addresses.
type Name struct {
	Host      string       `json:"host"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Error     string       `json:"error,omitempty"`
}

// An OtherName is a server line that reaches a target's host by another name.
type OtherName struct {
	Server  Server     `json:"server"`
	Address netip.Addr `json:"address"`
}

// A Skipped is an included file that could not be read or understood.
type Skipped struct {
	File     string `json:"file"`
	Error    string `json:"error"`
	Unread   bool   `json:"unread,omitempty"`   // it could not be read at all
	Mentions bool   `json:"mentions,omitempty"` // it holds a target's host
}

// A PendingFile was changed on disk after nginx was last loaded.
type PendingFile struct {
	Path    string    `json:"path"`
	Changed time.Time `json:"changed"`
	Loaded  time.Time `json:"loaded"`
	// Future tells that the change is later than the clock: it was set back, and
	// whether nginx has loaded the file cannot be told.
	Future bool `json:"future,omitempty"`
}

// A Problem is something that a run needs and that is not so.
type Problem struct {
	Code     string `json:"code"`
	Text     string `json:"text"`
	Override string `json:"override,omitempty"`
	// Unknown tells that it is not known, for want of root or of nginx itself: a
	// dry run says so, and a real run needs it.
	Unknown bool `json:"unknown,omitempty"`
}

// A Generation is the workers started by one load of the configuration.
type Generation struct {
	Serving   int       `json:"serving"`
	Finishing int       `json:"finishing"` // workers of earlier generations
	Earlier   int       `json:"earlier"`   // generations that these are of
	Memory    uint64    `json:"memory"`    // bytes that these hold; 0: not known
	Loaded    time.Time `json:"loaded"`
}

// A LockRequest names the backends to lock.
type LockRequest struct {
	Backends []string       `json:"backends"`
	Wait     time.Duration  `json:"wait_ns,omitempty"` // negative: for as long as it takes
	Holder   journal.Holder `json:"holder"`
}

// A StageRequest says what is to become of servers.
type StageRequest struct {
	Wants []Wanted `json:"wants"`
	// Force has Back clear a down too that drainctl has not put there.
	Force bool `json:"force,omitempty"`
	// Files are the SHA-256 of the files that the caller planned with. Stage fails if one has changed.
	// Without Files, Stage edits the files as they are.
	Files map[string]string `json:"files,omitempty"`
	// AcceptPending puts files live that were changed since nginx was loaded.
	AcceptPending bool `json:"accept_pending,omitempty"`
	// AllowStopped edits the files of an nginx that is stopped, too. It loads them when it starts.
	AllowStopped bool `json:"allow_stopped,omitempty"`
}

// A Wanted is servers, and what is to become of them.
type Wanted struct {
	Want    Want             `json:"want"`
	Servers []journal.Server `json:"servers"`
}

// Staged is what Stage did.
type Staged struct {
	Edited []journal.Edit `json:"edited,omitempty"`
	Diff   string         `json:"diff,omitempty"` // of what was edited; empty beyond maxDiff
	// NeedsLoad tells that nginx does not serve what the files say.
	NeedsLoad bool     `json:"needs_load,omitempty"`
	Stale     []string `json:"stale,omitempty"` // files that were changed before, and not loaded
	Notices   []string `json:"notices,omitempty"`
}

// A LoadRequest says how long a new generation may take.
type LoadRequest struct {
	Timeout time.Duration `json:"timeout_ns"`
}

// Loaded is what Load did.
type Loaded struct {
	Generation Generation `json:"generation"`
	Stopped    bool       `json:"stopped,omitempty"` // nginx does not run: nothing was reloaded
	Notices    []string   `json:"notices,omitempty"`
}

// A WatchRequest says what to look at.
type WatchRequest struct {
	// Targets are those whose servers are to be down, in these upstreams; no upstream:
	// in every one. A server that another process adds is one of them.
	Targets   []string `json:"targets,omitempty"`
	Upstreams []string `json:"upstreams,omitempty"`
	// Buffered counts the requests that earlier workers hold and have not sent
	// to a server.
	Buffered bool `json:"buffered,omitempty"`
	// Generation asks for what runs, and for nothing else: it takes no target.
	Generation bool `json:"generation,omitempty"`
}

// Watched is what Watch saw.
type Watched struct {
	Drift *Drift `json:"drift,omitempty"` // nil: nginx serves what was applied
	// Generation is what runs; nil unless it was asked for.
	Generation *Generation `json:"generation,omitempty"`
	// Buffered is -1 where it could not be counted.
	Buffered int `json:"buffered,omitempty"`
}

// A Drift is a change by another process that lets requests reach the servers.
type Drift struct {
	Reason   DriftReason `json:"reason"`
	Places   []string    `json:"places,omitempty"`
	Reloaded bool        `json:"reloaded,omitempty"`
}

// A DriftReason says what another process did.
type DriftReason string

// The reasons.
const (
	DriftDownRemoved   DriftReason = "down removed"
	DriftServerRemoved DriftReason = "server removed"
	DriftUnknown       DriftReason = "changed after a reload"
)

// A Beginning is an operation and the first lines of its history.
type Beginning struct {
	Operation journal.Operation `json:"operation"`
	// Resume takes over the operation of this ID if the journal has it, even if it has ended. Root may
	// take over that of Operation.Recorder.
	Resume bool `json:"resume,omitempty"`
	// SetAside has a state of the journal that cannot be read renamed, and a new one begun.
	// An agent does that for root alone.
	SetAside bool              `json:"set_aside,omitempty"`
	Lines    []json.RawMessage `json:"lines,omitempty"` // JSON objects for the history
}

// A ConnectionsQuery says what to count.
type ConnectionsQuery struct {
	Servers []journal.Server `json:"servers,omitempty"`
	// StatusURL is a page of stub_status to ask in place of counting sockets.
	StatusURL string `json:"status_url,omitempty"`
	// Held lists the connections too, 2,000 of them at most.
	Held bool `json:"held,omitempty"`
	// Wait is how long to wait, at most, while Known connections are open.
	Wait  time.Duration `json:"wait_ns,omitempty"`
	Known int           `json:"known,omitempty"`
}

// A ProbeRequest says where to connect to, or which connections of an earlier probe to close.
type ProbeRequest struct {
	Servers []journal.Server `json:"servers,omitempty"`
	Close   []Ends           `json:"close,omitempty"`
}

// Ends are the ends of a connection. Connections to several servers may have one near end.
type Ends struct {
	Near netip.AddrPort `json:"near"`
	Far  netip.AddrPort `json:"far"`
}

// A Probed is one connection to a server.
type Probed struct {
	Ends
	Error string `json:"error,omitempty"` // why there is none
	// Refused tells that nothing listens there (ECONNREFUSED).
	Refused bool `json:"refused,omitempty"`
}

// A HealthCheck is one try.
type HealthCheck struct {
	Servers []journal.Server `json:"servers,omitempty"`
	URL     string           `json:"url,omitempty"`  // requested instead of a connection to the servers
	Host    string           `json:"host,omitempty"` // the Host header, and the name in the certificate; "": the URL's
	// CA is certificates in PEM, at most MaxCA bytes, that are trusted beside the LB's own. They
	// are the operator's: an agent reads no file that its caller names.
	CA string `json:"ca,omitempty"`
}

// MaxCA bounds the certificates of a health check, in bytes.
const MaxCA = 16 << 10

// A Recorded is how an operation goes.
type Recorded struct {
	Lines []json.RawMessage `json:"lines,omitempty"`
	// Progress is how far each backend is; not looked into here.
	Progress json.RawMessage `json:"progress,omitempty"`
}

// A HistoryQuery asks for one operation, or with an empty ID for the list.
type HistoryQuery struct {
	ID string `json:"id,omitempty"`
}

// A History is a list of operations, or one of them.
type History struct {
	Operations []journal.Entry `json:"operations,omitempty"`
	Unreadable []string        `json:"unreadable,omitempty"`
	journal.History
}
