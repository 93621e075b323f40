package balancer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// refuseWritable refuses a configuration that the agent's caller can change: nginx tests
// and loads it as root, and the caller's right is to drain.
func (l *Local) refuseWritable(ctx context.Context, conf *nginx.Config, build nginx.Build) error {
	caller := l.options.Caller
	if !l.options.Served || caller.UID == 0 || os.Geteuid() != 0 {
		return nil
	}
	groups, err := groupsOf(ctx, caller)
	if err != nil {
		return refusal("find out whether %s can change the configuration: %w", caller, err)
	}
	found, err := conf.WritableBy(caller.UID, groups, build)
	if err != nil {
		return refusal("find out whether %s can change the configuration: %w", caller, err)
	}
	if len(found) == 0 {
		return nil
	}
	var paths []string
	for i, w := range found {
		if i == maxNamed {
			paths = append(paths, fmt.Sprintf("and %d more", len(found)-i))
			break
		}
		paths = append(paths, w.Path)
	}
	return refusal("%s can write what nginx reads as root, and would be root by it: %s\nhint: have root own these, with no right to write for others: chown root PATH; chmod go-w PATH; setfacl -b PATH",
		caller, strings.Join(paths, ", "))
}

func refusal(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: CodeRefused, Message: err.Error(), cause: err}
}

// idLimit bounds how long the name service may take.
const idLimit = 10 * time.Second

// groupsOf is all groups of a user, the primary one first, from wherever this machine's
// name service has them (id(1)).
func groupsOf(ctx context.Context, user journal.Recorder) (groups []uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, idLimit)
	defer cancel()
	uid := strconv.FormatUint(uint64(user.UID), 10)
	out, err := exec.CommandContext(ctx, "/usr/bin/id", "-G", uid).Output()
	if err != nil && user.Name != "" {
		out, err = exec.CommandContext(ctx, "/usr/bin/id", "-G", user.Name).Output() // BusyBox takes names alone
	}
	if err != nil {
		return nil, fmt.Errorf("id -G %s: %w", uid, err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("id -G %s: %w", uid, err)
		}
		groups = append(groups, uint32(n))
	}
	if len(groups) == 0 {
		return nil, errors.New("id -G tells no group")
	}
	return groups, nil
}
