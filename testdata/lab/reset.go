package lab

import (
	"context"
	"errors"
	"fmt"
)

// initialPath is where each host keeps what Reset restores.
const initialPath = "/var/lib/drainctl-lab.initial.tar"

// removePrograms removes the programs that tests have added: they are newer than the archive.
const removePrograms = "find /usr/local/bin /usr/local/sbin -type f -cnewer \"$1\" -delete\n"

const keepScript = `tar -C / -cpf "$1" $2 2>&1 | grep -v 'Removing leading' || true; test -s "$1"`

// The apps and nginx are killed before they are stopped, so that one that hangs on
// stop does not hold up the reset. Killing makes a unit fail, and reset-failed also
// forgets how often it was started lately, which systemd limits.
const resetLBScript = "set -e\n" + removePrograms + `
systemctl kill -s KILL nginx 2>/dev/null || true
systemctl stop nginx
rm -rf $2 /var/lib/drainctl /var/log/nginx/*.log /run/nginx.pid
tar -C / -xpf "$1"
systemctl reset-failed
systemctl restart ssh
systemctl start nginx
`

// What was connected to the app lately is seen for a minute, and would be another client in
// the next test: ss forgets it.
const resetAppScript = "set -e\n" + removePrograms + `
systemctl kill -s KILL my-web-app nginx 2>/dev/null || true
systemctl stop nginx 2>/dev/null || true
systemctl stop my-web-app 2>/dev/null || true
ss -HtaK >/dev/null
rm -rf $2 /var/log/my-web-app/*
tar -C / -xpf "$1"
systemctl daemon-reload
systemctl reset-failed
systemctl restart ssh
systemctl start my-web-app
`

const resetPlainScript = `set -e
rm -rf $2
tar -C / -xpf "$1"
systemctl restart ssh
`

// Reset puts the lab back to how it came up: cables plugged in, nginx with NginxConf,
// every app running and healthy, the files of nginx, ssh, sudo and the units, root's
// and the users' homes as they were, no program that a test has added, nothing in drainctl's
// state directory and in the apps' records. It is for between two tests: it cuts what is open.
func (l *Lab) Reset(ctx context.Context) error {
	for _, m := range append(l.Hosts(), l.Client) {
		if err := m.Mend(ctx); err != nil {
			return err
		}
	}
	err := l.onHosts(func(m *Machine) error {
		// It may just be booting, or a test has stopped sshd.
		err := poll(ctx, bootLimit, func() error {
			_, err := m.Run(ctx, "systemctl", "start", "ssh")
			return err
		})
		if err != nil {
			return err
		}
		_, err = m.Run(ctx, "sh", "-c", m.role.reset, "reset", initialPath, m.role.kept)
		return err
	})
	if err != nil {
		return fmt.Errorf("reset the lab: %w", err)
	}
	return l.waitServing(ctx)
}

// keepInitial keeps what Reset restores.
func (l *Lab) keepInitial(ctx context.Context) error {
	return l.onHosts(func(m *Machine) error {
		_, err := m.Run(ctx, "sh", "-c", keepScript, "keep", initialPath, m.role.kept)
		return err
	})
}

// onHosts does something for all booted hosts at once.
func (l *Lab) onHosts(do func(*Machine) error) error {
	results := make(chan error)
	for _, m := range l.Hosts() {
		go func() { results <- do(m) }()
	}
	var errs []error
	for range l.Hosts() {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}
