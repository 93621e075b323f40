package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/drainctl/drainctl/command"
)

// DefaultConf is where the configuration is looked for when nginx -V does not
// say.
const DefaultConf = "/etc/nginx/nginx.conf"

// A Build is what `nginx -V` says of the binary.
type Build struct {
	Version  string // such as 1.22.1
	Prefix   string // --prefix
	Conf     string // --conf-path, absolute
	PID      string // --pid-path, absolute
	ErrorLog string // --error-log-path, absolute; empty when it is no file
}

// A Binary is how nginx is run on this machine.
type Binary struct {
	Path string // "nginx" unless named
	Conf string // the main file; empty: the build's own
	// TestCommand and ReloadCommand replace `nginx -t` and the signal to the master
	// where nginx is run some other way; empty otherwise.
	TestCommand, ReloadCommand []string
	// Trace, if not nil, is told of each test and reload before it happens, as a
	// command. It is called by several goroutines.
	Trace func(args []string)

	build *Build // remembered by Find
	proc  string // where processes are found, if not in /proc
}

func (b Binary) procDir() string { return cmp.Or(b.proc, "/proc") }

// ErrNoBinary is wrapped when there is no nginx binary to run.
var ErrNoBinary = errors.New("no nginx binary\nhint: name it with --nginx")

// DefaultBinary is the nginx that is run unless another is named.
const DefaultBinary = "nginx"

// usualBinaries is where nginx is looked for when it is not in PATH: a user's
// often lacks the directories of the system's own programs.
var usualBinaries = []string{"/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx"}

// Find looks for the binary, if none is named in PATH and in the usual places,
// and asks it what it was built with. The Binary it returns has the path that was
// found and remembers its Build. The error wraps [ErrNoBinary] if there is none;
// the Binary is then as it was, and its TestCommand and ReloadCommand still work.
func Find(ctx context.Context, b Binary) (Binary, Build, error) {
	b.Path = cmp.Or(b.Path, DefaultBinary)
	build, err := b.Build(ctx)
	if b.Path == DefaultBinary && errors.Is(err, ErrNoBinary) {
		for _, path := range usualBinaries {
			there := b
			there.Path = path
			if found, again := there.Build(ctx); again == nil {
				b, build, err = there, found, nil
				break
			}
		}
	}
	if err == nil {
		b.build = &build
	}
	return b, build, err
}

// Build is what the binary was built with. The error wraps [ErrNoBinary] if
// there is none.
func (b Binary) Build(ctx context.Context) (Build, error) {
	if b.build != nil {
		return *b.build, nil
	}
	_, out, err := run(ctx, b.Path, "-V")
	var failed *CommandError
	if errors.As(err, &failed) && (failed.Code == command.NotFound || failed.Code == command.CannotExecute) {
		return Build{}, fmt.Errorf("%s -V: %w", b.Path, ErrNoBinary)
	}
	if err != nil {
		return Build{}, err
	}
	return parseBuild(out), nil
}

// configureArgument matches one argument as nginx's configure records it: --name,
// --name=value or --name='value'.
var configureArgument = regexp.MustCompile(`(--[a-z0-9_-]+)(?:=(?:'([^']*)'|(\S*)))?`)

// parseBuild reads the output of nginx -V. nginx's own defaults stand for what
// it does not say (auto/options in its sources).
func parseBuild(out string) Build {
	build := Build{Prefix: "/usr/local/nginx", Conf: "conf/nginx.conf", PID: "logs/nginx.pid", ErrorLog: "logs/error.log"}
	paths := map[string]*string{"--prefix": &build.Prefix, "--conf-path": &build.Conf, "--pid-path": &build.PID, "--error-log-path": &build.ErrorLog}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "nginx version: "); ok {
			_, v, _ = strings.Cut(v, "/")
			build.Version, _, _ = strings.Cut(strings.TrimSpace(v), " ")
		}
		args, ok := strings.CutPrefix(line, "configure arguments: ")
		if !ok {
			continue
		}
		for _, arg := range configureArgument.FindAllStringSubmatch(args, -1) {
			if p := paths[arg[1]]; p != nil {
				*p = arg[2] + arg[3]
			}
		}
	}
	for _, p := range []*string{&build.Conf, &build.PID, &build.ErrorLog} {
		*p = build.abs(*p)
	}
	if build.ErrorLog == build.abs("stderr") {
		build.ErrorLog = ""
	}
	return build
}

// abs resolves a path as nginx does, against its prefix.
func (b Build) abs(p string) string {
	if p == "" || path.IsAbs(p) {
		return p
	}
	return path.Join(b.Prefix, p)
}

// Test has nginx judge the configuration on disk. A configuration it refuses
// is a *[CommandError].
func (b Binary) Test(ctx context.Context) error {
	if len(b.TestCommand) > 0 {
		return b.traced(ctx, b.TestCommand...)
	}
	args := []string{b.Path, "-t"}
	if b.Conf != "" {
		args = append(args, "-c", b.Conf)
	}
	return b.traced(ctx, args...)
}

// Reload tells a master to load the configuration on disk. It returns when the
// signal is sent; whether the master did load it, only its workers tell:
// see [Binary.ReloadAndVerify].
func (b Binary) Reload(ctx context.Context, master Process) error {
	if len(b.ReloadCommand) > 0 {
		return b.traced(ctx, b.ReloadCommand...)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.trace("kill", "-HUP", strconv.Itoa(master.PID))
	return b.hangUp(master)
}

// traced runs a command that Trace is told of.
func (b Binary) traced(ctx context.Context, args ...string) error {
	b.trace(args...)
	_, _, err := run(ctx, args...)
	return err
}

func (b Binary) trace(args ...string) {
	if b.Trace != nil {
		b.Trace(args)
	}
}
