package lab_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A controlNode is the host and user that type ansible, with the collection installed as
// ansible-galaxy does it.
type controlNode struct {
	t    *testing.T
	l    *lab.Lab
	m    *lab.Machine
	user string
	home string
}

// inventory has the hosts of the lab as an operator would write them down.
const inventory = `[balancers]
lb ansible_host=192.168.1.2
[backends]
app1 ansible_host=192.168.1.10
app2 ansible_host=192.168.1.11
app3 ansible_host=192.168.1.12
`

// controlAt makes a host a control node.
func controlAt(t *testing.T, l *lab.Lab, m *lab.Machine, user, hosts string) controlNode {
	t.Helper()
	n := controlNode{t: t, l: l, m: m, user: user, home: "/home/" + user}
	if user == "root" {
		n.home = "/root"
	}
	n.write("hosts", hosts)
	archive := buildCollection(t)
	text, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	n.write(filepath.Base(archive), string(text))
	n.run("ansible-galaxy", "collection", "install", n.home+"/"+filepath.Base(archive)).wants(t, 0)
	return n
}

// buildCollection makes the archive of the collection, and gives its path.
func buildCollection(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "ansible-galaxy", "collection", "build", "--output-path", dir, "../../integrations/ansible")
	build.Env = append(os.Environ(), "LANG=C.UTF-8")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	found, err := filepath.Glob(dir + "/*.tar.gz")
	if err != nil || len(found) != 1 {
		t.Fatalf("the built archives are %q, want one (%v)", found, err)
	}
	return found[0]
}

func (n controlNode) write(name, text string) {
	n.t.Helper()
	if err := n.m.WriteFile(n.t.Context(), n.home+"/"+name, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// run types a command on the control node.
func (n controlNode) run(words ...string) ending {
	n.t.Helper()
	line := append([]string{"env", "--chdir=" + n.home, "LANG=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_INVENTORY=hosts"}, words...)
	if n.user != "root" {
		line = lab.As(n.user, line...)
	}
	return startAt(n.t, n.l, n.m, line...).wait()
}

// module runs a module of the collection on the control node and gives what it returns.
func (n controlNode) module(code int, name string, options map[string]any, flags ...string) map[string]any {
	n.t.Helper()
	args, err := json.Marshal(options)
	if err != nil {
		n.t.Fatal(err)
	}
	e := n.run(append([]string{"ansible", "localhost", "-m", "drainctl.drainctl." + name, "-a", string(args)}, flags...)...).wants(n.t, code)
	var answer map[string]any
	_, object, found := strings.Cut(e.stdout, "=> ")
	if err := json.Unmarshal([]byte(object), &answer); !found || err != nil {
		n.t.Fatalf("%s: %v in\n%s%s", e.line, err, e.stdout, e.stderr)
	}
	answer["shown"] = e.stdout // the diff is printed before
	return answer
}

// wantChanged checks what a play has changed on a host, by its recap.
func wantChanged(t *testing.T, e ending, host string, changed int) {
	t.Helper()
	recap := regexp.MustCompile(`(?m)^` + host + ` +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0 `).FindStringSubmatch(e.stdout)
	if recap == nil || recap[1] != fmt.Sprint(changed) {
		t.Errorf("%s: %s has changed=%v, want %d:\n%s", e.line, host, recap, changed, e.stdout)
	}
}

// A pool is rolled with the playbook of the collection, under load on both load balancers,
// by the user deploy on the desk, who may do no more than the README asks for.
func TestAnsibleRollsThePool(t *testing.T) {
	l := fleetFor(t)
	before, other := configuration(t, l), configurationOf(t, l.LB2)
	desk := controlAt(t, l, l.Desk, lab.DeployUser,
		strings.Replace(inventory, "[backends]", "lb2 ansible_host=192.168.1.3\n[backends]", 1))
	desk.write("deploy.yml", `
- name: Look at the app
  ansible.builtin.command: systemctl is-active my-web-app
  register: app
  changed_when: false
  failed_when: app.stdout != 'inactive'
- name: Install the release
  ansible.builtin.copy:
    content: "2\n"
    dest: release
    mode: "0644"
`)
	roll := []string{"ansible-playbook", "drainctl.drainctl.roll", "-e", "roll_service=my-web-app",
		"-e", "roll_health=http://{address}:{port}/health", "-e", "roll_tasks=/home/deploy/deploy.yml"}
	load := startLoad(t, l, l.Apps[0])
	began := map[string]int{}
	for _, app := range l.Apps {
		began[app.Name] = stops(t, app)
	}
	e := desk.run(roll...).wants(t, 0)
	for _, app := range l.Apps {
		wantChanged(t, e, app.Name, 3)
		wantState(t, app, "active")
		stoppedIdleAlways(t, app)
		if n := stops(t, app) - began[app.Name]; n != 1 {
			t.Errorf("%s was stopped %d times, want once", app.Name, n)
		}
		if text, err := app.ReadFile(t.Context(), "/home/deploy/release"); err != nil || string(text) != "2\n" {
			t.Errorf("the release on %s is %q (%v)", app.Name, text, err)
		}
		servesAgain(t, load, app)
	}
	sameFiles(t, before, configuration(t, l))
	sameFiles(t, other, configurationOf(t, l.LB2))
	nothingInterrupted(t, l)
	bothServed(t, l, noneFailed(t, load))

	// Work that fails leaves its backend out, and no other is begun.
	desk.write("deploy.yml", "- ansible.builtin.fail:\n    msg: no release\n")
	desk.run(roll...).wants(t, 2, "no release", "NO MORE HOSTS LEFT")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	wantState(t, l.Apps[0], "inactive")
	wantState(t, l.Apps[1], "active")
}

// stops is how often an app was stopped.
func stops(t *testing.T, app *lab.Machine) (n int) {
	t.Helper()
	for _, e := range events(t, app) {
		if e.Kind == "TERM" {
			n++
		}
	}
	return n
}

// The modules say what has changed, and what would.
func TestAnsibleModules(t *testing.T) {
	l := fleetFor(t)
	app, files, others := l.Apps[0], configuration(t, l), configurationOf(t, l.LB2)
	serving := workers(t, l)
	desk := controlAt(t, l, l.Desk, lab.DeployUser, inventory)
	options := func(more map[string]any) map[string]any {
		all := map[string]any{"target": []string{app.Addr}, "lb": []string{lab.LBAddr, lab.LB2Addr}}
		maps.Copy(all, more)
		return all
	}
	drain := options(map[string]any{"service": lab.AppUnit, "reason": "by ansible"})
	wants := func(answer map[string]any, changed bool, words ...string) {
		t.Helper()
		text, _ := json.MarshalIndent(answer, "", " ")
		if answer["changed"] != changed {
			t.Errorf("changed is %v, want %t: %s", answer["changed"], changed, text)
		}
		for _, w := range words {
			if !strings.Contains(string(text)+answer["shown"].(string), w) {
				t.Errorf("it does not say %q: %s", w, text)
			}
		}
	}
	diff := []string{"on 192.168.1.2, 192.168.1.3\n", "+        server 192.168.1.10:8080 down;\n"}

	// Check mode changes nothing and shows what a run would do.
	wants(desk.module(0, "drain", drain, "--check", "--diff"), true, append(diff, `"dry_run": true`)...)
	untouched(t, files, configuration(t, l))
	untouched(t, others, configurationOf(t, l.LB2))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")

	// A refusal is in drainctl's own words, and touches nothing.
	wants(desk.module(2, "drain", options(map[string]any{"min_up": 3})), false, "would keep 2 live servers, fewer than 3", "use --min-up 2 to override", `"exit_code": 4`)
	wants(desk.module(2, "drain", options(map[string]any{"timeout": "soon"})), false, `\"soon\" is not a duration`, `"exit_code": 2`)
	wants(desk.module(2, "drain", options(map[string]any{"executable": "/usr/bin/no-drainctl"})), false, "/usr/bin/no-drainctl")
	untouched(t, files, configuration(t, l))

	wants(desk.module(0, "drain", drain, "--diff"), true, append(diff, `"result": "done"`)...)
	sameFiles(t, withDown(t, files, lab.NginxConfPath, app1Line), configuration(t, l))
	sameFiles(t, withDown(t, others, lab.NginxConfPath, app1Line), configurationOf(t, l.LB2))
	wantState(t, app, "inactive")
	wants(desk.module(0, "status", options(nil)), false, `"state": "drained"`, `"reason": "by ansible"`, `"lb": "192.168.1.3"`)

	// The second time there is nothing to do, nor would there be.
	drained, serving := configuration(t, l), workers(t, l)
	wants(desk.module(0, "drain", drain), false, `"result": "done"`)
	wants(desk.module(0, "drain", drain, "--check"), false)
	untouched(t, drained, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))

	wants(desk.module(0, "undrain", options(nil), "--check", "--diff"), true, "-        server 192.168.1.10:8080 down;\n")
	wantState(t, app, "inactive")
	wants(desk.module(0, "undrain", options(map[string]any{"health": "http://{address}:{port}/health"})), true)
	wantState(t, app, "active")
	sameFiles(t, files, configuration(t, l))
	serving = workers(t, l)
	wants(desk.module(0, "undrain", options(nil)), false)
	wants(desk.module(0, "undrain", options(nil), "--check"), false)
	sameWorkers(t, serving, workers(t, l))
	wants(desk.module(0, "status", options(nil), "--check"), false, `"state": "up"`)
}

// installs is a playbook that installs with the role what each kind of host needs.
const installs = `
- hosts: balancers
  gather_facts: false
  roles:
    - role: drainctl.drainctl.install
      vars: {drainctl_user: deploy}
- hosts: backends
  gather_facts: false
  roles:
    - role: drainctl.drainctl.install
      vars: {drainctl_user: deploy, drainctl_units: [my-web-app]}
`

// The role installs the binary and the lines of sudoers that the README asks for, from the
// control node and from a release, and changes nothing the second time.
func TestAnsibleInstalls(t *testing.T) {
	l := labFor(t)
	lb := controlAt(t, l, l.LB, "root", strings.Replace(inventory, "ansible_host=192.168.1.2", "ansible_connection=local", 1))
	lb.write("install.yml", installs)
	binary, rules := mustRun(t, l.LB, "sha256sum", "/usr/bin/drainctl"), map[string]string{}
	hosts := append([]*lab.Machine{l.LB}, l.Apps...)
	for _, m := range hosts {
		rules[m.Name] = mustRun(t, m, "cat", lab.SudoersPath)
		mustRun(t, m, "rm", lab.SudoersPath)
	}
	mustRun(t, l.LB, "sh", "-c", `cd /root && mv /usr/bin/drainctl . && tar -czf release.tar.gz drainctl && sha256sum release.tar.gz >sum`)
	sum, _, _ := strings.Cut(mustRun(t, l.LB, "cat", "/root/sum"), " ")

	installed := func() {
		t.Helper()
		for _, m := range hosts {
			if now := mustRun(t, m, "cat", lab.SudoersPath); now != rules[m.Name] {
				t.Errorf("on %s sudo allows %q, want %q", m.Name, now, rules[m.Name])
			}
			if mode := mustRun(t, m, "stat", "-c", "%a %U:%G", lab.SudoersPath); mode != "440 root:root\n" {
				t.Errorf("sudoers on %s has mode and owner %q", m.Name, mode)
			}
		}
		if now := mustRun(t, l.LB, "sha256sum", "/usr/bin/drainctl"); now != binary {
			t.Errorf("the binary is %q, want %q", now, binary)
		}
		if mode := mustRun(t, l.LB, "stat", "-c", "%a %U:%G", "/usr/bin/drainctl"); mode != "755 root:root\n" {
			t.Errorf("the binary has mode and owner %q", mode)
		}
	}
	run := func(code int, words ...string) ending {
		t.Helper()
		return lb.run(append([]string{"ansible-playbook", "install.yml"}, words...)...).wants(t, code)
	}
	local := []string{"-e", "drainctl_binary=/root/drainctl", "-l", "balancers"}

	e := run(0, append(local, "--check", "--diff")...)
	wantChanged(t, e, "lb", 2)
	mustRun(t, l.LB, "sh", "-c", "! test -e "+lab.SudoersPath+" && ! test -e /usr/bin/drainctl")
	wantChanged(t, run(0, local...), "lb", 2)
	wantChanged(t, run(0, local...), "lb", 0)
	e = run(0, "-l", "backends")
	wantChanged(t, e, "app1", 1)
	wantChanged(t, run(0, "-l", "backends"), "app1", 0)
	installed()

	mustRun(t, l.LB, "rm", "/usr/bin/drainctl")
	release := []string{"-l", "balancers", "-e", "drainctl_url=file:///root/release.tar.gz", "-e", "drainctl_checksum=sha256:" + sum}
	wantChanged(t, run(0, release...), "lb", 3)
	wantChanged(t, run(0, release...), "lb", 0)
	installed()
	mustRun(t, l.LB, "rm", "-r", "/var/cache/drainctl-release")
	release[len(release)-1] = "drainctl_checksum=sha256:" + strings.Repeat("0", 64)
	run(2, release...).wants(t, 2, "did not match")
	run(2, "-l", "balancers", "-e", "drainctl_url=file:///root/release.tar.gz").wants(t, 2, "with drainctl_checksum")

	// What sudo would not read, or what says more than it should, is not installed.
	run(2, append(local, "-e", "drainctl_user=deploy,www-data")...).wants(t, 2, "they go into sudoers")
	run(2, append(local, "-e", "drainctl_user=ALL")...).wants(t, 2, "they go into sudoers")
	mustRun(t, l.LB, "sh", "-c", "mv /usr/sbin/visudo /root && ln -s /bin/false /usr/sbin/visudo")
	e = run(2, append(local, "-e", "drainctl_user=other")...)
	mustRun(t, l.LB, "mv", "/root/visudo", "/usr/sbin/visudo")
	e.wants(t, 2, "failed to validate")
	installed()

	// And drainctl, as it is installed now, is delegated to.
	lb.write("drain.yml", `
- hosts: app1
  gather_facts: false
  tasks:
    - drainctl.drainctl.drain: {target: "{{ ansible_host }}", service: my-web-app}
      delegate_to: lb
`)
	for _, changed := range []int{1, 0} {
		wantChanged(t, lb.run("ansible-playbook", "drain.yml").wants(t, 0), "app1", changed)
		wantState(t, l.Apps[0], "inactive")
	}
}
