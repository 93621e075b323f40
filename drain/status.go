package drain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A Status is what one load balancer's configuration says of its upstreams, and
// what its sockets say now.
type Status struct {
	LB       string
	ConfPath string
	Servers  []ServerStatus
	// Uncounted is why no connections could be counted, nil when they were.
	Uncounted error
	Warnings  []string
}

// A ServerStatus is one server line.
type ServerStatus struct {
	Upstream string
	Module   string
	Server   *nginx.Server
	// Open is the connections from this load balancer now; -1: not known.
	Open  int
	State State
	// By is the operation that the state comes from, nil when there is none.
	By *Recorded
}

// A State is what a server is, by the configuration and the journal together.
type State string

// The states.
const (
	StateUp      State = "up"
	StateDown    State = "down" // by whom is not known: the journal cannot be read
	StateByHand  State = "down (by hand)"
	StateDrained State = "drained"
	StateWorking State = "being worked on"
	StateHalfWay State = "left half-way"
)

// ReadStatus reads a load balancer. A target that is not nil and upstreams
// narrow what is shown; naming what is not there is a failure.
func ReadStatus(ctx context.Context, lb *LB, stateDir string, target *nginx.Target, upstreams []string) (*Status, error) {
	path, err := lb.confPath(ctx)
	if err != nil {
		return nil, err
	}
	conf, err := nginx.Load(ctx, lb.nginxHost(), path)
	if err != nil {
		return nil, unreadable(err)
	}
	req := &Request{Upstreams: upstreams, StateDir: stateDir}
	if target != nil {
		req.Target = *target
	}
	if err := (&Plan{Request: req}).checkUpstreamNames(conf); err != nil {
		return nil, err
	}
	st := &Status{LB: lb.Host.Name(), ConfPath: path}
	for _, sk := range conf.Skipped {
		st.Warnings = append(st.Warnings, fmt.Sprintf("%s was passed over: %v", sk.File.Path, sk.Err))
	}
	for _, u := range conf.Upstreams {
		if len(upstreams) > 0 && !slices.ContainsFunc(upstreams, u.Named) {
			continue
		}
		for _, s := range u.Servers {
			if target == nil || (s.Err == nil && target.Matches(s.Address)) {
				st.Servers = append(st.Servers, ServerStatus{Upstream: conf.DisplayName(u), Module: u.Module, Server: s, Open: -1})
			}
		}
	}
	if target != nil && len(st.Servers) == 0 {
		return nil, notFound(conf, req)
	}
	st.Uncounted = st.count(ctx, lb.Host)
	st.judge(ctx, lb, req)
	return st, nil
}

// judge works out what each server is.
func (st *Status) judge(ctx context.Context, lb *LB, req *Request) {
	ledger, unknown := lb.journal(req).readLedger(ctx)
	if unknown != nil {
		st.Warnings = append(st.Warnings, fmt.Sprintf("who drained what is not known: %v", unknown))
	}
	working := map[string]bool{}
	for i := range st.Servers {
		s := &st.Servers[i]
		mark, latest := ledger.Mark(s.Server), ledger.Latest(s.Server)
		switch {
		case latest != nil && latest.Unfinished():
			busy, known := working[latest.ID]
			if !known {
				var err error
				if busy, err = claimed(ctx, lb, req, latest.Target); err != nil {
					st.Warnings = append(st.Warnings, fmt.Sprintf("whether operation %s goes on is not known: %v", latest.ID, err))
				}
				working[latest.ID] = busy
			}
			s.By, s.State = latest, StateHalfWay
			if busy {
				s.State = StateWorking
			}
		case s.Server.IsDown() && mark != nil:
			s.By, s.State = mark.By, StateDrained
		case s.Server.IsDown() && unknown != nil:
			s.State = StateDown
		case s.Server.IsDown():
			s.State = StateByHand
		default:
			s.State = StateUp
		}
	}
}

// count fills in the open connections of every server.
func (st *Status) count(ctx context.Context, h remote.Host) error {
	var ports []uint16
	for _, s := range st.Servers {
		if s.Server.Err == nil && s.Server.Address.Unix == "" && !slices.Contains(ports, s.Server.Address.Port) {
			ports = append(ports, s.Server.Address.Port)
		}
	}
	open := map[netip.AddrPort]int{}
	if len(ports) > 0 {
		var err error
		if open, err = remote.CountByPeer(ctx, h, ports); err != nil {
			return err
		}
	}
	for i := range st.Servers {
		s := &st.Servers[i]
		switch {
		case s.Server.Err != nil:
		case s.Server.Address.Unix != "":
			n, err := remote.UnixSockets(ctx, h, s.Server.Address.Unix)
			if err != nil {
				return err
			}
			s.Open = n.Count
		default:
			dst, err := destinations(ctx, h, []*nginx.Server{s.Server})
			if err != nil {
				continue
			}
			s.Open = 0
			for _, d := range dst {
				s.Open += open[d]
			}
		}
	}
	return nil
}
