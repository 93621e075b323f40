package balancer

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
	"github.com/drainctl/drainctl/sockets"
)

// An observed is a rig that has an app marked down, and loaded that.
type observed struct {
	*rig
	lb     *Client
	app    *httptest.Server
	direct string // where nginx passes to the app without an upstream
	query  ConnectionsQuery
}

// observe begins before the load, with what runs then.
func observe(t *testing.T, before func(*observed)) *observed {
	t.Helper()
	o := &observed{rig: newRig(t)}
	o.app = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/status" {
			fmt.Fprint(w, "Active connections: 1 \nserver accepts handled requests\n 1 1 1 \nReading: 0 Writing: 1 Waiting: 0 \n")
		}
	}))
	t.Cleanup(o.app.Close)
	address := o.app.Listener.Addr().String()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.direct = "http://" + l.Addr().String()
	l.Close()
	o.write(o.pool, "upstream pool { server "+address+"; server 127.0.0.3:8080; }\n")
	o.write(o.conf, strings.Replace(o.read(o.conf), "include pool.conf;", "include pool.conf; server { listen "+l.Addr().String()+"; location / { proxy_pass http://"+address+"; } }", 1))
	o.reloadByOthers()
	time.Sleep(apart)
	o.lb = o.agent()
	if before != nil {
		before(o)
	}
	report := o.began(o.lb, testID, down(address))
	staged, err := o.lb.Stage(t.Context(), stageOf(report, Out))
	if err == nil && staged.NeedsLoad {
		_, err = o.lb.Load(t.Context(), LoadRequest{Timeout: patience})
	}
	if err != nil {
		t.Fatal(err)
	}
	o.query = ConnectionsQuery{Servers: []journal.Server{{Module: "http", Upstream: "pool", Address: address}}}
	return o
}

// openers counts, and returns who has opened connections since the load.
func (o *observed) openers() []remote.Opener {
	o.t.Helper()
	c, err := o.lb.Connections(o.t.Context(), o.query)
	if err != nil {
		o.t.Fatal(err)
	}
	return c.Openers
}

// appears waits until a connection of somebody has been noticed.
func (o *observed) appears(by remote.OpenedBy, process string) {
	o.t.Helper()
	o.until("it is noticed", func() bool {
		for _, opener := range o.openers() {
			if opener.By == by && (opener.PID == 0) == (process == "") && strings.HasPrefix(opener.Process, process) && (process == "") == (opener.Process == "") &&
				opener.Near.IsLoopback() && opener.Ago < patience {
				return true
			}
		}
		return false
	})
}

// connect has another program connect to the app, and keep the connection until it is told to end it.
func (o *observed) connect() (end func()) {
	o.t.Helper()
	host, port, _ := net.SplitHostPort(o.app.Listener.Addr().String())
	cmd := exec.Command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%s && echo connected && read", host, port))
	in, err := cmd.StdinPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = fmt.Fscanln(out, new(string))
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return func() {
		in.Close()
		_ = cmd.Wait()
	}
}

func get200(t *testing.T, url string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// The generation of nginx that serves has the server down. If a worker connects to it, the configuration
// has another way.
func TestTrafficOfTheWorkers(t *testing.T) {
	o := observe(t, nil)
	if all := o.openers(); len(all) != 0 {
		t.Errorf("before: %+v", all)
	}
	release := make(chan struct{})
	o.app.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := http.Get(o.direct); err == nil {
			resp.Body.Close()
		}
	}()
	o.appears(remote.OpenedByWorker, "nginx with "+o.conf)
	close(release)
	<-done
}

// A server that somebody else has marked down before is watched, too.
func TestTrafficToAServerThatWasDown(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	o := observe(t, func(o *observed) {
		o.app.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
		o.write(o.pool, "upstream pool { server "+o.app.Listener.Addr().String()+" down; server 127.0.0.3:8080; }\n")
		o.reloadByOthers()
		time.Sleep(apart)
	})
	o.openers()
	go func() {
		if resp, err := http.Get(o.direct); err == nil {
			resp.Body.Close()
		}
	}()
	o.appears(remote.OpenedByWorker, "nginx with "+o.conf)
}

// What came and went between two counts was seen by nobody but the kernel.
func TestTrafficBetweenTwoCounts(t *testing.T) {
	o := observe(t, nil)
	o.openers()
	get200(t, o.direct)
	o.appears(remote.OpenedByOther, "")
}

// Earlier workers send the requests that they hold. A connection that came and went may be theirs.
func TestTrafficBesideEarlierWorkers(t *testing.T) {
	var held net.Conn
	o := observe(t, func(o *observed) {
		var err error
		if held, err = net.Dial("tcp", strings.TrimPrefix(o.direct, "http://")); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(held, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1")
		time.Sleep(apart) // nginx has read the head
	})
	defer held.Close()
	if all := o.openers(); len(all) != 0 {
		t.Errorf("before: %+v", all)
	}
	fmt.Fprint(held, "2")
	if _, err := held.Read(make([]byte, 1)); err != nil { // the app has answered
		t.Fatal(err)
	}
	for _, opener := range o.openers() {
		if opener.By != remote.OpenedByUnknown {
			t.Errorf("%+v: an earlier worker held the request", opener)
		}
	}
}

// An earlier worker that holds nothing but answers of other servers opens no connection any more. What
// comes and goes beside it is somebody else's.
func TestTrafficBesideAnotherStream(t *testing.T) {
	release, isHeld := make(chan struct{}), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(isHeld)
		<-release
	}))
	defer slow.Close()
	defer close(release)
	o := observe(t, func(o *observed) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().String()
		l.Close()
		o.write(o.conf, strings.Replace(o.read(o.conf), "include pool.conf;", "include pool.conf; server { listen "+at+"; location / { proxy_pass "+slow.URL+"; } }", 1))
		o.reloadByOthers()
		time.Sleep(apart)
		go func() {
			if resp, err := http.Get("http://" + at); err == nil {
				resp.Body.Close()
			}
		}()
		<-isHeld
	})
	o.until("it is noticed that no earlier worker opens them", func() bool {
		get200(t, o.direct)
		return slices.ContainsFunc(o.openers(), func(o remote.Opener) bool { return o.By != remote.OpenedByUnknown })
	})
}

// What came and went may be an earlier worker's as long as there is one.
func TestTrafficThatEndsUnseen(t *testing.T) {
	far, near := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:4000")
	socket := sockets.Socket{Near: near, Far: far}
	for _, test := range []struct {
		name string
		seen serverTraffic
		want []remote.OpenedBy
	}{
		{"beside an earlier worker", serverTraffic{open: map[netip.AddrPort]bool{}}, []remote.OpenedBy{remote.OpenedByUnknown}},
		{"beside none", serverTraffic{open: map[netip.AddrPort]bool{}, isAlone: true}, []remote.OpenedBy{remote.OpenedByOther}},
		{"that was counted, and whose owner is known", serverTraffic{open: map[netip.AddrPort]bool{near: true}, isAlone: true}, nil},
		{"that was counted", serverTraffic{open: map[netip.AddrPort]bool{near: false}, isAlone: true}, nil},
		{"before the first count", serverTraffic{isAlone: true}, nil},
	} {
		tr := traffic{servers: map[netip.AddrPort]*serverTraffic{far: &test.seen}}
		if !tr.ended(socket) || tr.ended(sockets.Socket{Near: near, Far: near}) {
			t.Errorf("%s: it is of a server that is watched, and only it", test.name)
		}
		var got []remote.OpenedBy
		for _, o := range tr.openers([]netip.AddrPort{far}) {
			got = append(got, o.By)
		}
		if !slices.Equal(got, test.want) || test.seen.open[near] {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestTrafficOfOthers(t *testing.T) {
	other := newRig(t)
	var early func()
	o := observe(t, func(o *observed) { early = o.connect() })
	defer early()
	o.appears(remote.OpenedByOther, "bash")
	end := o.connect()
	o.appears(remote.OpenedByOther, "bash")
	end()

	other.write(other.pool, "upstream pool { server "+o.app.Listener.Addr().String()+"; keepalive 1; }\n")
	other.reloadByOthers()
	_, front, _ := strings.Cut(other.read(other.conf), "listen ")
	front, _, _ = strings.Cut(front, ";")
	o.app.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(3 * huntGap) })
	o.until("the other nginx is found, though no count sees its connections", func() bool {
		for range 20 {
			get200(t, "http://"+front)
		}
		return slices.ContainsFunc(o.openers(), func(opener remote.Opener) bool { return opener.Process == "nginx with "+other.conf })
	})
}

// drainctl itself connects to a server: it asks for a page, and tries whether the server answers.
func TestTrafficOfDrainctl(t *testing.T) {
	o := observe(t, nil)
	o.openers()
	own, err := net.Dial("tcp", o.app.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for range 3 {
		if _, err := o.lb.Connections(t.Context(), ConnectionsQuery{StatusURL: o.app.URL + "/status"}); err != nil {
			t.Fatal(err)
		}
		if all := o.openers(); len(all) != 0 {
			t.Errorf("%+v", all)
		}
	}
	time.Sleep(apart) // for what the kernel tells
	if all := o.openers(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
}
