package remote

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile is a file without a name, in memory.
func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("drainctl", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}
