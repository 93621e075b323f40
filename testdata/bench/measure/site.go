package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A site is load balancers on this machine: each has its own sshd and nginx, on an
// address of loopback, and sees only its own processes, configuration and journal. All
// of them are in a network namespace without a way out, together with the operator,
// whose home is the site's.
type site struct {
	dir string
	lbs []*siteLB
}

// A siteLB is one load balancer of a site. Its first process is its sshd: the others
// end with it.
type siteLB struct {
	addr  string
	dir   string
	first *exec.Cmd
}

// backendAddr is the first server of every load balancer's upstream.
const backendAddr = "192.168.1.10:8080"

// siteConf is the nginx.conf of a load balancer. What it does not say is as the binary
// has it.
const siteConf = `worker_processes 1;
events {}
http {
    access_log off;
    upstream backend_servers {
        server 192.168.1.10:8080;
        server 192.168.1.11:8080;
        server 192.168.1.12:8080;
    }
    server {
        listen %s:80;
        location / {
            proxy_pass http://backend_servers;
        }
    }
}
`

// siteSSHD is the sshd_config of a load balancer.
const siteSSHD = `ListenAddress %[1]s:22
HostKey %[2]s/host_key
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
SetEnv PATH=%[2]s/bin:/usr/sbin:/usr/bin:/sbin:/bin
`

// siteBoot gives a load balancer the directories of its own, and starts it.
const siteBoot = `set -e
mount -t proc proc /proc
for d in etc/nginx var/lib var/log run; do mount --bind "$1/$d" "/$d"; done
nginx
exec "$(command -v sshd)" -D -E "$1/sshd.log" -f "$1/sshd_config"`

// bootLimit bounds the start of a site, and settleLimit the end of its reloads.
const (
	bootLimit   = time.Minute
	settleLimit = time.Minute
)

// backend has something listen where the backend is.
func (s *site) backend() (stop func(), err error) {
	l, err := net.Listen("tcp", backendAddr)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return func() { l.Close() }, nil
}

// onSite does something on a site of n load balancers, which have the program, and
// takes the site down. Only commands that do starts itself, and not from another
// goroutine, are on the site.
func onSite(ctx context.Context, n int, program string, do func(*site) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		s := &site{}
		err := s.enter()
		if err == nil {
			err = s.boot(ctx, n, program)
		}
		if err == nil {
			err = do(s)
		}
		done <- errors.Join(err, s.down())
	}()
	return <-done
}

// enter gives this thread, and what it starts, a network and mounts of its own.
func (s *site) enter() (err error) {
	if s.dir, err = os.MkdirTemp("", "drainctl-site-"); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a network of its own: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	host, _, _ := net.SplitHostPort(backendAddr)
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", host + "/32", "dev", "lo"}} {
		if err := quietly("ip", args...); err != nil {
			return err
		}
	}
	return s.home()
}

// home is the operator's: a key that every load balancer takes, and theirs.
func (s *site) home() error {
	home := filepath.Join(s.dir, "home", ".ssh")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(s.dir, "host_key"), filepath.Join(home, "id_ed25519")} {
		if err := quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", path); err != nil {
			return err
		}
	}
	if err := os.Rename(filepath.Join(home, "id_ed25519.pub"), filepath.Join(home, "authorized_keys")); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(s.dir, "home"), "/root", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("a home of its own: %w", err)
	}
	return nil
}

// boot starts the load balancers, and returns when all of them serve.
func (s *site) boot(ctx context.Context, n int, program string) error {
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(program, filepath.Join(s.dir, "bin", "drainctl")); err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "host_key.pub"))
	if err != nil {
		return err
	}
	var known strings.Builder
	for i := range n {
		lb := &siteLB{addr: fmt.Sprintf("127.1.0.%d", i+1), dir: filepath.Join(s.dir, fmt.Sprintf("lb%d", i+1))}
		if err := lb.start(s.dir); err != nil {
			return err
		}
		s.lbs = append(s.lbs, lb)
		fmt.Fprintf(&known, "%s %s", lb.addr, key)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "home", ".ssh", "known_hosts"), []byte(known.String()), 0o600); err != nil {
		return err
	}
	for _, lb := range s.lbs {
		for _, port := range []string{"22", "80"} {
			if err := until(ctx, bootLimit, lb.addr+" serves on port "+port, func() (bool, error) {
				conn, err := net.Dial("tcp", net.JoinHostPort(lb.addr, port))
				if err == nil {
					conn.Close()
				}
				return err == nil, nil
			}); err != nil {
				said, _ := os.ReadFile(filepath.Join(lb.dir, "sshd.log"))
				return fmt.Errorf("%w\n%s", err, said)
			}
		}
	}
	return nil
}

func (lb *siteLB) start(site string) error {
	for _, dir := range []string{"etc/nginx", "var/lib/nginx", "var/log/nginx", "run/sshd"} {
		if err := os.MkdirAll(filepath.Join(lb.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(lb.conf(), fmt.Appendf(nil, siteConf, lb.addr), 0o644); err != nil {
		return err
	}
	sshd := filepath.Join(lb.dir, "sshd_config")
	if err := os.WriteFile(sshd, fmt.Appendf(nil, siteSSHD, lb.addr, site), 0o644); err != nil {
		return err
	}
	lb.first = exec.Command("sh", "-c", siteBoot, "sh", lb.dir)
	lb.first.Stderr = os.Stderr
	lb.first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := lb.first.Start(); err != nil {
		return fmt.Errorf("start a load balancer: %w", err)
	}
	return nil
}

func (lb *siteLB) conf() string { return filepath.Join(lb.dir, "etc/nginx/nginx.conf") }

// down ends the site, and removes what it has written.
func (s *site) down() error {
	for _, lb := range s.lbs {
		_ = lb.first.Process.Kill()
	}
	for _, lb := range s.lbs {
		_ = lb.first.Wait() // killed
	}
	_ = unix.Unmount("/root", unix.MNT_DETACH)
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

func quietly(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// until waits for something to be so.
func until(ctx context.Context, limit time.Duration, what string, so func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; {
		if is, err := so(); is || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
