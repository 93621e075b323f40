package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// shared is the one lab of all tests of this package. A test gets it, as it was when
// it came up, from labFor.
var shared *lab.Lab

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

// runTests kills a lab, brings the shared one up over its remains, with drainctl on
// its load balancer, runs the tests, takes it down, and sees that nothing is left.
func runTests(m *testing.M) (int, error) {
	heedSignals(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := leaveKilledLab(ctx); err != nil {
		return 1, fmt.Errorf("kill a lab: %w", err)
	}
	var err error
	if shared, err = lab.Up(ctx, lab.Options{Log: os.Stderr}); err != nil {
		return 1, err
	}
	if err := shared.Install(ctx); err != nil {
		return 1, errors.Join(err, shared.Down())
	}
	// The tests' own contexts know nothing of a Ctrl-C, so it takes the lab from
	// under them.
	done := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			fmt.Fprintln(os.Stderr, "lab: interrupted, coming down")
			_ = shared.Down()
			os.Exit(130)
		case <-done:
		}
	}()
	code := m.Run()
	close(done)
	if err := shared.Down(); err != nil {
		return 1, fmt.Errorf("take the lab down: %w", err)
	}
	return code, nothingLeft()
}

func nothingLeft() error {
	remains, err := lab.Remains()
	if err == nil && len(remains) > 0 {
		err = fmt.Errorf("of the lab there is left: %s", strings.Join(remains, "; "))
	}
	return err
}

// leaveKilledLab brings a lab up in another process and kills that with SIGKILL.
func leaveKilledLab(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	victim := exec.CommandContext(ctx, self)
	victim.Env = append(os.Environ(), victimVariable+"=1")
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		return err
	}
	if err := victim.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	err = errors.Join(err, victim.Process.Kill())
	_ = victim.Wait() // killed
	if err != nil || line != "up\n" {
		return fmt.Errorf("the lab to be killed did not come up (%q): %w", line, err)
	}
	remains, err := lab.Remains()
	if err == nil && len(remains) < 20 {
		err = fmt.Errorf("it left only %q behind, so taking it down would prove nothing", remains)
	}
	return err
}

func beVictim() int {
	if _, err := lab.Up(context.Background(), lab.Options{Log: os.Stderr}); err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		return 1
	}
	fmt.Println("up")
	time.Sleep(time.Minute) // killed before
	return 1
}

// labFor gives a test the shared lab as it was when it came up.
func labFor(t *testing.T) *lab.Lab {
	t.Helper()
	if err := shared.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	return shared
}
