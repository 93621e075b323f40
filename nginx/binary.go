package nginx

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
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

// A Binary is how nginx is run on one host.
type Binary struct {
	Host Host
	Path string // "nginx" unless named
	Conf string // the main file; empty: the build's own
	// TestCommand and ReloadCommand replace `nginx -t` and `nginx -s reload`
	// where nginx is run some other way; empty otherwise.
	TestCommand, ReloadCommand []string
}

// A CommandError is a command about nginx that failed, in its own words.
type CommandError struct {
	Command []string
	Code    int
	Lines   []string // what it printed, the lines that tell most first chosen
}

func (e *CommandError) Error() string {
	what := strings.Join(e.Command, " ")
	if len(e.Lines) == 0 {
		return fmt.Sprintf("%s: exit status %d, and it printed nothing", what, e.Code)
	}
	return fmt.Sprintf("%s: %s", what, strings.Join(e.Lines, "\n"))
}

// ErrNoBinary is wrapped when there is no nginx binary to run.
var ErrNoBinary = errors.New("no nginx binary; name it with --nginx")

// Build asks the binary what it was built with.
func (b Binary) Build(ctx context.Context) (Build, error) {
	_, out, code, err := b.Host.Exec(ctx, b.Path, "-V")
	if err != nil {
		return Build{}, fmt.Errorf("%s -V: %w", b.Path, err)
	}
	if code == 126 || code == 127 {
		return Build{}, fmt.Errorf("%s -V: %w", b.Path, ErrNoBinary)
	}
	if code != 0 {
		return Build{}, commandError([]string{b.Path, "-V"}, code, out)
	}
	return parseBuild(out), nil
}

// parseBuild reads the output of nginx -V. nginx's own defaults stand for what
// it does not say (auto/options in its sources).
func parseBuild(out string) Build {
	build := Build{Prefix: "/usr/local/nginx", Conf: "conf/nginx.conf", PID: "logs/nginx.pid", ErrorLog: "logs/error.log"}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "nginx version: "); ok {
			_, v, _ = strings.Cut(v, "/")
			build.Version, _, _ = strings.Cut(strings.TrimSpace(v), " ")
		}
		args, ok := strings.CutPrefix(line, "configure arguments: ")
		if !ok {
			continue
		}
		for _, arg := range splitQuoted(args) {
			k, v, _ := strings.Cut(arg, "=")
			switch k {
			case "--prefix":
				build.Prefix = v
			case "--conf-path":
				build.Conf = v
			case "--pid-path":
				build.PID = v
			case "--error-log-path":
				build.ErrorLog = v
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

// splitQuoted cuts at blanks outside of single quotes: nginx's configure puts
// those around a value that has blanks in it.
func splitQuoted(s string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for _, r := range s + "\n" {
		switch {
		case r == '\'':
			quoted = !quoted
		case quoted || (r != ' ' && r != '\n'):
			word.WriteRune(r)
		case word.Len() > 0:
			words = append(words, word.String())
			word.Reset()
		}
	}
	return words
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
	return b.run(ctx, b.testArgs())
}

func (b Binary) testArgs() []string {
	if len(b.TestCommand) > 0 {
		return b.TestCommand
	}
	return b.with("-t")
}

// Reload tells the master to load the configuration on disk. It returns when
// the signal is sent; whether the master did load it, only its workers tell:
// see [Running.Replaced].
func (b Binary) Reload(ctx context.Context) error {
	if len(b.ReloadCommand) > 0 {
		return b.run(ctx, b.ReloadCommand)
	}
	return b.run(ctx, b.with("-s", "reload"))
}

func (b Binary) with(args ...string) []string {
	all := append([]string{b.Path}, args...)
	if b.Conf != "" {
		all = append(all, "-c", b.Conf)
	}
	return all
}

func (b Binary) run(ctx context.Context, args []string) error {
	out, errOut, code, err := b.Host.Exec(ctx, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	if code != 0 {
		return commandError(args, code, out+errOut)
	}
	return nil
}

// commandError keeps the lines in which nginx says why, or all of them when
// none does.
func commandError(args []string, code int, out string) *CommandError {
	e := &CommandError{Command: args, Code: code}
	var all []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		all = append(all, line)
		if strings.Contains(line, "[emerg]") || strings.Contains(line, "[alert]") || strings.Contains(line, "[crit]") {
			e.Lines = append(e.Lines, line)
		}
	}
	if len(e.Lines) == 0 {
		e.Lines = all
	}
	return e
}

// Unprivileged tells whether the test failed only for want of permission: it
// was not run as root.
func (e *CommandError) Unprivileged() bool {
	for _, line := range e.Lines {
		if !strings.Contains(line, "(13: Permission denied)") && !strings.Contains(line, "(1: Operation not permitted)") {
			return false
		}
	}
	return len(e.Lines) > 0
}
