package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// Options say how nginx is run on an LB, and where its journal is. They come
// from the command line on the LB, never from a caller of the agent.
type Options struct {
	Nginx    nginx.Binary
	StateDir string // empty: journal.DefaultDir
	Keep     int    // operations that the history keeps; 0: journal.DefaultKeep
	// Caller is the user on whose behalf this LB acts.
	Caller journal.Recorder
	// Served tells that an agent serves the caller, who has no other right here than
	// to drain.
	Served bool
	// Around, if not nil, has each effect happen: tests make it fail.
	Around func(what string, do func() error) error
}

// Local is the nginx of this machine.
type Local struct {
	options Options
	journal journal.Journal
	done    chan struct{}
	close   sync.Once

	serial  sync.Mutex // held by the calls that read or change what follows
	build   *nginx.Build
	id      string        // of the operation that has begun here
	begun   bool          // it may edit
	adopted bool          // it was begun by another agent, whose connection broke
	own     journal.State // the operation and its marks, as they were written last
	locks   []*journal.Lock
	locked  []string // the backends that they are on
	// editLock keeps other operations from editing, from Stage until nginx has
	// loaded the files.
	editLock *journal.Lock
	staged   *time.Timer // frees editLock in time
	// needsLoad tells that nginx may not serve what the operation has asked for.
	needsLoad bool
	wrote     time.Time // the last replacement of a file
	// unloaded are the files edited since nginx last loaded them: the hashes of what it
	// has loaded, empty where that is not known, and of what they are now.
	unloaded     map[string]journal.FileHashes
	out          map[journal.Server]bool // what was last wanted of servers: that nginx sends nothing there
	undone       bool                    // all that the operation has changed was undone
	allowStopped bool                    // nginx may be stopped: it loads the files when it starts
	refused      bool                    // the command of the last reload failed
	original     nginx.Running           // the last generation that certainly serves no edit of the operation
	before       nginx.Running           // the generation before the last edit
	after        nginx.Running           // what runs since the last verified load
	watched      map[string]time.Time    // when the files had changed at the last Watch; nil: read them again

	awaited atomic.Int32 // calls that wait for a connection to end
	traffic traffic

	mu    sync.Mutex // guards what follows
	known map[journal.Server]nginx.Address
	// earlier are the endpoints that each address was found to have.
	earlier map[nginx.Address][]netip.AddrPort
	probes  map[Ends]net.Conn // that are open
	probing int               // that are being opened
	// sameNetwork tells that nginx was seen to have its sockets in this network namespace.
	sameNetwork bool
}

// addresses is where servers are. Only what is or was a server of this LB is asked or
// counted: it is in the configuration, or drainctl has marked it. Which were found is kept,
// so that a count costs no look at the configuration.
func (l *Local) addresses(ctx context.Context, servers []journal.Server) (all []nginx.Address, err error) {
	if len(servers) == 0 {
		return nil, &Error{Code: CodeRefused, Message: "no server is named"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range servers {
		a, ok := l.known[s]
		if !ok {
			if err := l.learn(ctx); err != nil {
				return nil, err
			}
			if a, ok = l.known[s]; !ok {
				return nil, &Error{Code: CodeRefused, Message: fmt.Sprintf("%.200q is no server of upstream %.200q here", s.Address, s.Upstream)}
			}
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, nil
}

// learn adds the servers of the configuration, and those that are marked, to the known ones.
func (l *Local) learn(ctx context.Context) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	conf, _, err := l.load(ctx)
	if err != nil {
		return err
	}
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			if s.Err == nil {
				l.known[keyOf(s)] = s.Address
			}
		}
	}
	state, _ := l.journal.State() // without it, no marks are known
	for _, m := range state.Marks {
		if a, err := nginx.ParseAddress(m.Address); err == nil {
			l.known[m.Server] = a
		}
	}
	return nil
}

// NewLocal is the nginx of this machine. Without root it can plan, as far as
// files may be read, and no more.
func NewLocal(o Options) *Local {
	if o.StateDir == "" {
		o.StateDir = journal.DefaultDir
	}
	if o.Nginx.Path == "" {
		o.Nginx.Path = nginx.DefaultBinary
	}
	return &Local{options: o, journal: journal.Journal{Dir: o.StateDir, Keep: o.Keep}, done: make(chan struct{}), unloaded: map[string]journal.FileHashes{}, known: map[journal.Server]nginx.Address{}, earlier: map[nginx.Address][]netip.AddrPort{}, probes: map[Ends]net.Conn{}, out: map[journal.Server]bool{}}
}

// Caller implements [Balancer].
func (l *Local) Caller() journal.Recorder { return l.options.Caller }

// effect does what changes something on this machine, or asks it something that
// may fail: what names it.
func (l *Local) effect(what string, do func() error) error {
	if l.options.Around != nil {
		return l.options.Around(what, do)
	}
	return do()
}

// update changes the journal's state.
func (l *Local) update(ctx context.Context, what string, change func(*journal.State) error) error {
	return l.effect("journal: "+what, func() error { return l.journal.Update(ctx, change) })
}

// appendHistory adds lines to the history of the operation.
func (l *Local) appendHistory(lines []json.RawMessage) error {
	if len(lines) == 0 {
		return nil
	}
	return l.effect("journal: history", func() error { return l.journal.Append(l.id, lines...) })
}

// test has an nginx test the configuration.
func (l *Local) test(ctx context.Context, binary nginx.Binary) error {
	return l.effect("nginx -t", func() error { return binary.Test(ctx) })
}

// load reads the configuration as it is on disk.
func (l *Local) load(ctx context.Context) (conf *nginx.Config, build nginx.Build, err error) {
	build, noBinary := l.find(ctx)
	path, err := l.confPath(build, noBinary)
	if err != nil {
		return nil, build, err
	}
	err = l.effect("read "+path, func() error {
		conf, err = nginx.Load(ctx, path)
		return err
	})
	if conf != nil {
		// First: what the caller has written says nothing.
		if err := l.refuseWritable(ctx, conf, build); err != nil {
			return nil, build, err
		}
	}
	if err != nil {
		return nil, build, unreadable(err)
	}
	return conf, build, nil
}

// lockGrace is how long a lock is tried for at least: who only looks whether one
// is held, holds it for an instant.
const lockGrace = time.Second

// Lock implements [Balancer]. The names are locked in order, so that two
// operations never wait for each other.
func (l *Local) Lock(ctx context.Context, r LockRequest) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.editLock != nil {
		// To wait here for others would keep all others from editing.
		return refusal("lock backends: an edit of this operation waits for its reload")
	}
	if err := checkLocks(r, len(l.locks)); err != nil {
		return &Error{Code: CodeRefused, Message: err.Error(), cause: err}
	}
	wait := r.Wait
	if wait >= 0 {
		wait = max(wait, lockGrace)
	}
	r.Holder.Recorder, r.Holder.Time = &l.options.Caller, time.Now()
	for _, name := range slices.Sorted(slices.Values(r.Backends)) {
		err := l.effect("lock "+name, func() error {
			lock, err := l.journal.Lock(ctx, backendLock+name, wait, r.Holder)
			if err == nil {
				l.locks, l.locked = append(l.locks, lock), append(l.locked, name)
			}
			return err
		})
		if err != nil {
			l.unlock()
			return asError(err)
		}
	}
	return nil
}

// The names of locks: one for each backend, and one for the configuration.
const (
	backendLock       = "backend "
	configurationLock = "configuration"
)

// BackendOf is the backend that a lock is on, empty for other locks.
func BackendOf(h journal.Holder) string {
	name, found := strings.CutPrefix(h.Name, backendLock)
	if !found {
		return ""
	}
	return name
}

func (l *Local) unlock() {
	for _, lock := range l.locks {
		_ = lock.Unlock()
	}
	if len(l.locks) > 0 {
		l.journal.SweepLocks()
	}
	l.locks, l.locked = nil, nil
}

// maxLocks bounds the backends that one operation locks: each takes an open file.
const maxLocks = 1000

// checkLocks refuses locks beyond maxLocks, beside those that are held, and what is no
// name of a backend.
func checkLocks(r LockRequest, held int) error {
	if n := held + len(r.Backends); n > maxLocks {
		return fmt.Errorf("lock %d backends: one operation locks %d at most", n, maxLocks)
	}
	for _, name := range r.Backends {
		t, err := nginx.ParseTarget(name)
		if err != nil || t.Port != 0 || len(name) > maxBackend || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			return fmt.Errorf("lock %.80q: not the name of a backend", name)
		}
	}
	if err := r.Holder.Check(); err != nil {
		return fmt.Errorf("the holder of the lock: %w", err)
	}
	return nil
}

// maxBackend bounds the name of a backend: a host name of DNS has 253 bytes (RFC 1035), the
// path of a socket 107 (unix(7)).
const maxBackend = 253

// editWait is how long another operation's edit is waited for. It holds the lock
// for one test and one reload.
const editWait = 2 * time.Minute

func (l *Local) lockConfiguration(ctx context.Context) error {
	if l.editLock != nil {
		return nil
	}
	err := l.effect("lock the configuration", func() (err error) {
		l.editLock, err = l.journal.Lock(ctx, configurationLock, editWait, journal.Holder{ID: l.id, Recorder: &l.options.Caller, Time: time.Now()})
		if err == nil {
			l.staged = l.limitStaged()
		}
		return err
	})
	var locked *journal.LockedError
	if errors.As(err, &locked) {
		err = fmt.Errorf("another operation has been editing the configuration for %s: %w", editWait, err)
	}
	if err != nil {
		return err
	}
	return l.undoUnsent(ctx)
}

func (l *Local) unlockConfiguration() {
	if l.editLock != nil {
		l.staged.Stop()
		_ = l.editLock.Unlock()
		l.editLock = nil
	}
}

// State implements [Balancer].
func (l *Local) State(context.Context) (journal.State, error) {
	s, err := l.journal.State()
	if err != nil {
		return s, asError(fmt.Errorf("read the journal: %w", err))
	}
	return withoutSecrets(s), nil
}

// History implements [Balancer].
func (l *Local) History(ctx context.Context, q HistoryQuery) (h History, err error) {
	if q.ID == "" {
		h.Operations, h.Unreadable, err = l.journal.List(ctx)
	} else {
		h.History, err = l.journal.Read(q.ID)
		if errors.Is(err, os.ErrNotExist) {
			return h, &Error{Code: CodeUnknown, Message: fmt.Sprintf("no operation %s in the history", q.ID), cause: err}
		}
	}
	if err != nil {
		return h, asError(fmt.Errorf("read the journal: %w", err))
	}
	return h.withoutSecrets(), nil
}

// Close implements [Balancer]. An edit that nothing has loaded is undone: the next reload,
// whoever's it is, would put it live.
func (l *Local) Close() error {
	l.close.Do(func() {
		l.traffic.close()
		l.endProbes() // before: others hold the lock of the probes while they wait for serial
		l.serial.Lock()
		defer l.serial.Unlock()
		l.discardStaged()
		l.unlockConfiguration()
		l.unlock()
		close(l.done)
	})
	return nil
}

// Done implements [Balancer].
func (l *Local) Done() <-chan struct{} { return l.done }
