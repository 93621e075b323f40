package drain

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Who holds a claim is told from the moment it is held, before there is an operation of
// theirs in the journal; and it is not the author of an earlier one that crashed.
func TestClaimTellsItsHolder(t *testing.T) {
	dir := t.TempDir()
	host := remote.Local(nil)
	target, err := nginx.ParseTarget("192.168.1.10")
	if err != nil {
		t.Fatal(err)
	}
	by := func(user, reason string) *Request {
		return &Request{Operation: Drain, Target: target, LBs: []*LB{{Host: host}}, StateDir: dir, User: user, Host: "desk", Reason: reason}
	}
	crashed := Record{Kind: RecordBegin, Begin: &Begin{ID: newID(time.Now(), ""), Operation: Drain, Target: target.String(), User: "bob", Host: "desk"}}
	if err := (journal{host, dir}).write(t.Context(), crashed.Begin.ID, crashed); err != nil {
		t.Fatal(err)
	}
	tell := func(e Event) { t.Errorf("told %v", e) }
	refused := func(want string) {
		t.Helper()
		c, err := TakeClaim(t.Context(), by("eve", ""), tell)
		if err == nil {
			c.Release()
		}
		var f *Failure
		if !errors.As(err, &f) || f.Kind != Refused || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "bob") {
			t.Errorf("got %v, want it refused with %q", err, want)
		}
	}

	ann, err := TakeClaim(t.Context(), by("ann", "new kernel"), tell)
	if err != nil {
		t.Fatal(err)
	}
	refused("192.168.1.10 is being worked on: drain 192.168.1.10 by ann on desk, ")
	refused(`, "new kernel"`)
	id := newID(time.Now(), crashed.Begin.ID)
	begun := Record{Kind: RecordBegin, Begin: &Begin{ID: id, Operation: Drain, Target: target.String(), User: "ann", Host: "desk"}}
	if err := (journal{host, dir}).write(t.Context(), id, begun); err != nil {
		t.Fatal(err)
	}
	refused("(operation " + id + ")")
	ann.Release()

	carl, err := TakeClaim(t.Context(), by("carl", ""), tell)
	if err != nil {
		t.Fatal(err)
	}
	defer carl.Release()
	refused("by carl on desk, ")
}
