package balancer

import (
	"encoding/json"
	"regexp"
	"slices"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// withoutSecrets is a state without the secrets of URLs that an earlier drainctl, or
// another client of the agent, has recorded. The command of a rolling run stays as it is:
// resume runs it.
func withoutSecrets(s journal.State) journal.State {
	s.Operations = slices.Clone(s.Operations)
	for i := range s.Operations {
		op := &s.Operations[i]
		op.Reason = remote.Redact(op.Reason)
		op.Spec = recordedURL.ReplaceAllFunc(op.Spec, func(field []byte) []byte { return redactJSON(field) })
	}
	return s
}

// recordedURL is a field of a spec that is a URL.
var recordedURL = regexp.MustCompile(`(?i)"(?:health|status_url)":\s*"[^"]*"`)

// withoutSecrets is a history without them. Nothing is decided from it.
func (h History) withoutSecrets() History {
	for i, op := range h.Operations {
		h.Operations[i].First, h.Operations[i].Last = redactJSON(op.First), redactJSON(op.Last)
	}
	for i, line := range h.Lines {
		h.Lines[i] = redactJSON(line)
	}
	return h
}

func redactJSON(text []byte) json.RawMessage { return []byte(remote.Redact(string(text))) }
