package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// Where the tests of this package have their labs from: see labFor and fleetFor.
var labs, fleets = &pool{}, &pool{options: lab.Options{Fleet: true}}

// victimVariable makes the test binary bring a lab up and wait to be killed.
const victimVariable = "DRAINCTL_LAB_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimVariable) != "" {
		os.Exit(beVictim())
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// heedSignals has the commands that these tests start heed signals, although the tests
// may have been started to ignore them, as nohup and a shell's & do: what is ignored is
// inherited, what is caught is not (signal(7)).
func heedSignals(all ...os.Signal) {
	for _, s := range all {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// runTests runs the tests, takes their labs down, and sees that nothing is left.
func runTests(m *testing.M) (int, error) {
	heedSignals(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	labs.ctx, fleets.ctx = ctx, ctx
	// The tests' own contexts know nothing of a Ctrl-C, so it takes the labs from
	// under them.
	done := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			fmt.Fprintln(os.Stderr, "lab: interrupted, coming down")
			_, _ = labs.down(), fleets.down()
			os.Exit(130)
		case <-done:
		}
	}()
	code := m.Run()
	close(done)
	return code, errors.Join(labs.down(), fleets.down())
}

// A pool is labs that tests have one after another. There are as many as tests run at
// once (go test -parallel), and none before it is needed.
type pool struct {
	ctx     context.Context
	options lab.Options

	mu        sync.Mutex
	all, free []*lab.Lab
	closed    bool
}

// take gives a lab that nobody has.
func (p *pool) take() (*lab.Lab, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the tests are interrupted")
	}
	if last := len(p.free) - 1; last >= 0 {
		l := p.free[last]
		p.free = p.free[:last]
		return l, nil
	}
	options := p.options
	options.Log = os.Stderr
	l, err := lab.Up(p.ctx, options)
	if err != nil {
		return nil, err
	}
	p.all = append(p.all, l)
	return l, l.Install(p.ctx)
}

func (p *pool) give(l *lab.Lab) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, l)
}

// down takes all labs down. None comes up after it.
func (p *pool) down() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, l := range p.all {
		errs = append(errs, takeDown(l))
	}
	return errors.Join(errs...)
}

// takeDown takes a lab down, and sees that nothing is left of it.
func takeDown(l *lab.Lab) error {
	if err := l.Down(); err != nil {
		return fmt.Errorf("take the lab down: %w", err)
	}
	parts, err := l.Parts()
	if err == nil && len(parts) > 0 {
		err = fmt.Errorf("of the lab there is left: %s", strings.Join(parts, "; "))
	}
	return err
}

// labFor gives a test a lab for itself, as it was when it came up, with drainctl on the
// load balancer. The test runs beside the others that have a lab.
func labFor(t *testing.T) *lab.Lab {
	t.Helper()
	return labFrom(t, labs)
}

// fleetFor gives a test a lab with a second load balancer, a desk and a jump host.
func fleetFor(t *testing.T) *lab.Lab {
	t.Helper()
	return labFrom(t, fleets)
}

func labFrom(t *testing.T, p *pool) *lab.Lab {
	t.Helper()
	t.Parallel()
	l, err := p.take()
	if err == nil {
		err = l.Reset(t.Context())
	}
	if err != nil {
		t.Fatal(err) // and nobody else gets a lab that cannot be reset
	}
	t.Cleanup(func() { p.give(l) })
	return l
}

// A lab whose process is killed is taken down by the next one that comes up, whoever's it
// is. Labs that are up stay up.
func TestKilledLabIsTakenDown(t *testing.T) {
	l := labFor(t)
	left := killLab(t)
	if len(left) < 4 {
		t.Fatalf("the killed lab has left only %d processes, so taking it down would prove nothing", len(left))
	}
	next, err := lab.Up(t.Context(), lab.Options{Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, 0); err != nil || n == 0 {
			t.Errorf("a process of the killed lab still runs (%v)", err)
		}
		_ = unix.Close(p)
	}
	if err := takeDown(next); err != nil {
		t.Error(err)
	}
	mustRun(t, l.Client, "curl", "-sS", "--fail", "http://"+lab.LBAddr+"/")
}

// killLab brings a lab up in another process and kills that with SIGKILL. It returns
// descriptors of the processes that the lab had, which become readable when they end
// (pidfd_open(2)).
func killLab(t *testing.T) (processes []int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := exec.CommandContext(t.Context(), self)
	victim.Env = append(os.Environ(), victimVariable+"=1")
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	numbers, up := strings.CutPrefix(line, "up ")
	for number := range strings.FieldsSeq(numbers) {
		pid, _ := strconv.Atoi(number)
		if p, err := unix.PidfdOpen(pid, 0); err == nil {
			processes = append(processes, p)
		}
	}
	err = errors.Join(err, victim.Process.Kill())
	_ = victim.Wait() // killed
	if err != nil || !up {
		t.Fatalf("the lab to be killed did not come up (%q): %v", line, err)
	}
	return processes
}

// beVictim brings a lab up, tells the numbers of its processes, and waits to be killed.
func beVictim() int {
	l, err := lab.Up(context.Background(), lab.Options{Log: os.Stderr})
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		return 1
	}
	parts, err := l.Parts()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		return 1
	}
	fmt.Print("up")
	for _, part := range parts {
		if process, ok := strings.CutPrefix(part, "process "); ok {
			number, _, _ := strings.Cut(process, ":")
			fmt.Print(" ", number)
		}
	}
	fmt.Println()
	time.Sleep(time.Minute) // killed before
	return 1
}
