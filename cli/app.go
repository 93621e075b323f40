// Package cli is the command line: a file per command, which translates flags
// into one call of package drain; and everything a person sees, in printer.go.
package cli

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/remote"
)

// version is set by the release build.
var version = ""

// Run runs the program with args, the first of which is its name, and returns
// its exit code.
func Run(args []string, stdout, stderr io.Writer) int {
	// Who closes our standard output must not stop a drain half-way: a write
	// then fails, and the work goes on.
	signal.Ignore(syscall.SIGPIPE)
	return newSession(stdout, stderr).run(args)
}

// A session is one run of the program.
type session struct {
	stdout, stderr io.Writer
	printer        *printer // set once the flags are read
	line           []string // the command line, flags first
	atEnd          []func() // what is to be closed
	// What the flags are read for.
	operate func(ctx context.Context, req *drain.Request, dryRun bool) error
	show    func(ctx context.Context, req *statusRequest) error
	list    func(ctx context.Context, req *historyRequest) error
	// What reading them takes: --lb names a host, and resume is told by the
	// journal what to go on with.
	connect func(ctx context.Context, to remote.SSH) (remote.Host, error)
	journal func(ctx context.Context, lb *drain.LB, stateDir string) (*drain.Ledger, error)
}

func newSession(stdout, stderr io.Writer) *session {
	s := &session{stdout: stdout, stderr: stderr}
	s.operate, s.show, s.list = s.runOperation, s.showStatus, s.showHistory
	s.journal = drain.ReadJournal
	s.connect = func(ctx context.Context, to remote.SSH) (remote.Host, error) { return to.Connect(ctx) }
	return s
}

// run reads the command line, does what it says, and gives the exit code.
func (s *session) run(args []string) int {
	app := newApp(s)
	err := checkEnv(app, environ())
	if err == nil {
		s.line, err = arrange(app, args)
	}
	if err == nil {
		err = app.RunContext(context.Background(), s.line)
	}
	for _, f := range s.atEnd {
		f()
	}
	return s.finish(err)
}

// finish tells how it ended, and gives the exit code.
func (s *session) finish(err error) int {
	if s.printer == nil {
		s.printer = newPrinter(s.stdout, s.stderr, printOptions{})
	}
	var f *drain.Failure
	if err != nil && !errors.As(err, &f) && errors.Is(err, errUsage) {
		err = &drain.Failure{Kind: drain.Misused, Err: err}
	}
	s.printer.end(err)
	return int(drain.KindOf(err))
}

func newApp(s *session) *cli.App {
	app := &cli.App{
		Name:            "drainctl",
		Usage:           "take a backend out of an nginx pool without cutting a request, and put it back",
		Version:         versionText(),
		HideHelpCommand: true,
		Writer:          s.stdout,
		ErrWriter:       s.stderr,
		// Exit codes are decided in one place, at the end.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   asUsage,
		Commands:       []*cli.Command{drainCommand(s), undrainCommand(s), resumeCommand(s), statusCommand(s), historyCommand(s)},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("unknown command %q", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = asUsage
		cmd.HideHelpCommand = true
		// The help flag is named here so that it, too, works anywhere.
		cmd.Flags = append(cmd.Flags, cli.HelpFlag)
	}
	app.Flags = []cli.Flag{cli.HelpFlag, cli.VersionFlag}
	return app
}

func asUsage(_ *cli.Context, err error, _ bool) error { return usage("%v", err) }

// versionText is the release's version, or what the build knows of its source.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unreleased"
}
