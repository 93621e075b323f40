package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/drainctl/drainctl/testdata/bench"
	"github.com/drainctl/drainctl/testdata/lab"
)

// The goals of a drain of an idle app.
const (
	shellTime        = 1.3       // as a part of what sed, nginx -t and nginx -s reload take
	shellOverSSHTime = 1.2       // the same from another machine, beside ssh
	overLBTime       = 1.3       // from another machine, as a part of what the same drain takes on the load balancer
	planWire         = 100 << 10 // bytes, for a plan in the large configuration
)

// What an operator types without drainctl, to take app1 out of nginx's pool.
const (
	sedDown   = `sed -i 's/server 192.168.1.10:8080;/server 192.168.1.10:8080 down;/' ` + lab.NginxConfPath
	sedUp     = `sed -i 's/server 192.168.1.10:8080 down;/server 192.168.1.10:8080;/' ` + lab.NginxConfPath
	sedReload = sedDown + " && nginx -t && nginx -s reload"
)

// idle measures drains of an idle app, on the load balancer and from another machine.
func (m measurements) idle(ctx context.Context, l *lab.Lab) error {
	if m.overLB == 0 {
		return nil
	}
	desk := l.Apps[2]
	if err := l.MakeOperator(ctx, desk); err != nil {
		return err
	}
	for _, measure := range []func(context.Context, *lab.Lab, *lab.Machine) error{m.overSSH, m.besideShell, m.wire} {
		if err := measure(ctx, l, desk); err != nil {
			return err
		}
	}
	return nil
}

// idleDrain is a drain with drainctl, on the load balancer or from another machine.
func idleDrain(on *lab.Machine, flags ...string) *way {
	w := &way{host: on, command: []string{"drainctl", "drain", lab.App1Addr}, back: []string{"drainctl", "undrain", lab.App1Addr}}
	if on.Addr != lab.LBAddr {
		flags, w.back = append(flags, lab.LBFlag), append(w.back, lab.LBFlag)
	}
	w.command = append(w.command, flags...)
	return w
}

// overSSH drains on the load balancer and from another machine.
func (m measurements) overSSH(ctx context.Context, l *lab.Lab, desk *lab.Machine) error {
	here, there := idleDrain(l.LB, "--service", lab.AppUnit), idleDrain(desk, "--service", lab.AppUnit)
	if err := inTurn(ctx, l, l.Apps[0], m.overLB, here, there); err != nil {
		return err
	}
	ratio := there.ratio(here)
	fmt.Printf("\na drain of an idle backend (median of %d)\n  on the load balancer %s, from another machine with --lb %s: x %.2f, goal x %.2f: %s\n",
		m.overLB, spread(here.took), spread(there.took), ratio, overLBTime, verdict(ratio <= overLBTime))
	return nil
}

// besideShell drains without a service, beside what an operator would type without drainctl.
func (m measurements) besideShell(ctx context.Context, l *lab.Lab, desk *lab.Machine) error {
	local := &way{host: l.LB, command: []string{"sh", "-c", sedReload}, back: []string{"sh", "-c", sedUp}}
	ssh := []string{"ssh", "-o", "BatchMode=yes", "root@" + lab.LBAddr}
	overSSH := &way{host: desk, command: append(ssh[:len(ssh):len(ssh)], sedReload), back: append(ssh[:len(ssh):len(ssh)], sedUp)}
	here, there := idleDrain(l.LB, "--poll", "lb"), idleDrain(desk, "--poll", "lb")
	if err := inTurn(ctx, l, l.Apps[0], m.overLB, local, here, overSSH, there); err != nil {
		return err
	}
	fmt.Printf("\na drain of an idle backend without a service, beside sed, nginx -t and nginx -s reload (median of %d)\n", m.overLB)
	show := func(where string, drain, shell *way, goal float64) {
		ratio := drain.ratio(shell)
		fmt.Printf("  %-24s %s beside %s: x %.2f, goal: at most x %.2f: %s\n",
			where, spread(drain.took), spread(shell.took), ratio, goal, verdict(ratio <= goal))
	}
	show("on the load balancer", here, local, shellTime)
	show("with --lb, beside ssh", there, overSSH, shellOverSSHTime)
	return nil
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
