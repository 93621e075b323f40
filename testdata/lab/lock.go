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

// takePlace takes the first place on the machine that nobody has. The kernel lets go of
// its lock when the process ends, however it ends.
func takePlace(ctx context.Context, wait time.Duration, log io.Writer) (place, *os.File, error) {
	if wait == 0 {
		wait = DefaultWait
	}
	deadline := time.Now().Add(wait)
	for said := false; ; said = true {
		for _, p := range allPlaces() {
			lock, err := p.tryLock()
			if err != nil {
				return 0, nil, err
			}
			if lock != nil {
				return p, lock, describeHolder(lock)
			}
		}
		if time.Now().After(deadline) {
			return 0, nil, fmt.Errorf("%d labs are up on this machine, and there is no place for another: take one down, or try again later\n%s", places, holders())
		}
		if !said {
			_, _ = fmt.Fprintf(log, "lab: %d labs are up; waiting up to %s for one to come down\n%s\n", places, wait, holders())
		}
		select {
		case <-ctx.Done():
			return 0, nil, fmt.Errorf("waiting for another lab to come down: %w\n%s", ctx.Err(), holders())
		case <-time.After(min(200*time.Millisecond, wait)):
		}
	}
}

// tryLock locks a place; nil means that somebody else has it.
func (p place) tryLock() (*os.File, error) {
	if err := os.MkdirAll(placesDirectory, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the labs: %w", err)
	}
	file, err := os.OpenFile(p.lockPath(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the lab: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		return file, nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		return nil, file.Close()
	}
	return nil, errors.Join(fmt.Errorf("lock %s: %w", p.lockPath(), err), file.Close())
}

// clearFree takes down what is left in the places that nobody has.
func clearFree(log io.Writer) error {
	var errs []error
	for _, p := range allPlaces() {
		lock, err := p.tryLock()
		if err == nil && lock != nil {
			err = errors.Join(p.removeRemains(log), lock.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// describeHolder writes who holds a lock into it, for whoever finds it taken.
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

// holders tells who holds the places, a line each.
func holders() string {
	var lines []string
	for _, p := range allPlaces() {
		text, err := os.ReadFile(p.lockPath())
		if err != nil || len(text) == 0 {
			text = []byte("holder unknown")
		}
		lines = append(lines, fmt.Sprintf("lab %d: %s", p, strings.TrimSpace(string(text))))
	}
	return strings.Join(lines, "\n")
}
