package drain

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// nginxHost lets package nginx use a host without knowing package remote.
type nginxHost struct{ remote.Host }

func (h nginxHost) Exec(ctx context.Context, args ...string) (stdout, stderr string, code int, err error) {
	r, err := h.Run(ctx, remote.Command{Args: args, Root: true})
	return string(r.Stdout), string(r.Stderr), r.Code, err
}

func (lb *LB) nginxHost() nginx.Host { return nginxHost{lb.Host} }

// confPath is the main file: the one named, what the binary says, or the usual
// place when there is no binary to ask.
func (lb *LB) confPath(ctx context.Context) (string, error) {
	if lb.Conf != "" {
		return lb.Conf, nil
	}
	build, err := lb.build(ctx)
	switch {
	case errors.Is(err, nginx.ErrNoBinary):
		return nginx.DefaultConf, nil
	case err != nil:
		return "", &Failure{Kind: Refused, Err: err, Now: "nothing was touched"}
	}
	return build.Conf, nil
}

// DefaultBinary is the nginx that is run unless another is named.
const DefaultBinary = "nginx"

// usualBinaries is where nginx is looked for when it is not in PATH: a user's
// often lacks the directories of the system's own programs.
var usualBinaries = []string{"/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx"}

// build asks the binary what it is, once. That needs no root.
func (lb *LB) build(ctx context.Context) (nginx.Build, error) {
	if lb.built != nil {
		return *lb.built, nil
	}
	build, err := lb.askBuild(ctx)
	if err == nil {
		lb.built = &build
	}
	return build, err
}

func (lb *LB) askBuild(ctx context.Context) (nginx.Build, error) {
	b := lb.Nginx
	b.Host = plainHost{lb.Host}
	build, err := b.Build(ctx)
	if b.Path != DefaultBinary || !errors.Is(err, nginx.ErrNoBinary) {
		return build, err
	}
	for _, b.Path = range usualBinaries {
		if build, again := b.Build(ctx); again == nil {
			lb.Nginx.Path = b.Path
			return build, nil
		}
	}
	return build, err
}

// plainHost runs commands as the user, not as root.
type plainHost struct{ remote.Host }

func (h plainHost) Exec(ctx context.Context, args ...string) (stdout, stderr string, code int, err error) {
	r, err := h.Run(ctx, remote.Command{Args: args})
	return string(r.Stdout), string(r.Stderr), r.Code, err
}

// binary is nginx as it is run on this host.
func (lb *LB) binary() nginx.Binary {
	b := lb.Nginx
	b.Host = lb.nginxHost()
	if lb.Conf != "" {
		b.Conf = lb.Conf
	}
	return b
}

// loadFailed begins the error of a reload that nginx took and did not carry out.
const loadFailed = "nginx took the reload but could not load the configuration, and goes on with the old one: "

// A reloadError is a reload that did not take effect.
type reloadError struct {
	why string
	// sure tells that the master itself said that it gave up. Otherwise it may
	// still be loading.
	sure bool
}

func (e *reloadError) Error() string { return e.why }

// How often the workers, and less often the error log, are looked at while a
// reload takes effect.
const (
	generationInterval = 20 * time.Millisecond
	errorLogInterval   = 200 * time.Millisecond
)

// running looks at the nginx that runs, by what conf says of it.
func (lb *LB) running(ctx context.Context, conf *nginx.Config) (nginx.Running, error) {
	build, err := lb.build(ctx)
	if err != nil && !errors.Is(err, nginx.ErrNoBinary) {
		return nginx.Running{}, err
	}
	return lb.binary().Running(ctx, conf.PIDPath(build))
}

// byPIDFile looks at the nginx that the PID file of conf names, and looks no
// further.
func (lb *LB) byPIDFile(ctx context.Context, b nginx.Binary, conf *nginx.Config) (nginx.Running, error) {
	build, err := lb.build(ctx)
	if err != nil && !errors.Is(err, nginx.ErrNoBinary) {
		return nginx.Running{}, err
	}
	content, err := b.Host.ReadFile(ctx, conf.PIDPath(build))
	if err != nil {
		return nginx.Running{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return nginx.Running{}, err
	}
	return b.Processes(ctx, pid)
}

// reload sends the reload and returns when a later generation serves and no
// earlier worker accepts. Before that, nothing that is counted means anything.
func (lb *LB) reload(ctx context.Context, conf *nginx.Config, limit time.Duration) (after nginx.Running, err error) {
	build, _ := lb.build(ctx)
	b := lb.binary()
	before, err := b.Running(ctx, conf.PIDPath(build))
	if err != nil {
		return after, err
	}
	mark := b.MarkLogs(ctx, conf.LogPaths(build))
	if len(mark) == 0 {
		b.MarkJournal(ctx, mark, before.Master.PID)
	}
	if err := b.Reload(ctx); err != nil {
		return after, err
	}
	began, looked := time.Now(), time.Now()
	for {
		after, err = b.Processes(ctx, before.Master.PID)
		if err != nil {
			return after, err
		}
		if after.Replaced(before) {
			// A worker that crashes and is replaced looks like a new generation,
			// too. The log tells them apart.
			if why := b.LoadFailure(ctx, mark, before.Master.PID); why != "" {
				return after, &reloadError{loadFailed + why, true}
			}
			return after, nil
		}
		if time.Since(looked) >= errorLogInterval && !after.Started(before) {
			looked = time.Now()
			if why := b.LoadFailure(ctx, mark, before.Master.PID); why != "" {
				return after, &reloadError{loadFailed + why, true}
			}
		}
		if time.Since(began) > limit {
			return after, &reloadError{notReplaced(after, before, limit), false}
		}
		if err := sleep(ctx, generationInterval); err != nil {
			return after, err
		}
	}
}

func notReplaced(after, before nginx.Running, limit time.Duration) string {
	if after.Started(before) {
		return fmt.Sprintf("after the reload, workers of the earlier generation still accept connections after %s", limit)
	}
	return fmt.Sprintf("after the reload, no new generation of workers was seen within %s; nginx's error log may say why", limit)
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// journal is the load balancer's.
func (lb *LB) journal(req *Request) journal { return journal{host: lb.Host, dir: req.StateDir} }
