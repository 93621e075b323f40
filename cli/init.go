package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

func initCommand(s *session) *cli.Command {
	// What a file that is there says of other runs is not for this one.
	f := &specFlags{spec: spec.Default(""), output: "text", agent: true}
	f.yes("force", &f.spec.Force, "", "replace a configuration file that is there")
	f.where()
	f.nginx()
	f.control()
	return &cli.Command{
		Name:      "init",
		Usage:     "write a first configuration file, with what is found",
		Category:  catSetUp,
		UsageText: "drainctl init\ndrainctl init --lb lb1 --lb lb2 --config -",
		Description: "It looks at this machine's nginx, or at those of --lb, and touches nothing but the file. That is " +
			"--config FILE, - for standard output, else the one that is read: /etc/drainctl.yaml as root, else " +
			"~/.config/drainctl.yaml. What it suggests is commented out.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("init takes no argument; %q is one too many", c.Args().First())
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			path, err := configPath(f.spec.Config)
			if err != nil {
				return err
			}
			return s.begin(c.Context, f.spec, path)
		},
	}
}

// configPath is where a first configuration file belongs; "-": standard output.
func configPath(given string) (string, error) {
	if given == "-" {
		return given, nil
	}
	if given != "" {
		return filepath.Abs(given)
	}
	dir, err := os.UserConfigDir()
	own := filepath.Join(dir, "drainctl.yaml")
	if os.Geteuid() != 0 {
		return own, err
	}
	if _, missing := os.Stat(own); err != nil || errors.Is(missing, fs.ErrNotExist) {
		return systemConfig, nil
	}
	return own, nil // it is read before the machine's
}

// writeConfig looks at the LBs, and writes what a run reads back.
func (s *session) writeConfig(ctx context.Context, sp spec.Spec, path string) error {
	_, err := os.Lstat(path)
	if err == nil && path != "-" && !sp.Force {
		return refused("exists", "--force", fmt.Errorf("there is a configuration file %s already", path))
	}
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	if len(sp.LBs) == 0 {
		sp.Nginx = sp.Nginx.Or(s.system)
	}
	lbs, sp, err := status.Survey(soft, sp, s.machines(true))
	if err != nil {
		return err
	}
	quiet := s.machines(true)
	quiet.Passphrase = nil // it is only for a suggestion
	text := []byte(show.FirstConfig(sp, lbs, status.Units(soft, sp, lbs, quiet)))
	if err := newConfig().parse(path, text); err != nil {
		return fmt.Errorf("what was found makes no configuration file: %w", err)
	}
	if path == "-" {
		_, err := s.stdout.Write(text)
		return errors.Join(err, shownError{nil})
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	owners := configOwners(slices.Contains(sp.Given, "config"))
	if path == systemConfig {
		owners = []int{0}
	}
	if _, err := load(path, owners); err != nil {
		return err
	}
	var where []string
	if len(sp.LBs) > 0 {
		where = []string{"--group", "all"}
	}
	if slices.Contains(sp.Given, "config") {
		where = append(where, "--config", path)
	}
	show.NewText(s.stdout, s.stderr, show.Options{}).Initialized(path, lbs, where)
	return shownError{nil}
}

// refused is a refusal before anything was touched.
func refused(code, override string, err error) error {
	return &spec.Failure{
		Exit: spec.Refused, Stands: spec.Stands{Standing: spec.Untouched},
		Err: &spec.Refusal{Findings: []spec.Finding{{Code: code, Text: err.Error(), Override: override}}},
	}
}
