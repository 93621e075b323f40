package journal

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const host = "192.168.1.10"

var ann = Holder{ID: "20260504-120000.000-abcd", Kind: KindDrain, Targets: []string{host}, User: "ann", Host: "desk", Reason: "new kernel"}

func (j Journal) lock(t *testing.T, name string, h Holder) *Lock {
	t.Helper()
	l, err := j.Lock(t.Context(), name, 0, h)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Who holds a lock is told from the moment it is held, and is not who held it before.
func TestLockTellsItsHolder(t *testing.T) {
	j := newJournal(t)
	l := j.lock(t, host, ann)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a wait would end with another error
	_, err := j.Lock(ctx, host, 0, Holder{User: "eve"})
	var locked *LockedError
	if !errors.As(err, &locked) || !locked.Known || locked.Name != host || locked.Holder.User != "ann" || locked.Holder.Time.IsZero() {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"192.168.1.10 is locked by drain 192.168.1.10 by ann on desk, ", ", \"new kernel\" (operation 20260504-120000.000-abcd)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	bob := ann
	bob.User, bob.Reason = "bob", "" // a shorter line
	if err := record(l.file, bob); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Lock(t.Context(), host, 0, ann); !errors.As(err, &locked) || locked.Holder.User != "bob" || locked.Holder.Reason != "" {
		t.Errorf("error %v", err)
	}
	if err := errors.Join(l.Unlock(), l.Unlock()); err != nil {
		t.Error(err)
	}
	if err := j.lock(t, host, ann).Unlock(); err != nil {
		t.Error(err)
	}
}

// A holder that was killed has left its record, and no lock.
func TestHolderThatWasKilled(t *testing.T) {
	j := newJournal(t)
	l := j.lock(t, host, ann)
	l.file.Close()
	if holders, err := j.Holders(); err != nil || len(holders) != 0 {
		t.Errorf("holders %v, error %v", holders, err)
	}
	// An earlier drainctl looks at it with a shared lock, and is not taken for the holder.
	f, err := os.Open(j.lockPath(host))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(3*lockPoll, func() { f.Close() })
	bob := j.lock(t, host, Holder{User: "bob"})
	if holders, err := j.Holders(); err != nil || len(holders) != 1 || holders[0].User != "bob" {
		t.Errorf("holders %v, error %v", holders, err)
	}
	if err := bob.Unlock(); err != nil {
		t.Error(err)
	}
}

// Lock waits a little for a holder that has not recorded itself, and says so if it does not.
func TestHolderThatIsNotKnown(t *testing.T) {
	j := newJournal(t)
	f, err := tryLock(j.lockPath(host))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	recorded := make(chan error, 1)
	time.AfterFunc(5*lockPoll, func() { recorded <- record(f, ann) })
	var locked *LockedError
	if _, err := j.Lock(t.Context(), host, 0, Holder{}); !errors.As(err, &locked) || !locked.Known || locked.Holder.User != "ann" {
		t.Errorf("error %v", err)
	}
	if err := <-recorded; err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := j.Lock(t.Context(), host, 0, Holder{}); !errors.As(err, &locked) || locked.Known || !strings.Contains(err.Error(), "locked by another drainctl") || time.Since(began) < recordWait {
		t.Errorf("error %v after %s", err, time.Since(began))
	}
}

// An earlier drainctl locks with flock(2). Neither of two versions takes a lock that the other
// one holds, nor removes its file.
func TestLockOfAnEarlierVersion(t *testing.T) {
	j := newJournal(t)
	earlier, err := create(j.lockPath(host), os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	lock := func() error { return unix.Flock(int(earlier.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	if err := lock(); err != nil {
		t.Fatal(err)
	}
	j.SweepLocks()
	j.wantLockFiles(t, host+lockSuffix)
	var locked *LockedError
	if _, err := j.Lock(t.Context(), host, 0, ann); !errors.As(err, &locked) {
		t.Errorf("error %v", err)
	}
	if err := unix.Flock(int(earlier.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	l := j.lock(t, host, ann)
	if err := lock(); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("error %v", err)
	}
	if err := errors.Join(l.Unlock(), earlier.Close()); err != nil {
		t.Error(err)
	}
}

// A lock is waited for as long as was said, or as its context lasts.
func TestLockWaits(t *testing.T) {
	j := newJournal(t)
	l := j.lock(t, host, ann)
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(2*lockPoll, func() { cancel(gaveUp) })
	if _, err := j.Lock(ctx, host, -1, Holder{}); !errors.Is(err, gaveUp) {
		t.Errorf("error %v", err)
	}
	var freed atomic.Bool
	for _, wait := range []time.Duration{-1, time.Minute} {
		freed.Store(false)
		held := l
		time.AfterFunc(2*lockPoll, func() { freed.Store(true); _ = held.Unlock() })
		next, err := j.Lock(t.Context(), host, wait, ann)
		if err != nil || !freed.Load() {
			t.Fatalf("freed %t, error %v", freed.Load(), err)
		}
		l = next
	}
	began := time.Now()
	var locked *LockedError
	if _, err := j.Lock(t.Context(), host, 3*lockPoll, Holder{}); !errors.As(err, &locked) || time.Since(began) < 3*lockPoll {
		t.Errorf("after %s: error %v", time.Since(began), err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

// Lock files do not grow: a thousand holders leave one line, and the last no file.
func TestLockFilesDoNotGrow(t *testing.T) {
	j := newJournal(t)
	path := j.lockPath(host)
	for i := range 1000 {
		l := j.lock(t, host, ann)
		if b, err := os.ReadFile(path); err != nil || bytes.Count(b, []byte("\n")) != 1 || len(b) > 300 {
			t.Fatalf("lock %d: %q, error %v", i, b, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, error %v", info.Mode(), err)
		}
		if i%2 == 0 {
			l.file.Close() // killed
		} else if err := l.Unlock(); err != nil {
			t.Fatal(err)
		}
	}
	j.wantLockFiles(t)
	j.lock(t, "killed", ann).file.Close()
	held := j.lock(t, "held", ann)
	j.SweepLocks()
	j.wantLockFiles(t, "held"+lockSuffix)
	if err := held.Unlock(); err != nil {
		t.Error(err)
	}
}

func (j Journal) wantLockFiles(t *testing.T, want ...string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(j.Dir, "locks"))
	var got []string
	for _, f := range files {
		got = append(got, f.Name())
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("lock files %q, want %q, error %v", got, want, err)
	}
}

// Many take the lock in turn, and sweep. Some are killed while they hold it. Only one
// holds it at a time. Whoever tries again at once often opens a lock file
// that its holder removes in the same instant.
func TestOneHolderAtATime(t *testing.T) {
	for _, test := range []struct {
		name  string
		wait  time.Duration // of one try
		locks int           // that each of them takes
	}{
		{"waiting for it", time.Minute, 50},
		{"trying again at once", 0, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newJournal(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			take := func() (l *Lock, err error) {
				for {
					var locked *LockedError
					if l, err = j.Lock(ctx, host, test.wait, ann); !errors.As(err, &locked) || ctx.Err() != nil {
						return l, err
					}
				}
			}
			var held atomic.Int64
			var wait sync.WaitGroup
			for i := range 8 {
				wait.Go(func() {
					for range test.locks {
						l, err := take()
						if err != nil {
							t.Error(err)
							return
						}
						if n := held.Add(1); n != 1 {
							t.Errorf("%d hold the lock", n)
						}
						time.Sleep(100 * time.Microsecond)
						held.Add(-1)
						if i%2 == 0 {
							l.file.Close() // killed
						} else if err := l.Unlock(); err != nil {
							t.Error(err)
						}
						j.SweepLocks()
					}
				})
			}
			wait.Wait()
			j.wantLockFiles(t)
		})
	}
}

// What a user says of themselves does not pass for what the journal knows of them.
func TestRecorderCannotBeFaked(t *testing.T) {
	eve := &Recorder{UID: 7, Name: "eve"}
	at := time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)
	for _, said := range []string{
		"root on ops, recorded as root (uid 0)", "root (uid 0)", "root, recorded as root", `root" on ops`, "root\n", "root\u00a0on ops", "root\u202e", "root;", strings.Repeat("x ", 250),
	} {
		for _, text := range []string{By(eve, said, "ops"), By(eve, "eve", said), By(eve, said, ""), By(eve, "", said), By(nil, said, said), Who(eve, said, said, said, at)} {
			// Between quotes, Go's own, is what the user said; the rest has no other recorder.
			rest := regexp.MustCompile(`"(\\.|[^"\\])*"`).ReplaceAllString(text, "")
			if strings.Contains(rest, "root") || strings.Contains(rest, "uid 0") || len(text) > 800 {
				t.Errorf("%q is shown as %s", said, text)
			}
		}
	}
	if got := By(eve, "root", "ops"); got != "root on ops, recorded as eve (uid 7)" {
		t.Error(got)
	}
}

// Caller is who called sudo where root runs. Others can set SUDO_UID to anything.
func TestCaller(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user, and must be root for that")
	}
	if !alone(t) {
		return
	}
	t.Setenv("SUDO_UID", "")
	if r, err := Caller(); err != nil || r.UID != 0 {
		t.Errorf("root: %v, error %v", r, err)
	}
	t.Setenv("SUDO_USER", "deploy")
	for uid, want := range map[string]uint32{"1000": 1000, "0": 0} {
		t.Setenv("SUDO_UID", uid)
		if r, err := Caller(); err != nil || r != (Recorder{want, "deploy"}) {
			t.Errorf("root, called with SUDO_UID=%s: %v, error %v", uid, r, err)
		}
	}
	for _, uid := range []string{"x", "-1", "4294967296"} {
		t.Setenv("SUDO_UID", uid)
		if r, err := Caller(); err == nil {
			t.Errorf("root, called with SUDO_UID=%s: %v", uid, r)
		}
	}
	const nobody = 65534
	if err := syscall.Setuid(nobody); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SUDO_UID", "0")
	if r, err := Caller(); err != nil || r.UID != nobody || r.Name == "deploy" {
		t.Errorf("another user, with SUDO_UID=0: %v, error %v", r, err)
	}
}

// What a holder does not say, its text does not have.
func TestHolderText(t *testing.T) {
	at := time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)
	many := slices.Repeat([]string{host}, 1000)
	for _, test := range []struct {
		h    Holder
		want string
	}{
		{Holder{}, "another drainctl, which has not recorded yet what it does"},
		{Holder{Time: at}, "an operation by an unknown user on an unknown host, 2026-05-04 12:00:00"},
		{Holder{Time: at, Recorder: &Recorder{UID: 7, Name: "eve"}, ID: "x"}, "an operation by eve (uid 7), 2026-05-04 12:00:00 (operation x)"},
		{Holder{Time: at, Recorder: &Recorder{UID: 7, Name: "eve"}, Host: "desk"}, "an operation by an unknown user on desk, recorded as eve (uid 7), 2026-05-04 12:00:00"},
		{Holder{Time: at, Recorder: &Recorder{UID: 7, Name: "eve"}, User: "root on ops, recorded as root (uid 0)", Host: "desk"}, `an operation by "root on ops, recorded as root (uid 0)" on desk, recorded as eve (uid 7), 2026-05-04 12:00:00`},
		{Holder{Time: at, Recorder: &Recorder{UID: 7, Name: "eve"}, User: "eve", Host: "ops, recorded as root (uid 0)"}, `an operation by eve on "ops, recorded as root (uid 0)", 2026-05-04 12:00:00`},
		{Holder{Time: at, Kind: KindDrain, Targets: []string{host, "x by root on ops, recorded as root (uid 0)"}, Recorder: &Recorder{UID: 7, Name: "eve"}, User: "root", Host: "lb"}, `drain 192.168.1.10, "x by root on ops, recorded as root (uid 0)" by root on lb, recorded as eve (uid 7), 2026-05-04 12:00:00`},
		{Holder{Time: at, Kind: KindDrain, Targets: []string{"[2001:db8::1]:80", "unix:/run/app.sock"}, User: "jürgen.x", Host: "desk-1.example"}, "drain [2001:db8::1]:80, unix:/run/app.sock by jürgen.x on desk-1.example, 2026-05-04 12:00:00"},
		{Holder{Time: at, Kind: KindDrain, Targets: []string{host}, User: "ann", Host: "desk"}, "drain 192.168.1.10 by ann on desk, 2026-05-04 12:00:00"},
	} {
		if got := test.h.String(); got != test.want {
			t.Errorf("%+v is %q", test.h, got)
		}
	}
	j := newJournal(t)
	j.lock(t, host, Holder{Kind: KindDrain, Targets: many})
	if holders, err := j.Holders(); err != nil || len(holders) != 1 || !strings.Contains(holders[0].String(), "192.168.1.10, and 980 more by") {
		t.Errorf("holders %v, error %v", holders, err)
	}
	for name, h := range map[string]Holder{
		"ID": {ID: "../x"}, "kind": {Kind: "x"}, "user": {User: strings.Repeat("x", 5000)}, "host": {Host: strings.Repeat("x", 5000)},
		"reason": {Reason: strings.Repeat("x", 5000)}, "target": {Targets: []string{strings.Repeat("x", 5000)}}, "targets": {Targets: slices.Repeat(many, 11)},
	} {
		if h.Check() == nil {
			t.Errorf("a holder with such a %s is taken", name)
		}
	}
}

// A lock on a file that is no longer at its path keeps nobody out, and is not taken for one.
func TestLockFileThatWasRemoved(t *testing.T) {
	j := newJournal(t)
	stale := j.lock(t, host, ann)
	if err := os.RemoveAll(j.Dir); err != nil {
		t.Fatal(err)
	}
	l := j.lock(t, host, Holder{User: "bob"})
	if err := stale.Unlock(); err != nil {
		t.Error(err)
	}
	if holders, err := j.Holders(); err != nil || len(holders) != 1 || holders[0].User != "bob" {
		t.Errorf("holders %v, error %v", holders, err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

func TestHolders(t *testing.T) {
	j := newJournal(t)
	names := []string{"../../etc/passwd", "10.0.0.1", "[2001:db8::1]", "a b%c", "unix:/run/app.sock"}
	var locks []*Lock
	for _, name := range append(names, "free") {
		locks = append(locks, j.lock(t, name, ann))
	}
	if err := locks[len(names)].Unlock(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(j.Dir, "locks", "notes.txt"), "")
	if err := locks[0].file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	holders, err := j.Holders()
	if err != nil || len(holders) != len(names) {
		t.Fatalf("holders %v, error %v", holders, err)
	}
	for i, h := range holders {
		if known := i > 0; h.Name != names[i] || (h.User == "ann") != known || h.Time.IsZero() == known {
			t.Errorf("holder %+v of %s", h, names[i])
		}
	}
	for _, l := range locks {
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
	}
	if holders, err := j.Holders(); err != nil || len(holders) != 0 {
		t.Errorf("holders %v, error %v", holders, err)
	}
}

// Holders takes no lock: a lock that nobody holds can be taken at the first attempt.
func TestLookingKeepsNobodyOut(t *testing.T) {
	j := newJournal(t)
	path := j.lockPath(host)
	if err := j.lock(t, host, ann).Unlock(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	looked, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n++ {
			if _, err := j.Holders(); err != nil {
				t.Error(err)
			}
			if n == 10 {
				close(looked)
			}
		}
	}()
	<-looked
	for range 1000 {
		f, err := tryLock(path)
		if err != nil {
			t.Error("a lock that nobody holds was refused:", err)
			break
		}
		f.Close()
	}
	cancel()
	<-done
}

// A process that was killed leaves its text in the lock file. The text does not count for the
// next holder, who has not written its own yet.
func TestTextOfAKilledHolder(t *testing.T) {
	j := newJournal(t)
	j.lock(t, host, ann).file.Close()
	next, err := tryLock(j.lockPath(host))
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	holders, err := j.Holders()
	if err != nil || len(holders) != 1 || holders[0].User != "" || !holders[0].Time.IsZero() {
		t.Errorf("holders %+v, error %v", holders, err)
	}
	var locked *LockedError
	if _, err := j.Lock(t.Context(), host, 0, Holder{}); !errors.As(err, &locked) || locked.Known {
		t.Errorf("error %v", err)
	}
}

// Whatever is in a lock file, it is a holder or none.
func FuzzHolder(f *testing.F) {
	for _, seed := range []string{"", "\n", "{}\n", `{"user":"ann"}` + "\n" + `{"user"`, "null\n", "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) { _ = (&LockedError{Holder: parseHolder(b), Known: true}).Error() })
}
