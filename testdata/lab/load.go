package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// loadStopLimit is how long a load may take to let what is open end well.
const loadStopLimit = time.Minute

// LoadOptions say what load StartLoad makes. The zero value is ready to use.
type LoadOptions struct {
	Targets []string      // host:port each; nil means port 80 of every load balancer
	Clients int           // 0 means traffic.DefaultClients, negative none
	Streams int           // 0 means traffic.DefaultStreams, negative none
	Limit   time.Duration // after which it ends by itself; 0 means traffic.DefaultLimit
	Only    traffic.Kind  // what the clients send; "" means all there is
}

// Load is load that runs, from the client's network namespace.
type Load struct {
	client  *Machine
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	done    chan struct{} // closed when the program has ended and all of it is read
	waitErr error         // how the program ended; read after done

	mu     sync.Mutex
	latest traffic.Summary
}

// StartLoad starts load and returns when the first requests have been answered. The
// load ends when ctx ends (at once, cutting what is open), when Stop is called (well),
// or after its limit.
func (l *Lab) StartLoad(ctx context.Context, o LoadOptions) (*Load, error) {
	targets := o.Targets
	if targets == nil {
		for _, lb := range l.LBs() {
			targets = append(targets, lb.Addr+":80")
		}
	}
	args := []string{l.programs.load, "-every", "200ms",
		"-clients", countOf(o.Clients, traffic.DefaultClients),
		"-streams", countOf(o.Streams, traffic.DefaultStreams)}
	if o.Only != "" {
		args = append(args, "-only", string(o.Only))
	}
	if o.Limit > 0 {
		args = append(args, "-for", o.Limit.String())
	}
	load := &Load{client: l.Client, done: make(chan struct{})}
	load.cmd = l.Client.Command(ctx, append(args, targets...)...)
	load.cmd.Stderr = &load.stderr
	if err := load.start(l.record); err != nil {
		return nil, fmt.Errorf("start load: %w", err)
	}
	err := load.WaitFor(ctx, time.Minute, func(s traffic.Summary) bool { return s.Requests > 0 || s.Streams > 0 || s.Open > 0 })
	if err != nil {
		_, stopErr := load.Stop()
		return nil, errors.Join(fmt.Errorf("start load: %w", err), stopErr)
	}
	return load, nil
}

func countOf(asked, standard int) string {
	if asked == 0 {
		return strconv.Itoa(standard)
	}
	return strconv.Itoa(max(asked, 0))
}

func (l *Load) start(r *record) error {
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.cmd.Start(); err != nil {
		return err
	}
	go func() {
		for lines := json.NewDecoder(out); ; {
			var s traffic.Summary
			if err := lines.Decode(&s); err != nil {
				break // the end of the program, or of its sense: latest is not final then
			}
			l.mu.Lock()
			l.latest = s
			l.mu.Unlock()
		}
		l.waitErr = l.cmd.Wait()
		close(l.done)
	}()
	p, err := findProcess(l.cmd.Process.Pid, "load")
	if err != nil {
		return err
	}
	return r.add(p)
}

// Snapshot is what the clients have seen so far, as of the last fifth of a second.
func (l *Load) Snapshot() traffic.Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest
}

// WaitFor waits until a snapshot satisfies a condition. It is an error if the load
// ends first, or if the limit passes.
func (l *Load) WaitFor(ctx context.Context, limit time.Duration, condition func(traffic.Summary) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !condition(l.Snapshot()) {
		select {
		case <-l.done:
			return errors.Join(fmt.Errorf("load: ended early: %s", bytes.TrimSpace(l.stderr.Bytes())), l.waitErr)
		case <-ctx.Done():
			return fmt.Errorf("load: what was waited for did not come within %s; seen so far: %s", limit, l.Snapshot())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// Stop ends the load: nothing new begins, what is open ends well. It returns what
// the clients have seen in all. It may be called again.
func (l *Load) Stop() (traffic.Summary, error) {
	select {
	case <-l.done:
	default:
		if err := l.client.Signal(l.cmd, unix.SIGINT); err != nil {
			return l.Snapshot(), fmt.Errorf("stop load: %w", err)
		}
	}
	select {
	case <-l.done:
	case <-time.After(loadStopLimit):
		err := l.client.Signal(l.cmd, unix.SIGKILL)
		return l.Snapshot(), errors.Join(fmt.Errorf("stop load: it did not end within %s", loadStopLimit), err)
	}
	summary := l.Snapshot()
	if l.waitErr != nil || !summary.Final {
		return summary, errors.Join(fmt.Errorf("load: ended without a final summary: %s", bytes.TrimSpace(l.stderr.Bytes())), l.waitErr)
	}
	return summary, nil
}
