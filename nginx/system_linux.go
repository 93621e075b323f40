package nginx

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot is the time since boot, as start times of processes are.
func sinceBoot() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // Linux has had it since 2.6.39
	return time.Duration(t.Nano())
}

// checkAttributes is the error that the file's attributes would be to a rename.
func checkAttributes(real string) error {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, real, 0, unix.STATX_BASIC_STATS, &stx); err != nil {
		return nil // the kernel does not tell; the rename will
	}
	switch flags := stx.Attributes & stx.Attributes_mask; {
	case flags&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return errMountPoint
	case flags&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return fmt.Errorf("chattr has made it immutable: %w", syscall.EPERM)
	}
	return nil
}
