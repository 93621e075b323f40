package drain

import (
	"errors"
	"net"
	"testing"

	"github.com/drainctl/drainctl/remote"
)

// A host that cannot be reached is told apart from one that refuses, also within a
// refusal: as many as --skip-unreachable-lb says are left out.
func TestUnreachableIsKnownAsSuch(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = Machines{}.LB(t.Context(), l.Addr().String(), Nginx{})
	if !errors.Is(err, remote.ErrConnection) || ExitOf(err) != Refused {
		t.Errorf("exit code %d: %v", ExitOf(err), err)
	}
}
