package cli

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Some scripts run a real nginx on loopback, in front of backends in this
// process. They have these commands:
//
//	live NAME…            starts backends, puts their addresses where upstreams.conf
//	                      says $NAME, and starts an nginx that includes it; it asks
//	                      the upstream pool
//	reload                has nginx load what the files say now
//	answers NAME…         exactly these backends must answer through nginx
//	hold NAME             has a backend hold a request until it is let go
//	release NAME          lets it go; its whole answer must arrive
//	until REGEXP COMMAND… runs a command until its output matches
//	latest VARIABLE       sets a variable to the ID of the latest operation
//
// The unit app is a file, units/app, that says whether it is active, and whether the
// first backend listens: systemctl
// and journalctl in bin stand in for systemd. While there is a file units/slow it
// takes its time, and with units/broken it does not start.
type live struct {
	proxy    *proxy
	backends map[string]*app
	held     map[string]<-chan error
}

// liveKey finds the live nginx of a script.
type liveKey struct{}

func liveCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"live": startLive, "reload": reload, "answers": answers, "hold": hold, "release": release, "until": until, "latest": latest,
	}
}

// A scriptTester is a script as a test.
type scriptTester struct{ ts *testscript.TestScript }

func (t scriptTester) Helper()                           {}
func (t scriptTester) Fatal(args ...any)                 { t.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (t scriptTester) Fatalf(format string, args ...any) { t.ts.Fatalf(format, args...) }
func (t scriptTester) Errorf(format string, args ...any) { t.ts.Fatalf(format, args...) }
func (t scriptTester) Cleanup(f func())                  { t.ts.Defer(f) }
func (t scriptTester) TempDir() string                   { return t.ts.MkAbs(".") }

func liveOf(ts *testscript.TestScript) *live {
	l, _ := ts.Value(liveKey{}).(*live)
	return l
}

func startLive(ts *testscript.TestScript, _ bool, names []string) {
	needsRoot(ts, false, nil)
	l, t := liveOf(ts), scriptTester{ts}
	l.backends, l.held = map[string]*app{}, map[string]<-chan error{}
	for i, name := range names {
		// Each on a host of its own: a claim is on a host.
		listener, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 10+i))
		ts.Check(err)
		l.backends[name] = serveOn(t, name, listener, listener.Addr().String())
		ts.Setenv(name, l.backends[name].addr)
	}
	upstreams := ts.MkAbs("upstreams.conf")
	text := os.Expand(ts.ReadFile(upstreams), func(name string) string {
		if b := l.backends[name]; b != nil {
			return b.addr
		}
		return "$" + name
	})
	ts.Check(os.WriteFile(upstreams, []byte(text), 0o644))
	standInForSystemd(ts)
	follow(ts, l.backends[names[0]])
	l.proxy = newProxy(t, "    include "+upstreams+";")
	l.proxy.start()
	ts.Setenv("DRAINCTL_NGINX_CONF", l.proxy.conf)
}

// systemctl answers for the unit app alone.
const systemctl = `#!/bin/sh
for unit; do :; done
case $1 in
show)
	state=inactive load=loaded
	test -e "$UNITS/$unit" && state=active
	test "$unit" = app || load=not-found
	printf 'LoadState=%s\nActiveState=%s\nSubState=x\nResult=success\n' $load $state
	;;
start)
	while test -e "$UNITS/slow"; do sleep 0.05; done
	test ! -e "$UNITS/broken" && touch "$UNITS/$unit" && until test -e "$UNITS/.listens"; do sleep 0.01; done
	;;
stop)
	while test -e "$UNITS/slow"; do sleep 0.05; done
	rm -f "$UNITS/$unit"
	while test -e "$UNITS/.listens"; do sleep 0.01; done
	;;
esac
`

func standInForSystemd(ts *testscript.TestScript) {
	bin, units := ts.MkAbs("bin"), ts.MkAbs("units")
	for _, dir := range []string{bin, units} {
		ts.Check(os.MkdirAll(dir, 0o755))
	}
	ts.Check(os.WriteFile(bin+"/systemctl", []byte(systemctl), 0o755))
	ts.Check(os.WriteFile(bin+"/journalctl", []byte("#!/bin/sh\necho the last words of the app\n"), 0o755))
	ts.Check(os.WriteFile(units+"/app", nil, 0o644))
	ts.Setenv("UNITS", units)
	ts.Setenv("PATH", bin+string(filepath.ListSeparator)+ts.Getenv("PATH"))
}

// follow starts and stops the listener of a backend with the unit app. Open requests continue.
func follow(ts *testscript.TestScript, b *app) {
	unit, listens := ts.MkAbs("units/app"), ts.MkAbs("units/.listens")
	ts.Check(os.WriteFile(listens, nil, 0o644))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	ts.Defer(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		for listening := true; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			_, err := os.Stat(unit)
			switch active := err == nil; {
			case active == listening:
			case listening:
				b.listener.Close()
				_ = os.Remove(listens)
				listening = false
			default:
				if b.listener, err = net.Listen("tcp", b.addr); err != nil {
					continue
				}
				go b.server.Serve(b.listener)
				_ = os.WriteFile(listens, nil, 0o644)
				listening = true
			}
		}
	}()
}

// reload waits on both sides for the clocks of files and of processes to tell
// them apart.
func reload(ts *testscript.TestScript, _ bool, _ []string) {
	p := liveOf(ts).proxy
	time.Sleep(apart)
	before := p.workers()
	ts.Check(p.cmd.Process.Signal(syscall.SIGHUP))
	eventually(p.t, "a new generation serves", func() bool {
		now := p.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	})
	time.Sleep(apart)
}

func answers(ts *testscript.TestScript, _ bool, names []string) { liveOf(ts).proxy.answers(names...) }

func hold(ts *testscript.TestScript, _ bool, names []string) {
	l := liveOf(ts)
	for _, name := range names {
		l.held[name] = l.proxy.hold(l.backends[name])
	}
}

func release(ts *testscript.TestScript, _ bool, names []string) {
	l := liveOf(ts)
	for _, name := range names {
		l.backends[name].release()
		if err := <-l.held[name]; err != nil {
			ts.Fatalf("a request that %s held was cut: %v", name, err)
		}
	}
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND…")
	}
	wanted, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	eventually(scriptTester{ts}, args[0], func() bool {
		_ = ts.Exec(args[1], args[2:]...)
		return wanted.MatchString(ts.ReadFile("stdout"))
	})
}

func latest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: latest VARIABLE")
	}
	files, err := filepath.Glob(ts.MkAbs("state/history/*.jsonl"))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("no operation in the journal")
	}
	ts.Setenv(args[0], strings.TrimSuffix(filepath.Base(files[len(files)-1]), ".jsonl"))
}
