package drain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// The exit codes are a contract with scripts.
func TestExits(t *testing.T) {
	for exit, code := range map[Exit]int{Done: 0, Failed: 1, Usage: 2, TimedOut: 3, Refused: 4, Partial: 5, Interrupted: 130} {
		if int(exit) != code {
			t.Errorf("%d is not exit code %d", exit, code)
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(ErrInterrupted)
	coded := func(c balancer.Code) error { return &balancer.Error{Code: c, Message: "x"} }
	for _, test := range []struct {
		err  error
		want Exit
	}{
		{nil, Done},
		{errors.New("x"), Failed},
		{&Failure{Exit: Partial, Err: errors.New("x")}, Partial},
		{fmt.Errorf("y: %w", &Failure{Exit: TimedOut, Err: errors.New("x")}), TimedOut},
		{usage("x"), Usage},
		{refuse(Finding{}), Refused},
		{beforeTouching(t.Context(), fs.ErrNotExist), Failed},
		{beforeTouching(t.Context(), coded(balancer.CodeUsage)), Usage},
		{beforeTouching(t.Context(), coded(balancer.CodeUnknown)), Usage},
		{beforeTouching(t.Context(), coded(balancer.CodeRefused)), Refused},
		{beforeTouching(t.Context(), coded(balancer.CodePermission)), Refused},
		{beforeTouching(t.Context(), coded(balancer.CodeConnection)), Failed},
		{beforeTouching(t.Context(), fmt.Errorf("x: %w", remote.ErrConnection)), Failed},
		{beforeTouching(gone, coded(balancer.CodeCanceled)), Interrupted},
		{beforeTouching(gone, usage("x")), Usage},
	} {
		if got := ExitOf(test.err); got != test.want {
			t.Errorf("%v: exit %d, want %d", test.err, got, test.want)
		}
	}
}

func TestTimedOutSaysWhoHolds(t *testing.T) {
	peer := func(addr string, n int) remote.Peer { return remote.Peer{Addr: netip.MustParseAddr(addr), Count: n} }
	for _, test := range []struct {
		count remote.Count
		want  string
	}{
		{remote.Count{Open: 1}, "not drained after 5m: 1 connection open, more than 0"},
		{remote.Count{Open: 3, Peers: []remote.Peer{peer("192.168.1.2", 2), peer("fe80::1", 1)}}, "not drained after 5m: 3 connections open, more than 0, from 192.168.1.2 (2), fe80::1 (1)"},
		{remote.Count{Open: 9, Peers: []remote.Peer{peer("192.168.1.2", 2)}, MorePeers: 4}, "not drained after 5m: 9 connections open, more than 0, from 192.168.1.2 (2), and 4 more"},
	} {
		if got := (&TimedOutError{Count: test.count, Limit: 5 * time.Minute}).Error(); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 500 * time.Millisecond: "500ms", 30 * time.Second: "30s", 10 * time.Second: "10s", time.Minute: "1m", 90 * time.Second: "1m30s",
		5 * time.Minute: "5m", 10 * time.Minute: "10m", time.Hour: "1h", 10 * time.Hour: "10h", time.Hour + time.Second: "1h0m1s", 90 * time.Minute: "1h30m",
	} {
		if got := Span(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
