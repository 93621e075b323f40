package nginx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A masterState is what a master does at one moment.
type masterState struct {
	idle bool // it waits for a signal, and none is pending
	// sleeps is how often it has gone to sleep: it has done something in between.
	sleeps uint64
	// activity is another number after each load of a configuration, failed or not.
	activity uint64
}

// masterState looks at what the master does. nginx blocks its signals except while it sleeps in
// sigsuspend(2) (ngx_master_process_cycle). So none is blocked or pending once a load is over,
// with the start of its workers and the order to the earlier ones to end.
func (b Binary) masterState(pid int) (m masterState, err error) {
	status, err := b.readProc(pid, "status")
	if err != nil {
		return m, err
	}
	m.idle = strings.HasPrefix(field(status, "State"), "S") && noSignals(status, "SigBlk") &&
		noSignals(status, "SigPnd") && noSignals(status, "ShdPnd")
	if m.sleeps, err = number(status, "voluntary_ctxt_switches"); err != nil {
		return m, fmt.Errorf("process %d: %w", pid, err)
	}
	// What the thread has read itself: a worker that ends adds what it has read to the sum of
	// its parent's process, but not to a thread's.
	io, err := b.readProc(pid, fmt.Sprintf("task/%d/io", pid))
	if err == nil {
		m.activity, err = number(io, "rchar")
	}
	if err != nil {
		m.activity = m.sleeps // it tells less: the master wakes for a worker that ends, too
	}
	return m, nil
}

// hangUp sends SIGHUP to a master, as nginx -s reload does after it has read the whole configuration
// once more (ngx_signal_process). It checks the start time after os.FindProcess has opened a pidfd, so
// that a later process of the same PID gets no signal. Kernels before 5.4 have no such pidfd: there, a
// moment between the check and the signal remains.
func (b Binary) hangUp(master Process) error {
	p, err := os.FindProcess(master.PID)
	if err != nil {
		return fmt.Errorf("process %d: %w", master.PID, err)
	}
	defer func() { _ = p.Release() }()
	stat, err := b.readProc(master.PID, "stat")
	if err != nil {
		return err
	}
	now := Process{PID: master.PID}
	if _, now.Started, err = parseStat(stat); err != nil {
		return fmt.Errorf("process %d: %w", master.PID, err)
	}
	if !now.same(master) {
		return fmt.Errorf("process %d is not the nginx master any more: %w", master.PID, ErrNotRunning)
	}
	if err := p.Signal(syscall.SIGHUP); err != nil {
		return fmt.Errorf("kill -HUP %d: %w", master.PID, err)
	}
	return nil
}

// A child is a child of a master. kind is what its command line says it is.
type child struct {
	pid  int
	kind childKind
}

type childKind int

const (
	ofNginx childKind = iota // nginx has titled it
	foreign                  // a module has started it, or a container gave it to its first process
	ending                   // no command line: it has ended, or just ends, and its parent has not waited for it
)

// childrenOf returns a process's children, those included that have ended and that it has not
// waited for. It may omit some while others end (proc(5)).
func (b Binary) childrenOf(pid int) (children []child, err error) {
	text, err := b.readProc(pid, fmt.Sprintf("task/%d/children", pid))
	if err == nil {
		for word := range strings.FieldsSeq(text) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("process %d: unexpected children in /proc: %w", pid, err)
			}
			children = append(children, child{pid, b.kindOf(pid)})
		}
		return children, nil
	}
	all, err := processes(b.procDir()) // a kernel without this file
	for _, p := range all {
		if p.Parent == pid {
			children = append(children, child{p.PID, ofNginx})
		}
	}
	return children, err
}

func (b Binary) kindOf(pid int) childKind {
	title, _ := b.readProc(pid, "cmdline") // an error: it is gone
	switch {
	case title == "":
		return ending
	case strings.HasPrefix(title, titlePrefix):
		return ofNginx
	}
	return foreign
}

// readProc reads a file of a process. The error wraps [ErrNotRunning] if there is no such process.
func (b Binary) readProc(pid int, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(b.procDir(), strconv.Itoa(pid), name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return "", fmt.Errorf("process %d is not an nginx master: %w", pid, ErrNotRunning)
	}
	return string(text), err
}

// field is the value of a line "name: value"; empty if there is none.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func number(text, name string) (uint64, error) {
	n, err := strconv.ParseUint(field(text, name), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("unexpected %s in /proc: %w", name, err)
	}
	return n, nil
}

// noSignals reports whether a set of signals in /proc/PID/status is empty.
func noSignals(status, name string) bool {
	n, err := strconv.ParseUint(field(status, name), 16, 64)
	return err == nil && n == 0
}
