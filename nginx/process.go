package nginx

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Process is one of nginx's. Its start tells it from a later one of the same
// PID.
type Process struct {
	PID     int
	Started uint64 // ticks since boot, /proc/PID/stat field 22
	Title   string // its command line, which nginx sets
	Parent  int    // the PID of its parent
	parents bool   // it is the parent of one of nginx's
}

// Memory is the bytes of memory that a process holds alone and its share of what
// it has in common with others (proc(5), smaps_rollup, Pss); 0 where that may not
// be read.
func (p Process) Memory() uint64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID))
	kB, _ := strconv.ParseUint(strings.TrimSuffix(field(string(text), "Pss"), " kB"), 10, 64)
	return kB << 10
}

// titlePrefix begins the title of each process of nginx.
const titlePrefix = "nginx: "

func (p Process) same(q Process) bool { return p.PID == q.PID && p.Started == q.Started }
func (p Process) isMaster() bool      { return strings.HasPrefix(p.Title, "nginx: master process") }

// IsExiting tells that it is a worker of an earlier generation, which finishes what it holds.
func (p Process) IsExiting() bool { return strings.Contains(p.Title, exiting) }

// IsThere tells whether the process still runs.
func (p Process) IsThere() bool {
	now, err := FindProcess(p.PID)
	return err == nil && p.same(now)
}

// maxDescription bounds what Describe takes from a process, in characters.
const maxDescription = 200

// Describe names the process for a person: of nginx, the configuration, without what else its command
// line has, which may be secret.
func (p Process) Describe() string {
	master := p
	if !p.isMaster() {
		master, _ = FindProcess(p.Parent)
	}
	if !strings.HasPrefix(p.Title, titlePrefix) || !master.isMaster() {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
		return cmp.Or(printable(string(name)), "a process")
	}
	return "nginx with " + cmp.Or(printable(Running{Master: master}.ConfOf(Build{})), "its default configuration")
}

// printable leaves out what a terminal does not print, and what is too long.
func printable(text string) string {
	return fmt.Sprintf("%.*s", maxDescription, strings.Map(func(r rune) rune {
		if notPrintable(r) {
			return -1
		}
		return r
	}, text))
}

// tick is the unit of start times: USER_HZ, which Linux has fixed at 100 for all
// it tells user space.
const tick = time.Second / 100

// clocks is the time since boot, as start times are, and the
// machine's clock not later than that; took is how far the two may be apart.
func clocks() (boot time.Duration, now time.Time, took time.Duration) {
	first := sinceBoot()
	now = time.Now()
	boot = sinceBoot()
	return boot, now, boot - first
}

// processes are the processes in proc that nginx has titled, by PID, and those whose program has one
// of the names: nginx titles a process when it has read its configuration. All are
// looked at, as /proc/PID/task/TID/children may omit some while
// others exit (proc(5)). One that ends meanwhile is left out.
func processes(proc string, programs ...string) ([]Process, error) {
	entries, err := list(proc)
	if err != nil {
		return nil, fmt.Errorf("look at the processes of nginx: %w", err)
	}
	var found []Process
	for _, name := range entries {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := process(proc, pid)
		switch {
		case errors.Is(err, errStat):
			return nil, err
		case err == nil && (strings.HasPrefix(p.Title, titlePrefix) || p.Title != "" && runsOneOf(proc, pid, programs)):
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(p, q Process) int { return p.PID - q.PID })
	return found, nil
}

// AllProcesses returns the processes of every nginx, by PID.
func AllProcesses() ([]Process, error) { return processes("/proc") }

// FindProcess returns a process, of nginx or not. It fails if the process is gone.
func FindProcess(pid int) (Process, error) { return process("/proc", pid) }

// process reads a process in proc.
func process(proc string, pid int) (Process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	title, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, err
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, err
	}
	p := Process{PID: pid, Title: strings.TrimSpace(strings.ReplaceAll(string(title), "\x00", " "))}
	if p.Parent, p.Started, err = parseStat(string(stat)); err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return p, nil
}

// errStat is a /proc/PID/stat that cannot be read.
var errStat = errors.New("unexpected stat")

// maxComm is the length to which Linux cuts the name of a program (proc(5), /proc/PID/comm).
const maxComm = 15

// runsOneOf reports whether the program of a process has one of the names.
func runsOneOf(proc string, pid int, programs []string) bool {
	if len(programs) == 0 {
		return false
	}
	comm, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "comm")) // an error: it has ended
	name := strings.TrimSuffix(string(comm), "\n")
	return slices.ContainsFunc(programs, func(p string) bool { return p[:min(len(p), maxComm)] == name })
}

// parseStat reads the parent and the start time out of /proc/PID/stat. The name
// before the last ')' may hold anything.
func parseStat(stat string) (parent int, started uint64, err error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("%w %q", errStat, cut(stat))
	}
	if parent, err = strconv.Atoi(fields[1]); err != nil {
		return 0, 0, fmt.Errorf("%w: the parent: %w", errStat, err)
	}
	if started, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return 0, 0, fmt.Errorf("%w: the start time: %w", errStat, err)
	}
	return parent, started, nil
}
