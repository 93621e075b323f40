package drain

import (
	"net/netip"
	"strings"

	"github.com/drainctl/drainctl/nginx"
)

// OnLB tells whether the target is on the load balancer itself: a unix socket,
// or an address of the loopback interface. No SSH is needed to reach it.
func OnLB(t nginx.Target) bool {
	return t.Unix != "" || isLoopbackName(t.Host)
}

func isLoopbackName(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// loopback tells whether all addresses are of the loopback interface: localhost
// often has one of each family, and they are one place.
func loopback(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if !a.IsLoopback() {
			return false
		}
	}
	return true
}
