package drain

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A rig is a real nginx on loopback, in front of two apps. The first app is the
// target; its unit is a fake, so that it can be seen, and made to fail, without
// a systemd.
type rig struct {
	t      *testing.T
	dir    string
	conf   string
	was    string // the configuration's bytes at the start
	unit   *fakeUnit
	front  string // where nginx listens
	master int    // its process
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
	r := &rig{t: t, dir: dir, conf: filepath.Join(dir, "nginx.conf"), front: addrs[0], unit: &fakeUnit{addr: addrs[1]}}
	for _, u := range []*fakeUnit{r.unit, {addr: addrs[2]}} {
		if err := u.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.stop)
	}
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
`, dir, addrs[1], addrs[2], r.front)
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
	r.until("nginx serves", func() bool {
		_, err := os.Stat(dir + "/nginx.pid")
		return err == nil && len(r.workers()) > 0
	})
	time.Sleep(apart)
	return r
}

// apart is how far a change of a file and a load of nginx must be apart for
// drainctl to know which came first: the start of a process is known to a
// hundredth of a second.
const apart = 100 * time.Millisecond

// patience bounds every wait of these tests. It is for machines that are slow
// or busy; nothing is ever waited for that long.
const patience = time.Minute

// freeAddrs is n addresses of ip that nothing listens on. Their ports are below those that
// the kernel gives to others who ask for any port (ip_local_port_range).
func freeAddrs(t *testing.T, ip string, n int) []string {
	t.Helper()
	var addrs []string
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(10_000+rand.N(20_000))))
		if err != nil {
			continue
		}
		defer l.Close()
		if addrs = append(addrs, l.Addr().String()); len(addrs) == n {
			return addrs
		}
	}
	t.Fatalf("no %d free ports on %s", n, ip)
	return nil
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

// until waits for something that takes a while on a busy machine.
func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("still not so after %s: %s", patience, what)
		}
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

// reload has nginx load what the file says, and waits until it serves.
func (r *rig) reload() {
	r.t.Helper()
	time.Sleep(apart)
	before := r.workers()
	if err := syscall.Kill(r.master, syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	r.until("a new generation serves", func() bool {
		now := r.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	})
}

func (r *rig) stateDir() string { return filepath.Join(r.dir, "state") }

func (r *rig) journal() journal.Journal { return journal.Journal{Dir: r.stateDir()} }

func (r *rig) state() journal.State {
	r.t.Helper()
	s, err := r.journal().State()
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// A moment is all of a rig that a run changes.
type moment struct {
	conf   string
	state  []byte
	active bool
}

func (r *rig) now() moment {
	r.t.Helper()
	state, err := os.ReadFile(filepath.Join(r.stateDir(), "state.json"))
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	return moment{r.read(), state, r.unit.active()}
}

// rewind makes it m again, nginx included.
func (r *rig) rewind(m moment) {
	r.t.Helper()
	if err := os.RemoveAll(filepath.Join(r.stateDir(), "history")); err != nil {
		r.t.Fatal(err)
	}
	if m.state != nil {
		if err := os.WriteFile(filepath.Join(r.stateDir(), "state.json"), m.state, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	if r.read() != m.conf { // what a mended case has left is what was at the start
		r.write(m.conf)
		r.reload()
	}
	if !m.active {
		r.unit.stop()
	} else if err := r.unit.start(); err != nil {
		r.t.Fatal(err)
	}
}

// spec asks for the rig's target.
func (r *rig) spec(k spec.Kind) spec.Spec {
	s := spec.Default(k)
	s.Targets = []string{r.unit.addr}
	s.Nginx = spec.Nginx{Conf: r.conf, StateDir: r.stateDir()}
	s.Given = []string{"nginx-conf", "state-dir"}
	s.Timeout, s.HealthTimeout, s.ReloadTimeout, s.StopTimeout = patience, patience, patience, patience
	s.User, s.Host = "tester", "rig"
	if k == spec.Drain {
		s.Service = "app"
	}
	return s
}

// served is which apps answer through nginx now.
func (r *rig) served() map[string]bool {
	seen := map[string]bool{}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for range 4 {
		resp, err := client.Get("http://" + r.front + "/")
		if err != nil {
			r.t.Error(err)
			continue
		}
		seen[resp.Header.Get("X-App")] = true
		resp.Body.Close()
	}
	return seen
}

// A fakeUnit is an app with a switch, in place of a systemd unit.
type fakeUnit struct {
	addr   string
	onStop func()    // before it is stopped by systemctl
	shows  string    // by systemctl show, beside its state
	part   *partUnit // that systemd stops with it; nil: none
	stays  bool      // its port answers when it is stopped
	off    bool      // it is stopped, and its port answers
	udp    bool      // it answers over UDP, and not over TCP

	mu       sync.Mutex
	server   *http.Server
	packets  net.PacketConn
	listener net.Listener
	stopFail string // what systemctl stop says, in place of stopping
}

func (u *fakeUnit) start() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server != nil {
		return nil
	}
	if u.udp {
		packets, err := net.ListenPacket("udp", u.addr)
		if err != nil {
			return err
		}
		u.server, u.packets = &http.Server{}, packets
		go echo(packets)
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
	u.listener = l // which the server may not know yet when it is closed
	go u.server.Serve(l)
	return nil
}

func (u *fakeUnit) stop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server != nil {
		_ = u.server.Close()
		u.server = nil
		if u.listener != nil {
			u.listener.Close()
			u.listener = nil
		}
		if u.packets != nil {
			u.packets.Close()
			u.packets = nil
		}
	}
}

// echo sends each datagram back.
func echo(packets net.PacketConn) {
	for b := make([]byte, 100); ; {
		n, from, err := packets.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = packets.WriteTo(b[:n], from)
	}
}

func (u *fakeUnit) active() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.server != nil && !u.off
}

// A partUnit is a unit that requires the app's.
type partUnit struct {
	name    string
	runs    bool
	broken  bool // it does not start
	started int
}

// systemctl answers as systemctl would for the unit that requires the app's.
func (p *partUnit) systemctl(verb string) remote.Result {
	if verb == "start" {
		if p.started++; p.broken {
			return remote.Result{Code: 1, Stderr: []byte("Job failed.")}
		}
		p.runs = true
	}
	state := map[bool]string{true: "active", false: "inactive"}[p.runs]
	return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\nConsistsOf=app.service\n")}
}

// systemctl answers as systemctl would for the units.
func (u *fakeUnit) systemctl(args []string) remote.Result {
	shows := u.shows
	if u.part != nil {
		if args[len(args)-1] == u.part.name {
			return u.part.systemctl(args[0])
		}
		shows += "RequiredBy=multi-user.target " + u.part.name + "\n"
	}
	switch args[0] {
	case "start":
		u.off = false
		if err := u.start(); err != nil {
			return remote.Result{Code: 1, Stderr: []byte(err.Error())}
		}
	case "stop":
		if u.stopFail != "" {
			return remote.Result{Code: 1, Stderr: []byte(u.stopFail)}
		}
		if u.active() && u.onStop != nil {
			u.onStop()
		}
		if u.off = u.stays; !u.stays {
			u.stop()
		}
		if u.part != nil {
			u.part.runs = false
		}
	case "show":
		state := "inactive"
		if u.active() {
			state = "active"
		}
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\n" + shows)}
	}
	return remote.Result{}
}

// A systemdHost is this machine, with a unit for systemd.
type systemdHost struct {
	remote.Host
	unit *fakeUnit
}

func (h systemdHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	switch c.Args[0] {
	case "systemctl":
		return h.unit.systemctl(c.Args[1:]), nil
	case "journalctl":
		return remote.Result{}, nil
	}
	return h.Host.Run(ctx, c)
}

// A connector reaches the rig, without faults.
type connector struct{ r *rig }

func (c connector) LB(_ context.Context, _ string, n spec.Nginx) (balancer.Balancer, error) {
	o, err := n.Options()
	return balancer.NewLocal(o), err
}

func (c connector) Backend(context.Context, plan.Backend) (remote.Host, error) {
	return systemdHost{remote.Local(nil), c.r.unit}, nil
}

// told keeps the events of a run.
type told struct {
	mu     sync.Mutex
	events []event.Event
}

func (l *told) emit(e event.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// eventsOf is the events of one type.
func eventsOf[E event.Event](l *told) []E {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []E
	for _, e := range l.events {
		if e, ok := e.(E); ok {
			all = append(all, e)
		}
	}
	return all
}

// warnings is what an operator was warned of.
func (l *told) warnings() string {
	var texts []string
	for _, w := range eventsOf[*event.Warning](l) {
		texts = append(texts, w.Text)
	}
	return strings.Join(texts, "\n")
}

// run does what the command line does: prepare and run.
func run(hard, soft context.Context, sp spec.Spec, o Options) error {
	if o.Emit == nil {
		o.Emit = func(event.Event) {}
	}
	defer checked(&o)()
	op, err := Prepare(soft, sp, o)
	if err != nil {
		return err
	}
	defer op.Close()
	err = op.Run(hard, soft)
	valid(event.Stamp(op.Result()))
	return err
}

// run runs without faults.
func (r *rig) run(sp spec.Spec) (*told, error) {
	l := &told{}
	ctx := context.Background()
	return l, run(ctx, ctx, sp, Options{Connect: connector{r}, Emit: l.emit, bounds: shortBounds})
}

// refusalsOf returns the findings that refuse a plan, each with what overrides it.
func refusalsOf(p *plan.Plan) (texts []string) {
	for _, f := range p.Findings {
		if !f.Warning {
			texts = append(texts, f.Text+" | "+f.Override)
		}
	}
	return texts
}

// listOf returns operations of a journal for a message.
func listOf(ops []journal.Operation) string {
	var texts []string
	for _, op := range ops {
		texts = append(texts, fmt.Sprintf("%s %s %v %q", op.Kind, op.ID, op.Targets, op.Result))
	}
	return strings.Join(texts, ", ")
}
