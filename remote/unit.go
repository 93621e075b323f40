package remote

import (
	"context"
	"fmt"
	"regexp"
)

var (
	listenerPID = regexp.MustCompile(`\bpid=([0-9]+)`)
	cgroupUnit  = regexp.MustCompile(`(?m)/([\w:.\\@-]+\.service)(?:/.*)?$`)
)

// UnitListening is the systemd unit that listens on a port of h. It is empty where
// there is none, or where the login user may not see whose the process is.
func UnitListening(ctx context.Context, h Host, port uint16) (string, error) {
	text, err := output(ctx, h, "ss", "-Hltnp", fmt.Sprintf("sport = :%d", port))
	pid := listenerPID.FindStringSubmatch(text)
	if err != nil || pid == nil {
		return "", err
	}
	text, err = output(ctx, h, "cat", "/proc/"+pid[1]+"/cgroup")
	return unitOf(text), err
}

// unitOf is the unit in a process's cgroup (systemd.unit(5), proc(5)).
func unitOf(cgroup string) string {
	if m := cgroupUnit.FindStringSubmatch(cgroup); m != nil {
		return m[1]
	}
	return ""
}

func output(ctx context.Context, h Host, args ...string) (string, error) {
	r, err := h.Run(ctx, Command{Args: args})
	if err == nil {
		err = r.Err(args...)
	}
	return string(r.Stdout), err
}
