package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// takeLock makes this process the only one on the machine that has a lab. The
// kernel lets go of the lock when the process ends, however it ends.
func takeLock(ctx context.Context, wait time.Duration, log io.Writer) (*os.File, error) {
	if wait == 0 {
		wait = DefaultWait
	}
	file, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the lab: %w", err)
	}
	deadline := time.Now().Add(wait)
	for said := false; ; said = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, describeHolder(file)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", lockPath, err), file.Close())
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("another lab is up on this machine (%s): take it down, or try again later", holder()), file.Close())
		}
		if !said {
			_, _ = fmt.Fprintf(log, "lab: another lab is up (%s); waiting up to %s for it to come down\n", holder(), wait)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for another lab to come down (%s): %w", holder(), ctx.Err()), file.Close())
		case <-time.After(min(200*time.Millisecond, wait)):
		}
	}
}

// describeHolder writes who holds the lock into it, for whoever finds it taken.
func describeHolder(file *os.File) error {
	text := fmt.Sprintf("process %d, %s, since %s\n", os.Getpid(), os.Args[0], time.Now().Format(time.DateTime))
	if err := file.Truncate(0); err != nil {
		return errors.Join(err, file.Close())
	}
	if _, err := file.WriteAt([]byte(text), 0); err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

func holder() string {
	text, err := os.ReadFile(lockPath)
	if err != nil || len(text) == 0 {
		return "holder unknown"
	}
	return strings.TrimSpace(string(text))
}
