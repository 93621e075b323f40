package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// A child is a command that is measured, and what its runs took.
type child struct {
	name string
	args []string
	took []time.Duration // from start to end
	rss  []int64         // the most memory it had at once, in KiB
	said []byte          // what the last run printed
}

// run runs the command once more. Linux counts into a child's maximum what its parent
// held when it became another program (exec_mmap in fs/exec.c), so this program keeps
// small.
func (c *child) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	// What is in the environment of whoever measures is not measured.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", c.name, err, said.String())
	}
	c.took, c.said = append(c.took, took), said.Bytes()
	c.rss = append(c.rss, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
	return nil
}

// alternate runs the children in turn, so that what else the machine does falls on all
// of them alike. The first round, which fills caches, does not count.
func alternate(ctx context.Context, rounds int, children ...*child) error {
	for round := range rounds + 1 {
		for _, c := range children {
			if err := c.run(ctx); err != nil {
				return err
			}
			if round == 0 {
				c.took, c.rss = nil, nil
			}
		}
	}
	return nil
}
