package show

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
)

// Checks shows a line for each check, and a summary.
func (v *Text) Checks(r *drain.CheckReport) {
	r = cleaned(r)
	v.mu.Lock()
	defer v.mu.Unlock()
	where, name := 0, 0
	for _, c := range r.Checks {
		where, name = max(where, len(c.LB+c.Backend)), max(name, len(c.Name))
	}
	marks := map[event.CheckResult]string{
		event.CheckOK: v.good.Sprint("ok         "), event.CheckWarning: v.warn.Sprint("warning    "),
		event.CheckFailed: v.bad.Sprint("FAILED     "), event.NotChecked: v.faint.Sprint("not checked"),
	}
	for _, c := range r.Checks {
		text := ""
		switch {
		case c.Result == event.CheckOK:
			text = seenText(c)
		case c.Finding != nil:
			// What a tool has said may be of several lines.
			text = strings.Join(toldLines(*c.Finding), "; ")
		default:
			text = fmt.Sprintf("it needs %s", c.Needs)
		}
		v.line("%s", strings.TrimRight(fmt.Sprintf("%s  %-*s  %-*s  %s", marks[c.Result], where, c.LB+c.Backend, name, c.Name, text), " "))
	}
	sum := fmt.Sprintf("%s: %d ok", count(len(r.Checks), "check"), r.Count(event.CheckOK))
	for _, result := range []event.CheckResult{event.CheckWarning, event.CheckFailed, event.NotChecked} {
		if n := r.Count(result); n > 0 {
			sum += fmt.Sprintf(", %d %s", n, result)
		}
	}
	v.line("%s", v.bold.Sprint(sum))
}

// checkTexts say what a check is about that drainctl check does not have.
var checkTexts = map[event.CheckName]string{
	"live-servers":       "enough live servers remain in each upstream",
	"one-live-server":    "more than one live server remains",
	"remaining-upstream": "no other upstream, and no other port, still sends to it",
	"direct-reference":   "nothing reaches it outside of its upstreams",
	"other-name":         "it is no server under another name",
	"shutdown-timeout":   "worker_shutdown_timeout is not shorter than the wait",
	"udp-sessions":       "the reload ends no UDP sessions",
	"several-addresses":  "each server name is one address",
	"unmanaged":          "drainctl has marked it down",
	"ambiguous":          "which lines drainctl has marked is clear",
	"orphaned":           "what was drained is still in the configuration",
}

// checkText is a check in words, or its name.
func checkText(name event.CheckName) string { return cmp.Or(checkTexts[name], string(name)) }

// seenText is what a check that passed saw. One of the history may have seen less.
func seenText(c event.Check) string {
	s := c.Seen
	switch c.Name {
	case event.CheckSSH:
		return s.Host
	case event.CheckHostKey:
		return "known"
	case event.CheckSudo, event.CheckReboot:
		if s.User == "root" {
			return "not needed: the login is root's"
		}
		what := map[bool]string{true: "start the agent", false: "stop and start the unit"}[c.LB != ""]
		if c.Name == event.CheckReboot {
			what = "reboot"
		}
		return fmt.Sprintf("%s may %s", cmp.Or(s.User, "the login user"), what)
	case event.CheckAgent:
		return "drainctl " + s.Version
	case event.CheckConfiguration:
		return s.Configuration
	case event.CheckServer:
		return strings.Join(s.Servers, ", ")
	case event.CheckNginx:
		text := strings.TrimSpace("nginx " + s.Version)
		if s.Generation == nil {
			return text
		}
		text += ", " + count(s.Generation.Serving, "worker")
		if s.Generation.Earlier > 0 {
			text += "; " + earlier(*s.Generation)
		}
		return text
	case event.CheckTest:
		return "passed"
	case event.CheckFiles:
		return "can be replaced"
	case event.CheckPending:
		return "nothing was changed since nginx was last loaded"
	case event.CheckJournal:
		return "can be read"
	case event.CheckSpace:
		return fmt.Sprintf("%d MB free for the journal", s.Free>>20)
	case event.CheckClock:
		if skew := s.Skew.Duration().Abs().Round(time.Millisecond); skew > 0 {
			return fmt.Sprintf("%s from this machine's", skew)
		}
		return "as this machine's"
	case event.CheckUnit:
		if s.Service == nil {
			return ""
		}
		return serviceText(s.Service.Unit, *s.Service)
	case event.CheckOneHost:
		return "all addresses are of " + s.Host
	case event.CheckHealth:
		return s.URL + " passes"
	case event.CheckCounter:
		if s.Open == nil {
			return ""
		}
		text := fmt.Sprintf("%s open, by %s", count(*s.Open, "connection"), s.Counter)
		if s.Refuses {
			text += "; the app takes no connections"
		}
		return text
	}
	return ""
}
