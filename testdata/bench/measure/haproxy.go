package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// haproxyTime is the goal of a drain under load, as a part of what it takes with HAProxy.
const haproxyTime = 1.15

const haproxyPort = 8081

// haproxyConf is HAProxy's configuration on the load balancer, with the same apps as
// nginx's.
const haproxyConf = `global
    user haproxy
    group haproxy
    stats socket /run/haproxy.sock mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend lab
    bind :8081
    default_backend backend_servers
backend backend_servers
    server app1 192.168.1.10:8080
    server app2 192.168.1.11:8080
    server app3 192.168.1.12:8080
`

// The commands that take app1 out with HAProxy, and put it back. The fifth field of "show
// stat" is the number of sessions (HAProxy's management guide, section 9.1).
const (
	haproxyDrain = `set -e
echo "set server backend_servers/app1 state drain" | socat stdio /run/haproxy.sock
until echo "show stat" | socat stdio /run/haproxy.sock | grep -q '^backend_servers,app1,[^,]*,[^,]*,0,'; do sleep 0.1; done
` + stopApp1
	haproxyReady = `echo "set server backend_servers/app1 state ready" | socat stdio /run/haproxy.sock`
	stopApp1     = "ssh -o BatchMode=yes root@" + lab.App1Addr + " systemctl stop " + lab.AppUnit
)

// A loadedWay is a way to take an app out under load.
type loadedWay struct {
	way
	port             int // of the load balancer, which the load is sent to
	requests, failed int
}

// besideHAProxy drains an app under load, beside HAProxy and beside nginx by hand, from the
// command to the stopped app.
func (m measurements) besideHAProxy(ctx context.Context, l *lab.Lab) error {
	if m.haproxy == 0 {
		return nil
	}
	if err := l.LB.WriteFile(ctx, "/etc/haproxy/haproxy.cfg", []byte(haproxyConf), 0o644); err != nil {
		return err
	}
	if _, err := l.LB.Run(ctx, "systemctl", "start", "haproxy"); err != nil {
		return fmt.Errorf("install HAProxy with testdata/lab/setup.sh haproxy socat: %w", err)
	}
	drain := &loadedWay{port: 80, way: way{name: "drainctl drain", host: l.LB,
		command: []string{"drainctl", "drain", lab.App1Addr, "--service", lab.AppUnit}, back: []string{"drainctl", "undrain", lab.App1Addr}}}
	haproxy := &loadedWay{port: haproxyPort, way: way{name: "HAProxy's runtime API", host: l.LB,
		command: []string{"sh", "-c", haproxyDrain}, back: []string{"sh", "-c", haproxyReady}}}
	byHand := &loadedWay{port: 80, way: way{name: "sed, nginx -s reload, sleep 1", host: l.LB,
		command: []string{"sh", "-c", sedReload + " && sleep 1 && " + stopApp1}, back: []string{"sh", "-c", sedUp}}}
	ways := []*loadedWay{drain, haproxy, byHand}
	for range m.haproxy {
		for _, w := range ways {
			if err := w.takeLoaded(ctx, l); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	fmt.Printf("\nfrom the command to the stopped app, under requests held up to 2 s (median of %d)\n", m.haproxy)
	for _, w := range ways {
		fmt.Printf("  %-32s %s; %d of %d requests failed\n", w.name, spread(w.took), w.failed, w.requests)
	}
	ratio := drain.ratio(&haproxy.way)
	fmt.Printf("  drainctl beside HAProxy: time x %.2f, goal: at most x %.2f: %s; failed, goal: none: %s\n",
		ratio, haproxyTime, verdict(ratio <= haproxyTime), verdict(drain.failed == 0))
	return nil
}

// takeLoaded takes app1 out under a load of its own, and puts it back.
func (w *loadedWay) takeLoaded(ctx context.Context, l *lab.Lab) error {
	load, err := l.StartLoad(ctx, lab.LoadOptions{
		Targets: []string{fmt.Sprintf("%s:%d", lab.LBAddr, w.port)}, Only: traffic.Varied, Streams: -1, Limit: time.Hour,
	})
	if err != nil {
		return err
	}
	// By then no request is open that the start of the load has sent.
	err = load.WaitFor(ctx, flowLimit, func(s traffic.Summary) bool { return s.Requests >= 3*traffic.DefaultClients })
	if err == nil {
		err = w.take(ctx)
	}
	s, stopErr := load.Stop()
	if err := errors.Join(err, stopErr); err != nil {
		return err
	}
	w.requests, w.failed = w.requests+s.Requests, w.failed+s.Failed
	events, err := l.Apps[0].AppEvents()
	if err != nil {
		return err
	}
	if len(events) == 0 || events[len(events)-1].Kind != "TERM" {
		return fmt.Errorf("%s was not stopped", l.Apps[0].Name)
	}
	return w.putBack(ctx, l, l.Apps[0])
}
