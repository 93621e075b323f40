package journal

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var someLines = []json.RawMessage{[]byte(`{"begin":1}`), []byte("{\n \"step\": \"wait\"\n}"), []byte(`{"end":"done"}`)}

// A crash or a full disk at any byte leaves a history that can be read: the lines before it
// are there, the truncated one is counted, and what is appended is read too.
func TestHistoryTruncatedAtEveryByte(t *testing.T) {
	j := newJournal(t)
	if err := j.Create("1", Recorder{}, someLines...); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(j.historyPath("1"))
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut <= len(whole); cut++ {
		write(t, j.historyPath("1"), string(whole[:cut]))
		complete, short := strings.Count(string(whole[:cut]), "\n"), 0
		if cut > 0 && whole[cut-1] != '\n' {
			short = 1
		}
		if lines, truncated, err := read(j, "1"); err != nil || len(lines) != complete || truncated != short {
			t.Fatalf("cut at byte %d: %d lines and %d truncated, want %d and %d, error %v", cut, len(lines), truncated, complete, short, err)
		}
		if err := j.Append("1", []byte(`{"more":1}`)); err != nil {
			t.Fatal(err)
		}
		lines, truncated, err := read(j, "1")
		if err != nil || len(lines)+truncated != complete+short+1 || string(lines[len(lines)-1]) != `{"more":1}` {
			t.Fatalf("cut at byte %d, and gone on: %s and %d truncated, error %v", cut, lines, truncated, err)
		}
	}
}

func TestHistory(t *testing.T) {
	j := newJournal(t)
	for _, id := range []string{"2", "1"} {
		if err := j.Create(id, Recorder{}, someLines[0]); err != nil {
			t.Fatal(err)
		}
		if err := j.Append(id, someLines[1], someLines[2]); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Create("1", Recorder{}, someLines[0]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("begun twice: error %v", err)
	}
	lines, truncated, err := read(j, "1")
	if err != nil || len(lines) != 4 || truncated != 0 || string(lines[2]) != `{"step":"wait"}` {
		t.Errorf("%s, %d truncated, error %v", lines, truncated, err)
	}
	write(t, j.historyPath("0"), "\x00\x00\x00")
	write(t, j.historyPath("3"), "")
	write(t, j.historyPath("4"), "{}\n[]\nnull\n\n{\"a\":1}{\n{\"end\":1}\n{\"cut")
	write(t, filepath.Join(j.historyDir(), "notes.txt"), "no history")
	if err := os.Mkdir(j.historyPath("5"), 0o755); err != nil {
		t.Fatal(err)
	}
	entries, unreadable, err := j.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got string
	for _, e := range entries {
		got += fmt.Sprintf("%s %s %s %d, ", e.ID, e.First, e.Last, e.Truncated)
	}
	if want := `1 {"begin":1} {"end":"done"} 0, 2 {"begin":1} {"end":"done"} 0, 4 {} {"end":1} 4, `; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if want := []string{j.historyPath("0"), j.historyPath("3"), j.historyPath("5")}; !slices.Equal(unreadable, want) {
		t.Errorf("unreadable %v, want %v", unreadable, want)
	}
	if _, err := j.Read("6"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if info, err := os.Stat(j.historyPath("1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := j.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// An ID is a name in the history's directory, and nothing else.
func TestHistoryOfAPath(t *testing.T) {
	j := newJournal(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", "/etc/x", "a\x00b", "a b"} {
		_, rerr := j.Read(id)
		for _, err := range []error{j.Create(id, Recorder{}, []byte(`{}`)), j.Append(id, []byte(`{}`)), j.Rename(id, "1"), j.Rename("1", id), rerr} {
			if err == nil || !strings.Contains(err.Error(), "is not the ID of an operation") {
				t.Errorf("%q: error %v", id, err)
			}
		}
	}
}

// A history is found by its ID, and has another one when it is renamed.
func TestRenamedHistory(t *testing.T) {
	j := newJournal(t)
	if err := errors.Join(j.Create("1", Recorder{}, someLines...), j.Rename("1", "2"), j.Rename("1", "3")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(j.Dir, "x"+historySuffix), "{}\n")
	for id, want := range map[string]bool{"1": false, "2": true, "3": false, "../x": false} {
		if j.HasHistory(id) != want {
			t.Errorf("a history of %s: %t", id, !want)
		}
	}
}

// Lines that cannot be written whole, or are no JSON, leave the file as it was.
func TestHistoryOnAFullDisk(t *testing.T) {
	if !alone(t) {
		return
	}
	j := newJournal(t)
	if err := j.Create("1", Recorder{}, someLines[0]); err != nil {
		t.Fatal(err)
	}
	if err := j.Append("1", []byte(`{"a":1}`), []byte(`{"b`)); err == nil {
		t.Error("half a line was taken")
	}
	if err := j.Create("2", Recorder{}, []byte("no")); err == nil {
		t.Error("a line that is no JSON was taken")
	}
	limitFiles(t, uint64(len(someLines[0]))+47)
	if err := j.Append("1", someLines[2]); !errors.Is(err, unix.EFBIG) {
		t.Errorf("error %v", err)
	}
	if err := j.Create("2", Recorder{}, []byte(`{"a":"long enough"}`)); !errors.Is(err, unix.EFBIG) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(j.historyPath("1")); err != nil || !strings.HasSuffix(string(b), "}}\n"+string(someLines[0])+"\n") {
		t.Errorf("%q, error %v", b, err)
	}
	if _, err := os.Stat(j.historyPath("2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what could not begin is there: %v", err)
	}
}

// The history keeps so many operations, none older than a year, all that stand, and what is not
// its own.
func TestPrune(t *testing.T) {
	now := time.Now()
	var made []string
	for _, age := range []time.Duration{MaxAge + time.Hour, MaxAge + time.Minute, 10 * time.Hour, 9 * time.Hour, 8 * time.Hour, 7 * time.Hour} {
		made = append(made, NewID(now.Add(-age), ""))
	}
	for _, c := range []struct {
		keep  int
		stand int // index of one that stands
		left  []int
	}{
		{0, -1, []int{2, 3, 4, 5}},
		{10, 0, []int{0, 2, 3, 4, 5}},
		{2, -1, []int{4, 5}},
		{2, 3, []int{3, 4, 5}},
		{1, -1, []int{5}},
	} {
		j := newJournal(t)
		j.Keep = c.keep
		for _, id := range append([]string{"0-mine", "notes"}, made...) {
			write(t, j.historyPath(id), "{}\n")
		}
		if c.keep > 0 {
			j.Keep++ // "notes" is the latest name
		}
		if err := j.Prune(func(id string) bool { return c.stand >= 0 && id == made[c.stand] }); err != nil {
			t.Fatal(err)
		}
		want := []string{"0-mine"}
		for _, i := range c.left {
			want = append(want, made[i])
		}
		if got, err := j.ids(); err != nil || !slices.Equal(got, append(want, "notes")) {
			t.Errorf("keep %d: %v, want %v, error %v", c.keep, got, want, err)
		}
	}
}

// opens counts how often files in dir are opened while f runs.
func opens(t *testing.T, dir string, f func()) map[string]int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	f()
	count := map[string]int{}
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			return count
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < n; {
			size := int(binary.NativeEndian.Uint32(b[at+12:]))
			name := strings.TrimRight(string(b[at+unix.SizeofInotifyEvent:at+unix.SizeofInotifyEvent+size]), "\x00")
			if name != "" { // the directory itself
				count[name]++
			}
			at += unix.SizeofInotifyEvent + size
		}
	}
}

// An operation costs the same with 10,000 others in the history: no file but its own
// is opened.
func TestLongHistoryIsNotOpened(t *testing.T) {
	j := newJournal(t)
	j.Keep = 9_000
	if err := makeDirs(j.historyDir()); err != nil {
		t.Fatal(err)
	}
	last := ""
	for i := range 10_000 {
		last = NewID(time.Now().Add(time.Duration(i-10_000)*time.Second), last)
		if err := os.Symlink("nowhere", j.historyPath(last)); err != nil {
			t.Fatal(err)
		}
	}
	id := NewID(time.Now(), last)
	count := opens(t, j.historyDir(), func() {
		j.update(t, begin(id, KindDrain, one))
		err := errors.Join(j.Create(id, Recorder{}, someLines[0]), j.Prune(func(other string) bool { return other == id }))
		j.update(t, mark(id, "a", "b", one, 40))
		err = errors.Join(err, j.Append(id, someLines[1]))
		j.update(t, end(id, ResultDone))
		if err := errors.Join(err, j.Append(id, someLines[2])); err != nil {
			t.Fatal(err)
		}
	})
	if len(count) != 1 || count[id+historySuffix] == 0 {
		t.Errorf("opened %v", count)
	}
	// One more than it keeps: Prune removes a thousand at most.
	if left, err := j.ids(); err != nil || len(left) != 9_001 {
		t.Errorf("%d are left, error %v", len(left), err)
	}
}

// Whatever is in a file of the history, each line is read or counted.
func FuzzHistory(f *testing.F) {
	for _, seed := range []string{"", "\n", "{}", "{}\n", "{\"a\":1}\n{\"b", "\x00\x00\x00", "[]\nnull\n{}\n", "{}{}\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, truncated := parseLines(b)
		if most := strings.Count(string(b), "\n") + 1; len(lines)+truncated > most {
			t.Fatalf("%d lines and %d truncated out of %d", len(lines), truncated, most)
		}
		whole := slices.Concat(b, []byte("\n{\"last\":1}\n"))
		if lines, _ := parseLines(whole); string(lines[len(lines)-1]) != `{"last":1}` {
			t.Fatalf("the last line is lost: %s", lines)
		}
	})
}

// read is all lines of a history, the one that says who recorded it among them.
func read(j Journal, id string) (lines []json.RawMessage, truncated int, err error) {
	h, err := j.Read(id)
	if h.Recorder != nil {
		lines = append(lines, json.RawMessage("{}"))
	}
	return append(lines, h.Lines...), h.Truncated, err
}

// A file of an earlier version has no recorder, though the caller's first line names one.
func TestRecorderOfAHistory(t *testing.T) {
	j := newJournal(t)
	if err := j.Create("1", Recorder{UID: 1000}, []byte(`{"event":"recorded","recorder":{"uid":0}}`)); err != nil {
		t.Fatal(err)
	}
	write(t, j.historyPath("2"), `{"event":"operation_started","recorder":{"uid":0}}`+"\n")
	for id, want := range map[string]*Recorder{"1": {UID: 1000}, "2": nil} {
		if h, err := j.Read(id); err != nil || !h.Recorder.IsSame(want) || len(h.Lines) != 1 {
			t.Errorf("history %s: %s of %v, error %v", id, h.Lines, h.Recorder, err)
		}
	}
}

// A user other than root writes no line beyond maxLine; the journal itself says who writes.
func TestLongLinesAreRefused(t *testing.T) {
	fits := []byte(`"` + strings.Repeat("x", maxLine-10) + `"`)
	long := []byte(`{"a":"` + strings.Repeat("x", maxLine) + `"}`)
	for _, uid := range []uint32{0, 1000} {
		j := newJournal(t)
		if err := j.Create("1", Recorder{UID: uid}, fits); err != nil {
			t.Fatal(err)
		}
		if err := j.Append("1", fits); err != nil {
			t.Errorf("uid %d: error %v", uid, err)
		}
		before, err := os.ReadFile(j.historyPath("1"))
		if err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"begun": j.Create("2", Recorder{UID: uid}, long), "continued": j.Append("1", fits, long)} {
			if refused := uid != 0; (err != nil) != refused || err != nil && len(err.Error()) > 200 {
				t.Errorf("uid %d: %s with a line of %d bytes: error %.200v", uid, what, len(long), err)
			}
		}
		if uid == 0 {
			continue
		}
		if after, err := os.ReadFile(j.historyPath("1")); err != nil || len(after) != len(before) {
			t.Errorf("%d bytes were written, error %v", len(after)-len(before), err)
		}
		if _, err := os.Stat(j.historyPath("2")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what was refused is there: %v", err)
		}
	}
	j := newJournal(t)
	write(t, j.historyPath("1"), `{"begin":"by an earlier version"}`+"\n")
	if err := j.Append("1", long); err != nil {
		t.Errorf("a file of an earlier version: error %v", err)
	}
}

// In the list each user other than root has a budget, for the latest of their operations.
// It counts what the answer takes, in which < and & are longer.
func TestListIsBounded(t *testing.T) {
	j := newJournal(t)
	line := []byte(`{"a":"` + strings.Repeat("<", maxLine-100) + `"}`)
	each := 2 * (6*len(line) + 100)
	fit := maxListed / each
	id := func(n int) string { return fmt.Sprintf("%03d", n) }
	create := func(n int, uid uint32) {
		t.Helper()
		if err := errors.Join(j.Create(id(n), Recorder{UID: uid}, line), j.Append(id(n), line)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range fit + 4 {
		create(n, 1000)
	}
	create(100, 0)
	create(101, 1001)
	if err := j.Create("102", Recorder{UID: 1000}, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	for n := range fit + 4 {
		create(200+n, 0)
	}
	entries, unreadable, err := j.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	listed := map[uint32]int{}
	last := ""
	for _, e := range entries {
		listed[e.Recorder.UID]++
		if e.ID <= last {
			t.Errorf("%s comes after %s", e.ID, last)
		}
		last = e.ID
	}
	left := len(unreadable)
	if left < 4 || left > 6 || listed[1000] != fit+5-left || listed[0] != fit+5 || listed[1001] != 1 {
		t.Errorf("listed %v, of %d that fit, and %d not", listed, fit, left)
	}
	for i, path := range unreadable {
		if want := j.historyPath(id(i)); path != want {
			t.Errorf("not listed: %s, want %s", path, want)
		}
	}
	var size int
	for _, e := range entries {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if e.Recorder.UID == 1000 {
			size += len(text)
		}
	}
	if size > maxListed {
		t.Errorf("a user takes %d bytes of the list, more than %d", size, maxListed)
	}
}
