package lab

import (
	"context"
	"fmt"
	"io/fs"
	"os"
)

// LBFlag is how an operator's machine names the load balancer.
const LBFlag = "--lb=root@" + LBAddr

// A homeFile is a file below somebody's home.
type homeFile struct {
	name string
	text []byte
	mode fs.FileMode
}

// operatorFiles is what an operator has in the home of whatever host and user: a key that
// all hosts take, and the keys of all hosts.
func (l *Lab) operatorFiles() []homeFile {
	return []homeFile{
		{".ssh/id_ed25519", l.keys.operator.private, 0o600},
		{".ssh/id_ed25519.pub", l.keys.operator.authorized(), 0o644},
		{".ssh/known_hosts", l.knownHosts(), 0o600},
	}
}

// deskConfig is ssh's on the desk: nothing is reached but over the jump host.
const deskConfig = "Host * !" + JumpAddr + " !jump\n    ProxyJump " + JumpAddr + "\n"

// nobodyFromDesk is sshd's where nobody may come from the desk directly.
const nobodyFromDesk = "Match Address " + DeskAddr + "\n    DenyUsers *\n"

// MakeOperator has a host be a machine that root types drainctl on, with --lb: it has
// drainctl and an operator's files.
func (l *Lab) MakeOperator(ctx context.Context, m *Machine) error {
	for _, f := range l.operatorFiles() {
		if err := m.WriteFile(ctx, "/root/"+f.name, f.text, f.mode); err != nil {
			return err
		}
	}
	return l.install(ctx, m)
}

// Install builds drainctl and puts it on the path of the load balancers and the desk.
func (l *Lab) Install(ctx context.Context) error {
	machines := l.LBs()
	if l.Desk != nil {
		machines = append(machines, l.Desk)
	}
	return l.install(ctx, machines...)
}

func (l *Lab) install(ctx context.Context, machines ...*Machine) error {
	path, err := l.build(ctx, "drainctl", ".")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, m := range machines {
		// Under another name first: a drainctl that runs cannot be written to.
		if err := m.WriteFile(ctx, "/usr/bin/drainctl.new", data, 0o755); err != nil {
			return err
		}
		if _, err := m.Run(ctx, "mv", "/usr/bin/drainctl.new", "/usr/bin/drainctl"); err != nil {
			return fmt.Errorf("install drainctl: %w", err)
		}
	}
	return nil
}

// As is the command line that runs a command as another user, in that user's environment.
func As(user string, args ...string) []string {
	return append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--reset-env", "--"}, args...)
}
