package drain

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/spec"
)

// traced names, in the environment of a test's child, the rig that it works on.
const traced = "DRAINCTL_TEST_TRACED"

// TestDurability drains and undrains with every write, fsync and rename recorded, and
// looks at what is on the disk for certain after each of them, if the power fails then.
func TestDurability(t *testing.T) {
	if where := os.Getenv(traced); where != "" {
		kind, rest, _ := strings.Cut(where, " ")
		dir, addr, _ := strings.Cut(rest, " ")
		r := &rig{t: t, dir: dir, conf: filepath.Join(dir, "nginx.conf"), unit: &fakeUnit{addr: addr}}
		sp := r.spec(spec.Kind(kind))
		sp.Service, sp.Counter = "", spec.CounterLB
		if _, err := r.run(sp); err != nil {
			t.Fatal(err)
		}
		return
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("this test needs strace: testdata/lab/setup.sh installs it")
	}
	r := newRig(t)
	for _, kind := range []spec.Kind{spec.Drain, spec.Undrain} {
		log := filepath.Join(t.TempDir(), "log")
		d := newDisk(t, r.dir)
		cmd := exec.Command("strace", "-f", "-y", "-s", "1000000", "-o", log,
			"-e", "trace=openat,mkdirat,write,pwrite64,ftruncate,fsync,fdatasync,renameat,renameat2,rename,unlinkat", os.Args[0], "-test.run=^TestDurability$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", traced, kind, r.dir, r.unit.addr))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, out)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		d.replay(string(text), r.conf, filepath.Join(r.stateDir(), "state.json"))
	}
}

// A disk is the files below a directory, as they are and as they are after a power failure.
type disk struct {
	t       *testing.T
	dir     string
	names   map[string]*diskFile   // as they are
	maybe   map[string][]*diskFile // what else a name may be: it was that since its directory was last synced
	entries map[string]bool        // directories that are made and whose parent is not synced
}

// A diskFile is one file. What is not synced may be lost, or half lost.
type diskFile struct {
	text   string
	synced bool
}

func newDisk(t *testing.T, dir string) *disk {
	d := &disk{t, dir, map[string]*diskFile{}, map[string][]*diskFile{}, map[string]bool{}}
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			text, _ := os.ReadFile(path)
			d.names[path] = &diskFile{string(text), true}
		}
		return nil
	})
	return d
}

// certain is the file at path that is there, whole, whatever happens; nil: none is.
func (d *disk) certain(path string) *diskFile {
	f := d.names[path]
	for dir := filepath.Dir(path); len(dir) >= len(d.dir); dir = filepath.Dir(dir) {
		if d.entries[dir] {
			return nil
		}
	}
	if f == nil || !f.synced || len(d.maybe[path]) > 0 {
		return nil
	}
	return f
}

// whole makes sure that path is a whole file: each that it may be is.
func (d *disk) whole(path, after string) {
	for _, f := range append(d.maybe[path], d.names[path]) {
		if f == nil || !f.synced {
			d.t.Errorf("after %s: %s may be lost, or not whole", after, path)
		}
	}
}

var (
	callLine  = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (-?\d+)`)
	begunLine = regexp.MustCompile(`^(\d+) +(\w+\(.*) <unfinished \.\.\.>$`)
	endedLine = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	fdPath    = regexp.MustCompile(`^\d+<([^>]*)>`)
	quoted    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
)

// replay makes sure of conf and state after each call of a trace.
func (d *disk) replay(trace, conf, state string) {
	begun := map[string]string{}
	_, hadState := d.names[state]
	edited, calls := 0, 0
	for line := range strings.Lines(trace) {
		line = strings.TrimRight(line, "\n")
		if m := begunLine.FindStringSubmatch(line); m != nil {
			begun[m[1]] = m[2]
			continue
		}
		if m := endedLine.FindStringSubmatch(line); m != nil {
			line = m[1] + " " + begun[m[1]] + m[2]
		}
		m := callLine.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(m[4], "-") || !strings.Contains(m[3], d.dir) {
			continue
		}
		call, args := m[2], m[3]
		var words []string
		for _, q := range quoted.FindAllString(args, -1) {
			w, err := strconv.Unquote(q)
			if err != nil {
				d.t.Fatalf("%s: %v", q, err)
			}
			words = append(words, w)
		}
		fd := ""
		if f := fdPath.FindStringSubmatch(args); f != nil {
			fd = f[1]
		}
		last := words
		if len(last) > 0 {
			last = words[len(words)-1:]
		}
		renamed := strings.HasPrefix(call, "rename")
		if renamed && last[0] == conf {
			edited++
			// The mark is on the disk before the edit is.
			if f := d.certain(state); f == nil || !strings.Contains(f.text, `"edits"`) {
				d.t.Errorf("%s is edited before the journal is certain to say so", conf)
			}
			for path, f := range d.names {
				if strings.HasSuffix(path, ".jsonl") && d.certain(path) != f {
					d.t.Errorf("%s is edited before %s is certain", conf, path)
				}
			}
		}
		d.apply(call, args, fd, words)
		calls++
		d.whole(conf, line[:min(len(line), 120)])
		if hadState = hadState || d.certain(state) != nil; hadState {
			d.whole(state, line[:min(len(line), 120)])
		}
	}
	if edited != 1 || calls < 20 {
		d.t.Errorf("%d edits in %d calls", edited, calls)
	}
	for path, f := range d.names {
		if (path == conf || path == state || strings.HasSuffix(path, ".jsonl")) && d.certain(path) != f {
			d.t.Errorf("in the end %s may be lost", path)
		}
	}
}

// apply does what a call has done.
func (d *disk) apply(call, args, fd string, words []string) {
	put := func(path string, f *diskFile) {
		d.maybe[path] = append(d.maybe[path], d.names[path])
		d.names[path] = f
	}
	switch call {
	case "openat":
		path := words[len(words)-1]
		switch {
		case !strings.Contains(args, "O_CREAT") || strings.Contains(args, "O_DIRECTORY"):
		case d.names[path] == nil:
			put(path, &diskFile{})
		case strings.Contains(args, "O_TRUNC"):
			*d.names[path] = diskFile{}
		}
	case "mkdirat":
		d.entries[words[len(words)-1]] = true
	case "write", "pwrite64":
		if f := d.names[fd]; f != nil {
			f.text, f.synced = f.text+words[len(words)-1], false
		}
	case "ftruncate":
		if f := d.names[fd]; f != nil {
			f.synced = false
		}
	case "unlinkat":
		put(words[len(words)-1], nil)
	case "fsync", "fdatasync":
		if f := d.names[fd]; f != nil {
			f.synced = true
			return
		}
		for path := range d.maybe {
			if filepath.Dir(path) == fd {
				delete(d.maybe, path)
			}
		}
		for dir := range d.entries {
			if filepath.Dir(dir) == fd {
				delete(d.entries, dir)
			}
		}
	default: // a rename
		from, to := words[0], words[1]
		f := d.names[from]
		put(from, nil)
		put(to, f)
	}
}
