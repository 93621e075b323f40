package cli

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kballard/go-shellquote"
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Categories the help groups flags by.
const (
	catNginx  = "nginx:"
	catSSH    = "SSH:"
	catGuards = "Guards:"
	catOutput = "Output:"
)

func env(name string) []string { return []string{envName(name)} }

// lbFlags say which load balancer is meant, where nginx and its configuration
// are on it, and which upstreams.
func lbFlags() []cli.Flag {
	return slices.Concat(journalFlags(), whereFlags(), []cli.Flag{
		&cli.StringSliceFlag{Name: "upstream", EnvVars: env("upstream"), Usage: "only in the upstream `NAME`, or http/NAME, stream/NAME (repeatable)"},
	})
}

// whereFlags say where nginx and its configuration are.
func whereFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "nginx-conf", Aliases: []string{"c"}, Category: catNginx, EnvVars: env("nginx-conf"), Usage: "main configuration `PATH` (default: what nginx -V says, else " + nginx.DefaultConf + ")"},
		&cli.StringFlag{Name: "nginx", Value: drain.DefaultBinary, Category: catNginx, EnvVars: env("nginx"), Usage: "`PATH` of the nginx binary"},
	}
}

// journalFlags say which load balancer is meant, and where its journal is.
func journalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "lb", Category: catNginx, EnvVars: env("lb"), Usage: "load balancer `HOST`, or USER@HOST, reached over SSH (default: this machine)"},
		&cli.StringFlag{Name: "state-dir", Value: drain.DefaultStateDir, Category: catNginx, EnvVars: env("state-dir"), Usage: "`DIRECTORY` of the journal and the locks, on the load balancer"},
	}
}

// controlFlags say how nginx is tested and reloaded.
func controlFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "test-command", Category: catNginx, EnvVars: env("test-command"), Usage: "`COMMAND` that tests the configuration, in place of nginx -t"},
		&cli.StringFlag{Name: "reload-command", Category: catNginx, EnvVars: env("reload-command"), Usage: "`COMMAND` that reloads nginx, in place of nginx -s reload"},
		&cli.DurationFlag{Name: "reload-timeout", Value: drain.DefaultReloadTimeout, Category: catNginx, EnvVars: env("reload-timeout"), Usage: "how long a new generation of workers may take to serve"},
	}
}

func serviceFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "service", Aliases: []string{"s"}, EnvVars: env("service"), Usage: usage}
}

func sshFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ssh-user", Category: catSSH, EnvVars: env("ssh-user"), Usage: "login `USER` on the backend (default: ~/.ssh/config, else the current user)"},
		&cli.IntFlag{Name: "ssh-port", Category: catSSH, EnvVars: env("ssh-port"), Usage: "`PORT` of the backend's sshd (default: ~/.ssh/config, else 22)", DefaultText: "22"},
		&cli.StringFlag{Name: "identity", Category: catSSH, EnvVars: env("identity"), Usage: "private key `FILE` (default: ~/.ssh/config, the agent, the usual files)"},
		&cli.StringFlag{Name: "ssh-host", Category: catSSH, EnvVars: env("ssh-host"), Usage: "`HOST` to log in to, when it is not the address in nginx.conf"},
	}
}

func outputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Value: "text", Category: catOutput, EnvVars: env("output"), Usage: "`FORMAT`: text, or json (one event a line)"},
		&cli.BoolFlag{Name: "no-color", Category: catOutput, EnvVars: env("no-color"), Usage: "no colours (also with NO_COLOR, or when not on a terminal)"},
		&cli.BoolFlag{Name: "verbose", Category: catOutput, EnvVars: env("verbose"), Usage: "show every command as it is run"},
	}
}

func dryRunFlag() cli.Flag {
	return &cli.BoolFlag{Name: "dry-run", EnvVars: env("dry-run"), Usage: "show the plan, the diff, and every warning and refusal; touch nothing"}
}

// begin makes the printer that the flags ask for.
func (s *session) begin(c *cli.Context) error {
	output := c.String("output")
	if err := oneOf("--output", output, "text", "json"); err != nil {
		return err
	}
	s.printer = newPrinter(s.stdout, s.stderr, printOptions{
		json: output == "json", plain: c.Bool("no-color"), verbose: c.Bool("verbose"),
	})
	return nil
}

// oneOf tells whether value is one of the words a flag takes.
func oneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return usage("%s %q is none of %s", flag, value, strings.Join(words, ", "))
}

// target reads the one argument of drain and undrain.
func target(c *cli.Context) (nginx.Target, error) {
	args := c.Args().Slice()
	switch {
	case len(args) == 0:
		return nginx.Target{}, usage("%s needs a TARGET, such as 192.168.1.10, 192.168.1.10:8080 or unix:/run/app.sock", c.Command.Name)
	case len(args) > 1:
		return nginx.Target{}, usage("%s takes one TARGET; %q is one argument too many", c.Command.Name, args[1])
	}
	t, err := nginx.ParseTarget(args[0])
	if err != nil {
		return t, usage("%v", err)
	}
	return t, nil
}

// loadBalancer is the nginx of this machine, or of --lb, as the flags describe
// it.
func (s *session) loadBalancer(c *cli.Context) (*drain.LB, error) {
	lb := &drain.LB{Nginx: nginx.Binary{Path: c.String("nginx")}}
	if conf := c.String("nginx-conf"); conf != "" {
		// nginx would look for a relative path below its own prefix.
		var err error
		if lb.Conf, err = filepath.Abs(conf); err != nil || (c.String("lb") != "" && !filepath.IsAbs(conf)) {
			return nil, usage("--nginx-conf %s: say the absolute path", conf)
		}
	}
	if _, err := stateDir(c); err != nil {
		return nil, err
	}
	if err := s.commands(c, lb); err != nil {
		return nil, err
	}
	var err error
	lb.Host, err = s.lbHost(c)
	return lb, err
}

// stateDir is where the journal is. A relative path would be another one on
// each machine it is asked from.
func stateDir(c *cli.Context) (string, error) {
	dir := c.String("state-dir")
	if !filepath.IsAbs(dir) {
		return "", usage("--state-dir %s: say the absolute path", dir)
	}
	return dir, nil
}

// lbHost is this machine, or the load balancer that --lb names.
func (s *session) lbHost(c *cli.Context) (remote.Host, error) {
	name := c.String("lb")
	if name == "" {
		return remote.Local(s.printer.trace), nil
	}
	login, host, found := strings.Cut(name, "@")
	if !found {
		login, host = "", name
	}
	if host == "" || strings.HasPrefix(host, "-") || strings.ContainsAny(host, " \t\n/") {
		return nil, usage("--lb %q: say HOST or USER@HOST", name)
	}
	h, err := s.connect(c.Context, remote.SSH{Address: host, User: login, Passphrase: s.printer.passphrase, Trace: s.printer.trace})
	if err != nil {
		return nil, &drain.Failure{Kind: drain.Refused, Err: err, Now: "nothing was touched"}
	}
	s.atEnd = append(s.atEnd, func() { _ = h.Close() })
	return h, nil
}

// commands reads the operator's own commands for the test and the reload.
func (s *session) commands(c *cli.Context, lb *drain.LB) error {
	for _, f := range []struct {
		name string
		to   *[]string
	}{{"test-command", &lb.Nginx.TestCommand}, {"reload-command", &lb.Nginx.ReloadCommand}} {
		text := c.String(f.name)
		if text == "" {
			continue
		}
		words, err := shellquote.Split(text)
		if err != nil || len(words) == 0 {
			return usage("--%s %q: not a command line: %v", f.name, text, err)
		}
		*f.to = words
		lb.Foreign = true
	}
	return nil
}

// request reads the flags that drain and undrain share.
func (s *session) request(c *cli.Context, op drain.Operation) (*drain.Request, error) {
	t, err := target(c)
	if err != nil {
		return nil, err
	}
	lb, err := s.loadBalancer(c)
	if err != nil {
		return nil, err
	}
	req, err := s.common(c, lb)
	if err != nil {
		return nil, err
	}
	req.Operation, req.Target = op, t
	req.Upstreams = c.StringSlice("upstream")
	req.Service = c.String("service")
	if req.Service != "" {
		if err := remote.ValidUnit(req.Service); err != nil {
			return nil, usage("--service: %v", err)
		}
	}
	req.Flags = sharedFlags(c, slices.Concat([]cli.Flag{serviceFlag("")}, lbFlags(), controlFlags(), sshFlags()))
	req.ResumeFlags = sharedFlags(c, slices.Concat(journalFlags(), whereFlags(), controlFlags(), sshFlags()))
	if err := s.ssh(c, req); err != nil {
		return nil, err
	}
	req.Reach()
	return req, nil
}

// common is what every operation has, with the defaults of the rest.
func (s *session) common(c *cli.Context, lb *drain.LB) (*drain.Request, error) {
	req := &drain.Request{
		LBs:           []*drain.LB{lb},
		Interval:      drain.DefaultInterval,
		Timeout:       drain.DefaultTimeout,
		OnTimeout:     drain.TimeoutRollback,
		Poll:          drain.PollSS,
		Health:        drain.HealthTCP,
		HealthTimeout: drain.DefaultHealthTimeout,
		ReloadTimeout: c.Duration("reload-timeout"),
		StopTimeout:   drain.DefaultStopTimeout,
		MinUp:         drain.DefaultMinUp,
		StateDir:      c.String("state-dir"),
		Reason:        c.String("reason"),
		Wait:          c.Bool("wait"),
	}
	req.User, req.Host = whoAsks()
	req.Allow.Pending = c.Bool("accept-pending")
	if req.ReloadTimeout <= 0 {
		return nil, usage("--reload-timeout %s: must be longer than 0", req.ReloadTimeout)
	}
	return req, nil
}

// whoAsks is the user, by the name they logged in with, and this machine.
func whoAsks() (name, host string) {
	for _, variable := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if name == "" {
			name = os.Getenv(variable)
		}
	}
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	host, _ = os.Hostname()
	return name, host
}

// sharedFlags is the flags that a later drain or undrain of the same target
// needs, too.
func sharedFlags(c *cli.Context, flags []cli.Flag) []string {
	var words []string
	for _, f := range flags {
		name := f.Names()[0]
		values := []string{fmt.Sprint(c.Value(name))}
		switch {
		case !c.IsSet(name):
			continue
		case name == "nginx-conf":
			// It was seen to be absolute, or can be made so.
			conf, _ := filepath.Abs(values[0])
			values = []string{conf}
		case name == "upstream":
			values = c.StringSlice(name)
		}
		for _, v := range values {
			words = append(words, "--"+name, v)
		}
	}
	return words
}

// ssh says how the backend is reached.
func (s *session) ssh(c *cli.Context, req *drain.Request) error {
	port := c.Int("ssh-port")
	if c.IsSet("ssh-port") && (port < 1 || port > 65535) {
		return usage("--ssh-port %d: must be from 1 to 65535", port)
	}
	req.SSH = remote.SSH{
		Address: c.String("ssh-host"), User: c.String("ssh-user"), Port: port, Identity: c.String("identity"),
		Passphrase: s.printer.passphrase, Trace: s.printer.trace,
	}
	req.SSHGiven = slices.ContainsFunc(sshFlags(), func(f cli.Flag) bool { return c.IsSet(f.Names()[0]) })
	req.Dial = func(ctx context.Context, to remote.SSH) (remote.Host, error) { return s.connect(ctx, to) }
	return nil
}

// recordFlags say what others are told, and what is done about them.
func recordFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "reason", EnvVars: env("reason"), Usage: "why, for the journal and for others who look: `TEXT`"},
		&cli.BoolFlag{Name: "wait", EnvVars: env("wait"), Usage: "wait while another operator works on the target"},
		&cli.BoolFlag{Name: "accept-pending", Category: catGuards, EnvVars: env("accept-pending"), Usage: "files were changed since nginx was last loaded: put them live with this reload"},
	}
}

// unused refuses flags typed on the line that this run would not look at. An
// environment variable may be meant for other runs than this one.
func (s *session) unused(why string, names ...string) error {
	for _, name := range names {
		if s.typed(name) {
			return usage("--%s has no effect: %s", name, why)
		}
	}
	return nil
}

// typed tells whether a flag that takes a value and has no short form stands on
// the command line.
func (s *session) typed(name string) bool {
	return slices.ContainsFunc(s.line, func(word string) bool { return strings.HasPrefix(word, "--"+name+"=") })
}

// checkSSH refuses SSH flags where nothing is done over SSH.
func (s *session) checkSSH(req *drain.Request) error {
	if req.OverSSH() {
		return nil
	}
	why := "nothing in this run is done over SSH"
	if req.Local {
		why = fmt.Sprintf("%s is this machine, which is not reached over SSH", req.Target)
	}
	return s.unused(why, "ssh-user", "ssh-port", "identity", "ssh-host")
}

func notNegative(c *cli.Context, names ...string) error {
	for _, name := range names {
		if c.Duration(name) < 0 {
			return usage("--%s %s: must not be negative", name, c.Duration(name))
		}
	}
	return nil
}

func describeTarget(purpose string) string {
	return fmt.Sprintf(`TARGET is %s: an address or name as it stands in nginx.conf, with or
without its port: 192.168.1.10 (every port of that host, in every upstream),
192.168.1.10:8080, app1.example.com, [2001:db8::1]:8080, unix:/run/app.sock.

Every flag can also be given as an environment variable: %s.`, purpose, envPrefix+"TIMEOUT for --timeout, and so on")
}
