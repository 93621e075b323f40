package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/drainctl/drainctl/testdata/bench"
)

// The goals of planning, as parts of what nginx -t takes on the same files.
const (
	planTime    = 0.2
	planMemory  = 0.3
	dryRunTime  = 1.2
	versionTime = 20 * time.Millisecond
)

// planned is the server that is planned for, in the middle of the pool.
const planned = "10.0.195.80:8080"

// version measures how long the program takes to do nothing.
func (m measurements) version(ctx context.Context) error {
	v := &child{name: "drainctl --version", args: []string{m.drainctl, "--version"}}
	if err := alternate(ctx, m.runs, v); err != nil {
		return err
	}
	took := median(v.took)
	fmt.Printf("\n%s (median of %d)\n  %s; goal: at most %s: %s\n", v.name, m.runs,
		milliseconds(took), milliseconds(versionTime), verdict(took <= versionTime))
	return nil
}

// planning measures a dry run in a large configuration, beside nginx's own test of it.
func (m measurements) planning(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "drainctl-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	pool := bench.Large()
	if err := pool.Write(dir); err != nil {
		return err
	}
	size, err := sizeOf(dir)
	if err != nil {
		return err
	}
	nginx, err := findNginx()
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	test := []string{nginx, "-t", "-p", dir, "-c", conf}
	dryRun := []string{m.drainctl, "drain", planned, "--dry-run", "-c", conf, "--test-command"}
	judge := &child{name: "nginx -t", args: test}
	plan := &child{name: "drainctl, planning alone", args: append(dryRun, "true")}
	whole := &child{name: "drainctl, whole dry run", args: append(dryRun[:len(dryRun):len(dryRun)], quoted(test))}
	if err := alternate(ctx, m.runs, judge, plan, whole); err != nil {
		return err
	}
	fmt.Printf("\ndrain --dry-run, %d servers in %d files, %.1f MB (median of %d)\n", pool.Servers, pool.Files, float64(size)/1e6, m.runs)
	showPlanning(judge, plan, whole)
	return nil
}

func showPlanning(judge, plan, whole *child) {
	time0, rss0 := median(judge.took), median(judge.rss)
	fmt.Printf("  %-26s %8s %8s\n", "", "time", "memory")
	for _, c := range []*child{judge, plan, whole} {
		took, rss := median(c.took), median(c.rss)
		fmt.Printf("  %-26s %6.3f s %5d MB", c.name, took.Seconds(), rss>>10)
		byTime, byMemory := took.Seconds()/time0.Seconds(), float64(rss)/float64(rss0)
		switch c {
		case plan:
			fmt.Printf("   time x %.2f, goal x %.2f: %s; memory x %.2f, goal x %.2f: %s",
				byTime, planTime, verdict(byTime <= planTime), byMemory, planMemory, verdict(byMemory <= planMemory))
		case whole:
			fmt.Printf("   time x %.2f, goal x %.2f: %s", byTime, dryRunTime, verdict(byTime <= dryRunTime))
		}
		fmt.Println()
	}
}

// quoted is a command line for --test-command. No word of it has a quote in it.
func quoted(words []string) string {
	line := ""
	for _, w := range words {
		line += "'" + w + "' "
	}
	return line
}

func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// findNginx looks where a plain user's path often does not.
func findNginx() (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no nginx to measure beside: install it with testdata/lab/setup.sh")
}
