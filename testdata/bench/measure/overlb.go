package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/testdata/bench"
	"github.com/drainctl/drainctl/testdata/lab"
)

// The goals of a drain from another machine than the load balancer.
const (
	overLBTime = 1.3       // as a part of what the same drain takes on the load balancer
	planWire   = 100 << 10 // bytes, for a plan in the large configuration
)

// overSSH drains an idle app on the load balancer and, in turn, from another machine.
func (m measurements) overSSH(ctx context.Context, l *lab.Lab) error {
	if m.overLB == 0 {
		return nil
	}
	app, desk := l.Apps[0], l.Apps[2]
	if err := l.MakeOperator(ctx, desk); err != nil {
		return err
	}
	var here, there []time.Duration
	for n := range m.overLB + 1 {
		for _, from := range []struct {
			machine *lab.Machine
			flags   []string
			took    *[]time.Duration
		}{{l.LB, nil, &here}, {desk, []string{lab.LBFlag}, &there}} {
			// systemd would refuse to start the app so often.
			if out, err := app.Run(ctx, "systemctl", "reset-failed", lab.AppUnit); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			began := time.Now()
			if err := drainctl(ctx, from.machine, append([]string{"drain", app.Addr, "--service", lab.AppUnit}, from.flags...)...); err != nil {
				return err
			}
			if n > 0 { // the first fills caches
				*from.took = append(*from.took, time.Since(began))
			}
			if err := drainctl(ctx, from.machine, append([]string{"undrain", app.Addr}, from.flags...)...); err != nil {
				return err
			}
		}
	}
	a, b := median(here), median(there)
	ratio := float64(b) / float64(a)
	fmt.Printf("\na drain of an idle backend (median of %d)\n  on the load balancer %s, from another machine with --lb %s: x %.2f, goal x %.2f: %s\n",
		m.overLB, milliseconds(a), milliseconds(b), ratio, overLBTime, verdict(ratio <= overLBTime))
	return m.wire(ctx, l, desk)
}

func drainctl(ctx context.Context, m *lab.Machine, args ...string) error {
	out, err := m.Run(ctx, append([]string{"drainctl"}, args...)...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// wire counts the bytes of a plan in the large configuration, SSH's own included.
func (m measurements) wire(ctx context.Context, l *lab.Lab, desk *lab.Machine) error {
	const dir = "/srv/pool"
	pool := bench.Large()
	if err := pool.Write(filepath.Join(l.LB.Root, dir)); err != nil {
		return err
	}
	before, err := transferred(ctx, desk)
	if err != nil {
		return err
	}
	if err := drainctl(ctx, desk, "drain", planned, "--dry-run", lab.LBFlag, "--nginx-conf", dir+"/nginx.conf", "--test-command", "true"); err != nil {
		return err
	}
	after, err := transferred(ctx, desk)
	if err != nil {
		return err
	}
	fmt.Printf("  a plan in %d servers with --lb: %.1f KB on the wire, goal: at most %d KB: %s\n",
		pool.Servers, float64(after-before)/1024, planWire>>10, verdict(after-before <= planWire))
	return nil
}

// transferred is the bytes that a host has sent and received so far (proc(5), /proc/net/dev).
func transferred(ctx context.Context, m *lab.Machine) (total int64, err error) {
	text, err := m.ReadFile(ctx, "/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, numbers, found := strings.Cut(line, ":")
		fields := strings.Fields(numbers)
		if !found || strings.TrimSpace(name) == "lo" || len(fields) < 9 {
			continue
		}
		for _, i := range []int{0, 8} {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	return total, nil
}
