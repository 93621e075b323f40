package nginx

import (
	"errors"
	"fmt"
	"os"
	"runtime"
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

func ownerOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

// mayWrite asks the kernel whether a user may write each of places, access control lists
// and all. A thread of its own takes on the user's identity for files (setfsuid(2)), and
// ends with that. Before Linux 5.8 the mode has to do.
func mayWrite(places []place, uid uint32, groups []uint32) (allowed []bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = actFor(uid, groups); err != nil {
			err = fmt.Errorf("ask as user %d: %w", uid, err)
			return
		}
		for _, p := range places {
			err := unix.Faccessat2(unix.AT_FDCWD, p.path, unix.W_OK, unix.AT_EACCESS)
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				// Nor does the system call filter of an old container know it. Where an access
				// control list lets anyone write, the group's bits are its mask (acl(5)).
				allowed = append(allowed, p.info.Mode()&0o022 != 0)
				continue
			}
			allowed = append(allowed, err == nil || errors.Is(err, unix.ETXTBSY))
		}
	}()
	<-done
	return allowed, err
}

// actFor has the calling thread use files as a user does. The functions of the package
// syscall would change all threads.
func actFor(uid uint32, groups []uint32) error {
	if len(groups) == 0 {
		return errors.New("it has no group")
	}
	all := make([]int, len(groups))
	for i, g := range groups {
		all[i] = int(g)
	}
	if err := unix.Setgroups(all); err != nil {
		return err
	}
	_ = unix.Setfsgid(all[0])
	_ = unix.Setfsuid(int(uid))
	// They tell no error: another call says what is so now (setfsuid(2)).
	if now, _ := unix.SetfsuidRetUid(-1); uint32(now) != uid {
		return unix.EPERM
	}
	return nil
}
