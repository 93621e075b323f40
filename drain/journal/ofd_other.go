//go:build !linux

package journal

// A journal is on a load balancer, which runs Linux. Elsewhere fcntl refuses these commands.
const (
	ofdSetLock = -1
	ofdGetLock = -1
)
