package status

import (
	"regexp"
	"slices"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// drainctl prints commands that the reader runs, often as root. Targets, IDs, units and
// hosts in them may come from a journal, where another user wrote them. A command takes
// only valid ones, so that none of its words is another user's flag. Without any, there is
// no command: each function gives one command or none.

// UndrainCommand puts targets back. flags are those of the reader.
func UndrainCommand(targets, flags []string, reason string) []spec.Command {
	targets = validTargets(targets)
	if len(targets) == 0 {
		return nil
	}
	return []spec.Command{{Words: slices.Concat([]string{"drainctl", string(spec.Undrain)}, targets, flags), Reason: reason}}
}

// ResumeCommand continues with an operation.
func ResumeCommand(id string, flags []string, reason string) []spec.Command {
	if !spec.IsID(id) {
		return nil
	}
	return []spec.Command{{Words: slices.Concat([]string{"drainctl", "resume", id}, flags), Reason: reason}}
}

// statusCommand shows targets, or all servers where none is valid.
func statusCommand(targets, flags []string, reason string) []spec.Command {
	return []spec.Command{{Words: slices.Concat([]string{"drainctl", "status"}, validTargets(targets), flags), Reason: reason}}
}

// forgetCommand clears the record of a server that was removed.
func forgetCommand(target string, flags []string, reason string) []spec.Command {
	if len(validTargets([]string{target})) == 0 {
		return nil
	}
	return []spec.Command{{Words: slices.Concat([]string{"drainctl", string(spec.Forget), target}, flags), Reason: reason}}
}

// KillCommand ends the processes of a unit on a host.
func KillCommand(unit, host, reason string) []spec.Command {
	if remote.ValidUnit(unit) != nil || host != "" && !isPlainName(host) {
		return nil
	}
	return []spec.Command{{Words: []string{"systemctl", "kill", "--signal=KILL", unit}, On: host, Reason: reason}}
}

// validTargets is those of the texts that are targets.
func validTargets(texts []string) []string {
	return slices.DeleteFunc(slices.Clone(texts), func(text string) bool {
		_, err := nginx.ParseTarget(text)
		return err != nil
	})
}

// plainName is the name of a host, an LB or an upstream that cannot be mistaken for
// anything else.
var plainName = regexp.MustCompile(`^[\pL\pN_.\[][\pL\pM\pN_.:@/\[\]-]*$`)

func isPlainName(text string) bool { return plainName.MatchString(text) }

// NameOr is name, or other where name is not plain.
func NameOr(name, other string) string {
	if isPlainName(name) {
		return name
	}
	return other
}

// withoutForeignWords makes the commands of a result anew that another user has recorded, with the
// reader's flags.
func withoutForeignWords(r *event.Result, id string, flags []string) {
	next := []spec.Command{}
	for _, c := range r.Next {
		if len(c.Words) < 2 || c.Words[0] != "drainctl" {
			continue
		}
		switch args := c.Words[2:]; c.Words[1] {
		case "resume":
			next = append(next, ResumeCommand(id, flags, "continues")...)
		case string(spec.Undrain):
			if targets, upstreams, ok := undrainArgs(args); ok {
				next = append(next, UndrainCommand(targets, append(upstreams, flags...), "puts it back")...)
			}
		}
	}
	r.Next = next
}

// undrainArgs splits the arguments of a printed undrain into its targets and its --upstream
// flags, and leaves out the other flags, which follow. Not ok: without an upstream's name,
// the command would be about more servers.
func undrainArgs(args []string) (targets, upstreams []string, ok bool) {
	n := slices.IndexFunc(args, spec.IsFlagLike)
	if n < 0 {
		return args, nil, true
	}
	for i, word := range args[n:] {
		if word != "--upstream" {
			continue
		}
		if rest := args[n+i+1:]; len(rest) == 0 || !isPlainName(rest[0]) {
			return nil, nil, false
		}
		upstreams = append(upstreams, word, args[n+i+1])
	}
	return args[:n], upstreams, true
}
