package journal

import "golang.org/x/sys/unix"

// The commands for locks of an open file description, see fcntl(2).
const (
	ofdSetLock = unix.F_OFD_SETLK
	ofdGetLock = unix.F_OFD_GETLK
)
