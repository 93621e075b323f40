package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process of the machine, told apart from a later one that was
// given the same number: a number alone is no reason to kill anything.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, field 22 of /proc/PID/stat
	What  string `json:"what"`
}

// findProcess reads the identity of a running process.
func findProcess(pid int, what string) (process, error) {
	stat, err := readStat(pid)
	if err != nil {
		return process{}, fmt.Errorf("process %d (%s): %w", pid, what, err)
	}
	return process{PID: pid, Start: stat.start, What: what}, nil
}

// alive says whether that very process still runs; a zombie does not.
func (p process) alive() bool {
	stat, err := readStat(p.PID)
	return err == nil && stat.start == p.Start && stat.state != 'Z' && stat.state != 'X'
}

// signal sends sig to that very process and to no other. The process descriptor
// is opened before the start time is compared, so that the number cannot be
// handed to somebody else in between.
func (p process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() {
		return nil
	}
	if err := ignoreGone(unix.PidfdSendSignal(fd, sig, nil, 0)); err != nil {
		return fmt.Errorf("signal %s to process %d (%s): %w", unix.SignalName(sig), p.PID, p.What, err)
	}
	return nil
}

// end kills the process and waits until it is gone.
func (p process) end(limit time.Duration) error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.gone(limit)
}

// gone waits until the process has ended.
func (p process) gone(limit time.Duration) error {
	for deadline := time.Now().Add(limit); p.alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d (%s) still runs %s after it was to end", p.PID, p.What, limit)
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

type processStat struct {
	state  byte
	parent int
	start  uint64
}

// readStat reads /proc/PID/stat. The command name stands in parentheses and may
// hold anything, a parenthesis too, so the fields are counted from the last one.
func readStat(pid int) (processStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return processStat{}, fmt.Errorf("/proc/%d/stat has no command name", pid)
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 20 {
		return processStat{}, fmt.Errorf("/proc/%d/stat has %d fields after the name, want 20 or more", pid, len(fields))
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return processStat{}, fmt.Errorf("/proc/%d/stat: parent: %w", pid, err)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return processStat{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return processStat{state: fields[0][0], parent: parent, start: start}, nil
}

// processIDs lists the processes that run now.
func processIDs() ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// children lists the processes whose parent is pid.
func children(pid int) ([]int, error) {
	all, err := processIDs()
	if err != nil {
		return nil, err
	}
	var found []int
	for _, candidate := range all {
		if stat, err := readStat(candidate); err == nil && stat.parent == pid {
			found = append(found, candidate)
		}
	}
	return found, nil
}

// isInit says whether a process is the first one of a PID namespace of its own.
func isInit(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			numbers := strings.Fields(rest)
			return len(numbers) > 1 && numbers[len(numbers)-1] == "1"
		}
	}
	return false
}

// arguments reads the command line of a process.
func arguments(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}
