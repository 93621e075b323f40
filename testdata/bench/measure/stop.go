package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// stopGoal is for the time between the end of the last request and the stop.
const stopGoal = 50 * time.Millisecond

// flowLimit bounds the wait for requests to flow.
const flowLimit = 2 * time.Minute

// inLab measures what needs hosts.
func (m measurements) inLab(ctx context.Context) (err error) {
	if m.drains == 0 && m.overLB == 0 && m.haproxy == 0 && m.passes == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("drains are measured in the lab, which needs root: run it as root or with sudo, or leave them out with -drains 0 -over-lb 0 -haproxy 0 -passes 0")
	}
	l, err := lab.Up(ctx, lab.Options{Log: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	if err := l.Install(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context, *lab.Lab) error{m.idle, m.besideHAProxy, m.stopDelay, m.rolling} {
		if err := measure(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// stopDelay drains busy apps, and has their own records tell how long after the end of
// its last request each was told to stop.
func (m measurements) stopDelay(ctx context.Context, l *lab.Lab) error {
	if m.drains == 0 {
		return nil
	}
	load, err := l.StartLoad(ctx, lab.LoadOptions{Limit: time.Hour})
	if err != nil {
		return err
	}
	var delays []time.Duration
	for n := range m.drains {
		d, err := drainOnce(ctx, l, load, l.Apps[n%len(l.Apps)])
		if err != nil {
			return err
		}
		delays = append(delays, d)
	}
	s, err := load.Stop()
	if err != nil {
		return err
	}
	showDelays(delays, s)
	return nil
}

func showDelays(delays []time.Duration, s traffic.Summary) {
	middle := median(delays)
	fmt.Printf("\nfrom the end of the last request to the stop (%d drains under load, default flags)\n", len(delays))
	fmt.Printf("  median %s (%s to %s); goal: at most %s: %s\n", milliseconds(middle),
		milliseconds(slices.Min(delays)), milliseconds(slices.Max(delays)), milliseconds(stopGoal), verdict(middle <= stopGoal))
	fmt.Printf("  %d requests, %d streams, %d failed; goal: none: %s\n", s.Requests, s.Streams, s.Failed, verdict(s.Failed == 0))
}

// drainOnce drains a busy app and puts it back.
func drainOnce(ctx context.Context, l *lab.Lab, load *lab.Load, app *lab.Machine) (time.Duration, error) {
	if err := busy(ctx, l, load, app); err != nil {
		return 0, err
	}
	if out, err := l.LB.Run(ctx, "drainctl", "drain", app.Addr, "--service", lab.AppUnit); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	events, err := app.AppEvents()
	if err != nil {
		return 0, err
	}
	stop := len(events) - 1
	if stop < 1 || events[stop].Kind != "TERM" || events[stop-1].Kind != "END" || events[stop].Open != 0 {
		return 0, fmt.Errorf("%s was not drained before it was stopped: %+v", app.Name, events[max(0, stop-1):])
	}
	if out, err := l.LB.Run(ctx, "drainctl", "undrain", app.Addr, "--service", lab.AppUnit); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	return events[stop].Time.Sub(events[stop-1].Time), nil
}

// busy waits until an app holds some streams and answers requests.
func busy(ctx context.Context, l *lab.Lab, load *lab.Load, app *lab.Machine) error {
	since := time.Now()
	err := load.WaitFor(ctx, flowLimit, func(s traffic.Summary) bool { return s.Servers[app.Name].Last.After(since) })
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(flowLimit); ; time.Sleep(100 * time.Millisecond) {
		events, err := app.AppEvents()
		if err != nil {
			return err
		}
		streams := 0
		for _, e := range events {
			switch {
			case e.Kind == "BOOT":
				streams = 0
			case !strings.HasPrefix(e.What, "GET /ws"):
			case e.Kind == "START":
				streams++
			case e.Kind == "END":
				streams--
			}
		}
		if streams >= 3 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not get 3 streams in %s", app.Name, flowLimit)
		}
	}
}
