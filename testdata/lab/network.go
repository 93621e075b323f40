package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	namespaceDirectory = "/run/netns" // where ip-netns(8) keeps names
	bridge             = "lan0"
	card               = "eth0" // of every host
)

// lan is the namespace of the bridge.
func (p place) lan() string { return p.prefix() + "lan" }

func namespacePath(name string) string { return filepath.Join(namespaceDirectory, name) }

// connect makes a network namespace for each host and joins them all to a bridge
// that lives in a namespace of its own. None of them has a way out.
func (l *Lab) connect(ctx context.Context) error {
	all := append(l.Hosts(), l.Client)
	names := []string{"netns add " + l.at.lan()}
	for _, m := range all {
		names = append(names, "netns add "+m.namespace())
	}
	if err := ipBatch(ctx, "", names...); err != nil {
		return err
	}
	cables := []string{
		"link set lo up",
		"link add " + bridge + " type bridge",
		"link set " + bridge + " up",
	}
	for _, m := range all {
		cables = append(cables,
			fmt.Sprintf("link add %s type veth peer name %s netns %s", m.Name, card, m.namespace()),
			fmt.Sprintf("link set %s master %s up", m.Name, bridge))
	}
	if err := ipBatch(ctx, l.at.lan(), cables...); err != nil {
		return err
	}
	for _, m := range all {
		if err := ipBatch(ctx, m.namespace(),
			"link set lo up",
			fmt.Sprintf("address add %s/24 dev %s", m.Addr, card),
			"link set "+card+" up"); err != nil {
			return err
		}
	}
	return nil
}

// Dial connects from the machine's network namespace, over tcp or udp. A socket belongs to the namespace
// of the thread that makes it, for good; the thread is thrown away.
func (m *Machine) Dial(network, target string, limit time.Duration) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(namespacePath(m.namespace()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err != nil {
			got <- result{nil, fmt.Errorf("enter the network of %s: %w", m.Name, err)}
			return
		}
		conn, err := net.DialTimeout(network, target, limit)
		got <- result{conn, err}
	}()
	r := <-got
	return r.conn, r.err
}

// ipBatch runs ip(8) commands, in a namespace if one is named.
func ipBatch(ctx context.Context, namespace string, commands ...string) error {
	args := []string{"-batch", "-"}
	if namespace != "" {
		args = append([]string{"-n", namespace}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// ownNamespaces lists the network namespaces that a lab has made.
func (p place) ownNamespaces() ([]string, error) {
	return filepath.Glob(namespacePath(p.prefix() + "*"))
}

// namespaceInodes tells the network namespaces of a lab by their inodes.
func (p place) namespaceInodes() (map[uint64]bool, error) {
	paths, err := p.ownNamespaces()
	if err != nil {
		return nil, err
	}
	inodes := map[uint64]bool{}
	for _, path := range paths {
		var stat unix.Statfs_t
		// A name whose mount was never made, or is gone, is a plain file.
		if unix.Statfs(path, &stat) != nil || stat.Type != unix.NSFS_MAGIC {
			continue
		}
		if inode := inodeOf(path); inode != 0 {
			inodes[inode] = true
		}
	}
	return inodes, nil
}

// networkInode is the inode of the network namespace that a process is in, or 0.
func networkInode(pid int) uint64 {
	return inodeOf(fmt.Sprintf("/proc/%d/ns/net", pid))
}

func inodeOf(path string) uint64 {
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return 0
	}
	return stat.Ino
}

func (p place) removeNamespaces() error {
	paths, err := p.ownNamespaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			continue
		}
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}
