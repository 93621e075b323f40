package cli

import (
	"bufio"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Categories the help groups flags by.
const (
	catWait   = "Waiting:"
	catLBs    = "Load balancers:"
	catNginx  = "nginx:"
	catSSH    = "SSH:"
	catGuards = "Guards:"
	catOutput = "Output:"
)

// A specFlags is the flags of a command, which write into its spec.
type specFlags struct {
	spec  spec.Spec
	flags []cli.Flag
	// What urfave/cli has no destination for is read afterwards.
	after []func(*cli.Context) error

	agent            bool // it reads the machine's own configuration file alone
	noEnv            bool // its flags are no environment variables
	config           *config
	output           string
	noColor, verbose bool
	dryRun           bool
	document         bool   // what is shown is one document
	operation        bool   // it does something, which is recorded
	metrics          string // file
}

func (f *specFlags) env(name string) []string {
	if f.noEnv {
		return nil
	}
	return []string{envName(name)}
}

func (f *specFlags) text(name string, to *string, category, usage string, aliases ...string) {
	f.flags = append(f.flags, &cli.StringFlag{Name: name, Aliases: aliases, Value: *to, Destination: to, Category: category, EnvVars: f.env(name), Usage: usage})
}

func (f *specFlags) number(name string, to *int, category, usage string) {
	f.flags = append(f.flags, &cli.IntFlag{Name: name, Value: *to, Destination: to, Category: category, EnvVars: f.env(name), Usage: usage})
}

func (f *specFlags) yes(name string, to *bool, category, usage string) {
	f.flags = append(f.flags, &cli.BoolFlag{Name: name, Destination: to, Category: category, EnvVars: f.env(name), Usage: usage})
}

func (f *specFlags) span(name string, to *time.Duration, category, usage string) {
	f.flags = append(f.flags, &cli.DurationFlag{Name: name, Value: *to, Destination: to, Category: category, EnvVars: f.env(name), Usage: usage})
}

func (f *specFlags) list(name string, to *[]string, category, usage string) {
	f.flags = append(f.flags, &cli.StringSliceFlag{Name: name, Category: category, EnvVars: f.env(name), Usage: usage})
	f.after = append(f.after, func(c *cli.Context) error {
		*to = c.StringSlice(name)
		return nil
	})
}

// service says which units are stopped, or started.
func (f *specFlags) service(usage string) {
	f.flags = append(f.flags, &cli.StringSliceFlag{Name: "service", Aliases: []string{"s"}, EnvVars: f.env("service"), Usage: usage})
	f.after = append(f.after, func(c *cli.Context) error {
		if err := spec.SetFlag(&f.spec, "service", c.StringSlice("service")...); err != nil {
			return usageOf(fmt.Errorf("--service: %w", err))
		}
		return nil
	})
}

// where says which load balancers are meant, and where their journals are.
func (f *specFlags) where() {
	var groups []string
	from := ""
	f.list("lb", &f.spec.LBs, catLBs, "load balancer, over SSH (default: this machine); [USER@]`HOST`[:PORT], repeatable")
	f.text("lb-from", &from, catLBs, "read load balancers from `FILE`, one a line; - is standard input")
	if !f.agent {
		f.list("group", &groups, catLBs, "load balancers of the group `NAME` in drainctl.yaml; repeatable")
	}
	f.after = append(f.after, func(c *cli.Context) error {
		more, err := f.readLBs(from)
		if err != nil {
			return err
		}
		f.spec.LBs = append(f.spec.LBs, more...)
		for i, lb := range f.spec.LBs {
			if err := checkLB("--lb", lb); err != nil {
				return err
			}
			if slices.Contains(f.spec.LBs[:i], lb) {
				return usage("the load balancer %s is named twice", lb)
			}
		}
		f.spec.LBs, err = f.config.expand(groups, f.spec.LBs)
		return err
	})
	f.number("parallel", &f.spec.Parallel, catLBs, "ask `N` load balancers at once")
	f.journal()
	f.text("config", &f.spec.Config, "", "settings `FILE` (default: ~/.config/drainctl.yaml, else /etc/drainctl.yaml)")
}

// readLBs reads load balancers from a file, one a line. What follows # is a
// comment.
func (f *specFlags) readLBs(from string) ([]string, error) {
	if from == "" {
		return nil, nil
	}
	in := os.Stdin
	if from != "-" {
		file, err := os.Open(from)
		if err != nil {
			return nil, usage("--lb-from: %v", err)
		}
		defer file.Close()
		in = file
	}
	var lbs []string
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text != "" {
			lbs = append(lbs, text)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, usage("--lb-from %s: %v", from, err)
	}
	if len(lbs) == 0 {
		return nil, usage("--lb-from %s: no load balancer in it", from)
	}
	return lbs, nil
}

func (f *specFlags) journal() {
	n := &f.spec.Nginx
	f.text("state-dir", &n.StateDir, catNginx, "`DIRECTORY` of the journal and locks, on the load balancer (default: "+journal.DefaultDir+")")
}

// keep says how long a history is kept.
func (f *specFlags) keep() {
	n := &f.spec.Nginx
	f.number("keep", &n.Keep, catNginx, fmt.Sprintf("keep `N` operations in the history (default: %d; none older than a year)", journal.DefaultKeep))
}

// nginx says where nginx and its configuration are on a load balancer.
func (f *specFlags) nginx() {
	n := &f.spec.Nginx
	f.text("nginx-conf", &n.Conf, catNginx, "`PATH` of nginx.conf (default: what nginx -V says, else "+nginx.DefaultConf+")", "c")
	f.text("nginx", &n.Path, catNginx, "`PATH` of the nginx binary (default: "+nginx.DefaultBinary+")")
	f.after = append(f.after, func(*cli.Context) error {
		if n.Conf == "" || filepath.IsAbs(n.Conf) {
			return nil
		}
		// nginx would look for a relative path below its own prefix.
		if len(f.spec.LBs) > 0 {
			return usage("--nginx-conf %s: say the absolute path", n.Conf)
		}
		n.Conf, _ = filepath.Abs(n.Conf)
		return nil
	})
}

// control says how nginx is tested and reloaded there.
func (f *specFlags) control() {
	n := &f.spec.Nginx
	f.text("test-command", &n.TestCommand, catNginx, "`COMMAND` that tests the configuration, in place of nginx -t")
	f.text("reload-command", &n.ReloadCommand, catNginx, "`COMMAND` that reloads nginx, in place of SIGHUP to its master")
}

// which narrows the targets.
func (f *specFlags) which() {
	f.list("upstream", &f.spec.Upstreams, "", "only in the upstream `NAME`; http/NAME or stream/NAME, repeatable")
}

// run says what any run takes.
func (f *specFlags) run() {
	s := &f.spec
	f.nginx()
	f.control()
	f.locks()
	f.yes("accept-pending", &s.Allow.Pending, catGuards, "put files live that were changed since nginx was last loaded")
	f.yes("allow-stopped-nginx", &s.Allow.StoppedNginx, catGuards, "edit load balancers whose nginx is stopped, too; it loads the files when it starts")
	f.yes("allow-udp", &s.Allow.UDP, catGuards, "reload nginx although that ends the UDP sessions of the target's upstreams")
	f.span("reload-timeout", &s.ReloadTimeout, catNginx, "how long new nginx workers may take to serve after a reload")
	f.ssh()
}

// locks says what anything takes that locks backends and is recorded.
func (f *specFlags) locks() {
	s := &f.spec
	f.keep()
	f.text("reason", &s.Reason, "", "why, for the history and for colleagues who look")
	f.yes("wait", &s.Wait, "", "wait while another operator holds the lock on a target")
	f.number("skip-unreachable-lb", &s.SkipUnreachable, catLBs, "leave out up to `N` load balancers that cannot be reached; these may still send requests to the backend")
}

// ssh says how backends are reached.
func (f *specFlags) ssh() {
	s := &f.spec
	f.text("ssh-user", &s.SSH.User, catSSH, "login `USER` on the backend (default: ~/.ssh/config, else the current user)")
	f.number("ssh-port", &s.SSH.Port, catSSH, "`PORT` of the backend's sshd (default: ~/.ssh/config, else 22)")
	f.text("identity", &s.SSH.Identity, catSSH, "private key `FILE` (default: ~/.ssh/config, the agent, the usual files)")
	f.text("ssh-host", &s.SSH.Host, catSSH, "`HOST` to log in to, when it is not the address in nginx.conf")
}

// shown says how it is shown.
func (f *specFlags) shown() {
	f.output = "text"
	f.text("output", &f.output, catOutput, "`FORMAT` text or json; json: an event a line, or one document")
	f.yes("no-color", &f.noColor, catOutput, "no colours (as with NO_COLOR, and when not on a terminal)")
	f.yes("verbose", &f.verbose, catOutput, "show every command as it is run")
}

// recorded has what an operation does kept, for those who are told at its end.
func (f *specFlags) recorded() {
	f.operation = true
	f.measured()
}

// measured says where metrics are written.
func (f *specFlags) measured() {
	f.text("metrics", &f.metrics, catOutput, "write metrics to `FILE`, for node_exporter's textfile collector")
	f.after = append(f.after, func(*cli.Context) error {
		if f.metrics == "" {
			return nil
		}
		if dir, err := os.Stat(filepath.Dir(f.metrics)); err != nil || !dir.IsDir() {
			return usage("--metrics %s: no such directory", f.metrics)
		}
		return nil
	})
}

// read completes the spec from the command line.
func (f *specFlags) read(s *session, c *cli.Context) error {
	if err := usageOf(spec.OneOf("--output", f.output, choicesOf("output")...)); err != nil {
		return err
	}
	s.listen(f, c.Command.Name)
	var err error
	if f.config, err = f.readConfig(s); err != nil {
		return err
	}
	for _, after := range f.after {
		if err := after(c); err != nil {
			return err
		}
	}
	fields := specFields(&f.spec)
	for _, flag := range f.flags {
		name := flag.Names()[0]
		field, known := fields[name]
		if !c.IsSet(name) || !known {
			continue
		}
		f.spec.Given = append(f.spec.Given, name)
		if err := checkFlag("--"+name, name, field); err != nil {
			return err
		}
	}
	if err := f.config.fill(&f.spec, f.flags); err != nil {
		return err
	}
	f.spec.Reason = remote.Redact(f.spec.Reason) // everybody may read it
	f.spec.User, f.spec.Host = whoAsks()
	if s.record != nil {
		s.record.Spec = f.spec
	}
	return nil
}

// specFields are the fields of a spec, or of a part of one, by the flags that set
// them.
func specFields(of any) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	spec.EachFlag(of, func(name string, field reflect.Value) { fields[name] = field })
	return fields
}

// listen sets the view that a command's flags ask for, and who else is told of its
// events.
func (s *session) listen(f *specFlags, command string) {
	s.view = s.newView(f.output, show.Options{Plain: f.noColor, Verbose: f.verbose, Document: f.document || f.dryRun})
	s.metrics = f.metrics
	if f.operation && !f.dryRun {
		s.record = show.NewRecord(command)
		s.listeners = append(s.listeners, s.record.Event)
	}
	if len(s.listeners) > 0 {
		s.view = show.FanOut{View: s.view, Others: s.listeners}
	}
}

// viewFor is the view of an output, text or json.
func (s *session) viewFor(output string, options show.Options) show.View {
	switch {
	case output == "json":
		return show.NewJSON(s.stdout, s.stderr, options)
	case show.OnGithub():
		return show.NewGithub(show.NewText(s.stdout, s.stderr, options))
	}
	return show.NewText(s.stdout, s.stderr, options)
}

// targets reads the arguments of a command.
func (f *specFlags) targets(c *cli.Context, atLeast int) error {
	args := c.Args().Slice()
	switch {
	case len(args) < atLeast:
		return usage("%s needs a TARGET\nhint: 192.168.1.10, 192.168.1.10:8080 or unix:/run/app.sock; drainctl status lists the servers", c.Command.Name)
	}
	for _, text := range args {
		t, err := nginx.ParseTarget(text)
		if strings.HasPrefix(text, "-") {
			err = fmt.Errorf("target %q: it looks like a flag\nhint: flags stand before --", text)
		}
		if err != nil {
			return usage("%v", err)
		}
		if !slices.Contains(f.spec.Targets, t.String()) {
			f.spec.Targets = append(f.spec.Targets, t.String())
		}
	}
	return nil
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

// typed tells whether a flag of these names stands on the line.
func (s *session) typed(names ...string) bool {
	for _, word := range s.line {
		if word == "--" {
			break
		}
		if flag, _, _ := strings.Cut(word, "="); slices.ContainsFunc(names, func(name string) bool { return flag == dashes(name) }) {
			return true
		}
	}
	return false
}

// checkSSH refuses SSH flags where nothing is done over SSH.
func (s *session) checkSSH(sp spec.Spec) error {
	if sp.OverSSH() {
		return nil
	}
	why := "nothing in this run is done over SSH"
	for _, text := range sp.Targets {
		if t, err := nginx.ParseTarget(text); err == nil && spec.OnLB(t) {
			why = fmt.Sprintf("%s is the load balancer itself, which is not reached over SSH", t)
		}
	}
	return s.unused(why, "ssh-user", "ssh-port", "identity", "ssh-host")
}
