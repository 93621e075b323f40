// Package lab boots a small data centre on one machine: a load balancer with
// nginx, three app hosts with sshd, sudo and the unit my-web-app, and a place for
// the operator and the clients. Each host is a booted systemd with its own file
// system (an overlay over the machine's own), its own processes and its own
// network namespace. The namespaces are connected to each other and to nothing
// else: no packet of a test can leave the machine, and nothing that a host writes
// reaches the machine's files.
//
// The lab needs root, and the packages that setup.sh installs.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Limits on how long things may take on a slow machine.
const (
	// DefaultWait is how long Up waits for a place that another lab has.
	DefaultWait = 5 * time.Minute
	bootLimit   = 2 * time.Minute
	endLimit    = 20 * time.Second
)

// The hosts' addresses, all in 192.168.1.0/24.
const (
	LBAddr     = "192.168.1.2"
	LB2Addr    = "192.168.1.3"
	App1Addr   = "192.168.1.10"
	App2Addr   = "192.168.1.11"
	App3Addr   = "192.168.1.12"
	JumpAddr   = "192.168.1.40"
	DeskAddr   = "192.168.1.50"
	ClientAddr = "192.168.1.100"
)

// AppPort is the port that my-web-app listens on; AppUnit is its systemd unit.
const (
	AppPort = 8080
	AppUnit = "my-web-app"
)

// Options say how to bring a lab up. The zero value is ready to use.
type Options struct {
	Log  io.Writer     // what is being done, a line each; nil for nothing
	Wait time.Duration // for a place; 0 means DefaultWait

	// Fleet adds a second load balancer with the same configuration, a desk, on which the
	// user deploy types drainctl, and a jump host, the only way from there to the others
	// by SSH.
	Fleet bool
}

// Lab is a data centre that is up.
type Lab struct {
	Number int // tells it from the others that are up on this machine
	LB     *Machine
	Apps   []*Machine // 192.168.1.10, .11 and .12, in this order
	Client *Machine   // operator and clients: a network namespace of the machine, not a booted host

	// Of a fleet, else nil.
	LB2, Jump, Desk *Machine

	at       place
	log      io.Writer
	lock     *os.File
	programs programs
	keys     keyring
	record   *record
	mu       sync.Mutex
	down     bool // no host boots any more
	downOnce sync.Once
	downErr  error
}

// Up brings a lab up and returns when every host serves: about five seconds after
// the programs are built. What killed labs have left behind is taken down first; labs
// that are up are left alone. If there are so many of them that this one has no place,
// Up waits as long as the options say and then fails with the processes that hold them.
// When Up fails, nothing is left of it.
func Up(ctx context.Context, options Options) (*Lab, error) {
	if err := checkMachine(); err != nil {
		return nil, err
	}
	l := &Lab{log: options.Log}
	if l.log == nil {
		l.log = io.Discard
	}
	var err error
	if l.at, l.lock, err = takePlace(ctx, options.Wait, l.log); err != nil {
		return nil, err
	}
	l.Number = int(l.at)
	if err := l.bringUp(ctx, options.Fleet); err != nil {
		if ctx.Err() != nil { // what failed then failed because of that
			err = fmt.Errorf("bring the lab up: %w", context.Cause(ctx))
		}
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) bringUp(ctx context.Context, fleet bool) error {
	began := time.Now()
	if err := errors.Join(l.at.removeRemains(l.log), clearFree(l.log)); err != nil {
		return fmt.Errorf("take down what an earlier lab has left: %w", err)
	}
	var err error
	if l.record, err = newRecord(l.at); err != nil {
		return err
	}
	if err := l.allowInotify(); err != nil {
		return err
	}
	if err := l.at.mountLayers(); err != nil {
		return err
	}
	if l.programs, err = l.buildPrograms(ctx); err != nil {
		return err
	}
	l.nameHosts(fleet)
	if l.keys, err = newKeyring(l.Hosts()); err != nil {
		return err
	}
	l.say("connecting %d hosts", len(l.Hosts())+1)
	if err := l.connect(ctx); err != nil {
		return err
	}
	l.say("booting %d hosts", len(l.Hosts()))
	if err := l.boot(ctx); err != nil {
		return err
	}
	l.say("lab %d is up after %.1f s", l.Number, time.Since(began).Seconds())
	return nil
}

// Down takes the whole lab down: processes, mounts, namespaces, files. It may be
// called more than once; every call tells the first one's result.
func (l *Lab) Down() error {
	l.downOnce.Do(func() {
		l.mu.Lock()
		l.down = true
		l.mu.Unlock()
		l.downErr = l.at.removeRemains(io.Discard)
		if err := l.lock.Close(); err != nil { // closing lets go of the lock
			l.downErr = errors.Join(l.downErr, err)
		}
	})
	return l.downErr
}

// Clear takes down what killed labs have left behind, if anything. Labs that are up are
// left alone.
func Clear(log io.Writer) error {
	if err := checkRoot(); err != nil {
		return err
	}
	return clearFree(log)
}

func (l *Lab) say(format string, args ...any) {
	_, _ = fmt.Fprintf(l.log, "lab: "+format+"\n", args...)
}
