package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newJournal(t *testing.T) Journal {
	return Journal{Dir: filepath.Join(t.TempDir(), "state", "drainctl")}
}

// update runs a script on the state of a journal.
func (j Journal) update(t *testing.T, c ...func(*State) error) {
	t.Helper()
	for _, do := range c {
		if err := j.Update(t.Context(), do); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// alone runs the test in a process of its own and tells whether this is that process. A
// limit on files holds for the whole process, also for what go test writes in it.
func alone(t *testing.T) bool {
	t.Helper()
	const mark = "DRAINCTL_TEST_ALONE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// limitFiles lets no file of this process grow beyond a size, as a full disk would. The
// test runs [alone].
func limitFiles(t *testing.T, size uint64) {
	t.Helper()
	signal.Ignore(unix.SIGXFSZ)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
}

// The names of operations sort as they followed each other, though the clock was set back.
func TestIDsFollowEachOther(t *testing.T) {
	noon := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	last := ""
	for _, now := range []time.Time{noon, noon, noon.Add(time.Second), noon.Add(-time.Hour), noon.Add(-time.Hour), noon.Add(500 * time.Microsecond), noon.Add(time.Minute)} {
		id := NewID(now, last)
		if id <= last {
			t.Errorf("at %s: %s does not follow %s", now, id, last)
		}
		if checkID(id) != nil || !datedID.MatchString(id) {
			t.Errorf("%s is not taken for an ID", id)
		}
		last = id
	}
	if !strings.HasPrefix(last, "20260504-120100.000-") {
		t.Errorf("the last ID is %s", last)
	}
	if id := NewID(noon, "nonsense, and of some length"); !strings.HasPrefix(id, "20260504-120000.000-") {
		t.Errorf("after nonsense: %s", id)
	}
}

// Reading creates nothing, and finds an empty state.
func TestStateThatIsNotThere(t *testing.T) {
	j := newJournal(t)
	if st, err := j.State(); err != nil || !reflect.DeepEqual(st, State{Version: stateVersion}) {
		t.Errorf("state %+v, error %v", st, err)
	}
	entries, unreadable, err := j.List(t.Context())
	holders, herr := j.Holders()
	if len(entries)+len(unreadable)+len(holders) > 0 || err != nil || herr != nil {
		t.Errorf("%v, %v, %v, errors %v, %v", entries, unreadable, holders, err, herr)
	}
	if err := j.Prune(func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(j.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading has created %s: %v", j.Dir, err)
	}
}

// Every field of the state is what it was after it was written and read.
func TestStateSurvives(t *testing.T) {
	j := newJournal(t)
	at := time.Date(2026, 5, 4, 12, 0, 0, 123456789, time.UTC)
	op := Operation{
		ID: "1", Kind: KindDrain, Targets: []string{"10.0.0.1", "web"}, Conf: conf, Recorder: &Recorder{1000, "deploy"}, User: "ann", Host: "desk", Reason: "disk <3> é",
		Began: at, Spec: json.RawMessage(`{"timeout":1}`), Servers: []Located{{one, conf, 3, true}},
		Result: ResultPartial, Ended: at, Open: 7, NotDrained: []Server{one}, Progress: json.RawMessage(`{"done":1}`),
	}
	change := Change{"1", conf, 3, 40, "a", "b", " down", " x", true}
	want := State{stateVersion, "1", []Operation{op}, []Mark{{one, change, &change}}, map[string]FileHashes{conf: {"a", "b"}}}
	for _, v := range []any{op, op.Servers[0], want, want.Marks[0], change, want.Edits[conf]} {
		for i := range reflect.TypeOf(v).NumField() {
			if reflect.ValueOf(v).Field(i).IsZero() {
				t.Errorf("%T.%s is not set here", v, reflect.TypeOf(v).Field(i).Name)
			}
		}
	}
	j.update(t, func(s *State) error { *s = want; return nil })
	got, err := j.State()
	if err != nil {
		t.Fatal(err)
	}
	var spec, progress any
	if json.Unmarshal(got.Operations[0].Spec, &spec) != nil || fmt.Sprint(spec) != "map[timeout:1]" {
		t.Errorf("spec %s", got.Operations[0].Spec)
	}
	if json.Unmarshal(got.Operations[0].Progress, &progress) != nil || fmt.Sprint(progress) != "map[done:1]" {
		t.Errorf("progress %s", got.Operations[0].Progress)
	}
	got.Operations[0].Spec, got.Operations[0].Progress = op.Spec, op.Progress
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for path, mode := range map[string]fs.FileMode{"": 0o755, "state.json": 0o600, "state.lock": 0o600} {
		if info, err := os.Stat(filepath.Join(j.Dir, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, error %v", path, info.Mode(), err)
		}
	}
}

// A state that was cut short anywhere, or is not drainctl's, is told as such, is not
// written over, and can be set aside.
func TestUnreadableState(t *testing.T) {
	j := newJournal(t)
	j.update(t, begin("1", KindDrain, one), mark("1", "a", "b", one, 40))
	whole, err := os.ReadFile(j.statePath())
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{"null", "[]", "{}", "\x00\x00", `{"version":1}`, `{"version":"2"}`, `{"version":2,"operations":[{"id":"../x"}]}`, string(whole) + "}"}
	for cut := range len(whole) - 1 { // the last byte is the newline after it
		texts = append(texts, string(whole[:cut]))
	}
	var unreadable *UnreadableError
	for _, text := range texts {
		write(t, j.statePath(), text)
		if _, err := j.State(); !errors.As(err, &unreadable) || unreadable.Path != j.statePath() {
			t.Errorf("%q: error %v", text, err)
		}
	}
	text := texts[len(texts)/2]
	write(t, j.statePath(), text)
	if err := j.Update(t.Context(), begin("2", KindDrain)); !errors.As(err, &unreadable) {
		t.Errorf("error %v", err)
	}
	path, err := j.SetAside(t.Context())
	if b, rerr := os.ReadFile(path); err != nil || string(b) != text || !strings.HasPrefix(path, j.statePath()+".unreadable-20") {
		t.Errorf("set aside as %q: error %v, %v", path, err, rerr)
	}
	if st, err := j.State(); err != nil || len(st.Operations) != 0 {
		t.Errorf("state %+v, error %v", st, err)
	}
	if path, err := j.SetAside(t.Context()); path != "" || err != nil {
		t.Errorf("a readable state was set aside as %q: error %v", path, err)
	}
}

// A state of a later drainctl is told as such. It is neither written over nor set aside.
func TestStateOfALaterVersion(t *testing.T) {
	j := newJournal(t)
	text := `{"version":3,"operations":"of another kind"}`
	write(t, j.statePath(), text)
	_, err := j.State()
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), j.statePath()) {
		t.Errorf("error %v", err)
	}
	if err := j.Update(t.Context(), begin("1", KindDrain)); !errors.Is(err, ErrVersion) {
		t.Errorf("error %v", err)
	}
	if path, err := j.SetAside(t.Context()); path != "" || !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "update drainctl") {
		t.Errorf("set aside as %q: error %v", path, err)
	}
	if b, err := os.ReadFile(j.statePath()); err != nil || string(b) != text {
		t.Errorf("the state is %q, error %v", b, err)
	}
}

// What is no regular file is an error, and nobody hangs in it.
func TestStateThatIsNoFile(t *testing.T) {
	j := newJournal(t)
	if err := makeDirs(j.Dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(j.statePath(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := j.State(); err == nil {
		t.Error("a pipe was read")
	}
}

// A user without rights is told so: fs.ErrPermission is among the causes.
func TestStateThatMayNotBeRead(t *testing.T) {
	j := newJournal(t)
	j.update(t, begin("1", KindDrain))
	if err := os.Chmod(j.statePath(), 0); err != nil {
		t.Fatal(err)
	}
	var err error
	asUser(t, func() { _, err = j.State() })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v", err)
	}
}

// asUser runs f without root's rights: on a thread of its own, which ends with it.
func asUser(t *testing.T, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETUID, 65534, 0, 0); errno != 0 {
				t.Error(errno)
			}
		}
		f()
	}()
	<-done
}

// The directories of a journal have the same mode under every umask.
func TestModeOfDirectories(t *testing.T) {
	j := newJournal(t)
	defer unix.Umask(unix.Umask(0o077))
	j.update(t, begin("1", KindDrain))
	for _, dir := range []string{j.Dir, filepath.Dir(j.Dir)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, error %v", dir, info.Mode(), err)
		}
	}
}

// A failed change writes nothing; one that changes nothing does not either.
func TestUpdateThatWritesNothing(t *testing.T) {
	j := newJournal(t)
	j.update(t, begin("1", KindDrain, one))
	before, err := os.Stat(j.statePath())
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	if err := j.Update(t.Context(), func(s *State) error { s.Operations = nil; return refused }); !errors.Is(err, refused) {
		t.Errorf("error %v", err)
	}
	j.update(t, func(s *State) error { return nil })
	if after, err := os.Stat(j.statePath()); err != nil || !os.SameFile(before, after) {
		t.Errorf("the state was replaced: %v", err)
	}
}

// Without room on the disk the state is as it was, and nothing is left behind.
func TestUpdateOnAFullDisk(t *testing.T) {
	if !alone(t) {
		return
	}
	j := newJournal(t)
	j.update(t, begin("1", KindDrain, one))
	info, err := os.Stat(j.statePath())
	if err != nil {
		t.Fatal(err)
	}
	limitFiles(t, uint64(info.Size())+3)
	if err := j.Update(t.Context(), begin("2", KindDrain, one)); !errors.Is(err, unix.EFBIG) {
		t.Errorf("error %v", err)
	}
	if st, err := j.State(); err != nil || ids(st.Operations) != "1" {
		t.Errorf("state %+v, error %v", st, err)
	}
	if _, err := os.Stat(j.statePath() + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file: %v", err)
	}
}

// What a crash has left of a write is no hindrance, never the state, and gone after the next
// update. Only root can read the state then, whatever mode it had.
func TestUpdateAfterACrash(t *testing.T) {
	j := newJournal(t)
	j.update(t, begin("1", KindDrain, one))
	write(t, j.statePath()+".new", strings.Repeat("x", 10_000))
	if err := os.Chmod(j.statePath(), 0o644); err != nil {
		t.Fatal(err)
	}
	j.update(t, begin("2", KindDrain, one))
	if st, err := j.State(); err != nil || ids(st.Operations) != "1 2" {
		t.Errorf("state %+v, error %v", st, err)
	}
	if info, err := os.Stat(j.statePath()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if files, err := filepath.Glob(j.Dir + "/*state.json*"); err != nil || len(files) != 1 {
		t.Errorf("files %q, error %v", files, err)
	}
}

// Updates at the same time follow each other: none is lost.
func TestUpdatesAtTheSameTime(t *testing.T) {
	j := newJournal(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for k := range 5 {
				if err := j.Update(t.Context(), begin(fmt.Sprintf("%d-%d", i, k), KindDrain, one)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if st, err := j.State(); err != nil || len(st.Operations) != 40 {
		t.Errorf("%d operations, error %v", len(st.Operations), err)
	}
}

// Many processes update the state without a pause. Another one gets its turn.
func TestUpdatesInTurn(t *testing.T) {
	j := newJournal(t)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	const writers = 40
	for i := range writers {
		j.update(t, begin(fmt.Sprint(i), KindRun))
	}
	for i := range writers {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_ = j.Update(ctx, func(s *State) error { return s.Record(fmt.Sprint(i), fmt.Append(nil, n)) })
			}
		})
	}
	for i := range 3 {
		if err := j.Update(ctx, begin(fmt.Sprint(writers+i), KindRun)); err != nil {
			t.Error(err)
		}
	}
}

// An update waits no longer than its context.
func TestUpdateWaitsForItsContext(t *testing.T) {
	j := newJournal(t)
	held, err := acquire(t.Context(), filepath.Join(j.Dir, "state.lock"), "the state", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := j.Update(ctx, begin("1", KindDrain)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// An update that was canceled while it waited leaves no thread and no open file behind.
func TestCanceledUpdateLeavesNothing(t *testing.T) {
	j := newJournal(t)
	held, err := acquire(t.Context(), filepath.Join(j.Dir, "state.lock"), "the state", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	count := func(what string) int {
		t.Helper()
		entries, err := os.ReadDir("/proc/self/" + what)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	threads, files := count("task"), count("fd")
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if err := j.Update(ctx, begin("1", KindDrain)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		cancel()
	}
	if threads, files := count("task")-threads, count("fd")-files; threads > 10 || files > 0 {
		t.Errorf("%d threads and %d open files are left", threads, files)
	}
}

// An operation whose directory is removed while it runs is told so, and no journal
// without its beginning appears.
func TestDirectoryRemovedDuringARun(t *testing.T) {
	j := newJournal(t)
	j.update(t, begin("1", KindDrain, one))
	if err := j.Create("1", Recorder{}, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(j.Dir); err != nil {
		t.Fatal(err)
	}
	if err := j.Update(t.Context(), mark("1", "a", "b", one, 40)); !errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
	if err := j.Append("1", []byte(`{}`)); !errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(j.statePath()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", j.statePath(), err)
	}
}

// Whatever is in a state file, it is read, or told to be unreadable; and what was read is
// the same after it was written.
func FuzzState(f *testing.F) {
	for _, seed := range []string{"", "null", "{}", `{"version":2}`, `{"version":99}`, `{"version":2,"operations":[{"id":"1","kind":"undrain","servers":[{"upstream":"a"}]},{"id":"1"}],"marks":[{"operation":"1"}]}`, `{"version":2,"edits":{"/a":{"sha256_before":"a"}}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState(b)
		if err != nil {
			return
		}
		first, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseState(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := json.Marshal(again); err != nil || string(first) != string(second) {
			t.Fatalf("%s\n%s\n%v", first, second, err)
		}
		st.Unfinished()
		for _, o := range st.Operations {
			_ = st.Stage(o.ID, Edit{Path: conf, Splices: []Splice{{Server: one, New: " down"}}})
			_ = st.End(o.ID, Ending{Result: ResultDone, Supersede: []string{"1"}})
		}
	})
}
