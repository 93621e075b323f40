package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// rollingReloads is how many reloads a rolling run over three apps, one at a time, may
// take.
const rollingReloads = 4

// A pass is a way to take all apps out and put them back, one after the other.
type pass struct {
	name             string
	command          string // for the shell of the load balancer
	took             []time.Duration
	waited           []time.Duration // of that, for what clients had open
	reloads          []int64
	requests, failed int
}

// rolling runs over the whole pool under load, beside a shell loop that drains and
// undrains each app.
func (m measurements) rolling(ctx context.Context, l *lab.Lab) error {
	if m.passes == 0 {
		return nil
	}
	var addrs []string
	for _, app := range l.Apps {
		addrs = append(addrs, app.Addr)
	}
	loop := &pass{name: "shell loop of drain and undrain", command: "set -e; for app in " + strings.Join(addrs, " ") +
		"; do drainctl drain $app --service " + lab.AppUnit + " --output json; drainctl undrain $app --output json; done"}
	run := &pass{name: "drainctl run", command: "drainctl run --upstream backend_servers --service " + lab.AppUnit + " --output json -- true"}
	// Only so does nginx's master log each reload.
	conf := "error_log /var/log/nginx/reloads.log notice;\n" + lab.NginxConf
	if err := l.LB.WriteConf(ctx, map[string]string{lab.NginxConfPath: conf}); err != nil {
		return err
	}
	for range m.passes {
		for _, p := range []*pass{loop, run} {
			if err := p.take(ctx, l); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	fmt.Printf("\nthree apps out and back, one at a time, under load (median of %d)\n", m.passes)
	for _, p := range []*pass{loop, run} {
		fmt.Printf("  %-32s %5.1f s, of which %.1f s for open requests; %d reloads, %d of %d requests failed\n",
			p.name, median(p.took).Seconds(), median(p.waited).Seconds(), median(p.reloads), p.failed, p.requests)
	}
	reloads, ratio := median(run.reloads), median(run.took).Seconds()/median(loop.took).Seconds()
	fmt.Printf("  time x %.2f, goal: less than x 1.00: %s; reloads, goal: %d: %s; failed, goal: none: %s\n",
		ratio, verdict(ratio < 1), rollingReloads, verdict(reloads == rollingReloads), verdict(loop.failed+run.failed == 0))
	return nil
}

// take takes a pass under a load of its own.
func (p *pass) take(ctx context.Context, l *lab.Lab) error {
	for _, app := range l.Apps {
		// systemd would refuse to start the app so often.
		if out, err := app.Run(ctx, "systemctl", "reset-failed", lab.AppUnit); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	// The waits of both ways are alike only where the requests are.
	load, err := l.StartLoad(ctx, lab.LoadOptions{Only: traffic.Even, Streams: -1, Limit: time.Hour})
	if err != nil {
		return err
	}
	err = p.timed(ctx, l, load)
	s, stopErr := load.Stop()
	if err == nil {
		err = stopErr
	}
	p.requests, p.failed = p.requests+s.Requests, p.failed+s.Failed
	return err
}

func (p *pass) timed(ctx context.Context, l *lab.Lab, load *lab.Load) error {
	if err := allServe(ctx, l, load); err != nil {
		return err
	}
	before, err := reloadsOf(ctx, l.LB)
	if err != nil {
		return err
	}
	began := time.Now()
	out, err := l.LB.Run(ctx, "sh", "-c", p.command)
	if err != nil {
		return err
	}
	p.took, p.waited = append(p.took, time.Since(began)), append(p.waited, waitsIn(out))
	after, err := reloadsOf(ctx, l.LB)
	p.reloads = append(p.reloads, after-before)
	if err != nil {
		return err
	}
	return allServe(ctx, l, load) // the pool is whole again
}

// allServe waits until each app has answered a request from now on.
func allServe(ctx context.Context, l *lab.Lab, load *lab.Load) error {
	since := time.Now()
	return load.WaitFor(ctx, flowLimit, func(s traffic.Summary) bool {
		for _, app := range l.Apps {
			if !s.Servers[app.Name].Last.After(since) {
				return false
			}
		}
		return true
	})
}

// waitsIn is how long the drains took, whose events are given, from the mark to the
// last of the open requests.
func waitsIn(events string) (sum time.Duration) {
	for line := range strings.Lines(events) {
		var e struct {
			Event     string  `json:"event"`
			Step      string  `json:"step"`
			Direction string  `json:"direction"`
			Elapsed   float64 `json:"elapsed"`
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == "step_done" && e.Step == "wait" && e.Direction == "forward" {
			sum += time.Duration(e.Elapsed * float64(time.Second))
		}
	}
	return sum
}

// reloadsOf is how many reloads nginx's own log has.
func reloadsOf(ctx context.Context, lb *lab.Machine) (int64, error) {
	text, err := lb.ReadFile(ctx, "/var/log/nginx/reloads.log")
	return int64(strings.Count(string(text), "(SIGHUP) received")), err
}
