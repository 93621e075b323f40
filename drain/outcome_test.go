package drain

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"testing"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// The exit codes are a contract with scripts.
func TestKinds(t *testing.T) {
	for kind, code := range map[Kind]int{Done: 0, Failed: 1, Misused: 2, NotDrained: 3, Refused: 4, PartDone: 5, Interrupted: 130} {
		if int(kind) != code {
			t.Errorf("kind %d is not exit code %d", kind, code)
		}
	}
	for _, test := range []struct {
		err  error
		want Kind
	}{
		{nil, Done},
		{errors.New("x"), Failed},
		{&Failure{Kind: PartDone, Err: errors.New("x")}, PartDone},
		{fmt.Errorf("y: %w", &Failure{Kind: NotDrained, Err: errors.New("x")}), NotDrained},
		{misused("x"), Misused},
		{refuse([]Finding{{Kind: Refused}}), Refused},
		{refuse([]Finding{{Kind: Refused}, {Kind: Misused}, {Kind: Refused}}), Misused},
		{unreadable(fs.ErrNotExist), Refused},
		{unreadable(fmt.Errorf("x: %w", remote.ErrConnection)), Failed},
		{unreadable(fmt.Errorf("x: %w", ErrInterrupted)), Interrupted},
	} {
		if got := KindOf(test.err); got != test.want {
			t.Errorf("%v: kind %d, want %d", test.err, got, test.want)
		}
	}
}

func TestNotDrainedSaysWhoHolds(t *testing.T) {
	peer := func(addr string, n int) remote.Peer { return remote.Peer{Addr: netip.MustParseAddr(addr), Count: n} }
	for _, test := range []struct {
		reading Reading
		want    string
	}{
		{Reading{Count: 1}, "not drained after 5m: 1 connection open, more than 0"},
		{Reading{Count: 3, Peers: []remote.Peer{peer("192.168.1.2", 2), peer("fe80::1", 1)}}, "not drained after 5m: 3 connections open, more than 0, from 192.168.1.2 (2), fe80::1 (1)"},
		{Reading{Count: 9, Peers: []remote.Peer{peer("192.168.1.2", 2)}, More: 4}, "not drained after 5m: 9 connections open, more than 0, from 192.168.1.2 (2), and 4 more"},
	} {
		if got := (&NotDrainedError{Reading: test.reading, Limit: 5 * time.Minute}).Error(); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}
