package balancer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// requests are parameters of each method, as a client sends them.
var requests = map[string]string{
	"plan":        `{"targets":["127.0.0.2","unix:/x"],"upstreams":["pool"],"want":"out","force":true,"returning":["127.0.0.3"],"preflight":true,"itself":false}`,
	"lock":        `{"backends":["127.0.0.2","app_1"],"wait_ns":1,"holder":{"name":"","id":"x","kind":"drain","targets":["127.0.0.2"],"user":"ann","host":"desk","reason":"why","time":"2026-01-01T00:00:00Z"}}`,
	"begin":       `{"operation":{"id":"` + testID + `","kind":"drain","targets":["127.0.0.2"],"user":"ann","host":"desk","began":"2026-01-01T00:00:00Z","servers":[{"module":"http","upstream":"pool","address":"127.0.0.2:80","file":"/x","line":1}],"spec":{"a":[1]}},"set_aside":true,"lines":[{"event":"x"}]}`,
	"stage":       `{"wants":[{"want":"out","servers":[{"module":"http","upstream":"pool","address":"127.0.0.2:80"}]}],"force":true,"files":{"/x":"00"},"accept_pending":true}`,
	"load":        `{"timeout_ns":1}`,
	"watch":       `{"targets":["127.0.0.2"],"upstreams":["pool"],"generation":true,"buffered":true}`,
	"connections": `{"servers":[{"module":"http","upstream":"pool","address":"127.0.0.2:80"}],"held":true}`,
	"record":      `{"lines":[{"event":"x"}],"released":[{"module":"http","upstream":"pool","address":"127.0.0.2:80"}],"progress":{"a":1}}`,
	"end":         `{"result":"done","open":1,"not_drained":[{"module":"http","upstream":"pool","address":"127.0.0.2:80"}],"supersede":["x"],"lines":[{}]}`,
	"state":       `{}`,
	"history":     `{"id":"` + testID + `"}`,
}

// hostileRig is an agent over a journal and a configuration of a temporary directory, and
// over an nginx that does not run.
func hostileRig(t *testing.T) (r *rig, o Options) {
	t.Helper()
	dir := t.TempDir()
	r = &rig{t: t, dir: dir, conf: dir + "/nginx.conf"}
	r.write(r.conf, "events {}\nhttp { upstream pool { server 127.0.0.2:80; server 127.0.0.3:80; } }\n")
	binary := nginx.Binary{Path: "/nonexistent/nginx", Conf: r.conf, TestCommand: []string{"true"}, ReloadCommand: []string{"true"}}
	return r, Options{Nginx: binary, StateDir: dir + "/state"}
}

// peak measures the most heap, in bytes, that is in use while do runs.
func peak(do func()) (most uint64) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(MemoryLimit)) // as in an agent
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	do()
	close(stop)
	<-done
	return most
}

// converse sends lines to a new agent, reads what it answers, and wants it to end.
func converse(t *testing.T, o Options, lines []byte) {
	t.Helper()
	far, ended := serve(NewLocal(o))
	go func() { _, _ = io.Copy(io.Discard, far.ReadCloser) }()
	_, _ = far.Write(lines) // fails where the agent ends before
	far.WriteCloser.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatalf("the agent goes on after %.500q", lines)
	}
}

// answered sends maxCalls requests to a new agent, reads all answers, and returns the bytes
// of the largest one.
func answered(t *testing.T, o Options, lines []byte) (largest int) {
	t.Helper()
	far, ended := serve(NewLocal(o))
	defer func() {
		far.Close()
		<-ended
	}()
	answers := bufio.NewReaderSize(far.ReadCloser, 1<<20)
	go func() {
		_, err := far.Write(lines)
		for err == nil { // on a busy machine the answers take longer than the lease
			_, err = io.WriteString(far, `{"id":0,"method":"ping","params":{}}`+"\n")
			time.Sleep(time.Second)
		}
	}()
	for range 1 + maxCalls { // and the greeting
		size := 0
		for {
			part, err := answers.ReadSlice('\n')
			if size += len(part); err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				t.Errorf("the agent ends: %v", err)
				return largest
			}
		}
		largest = max(largest, size)
	}
	return largest
}

// Requests that take many times their size when they are read have bounded memory, though
// all calls that an agent takes at once are such.
func TestLargeRequestsTakeBoundedMemory(t *testing.T) {
	const limit = 384 << 20
	fill := func(before, each, after string) string {
		n := (maxRequest - 1000 - len(before) - len(after)) / len(each)
		return before + strings.TrimSuffix(strings.Repeat(each, n), ",") + after
	}
	for name, ask := range map[string]struct{ method, params string }{
		"servers": {"begin", fill(`{"operation":{"id":"x","servers":[`, `{},`, `]}}`)},
		"edits":   {"begin", fill(`{"operation":{"id":"x","edits":[`, `{},`, `]}}`)},
		"wants":   {"stage", fill(`{"wants":[`, `{},`, `]}`)},
		"strings": {"plan", fill(`{"targets":[`, `"",`, `]}`)},
		"targets": {"plan", fill(`{"targets":[`, `"a",`, `]}`)},
		"missing": {"plan", `{"targets":[` + strings.TrimSuffix(strings.Repeat(`"a",`, 10_000), ",") + `],"upstreams":[` + strings.TrimSuffix(strings.Repeat(`"pool",`, 10_000), ",") + `]}`},
		"lines":   {"record", fill(`{"lines":[`, `1,`, `]}`)},
		"deep":    {"begin", `{"operation":{"id":"x","spec":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, o := hostileRig(t)
			var lines []byte
			for id := range maxCalls {
				lines = fmt.Appendf(lines, `{"id":%d,"method":%q,"params":%s}`+"\n", id+1, ask.method, ask.params)
			}
			runtime.GC()
			began := time.Now()
			most := peak(func() { answered(t, o, lines) })
			t.Logf("%d MiB at most, of which the requests are %d MiB, in %s", most>>20, len(lines)>>20, time.Since(began).Round(time.Millisecond))
			if most > limit {
				t.Errorf("%d MiB of memory, more than %d", most>>20, limit>>20)
			}
		})
	}
}

// An agent sets a state aside for root alone, however its caller asks, and never one of a
// later version.
func TestCallerCannotSetTheJournalAside(t *testing.T) {
	for _, c := range []struct {
		state    string
		uid      uint32
		setAside bool
	}{{"torn", 0, true}, {"torn", 1000, false}, {`{"version":99}`, 0, false}, {`{"version":99}`, 1000, false}} {
		_, o := hostileRig(t)
		o.Caller, o.Served = journal.Recorder{UID: c.uid}, true
		if err := os.MkdirAll(o.StateDir, 0o755); err != nil {
			t.Fatal(err)
		}
		path := o.StateDir + "/state.json"
		if err := os.WriteFile(path, []byte(c.state), 0o600); err != nil {
			t.Fatal(err)
		}
		l := NewLocal(o)
		op := journal.Operation{ID: journal.NewID(time.Now(), ""), Kind: journal.KindUndrain}
		err := l.Begin(t.Context(), Beginning{Operation: op, SetAside: true})
		l.Close()
		text, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if kept := string(text) == c.state; (err == nil) != c.setAside || kept == c.setAside {
			t.Errorf("%q for uid %d: error %v, kept %t", c.state, c.uid, err, kept)
		}
	}
}

// A request names a bounded number of targets, upstreams and servers.
func TestRequestsNameABoundedNumber(t *testing.T) {
	_, o := hostileRig(t)
	l := NewLocal(o)
	defer l.Close()
	for _, n := range []int{10_000, 10_001} {
		names, servers := slices.Repeat([]string{"127.0.0.2"}, n), slices.Repeat([]journal.Server{{Module: "http", Upstream: "pool", Address: "127.0.0.2:80"}}, n)
		for what, call := range map[string]func() error{
			"targets of a plan":   func() error { _, err := l.Plan(t.Context(), Query{Targets: names}); return err },
			"returning of a plan": func() error { _, err := l.Plan(t.Context(), Query{Returning: names}); return err },
			"upstreams of a plan": func() error {
				_, err := l.Plan(t.Context(), Query{Upstreams: slices.Repeat([]string{"pool"}, n)})
				return err
			},
			"targets of a watch":       func() error { _, err := l.Watch(t.Context(), WatchRequest{Targets: names}); return err },
			"servers that are counted": func() error { _, err := l.Connections(t.Context(), ConnectionsQuery{Servers: servers}); return err },
			"servers of a stage": func() error {
				_, err := l.Stage(t.Context(), StageRequest{Wants: []Wanted{{Out, servers}}})
				return err
			},
			"servers that are asked": func() error { return l.Health(t.Context(), HealthCheck{Servers: servers}) },
		} {
			err := call()
			if refused := err != nil && CodeOf(err) == CodeRefused && strings.Contains(err.Error(), "more than 10000"); refused != (n > 10_000) {
				t.Errorf("%d %s: error %v", n, what, err)
			}
		}
	}
}

// Answers have bounded memory, whatever a user other than root has recorded, though all
// calls that an agent takes at once ask for it. The list can be read then.
func TestLargeAnswersTakeBoundedMemory(t *testing.T) {
	const limit = 384 << 20
	_, o := hostileRig(t)
	o.Caller = journal.Recorder{UID: 1000}
	record := func(spec, line string, n int) (id string) {
		l := NewLocal(o)
		defer l.Close()
		id = journal.NewID(time.Now(), "")
		op := journal.Operation{ID: id, Kind: journal.KindDrain, Spec: []byte(spec)}
		lines := []json.RawMessage{}
		for range n {
			lines = append(lines, []byte(line))
		}
		if err := l.Begin(t.Context(), Beginning{Operation: op}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := l.Record(t.Context(), Recorded{Lines: lines}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Millisecond) // the next ID is later
		return id
	}
	short := record("{}", "{}", 1<<19)
	for range 40 {
		record("{}", `{"a":"`+strings.Repeat("x", 200<<10)+`"}`, 1)
	}
	for range 15 {
		record(`"`+strings.Repeat("x", 200<<10)+`"`, `{"a":"`+strings.Repeat("<", 200<<10)+`"}`, 1)
	}
	for name, ask := range map[string]struct{ method, params string }{
		"list":        {"history", `{}`},
		"short lines": {"history", `{"id":"` + short + `"}`},
		"state":       {"state", `{}`},
		"plan":        {"plan", `{"targets":["127.0.0.2"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			var lines []byte
			for id := range maxCalls {
				lines = fmt.Appendf(lines, `{"id":%d,"method":%q,"params":%s}`+"\n", id+1, ask.method, ask.params)
			}
			runtime.GC()
			began := time.Now()
			var largest int
			most := peak(func() {
				largest = answered(t, o, lines)
			})
			t.Logf("%d MiB at most, for answers of %d KiB, in %s", most>>20, largest>>10, time.Since(began).Round(time.Millisecond))
			if most > limit || largest > maxMessage/2 {
				t.Errorf("%d MiB of memory, more than %d, for answers of %d MiB", most>>20, limit>>20, largest>>20)
			}
		})
	}
}

// Whatever is sent, an agent ends with its client, in bounded memory, and changes no file
// but the journal's.
func TestRandomRequests(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	r, o := hostileRig(t)
	before := r.tree()
	began := time.Now()
	conversations := 0
	runtime.GC() // what tests before have left is not of these
	most := peak(func() {
		for ; conversations < 300 && time.Since(began) < 30*time.Second; conversations++ {
			var lines []byte
			for id := range 20 {
				lines = append(lines, randomRequest(random, id)...)
			}
			converse(t, o, lines)
		}
	})
	t.Logf("%d agents, %d MiB of memory at most, %s", conversations, most>>20, time.Since(began).Round(time.Millisecond))
	if most > 256<<20 {
		t.Errorf("%d MiB of memory", most>>20)
	}
	for path, text := range r.tree() {
		if had, known := before[path]; known && had != text || !known && !strings.HasPrefix(path, o.StateDir+"/") {
			t.Errorf("%s was changed", path)
		}
	}
}

// randomRequest is a request with parameters that are changed a little: some of it is of
// another method, or of nothing.
func randomRequest(random *rand.Rand, id int) []byte {
	methods := slices.Sorted(maps.Keys(requests))
	method := methods[random.IntN(len(methods))]
	params := []byte(requests[method])
	for range random.IntN(4) {
		other := []byte(requests[methods[random.IntN(len(methods))]])
		at := random.IntN(len(params) + 1)
		switch random.IntN(6) {
		case 0: // a byte
			if at < len(params) {
				params[at] ^= 1 << random.IntN(8)
			}
		case 1: // a part less
			params = append(params[:at:at], params[at+random.IntN(len(params)-at+1):]...)
		case 2: // a part of another
			from := random.IntN(len(other))
			params = bytes.Join([][]byte{params[:at], other[from:], params[at:]}, nil)
		case 3: // a value
			values := []string{"null", "-1", "1e308", "99999999999999999999", `""`, "[]", "{}", "true", `"\u0000"`, `"\ud800"`, strings.Repeat("[", 200)}
			params = bytes.Join([][]byte{params[:at], []byte(values[random.IntN(len(values))]), params[at:]}, nil)
		case 4: // much of it
			params = bytes.Replace(params, []byte("x"), bytes.Repeat([]byte("x"), 1+random.IntN(100_000)), 1)
		case 5:
			params = other
		}
	}
	line := fmt.Appendf(nil, `{"id":%d,"method":%q,"params":%s}`, id, method, params)
	return append(bytes.ReplaceAll(line, []byte("\n"), nil), '\n')
}
