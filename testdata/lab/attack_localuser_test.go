package lab_test

import (
	"context"
	"os"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The attacker of this file is any other local user of the load balancer, and whoever can
// write files in home directories or in directories that a configuration includes. Each
// test is named after the claim in SECURITY.md that it tries to break.

// proof is a file that only a command of an attacker's configuration file makes.
const proof = "/run/attacked"

// attackersConfig runs a command as whoever runs drainctl with it.
const attackersConfig = "nginx: {test-command: \"touch " + proof + "\"}\n"

// A configuration file that another user can write or replace never has its commands run
// by root, whatever makes drainctl read the file.
func TestLocalUserCannotRunACommandByAConfigurationFile(t *testing.T) {
	const home, own = "/home/" + lab.DeployUser, "/root/.config/drainctl.yaml"
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	theirs := home + "/.config/drainctl.yaml"
	write := func(path string, mode os.FileMode) { writeOnLB(t, l, path, attackersConfig, mode) }
	clean := func() {
		if _, err := l.LB.Run(context.Background(), "rm", "-rf", home+"/.config", "/root/.config", "/srv/shared", proof); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(clean)

	for name, attack := range map[string]struct {
		prepare func()
		env     string
	}{
		"root has the home of another user": {func() {
			write(theirs, 0o644)
			mustRun(t, l.LB, "chown", "-R", lab.DeployUser, home+"/.config")
		}, "HOME=" + home},
		"root has the configuration directory of another user": {func() {
			write(theirs, 0o644)
			mustRun(t, l.LB, "chown", "-R", lab.DeployUser, home+"/.config")
		}, "XDG_CONFIG_HOME=" + home + "/.config"},
		"a variable names a file of another user": {func() {
			write(theirs, 0o644)
			mustRun(t, l.LB, "chown", lab.DeployUser, theirs)
		}, "DRAINCTL_CONFIG=" + theirs},
		"a file of root in a directory of another user": {func() { write(theirs, 0o644) }, "DRAINCTL_CONFIG=" + theirs},
		"a group can write the file":                    {func() { write(own, 0o664) }, "HOME=/root"},
		"everybody can write the directory": {func() {
			write("/srv/shared/drainctl.yaml", 0o644)
			mustRun(t, l.LB, "chmod", "777", "/srv/shared")
		}, "DRAINCTL_CONFIG=/srv/shared/drainctl.yaml"},
		"a link to a file of another user": {func() {
			write(theirs, 0o644)
			mustRun(t, l.LB, "chown", lab.DeployUser, theirs)
			mustRun(t, l.LB, "sh", "-c", "mkdir /root/.config && ln -s "+theirs+" "+own)
		}, "HOME=/root"},
		"a link of another user to a file of root": {func() {
			write(own, 0o644)
			mustRun(t, l.LB, "sh", "-c", "mkdir -m 1777 /srv/shared && ln -s "+own+" /srv/shared/link && chown -h "+lab.DeployUser+" /srv/shared/link")
		}, "DRAINCTL_CONFIG=/srv/shared/link"},
	} {
		t.Run(name, func(t *testing.T) {
			clean()
			attack.prepare()
			on(t, l, "env", attack.env, "drainctl", "drain", app.Addr, "--dry-run").wants(t, 2, "is not safe to use", " must ")
			mustRun(t, l.LB, "test", "!", "-e", proof)
		})
	}

	// Another user's command is not run by a user who is not root either.
	clean()
	write(theirs, 0o664)
	mustRun(t, l.LB, "chown", "-R", lab.DeployUser+":"+lab.NoSudoUser, home+"/.config")
	on(t, l, lab.As(lab.DeployUser, "drainctl", "drain", app.Addr, "--dry-run")...).wants(t, 2, "is not safe to use", "must not be writable by its group")

	// The proof is one: root's own file has its command run.
	clean()
	write(own, 0o644)
	on(t, l, "env", "HOME=/root", "drainctl", "drain", app.Addr, "--dry-run")
	mustRun(t, l.LB, "test", "-e", proof)
	sameFiles(t, before, configuration(t, l))
}
