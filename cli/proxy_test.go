package cli

import (
	"bytes"
	"context"
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
	"time"
)

// A tester is a test, or a script of one.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// patience bounds every wait of these tests. It is for machines that are slow
// or busy; nothing is ever waited for that long.
const patience = 60 * time.Second

// eventually polls until it is so.
func eventually(t tester, what string, so func() bool) {
	t.Helper()
	for began := time.Now(); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("after %s it is still not so: %s", patience, what)
		}
	}
}

// An app answers /name with its name at once, and /hold/ and its name when
// it is let go.
type app struct {
	server   *http.Server
	listener net.Listener
	name     string
	addr     string // of TCP, or unix:PATH
	mu       sync.Mutex
	free     chan struct{} // closed to let what is held go
	held     int
}

func startApp(t tester, name string) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, name, l, l.Addr().String())
}

func serveOn(t tester, name string, l net.Listener, addr string) *app {
	t.Helper()
	b := &app{name: name, addr: addr, free: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	mux.HandleFunc("/hold/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hold/"+name {
			fmt.Fprint(w, "not here")
			return
		}
		free := b.count(1)
		defer b.count(-1)
		<-free
		fmt.Fprint(w, name+" held to the end")
	})
	b.server, b.listener = &http.Server{Handler: mux}, l
	go b.server.Serve(l)
	t.Cleanup(func() {
		b.release()
		b.server.Close()
	})
	return b
}

func (b *app) count(n int) (free <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held += n
	return b.free
}

func (b *app) holds() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// release lets the requests that are held end.
func (b *app) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.free)
	b.free = make(chan struct{})
}

// A proxy is a private nginx.
type proxy struct {
	t    tester
	dir  string
	conf string
	url  string
	cmd  *exec.Cmd
	more []string // variables in the environment of drainctl
}

// freePort is a port of loopback that nothing listens on.
func freePort(t tester) int {
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
func newProxy(t tester, upstreams string) *proxy {
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
func pool(backends ...*app) string {
	text := "    upstream pool {\n"
	for _, b := range backends {
		text += "        server " + b.addr + ";\n"
	}
	return text + "    }"
}

// apart is how far a change of a file and a load of nginx must be apart for
// drainctl to know which came first: the start of a process is known to a
// hundredth of a second, and the time of it to how long date(1) takes.
const apart = 100 * time.Millisecond

func startProxy(t tester, upstreams string) *proxy {
	t.Helper()
	p := newProxy(t, upstreams)
	p.start()
	return p
}

func (p *proxy) start() {
	p.t.Helper()
	var said bytes.Buffer
	time.Sleep(apart)
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
	time.Sleep(apart)
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
func (p *proxy) hold(b *app) <-chan error {
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
	t      tester
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

// stateDir is where the journal of the proxy is: no test looks at another's, or
// touches the machine's own.
func (p *proxy) stateDir() string { return p.dir + "/state" }

// env is the environment of what an operator types.
func (p *proxy) env() []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "TERM=xterm", "USER=ann", "DRAINCTL_STATE_DIR=" + p.stateDir()}, p.more...)
}

// command runs drainctl by way of another program.
func (p *proxy) command(name string, args ...string) *typed {
	p.t.Helper()
	r := &typed{t: p.t, ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	r.cmd = exec.CommandContext(ctx, name, args...)
	r.cmd.Env = p.env()
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

// signal is Ctrl-C.
func (r *typed) signal() { r.send(os.Interrupt) }

func (r *typed) send(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// marked is text with b's servers down.
func marked(text string, b *app) string {
	return strings.ReplaceAll(text, "server "+b.addr+";", "server "+b.addr+" down;")
}

func (p *proxy) has(want string) {
	p.t.Helper()
	if got := p.read(); got != want {
		p.t.Errorf("the configuration is\n%s\nwant\n%s", got, want)
	}
}
