package lab

import (
	"context"
	"io/fs"
	"strings"
)

// LBFlag is how an operator's machine names the load balancer.
const LBFlag = "--lb=root@" + LBAddr

// MakeOperator has a host be a machine that drainctl is typed on, with --lb: it has
// drainctl, the operator's key, and the keys of all hosts.
func (l *Lab) MakeOperator(ctx context.Context, m *Machine) error {
	known, err := l.LB.ReadFile(ctx, "/root/.ssh/known_hosts")
	if err != nil {
		return err
	}
	for _, kind := range []string{"ed25519", "ecdsa"} {
		key, err := l.LB.ReadFile(ctx, "/etc/ssh/ssh_host_"+kind+"_key.pub")
		if err != nil {
			return err
		}
		words := strings.Fields(string(key))
		known = append(known, LBAddr+" "+words[0]+" "+words[1]+"\n"...)
	}
	if err := m.WriteFile(ctx, "/root/.ssh/known_hosts", known, 0o600); err != nil {
		return err
	}
	for name, mode := range map[string]fs.FileMode{"/root/.ssh/id_ed25519": 0o600, "/usr/bin/drainctl": 0o755} {
		data, err := l.LB.ReadFile(ctx, name)
		if err == nil {
			err = m.WriteFile(ctx, name, data, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
