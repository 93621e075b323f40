package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

func historyCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default("")}
	f.where()
	f.shown()
	var file string
	f.text("html", &file, catOutput, "write the operation to `FILE` as a page for a browser or a ticket; - is standard output")
	f.document = true
	return &cli.Command{
		Name:      "history",
		Usage:     "list operations, or show one with its steps and times",
		ArgsUsage: "[ID]",
		Category:  catLook,
		Description: "Without an ID: what each operation was, who did it, and how it ended, the oldest first. " +
			"The history is on the load balancers; --keep and a year bound it.",
		UsageText: "drainctl history\ndrainctl history 20260504-120000.000-abcd",
		Flags:     f.flags,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 {
				return usage("history takes one ID; %q is one argument too many", args[1])
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			if !c.Args().Present() && s.typed("html") {
				return usage("--html needs the ID of an operation: drainctl history lists them")
			}
			if file != "" {
				if err := s.unused("--html writes a page", "output"); err != nil {
					return err
				}
			}
			return s.list(c.Context, f.spec, c.Args().First(), file)
		},
	}
}

func (s *session) showHistory(ctx context.Context, sp spec.Spec, id, file string) error {
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	if id == "" {
		entries, unreadable, err := status.ReadHistory(soft, sp, s.machines(true))
		if err == nil {
			s.view.History(entries, unreadable)
		}
		return err
	}
	events, truncated, err := status.ReadOperation(soft, sp, id, s.machines(true))
	if err != nil {
		return err
	}
	op := show.Operation{ID: id, Events: events, Truncated: truncated, Next: status.Unended(sp, id, events)}
	if file != "" {
		return s.writePage(op, file)
	}
	s.view.Operation(op)
	return nil
}

// writePage writes the page of an operation to a file, which is replaced, or to
// standard output.
func (s *session) writePage(op show.Operation, file string) error {
	var page bytes.Buffer
	err := show.WritePage(&page, op, versionText())
	if err == nil {
		err = s.replaceFile(file, page.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write the page of %s: %w", op.ID, err)
	}
	return nil
}

// replaceFile writes a file whole or not at all. What is no regular file, such as
// /dev/stdout, is written to.
func (s *session) replaceFile(file string, b []byte) error {
	if file == "-" {
		_, err := s.stdout.Write(b)
		return err
	}
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(file, b, 0)
	}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real // the link stays
	}
	return renameio.WriteFile(file, b, 0o644, renameio.WithTempDir(filepath.Dir(file)), renameio.WithExistingPermissions())
}
