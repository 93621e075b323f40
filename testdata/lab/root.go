package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// layersSize bounds what all hosts together can write, in memory.
const layersSize = "2g"

// streamModule is where Debian and Ubuntu put nginx's stream module.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// Users of the app hosts beside root. The load balancer's root can log in as each.
const (
	// DeployUser may, without a password, start and stop my-web-app with sudo, and
	// nothing else.
	DeployUser = "deploy"
	// NoSudoUser may do everything with sudo, but only with a password.
	NoSudoUser = "nosudo"
)

// noSudoPassword is what NoSudoUser's password, "drainctl", looks like in shadow(5).
const noSudoPassword = "$6$drainctl$CkUMbiohVF0X8ye.JhnCRB8i9CkWvC6eQavPWZRe/lhKw5sHIiJLggOoxjeRc5lcBvbhhz9t7kotkrFWVHp0g0"

// blank lists the directories of the machine of which a host sees nothing but what
// the lab puts there: those that say who may log in, what starts by itself and what
// somebody keeps at home. What a host runs is so the same on every machine.
var blank = []string{
	"etc/systemd", "etc/tmpfiles.d", "etc/sysctl.d", "etc/ssh", "etc/sudoers.d", "etc/update-motd.d",
	"etc/nginx/conf.d", "etc/nginx/sites-available", "etc/nginx/sites-enabled", "etc/nginx/modules-enabled",
	"etc/netplan", "root", "home", "var/log",
}

// journalDirectory is where drainctl keeps its journal. The machine's own is not the
// hosts', and is hidden from them.
const journalDirectory = "var/lib/drainctl"

// mountLayers mounts the memory that holds what the hosts write.
func (p place) mountLayers() error {
	dir := p.layersDirectory()
	for _, d := range []string{dir, p.rootsDirectory()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size="+layersSize); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return os.MkdirAll(p.binDirectory(), 0o755)
}

// layRoot makes a host's root file system: its own files over the machine's.
func (l *Lab) layRoot(m *Machine) error {
	t := tree{upper: filepath.Join(l.at.layersDirectory(), m.Name, "root")}
	if err := os.MkdirAll(t.upper, 0o755); err != nil {
		return err
	}
	l.fillCommon(&t, m)
	m.role.fill(l, &t)
	if t.err != nil {
		return t.err
	}
	return l.mountRoot(m)
}

// mountRoot mounts a host's overlay. An overlay shows the file system at its lower
// directory but none that is mounted below it, so where /usr or /var is one of its
// own it gets an overlay of its own.
func (l *Lab) mountRoot(m *Machine) error {
	layers := filepath.Join(l.at.layersDirectory(), m.Name)
	if err := mountOverlay("/", layers, "root", m.Root); err != nil {
		return err
	}
	points, err := mountPoints()
	if err != nil {
		return err
	}
	for _, point := range []string{"/usr", "/var"} {
		if !slices.Contains(points, point) {
			continue
		}
		upper := filepath.Join(layers, path.Base(point))
		// What the lab has laid below it belongs to this overlay then.
		if err := os.Rename(filepath.Join(layers, "root", point), upper); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := mountOverlay(point, layers, path.Base(point), filepath.Join(m.Root, point)); err != nil {
			return err
		}
	}
	return nil
}

func mountOverlay(lower, layers, name, at string) error {
	upper, work := filepath.Join(layers, name), filepath.Join(layers, name+".work")
	for _, dir := range []string{upper, work, at} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", at, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay of %s at %s: %w", lower, at, err)
	}
	return nil
}

// fillCommon lays what every host has.
func (l *Lab) fillCommon(t *tree, m *Machine) {
	for _, dir := range blank {
		t.blank(dir)
	}
	t.hide(journalDirectory)
	t.mode("root", 0o700)
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	t.file("etc/machine-id", fmt.Sprintf("%x\n", id), 0o444)
	t.file("etc/hostname", m.Name+"\n", 0o644)
	t.file("etc/hosts", l.hostsFile(m), 0o644)
	t.file("etc/resolv.conf", "", 0o644)
	t.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n", 0o644)
	for _, name := range []string{"etc/fstab", "etc/crypttab", "etc/environment"} {
		t.file(name, "", 0o644)
	}
	t.file("etc/sudoers", "Defaults env_reset\nDefaults secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\nroot ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n", 0o440)
	t.accounts()
	t.ssh(l.keys.hosts[m.Name])
	t.login("root", 0, l.keys.operator)
	// systemd-user-sessions is what lets anybody but root log in.
	units := "dbus.service systemd-user-sessions.service ssh.service"
	for _, unit := range m.role.units {
		units += " " + unit + ".service"
	}
	t.file("etc/systemd/system/lab.target", fmt.Sprintf(labTarget, units, units), 0o644)
	t.link("etc/systemd/system/default.target", "lab.target")
	// A clean-up of /tmp in the middle of a long test would be a surprise.
	t.link("etc/systemd/system/systemd-tmpfiles-clean.timer", "/dev/null")
}

func (l *Lab) hostsFile(m *Machine) string {
	var file strings.Builder
	fmt.Fprintf(&file, "127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost ip6-loopback\n", m.Name)
	for _, other := range append(l.Hosts(), l.Client) {
		if other != m {
			fmt.Fprintf(&file, "%s %s %s.example.com\n", other.Addr, other.Name, other.Name)
		}
	}
	return file.String()
}

// labTarget is what a host boots into: the basic system and the named units. What
// the machine's own targets would start stays out of it.
const labTarget = `[Unit]
Description=A host of the drainctl lab
Requires=basic.target
After=basic.target
Wants=%s
After=%s
AllowIsolate=yes
`

// SudoersPath is the file in which DeployUser has what an operator needs: on a load
// balancer and on an app host.
const (
	SudoersPath = "/etc/sudoers.d/drainctl"
	lbSudoers   = "deploy ALL=(root) NOPASSWD: /usr/bin/drainctl agent\n"
	appSudoers  = "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app\n"
)

const sshdConfig = `Include /etc/ssh/sshd_config.d/*.conf
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
`

func (l *Lab) fillLB(t *tree) {
	t.login(DeployUser, deployID, l.keys.operator)
	t.file(SudoersPath, lbSudoers, 0o440)
	t.home("root", 0, l.operatorFiles()...)
	t.nginx(NginxConf)
	l.keepDeskOut(t)
}

func (l *Lab) fillApp(t *tree) {
	t.login(DeployUser, deployID, l.keys.operator)
	t.login(NoSudoUser, noSudoID, l.keys.operator)
	t.file(SudoersPath, appSudoers, 0o440)
	t.file("etc/sudoers.d/nosudo", "nosudo ALL=(ALL) ALL\n", 0o440)
	t.nginx(idleNginxConf)
	l.keepDeskOut(t)
	t.dir("var/log/"+AppUnit, 0o755)
	t.file("etc/default/"+AppUnit, "# Options of the app: see my-web-app -help.\nOPTIONS=\n", 0o644)
	t.file("etc/systemd/system/"+AppUnit+".service", appUnit, 0o644)
	data, err := os.ReadFile(l.programs.app)
	t.keep(err)
	t.file("usr/local/bin/"+AppUnit, string(data), 0o755)
}

func (l *Lab) fillJump(t *tree) { t.login(DeployUser, deployID, l.keys.operator) }

func (l *Lab) fillDesk(t *tree) {
	files := append(l.operatorFiles(), homeFile{".ssh/config", []byte(deskConfig), 0o600})
	t.home(DeployUser, deployID, files...)
}

// keepDeskOut has sshd refuse whoever comes from the desk, if there is one.
func (l *Lab) keepDeskOut(t *tree) {
	if l.Desk != nil {
		t.file("etc/ssh/sshd_config.d/desk.conf", nobodyFromDesk, 0o644)
	}
}

const appUnit = `[Unit]
Description=My web app
After=network.target

[Service]
EnvironmentFile=-/etc/default/my-web-app
ExecStart=/usr/local/bin/my-web-app -log ` + AppLogPath + ` $OPTIONS

[Install]
WantedBy=multi-user.target
`

const (
	deployID = 20101
	noSudoID = 20102
)

// tree lays files into the upper layer of a host. Its methods take paths relative
// to the host's root; the first error is kept and ends all further work.
type tree struct {
	upper string
	err   error
}

func (t *tree) keep(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tree) dir(name string, mode fs.FileMode) {
	if t.err != nil {
		return
	}
	t.keep(os.MkdirAll(filepath.Join(t.upper, name), 0o755))
	t.mode(name, mode)
}

func (t *tree) mode(name string, mode fs.FileMode) {
	if t.err == nil {
		t.keep(os.Chmod(filepath.Join(t.upper, name), mode))
	}
}

// blank makes a directory that hides the machine's own of the same name.
func (t *tree) blank(name string) {
	t.dir(name, 0o755)
	if t.err == nil {
		t.keep(unix.Setxattr(filepath.Join(t.upper, name), "trusted.overlay.opaque", []byte("y"), 0))
	}
}

// hide hides what the machine has of that name; there is none to be seen (overlayfs calls
// it a whiteout).
func (t *tree) hide(name string) {
	t.parent(name)
	if t.err == nil {
		t.keep(unix.Mknod(filepath.Join(t.upper, name), unix.S_IFCHR, 0))
	}
}

func (t *tree) file(name, text string, mode fs.FileMode) {
	t.parent(name)
	if t.err == nil {
		t.keep(os.WriteFile(filepath.Join(t.upper, name), []byte(text), mode))
		t.mode(name, mode) // whatever the umask
	}
}

func (t *tree) link(name, to string) {
	t.parent(name)
	if t.err == nil {
		t.keep(os.Symlink(to, filepath.Join(t.upper, name)))
	}
}

func (t *tree) parent(name string) {
	if t.err == nil {
		t.keep(os.MkdirAll(filepath.Join(t.upper, path.Dir(name)), 0o755))
	}
}

// accounts adds the lab's users to the machine's.
func (t *tree) accounts() {
	users := []struct {
		name, password string
		id             int
	}{{DeployUser, "*", deployID}, {NoSudoUser, noSudoPassword, noSudoID}}
	var passwd, shadow, group string
	for _, u := range users {
		passwd += fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/bash\n", u.name, u.id, u.id, u.name)
		shadow += fmt.Sprintf("%s:%s:20000:0:99999:7:::\n", u.name, u.password)
		group += fmt.Sprintf("%s:x:%d:\n", u.name, u.id)
	}
	t.extend("etc/passwd", passwd, 0o644)
	t.extend("etc/shadow", shadow, 0o640)
	t.extend("etc/group", group, 0o644)
}

// extend copies a file of the machine and adds lines. Lines of the machine about the
// lab's users are left out.
func (t *tree) extend(name, lines string, mode fs.FileMode) {
	text, err := os.ReadFile("/" + name)
	t.keep(err)
	var kept bytes.Buffer
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte(DeployUser+":")) || bytes.HasPrefix(line, []byte(NoSudoUser+":")) {
			continue
		}
		kept.Write(line)
	}
	t.file(name, kept.String()+lines, mode)
}

// login lets the key log in as a user of the host.
func (t *tree) login(user string, id int, key keyPair) {
	t.home(user, id, homeFile{".ssh/authorized_keys", key.authorized(), 0o600})
}

// home lays files into a user's home that only the user reads.
func (t *tree) home(user string, id int, files ...homeFile) {
	home := "home/" + user
	if user == "root" {
		home = "root"
	}
	t.dir(home+"/.ssh", 0o700)
	names := []string{home, home + "/.ssh"}
	for _, f := range files {
		t.file(home+"/"+f.name, string(f.text), f.mode)
		names = append(names, home+"/"+f.name)
	}
	for _, name := range names {
		if t.err == nil {
			t.keep(os.Chown(filepath.Join(t.upper, name), id, id))
		}
	}
}

func (t *tree) ssh(hostKeys []keyPair) {
	t.file("etc/ssh/sshd_config", sshdConfig, 0o644)
	t.dir("etc/ssh/sshd_config.d", 0o755)
	t.file("etc/ssh/ssh_config", "", 0o644)
	for _, pair := range hostKeys {
		name := "etc/ssh/ssh_host_" + pair.kind + "_key"
		t.file(name, string(pair.private), 0o600)
		t.file(name+".pub", string(pair.authorized()), 0o644)
	}
}

// nginx lays a configuration, and the directories that Debian's nginx has.
func (t *tree) nginx(conf string) {
	t.dir("var/log/nginx", 0o755)
	t.file("etc/nginx/nginx.conf", conf, 0o644)
	t.file("etc/nginx/modules-enabled/50-mod-stream.conf", "load_module modules/ngx_stream_module.so;\n", 0o644)
}
