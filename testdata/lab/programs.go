package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const module = "github.com/drainctl/drainctl"

// ProgramsVariable names the environment variable with the directory of programs
// that were built beforehand (drainctl, my-web-app, load). Without it they are built
// with the go command. The Makefile sets it, so that with sudo nothing is compiled as
// root.
const ProgramsVariable = "DRAINCTL_LAB_PROGRAMS"

// programs are the paths of what the lab's hosts run.
type programs struct {
	app  string
	load string
}

func (l *Lab) buildPrograms(ctx context.Context) (programs, error) {
	app, err := l.build(ctx, AppUnit, "./testdata/lab/app")
	if err != nil {
		return programs{}, err
	}
	load, err := l.build(ctx, "load", "./testdata/lab/load")
	return programs{app: app, load: load}, err
}

// build makes a program of this module and returns its path: one that was built
// beforehand if ProgramsVariable is set, else a fresh build of the package, a path
// below the module's directory. It lasts as long as the lab.
func (l *Lab) build(ctx context.Context, name, pkg string) (string, error) {
	if dir := os.Getenv(ProgramsVariable); dir != "" {
		ready := filepath.Join(dir, name)
		if _, err := os.Stat(ready); err != nil {
			return "", fmt.Errorf("%s is set, but: %w", ProgramsVariable, err)
		}
		return filepath.Abs(ready)
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	l.say("building %s", name)
	path := filepath.Join(l.at.binDirectory(), name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return path, nil
}

// moduleRoot is the directory of drainctl's own module, which the working directory
// has to be in.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("find the module: go list -m: %w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return "", fmt.Errorf("find the module: go list -m: %w", err)
	}
	path, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if path != module {
		return "", fmt.Errorf("the working directory is in the module %s: start the lab from a directory of %s", path, module)
	}
	return dir, nil
}

// checkMachine says all at once what this machine lacks for a lab.
func checkMachine() error {
	if err := checkRoot(); err != nil {
		return err
	}
	var missing []string
	for _, tool := range []string{"systemd-nspawn", "nsenter", "ip", "ss", "nginx", "sshd", "ssh", "sudo", "dbus-daemon", "curl"} {
		if !hasTool(tool) {
			missing = append(missing, tool)
		}
	}
	if _, err := os.Stat(streamModule); err != nil {
		missing = append(missing, "nginx's stream module ("+streamModule+")")
	}
	if len(missing) > 0 {
		return fmt.Errorf("the lab needs %s: install what is missing with testdata/lab/setup.sh", strings.Join(missing, ", "))
	}
	return nil
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root, for network namespaces and mounts: run it as root or with sudo")
	}
	return nil
}

// hasTool looks where the system's tools are, too: the path of a plain user often
// lacks the sbin directories.
func hasTool(name string) bool {
	if _, err := exec.LookPath(name); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}
