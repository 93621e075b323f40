// Package cli is the command line: a file per command, whose flags write into a
// spec.Spec. What a person or a program then sees is show's.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// version is set by the release build.
var version = ""

// Run runs the program with args, the first of which is its name, and returns
// its exit code.
func Run(args []string, stdout, stderr io.Writer) int {
	// Who closes our standard output must not stop a drain: a write then fails,
	// and the work goes on.
	signal.Ignore(syscall.SIGPIPE)
	s := newSession(stdout, stderr)
	if at, err := commandAt(newApp(s), args); err == nil && at >= 0 && args[at] == agentName {
		if err := isolate(); err != nil {
			return s.finish(err)
		}
	}
	return s.run(args)
}

// A session is one run of the program.
type session struct {
	stdout, stderr io.Writer
	view           show.View  // set once the flags are read
	line           []string   // the command line, flags first
	command        []string   // what follows "--" of a rolling run
	system         spec.Nginx // this machine's, by its own configuration file
	metrics        string     // file to write metrics to
	// Of status: look again and again, and count on the backends too.
	watch, backends bool
	overview        bool     // it was started without a command, on a terminal
	where           []string // flags that name the load balancers, then
	// listeners are told of the events beside the view; record, of an operation, is
	// one of them.
	listeners []func(event.Event)
	record    *show.Record
	newView   func(output string, options show.Options) show.View
	// What the flags are read for.
	operate func(ctx context.Context, sp spec.Spec, dryRun bool) error
	resume  func(ctx context.Context, sp spec.Spec, name string) error
	show    func(ctx context.Context, sp spec.Spec) error
	check   func(ctx context.Context, sp spec.Spec) error
	list    func(ctx context.Context, sp spec.Spec, id, page string) error
	serve   func(ctx context.Context, sp spec.Spec) error
	explain func(sp spec.Spec, files []string, values []show.ConfigValue) error
	begin   func(ctx context.Context, sp spec.Spec, path string) error
	publish func(*show.Record)
}

func newSession(stdout, stderr io.Writer) *session {
	s := &session{stdout: stdout, stderr: stderr}
	s.operate, s.resume, s.show, s.list, s.serve = s.runOperation, s.resumeOperation, s.showStatus, s.showHistory, s.serveAgent
	s.newView = s.viewFor
	s.explain, s.check, s.publish, s.begin = s.showConfig, s.showChecks, s.publishRecord, s.writeConfig
	return s
}

// run reads the command line, does what it says, and gives the exit code.
func (s *session) run(args []string) int {
	app := newApp(s)
	err := checkEnv(app, os.Environ())
	if err == nil {
		if s.overview = len(args) == 1 && show.IsTerminal(s.stdout); s.overview {
			args = append(args, "status")
		}
		s.line, s.command, err = arrange(app, args)
	}
	if err == nil {
		if text, ok := helpAsked(app, s.line); ok {
			fmt.Fprint(s.stdout, text)
			return int(spec.Done)
		}
		err = app.RunContext(context.Background(), s.line)
	}
	return s.finish(err)
}

// A shownError is the end of a run that the view has shown already; nil where it
// was done.
type shownError struct{ error }

func (e shownError) Error() string {
	if e.error == nil {
		return "done"
	}
	return e.error.Error()
}

func (e shownError) Unwrap() error { return e.error }

// finish tells how it ended, and gives the exit code.
func (s *session) finish(err error) int {
	if s.view == nil {
		s.view = show.NewText(s.stdout, s.stderr, show.Options{})
	}
	var f *spec.Failure
	if err != nil && !errors.As(err, &f) && errors.Is(err, errUsage) {
		err = &spec.Failure{Exit: spec.Usage, Err: err, Stands: spec.Stands{Standing: spec.Untouched}}
	}
	var shown shownError
	if errors.As(err, &shown) {
		err = shown.error
	} else {
		s.view.Event(event.Stamp(drain.ResultOf(err)))
	}
	if s.record != nil && spec.ExitOf(err) != spec.Usage {
		s.publish(s.record)
	}
	return int(spec.ExitOf(err))
}

func newApp(s *session) *cli.App {
	app := &cli.App{
		Name:      "drainctl",
		Usage:     "take a backend out of an nginx pool without cutting a request, and put it back",
		UsageText: "drainctl drain 192.168.1.10 --service my-web-app\ndrainctl undrain 192.168.1.10",
		Description: "For open-source nginx, which has no API for it. drainctl marks the backend down in the configuration, reloads nginx, " +
			"sees the new workers serve, waits until no connection to the backend is open, and stops its service. undrain does the same backwards.\n\n" +
			"nginx may run here or on load balancers that are reached over SSH (--lb, --group). What an expert would check is checked before anything is " +
			"touched, each refusal names the flag that overrides it, and what was begun is finished, rolled back, or can be resumed.",
		Version:         versionText(),
		HideHelpCommand: true,
		Writer:          s.stdout,
		ErrWriter:       s.stderr,
		// Exit codes are decided in one place, at the end.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   asUsage,
		Commands: []*cli.Command{
			operationCommand(s, spec.Drain), operationCommand(s, spec.Undrain), rolloutCommand(s), resumeCommand(s), forgetCommand(s),
			statusCommand(s), historyCommand(s), checkCommand(s),
			initCommand(s), configCommand(s), schemaCommand(s), completionCommand(s), agentCommand(s), completeCommand(s), manCommand(s),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("unknown command %q", c.Args().First())
			}
			fmt.Fprint(s.stdout, appHelp(c.App))
			return nil
		},
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = asUsage
		cmd.HideHelpCommand = true
		cmd.Flags = append(cmd.Flags, helpFlags()...)
	}
	app.Flags = append(helpFlags(), cli.VersionFlag)
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
