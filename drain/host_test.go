package drain

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"testing"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A paper is a host of which only the files and the names are there. Whatever
// else is asked of it is a nil pointer: a plan must not ask.
type paper struct {
	remote.Host
	files  map[string]string
	secret []string // files that may not be read
	names  map[string][]string
	test   remote.Result // what `nginx -t` ends with
}

func (p *paper) Name() string { return "lb1" }
func (p *paper) User() string { return "operator" }

func (p *paper) ReadFile(_ context.Context, name string) ([]byte, error) {
	if slices.Contains(p.secret, name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	text, ok := p.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

func (p *paper) Glob(_ context.Context, pattern string) ([]string, error) {
	var found []string
	for name := range p.files {
		if ok, err := path.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			found = append(found, name)
		}
	}
	for _, name := range p.secret {
		if ok, _ := path.Match(pattern, name); ok {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found, nil
}

func (p *paper) ReadFiles(ctx context.Context, names []string) ([][]byte, error) {
	var all [][]byte
	for _, name := range names {
		b, err := p.ReadFile(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

func (p *paper) Append(_ context.Context, name string, data []byte) error {
	p.files[name] += string(data)
	return nil
}

func (p *paper) Stat(_ context.Context, name string) (remote.FileInfo, error) {
	if _, ok := p.files[name]; !ok {
		return remote.FileInfo{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	return remote.FileInfo{Path: name}, nil
}

func (p *paper) Lookup(_ context.Context, name string) ([]netip.Addr, error) {
	texts, ok := p.names[name]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs, nil
}

func (p *paper) Run(_ context.Context, c remote.Command) (remote.Result, error) {
	switch {
	case c.Root:
		return remote.Result{}, errors.New("a plan ran a command as root: " + remote.Quote(c.Args...))
	case slices.Contains(c.Args, "-t"):
		return p.test, nil
	}
	return remote.Result{Code: 127}, nil
}

// mainConf is where the configuration of a paper is.
const mainConf = "/etc/nginx/nginx.conf"

// on is the paper of one file.
func on(conf string) *paper { return &paper{files: map[string]string{mainConf: conf}} }

// httpConf is a configuration with the given text in its http block.
func httpConf(text string) *paper { return on("events {}\nhttp {\n" + text + "\n}\n") }

// ask is a request as the command line makes it with no flags.
func ask(t *testing.T, op Operation, p *paper, target string, change ...func(*Request)) *Request {
	t.Helper()
	to, err := nginx.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	req := &Request{
		Operation: op, Target: to, LBs: []*LB{{Host: p, Nginx: nginx.Binary{Path: "nginx"}, Conf: mainConf}},
		Interval: DefaultInterval, Timeout: DefaultTimeout, OnTimeout: TimeoutRollback, Poll: PollSS,
		Health: HealthTCP, HealthTimeout: DefaultHealthTimeout, ReloadTimeout: DefaultReloadTimeout, MinUp: DefaultMinUp,
		Local: OnLB(to), BackendName: to.Host, StateDir: "/state", User: "ann", Host: "desk", StopTimeout: DefaultStopTimeout,
	}
	for _, c := range change {
		c(req)
	}
	return req
}

// plan reads and plans, and fails where no plan can be made.
func plan(t *testing.T, req *Request) *Plan {
	t.Helper()
	p, err := Read(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// carryOut makes a plan's changes on its paper, and writes them down as a run
// would. It returns the operation's ID.
func carryOut(t *testing.T, p *Plan) string {
	t.Helper()
	r := newRun(p, func(Event) {})
	done := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	done(r.begin(t.Context()))
	for i := range p.LBs {
		part := &p.LBs[i]
		for _, c := range part.Changes {
			done(r.note(t.Context(), Record{Kind: RecordEdit, Edit: announce(part, c)}))
			part.LB.Host.(*paper).files[c.Path] = c.Now
		}
	}
	done(r.note(t.Context(), Record{Kind: RecordDone, Step: StepClose, Way: r.way(), Changed: true}))
	r.end(t.Context(), nil)
	return r.id
}
