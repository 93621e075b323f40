package balancer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A hostile caller asks the agent for what is not its right. It gets an error,
// every time, and nothing is changed: no file, no generation of nginx.
func TestHostileCaller(t *testing.T) {
	r := newRig(t)
	c := r.agent()
	report := r.began(c, testID, down("127.0.0.2"))
	sha := report.Files[r.pool]
	before, workers := r.tree(), r.workers()
	if len(before) < 4 {
		t.Fatalf("the rig has only %d files", len(before))
	}
	asks := map[string]struct{ method, params string }{}
	stage := func(name, files, want, server string) {
		asks["stage: "+name] = struct{ method, params string }{"stage", fmt.Sprintf(`{"files":{%s},"wants":[{"want":%s,"servers":[%s]}]}`, files, want, server)}
	}
	file := func(path, sha string) string {
		text, _ := json.Marshal(path)
		return fmt.Sprintf("%s:%q", text, sha)
	}
	pool := file(r.pool, sha)
	const server, out = `{"module":"http","upstream":"pool","address":"127.0.0.2:8080"}`, `"out"`
	stage("a file that is not included", file(r.dir+"/other.conf", hash(r.read(r.dir+"/other.conf"))), out, server)
	stage("a file of the system", file("/etc/passwd", sha), out, server)
	stage("a path that leads elsewhere", file(r.dir+"/../../etc/passwd", sha), out, server)
	stage("the same file by another path", file(r.dir+"/./pool.conf", sha), out, server)
	stage("a relative path", file("pool.conf", sha), out, server)
	stage("no path", file("", sha), out, server)
	stage("a hash that does not match", file(r.pool, strings.Repeat("0", 64)), out, server)
	stage("no hash", file(r.pool, ""), out, server)
	stage("no server", pool, out, "")
	stage("a server of a file that is not included", pool, out, `{"module":"http","upstream":"other","address":"127.0.0.9:80"}`)
	stage("a server of another module", pool, out, `{"module":"stream","upstream":"pool","address":"127.0.0.2:8080"}`)
	stage("an address that none has", pool, out, `{"module":"http","upstream":"pool","address":"127.0.0.2:8081"}`)
	stage("text in the place of an address", pool, out, `{"module":"http","upstream":"pool","address":"127.0.0.2:8080 down; } server { listen 1;"}`)
	stage("another parameter", pool, `{"down":true,"weight":5}`, server)
	stage("no want", pool, `""`, server)
	stage("text in the place of a want", pool, `"down; } server { listen 1;"`, server)
	asks["stage: there and back"] = struct{ method, params string }{"stage", `{"wants":[{"want":"out","servers":[` + server + `]},{"want":"back","servers":[` + server + `]}]}`}
	asks["stage: there and as before"] = struct{ method, params string }{"stage", `{"wants":[{"want":"out","servers":[` + server + `]},{"want":"as before","servers":[{"module":"http","upstream":"pool","address":"127.0.0.3:8080"}]}]}`}
	for _, field := range []string{"command", "test_command", "reload_command", "nginx", "state_dir", "configuration", "content"} {
		asks["stage with "+field] = struct{ method, params string }{"stage", fmt.Sprintf(`{"wants":[{"want":"out","servers":[`+server+`]}],%q:"touch /tmp/mine"}`, field)}
		asks["plan with "+field] = struct{ method, params string }{"plan", fmt.Sprintf(`{"targets":["127.0.0.2"],%q:"touch /tmp/mine"}`, field)}
	}
	for _, method := range []string{"run", "exec", "write", "read", "rpc.serverInfo2", "Plan", ""} {
		asks["method "+method] = struct{ method, params string }{method, `{}`}
	}
	for _, id := range []string{"../../../etc/cron.d/mine", "/etc/passwd", "..", ".", "", "a/b", "a\x00b", strings.Repeat("x", 5000)} {
		text, _ := json.Marshal(id)
		asks["begin "+id] = struct{ method, params string }{"begin", fmt.Sprintf(`{"operation":{"id":%s,"kind":"drain","targets":[],"user":"","host":"","began":"2026-01-01T00:00:00Z","servers":[]},"lines":[{}]}`, text)}
		if id != "" { // the list of all operations
			asks["history "+id] = struct{ method, params string }{"history", fmt.Sprintf(`{"id":%s}`, text)}
		}
	}
	asks["an array"] = struct{ method, params string }{"stage", `[{"down":true},[]]`}
	asks["no object"] = struct{ method, params string }{"stage", `7`}
	n := 0
	for _, name := range slices.Sorted(maps.Keys(asks)) {
		n++
		answer, err := c.rpc.call(t.Context(), asks[name].method, json.RawMessage(asks[name].params))
		if err == nil {
			t.Errorf("%s: no error, but %.200s", name, answer)
		}
		if now := r.tree(); !maps.Equal(now, before) {
			t.Fatalf("%s: files have changed", name)
		}
	}
	if now := r.workers(); !slices.Equal(now, workers) {
		t.Errorf("workers %v became %v", workers, now)
	}
	t.Logf("%d calls", n)
	// The agent still does what is right.
	if _, err := c.Stage(t.Context(), stageOf(report, Out)); err != nil {
		t.Errorf("a right edit is refused: %v", err)
	}
}

// An operation brings no edits of its own: to undo them would be to write any file of the
// machine, with the caller's text.
func TestEditsAreTheAgentsOwn(t *testing.T) {
	r := newRig(t)
	file := r.dir + "/other.conf"
	edit, _ := json.Marshal(journal.Edit{Path: file, After: hash(r.read(file)), Splices: []journal.Splice{{Old: "mine\n"}}})
	for _, field := range []string{"edits", "Edits", "marks", "cleared"} {
		c := r.agent()
		_, err := c.rpc.call(t.Context(), "begin", fmt.Appendf(nil, `{"operation":{"id":%q,"kind":"drain","targets":[],"user":"","host":"",%q:[%s]},"lines":[{}]}`, testID, field, edit))
		if CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("an operation with %s: %v", field, err)
		}
	}
}

// Only the LB says who ends an operation, when, what is down then and what is locked.
func TestEndIsTheAgentsOwn(t *testing.T) {
	c := newRig(t).agent()
	for _, field := range []string{"At", "Down", "By", "Locked", "by", "down"} {
		_, err := c.rpc.call(t.Context(), "end", fmt.Appendf(nil, `{"result":"done",%q:null}`, field))
		if CodeOf(err) != CodeRefused || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("an end with %s: %v", field, err)
		}
	}
}

// Whom the beginning of another user's operation is refused, can neither record nor end
// that operation.
func TestRefusedBegin(t *testing.T) {
	r := newRig(t)
	o := r.options()
	o.Caller = journal.Recorder{UID: 0, Name: "root"}
	root := NewLocal(o)
	report := r.began(root, testID, down("127.0.0.2"))
	if _, err := root.Stage(t.Context(), stageOf(report, Out)); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Load(t.Context(), LoadRequest{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	if err := root.End(t.Context(), journal.Ending{Result: journal.ResultDone}); err != nil {
		t.Fatal(err)
	}
	root.Close()
	before := r.tree()
	o.Caller = journal.Recorder{UID: 1000, Name: "deploy"}
	other := NewLocal(o)
	defer other.Close()
	line := []json.RawMessage{[]byte("{}")}
	for name, ask := range map[string]func() error{
		"begin": func() error {
			return other.Begin(t.Context(), Beginning{Operation: journal.Operation{ID: testID, Kind: journal.KindDrain}, Lines: line})
		},
		"record": func() error { return other.Record(t.Context(), Recorded{Lines: line}) },
		"end": func() error {
			return other.End(t.Context(), journal.Ending{Result: journal.ResultRolledBack, Lines: line})
		},
	} {
		for range 2 {
			if err := ask(); err == nil {
				t.Errorf("%s is not refused", name)
			}
		}
	}
	if now := r.tree(); !maps.Equal(now, before) {
		t.Errorf("something was changed: %v", slices.Sorted(maps.Keys(now)))
	}
}

// Without an operation there is nothing to edit, load or record.
func TestNothingBegun(t *testing.T) {
	r := newRig(t)
	c := r.agent()
	report, err := c.Plan(t.Context(), down("127.0.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	before, workers := r.tree(), r.workers()
	for name, ask := range map[string]func() error{
		"stage":  func() error { _, err := c.Stage(t.Context(), stageOf(report, Out)); return err },
		"load":   func() error { _, err := c.Load(t.Context(), LoadRequest{Timeout: patience}); return err },
		"record": func() error { return c.Record(t.Context(), Recorded{Lines: []json.RawMessage{[]byte("{}")}}) },
		"end":    func() error { return c.End(t.Context(), journal.Ending{Result: journal.ResultDone}) },
	} {
		if err := ask(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, id := range []string{"../../../etc/cron.d/mine", "/etc/passwd", "..", "", "a/b", "a\x00b", strings.Repeat("x", 5000)} {
		if err := r.agent().Begin(t.Context(), Beginning{Operation: journal.Operation{ID: id, Kind: journal.KindDrain}, Lines: []json.RawMessage{[]byte("{}")}}); err == nil {
			t.Errorf("%.20q is taken for the ID of an operation", id)
		}
	}
	if now := r.tree(); !maps.Equal(now, before) || !slices.Equal(r.workers(), workers) {
		t.Errorf("something was changed: %v", slices.Sorted(maps.Keys(now)))
	}
}

// Messages that are none end the agent, and nothing is changed.
func TestBrokenMessages(t *testing.T) {
	r := newRig(t)
	before := r.tree()
	for name, message := range map[string][]byte{
		"cut short":    []byte(`{"id":1,"method":"plan","par`),
		"too large":    append(bytes.Repeat([]byte(" "), maxRequest+1), '\n'),
		"no end":       bytes.Repeat([]byte("x"), maxRequest+1),
		"no JSON":      []byte("touch /tmp/mine\n"),
		"zero bytes":   append(make([]byte, 1000), '\n'),
		"deep nesting": append(bytes.Repeat([]byte("["), 100000), '\n'),
		"a shell line": []byte("$(reboot); `reboot`\n"),
	} {
		t.Run(name, func(t *testing.T) {
			far, ended := serve(NewLocal(r.options()))
			if _, err := bufio.NewReader(far.ReadCloser).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, far.ReadCloser) }()
			_, _ = far.Write(message)
			far.WriteCloser.Close()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the agent goes on")
			}
			if now := r.tree(); !maps.Equal(now, before) {
				t.Error("files have changed")
			}
		})
	}
}

// An agent of another version is told from one that does not answer, and what a
// login shell prints before it does no harm.
func TestGreeting(t *testing.T) {
	connect := func(said string) error {
		in, out := io.Pipe()
		go func() {
			_, _ = io.WriteString(out, said)
			out.Close()
		}()
		_, toAgent := io.Pipe()
		c, err := Connect(t.Context(), "lb1", "v1.2.3", pipe{in, toAgent})
		if err == nil {
			c.Close()
		}
		return err
	}
	ours := fmt.Sprintf(`{"agent":"drainctl","protocol":%d,"version":"v1"}`+"\n", Protocol)
	if err := connect("Welcome!\n\nlast login: today\n" + ours); err != nil {
		t.Errorf("after what a login shell prints: %v", err)
	}
	for _, theirs := range []int{Protocol - 1, Protocol + 1} {
		err := connect(fmt.Sprintf(`{"agent":"drainctl","protocol":%d,"version":"v9.9"}`+"\n", theirs))
		var version *VersionError
		if !errors.As(err, &version) || !strings.Contains(err.Error(), "lb1 is v9.9") || !strings.Contains(err.Error(), "v1.2.3") || !strings.Contains(err.Error(), "update drainctl") {
			t.Errorf("protocol %d: %v", theirs, err)
		}
	}
	for _, said := range []string{"", "sh: drainctl: not found\n", ours[:10], strings.Repeat("noise\n", maxGreeting)} {
		if err := connect(said); err == nil {
			t.Errorf("%.20q is taken for a greeting", said)
		}
	}
}

// The end of the connection is the end of the agent: its locks are free.
func TestConnectionsEnd(t *testing.T) {
	r := newRig(t)
	c := r.agent()
	lock := LockRequest{Backends: []string{"127.0.0.2"}, Holder: journal.Holder{User: "ann", Time: time.Now()}}
	if err := c.Lock(t.Context(), lock); err != nil {
		t.Fatal(err)
	}
	second := r.agent()
	err := second.Lock(t.Context(), lock)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeLocked || e.Holder == nil || e.Holder.User != "ann" {
		t.Fatalf("the second gets %v", err)
	}
	c.stream.Close()
	lock.Wait = patience
	if err := second.Lock(t.Context(), lock); err != nil {
		t.Errorf("after the end of the first: %v", err)
	}
}

// A caller that gives up ends what the agent does for it.
func TestCallIsCancelled(t *testing.T) {
	r := newRig(t)
	o := r.options()
	o.Nginx.TestCommand = []string{"sleep", "300"}
	far, _ := serve(NewLocal(o))
	c, err := Connect(t.Context(), "lb", "test", far)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Plan(ctx, down("127.0.0.2"))
		done <- err
	}()
	time.Sleep(200 * time.Millisecond)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the call ended with %v", err)
	}
	// The next call comes when the one before has ended.
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Plan(ctx, Query{Targets: []string{"127.0.0.2"}}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// FuzzProtocol: whatever an agent is sent, it neither crashes nor hangs, and
// changes no file but those of the journal.
func FuzzProtocol(f *testing.F) {
	for _, method := range []string{"plan", "lock", "begin", "stage", "load", "watch", "connections", "record", "end", "state", "history", "cancel", "ping"} {
		f.Add([]byte(fmt.Sprintf(`{"id":1,"method":%q,"params":{}}`, method)))
	}
	f.Add([]byte(`{"id":1,"method":"begin","params":{"operation":{"id":"../x"},"lines":[1]}}`))
	f.Add([]byte(`[{"id":1,"method":"stage","params":{"wants":[{"want":"out","servers":[0]}],"files":{"/":""}}}]`))
	f.Fuzz(func(t *testing.T, message []byte) {
		if bytes.Contains(message, []byte("health")) || bytes.Contains(message, []byte("_url")) || bytes.Contains(message, []byte("wait")) {
			t.Skip() // would connect somewhere, or wait for a lock
		}
		dir := t.TempDir()
		r := &rig{t: t, dir: dir, conf: dir + "/nginx.conf"}
		r.write(r.conf, "events {}\nhttp { upstream pool { server 127.0.0.2:80; server 127.0.0.3:80; } }\n")
		before := r.tree()
		o := Options{Nginx: nginx.Binary{Path: "/nonexistent/nginx", Conf: r.conf, TestCommand: []string{"true"}, ReloadCommand: []string{"true"}}, StateDir: dir + "/state"}
		far, ended := serve(NewLocal(o))
		go func() { _, _ = io.Copy(io.Discard, far.ReadCloser) }()
		_, _ = far.Write(append(bytes.ReplaceAll(message, []byte("\n"), nil), '\n'))
		far.WriteCloser.Close()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("the agent goes on")
		}
		for path, text := range r.tree() {
			if had, known := before[path]; known && had != text || !known && !strings.HasPrefix(path, dir+"/state/") {
				t.Fatalf("%s was changed", path)
			}
		}
	})
}

// Locks are bounded in number, and are on backends.
func TestLocksAreBounded(t *testing.T) {
	l := NewLocal(Options{StateDir: t.TempDir()})
	defer l.Close()
	names := func(from, n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("10.0.%d.%d", (from+i)/256, (from+i)%256))
		}
		return all
	}
	ann := journal.Holder{Kind: journal.KindDrain, User: "ann", Host: "desk", Time: time.Now().AddDate(7000, 0, 0)}
	for name, r := range map[string]LockRequest{
		"many":      {Backends: names(0, 5000), Holder: ann},
		"a path":    {Backends: []string{"../../etc/passwd"}, Holder: ann},
		"long":      {Backends: []string{strings.Repeat("x", 254)}, Holder: ann},
		"blanks":    {Backends: []string{"a b"}, Holder: ann},
		"a port":    {Backends: []string{"10.0.0.1:80"}, Holder: ann},
		"a control": {Backends: []string{"unix:/run/\x1b[2J"}, Holder: ann},
		"empty":     {Backends: []string{""}, Holder: ann},
		"reason":    {Backends: names(0, 1), Holder: journal.Holder{Reason: strings.Repeat("x", 1<<20)}},
	} {
		if err := l.Lock(t.Context(), r); CodeOf(err) != CodeRefused {
			t.Errorf("%s: error %v", name, err)
		}
	}
	real := LockRequest{Backends: append(names(0, maxLocks-4), "app_1.example.com", "2001:db8::1", "unix:/run/app.sock"), Holder: ann}
	if err := l.Lock(t.Context(), real); err != nil {
		t.Fatal(err)
	}
	if err := l.Lock(t.Context(), LockRequest{Backends: names(5000, 2), Holder: ann}); CodeOf(err) != CodeRefused {
		t.Errorf("more than %d in two calls: error %v", maxLocks, err)
	}
	holders, err := l.journal.Holders()
	if err != nil || len(holders) != maxLocks-1 || holders[0].Time.After(time.Now()) {
		t.Errorf("%d holders since %s, error %v", len(holders), holders[0].Time, err)
	}
	l.Close()
	if left, err := os.ReadDir(l.options.StateDir + "/locks"); err != nil || len(left) > 0 {
		t.Errorf("%d lock files are left, error %v", len(left), err)
	}
}

// An edit that nobody has loaded is undone when the caller goes, also after an earlier
// edit of the same operation was loaded, which stays.
func TestEditAfterAReloadIsUndone(t *testing.T) {
	r := newRig(t)
	far, ended := serve(NewLocal(r.options()))
	c, err := Connect(t.Context(), "lb", "test", far)
	if err != nil {
		t.Fatal(err)
	}
	report := r.began(c, testID, down("127.0.0.2"))
	if _, err := c.Stage(t.Context(), stageOf(report, Out)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(t.Context(), LoadRequest{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	loaded := r.read(r.pool)
	more, err := c.Plan(t.Context(), down("127.0.0.3"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stage(t.Context(), stageOf(more, Out)); err != nil {
		t.Fatal(err)
	}
	if r.read(r.pool) == loaded {
		t.Fatal("the second edit has changed nothing")
	}
	c.Close()
	<-ended
	if now := r.read(r.pool); now != loaded {
		t.Errorf("the file is\n%s\nand nginx has loaded\n%s", now, loaded)
	}
}

// A call says which servers it is about, whatever was asked before. One that names none,
// or what is no server here, is refused: nothing is never all fine.
func TestCallsNameTheirServers(t *testing.T) {
	r := newRig(t)
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	address := app.Addr().String()
	r.write(r.pool, "upstream pool { server "+address+"; server 127.0.0.3:1; }\n")
	server := func(upstream, address string) []journal.Server {
		return []journal.Server{{Module: "http", Upstream: upstream, Address: address}}
	}
	for _, test := range []struct {
		name    string
		servers []journal.Server
		ok      bool
	}{
		{"it listens", server("pool", address), true},
		{"nothing listens", server("pool", "127.0.0.3:1"), false},
		{"one of two", append(server("pool", address), server("pool", "127.0.0.3:1")...), false},
		{"none is named", nil, false},
		{"of no upstream", server("pool", "127.0.0.9:80"), false},
		{"of another upstream", server("other", address), false},
	} {
		if err := r.agent().Health(t.Context(), HealthCheck{Servers: test.servers}); (err == nil) != test.ok {
			t.Errorf("health, %s: %v", test.name, err)
		}
	}
	for _, servers := range [][]journal.Server{nil, server("pool", "127.0.0.9:80"), server("other", address)} {
		if c, err := r.agent().Connections(t.Context(), ConnectionsQuery{Servers: servers}); err == nil {
			t.Errorf("%d connections to %v", c.Open, servers)
		}
	}
	if w, err := r.agent().Watch(t.Context(), WatchRequest{}); err == nil {
		t.Errorf("nothing is watched: %+v", w)
	}
	// More calls than the agent has under way at once wait for each other.
	c := r.agent()
	var all sync.WaitGroup
	for range 3 * maxCalls {
		all.Go(func() {
			if _, err := c.Connections(t.Context(), ConnectionsQuery{Servers: server("pool", address)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
