package lab_test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

const stateDir = "/var/lib/drainctl"

// seenByNginx is everything below /etc/nginx as the load balancer itself sees it, with
// what is mounted there.
func seenByNginx(t *testing.T, l *lab.Lab) string {
	t.Helper()
	return mustRun(t, l.LB, "sh", "-ec", `cd /etc/nginx
	  find . ! -type d -printf '%P %y %m %U:%G %l\n' | sort
	  find . -type f -print0 | sort -z | xargs -0 sha256sum`)
}

// mount runs a script that mounts something on the load balancer, and unmounts it when
// the test ends.
func mount(t *testing.T, l *lab.Lab, at, script string) {
	t.Helper()
	mustRun(t, l.LB, "sh", "-ec", script)
	t.Cleanup(func() {
		if _, err := l.LB.Run(context.Background(), "umount", "-l", at); err != nil {
			t.Error(err)
		}
	})
}

// A configuration that cannot be written is found before anything is touched.
func TestReadOnlyFileSystem(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	mount(t, l, "/etc/nginx", "mount --bind /etc/nginx /etc/nginx; mount -o remount,bind,ro /etc/nginx")
	before, serving := seenByNginx(t, l), workers(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 4, lab.NginxConfPath, "read-only file system", "nothing was touched")
	sameSeen(t, l, before)
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
}

// The file system becomes read-only, as a disk with errors does, while the drain waits:
// it cannot be taken back. What stands is said, and is put back once that can be done.
func TestReadOnlyInTheWait(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	mount(t, l, "/etc/nginx", "mount --bind /etc/nginx /etc/nginx")
	before := seenByNginx(t, l)
	s := openStream(t, l, app)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
	c.until(" open, from 192.168.1.2 ")
	drained := seenByNginx(t, l)
	mustRun(t, l.LB, "mount", "-o", "remount,bind,ro", "/etc/nginx")
	c.signal(unix.SIGINT)
	c.wait().wants(t, 5, "interrupted", "read-only file system", "marked down", "not touched by this run", "drainctl undrain 192.168.1.10")
	sameSeen(t, l, drained)
	drainctl(t, l, "status").wants(t, 0, "interrupted")
	drainctl(t, l, "undrain", app.Addr).wants(t, 4, "read-only file system", "nothing was touched")
	mustRun(t, l.LB, "mount", "-o", "remount,bind,rw", "/etc/nginx")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameSeen(t, l, before)
	s.echoes(t)
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

func sameSeen(t *testing.T, l *lab.Lab, before string) {
	t.Helper()
	if now := seenByNginx(t, l); now != before {
		t.Errorf("the configuration is not as wanted:\n%s\nwant\n%s", now, before)
	}
	mustRun(t, l.LB, "nginx", "-t")
}

// Without root, and without sudo, nothing is touched.
func TestNoPermission(t *testing.T) {
	l := labFor(t)
	files, serving := configuration(t, l), workers(t, l)
	on(t, l, "runuser", "-u", "nobody", "--", "drainctl", "drain", l.Apps[0].Addr, "-s", lab.AppUnit).
		wants(t, 4, "nobody on this machine may not run as root", "nothing was touched")
	untouched(t, files, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, l.Apps[0], "active")
}

// The disk is full while the new file is written beside the old one.
func TestDiskFullUnderTheConfiguration(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	long := lab.NginxConf + strings.Repeat("# a long configuration\n", 4096)
	mount(t, l, "/etc/nginx", "cp -a /etc/nginx /root/nginx; mount -t tmpfs -o size=1m,mode=755 tmpfs /etc/nginx; cp -a /root/nginx/. /etc/nginx/")
	if err := l.LB.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: long}); err != nil {
		t.Fatal(err)
	}
	before := seenByNginx(t, l)
	load := lightLoad(t, l, app)
	const filler = "/etc/nginx/filler"
	fill(t, l, filler)
	mustRun(t, l.LB, "truncate", "-s", "-16k", filler)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 1, "replace "+lab.NginxConfPath, "no space left on device", "everything is as it was before")
	mustRun(t, l.LB, "rm", filler)
	sameSeen(t, l, before)
	wantState(t, app, "active")
	lastEnds(t, l, "rolled back")

	// The way back, with the server down.
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained := seenByNginx(t, l)
	fill(t, l, filler)
	mustRun(t, l.LB, "truncate", "-s", "-16k", filler)
	drainctl(t, l, "undrain", app.Addr).wants(t, 1, "no space left on device", "everything is as it was before")
	mustRun(t, l.LB, "rm", filler)
	sameSeen(t, l, drained)
	wantState(t, app, "inactive")

	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameSeen(t, l, before)
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// fill writes a file until the disk is full.
func fill(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	out, err := l.LB.Run(t.Context(), "dd", "if=/dev/zero", "of="+name, "bs=4k")
	if err == nil || !strings.Contains(out, "No space left on device") {
		t.Fatalf("%s does not fill its disk: %v %s", name, err, out)
	}
}

// A small disk for the journal. Its pages are of 4096 bytes, and a file's last page has
// room even when the disk has none.
func smallJournalDisk(t *testing.T, l *lab.Lab) {
	t.Helper()
	mount(t, l, stateDir, "mkdir -p "+stateDir+"; mount -t tmpfs -o size=256k,nr_inodes=1000,mode=755 tmpfs "+stateDir)
}

// What cannot be written down is not done.
func TestDiskFullUnderTheJournal(t *testing.T) {
	l := labFor(t)
	smallJournalDisk(t, l)
	fill(t, l, stateDir+"/filler")
	app, files, serving := l.Apps[0], configuration(t, l), workers(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 1, "write the journal", "no space left on device", "nothing was touched")
	untouched(t, files, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
	mustRun(t, l.LB, "rm", stateDir+"/filler")
	nothingInterrupted(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, files, configuration(t, l))
}

// The disk of the journal fills up while the drain waits: the stop cannot be announced,
// so it is not done, and the drain is taken back.
func TestDiskFullUnderTheJournalInTheWait(t *testing.T) {
	l := labFor(t)
	smallJournalDisk(t, l)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)

	// A first drain tells how long the journal is in the wait; a reason of the right
	// length then has it end just before the end of a page.
	size := func(c *typed) int {
		c.until("\n2/3 ")
		c.until(" open, from 192.168.1.2 ")
		out := mustRun(t, l.LB, "sh", "-c", "ls -t "+stateDir+"/history/*.jsonl | head -n 1 | xargs stat -c %s")
		n, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const page, room = 4096, 50
	s := openStream(t, l, app)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--reason", "x")
	reason := page - room - size(c)%page
	c.signal(unix.SIGINT)
	c.wait().wants(t, 130)
	s.end()

	s = openStream(t, l, app)
	c = start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--reason", strings.Repeat("x", reason+1))
	t.Logf("the journal has %d bytes in the wait", size(c))
	fill(t, l, stateDir+"/filler")
	s.end()
	c.wait().wants(t, 1, "write the journal", "no space left on device", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	mustRun(t, l.LB, "nginx", "-t")
	lastEnds(t, l, "")
	servesAgain(t, load, app)

	mustRun(t, l.LB, "rm", stateDir+"/filler")
	drainctl(t, l, "status").wants(t, 0, "interrupted")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "unchanged")
	nothingInterrupted(t, l)
	sameFiles(t, before, configuration(t, l))
	noneFailed(t, load)
}

// A journal on a disk that is full is read all the same, and an undrain that cannot be
// written down says so and does nothing.
func TestUndrainWithAFullJournal(t *testing.T) {
	l := labFor(t)
	smallJournalDisk(t, l)
	app, before := l.Apps[0], configuration(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained := configuration(t, l)
	fill(t, l, stateDir+"/filler")
	drainctl(t, l, "status").wants(t, 0, "drained")
	drainctl(t, l, "undrain", app.Addr).wants(t, 1, "write the journal", "nothing was touched")
	untouched(t, drained, configuration(t, l))
	wantState(t, app, "inactive")
	mustRun(t, l.LB, "rm", stateDir+"/filler")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
}
