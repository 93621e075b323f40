package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The goals of a drain on many load balancers.
const (
	scaleTime   = 1.0       // as a part of what the shell loop takes
	scaleMemory = 150 << 10 // KiB
)

// scales are how many load balancers are measured. The last is the one with a goal.
var scales = []int{1, 4, 16, 64}

// shellLoop is what is done without drainctl. It ends before the new generations serve,
// writes nothing to the disk, and counts no connections.
const shellLoop = `printf '%%s\n' %s | xargs -P64 -I{} ssh -o BatchMode=yes root@{} "sed -i 's/%s/%s/' /etc/nginx/nginx.conf && nginx -t && nginx -s reload"`

// scale drains one backend on many load balancers, beside a shell loop.
func (m measurements) scale(ctx context.Context) error {
	if m.fleets == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("drains on many load balancers are measured with sshd and nginx in namespaces, which needs root: run it as root or with sudo, or leave them out with -fleets 0")
	}
	return onSite(ctx, slices.Max(scales), m.drainctl, func(s *site) error {
		stop, err := s.backend()
		if err != nil {
			return err
		}
		defer stop()
		fmt.Printf("\na drain of an idle backend with --lb, beside a shell loop of sed, nginx -t and nginx -s reload (median of %d)\n", m.fleets)
		fmt.Printf("  %-15s %-12s %-12s %-12s %s\n", "load balancers", "loop", "drain", "undrain", "memory of drain")
		for _, n := range scales {
			if err := m.scaleTo(ctx, s, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// scaleTo measures n load balancers.
func (m measurements) scaleTo(ctx context.Context, s *site, n int) error {
	line := func(command string, flags ...string) []string {
		line := append([]string{m.drainctl, command, "192.168.1.10", "--output", "json"}, flags...)
		for _, lb := range s.lbs[:n] {
			line = append(line, "--lb", "root@"+lb.addr)
		}
		return line
	}
	var hosts []string
	for _, lb := range s.lbs[:n] {
		hosts = append(hosts, lb.addr)
	}
	loop := func(from, to string) []string {
		return []string{"sh", "-c", fmt.Sprintf(shellLoop, strings.Join(hosts, " "), from, to)}
	}
	up, down := "server "+backendAddr+";", "server "+backendAddr+" down;"
	drain, undrain := &child{name: "drainctl drain", args: line("drain", "--poll", "lb")}, &child{name: "drainctl undrain", args: line("undrain")}
	loopDown, loopUp := &child{name: "the shell loop", args: loop(up, down)}, &child{name: "the shell loop back", args: loop(down, up)}
	phases := map[string][]time.Duration{}
	for round := range m.fleets + 1 { // the first fills caches, and does not count
		for _, c := range []*child{drain, undrain, loopDown, loopUp} {
			began := time.Now()
			if err := s.changes(ctx, n, c == drain || c == loopDown, c); err != nil {
				return err
			}
			if c == drain && round > 0 {
				if err := addPhases(phases, began, c.said); err != nil {
					return err
				}
			}
			if round == 0 {
				c.took, c.rss = nil, nil
			}
		}
	}
	// The way back of the loop is the same work again.
	there := median(append(loopDown.took, loopUp.took...))
	took, rss := median(drain.took), median(drain.rss)
	fmt.Printf("  %-15d %-12s %-12s %-12s %d MB\n", n, milliseconds(there), milliseconds(took), milliseconds(median(undrain.took)), rss>>10)
	if n < slices.Max(scales) {
		return nil
	}
	showPhases(phases)
	ratio := took.Seconds() / there.Seconds()
	fmt.Printf("  the whole drain: time x %.2f of the loop, goal x %.2f: %s; memory %d MB, goal: at most %d MB: %s\n",
		ratio, scaleTime, verdict(ratio <= scaleTime), rss>>10, scaleMemory>>10, verdict(rss <= scaleMemory))
	return nil
}

// changes runs a command, and makes sure that it has changed n load balancers, that
// they serve what it wrote, and that the others are as they were.
func (s *site) changes(ctx context.Context, n int, down bool, c *child) error {
	before, err := s.workers()
	if err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	for i, lb := range s.lbs {
		text, err := os.ReadFile(lb.conf())
		if err != nil {
			return err
		}
		if is := bytes.Contains(text, []byte(backendAddr+" down;")); is != (down && i < n) {
			return fmt.Errorf("%s: down is %t on %s", c.name, is, lb.addr)
		}
	}
	// The loop does not wait for that.
	return until(ctx, settleLimit, "every load balancer serves what was written", func() (bool, error) {
		now, err := s.workers()
		for i := range s.lbs[:n] {
			if len(now[i]) != 1 || slices.Equal(now[i], before[i]) {
				return false, err
			}
		}
		return true, err
	})
}

// workers is the processes of nginx's workers on each load balancer, the serving and the
// exiting.
func (s *site) workers() ([][]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	parents, titles := map[int]int{}, map[int]string{}
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		title, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil || !bytes.HasPrefix(title, []byte("nginx: ")) {
			continue
		}
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		_, fields, _ := strings.Cut(string(stat), ") ")
		titles[pid] = string(title)
		parents[pid], _ = strconv.Atoi(strings.Fields(fields)[1])
	}
	workers := make([][]int, len(s.lbs))
	for pid, title := range titles {
		i := slices.IndexFunc(s.lbs, func(lb *siteLB) bool { return lb.first.Process.Pid == parents[parents[pid]] })
		if i >= 0 && strings.HasPrefix(title, "nginx: worker process") {
			workers[i] = append(workers[i], pid)
		}
	}
	return workers, nil
}

// addPhases adds when each part of a drain had ended, since it began.
func addPhases(to map[string][]time.Duration, began time.Time, events []byte) error {
	last := map[string]time.Time{}
	for line := range bytes.Lines(events) {
		var e struct {
			Event string    `json:"event"`
			Step  string    `json:"step"`
			Time  time.Time `json:"time"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("drainctl said %q: %w", line, err)
		}
		switch e.Event {
		case "step_done":
			last[e.Step] = e.Time
		case "plan", "edited", "operation_started":
			last[e.Event] = e.Time
		}
	}
	for name, at := range last {
		to[name] = append(to[name], at.Sub(began))
	}
	return nil
}

// showPhases says where the time of a drain goes.
func showPhases(phases map[string][]time.Duration) {
	var parts []string
	for _, p := range []struct{ event, text string }{
		{"plan", "connected, locked and planned"}, {"operation_started", "checked"}, {"edited", "recorded, edited and tested"},
		{"mark down", "reloaded and seen"}, {"wait", "connections counted"},
	} {
		if len(phases[p.event]) > 0 {
			parts = append(parts, p.text+" after "+milliseconds(median(phases[p.event])))
		}
	}
	fmt.Printf("  %s\n", strings.Join(parts, ", "))
}
