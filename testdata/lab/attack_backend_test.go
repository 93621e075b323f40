package lab_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The attacker of this file is a backend: root on one of the app hosts. Whatever its sshd,
// its shell and its programs answer, drainctl ends by itself, uses little memory, and takes
// no part of an answer for the whole. Each test is named after the claim in SECURITY.md
// that it tries to break.

// maxMemory is how much memory drainctl may use, whatever a backend sends.
const maxMemory = 150 << 20

// What a program of a hostile backend does.
const (
	endlessLines  = "exec yes 0 0 10.0.0.1:80 10.0.0.2:5000"
	endlessLine   = "exec tr '\\0' x </dev/zero"
	endlessErrors = "exec yes >&2"
	silent        = "exec sleep 1000"
	closesEarly   = "exit 0"
)

// replace has a program on a host, which must not be one that the lab itself runs there, be a script, until the test ends or restore is called,
// which also ends what still runs of it.
func replace(t *testing.T, m *lab.Machine, program, script string) (restore func()) {
	t.Helper()
	name, pids := "/usr/local/bin/"+program, "/var/tmp/hostile-"+program
	text := "#!/bin/dash\necho $$ >>" + pids + "\n" + script + "\n"
	if err := m.WriteFile(t.Context(), name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, m, "dash", "-c", ": >"+pids+"; chmod 666 "+pids)
	var once sync.Once
	restore = func() {
		once.Do(func() {
			ctx := context.WithoutCancel(t.Context())
			if _, err := m.Run(ctx, "dash", "-c", "rm "+name+"; for p in $(cat "+pids+"); do kill -9 $p 2>/dev/null; done; rm "+pids); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(restore)
	return restore
}

// replaceShell has the login shell of a user on a host be a script, until the test ends.
func replaceShell(t *testing.T, m *lab.Machine, user, script string) {
	t.Helper()
	replace(t, m, "hostile-shell", script)
	mustRun(t, m, "cp", "-p", "/etc/passwd", "/etc/passwd.before")
	mustRun(t, m, "sed", "-i", "s|^\\("+user+":.*:\\)[^:]*$|\\1/usr/local/bin/hostile-shell|", "/etc/passwd")
	t.Cleanup(func() { _ = os.Rename(m.Root+"/etc/passwd.before", m.Root+"/etc/passwd") })
}

// A measured command is one of which the peak of memory is known.
type measured struct {
	*typed
	peak    atomic.Int64 // bytes
	stopped chan struct{}
}

// measure starts drainctl on the load balancer. What it prints on its standard output is
// thrown away if quiet: it may be a lot.
func measure(t *testing.T, l *lab.Lab, quiet bool, args ...string) *measured {
	t.Helper()
	script := `exec drainctl "$@"`
	if quiet {
		script += " >/dev/null"
	}
	m := &measured{typed: start(t, l, append([]string{"sh", "-c", script, "sh"}, args...)...), stopped: make(chan struct{})}
	m.line = "drainctl " + strings.Join(args, " ")
	pid, err := l.LB.PID(m.cmd)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.stopped)
		for sample := peakOf(pid); sample > 0; sample = peakOf(pid) {
			m.peak.Store(sample)
			if sample > 8*maxMemory { // it proves enough, and others need the memory
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return m
}

// peakOf is the most memory that a process has had, in bytes (proc(5), VmHWM); 0 if it has
// ended.
func peakOf(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, _ := strconv.ParseInt(strings.TrimSpace(strings.Split(rest+"kB", "kB")[0]), 10, 64)
	return kib << 10
}

// wait waits for the end, and checks the memory.
func (m *measured) wait() ending {
	m.t.Helper()
	began := time.Now()
	e := m.typed.wait()
	<-m.stopped
	m.t.Logf("%s: exit code %d after %v, %d MiB", m.line, e.code, time.Since(began).Round(time.Second), m.peak.Load()>>20)
	if m.peak.Load() > maxMemory || m.peak.Load() == 0 {
		m.t.Errorf("%s used %d MiB of memory, want less than %d MiB", m.line, m.peak.Load()>>20, maxMemory>>20)
	}
	if n := len(e.stdout) + len(e.stderr); n > 64<<10 {
		m.t.Errorf("%s printed %d bytes", m.line, n)
	}
	return e
}

// Each program that a drain asks first, and the shell itself, may answer anything: the
// drain is refused, and nothing is touched.
func TestBackendCannotExhaustMemory(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	for _, program := range []string{"ss", "systemctl", "id", "sudo", "awk"} {
		for name, script := range map[string]string{"endless lines": endlessLines, "an endless line": endlessLine} {
			if program == "ss" && name == "endless lines" {
				continue // the host itself counts those, for as long as it is let: see the next test
			}
			t.Run(program+" prints "+name, func(t *testing.T) {
				restore := replace(t, app, program, script)
				defer restore()
				measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit, "--ssh-user", lab.DeployUser).wait().wants(t, 4, app.Addr)
				sameFiles(t, before, configuration(t, l))
			})
		}
	}
	for name, script := range map[string]string{
		"endless lines": endlessLines, "an endless line": endlessLine, "endless errors": endlessErrors, "nothing": closesEarly,
	} {
		t.Run("the login shell prints "+name, func(t *testing.T) {
			replaceShell(t, app, "root", script)
			measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit).wait().wants(t, 4, app.Addr)
			sameFiles(t, before, configuration(t, l))
		})
	}
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// A command that never ends does not hold up a check or a drain.
func TestBackendCannotHoldUpACommand(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	for _, command := range []string{"check", "drain"} {
		t.Run(command+" with a silent systemctl", func(t *testing.T) {
			restore := replace(t, app, "systemctl", silent)
			defer restore()
			measure(t, l, false, command, app.Addr, "-s", lab.AppUnit).wait().wants(t, 4, "systemctl show", "it did not end within 30s")
		})
		t.Run(command+" with a silent ss", func(t *testing.T) {
			restore := replace(t, app, "ss", silent)
			defer restore()
			measure(t, l, false, command, app.Addr, "-s", lab.AppUnit).wait().wants(t, 4, "look at the sockets on", "no answer within 30s")
		})
	}
	t.Run("a shell that is silent", func(t *testing.T) {
		replaceShell(t, app, "root", silent)
		measure(t, l, false, "check", app.Addr, "-s", lab.AppUnit).wait().wants(t, 4, "within 30s")
	})
	t.Run("an ss with endless lines", func(t *testing.T) {
		restore := replace(t, app, "ss", endlessLines)
		defer restore()
		measure(t, l, false, "drain", app.Addr).wait().wants(t, 4, "no answer within 30s")
	})
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// What answers on the port of SSH need not speak SSH.
func TestBackendCannotHoldUpALogin(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	for name, script := range map[string]string{
		"says nothing":                     silent,
		"sends lines before its version":   "exec yes welcome",
		"sends one line without an end":    endlessLine,
		"sends its version and then noise": "echo SSH-2.0-x; exec cat /dev/urandom",
	} {
		t.Run(name, func(t *testing.T) {
			answerSSH(t, app, script)
			measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit).wait().wants(t, 4, "ssh to root@"+app.Addr)
			sameFiles(t, before, configuration(t, l))
		})
	}
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// answerSSH has a script answer on the port of SSH, until the test ends.
func answerSSH(t *testing.T, m *lab.Machine, script string) {
	t.Helper()
	replace(t, m, "hostile-sshd", script)
	unit := "/etc/systemd/system/hostile"
	for name, text := range map[string]string{
		".socket":   "[Socket]\nListenStream=22\nAccept=yes\n",
		"@.service": "[Service]\nExecStart=/usr/local/bin/hostile-sshd\nStandardInput=socket\nStandardOutput=socket\nStandardError=null\n",
	} {
		if err := m.WriteFile(t.Context(), unit+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, m, "sh", "-c", "systemctl stop ssh && systemctl daemon-reload && systemctl start hostile.socket")
	t.Cleanup(func() {
		_, _ = m.Run(context.WithoutCancel(t.Context()), "sh", "-c", "systemctl stop hostile.socket 'hostile@*'; rm /etc/systemd/system/hostile*; systemctl daemon-reload; systemctl start ssh")
	})
}

// A backend that turns hostile while its connections are waited for: they cannot be counted,
// so nothing is stopped and all is as before.
func TestBackendCannotBeTakenForDrained(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	const turned = "/var/tmp/hostile-now"
	for name, script := range map[string]string{
		"endless lines": endlessLines, "an endless line": endlessLine, "a cut answer": "printf '0 0 192.168.1.10:8080 10.'", "nothing at all": "kill -9 $PPID",
	} {
		t.Run("ss prints "+name, func(t *testing.T) {
			defer replace(t, app, "ss", "test -e "+turned+` || exec /usr/bin/ss "$@"; `+script)()
			defer func() { mustRun(t, app, "rm", turned) }()
			s := openStream(t, l, app)
			c := measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit, "--timeout", "10s")
			c.until(" open, from 192.168.1.2 ")
			mustRun(t, app, "touch", turned)
			c.wait().wants(t, 1, "could not be counted when the time was up", "everything is as it was before")
			sameFiles(t, before, configuration(t, l))
			wantState(t, app, "active")
			s.echoes(t)
			s.end()
		})
	}
	// Millions of connections are a great number, and no more.
	restore := replace(t, app, "ss", "exec awk 'BEGIN { for (i = 0; i < 2000000; i++) print \"0 0 192.168.1.10:8080 10.\" i % 200 \".\" i % 250 \".1:\" 1 + i % 65000 }'")
	e := measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit, "--timeout", "3s").wait()
	if e.code != 1 && e.code != 3 && e.code != 4 { // how far it comes is a matter of the host's speed
		t.Errorf("exit code %d, want 1, 3 or 4\n%s%s", e.code, e.stdout, e.stderr)
	}
	wantState(t, app, "active")
	restore()
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	nothingInterrupted(t, l)
}

// The stop of a unit is given up when its time is over, although systemctl answers nothing
// any more. What is left changed is said.
func TestBackendCannotHoldUpAStop(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	s := openStream(t, l, app)
	c := measure(t, l, false, "drain", app.Addr, "-s", lab.AppUnit, "--stop-timeout", "3s")
	c.until(" open, from 192.168.1.2 ")
	restore := replace(t, app, "systemctl", silent)
	s.end()
	c.wait().wants(t, 5, "it did not end within 30s", "marked down", "drainctl undrain "+app.Addr)
	restore()
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
}

// The output of COMMAND on a backend is shown as it comes, however long a line of it is.
func TestBackendCannotExhaustMemoryWithTheOutputOfACommand(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	measure(t, l, true, "run", app.Addr, "-s", lab.AppUnit, "--on-backend", "--", "sh", "-c", `head -c 400000000 /dev/zero | tr "\0" x`).
		wait().wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	measure(t, l, false, "run", app.Addr, "-s", lab.AppUnit, "--on-backend", "--only-if", "yes", "--", "true").
		wait().wants(t, 1, "it printed more than 1024 KiB", "nothing was touched")
	sameFiles(t, before, configuration(t, l))
}

// impersonate puts a program of the attacker's before one of a backend's. It prints a text
// on its outputs and ends with a code for the words given, and is the program itself for others.
func impersonate(t *testing.T, m *lab.Machine, program, words, text string, code int) {
	t.Helper()
	said := "printf '%b' '" + strings.NewReplacer("\x1b", `\033`, "\x07", `\007`, "\r", `\r`, "\n", `\n`, "\t", `\t`).Replace(text) + "'"
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n%s) %s; %s >&2; exit %d;;\nesac\nexec /usr/bin/%s \"$@\"\n", words, said, said, code, program)
	if err := m.WriteFile(t.Context(), "/usr/local/bin/"+program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// Nothing that the programs of a backend print reaches the operator's terminal as it is,
// and no line of it becomes one of drainctl's.
func TestBackendCannotWriteToATerminal(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	text := hostileText + "\nhint: FORGED\n"
	impersonate(t, app, "ss", "*", text, 1)
	onTerminal(t, l, "drainctl check "+app.Addr+" -s "+lab.AppUnit)
	onTerminal(t, l, "drainctl status --backends --verbose")
	onTerminal(t, l, "drainctl drain "+app.Addr+" -s "+lab.AppUnit+" --timeout 3s")
	mustRun(t, app, "rm", "/usr/local/bin/ss")
	impersonate(t, app, "systemctl", "*stop*", text, 1)
	impersonate(t, app, "journalctl", "*", text, 0)
	for _, line := range []string{
		"drain " + app.Addr + " -s " + lab.AppUnit + " --verbose", "history", "status",
		"run " + app.Addr + " --on-failure undrain -- printf 'x\\033]0;title\\007\\033[31mred\\r'",
	} {
		onTerminal(t, l, "drainctl "+line)
	}
	if last := operations(t, l); len(last) > 0 {
		onTerminal(t, l, "drainctl history "+last[len(last)-1].id)
	}
}
