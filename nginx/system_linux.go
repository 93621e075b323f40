package nginx

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

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

// mayWrite asks the kernel whether a user may write each of paths, access control lists
// and all. A thread of its own takes on the user's identity for files (setfsuid(2)), and
// ends with that.
func mayWrite(paths []string, uid uint32, groups []uint32) ([]bool, error) {
	type answer struct {
		allowed []bool
		err     error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := actFor(uid, groups); err != nil {
			done <- answer{nil, fmt.Errorf("ask as user %d: %w", uid, err)}
			return
		}
		allowed := make([]bool, len(paths))
		for i, name := range paths {
			err := unix.Faccessat(unix.AT_FDCWD, name, unix.W_OK, unix.AT_EACCESS)
			if errors.Is(err, unix.ENOSYS) {
				done <- answer{nil, fmt.Errorf("ask as user %d: %w", uid, err)}
				return
			}
			allowed[i] = err == nil || errors.Is(err, unix.ETXTBSY)
		}
		done <- answer{allowed, nil}
	}()
	a := <-done
	return a.allowed, a.err
}

// actFor has the calling thread use files as a user does. Go's own functions would change
// all threads.
func actFor(uid uint32, groups []uint32) error {
	if len(groups) == 0 {
		return errors.New("it has no group")
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return e
	}
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(groups[0]), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	// They tell no error: a second call says what is so now (setfsuid(2)).
	if now, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(now) != uid {
		return unix.EPERM
	}
	return nil
}
