package drain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A rig is a real nginx on loopback, in front of two apps. The first app is the
// target; its unit is a fake, so that it can be seen, and made to fail, without
// a systemd.
type rig struct {
	t     *testing.T
	dir   string
	conf  string
	was   string // the configuration's bytes at the start
	unit  *unit
	front string // where nginx listens
	// master is nginx's own process.
	master int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs nginx -t and nginx -s reload as drainctl does, and must be root for that")
	}
	binary, err := exec.LookPath("nginx")
	if err != nil {
		t.Fatal("this test needs nginx: testdata/lab/setup.sh installs it")
	}
	dir := t.TempDir()
	// An address of its own: on 127.0.0.1 a port that is free now is soon that of
	// somebody's outgoing connection.
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
	addrs := freeAddrs(t, ip, 3)
	r := &rig{t: t, dir: dir, conf: filepath.Join(dir, "nginx.conf"), front: addrs[0]}
	r.unit = &unit{addr: addrs[1]}
	if err := r.unit.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.unit.stop)
	other := &unit{addr: addrs[2]}
	if err := other.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.stop)
	r.was = fmt.Sprintf(`worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
    upstream app {
        server %[2]s; # the target
        server %[3]s;
    }
    server { listen %[4]s; location / { proxy_pass http://app; } }
}
`, dir, r.unit.addr, other.addr, r.front)
	r.write(r.was)
	time.Sleep(apart)
	cmd := exec.Command(binary, "-c", r.conf, "-e", dir+"/error.log")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	r.master = cmd.Process.Pid
	r.until("nginx serves", func() bool { return len(r.workers()) > 0 })
	time.Sleep(apart)
	return r
}

// apart is how far a change of a file and a load of nginx must be apart for
// drainctl to know which came first: the start of a process is known to a
// hundredth of a second, and the time of it to how long date(1) takes.
const apart = 100 * time.Millisecond

// A moment is all of a rig that a run changes.
type moment struct {
	conf    string
	journal map[string][]byte
	active  bool
}

func (r *rig) operations() string { return filepath.Join(r.stateDir(), "operations") }

func (r *rig) stateDir() string { return filepath.Join(r.dir, "state") }

// now is the moment.
func (r *rig) now() moment {
	r.t.Helper()
	m := moment{conf: r.read(), active: r.unit.active(), journal: map[string][]byte{}}
	names, _ := filepath.Glob(filepath.Join(r.operations(), "*"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			r.t.Fatal(err)
		}
		m.journal[name] = b
	}
	return m
}

// rewind makes it m again, nginx included.
func (r *rig) rewind(m moment) {
	r.t.Helper()
	if err := os.RemoveAll(r.operations()); err != nil {
		r.t.Fatal(err)
	}
	if err := os.MkdirAll(r.operations(), 0o755); err != nil {
		r.t.Fatal(err)
	}
	for name, b := range m.journal {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.write(m.conf)
	time.Sleep(apart)
	before := r.workers()
	if err := syscall.Kill(r.master, syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	r.until("a new generation serves", func() bool {
		now := r.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	})
	if !m.active {
		r.unit.stop()
	} else if err := r.unit.start(); err != nil {
		r.t.Fatal(err)
	}
}

// workers is the PIDs of nginx's workers that serve.
func (r *rig) workers() []string {
	r.t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", r.master, r.master))
	if err != nil {
		r.t.Fatal(err)
	}
	var serving []string
	for _, child := range strings.Fields(string(children)) {
		title, _ := os.ReadFile("/proc/" + child + "/cmdline")
		if strings.HasPrefix(string(title), "nginx: worker process") && !strings.Contains(string(title), "shutting down") {
			serving = append(serving, child)
		}
	}
	return serving
}

// freeAddr is a port of ip that nothing listens on.
// freeAddrs is n addresses that nothing listens on. All are held until the last
// is found: one that is given back may be found again.
func freeAddrs(t *testing.T, ip string, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func (r *rig) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.conf, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read() string {
	r.t.Helper()
	b, err := os.ReadFile(r.conf)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// drained is the configuration with the target marked down.
func (r *rig) drained() string {
	return strings.Replace(r.was, "server "+r.unit.addr+";", "server "+r.unit.addr+" down;", 1)
}

// patience bounds every wait of these tests. It is for machines that are slow
// or busy; nothing is ever waited for that long.
const patience = time.Minute

// until waits for something that takes a while on a busy machine.
func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("still not so after %s: %s", patience, what)
		}
	}
}

// request is a request for the rig's target, through h.
func (r *rig) request(op Operation, h remote.Host) *Request {
	r.t.Helper()
	target, err := nginx.ParseTarget(r.unit.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	req := &Request{
		Operation: op, Target: target,
		LBs:      []*LB{{Host: h, Conf: r.conf, Nginx: nginx.Binary{Path: DefaultBinary}}},
		Interval: DefaultInterval, Timeout: patience, OnTimeout: TimeoutRollback, Poll: PollSS,
		Health: HealthTCP, HealthTimeout: patience, ReloadTimeout: patience, StopTimeout: patience,
		MinUp: DefaultMinUp, StateDir: r.stateDir(), User: "tester", Host: "rig",
		Local: true, BackendName: "the rig",
	}
	if op == Drain {
		req.Service = "app"
	}
	return req
}

// run does what the command line does: plan, claim, check, run.
func (r *rig) run(ctx, soft context.Context, req *Request) error {
	plan, err := Read(soft, req)
	if err != nil {
		return err
	}
	claim, err := TakeClaim(soft, req, func(Event) {})
	if err != nil {
		return err
	}
	defer claim.Release()
	session, err := Check(soft, plan, claim, func(Event) {})
	if err != nil {
		return err
	}
	return session.Run(ctx, soft)
}

// served is which apps answer through nginx now.
func (r *rig) served() map[string]bool {
	r.t.Helper()
	seen := map[string]bool{}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for range 6 {
		resp, err := client.Get("http://" + r.front + "/")
		if err != nil {
			r.t.Fatal(err)
		}
		seen[resp.Header.Get("X-App")] = true
		resp.Body.Close()
	}
	return seen
}

// A unit is an app with a switch, in place of a systemd unit.
type unit struct {
	addr   string
	mu     sync.Mutex
	server *http.Server
	stops  int
}

func (u *unit) start() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server != nil {
		return nil
	}
	l, err := net.Listen("tcp", u.addr)
	if err != nil {
		return err
	}
	u.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-App", u.addr)
		fmt.Fprintln(w, "ok")
	})}
	go u.server.Serve(l)
	return nil
}

func (u *unit) stop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server != nil {
		_ = u.server.Close()
		u.server = nil
		u.stops++
	}
}

func (u *unit) active() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.server != nil
}

// systemctl answers as systemctl would for the unit.
func (u *unit) systemctl(args []string) remote.Result {
	switch args[0] {
	case "start":
		if err := u.start(); err != nil {
			return remote.Result{Code: 1, Stderr: []byte(err.Error())}
		}
	case "stop":
		u.stop()
	case "show":
		state := "inactive"
		if u.active() {
			state = "active"
		}
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\n")}
	}
	return remote.Result{}
}

// errFault is what a failed operation says, errGone what every operation says
// once the process is gone.
var (
	errFault = errors.New("fault brought about by the test")
	errGone  = errors.New("the process is gone")
)

// A fault is what happens to the n-th operation of a host.
type fault string

const (
	faultNone   fault = "none"
	faultFail   fault = "fails"
	faultHang   fault = "hangs"
	faultBefore fault = "process gone before"
	faultAfter  fault = "process gone after"
)

// A faulty is the local host, with the rig's unit for systemd, that counts its
// operations and has one of them go wrong.
type faulty struct {
	remote.Host
	unit *unit
	kind fault
	at   int // the operation that goes wrong, from 1
	hung func()
	gone func()

	mu    sync.Mutex
	count int
	dead  bool
	what  string // the operation that went wrong
	locks []remote.Lock
}

// do runs one operation, or has it go wrong.
func (f *faulty) do(ctx context.Context, what string, op func() error) error {
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return errGone
	}
	f.count++
	hit := f.count == f.at
	if hit {
		f.what = what
	}
	f.mu.Unlock()
	if !hit {
		return op()
	}
	switch f.kind {
	case faultFail:
		return errFault
	case faultHang:
		f.hung()
		<-ctx.Done()
		return context.Cause(ctx)
	case faultBefore:
		f.die()
		return errGone
	case faultAfter:
		_ = op()
		f.die()
		return errGone
	}
	return op()
}

// die is the end of the process: its locks are gone, and nothing works.
func (f *faulty) die() {
	f.mu.Lock()
	f.dead = true
	locks := f.locks
	f.mu.Unlock()
	for _, l := range locks {
		_ = l.Unlock()
	}
	f.gone()
}

func (f *faulty) Run(ctx context.Context, c remote.Command) (r remote.Result, err error) {
	err = f.do(ctx, "run "+strings.Join(c.Args[:min(2, len(c.Args))], " "), func() error {
		if c.Args[0] == "systemctl" {
			r = f.unit.systemctl(c.Args[1:])
			return nil
		}
		r, err = f.Host.Run(ctx, c)
		return err
	})
	return r, err
}

func (f *faulty) ReadFile(ctx context.Context, path string) (b []byte, err error) {
	err = f.do(ctx, "read "+filepath.Base(path), func() error { b, err = f.Host.ReadFile(ctx, path); return err })
	return b, err
}

func (f *faulty) ReadFiles(ctx context.Context, paths []string) (bs [][]byte, err error) {
	err = f.do(ctx, "read files", func() error { bs, err = f.Host.ReadFiles(ctx, paths); return err })
	return bs, err
}

func (f *faulty) Glob(ctx context.Context, pattern string) (names []string, err error) {
	err = f.do(ctx, "glob", func() error { names, err = f.Host.Glob(ctx, pattern); return err })
	return names, err
}

func (f *faulty) Stat(ctx context.Context, path string) (info remote.FileInfo, err error) {
	err = f.do(ctx, "stat", func() error { info, err = f.Host.Stat(ctx, path); return err })
	return info, err
}

func (f *faulty) Replace(ctx context.Context, path string, was, now []byte) error {
	return f.do(ctx, "replace "+filepath.Base(path), func() error { return f.Host.Replace(ctx, path, was, now) })
}

func (f *faulty) Append(ctx context.Context, path string, data []byte) error {
	return f.do(ctx, "append to the journal", func() error { return f.Host.Append(ctx, path, data) })
}

func (f *faulty) Lock(ctx context.Context, path string, wait time.Duration) (l remote.Lock, err error) {
	err = f.do(ctx, "lock "+filepath.Base(path), func() error {
		l, err = f.Host.Lock(ctx, path, wait)
		if err == nil {
			f.mu.Lock()
			f.locks = append(f.locks, l)
			f.mu.Unlock()
		}
		return err
	})
	return l, err
}

func (f *faulty) DialContext(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = f.do(ctx, "dial", func() error { c, err = f.Host.DialContext(ctx, network, addr); return err })
	return c, err
}

// newFaulty is a host for one run, and the contexts that its faults end.
func (r *rig) newFaulty(kind fault, at int) (f *faulty, hard, soft context.Context, done func()) {
	hard, endHard := context.WithCancelCause(context.Background())
	soft, endSoft := context.WithCancelCause(hard)
	f = &faulty{Host: remote.Local(nil), unit: r.unit, kind: kind, at: at}
	// An operator who sees it hang types Ctrl-C.
	f.hung = func() { endSoft(ErrInterrupted) }
	f.gone = func() { endHard(errGone) }
	return f, hard, soft, func() { endSoft(nil); endHard(nil) }
}

func (r *rig) clean() remote.Host {
	f, _, _, _ := r.newFaulty(faultNone, 0)
	return f
}
