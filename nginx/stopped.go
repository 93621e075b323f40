package nginx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Stopped reports whether no nginx runs with a configuration, or starts with it. It returns false if a
// master runs. It waits up to limit for a process that could be one, and fails then: an nginx that starts
// has read its files before it has a title and a PID file (ngx_init_cycle, ngx_master_process_cycle),
// one that tests them ends, and workers whose master was killed go on serving.
func (b Binary) Stopped(ctx context.Context, conf *Config, limit time.Duration) (bool, error) {
	build, _ := b.Build(ctx) // without a binary, the defaults are not known
	end, free := time.Now().Add(limit), 0
	for {
		if _, err := b.Running(ctx, conf.PIDPath(build)); !errors.Is(err, ErrNotRunning) {
			return false, err
		}
		p, err := b.suspect(conf, build)
		pause := confirmInterval
		switch {
		case err != nil:
			return false, err
		case p.PID != 0:
			free, pause = 0, generationInterval
		case free > 0: // one look is not atomic: a process may have started another one meanwhile
			return true, nil
		default:
			free++
		}
		if p.PID != 0 && time.Now().After(end) {
			return false, fmt.Errorf("%s names no nginx master, but whether nginx is stopped is not known: %s (PID %d) may have the configuration %s",
				conf.PIDPath(build), p.Describe(), p.PID, conf.Path)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// suspect returns a process that may have the configuration, or the zero Process if there is none.
func (b Binary) suspect(conf *Config, build Build) (Process, error) {
	programs := []string{DefaultBinary, filepath.Base(b.Path)}
	if real, err := filepath.EvalSymlinks(b.Path); err == nil {
		programs = append(programs, filepath.Base(real))
	}
	all, err := processes(b.procDir(), programs...)
	i := slices.IndexFunc(all, func(p Process) bool {
		isChild := slices.ContainsFunc(all, func(q Process) bool { return q.PID == p.Parent })
		isWorker := strings.HasPrefix(p.Title, titlePrefix) && !p.isMaster()
		return isWorker && !isChild || !isWorker && (b.proc == "" && !p.sharesFiles() || !p.hasOther(conf, build))
	})
	if i < 0 {
		return Process{}, err
	}
	return all[i], nil
}

// sharesFiles reports whether a process has the mount namespace of this one. In another one, that of a
// container, its path of the configuration says nothing.
func (p Process) sharesFiles() bool {
	own, err := os.Readlink("/proc/self/ns/mnt")
	theirs, theirsErr := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", p.PID))
	return errors.Join(err, theirsErr) == nil && own == theirs
}

// hasOther reports whether a master, or an nginx that has no title yet, certainly has another
// configuration.
func (p Process) hasOther(conf *Config, build Build) bool {
	path := Running{Master: p}.ConfOf(build)
	if path == "" && !strings.Contains(p.Title, "-c") { // which may be joined with its value
		path = build.Conf
	}
	theirs, err := RealPath(path)
	ours, oursErr := RealPath(conf.Path)
	return errors.Join(err, oursErr) == nil && theirs != ours
}
