package show

import (
	"slices"

	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// Commands shows what to type next, with servers that there are; where are the
// flags that name the load balancers.
func (v *Text) Commands(st *status.Status, where []string) {
	st, where = cleaned(st), cleaned(where)
	v.mu.Lock()
	defer v.mu.Unlock()
	up, down := examples(st)
	next := commandTable{where: where}
	if up != "" {
		next.add("what a drain would do", "drain", up, "--dry-run")
	}
	if down != "" {
		next.add("put it back", "undrain", down)
	} else if up != "" {
		next.add("put it back after a drain", "undrain", up)
	}
	next.add("this, kept up to date", "status", "--watch")
	next.where = nil
	next.add("everything else", "--help")
	v.commands(&next)
}

// A commandTable is commands to type, and why. Each names the load balancers.
type commandTable struct {
	where []string
	rows  [][2]string // a command and its reason
	width int         // of the widest
}

func (t *commandTable) add(reason string, words ...string) {
	command := remote.Quote(slices.Concat([]string{"drainctl"}, words, t.where)...)
	t.rows, t.width = append(t.rows, [2]string{command, reason}), max(t.width, len(command))
}

// commands prints a table; a terminal for which it is too wide has the reasons below.
func (v *Text) commands(t *commandTable) {
	v.line("")
	below := v.width() > 0 && slices.ContainsFunc(t.rows, func(r [2]string) bool { return 4+t.width+len(r[1]) > v.width() })
	for _, r := range t.rows {
		if below {
			v.line("  %s", r[0])
			v.line("      %s", r[1])
		} else {
			v.line("  %-*s  %s", t.width, r[0], r[1])
		}
	}
}

// examples are a server that may be drained, and one that is.
func examples(st *status.Status) (up, down string) {
	ups := map[string]int{}
	for _, r := range statusRows(st.LBs) {
		if same(r, stateOf, differ) == string(status.StateUp) {
			ups[r.upstream]++
		}
	}
	for _, r := range statusRows(st.LBs) {
		switch same(r, stateOf, differ) {
		case string(status.StateUp):
			if up == "" && (ups[r.upstream] > 1 || len(ups) == 1) {
				up = r.any().Address
			}
		case string(status.StateDrained):
			down = r.any().Address
		}
	}
	return up, down
}

// Welcome says what to do where there is no nginx, and nothing is configured.
func (v *Text) Welcome(conf string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.line("drainctl takes a backend out of an nginx pool without cutting a request, and")
	v.line("puts it back.")
	v.line("")
	v.line("There is no nginx configuration on this machine (%s), and no", Clean(conf))
	v.line("configuration file names load balancers.")
	v.line("")
	v.table([]string{
		"  drainctl status --lb HOST\tthe servers of another machine's nginx, over SSH",
		"  drainctl init --lb HOST\twrite a configuration file with what is there",
		"  drainctl --help\teverything else",
	})
}

// Initialized says where a first configuration file was written, and what to type next.
func (v *Text) Initialized(path string, lbs []plan.LBPlan, where []string) {
	path, lbs, where = Clean(path), cleaned(lbs), cleaned(where)
	v.mu.Lock()
	defer v.mu.Unlock()
	var upstreams []string
	servers := 0
	target := ""
	for _, lb := range lbs {
		for _, s := range lb.Report.Servers {
			if servers++; target == "" && !s.Down {
				target = s.Address
			}
			if !slices.Contains(upstreams, s.Name) {
				upstreams = append(upstreams, s.Name)
			}
		}
	}
	v.line("%s %s", v.good.Sprint("wrote"), path)
	v.line("(%s, %s, %s)", count(len(lbs), "load balancer"), count(len(upstreams), "upstream"), count(servers, "server line"))
	next := commandTable{where: where}
	if target != "" {
		next.add("is all there that a drain needs?", "check", target)
		next.add("what a drain would do", "drain", target, "--dry-run")
	} else {
		next.add("is all there that a drain needs?", "check")
	}
	v.commands(&next)
}
