package remote

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func TestParseAddresses(t *testing.T) {
	const text = `1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host \       valid_lft forever preferred_lft forever
2: eth0@if7    inet 192.168.1.10/24 brd 192.168.1.255 scope global eth0\       valid_lft forever preferred_lft forever
2: eth0@if7    inet6 2001:db8::10/64 scope global \       valid_lft forever preferred_lft forever
3: wg0    inet 10.9.0.1 peer 10.9.0.2/32 scope global wg0\       valid_lft forever preferred_lft forever
4: odd    link/none
`
	if got, want := fmt.Sprint(parseAddresses(text)), "[127.0.0.1 ::1 192.168.1.10 2001:db8::10 10.9.0.1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	own, err := Addresses(t.Context(), Local(nil))
	if err != nil || !slices.Contains(own, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("this machine has %v, %v", own, err)
	}
}
