// Command demo shows drainctl at work, on real hosts and under load: it boots the
// lab, drains a backend as an operator would, shows that no request failed, and puts
// everything back. It ends with 1 if anything is not as it says.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// What the demo waits for at most: for load to flow, and for drainctl.
const (
	flowLimit    = time.Minute
	commandLimit = 5 * time.Minute
	// rollbackLimit is how long drainctl may take to roll back after a Ctrl-C.
	rollbackLimit = 20 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx)
	switch {
	case err == nil:
		say("The demo has shown what it said it would.")
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "\ndemo: interrupted; the lab is down (%v)\n", err)
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	say("Booting a load balancer (%s) and three app hosts (%s, %s, %s)", lab.LBAddr, lab.App1Addr, lab.App2Addr, lab.App3Addr)
	l, err := lab.Up(ctx, lab.Options{Log: os.Stdout})
	if err != nil {
		return err
	}
	defer func() {
		say("Taking the lab down")
		err = errors.Join(err, l.Down())
		parts, partsErr := l.Parts()
		if err = errors.Join(err, partsErr); err == nil && len(parts) > 0 {
			err = fmt.Errorf("of the lab there is left: %s", strings.Join(parts, "; "))
		}
	}()
	if err := l.Install(ctx); err != nil {
		return err
	}
	d := demo{Lab: l, target: l.Apps[0]}
	return d.show(ctx)
}

// demo is one showing.
type demo struct {
	*lab.Lab
	target *lab.Machine // the backend that is drained
	load   *lab.Load
}

func (d *demo) show(ctx context.Context) error {
	before, err := d.configuration(ctx)
	if err != nil {
		return err
	}
	say("The pool in %s on the load balancer", lab.NginxConfPath)
	if err := d.showPool(ctx); err != nil {
		return err
	}
	say("Starting load: %d looping clients (1 request in 5 held up to 3 s) and %d upgraded streams", traffic.DefaultClients, traffic.DefaultStreams)
	if d.load, err = d.StartLoad(ctx, lab.LoadOptions{}); err != nil {
		return err
	}
	if err := d.flow(ctx, 200); err != nil {
		return err
	}
	if err := d.drain(ctx); err != nil {
		return err
	}
	if err := d.undrain(ctx, before); err != nil {
		return err
	}
	return d.finish()
}

func (d *demo) drain(ctx context.Context) error {
	say("Draining %s, as an operator would", d.target.Addr)
	if err := d.operator(ctx, "drainctl", "drain", d.target.Addr, "--service", lab.AppUnit); err != nil {
		return err
	}
	say("The app on %s is stopped, and had nothing open when it was", d.target.Addr)
	if err := d.expectState(ctx, "inactive"); err != nil {
		return err
	}
	if err := d.expectIdleStop(); err != nil {
		return err
	}
	say("The line is marked down")
	if err := d.showPool(ctx); err != nil {
		return err
	}
	say("The load goes on, on the other two")
	return d.flow(ctx, 300)
}

func (d *demo) undrain(ctx context.Context, before map[string]string) error {
	say("Putting %s back", d.target.Addr)
	since := time.Now()
	if err := d.operator(ctx, "drainctl", "undrain", d.target.Addr, "--service", lab.AppUnit); err != nil {
		return err
	}
	if err := d.expectState(ctx, "active"); err != nil {
		return err
	}
	say("It serves again")
	err := d.load.WaitFor(ctx, flowLimit, func(s traffic.Summary) bool { return s.Servers[d.target.Name].Last.After(since) })
	if err != nil {
		return err
	}
	if err := d.flow(ctx, 200); err != nil {
		return err
	}
	say("The configuration is byte for byte as before")
	after, err := d.configuration(ctx)
	if err != nil {
		return err
	}
	return sameFiles(before, after)
}

// finish ends the load and judges it.
func (d *demo) finish() error {
	say("Ending the load")
	s, err := d.load.Stop()
	if err != nil {
		return err
	}
	fmt.Println(s)
	if s.Failed != 0 {
		return fmt.Errorf("%d requests failed, want 0", s.Failed)
	}
	fmt.Println("\n0 requests failed.")
	return nil
}

// operator types a command on the load balancer, and shows all it says as it says
// it: where the demo writes to a terminal, so does the command.
func (d *demo) operator(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	fmt.Printf("root@lb:~# %s\n", strings.Join(args, " "))
	cmd := d.LB.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return d.LB.Signal(cmd, unix.SIGINT) }
	cmd.WaitDelay = rollbackLimit
	began := time.Now()
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("%s: exit code %d, want 0", strings.Join(args, " "), exit.ExitCode())
		}
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	fmt.Printf("(exit code 0 after %.1f s)\n", time.Since(began).Seconds())
	return nil
}

// flow lets some more requests through and shows the figures; none may have failed.
func (d *demo) flow(ctx context.Context, requests int) error {
	enough := d.load.Snapshot().Requests + requests
	failed := func(s traffic.Summary) bool { return s.Failed > 0 }
	err := d.load.WaitFor(ctx, flowLimit, func(s traffic.Summary) bool { return s.Requests >= enough || failed(s) })
	if err != nil {
		return err
	}
	s := d.load.Snapshot()
	fmt.Printf("%d requests and %d streams so far, %d open now, %d failed\n", s.Requests, s.Streams, s.Open, s.Failed)
	if failed(s) {
		s, err := d.load.Stop()
		return errors.Join(fmt.Errorf("requests failed: %s", s), err)
	}
	return nil
}

func (d *demo) expectState(ctx context.Context, want string) error {
	// It exits with 3 for a unit that is not active.
	out, err := d.target.Run(ctx, "systemctl", "is-active", lab.AppUnit)
	state := strings.TrimSpace(out)
	fmt.Printf("root@%s:~# systemctl is-active %s\n%s\n", d.target.Name, lab.AppUnit, state)
	if state != want {
		return errors.Join(fmt.Errorf("%s on %s is %s, want %s", lab.AppUnit, d.target.Addr, state, want), err)
	}
	return nil
}

// expectIdleStop asks the app's own record whether it held a request when it was
// told to stop.
func (d *demo) expectIdleStop() error {
	events, err := d.target.AppEvents()
	if err != nil {
		return err
	}
	stop := slices.IndexFunc(events, func(e lab.AppEvent) bool { return e.Kind == "TERM" })
	if stop < 1 {
		return fmt.Errorf("the record of %s on %s tells of no stop", lab.AppUnit, d.target.Addr)
	}
	fmt.Printf("its own record: told to stop %.0f ms after the end of its last request, with %d open\n",
		float64(events[stop].Time.Sub(events[stop-1].Time).Microseconds())/1000, events[stop].Open)
	if events[stop].Open != 0 {
		return fmt.Errorf("%s on %s was stopped with %d requests open", lab.AppUnit, d.target.Addr, events[stop].Open)
	}
	return nil
}

// configuration reads every file below /etc/nginx on the load balancer.
func (d *demo) configuration(ctx context.Context) (map[string]string, error) {
	out, err := d.LB.Run(ctx, "find", "-L", "/etc/nginx", "-type", "f")
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for name := range strings.Lines(out) {
		name = strings.TrimSuffix(name, "\n")
		data, err := d.LB.ReadFile(ctx, name)
		if err != nil {
			return nil, err
		}
		files[name] = string(data)
	}
	return files, nil
}

func sameFiles(before, after map[string]string) error {
	for name, text := range before {
		if after[name] != text {
			return fmt.Errorf("%s differs from before:\n%s", name, after[name])
		}
	}
	for name := range after {
		if _, there := before[name]; !there {
			return fmt.Errorf("%s was not there before", name)
		}
	}
	fmt.Printf("before  %x  %s\nafter   %x  %s\n(and %d more files, all the same)\n",
		sha256.Sum256([]byte(before[lab.NginxConfPath])), lab.NginxConfPath,
		sha256.Sum256([]byte(after[lab.NginxConfPath])), lab.NginxConfPath, len(before)-1)
	return nil
}

func (d *demo) showPool(ctx context.Context) error {
	out, err := d.LB.Run(ctx, "sed", "-n", "/upstream backend_servers/,/}/p", lab.NginxConfPath)
	fmt.Print(out)
	return err
}

func say(format string, args ...any) {
	fmt.Printf("\n==> "+format+"\n", args...)
}
