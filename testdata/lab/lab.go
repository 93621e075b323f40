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
	"path/filepath"
	"sync"
	"time"
)

// Where the lab lives. There is one lab on a machine at a time, so that the next
// one knows where to look for what a killed one has left behind.
const (
	directory = "/run/drainctl-lab"      // state, layers and roots
	lockPath  = "/run/drainctl-lab.lock" // held while a lab is up
	prefix    = "drainctl-"              // of machine names and network namespaces
)

// Limits on how long things may take on a slow machine.
const (
	// DefaultWait is how long Up waits for another lab to come down.
	DefaultWait = 5 * time.Minute
	bootLimit   = 2 * time.Minute
	endLimit    = 20 * time.Second
)

// The hosts' addresses, all in 192.168.1.0/24.
const (
	LBAddr     = "192.168.1.2"
	App1Addr   = "192.168.1.10"
	App2Addr   = "192.168.1.11"
	App3Addr   = "192.168.1.12"
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
	Wait time.Duration // for another lab to come down; 0 means DefaultWait
}

// Lab is a data centre that is up.
type Lab struct {
	LB     *Machine
	Apps   []*Machine // 192.168.1.10, .11 and .12, in this order
	Client *Machine   // operator and clients: a network namespace of the machine, not a booted host

	log      io.Writer
	lock     *os.File
	programs programs
	keys     keyring
	record   *record
	downOnce sync.Once
	downErr  error
}

// Up brings a lab up and returns when every host serves: about five seconds after
// the programs are built. What an earlier lab has left behind is taken down first.
// If another lab is up on this machine, Up waits for it as long as the options say
// and then fails with the number of the process that holds it. When Up fails,
// nothing is left of it.
func Up(ctx context.Context, options Options) (*Lab, error) {
	if err := checkMachine(); err != nil {
		return nil, err
	}
	l := &Lab{log: options.Log}
	if l.log == nil {
		l.log = io.Discard
	}
	var err error
	if l.lock, err = takeLock(ctx, options.Wait, l.log); err != nil {
		return nil, err
	}
	if err := l.bringUp(ctx); err != nil {
		if ctx.Err() != nil { // what failed then failed because of that
			err = fmt.Errorf("bring the lab up: %w", context.Cause(ctx))
		}
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) bringUp(ctx context.Context) error {
	began := time.Now()
	if err := removeRemains(l.log); err != nil {
		return fmt.Errorf("take down what an earlier lab has left: %w", err)
	}
	var err error
	if l.record, err = newRecord(); err != nil {
		return err
	}
	if err := mountLayers(); err != nil {
		return err
	}
	if l.programs, err = buildPrograms(ctx, l.log); err != nil {
		return err
	}
	if l.keys, err = newKeyring(); err != nil {
		return err
	}
	l.place()
	l.say("connecting %d hosts", len(l.hosts())+1)
	if err := l.connect(ctx); err != nil {
		return err
	}
	l.say("booting %d hosts", len(l.hosts()))
	if err := l.boot(ctx); err != nil {
		return err
	}
	l.say("the lab is up after %.1f s", time.Since(began).Seconds())
	return nil
}

// place names the hosts and gives them their addresses.
func (l *Lab) place() {
	l.LB = l.newMachine("lb", LBAddr)
	l.Apps = []*Machine{
		l.newMachine("app1", App1Addr),
		l.newMachine("app2", App2Addr),
		l.newMachine("app3", App3Addr),
	}
	l.Client = l.newMachine("client", ClientAddr)
	l.Client.Root = "/"
}

// hosts are the machines that boot a system of their own.
func (l *Lab) hosts() []*Machine {
	return append([]*Machine{l.LB}, l.Apps...)
}

// Down takes the whole lab down: processes, mounts, namespaces, files. It may be
// called more than once; every call tells the first one's result.
func (l *Lab) Down() error {
	l.downOnce.Do(func() {
		l.downErr = removeRemains(io.Discard)
		if err := l.lock.Close(); err != nil { // closing lets go of the lock
			l.downErr = errors.Join(l.downErr, err)
		}
	})
	return l.downErr
}

// Clear takes down what a killed lab has left behind, if anything. It fails when a
// lab is up.
func Clear(ctx context.Context, log io.Writer) error {
	if err := checkRoot(); err != nil {
		return err
	}
	lock, err := takeLock(ctx, time.Nanosecond, log)
	if err != nil {
		return err
	}
	return errors.Join(removeRemains(log), lock.Close())
}

func (l *Lab) say(format string, args ...any) {
	_, _ = fmt.Fprintf(l.log, "lab: "+format+"\n", args...)
}

func layersDirectory() string { return filepath.Join(directory, "layers") }
func rootsDirectory() string  { return filepath.Join(directory, "roots") }
func binDirectory() string    { return filepath.Join(layersDirectory(), "bin") }
