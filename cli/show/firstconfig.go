package show

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// FirstConfig is a configuration file for what was found on load balancers. What
// would change how drainctl works is a comment, but for what a drain would be
// refused without. units are those of upstreams, as far as they are known.
func FirstConfig(sp spec.Spec, lbs []plan.LBPlan, units map[string]string) string {
	c := configText{units: units}
	c.line("# drainctl's configuration file, begun by `drainctl init` on %s. Flags", time.Now().Format(time.DateOnly))
	c.line("# and environment variables come before it. A line with # before its key is a")
	c.line("# suggestion. `drainctl config` shows what holds, and where it comes from.")
	c.groups(sp)
	c.defaults(lbs)
	c.upstreams(lbs)
	c.nginx(sp, lbs)
	return c.String()
}

type configText struct {
	strings.Builder
	units map[string]string
}

func (c *configText) line(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

func (c *configText) groups(sp spec.Spec) {
	if len(sp.LBs) == 0 {
		c.line("\n# Load balancers by group, for drainctl on another machine: --group NAME.")
		c.line("# groups:\n#   all: [deploy@lb1, deploy@lb2]")
		return
	}
	c.line("\n# Load balancers by group: --group all.")
	c.line("groups:\n  all:")
	for _, lb := range sp.LBs {
		c.line("    - %s", yamlText(lb))
	}
}

func (c *configText) defaults(lbs []plan.LBPlan) {
	c.line("\n# For every run.\ndefaults:")
	cut, path := shutdownTimeout(lbs)
	switch {
	case cut == 0:
		c.line("  # worker_shutdown_timeout is not set: nginx lets open requests end.")
		c.line("  # timeout: %s             # how long a drain waits for them", backend.Span(spec.DefaultTimeout))
	case cut < spec.DefaultTimeout:
		c.line("  # nginx cuts what is still open after worker_shutdown_timeout, %s", backend.Span(cut))
		c.line("  # (%s). A drain that waits longer is refused.", Clean(path))
		c.line("  timeout: %s", backend.Span(cut))
	default:
		c.line("  # worker_shutdown_timeout is %s: a drain may wait as long.", backend.Span(cut))
		c.line("  # timeout: %s", backend.Span(spec.DefaultTimeout))
	}
	c.line("  # on-timeout: rollback    # or leave (down, running), or stop (anyway)")
	c.line("  # poll: lb                # where the backends allow no SSH; else ss")
	c.line("  # ssh-user: deploy        # who logs in to the backends")
}

// shutdownTimeout is the shortest worker_shutdown_timeout, and where it is; 0: there
// is none.
func shutdownTimeout(lbs []plan.LBPlan) (cut time.Duration, path string) {
	for _, lb := range lbs {
		if t := lb.Report.ShutdownTimeout; t > 0 && (cut == 0 || t < cut) {
			cut, path = t, lb.Report.ConfPath
		}
	}
	return cut, path
}

func (c *configText) upstreams(lbs []plan.LBPlan) {
	var names []string
	servers := map[string][]balancer.Server{} // of each, once
	primaries := map[string]int{}
	for _, lb := range lbs {
		for _, s := range lb.Report.Servers {
			if servers[s.Name] == nil {
				names = append(names, s.Name)
			}
			if slices.ContainsFunc(servers[s.Name], func(had balancer.Server) bool { return had.Address == s.Address }) {
				continue
			}
			servers[s.Name] = append(servers[s.Name], s)
			// What drainctl has drained comes back.
			if (!s.Down || s.Managed) && !slices.Contains(s.Parameters, "backup") {
				primaries[s.Name]++
			}
		}
	}
	if len(names) == 0 {
		c.line("\n# No upstream has a server.\n# upstreams:\n#   NAME:\n#     service: app")
		return
	}
	c.line("\n# For the backends of an upstream; for one alone, a section \"backends\" has its\n# address as a key.")
	c.line("#   service  the systemd unit that a drain stops, and an undrain starts")
	c.line("#   health   what must answer before an undrain lets requests in")
	c.line("#   min-up   live servers that a drain must leave; %d where nothing is said", spec.DefaultMinUp)
	c.line("upstreams:")
	for _, name := range names {
		c.upstream(name, servers[name], primaries[name])
	}
}

// upstream is one of them. With settings that are all comments it is an empty section.
func (c *configText) upstream(name string, servers []balancer.Server, primaries int) {
	var addresses []string
	for i, s := range servers {
		if i == maxListed {
			addresses = append(addresses, fmt.Sprintf("and %d more", len(servers)-i))
			break
		}
		addresses = append(addresses, s.Text)
	}
	c.line("  # %s, %d in use: %s", count(len(servers), "server"), primaries, Clean(strings.Join(addresses, ", ")))
	if !utf8.ValidString(name) {
		c.line("  # (%s: a name that is not UTF-8 cannot stand here)", Clean(name))
		return
	}
	c.line("  %s:", yamlText(name))
	if unit := c.units[name]; unit != "" {
		c.line("    # service: %s    # it listens on %s", yamlText(strings.TrimSuffix(unit, ".service")), Clean(servers[0].Text))
	} else {
		c.line("    # service: my-app")
	}
	if servers[0].Module == "http" {
		c.line("    # health: http://{host}:{port}/healthz")
	}
	if primaries < 2 {
		c.line("    # min-up: 0    # to drain the only one")
	} else {
		c.line("    # min-up: %d", (primaries+1)/2)
	}
}

// maxListed is how many servers a comment names.
const maxListed = 6

// nginx is how this machine's nginx is run, as far as that was said.
func (c *configText) nginx(sp spec.Spec, lbs []plan.LBPlan) {
	if len(sp.LBs) > 0 {
		c.line("\n# How nginx is run on a load balancer, its own /etc/drainctl.yaml says there.")
		return
	}
	c.line("\n# How this machine's nginx is run (here: %s, %s).", cmp.Or("nginx "+Clean(lbs[0].Report.Version), "nginx"), Clean(lbs[0].Report.ConfPath))
	var given []string
	spec.EachFlag(sp.Nginx, func(name string, field reflect.Value) {
		if text := fmt.Sprint(field); field.Kind() == reflect.Int && !field.IsZero() {
			given = append(given, fmt.Sprintf("  %s: %s", name, text))
		} else if !field.IsZero() {
			given = append(given, fmt.Sprintf("  %s: %s", name, yamlText(text)))
		}
	})
	if len(given) > 0 {
		c.line("nginx:\n%s", strings.Join(given, "\n"))
		return
	}
	c.line("# nginx:\n#   nginx-conf: %s", yamlText(Clean(lbs[0].Report.ConfPath)))
	c.line("#   test-command: docker exec lb nginx -t\n#   reload-command: docker exec lb nginx -s reload")
}

// yamlText is a text as YAML has it, in quotes where it needs them.
func yamlText(text string) string {
	out, err := yaml.Marshal(text)
	if err != nil || Clean(text) != text || strings.Contains(strings.TrimSpace(string(out)), "\n") {
		return fmt.Sprintf("%+q", text)
	}
	return strings.TrimSpace(string(out))
}
