package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// generous is more time than anything here takes on a busy machine.
const generous = 30 * time.Second

// shell is a shell script as a command whose outputs are bounded.
func shell(script string, args ...string) Command {
	return Command{
		Args:   append([]string{"sh", "-c", script, "sh"}, args...),
		Stdout: &Output{Max: 1 << 20}, Stderr: &Output{Max: 64 << 10, Last: true}, Grace: 300 * time.Millisecond,
	}
}

func TestRun(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef\n"), 1<<20)
	for _, test := range []struct {
		name, script   string
		stdin          []byte
		code           int
		stdout, stderr string
	}{
		{name: "both outputs and a code", script: "echo out; echo err >&2; exit 7", code: 7, stdout: "out\n", stderr: "err\n"},
		{name: "no input", script: "cat; tty", code: 1, stdout: "not a tty\n"},
		{name: "input", script: "cat", stdin: []byte("a\x00b\r\n"), stdout: "a\x00b\r\n"},
		{name: "input that is not read", script: "true", stdin: big},
		{name: "a signal", script: "kill -9 $$", code: 128 + 9},
		{name: "the end of a long standard error", script: "cat >&2", stdin: big, stderr: string(big[len(big)-64<<10:])},
		{name: "something left behind", script: "sleep 10 & echo started", stdout: "started\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			c := shell(test.script)
			c.Stdin = test.stdin
			code, err := Run(t.Context(), c)
			if err != nil || code != test.code || string(c.Stdout.Bytes()) != test.stdout || string(c.Stderr.Bytes()) != test.stderr {
				t.Errorf("%d, %v: %.100q, %.100q", code, err, c.Stdout.Bytes(), c.Stderr.Bytes())
			}
			if d := time.Since(began); d > generous {
				t.Errorf("it took %v", d)
			}
		})
	}
	c := shell("ps -o sid= -p $$; echo $$")
	if _, err := Run(t.Context(), c); err != nil {
		t.Error(err)
	}
	if f := strings.Fields(string(c.Stdout.Bytes())); len(f) != 2 || f[0] != f[1] {
		t.Errorf("the command has no session of its own: %q", f)
	}
}

func TestRunWhatCannotStart(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"drainctl-no-such-command": NotFound, "/nowhere/x": NotFound, "/etc": CannotExecute, plain: CannotExecute} {
		c := shell("")
		c.Args = []string{name}
		code, err := Run(t.Context(), c)
		if err != nil || code != want || !strings.Contains(string(c.Stderr.Bytes()), name) {
			t.Errorf("%s: %d, %v, %q", name, code, err, c.Stderr.Bytes())
		}
		if _, err := Start(c); err == nil {
			t.Errorf("%s: started", name)
		}
	}
}

// All that a command has written is read, however late: neither a busy machine nor something
// that holds the output open makes it shorter.
func TestRunReadsAll(t *testing.T) {
	text := strings.Repeat("0123456789abcde\n", 4<<10) // as much as a pipe holds
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c := shell(`sleep 10 & cat "$1" >&2; exec cat "$1"`, file)
		c.Grace = 0
		code, err := Run(t.Context(), c)
		if err != nil || code != 0 || string(c.Stdout.Bytes()) != text || string(c.Stderr.Bytes()) != text {
			t.Fatalf("%d, %v: %d and %d of %d bytes", code, err, len(c.Stdout.Bytes()), len(c.Stderr.Bytes()), len(text))
		}
	}
	// Nothing was read when the time is up.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	over, o := time.Now(), &Output{Max: len(text)}
	if err := r.SetReadDeadline(over); err != nil {
		t.Fatal(err)
	}
	collect(r, o).finish(over)
	if string(o.Bytes()) != text {
		t.Errorf("%d of %d bytes", len(o.Bytes()), len(text))
	}
	// Nothing was read when the command has ended.
	for range 10 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		p := &Process{ended: make(chan struct{}), grace: generous}
		close(p.ended)
		p.stderr = collect(r, &Output{Max: len(text)})
		if _, err := p.Wait(); err != nil || p.Stderr() != text {
			t.Errorf("%v: %d of %d bytes", err, len(p.Stderr()), len(text))
		}
	}
}

// A command ends with its context, and all that it has started.
func TestRunIsKilled(t *testing.T) {
	for _, script := range []string{
		"sleep 60 & echo $! >$1.new; mv $1.new $1; wait",
		"trap '' TERM; sh -c 'echo $$ >$0.new; mv $0.new $0; trap \"\" TERM; sleep 60; sleep 60' $1; sleep 60",
		"sh -c 'trap \"\" TERM; echo $$ >$0.new; mv $0.new $0; sleep 60; sleep 60' $1; sleep 60", // SIGTERM ends only the command itself
	} {
		file := filepath.Join(t.TempDir(), "pid")
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		var pid []byte
		go func() {
			for t.Context().Err() == nil && len(pid) == 0 {
				time.Sleep(10 * time.Millisecond)
				pid, _ = os.ReadFile(file)
			}
			cancel(why)
		}()
		began := time.Now()
		if _, err := Run(ctx, shell(script, file)); !errors.Is(err, why) || time.Since(began) > generous {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		gone := func() bool {
			stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		}
		for !gone() && time.Since(began) < generous {
			time.Sleep(10 * time.Millisecond)
		}
		if !gone() {
			t.Error("what the command started still runs")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "mark")
	if _, err := Run(ctx, shell(`touch "$1"`, mark)); !errors.Is(err, context.Canceled) {
		t.Errorf("the context had ended before: %v", err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the command ran")
	}
}

// A command that succeeds although it was told to end has succeeded.
func TestRunSucceedsAllTheSame(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	c := shell(`trap 'echo done; exit 0' TERM; while :; do sleep 0.05; done`)
	c.Grace = generous
	if code, err := Run(ctx, c); code != 0 || err != nil || string(c.Stdout.Bytes()) != "done\n" {
		t.Errorf("%d, %v, %q", code, err, c.Stdout.Bytes())
	}
}

// A part of an output is never taken for the whole.
func TestRunPrintsTooMuch(t *testing.T) {
	for _, script := range []string{"exec yes", "exec tr '\\0' x </dev/zero", "trap '' PIPE TERM; head -c 9000000 /dev/zero; exit 0"} {
		began := time.Now()
		c := shell(script)
		_, err := Run(t.Context(), c)
		if !errors.Is(err, TooLongError(1<<20)) || !strings.Contains(err.Error(), "it printed more than 1024 KiB") || time.Since(began) > generous {
			t.Errorf("%s: %v after %v", script, err, time.Since(began))
		}
	}
	c := shell("exec yes >&2")
	c.Stderr.Last = false
	if _, err := Run(t.Context(), c); !errors.Is(err, TooLongError(64<<10)) {
		t.Errorf("a standard error that must be whole: %v", err)
	}
}

func TestStart(t *testing.T) {
	c := shell("echo begin >&2; cat; echo end >&2; exit 3")
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(p)
	for i := range 100 {
		want := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(p, want); err != nil {
			t.Fatal(err)
		}
		if got, err := in.ReadString('\n'); err != nil || got != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	select {
	case <-p.Done():
		t.Error("it has ended")
	default:
	}
	if err := p.CloseWrite(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	for range 2 {
		if code, err := p.Wait(); code != 3 || err != nil || p.Stderr() != "begin\nend\n" {
			t.Errorf("%d, %v, %q", code, err, p.Stderr())
		}
		p.Close()
	}
	if n, err := p.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read after Close: %d, %v", n, err)
	}
}

func TestOutput(t *testing.T) {
	write := func(o *Output) (kept string, err error) {
		for i := range 10 {
			if _, werr := fmt.Fprintf(o, "%d123456789", i); werr != nil {
				err = werr
			}
		}
		return string(o.Bytes()), err
	}
	if kept, err := write(&Output{Max: 100}); err != nil || len(kept) != 100 {
		t.Errorf("as much as it takes: %q, %v", kept, err)
	}
	last := &Output{Max: 15, Last: true}
	if kept, err := write(last); err != nil || kept != "567899123456789" || last.Total() != 100 {
		t.Errorf("the last: %q of %d, %v", kept, last.Total(), err)
	}
	var told error
	whole := &Output{Max: 15, Full: func(err error) { told = err }}
	if kept, err := write(whole); kept != "0123456789" || !errors.Is(err, TooLongError(15)) || !errors.Is(told, TooLongError(15)) {
		t.Errorf("no more than it takes: %q, %v, %v", kept, err, told)
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 5000)
	got := Lines("one\r\n\n  \n two \n" + long)
	if len(got) != 3 || got[0] != "one" || got[1] != " two" || got[2] != long[:4096]+"..." {
		t.Errorf("%.100q", got)
	}
	if got := Clip("ä", 1); got != "..." {
		t.Errorf("half a character: %q", got)
	}
}
