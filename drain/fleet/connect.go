package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// Machines is the [Connector] that reaches real ones.
type Machines struct {
	Version    string // of this drainctl
	Passphrase func(ctx context.Context, keyPath string) ([]byte, error)
	Trace      func(host, command string)
	// Copied is told that this drainctl was copied to an LB that has none.
	Copied func(lb, path string)
	// NoCopy has such an LB not asked instead.
	NoCopy bool
	// System is how this machine's own configuration file says that its nginx is run.
	// An agent reads that file itself: it takes this from nobody.
	System spec.Nginx
	// Unprivileged has this machine's nginx looked at without root: a dry run or
	// a status. Otherwise it is asked through sudo.
	Unprivileged bool
}

// LB implements [Connector].
func (m Machines) LB(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	options, err := n.Or(m.System).Options()
	if err != nil {
		return nil, err
	}
	if options.Caller, err = journal.Caller(); err != nil {
		return nil, err
	}
	if name != "" {
		return m.overSSH(ctx, name, n)
	}
	if runtime.GOOS != "linux" {
		return nil, spec.UsageError("drainctl works on an nginx on Linux, and this machine runs %s: name the load balancer with --lb HOST", runtime.GOOS)
	}
	if os.Geteuid() == 0 || m.Unprivileged {
		if m.Trace != nil {
			options.Nginx.Trace = func(args []string) { m.Trace(ThisMachine, remote.Quote(args...)) }
		}
		return balancer.NewLocal(options), nil
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b, err := m.agent(ctx, remote.Local(m.Trace), ThisMachine, n.AgentArgs(program))
	return b, refusedLogin(err)
}

// refusedLogin makes an error of reaching a machine one that touched nothing.
func refusedLogin(err error) error {
	if err == nil || errors.Is(err, remote.ErrConnection) {
		return err
	}
	var f *spec.Failure
	if errors.As(err, &f) {
		return err
	}
	return spec.RefuseFor(err, spec.Finding{Code: "load-balancer"})
}

// sshTo is how a load balancer is reached: [user@]host[:port].
func (m Machines) sshTo(name string) remote.SSH {
	to := remote.SSH{Passphrase: m.Passphrase, Trace: m.Trace}
	user, host, found := strings.Cut(name, "@")
	if !found {
		user, host = "", name
	}
	to.User, to.Address = user, host
	if h, p, err := net.SplitHostPort(host); err == nil {
		if port, err := strconv.Atoi(p); err == nil {
			to.Address, to.Port = h, port
		}
	}
	return to
}

// Backend implements [Connector].
func (m Machines) Backend(ctx context.Context, b plan.Backend) (remote.Host, error) {
	switch s := b.Settings.SSH; {
	case b.Address != "":
		return remote.SSH{Address: b.Address, User: s.User, Port: s.Port, Identity: s.Identity, Passphrase: m.Passphrase, Trace: m.Trace}.Connect(ctx)
	case b.LB != ThisMachine:
		return m.sshTo(b.LB).Connect(ctx)
	}
	return remote.Local(m.Trace), nil
}

// overSSH asks the agent on a host. Where there is none, this program is copied
// there.
func (m Machines) overSSH(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	host, err := m.sshTo(name).Connect(ctx)
	if err != nil {
		return nil, spec.RefuseFor(err, spec.Finding{Code: "ssh", LB: name})
	}
	b, err := m.agent(ctx, host, name, n.AgentArgs("drainctl"))
	if errors.Is(err, errNoProgram) && !m.NoCopy {
		b, err = m.copied(ctx, host, name, n)
	}
	if err != nil {
		_ = host.Close()
		return nil, refusedLogin(err)
	}
	return b, nil
}

// An Agent is an agent, and the connection that it is asked over.
type Agent struct {
	*balancer.Client
	Host remote.Host
}

// Close implements [balancer.Balancer].
func (a Agent) Close() error {
	return errors.Join(a.Client.Close(), a.Host.Close())
}

// errNoProgram says that a host has no drainctl.
var errNoProgram = errors.New("drainctl is not installed there")

// agentEnd is how long what should be an agent and is none has to end.
const agentEnd = 5 * time.Second

// agent starts an agent on a host, as root.
func (m Machines) agent(ctx context.Context, host remote.Host, name string, args []string) (balancer.Balancer, error) {
	stream, err := host.Start(ctx, remote.Command{Args: args, Root: true})
	if err != nil {
		return nil, err
	}
	client, err := balancer.Connect(ctx, name, m.Version, stream)
	if err == nil {
		return Agent{client, host}, nil
	}
	defer stream.Close()
	var version *balancer.VersionError
	if ctx.Err() != nil || errors.As(err, &version) {
		return nil, err
	}
	_ = stream.CloseWrite()
	select {
	case <-stream.Done():
	case <-time.After(agentEnd):
		return nil, fmt.Errorf("start the agent on %s: %w", name, err)
	}
	code, waitErr := stream.Wait()
	said := stream.Stderr()
	switch r := (remote.Result{Code: code, Stderr: []byte(said)}); {
	case waitErr != nil:
		return nil, waitErr
	case remote.Refusal(host, args, r) != nil:
		return nil, remote.Refusal(host, args, r)
	case code == 127, strings.Contains(said, "command not found"), strings.Contains(said, "Command not found"), strings.Contains(said, "Unknown command"):
		return nil, fmt.Errorf("on %s: %w", name, errNoProgram)
	default:
		return nil, fmt.Errorf("start the agent on %s: %w; %w", name, err, r.Err(args...))
	}
}

// cacheDir is where this program is kept on an LB that has none of its own.
const cacheDir = "/var/cache/drainctl/"

// copyScript puts its standard input at DIR/drainctl. It is one word of plain
// characters, which any login shell passes on.
const copyScript = `umask 022; mkdir -p "$1" && cat >"$1/new.$$" && chmod 755 "$1/new.$$" && mv -f "$1/new.$$" "$1/drainctl"`

// copyLimit is how long the copy may take on a slow network.
const copyLimit = 10 * time.Minute

// copied runs the agent from a copy of this program, in a directory named by its
// hash. It takes root or unrestricted sudo there.
func (m Machines) copied(ctx context.Context, host remote.Host, name string, n spec.Nginx) (balancer.Balancer, error) {
	if err := samePlatform(ctx, host, name); err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("%s%x", cacheDir, sha256.Sum256(text))
	b, err := m.agent(ctx, host, name, n.AgentArgs(dir+"/drainctl"))
	if !errors.Is(err, errNoProgram) {
		return b, err
	}
	copyTo := []string{"sh", "-c", copyScript, "sh", dir}
	r, err := host.Run(ctx, remote.Command{Args: copyTo, Root: true, Stdin: text, Limit: copyLimit})
	if err == nil {
		err = r.Err("sh", "-c", "(copy)")
	}
	if err != nil {
		return nil, fmt.Errorf("%w, and it could not be copied to %s: %w\nhint: install the package drainctl there", errNoProgram, dir, err)
	}
	if m.Copied != nil {
		m.Copied(name, dir+"/drainctl")
	}
	return m.agent(ctx, host, name, n.AgentArgs(dir+"/drainctl"))
}

// samePlatform makes sure that this program runs on a host.
func samePlatform(ctx context.Context, host remote.Host, name string) error {
	r, err := host.Run(ctx, remote.Command{Args: []string{"uname", "-s", "-m"}})
	if err == nil {
		err = r.Err("uname")
	}
	if err != nil {
		return fmt.Errorf("ask %s what it is: %w", name, err)
	}
	machines := map[string]string{"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
	system, machine, _ := strings.Cut(string(bytes.TrimSpace(r.Stdout)), " ")
	if strings.ToLower(system) == runtime.GOOS && machines[machine] == runtime.GOARCH {
		return nil
	}
	return fmt.Errorf("%w, and this drainctl (%s/%s) does not run on %s (%s %s)\nhint: install the package drainctl for it there",
		errNoProgram, runtime.GOOS, runtime.GOARCH, name, system, machine)
}

// A Connector reaches the machines of a run.
type Connector interface {
	// LB is a load balancer; name is "" for this machine.
	LB(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error)
	// Backend is the host behind a target; an empty address is the load balancer.
	Backend(ctx context.Context, b plan.Backend) (remote.Host, error)
}

// ThisMachine is the name of the LB that drainctl runs on.
const ThisMachine = "this machine"
