package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
)

// These tests drain for real: a private nginx on loopback with its own
// configuration, backends in this process, and the program as an operator runs
// it. A backend on loopback is the load balancer itself, so no SSH is needed.

// patience bounds every wait of these tests. It is for machines that are slow
// or busy; nothing is ever waited for that long.
const patience = 60 * time.Second

// eventually polls until it is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for began := time.Now(); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("after %s it is still not so: %s", patience, what)
		}
	}
}

// A backend answers /name with its name at once, and /hold/ and its name when
// it is let go.
type backend struct {
	name string
	addr string // of TCP, or unix:PATH
	free chan struct{}
	once sync.Once
	mu   sync.Mutex
	held int
}

func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, name, l, l.Addr().String())
}

func serveOn(t *testing.T, name string, l net.Listener, addr string) *backend {
	t.Helper()
	b := &backend{name: name, addr: addr, free: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	mux.HandleFunc("/hold/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hold/"+name {
			fmt.Fprint(w, "not here")
			return
		}
		b.count(1)
		defer b.count(-1)
		<-b.free
		fmt.Fprint(w, name+" held to the end")
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() {
		b.release()
		srv.Close()
	})
	return b
}

func (b *backend) count(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held += n
}

func (b *backend) holds() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// release lets all held requests end.
func (b *backend) release() { b.once.Do(func() { close(b.free) }) }

// A proxy is a private nginx.
type proxy struct {
	t    *testing.T
	dir  string
	conf string
	url  string
	cmd  *exec.Cmd
}

// freePort is a port of loopback that nothing listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// newProxy writes a configuration whose upstreams are the given text, and does
// not start it yet.
func newProxy(t *testing.T, upstreams string) *proxy {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test reloads an nginx and counts sockets as an operator does: run the tests as root")
	}
	for _, program := range []string{"nginx", "ss"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("this test needs %s: install nginx-light and iproute2 (%v)", program, err)
		}
	}
	p := &proxy{t: t, dir: t.TempDir()}
	p.conf = filepath.Join(p.dir, "nginx.conf")
	port := freePort(t)
	p.url = "http://127.0.0.1:" + strconv.Itoa(port)
	p.write(p.conf, fmt.Sprintf(`user root;
worker_processes 2;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log notice;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s/body;
    proxy_temp_path %[1]s/proxy;
    fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi;
    scgi_temp_path %[1]s/scgi;
%[2]s
    server {
        listen 127.0.0.1:%[3]d;
        location / { proxy_pass http://pool; }
    }
}
`, p.dir, upstreams, port))
	return p
}

// pool is an upstream of backends.
func pool(backends ...*backend) string {
	text := "    upstream pool {\n"
	for _, b := range backends {
		text += "        server " + b.addr + ";\n"
	}
	return text + "    }"
}

func startProxy(t *testing.T, upstreams string) *proxy {
	t.Helper()
	p := newProxy(t, upstreams)
	p.start()
	return p
}

func (p *proxy) start() {
	p.t.Helper()
	var said bytes.Buffer
	// The start of a process is known to a hundredth of a second. One that starts
	// sooner after the file was written may look older than the file.
	time.Sleep(100 * time.Millisecond)
	p.cmd = exec.Command("nginx", "-p", p.dir, "-c", p.conf)
	p.cmd.Stderr = &said
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.cmd.Wait()
	}()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = p.cmd.Process.Kill()
		}
	})
	eventually(p.t, "nginx answers", func() bool {
		select {
		case <-ended:
			p.t.Fatalf("nginx ended: %s", said.String())
		default:
		}
		_, err := p.get("/name")
		return err == nil
	})
}

func (p *proxy) write(path, text string) {
	p.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxy) read() string {
	p.t.Helper()
	text, err := os.ReadFile(p.conf)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// get asks through nginx, on a connection of its own.
func (p *proxy) get(path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * patience}
	res, err := client.Get(p.url + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", res.StatusCode, body)
	}
	return string(body), err
}

// names is who answers, over enough requests that each would be among them.
func (p *proxy) names() []string {
	p.t.Helper()
	var names []string
	for range 20 {
		name, err := p.get("/name")
		if err != nil {
			p.t.Fatalf("a request failed: %v", err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// answers checks who answers.
func (p *proxy) answers(want ...string) {
	p.t.Helper()
	if got := p.names(); !slices.Equal(got, want) {
		p.t.Errorf("%v answer, want %v", got, want)
	}
}

// hold has b hold a request. The channel gets how it ended, nil if its whole
// answer came.
func (p *proxy) hold(b *backend) <-chan error {
	p.t.Helper()
	end := make(chan error, 1)
	go func() {
		for {
			body, err := p.get("/hold/" + b.name)
			if body == "not here" {
				continue
			}
			if err == nil && body != b.name+" held to the end" {
				err = fmt.Errorf("half an answer: %q", body)
			}
			end <- err
			return
		}
	}()
	eventually(p.t, b.name+" holds a request", func() bool { return b.holds() > 0 })
	return end
}

// workers is the PIDs of the workers that serve.
func (p *proxy) workers() []string {
	p.t.Helper()
	pid := p.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		p.t.Fatal(err)
	}
	var serving []string
	for _, child := range strings.Fields(string(children)) {
		title, _ := os.ReadFile("/proc/" + child + "/cmdline")
		if !strings.Contains(string(title), "shutting down") {
			serving = append(serving, child)
		}
	}
	return serving
}

// A typed is drainctl, typed by an operator and under way.
type typed struct {
	t      *testing.T
	cmd    *exec.Cmd
	mu     sync.Mutex
	out    bytes.Buffer
	err    bytes.Buffer
	ended  chan struct{}
	failed error
}

func (r *typed) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(b)
}

func (r *typed) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// begin runs drainctl on the proxy's configuration.
func (p *proxy) begin(args ...string) *typed {
	p.t.Helper()
	return p.command("drainctl", append(args, "-c", p.conf)...)
}

// command runs drainctl by way of another program.
func (p *proxy) command(name string, args ...string) *typed {
	p.t.Helper()
	r := &typed{t: p.t, ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	r.cmd = exec.CommandContext(ctx, name, args...)
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "TERM=xterm"}
	r.cmd.Stdout, r.cmd.Stderr = r, &r.err
	if err := r.cmd.Start(); err != nil {
		cancel()
		p.t.Fatal(err)
	}
	go func() {
		defer cancel()
		r.failed = r.cmd.Wait()
		close(r.ended)
	}()
	return r
}

// says waits until it has printed text.
func (r *typed) says(text string) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("drainctl says %q", text), func() bool {
		select {
		case <-r.ended:
			if !strings.Contains(r.output(), text) {
				r.t.Fatalf("it ended (%v) without saying %q:\n%s%s", r.failed, text, r.output(), r.err.String())
			}
		default:
		}
		return strings.Contains(r.output(), text)
	})
}

// ends waits for the end, and checks the exit code and what was said.
func (r *typed) ends(code int, said ...string) {
	r.t.Helper()
	<-r.ended
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.t.Fatalf("exit code %d (%v), want %d:\n%s%s", got, r.failed, code, r.output(), r.err.String())
	}
	for _, text := range said {
		if !strings.Contains(r.output()+r.err.String(), text) {
			r.t.Errorf("it did not say %q:\n%s%s", text, r.output(), r.err.String())
		}
	}
	if strings.Contains(r.output()+r.err.String(), "\x1b") {
		r.t.Errorf("an escape character, and it is no terminal: %q", r.output())
	}
}

func (r *typed) signal() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
}

// marked is text with b's servers down.
func marked(text string, b *backend) string {
	return strings.ReplaceAll(text, "server "+b.addr+";", "server "+b.addr+" down;")
}

func (p *proxy) has(want string) {
	p.t.Helper()
	if got := p.read(); got != want {
		p.t.Errorf("the configuration is\n%s\nwant\n%s", got, want)
	}
}

func TestDrainAndUndrain(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	p.answers("a", "b")
	held := p.hold(a)

	run := p.begin("drain", a.addr)
	run.says("a new generation serves")
	p.has(marked(before, a))
	p.answers("b") // and the one that is held goes on
	run.says("1 open")
	select {
	case <-run.ended:
		t.Fatal("it ended while a request was open")
	case err := <-held:
		t.Fatalf("a held request ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.release()
	a.release()
	run.ends(0, "0 connections open", a.addr+" is drained; nothing was stopped (no --service)")
	if err := <-held; err != nil {
		t.Errorf("the request that was open was cut: %v", err)
	}
	p.answers("b")
	after := p.workers()
	if slices.ContainsFunc(after, func(pid string) bool { return slices.Contains(workers, pid) }) {
		t.Errorf("workers %v of the earlier generation still serve: %v", workers, after)
	}

	// Once more: it is so already.
	p.begin("drain", a.addr).ends(0, "already so", "it was so already, nothing was changed")
	p.has(marked(before, a))
	if now := p.workers(); !slices.Equal(now, after) {
		t.Errorf("workers %v became %v: it was reloaded for nothing", after, now)
	}

	p.begin("undrain", a.addr).ends(0, "healthy, 3 times in a row", a.addr+" is back: nginx sends requests to it")
	p.has(before)
	p.answers("a", "b")
	after = p.workers()
	p.begin("undrain", a.addr).ends(0, "already so", "nothing was changed")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, after) {
		t.Errorf("workers %v became %v: it was reloaded for nothing", after, now)
	}
}

// What the file says already, nginx may not serve yet.
func TestDrainOfWhatIsMarkedButNotLoaded(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.write(p.conf, marked(before, a))
	p.answers("a", "b")
	p.begin("drain", a.addr).ends(0, "was changed after nginx was last loaded", "a new generation serves")
	p.answers("b")
	p.write(p.conf, before)
	p.begin("undrain", a.addr).ends(0, "a new generation serves")
	p.answers("a", "b")
}

func TestTimeout(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)

	p.begin("drain", a.addr, "--timeout", "300ms").ends(3,
		"drainctl: error: not drained after 300ms: 1 connection open, more than 0, from 127.0.0.1 (1)",
		"taking back what was done",
		"drainctl: now: everything is as it was before")
	p.has(before)
	p.answers("a", "b")

	p.begin("drain", a.addr, "--timeout", "300ms", "--on-timeout", "leave").ends(3,
		"not drained after 300ms",
		a.addr+" in pool in the configuration: marked down",
		"drainctl: to go on: drainctl drain "+a.addr+" --nginx-conf "+p.conf)
	p.has(marked(before, a))
	p.answers("b")

	// As many as the threshold are few enough.
	p.begin("drain", a.addr, "--threshold", "1").ends(0, "1 connection open", "is drained")
	select {
	case err := <-held:
		t.Fatalf("a held request ended: %v", err)
	default:
	}
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
}

func TestInterrupt(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)

	run := p.begin("drain", a.addr)
	run.says("1 open")
	run.signal()
	run.ends(130, "interrupted: taking back what was done; once more stops at once", "drainctl: error: interrupted", "drainctl: now: everything is as it was before")
	p.has(before)
	p.answers("a", "b")

	// Somebody's edit during the wait survives the way back.
	run = p.begin("drain", a.addr)
	run.says("1 open")
	p.write(p.conf, "# note to self\n"+p.read())
	run.signal()
	run.ends(130, "everything is as it was before")
	p.has("# note to self\n" + before)
	p.answers("a", "b")
	p.write(p.conf, before)

	// SIGTERM is the same.
	run = p.begin("drain", a.addr)
	run.says("1 open")
	if err := run.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	run.ends(130)
	p.has(before)
	select {
	case err := <-held:
		t.Errorf("a held request ended: %v", err)
	default:
	}
}

// A second signal stops at once, and says what stands and how to go on.
func TestInterruptTwice(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	p.hold(a)
	slow := "sh -c 'if test -e " + p.dir + "/slow; then sleep 30; fi; nginx -s reload -c " + p.conf + "'"

	run := p.begin("drain", a.addr, "--reload-command", slow)
	run.says("1 open")
	p.write(p.dir+"/slow", "")
	began := time.Now()
	run.signal()
	run.says("taking back what was done")
	eventually(t, "the file is put back", func() bool { return p.read() == before })
	run.signal()
	run.ends(5, "interrupted again: stopping at once", "taking it back failed too", "drainctl: now: ", "nginx", "drainctl: to go on: drainctl undrain "+a.addr+" --nginx-conf "+p.conf)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s to stop at once", took)
	}
	if err := os.Remove(p.dir + "/slow"); err != nil {
		t.Fatal(err)
	}
	p.has(before)
	// The command that it names sets all right.
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	p.answers("a", "b")
}

// While nothing is touched yet, an interrupt just ends the run, whatever it is
// waiting for.
func TestInterruptBeforeAnythingIsTouched(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	for _, more := range [][]string{nil, {"--dry-run"}} {
		mark := p.dir + "/asked"
		run := p.begin(append([]string{"drain", a.addr, "--test-command", "sh -c 'touch " + mark + "; sleep 300'"}, more...)...)
		eventually(t, "the test is run", func() bool { _, err := os.Stat(mark); return err == nil })
		run.signal()
		run.ends(130, "interrupted")
		p.has(before)
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
	}
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// The file is edited, and nginx's test of it takes long.
func TestInterruptInTheTest(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	run := p.begin("drain", a.addr, "--test-command", "sh -c 'if grep -q \" down;\" "+p.conf+"; then sleep 300; fi'")
	eventually(t, "the file is edited", func() bool { return p.read() == marked(before, a) })
	run.signal()
	run.ends(130, "interrupted", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// An exit code is not seeing: a reload that does nothing is no reload.
func TestReloadThatDoesNothing(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	p.begin("drain", a.addr, "--reload-command", "true", "--reload-timeout", "500ms").
		ends(1, "no new generation of workers was seen within 500ms", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	p.begin("drain", a.addr, "--reload-command", "sh -c 'echo the container is gone >&2; exit 3'").
		ends(1, "the container is gone", "everything is as it was before")
	p.has(before)
}

// Every reason not to begin is told at once, and nothing is touched.
func TestRefusedBeforeAnythingIsTouched(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")

	t.Run("nginx does not run", func(t *testing.T) {
		p := newProxy(t, pool(a, b))
		before := p.read()
		p.write(p.dir+"/nginx.pid", "999999999\n")
		p.begin("drain", a.addr, "--min-up", "2").ends(4, "nginx", "drainctl: hint: it would go on with --min-up 1", "drainctl: now: nothing was touched")
		p.has(before)
	})
	t.Run("nginx runs another configuration", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		other := p.dir + "/other.conf"
		p.write(other, p.read())
		q := *p
		q.conf = other
		q.begin("drain", a.addr).ends(4, "was started with "+p.conf+", not with "+other, "hint: it would go on with --nginx-conf "+p.conf)
		q.has(p.read())
	})
	t.Run("the test fails", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		workers := p.workers()
		broken := strings.Replace(p.read(), "access_log off;", "access_log off; nonsense on;", 1)
		p.write(p.conf, broken)
		p.begin("drain", a.addr).ends(4, `unknown directive "nonsense" in `+p.conf, "nothing was touched")
		p.has(broken)
		if now := p.workers(); !slices.Equal(now, workers) {
			t.Errorf("workers %v became %v", workers, now)
		}
	})
	t.Run("no such unit", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		before := p.read()
		p.begin("drain", a.addr, "--service", "drainctl-no-such-unit").ends(4, "nothing was touched")
		p.has(before)
	})
	t.Run("no rights", func(t *testing.T) {
		p := startProxy(t, pool(a, b))
		before := p.read()
		letAllIn(t, p.dir)
		r := p.command("nobody", "drainctl", "drain", a.addr, "-c", p.conf)
		r.ends(4, "sudo", "nothing was touched")
		p.has(before)
	})
}

// letAllIn opens a directory, and that of the programs, to every user.
func letAllIn(t *testing.T, dir string) {
	t.Helper()
	program, err := exec.LookPath("drainctl")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dir, filepath.Dir(program)} {
		if err := openUp(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that cannot be replaced ends the run with everything as before.
func TestFileCannotBeReplaced(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before, workers := p.read(), p.workers()
	if err := os.Link(p.conf, p.dir+"/second-name"); err != nil {
		t.Fatal(err)
	}
	p.begin("drain", a.addr).ends(1, "hard links", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// So does a read-only file system under one of two files: the other one is put
// back. Only drainctl sees it read-only, in a mount namespace of its own.
func TestFileSystemIsReadOnly(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	dir := t.TempDir()
	p := newProxy(t, pool(a, b)+"\n    include "+dir+"/*.conf;")
	p.write(dir+"/other.conf", "upstream other { server "+a.addr+"; server "+b.addr+"; }")
	p.start()
	before, workers := p.read(), p.workers()
	r := p.command("unshare", "-m", "sh", "-c", `mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"`, "sh", dir,
		"drainctl", "drain", a.addr, "-c", p.conf)
	r.ends(1, "write "+dir+"/other.conf: ", "read-only file system", "everything is as it was before")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
}

// nginx -t passes, the reload is taken, and the master keeps the old workers
// and says so in its error log alone.
func TestReloadFailsSilently(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	zone := "    limit_req_zone $binary_remote_addr zone=one:1m rate=100r/s;\n"
	p := startProxy(t, zone+pool(a, b))
	workers := p.workers()
	unfinished := strings.Replace(p.read(), "$binary_remote_addr", "$http_host", 1)
	p.write(p.conf, unfinished)
	p.begin("drain", a.addr).ends(1, `limit_req "one" uses the "$http_host" key while previously it used the "$binary_remote_addr" key`,
		"everything is as it was before")
	p.has(unfinished)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	p.answers("a", "b")
}

// A backend that is not healthy stays down.
func TestUndrainOfTheUnhealthy(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	dead := &backend{addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	p := startProxy(t, strings.Replace(pool(a, b, dead), dead.addr, dead.addr+" down", 1))
	before, workers := p.read(), p.workers()
	p.begin("undrain", dead.addr, "--health-timeout", "500ms").ends(1, "not healthy after 500ms", "connection refused", "everything is as it was before")
	p.has(before)
	p.begin("undrain", dead.addr, "--health", "http://"+a.addr+"/nowhere", "--health-timeout", "500ms").ends(1, "status 404")
	p.has(before)
	if now := p.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	// A drain of a dead backend is no problem.
	p.begin("drain", dead.addr).ends(0, "already so")
}

// Connections can be counted from the other side, too.
func TestPollOnTheLoadBalancer(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	held := p.hold(a)
	run := p.begin("drain", a.addr, "--poll", "lb")
	run.says("1 open")
	a.release()
	b.release()
	run.ends(0, "is drained")
	if err := <-held; err != nil {
		t.Error(err)
	}
}

func TestUnixSocket(t *testing.T) {
	b := newBackend(t, "b")
	path := filepath.Join(t.TempDir(), "app.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := serveOn(t, "a", l, "unix:"+path)
	p := startProxy(t, pool(a, b))
	before := p.read()
	held := p.hold(a)
	run := p.begin("drain", a.addr)
	run.says("1 open")
	p.has(marked(before, a))
	p.answers("b")
	a.release()
	b.release()
	run.ends(0, "is drained")
	if err := <-held; err != nil {
		t.Error(err)
	}
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	p.answers("a", "b")
}

// A target in several upstreams, of which one is in a symlinked file.
func TestSeveralFiles(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	real := filepath.Join(t.TempDir(), "other.conf")
	p := newProxy(t, pool(a, b)+"\n    include other*.conf;")
	p.write(real, "upstream other { server "+a.addr+"; server "+b.addr+" weight=3; }")
	if err := os.Chmod(real, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, p.dir+"/other.conf"); err != nil {
		t.Fatal(err)
	}
	p.start()
	before := p.read()
	p.begin("drain", a.addr).ends(0, a.addr+" in pool, "+a.addr+" in other: down")
	p.has(marked(before, a))
	now, _ := os.ReadFile(real)
	if want := "upstream other { server " + a.addr + " down; server " + b.addr + " weight=3; }"; string(now) != want {
		t.Errorf("the other file is %q, want %q", now, want)
	}
	if to, err := os.Readlink(p.dir + "/other.conf"); err != nil || to != real {
		t.Errorf("the link is %q, %v", to, err)
	}
	p.begin("undrain", a.addr, "--upstream", "other").ends(0)
	p.has(marked(before, a))
	p.begin("undrain", a.addr).ends(0)
	p.has(before)
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Who stops reading does not stop a drain.
func TestOutputClosed(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	before := p.read()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("drainctl", "drain", a.addr, "-c", p.conf)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	p.has(marked(before, a))
	p.answers("b")
}

// The story as JSON.
func TestEventsAsJSON(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	run := p.begin("drain", a.addr, "--output", "json", "--verbose")
	run.says(`"event":"waiting"`)
	a.release()
	b.release()
	run.ends(0)
	if run.err.Len() != 0 {
		t.Errorf("standard error has %q", run.err.String())
	}
	events := parseEvents(t, run.output())
	var order []string
	for _, e := range events {
		name := e["event"].(string)
		if step, ok := e["step"].(string); ok && name != "progress" {
			name += " " + step
		}
		if name != "command" && name != "progress" && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	want := []string{"plan", "step_started close", "step_done close", "step_started empty", "waiting", "step_done empty", "summary", "result"}
	if !slices.Equal(order, want) {
		t.Errorf("events %v, want %v", order, want)
	}
	last := events[len(events)-1]
	if last["exit_code"] != 0.0 {
		t.Errorf("the last event is %v", last)
	}

	run = p.begin("drain", b.addr, "--output", "json")
	run.ends(4, `"refusals":[{"text":"upstream pool (`, `nginx answers 502","override":"--min-up 0"}]`)
	parseEvents(t, run.output())
}

// parseEvents reads one JSON object a line, each with its event and time.
func parseEvents(t *testing.T, out string) []map[string]any {
	t.Helper()
	var events []map[string]any
	for line := range strings.Lines(out) {
		e := map[string]any{}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(e["time"])); err != nil || e["event"] == nil {
			t.Fatalf("no event or time (%v): %s", err, line)
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		t.Fatal("no event at all")
	}
	return events
}

// On a terminal the wait is one line that is rewritten, and what stays is the
// same story.
func TestOnATerminal(t *testing.T) {
	if _, err := exec.LookPath("script"); err != nil {
		t.Fatalf("this test needs script(1): install bsdutils (%v)", err)
	}
	a, b := newBackend(t, "a"), newBackend(t, "b")
	p := startProxy(t, pool(a, b))
	p.hold(a)
	r := p.command("script", "-qefc", "drainctl drain "+a.addr+" -c "+p.conf, os.DevNull)
	r.says("1 open, from 127.0.0.1 (1)")
	a.release()
	b.release()
	<-r.ended
	if r.failed != nil {
		t.Fatalf("%v: %s", r.failed, r.output())
	}
	if lines := strings.Count(r.output(), "\n"); lines > 12 {
		t.Errorf("%d lines; the wait must rewrite its own:\n%q", lines, r.output())
	}
	if !strings.Contains(r.output(), "is drained; nothing was stopped (no --service)") {
		t.Errorf("%q", r.output())
	}
}
