package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// rebootInterval is between two looks whether the host is back.
const rebootInterval = time.Second

// RebootCommand is what reboots a host, as root.
var RebootCommand = []string{"systemctl", "reboot"}

// Reboot reboots the host, and returns when it runs another boot: its boot ID
// (random(4), /proc/sys/kernel/random/boot_id) has changed.
func (b *Backend) Reboot(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s (--reboot-timeout)", Span(limit)))
	defer cancel()
	before, err := b.bootID(ctx)
	if err != nil {
		return fmt.Errorf("reboot %s: %w", b.Name, err)
	}
	if b.Counter != nil {
		b.Counter.Close() // its command ends with the host
	}
	r, err := b.Host.Run(ctx, remote.Command{Args: RebootCommand, Root: true, Limit: remote.NoLimit})
	if err == nil {
		err = r.Err(RebootCommand...)
	}
	// The host may be gone before it has answered.
	if err != nil && !errors.Is(err, remote.ErrConnection) {
		return fmt.Errorf("reboot %s: %w", b.Name, err)
	}
	for {
		now, err := b.bootID(ctx)
		if err == nil && now != before {
			return nil
		}
		if sleepErr := remote.Sleep(ctx, rebootInterval); sleepErr != nil {
			if err == nil {
				err = errors.New("it still runs the boot before")
			}
			return fmt.Errorf("reboot %s: %w: %w", b.Name, sleepErr, err)
		}
	}
}

func (b *Backend) bootID(ctx context.Context) (string, error) {
	r, err := b.Host.Run(ctx, remote.Command{Args: []string{"cat", "/proc/sys/kernel/random/boot_id"}})
	if err == nil {
		err = r.Err("cat", "/proc/sys/kernel/random/boot_id")
	}
	return strings.TrimSpace(string(r.Stdout)), err
}
