package balancer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A reading is one look at the configuration, while a report is made of it.
type reading struct {
	*Report
	conf      *nginx.Config
	build     nginx.Build
	targets   []nginx.Target
	servers   []*nginx.Server
	returning []*nginx.Server
	query     Query
}

// Plan implements [Balancer].
func (l *Local) Plan(ctx context.Context, q Query) (*Report, error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	r := &reading{Report: &Report{Files: map[string]string{}}, query: q}
	r.build, _ = l.find(ctx)
	r.Now, r.Version = time.Now(), r.build.Version
	tested := make(chan error, 1)
	testing, cancel := context.WithCancel(ctx)
	var over sync.WaitGroup
	defer over.Wait() // an answer that needs no test leaves no nginx behind
	defer cancel()
	test := func() {
		binary := l.binary() // reading the configuration may set it
		over.Go(func() { tested <- l.test(testing, binary) })
	}
	if q.Preflight && !l.options.Served {
		test() // beside the reading, so that the answer takes no longer than nginx's own test
	}
	if err := l.read(ctx, r); err != nil {
		return nil, err
	}
	if q.Preflight && l.options.Served {
		test() // reading has refused what the caller can write
	}
	r.skipped()
	if len(r.targets) > 0 && len(r.Missing) == len(r.targets) && len(r.returning) == 0 {
		return r.Report, nil // nothing is to be done here
	}
	if err := r.edits(); err != nil {
		return nil, &Error{Code: CodeRefused, Message: err.Error(), cause: err}
	}
	r.facts(ctx)
	if q.Connections {
		r.count(ctx, l)
	}
	r.Locks, _ = l.journal.Holders()
	if q.Preflight {
		l.preflight(ctx, r, tested)
	}
	return r.Report, nil
}

// read loads the configuration and the journal, and finds the servers.
func (l *Local) read(ctx context.Context, r *reading) (err error) {
	if err := checkNumber("upstreams", len(r.query.Upstreams)); err != nil {
		return err
	}
	if r.targets, err = parseTargets(r.query.Targets); err != nil {
		return err
	}
	returning, err := parseTargets(r.query.Returning)
	if err != nil {
		return err
	}
	if r.conf, _, err = l.load(ctx); err != nil {
		return err
	}
	r.ConfPath, r.Identity = r.conf.Path, l.identity(r.conf.Path)
	state, err := l.journal.State()
	if err != nil {
		r.StateError = asError(fmt.Errorf("read the journal: %w", err))
	}
	r.State = withoutSecrets(ofConf(state, r.ConfPath))
	if err := checkUpstreams(r.conf, r.query.Upstreams); err != nil {
		return err
	}
	r.match()
	r.findReturning(returning)
	r.findMissing()
	return nil
}

// maxNames bounds the targets, the upstreams and the servers that one request names, each.
const maxNames = 10_000

// checkNumber refuses a request that names more than maxNames of something.
func checkNumber(of string, n int) error {
	if n > maxNames {
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("%d %s, more than %d", n, of, maxNames)}
	}
	return nil
}

func parseTargets(texts []string) (targets []nginx.Target, err error) {
	if err := checkNumber("targets", len(texts)); err != nil {
		return nil, err
	}
	for _, text := range texts {
		t, err := nginx.ParseTarget(text)
		if err != nil {
			return nil, &Error{Code: CodeUsage, Message: err.Error(), cause: err}
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// unreadable is the error of a configuration that cannot be read.
func unreadable(err error) error {
	e := asError(fmt.Errorf("read the configuration: %w", err))
	if e.Code == CodeFailed {
		e.Code = CodeRefused
	}
	return e
}

// match finds the servers that the query names, in the order of the files.
func (r *reading) match() {
	if r.query.Itself {
		return
	}
	for _, u := range r.conf.Upstreams {
		left := len(r.query.Upstreams) > 0 && !slices.ContainsFunc(r.query.Upstreams, u.Named)
		for _, s := range u.Servers {
			named := len(r.targets) == 0 || r.isTarget(s, nginx.Target.Matches)
			switch {
			case named && !left:
				r.servers = append(r.servers, s)
				r.Servers = append(r.Servers, r.describe(s))
				if _, ok := r.Files[s.File.Path]; !ok {
					r.Files[s.File.Path] = hash(s.File.Src)
				}
			case len(r.targets) > 0 && (named || r.isTarget(s, nginx.Target.SameHost)):
				r.Excluded = append(r.Excluded, r.describe(s))
			}
		}
	}
}

// isTarget reports whether a target is about a server.
func (r *reading) isTarget(s *nginx.Server, is func(nginx.Target, nginx.Address) bool) bool {
	return s.Err == nil && slices.ContainsFunc(r.targets, func(t nginx.Target) bool { return is(t, s.Address) })
}

// findReturning finds the servers that drainctl has marked and that come back.
func (r *reading) findReturning(targets []nginx.Target) {
	for _, u := range r.conf.Upstreams {
		if len(r.query.Upstreams) > 0 && !slices.ContainsFunc(r.query.Upstreams, u.Named) {
			continue
		}
		for _, s := range u.Servers {
			if s.Err != nil || !slices.ContainsFunc(targets, func(t nginx.Target) bool { return t.Matches(s.Address) }) {
				continue
			}
			d := r.describe(s)
			if d.NeedsEdit = d.Down && d.Managed; !d.NeedsEdit {
				continue
			}
			r.returning, r.Returning = append(r.returning, s), append(r.Returning, d)
			r.Files[s.File.Path] = hash(s.File.Src)
		}
	}
}

func hash(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func keyOf(s *nginx.Server) journal.Server {
	return journal.Server{Module: s.Upstream.Module, Upstream: s.Upstream.Name, Address: s.Address.String()}
}

// describe is what a caller learns of a server line.
func (r *reading) describe(s *nginx.Server) Server {
	words := s.Words()
	d := Server{
		Located: journal.Located{Server: keyOf(s), File: s.File.Path, Line: s.Line()},
		Name:    r.conf.DisplayName(s.Upstream), Text: words[1].Text, At: int(s.At), Open: -1,
		UDP: s.Upstream.UDP, OnlyUDP: s.Upstream.OnlyUDP,
	}
	for _, w := range words[2:] {
		d.Parameters = append(d.Parameters, w.Text)
		d.Down = d.Down || w.Text == "down"
	}
	d.Managed = len(r.State.MarksOn(d.Server)) > 0
	switch r.query.Want {
	case Out:
		d.NeedsEdit = !d.Down
	case Back:
		d.NeedsEdit = d.Down && (d.Managed || r.query.Force)
	}
	return d
}

// contextLines is how many lines around an edit a plan's diff shows at most.
const contextLines = 3

// edits works out, in memory, what the plan would change, and verifies it.
func (r *reading) edits() error {
	if r.query.Want == "" {
		return nil
	}
	var edits []nginx.Edit
	for i, s := range r.servers {
		if r.Servers[i].NeedsEdit {
			edits = append(edits, s.Edits(r.query.Want == Out)...)
		}
	}
	for i, s := range r.returning {
		if r.Returning[i].NeedsEdit {
			edits = append(edits, s.Edits(false)...)
		}
	}
	if err := verify(r.conf, edits, r.servers...); err != nil {
		return err
	}
	var err error
	r.Diff, err = nginx.Diff(edits, contextLines)
	return err
}

// verify cross-checks the upstreams of edits, and of other servers, with gonginx, and loads the
// configuration with the edits.
func verify(conf *nginx.Config, edits []nginx.Edit, others ...*nginx.Server) error {
	var upstreams []*nginx.Upstream
	for _, e := range edits {
		upstreams = append(upstreams, e.Server.Upstream)
	}
	for _, s := range others {
		upstreams = append(upstreams, s.Upstream)
	}
	for i, u := range upstreams {
		if slices.Contains(upstreams[:i], u) {
			continue
		}
		if err := u.CrossCheck(); err != nil {
			return err
		}
	}
	return conf.Verify(edits)
}

// checkUpstreams makes sure that each name is exactly one block's.
func checkUpstreams(conf *nginx.Config, names []string) error {
	for _, name := range names {
		n := 0
		for _, u := range conf.Upstreams {
			if u.Named(name) {
				n++
			}
		}
		switch {
		case n == 0:
			return usage("no upstream %q in %s\nhint: it has %s", name, conf.Path, upstreamNames(conf))
		case n > 1:
			return usage("there are %d upstreams %q in %s\nhint: say http/%s or stream/%s", n, name, conf.Path, name, name)
		}
	}
	return nil
}

func usage(format string, args ...any) *Error {
	return &Error{Code: CodeUsage, Message: fmt.Sprintf(format, args...)}
}

// maxNamed bounds how many names an error lists.
const maxNamed = 8

func upstreamNames(conf *nginx.Config) string {
	var names []string
	for i, u := range conf.Upstreams {
		if i == maxNamed {
			names = append(names, fmt.Sprintf("… %d more", len(conf.Upstreams)-i))
			break
		}
		names = append(names, conf.DisplayName(u))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// findMissing notes the targets that name no server.
func (r *reading) findMissing() {
	for i, t := range r.targets {
		if slices.ContainsFunc(r.servers, func(s *nginx.Server) bool { return t.Matches(s.Address) }) {
			continue
		}
		r.Missing = append(r.Missing, Missing{r.query.Targets[i], r.missing(t)})
	}
}

// missing is the error of one target.
func (r *reading) missing(t nginx.Target) *Error {
	var orphaned []string
	for _, m := range r.State.Marks {
		if a, err := nginx.ParseAddress(m.Address); err == nil && t.Matches(a) {
			by := ""
			if op, ok := r.State.Find(m.Operation); ok {
				by = ", drained by " + op.Who()
			}
			orphaned = append(orphaned, fmt.Sprintf("%s in %s (%s:%d%s)", m.Address, m.Upstream, m.File, m.Line, by))
		}
	}
	if r.query.Want == Back && len(orphaned) > 0 {
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("%s is not in %s any more: there is nothing to put back\nhint: drainctl forget clears the record", strings.Join(orphaned, ", "), r.ConfPath)}
	}
	return r.notFound(t)
}

// notFound is the error of a target that no upstream has.
func (r *reading) notFound(t nginx.Target) *Error {
	text := fmt.Sprintf("no server %s in any upstream of %s", t, r.ConfPath)
	if names := r.query.Upstreams; len(names) > 0 {
		some := slices.Clone(names[:min(len(names), maxNamed)])
		if more := len(names) - len(some); more > 0 {
			some = append(some, fmt.Sprintf("… %d more", more))
		}
		text = fmt.Sprintf("no server %s in upstream %s of %s", t, strings.Join(some, ", "), r.ConfPath)
		var in []string
		for _, s := range r.Excluded {
			if a, err := nginx.ParseAddress(s.Address); err == nil && t.Matches(a) && !slices.Contains(in, s.Name) {
				in = append(in, s.Name)
			}
		}
		if len(in) > 0 {
			return usage("%s\nhint: it is in %s", text, strings.Join(in, ", "))
		}
	}
	if odd := r.conf.Unreadable(t); len(odd) > 0 {
		s := odd[0]
		return usage("%s; the address %q at %s:%d could not be read: %v", text, s.Words()[1].Text, s.File.Path, s.Line(), s.Err)
	}
	var near []string
	for _, s := range r.conf.Near(t, 3) {
		if n := fmt.Sprintf("%s in %s", s.Address, r.conf.DisplayName(s.Upstream)); !slices.Contains(near, n) {
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		return usage("%s\nhint: it has %s", text, upstreamNames(r.conf))
	}
	return usage("%s\nhint: did you mean %s?", text, strings.Join(near, ", or "))
}

// skipped adds the files that could not be read or understood.
func (r *reading) skipped() {
	for _, sk := range r.conf.Skipped {
		r.Skipped = append(r.Skipped, Skipped{
			File: sk.File.Path, Error: sk.Err.Error(), Unread: sk.File.Src == "",
			Mentions: slices.ContainsFunc(r.targets, func(t nginx.Target) bool { return t.MentionedIn(sk.File.Src) }),
		})
	}
}

// facts adds what guards ask for.
func (r *reading) facts(ctx context.Context) {
	r.ShutdownTimeout, r.UDPServer = r.conf.ShutdownTimeout, r.conf.UDPServer()
	if r.query.Want == "" {
		return
	}
	for _, s := range append(slices.Clone(r.servers), r.returning...) {
		r.addUpstream(s.Upstream)
	}
	r.directReferences()
	r.names(ctx)
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				r.Addresses = append(r.Addresses, p.Addr().Unmap())
			}
		}
	}
}

func (r *reading) addUpstream(u *nginx.Upstream) {
	name := r.conf.DisplayName(u)
	if slices.ContainsFunc(r.Upstreams, func(had Upstream) bool { return had.Name == name && had.File == u.File.Path }) {
		return
	}
	up := Upstream{Name: name, File: u.File.Path, Line: u.Line()}
	for _, s := range u.Servers {
		named := slices.Contains(r.servers, s)
		switch {
		case s.IsDown() && !slices.Contains(r.returning, s):
		case !s.IsPrimary():
			up.Backup = up.Backup || !named
		default:
			up.Live++
			if !named {
				up.Remain++
				up.Survivor, up.MaxFails, up.FailTimeout = s.Address.String(), s.Param("max_fails"), s.Param("fail_timeout")
			}
		}
	}
	if up.Remain != 1 {
		up.Survivor, up.MaxFails, up.FailTimeout = "", "", ""
	}
	r.Upstreams = append(r.Upstreams, up)
}

func (r *reading) directReferences() {
	for _, t := range r.targets {
		for _, d := range r.conf.DirectReferences(t, r.servers) {
			ref := Reference{File: d.File.Path, Line: d.Line(), Directive: d.Directive, Text: d.Text, Certain: d.Certain}
			if !slices.Contains(r.References, ref) {
				r.References = append(r.References, ref)
			}
		}
	}
}

// confPath is the main file: the one named, what the binary says, or the usual
// place when there is no binary to ask.
func (l *Local) confPath(build nginx.Build, err error) (string, error) {
	switch {
	case l.options.Nginx.Conf != "":
		return l.options.Nginx.Conf, nil
	case errors.Is(err, nginx.ErrNoBinary):
		return nginx.DefaultConf, nil
	case err != nil:
		return "", err
	}
	return build.Conf, nil
}

// unprivileged tells whether err may only be for want of root.
func unprivileged(err error) bool {
	var ce *nginx.CommandError
	return os.Geteuid() != 0 && (errors.Is(err, fs.ErrPermission) || (errors.As(err, &ce) && ce.Unprivileged()))
}
