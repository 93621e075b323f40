package lab

import "fmt"

// A role is what a host is there for.
type role struct {
	units []string          // that start at boot and serve, beside sshd
	fill  func(*Lab, *tree) // lays what the host has beside what every host has
	kept  string            // what a test may change, and Reset puts back
	reset string            // a script that puts it back from the archive $1; $2 is kept
}

var (
	balancerRole = role{
		units: []string{"nginx"},
		fill:  (*Lab).fillLB,
		kept:  "/etc/nginx /etc/ssh /etc/hosts /etc/sudoers.d /root /home",
		reset: resetLBScript,
	}
	appRole = role{
		units: []string{AppUnit},
		fill:  (*Lab).fillApp,
		kept:  "/etc/nginx /etc/ssh /etc/systemd/system /etc/sudoers.d /etc/default/my-web-app /root /home",
		reset: resetAppScript,
	}
	jumpRole = role{
		fill:  (*Lab).fillJump,
		kept:  "/etc/ssh /etc/hosts /root /home",
		reset: resetPlainScript,
	}
	deskRole = role{
		fill:  (*Lab).fillDesk,
		kept:  "/etc/ssh /etc/hosts /root /home",
		reset: resetPlainScript,
	}
)

// nameHosts names the hosts and gives them their addresses.
func (l *Lab) nameHosts(fleet bool) {
	l.LB = l.newMachine("lb", LBAddr, balancerRole)
	for n, addr := range []string{App1Addr, App2Addr, App3Addr} {
		l.Apps = append(l.Apps, l.newMachine(fmt.Sprintf("app%d", n+1), addr, appRole))
	}
	if fleet {
		l.LB2 = l.newMachine("lb2", LB2Addr, balancerRole)
		l.Jump = l.newMachine("jump", JumpAddr, jumpRole)
		l.Desk = l.newMachine("desk", DeskAddr, deskRole)
	}
	l.Client = l.newMachine("client", ClientAddr, role{})
	l.Client.Root = "/"
}

// LBs are the load balancers.
func (l *Lab) LBs() []*Machine {
	if l.LB2 == nil {
		return []*Machine{l.LB}
	}
	return []*Machine{l.LB, l.LB2}
}

// Hosts are the machines that boot a system of their own.
func (l *Lab) Hosts() []*Machine {
	hosts := append(l.LBs(), l.Apps...)
	if l.Desk != nil {
		hosts = append(hosts, l.Jump, l.Desk)
	}
	return hosts
}
