// Command measure measures how fast drainctl is, beside nginx and HAProxy on the same machine
// and in the same run, and says of each goal whether it was met. "make bench" runs it. It
// needs nginx and, for drains, root and the lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var m measurements
	flag.StringVar(&m.drainctl, "drainctl", "build/lab/drainctl", "the `program` to measure")
	flag.IntVar(&m.runs, "runs", 15, "`how many` runs of each command; the median counts")
	flag.IntVar(&m.drains, "drains", 18, "`how many` drains in the lab; 0 leaves the lab out")
	flag.IntVar(&m.fleets, "fleets", 5, "`how many` drains on each number of load balancers; 0 leaves them out")
	flag.IntVar(&m.passes, "passes", 5, "`how many` rolling runs beside as many shell loops; 0 leaves them out")
	flag.IntVar(&m.overLB, "over-lb", 9, "`how many` drains over --lb beside as many on the load balancer; 0 leaves them out")
	flag.IntVar(&m.haproxy, "haproxy", 15, "`how many` drains under load beside as many with HAProxy; 0 leaves them out")
	flag.Parse()
	if flag.NArg() > 0 || m.runs < 1 || min(m.drains, m.overLB, m.haproxy, m.fleets, m.passes) < 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := m.all(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

// measurements is what is measured, and how often.
type measurements struct {
	drainctl string
	runs     int
	drains   int
	fleets   int
	passes   int
	overLB   int
	haproxy  int
}

func (m measurements) all(ctx context.Context) error {
	program, err := filepath.Abs(m.drainctl)
	if err != nil {
		return err
	}
	m.drainctl = program
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w: build it first (make bench does)", err)
	}
	var errs []error
	for _, measure := range []func(context.Context) error{m.version, m.planning, m.scale, m.inLab} {
		if err := measure(ctx); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
	return errors.Join(errs...)
}

// median is the middle one of values, which it sorts.
func median[T int64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// verdict says whether a goal was met.
func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
