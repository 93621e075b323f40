package lab_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/testdata/lab"
)

// The attacker of this file may run the agent through sudo and nothing else: the user
// deploy, with exactly the line in sudoers that the documentation names. Each test is
// named after the claim in SECURITY.md that it tries to break.

// An attackAgent is an agent that an attacker speaks to in lines of his own.
type attackAgent struct {
	t        *testing.T
	l        *lab.Lab
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      *bufio.Reader
	pipe     *os.File // that out reads
	stderr   *screen
	greeting map[string]any
	last     int
}

// attack starts an agent on the load balancer as deploy, through sudo.
func attack(t *testing.T, l *lab.Lab) *attackAgent {
	t.Helper()
	return attackWith(t, l, lab.As(lab.DeployUser, "sudo", "-n", "/usr/bin/drainctl", "agent")...)
}

// attackWith starts an agent with a command line of the attacker's.
func attackWith(t *testing.T, l *lab.Lab, args ...string) *attackAgent {
	t.Helper()
	a := &attackAgent{t: t, l: l, cmd: l.LB.Command(t.Context(), args...), stderr: &screen{}}
	a.cmd.Stderr = a.stderr
	out, err := a.cmd.StdoutPipe()
	if err == nil {
		a.in, err = a.cmd.StdinPipe()
	}
	if err == nil {
		err = a.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	a.pipe = out.(*os.File)
	a.out = bufio.NewReaderSize(out, 64<<20)
	line, err := a.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a.greeting)
	}
	if err != nil {
		t.Fatalf("the agent does not greet: %v: %s", err, a.stderr)
	}
	return a
}

// close ends the agent and waits for its end.
func (a *attackAgent) close() {
	_ = a.in.Close()
	_ = a.cmd.Wait()
}

// send sends one line as it is.
func (a *attackAgent) send(line string) error {
	_, err := io.WriteString(a.in, line+"\n")
	return err
}

// ask makes one call, with parameters that are JSON text, and gives the answer and the
// error message in it, of which one is empty.
func (a *attackAgent) ask(method, params string) (result json.RawMessage, refusal string) {
	a.t.Helper()
	a.last++
	if err := a.send(fmt.Sprintf(`{"id":%d,"method":%q,"params":%s}`, a.last, method, params)); err != nil {
		return nil, "the agent has ended: " + err.Error()
	}
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Sprintf("the agent has ended: %v: %s", err, a.stderr)
	}
	var answer struct {
		Result json.RawMessage
		Error  *struct{ Message string }
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		a.t.Fatalf("the agent answers %.200q", line)
	}
	if answer.Error != nil {
		return nil, answer.Error.Message
	}
	return answer.Result, ""
}

// mustAsk makes one call that is the attacker's right.
func (a *attackAgent) mustAsk(method, params string) json.RawMessage {
	a.t.Helper()
	result, refusal := a.ask(method, params)
	if refusal != "" {
		a.t.Fatalf("%s %.200s: %s", method, params, refusal)
	}
	return result
}

// planted is an operation as an attacker records it.
func planted(id, spec string) string {
	server := `{"module":"http","upstream":"backend_servers","address":"192.168.1.10:8080","file":"/etc/nginx/nginx.conf","line":1}`
	return fmt.Sprintf(`{"operation":{"id":%q,"kind":"drain","targets":["192.168.1.10"],"user":"root","host":"lb","began":"2026-01-01T00:00:00Z","servers":[%s],"spec":%s},
		"lines":[{"event":"operation_started","v":2,"kind":"drain","targets":["192.168.1.10"],"user":"root","host":"lb","servers":[]}]}`, id, server, spec)
}

// newID is an ID that the agent takes now.
func newID() string { return journal.NewID(time.Now(), "") }

// specWith is a spec of a drain of app1 with a further key.
func specWith(more string) string {
	return `{"kind":"drain","targets":["192.168.1.10"],"timeout_ns":0,"health_timeout_ns":0,"min_up":0,"ssh":{},"allow":{},"nginx":{},"user":"root","host":"lb"` + more + `}`
}

// drainAs drains app1 through an agent, from the plan to the end, with a spec of the
// attacker's, and leaves it drained.
func (a *attackAgent) drainAs(spec string) {
	a.t.Helper()
	var report struct {
		Files   map[string]string
		Servers []struct{ Module, Upstream, Address, File string }
	}
	if err := json.Unmarshal(a.mustAsk("plan", `{"targets":["192.168.1.10"],"want":"out"}`), &report); err != nil {
		a.t.Fatal(err)
	}
	a.mustAsk("begin", oneLine(planted(newID(), spec)))
	s := report.Servers[0]
	a.mustAsk("stage", fmt.Sprintf(`{"files":{%q:%q},"wants":[{"want":"out","servers":[{"module":%q,"upstream":%q,"address":%q}]}]}`, s.File, report.Files[s.File], s.Module, s.Upstream, s.Address))
	a.mustAsk("load", `{"timeout_ns":30000000000}`)
	a.mustAsk("end", `{"result":"done"}`)
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "") }

// "The journal has no command": whatever the caller records, root's own drain, undrain
// and dry run run nothing of it.
func TestCallerCannotRunACommand(t *testing.T) {
	l := labFor(t)
	const mark = "/tmp/owned"
	command := `{"path":"/tmp/nginx","test_command":"touch ` + mark + `","reload_command":"touch ` + mark + `"}`
	writeOnLB(t, l, "/tmp/nginx", "#!/bin/sh\ntouch "+mark+"\nexec /usr/sbin/nginx \"$@\"\n", 0o755)
	for _, key := range []string{"nginx", "Nginx", "NGINX", "nginX", "\\u006eginx", "ngin\\u0078"} {
		attack(t, l).drainAs(specWith(`,"` + key + `":` + command))
		drainctl(t, l, "undrain", "--dry-run", "192.168.1.10").wants(t, 0)
		drainctl(t, l, "drain", "--dry-run", "192.168.1.10").wants(t, 0)
		drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
		if out, err := l.LB.Run(t.Context(), "ls", mark); err == nil {
			t.Fatalf("the key %s: root ran the caller's command: %s", key, out)
		}
		state := mustRun(t, l.LB, "cat", "/var/lib/drainctl/state.json")
		if strings.Contains(state, "touch") {
			t.Fatalf("the key %s: the journal has the command: %s", key, state)
		}
	}
}

// "An undrain inherits from those who drained": an operation that is only planted, with
// whatever ID, decides nothing. status does not show it, and the history shows whose it is.
func TestCallerCannotHijackAnUndrain(t *testing.T) {
	l := labFor(t)
	evil := specWith(`,"service":"poweroff.target"`)
	drainctl(t, l, "drain", "192.168.1.10", "-s", lab.AppUnit).wants(t, 0)
	a := attack(t, l)
	for _, id := range []string{"99991231-235959.000-evil", "x", "20260101-000000.000-abcd"} {
		if _, refusal := a.ask("begin", oneLine(planted(id, evil))); refusal == "" {
			t.Errorf("the ID %s is taken", id)
		}
		a = attack(t, l)
	}
	// The agent says who records, and not the caller.
	const asRoot = `"recorder":{"uid":0,"name":"root"},`
	a.mustAsk("lock", `{"backends":["192.168.1.12"],"holder":{`+asRoot+`"id":"x","kind":"drain","targets":["192.168.1.12"],"user":"root","host":"lb1"}}`)
	a.mustAsk("begin", oneLine(strings.Replace(planted(newID(), evil), `"operation":{`, `"operation":{`+asRoot, 1)))
	drainctl(t, l, "drain", "192.168.1.12").wants(t, 4, "deploy (uid ")
	a.close()
	if r := drainctl(t, l, "status").wants(t, 0, "drained by root on lb"); strings.Contains(r.stdout, "interrupted") || strings.Contains(r.stdout, "next:") {
		t.Errorf("status shows what is only planted: %s", r.stdout)
	}
	drainctl(t, l, "history").wants(t, 0, "deploy (uid ")
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
	if out := mustRun(t, l.Apps[0], "systemctl", "is-active", lab.AppUnit); !strings.HasPrefix(out, "active") {
		t.Errorf("the app is %s", out)
	}
}

// "What another user recorded is shown before it is used": root confirms the service, the
// SSH host and the command that deploy recorded, or gives their own.
func TestCallerCannotHaveRootUseSettingsUnseen(t *testing.T) {
	l := labFor(t)
	attack(t, l).drainAs(specWith(`,"service":"my-web-app","ssh":{"host":"192.168.1.12","user":"nobody"}`))
	for _, dry := range [][]string{{"--dry-run"}, nil} {
		drainctl(t, l, append([]string{"undrain", "192.168.1.10"}, dry...)...).wants(t, 4,
			"deploy (uid ", "--service my-web-app", "--ssh-host 192.168.1.12", "--ssh-user nobody", "--as-recorded")
	}
	drainctl(t, l, "undrain", "192.168.1.10", "--service", lab.AppUnit, "--ssh-host", "192.168.1.10", "--ssh-user", "root").wants(t, 0, "is back")
	attack(t, l).drainAs(specWith(`,"service":"poweroff.target"`))
	drainctl(t, l, "undrain", "192.168.1.10", "--as-recorded").wants(t, 4, "poweroff.target", "--service")
	drainctl(t, l, "undrain", "192.168.1.10", "--service", lab.AppUnit).wants(t, 0, "is back")

	run := strings.Replace(specWith(`,"rollout":{"command":["touch","/tmp/owned"],"gate":"touch /tmp/owned","only_if":"touch /tmp/owned"}`), `"kind":"drain"`, `"kind":"run"`, 1)
	attack(t, l).mustAsk("begin", oneLine(planted(newID(), run)))
	drainctl(t, l, "resume").wants(t, 4, "the command touch /tmp/owned", "--gate", "--only-if", "deploy (uid ")
	mustRun(t, l.LB, "sh", "-c", "! test -e /tmp/owned")
	// History says who it was, whatever the caller says.
	drainctl(t, l, "history").wants(t, 0, "recorded as deploy (uid ")
}

// "An operation that ends as done puts nothing back that it has not": the marks and the
// operations of others stay.
func TestCallerCannotForgetWhatOthersDrained(t *testing.T) {
	l := labFor(t)
	drainctl(t, l, "drain", "192.168.1.10", "-s", lab.AppUnit).wants(t, 0)
	for _, kind := range []string{"undrain", "drain", "run"} {
		a := attack(t, l)
		a.mustAsk("begin", oneLine(planted(newID(), strings.Replace(specWith(""), `"kind":"drain"`, `"kind":"`+kind+`"`, 1))))
		var state struct{ Operations []struct{ ID string } }
		if err := json.Unmarshal(a.mustAsk("state", `{}`), &state); err != nil {
			t.Fatal(err)
		}
		root := state.Operations[0].ID
		a.mustAsk("end", fmt.Sprintf(`{"result":"done","supersede":[%q]}`, root))
		a.close()
		a = attack(t, l)
		if _, refusal := a.ask("begin", oneLine(planted(root, specWith("")))); refusal == "" {
			t.Error("root's operation is begun by another")
		}
		if _, refusal := a.ask("end", `{"result":"rolled_back"}`); refusal == "" {
			t.Error("root's operation is ended by another")
		}
		a.close()
	}
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
	if out := mustRun(t, l.Apps[0], "systemctl", "is-active", lab.AppUnit); !strings.HasPrefix(out, "active") {
		t.Errorf("the app is %s", out)
	}
}

// "Nginx loads what an edit of the operation has changed, and nothing else at the caller's
// wish".
func TestCallerCannotReloadWithoutAnEdit(t *testing.T) {
	l := labFor(t)
	before, err := l.LB.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := attack(t, l)
	a.mustAsk("begin", oneLine(planted(newID(), specWith(""))))
	if _, refusal := a.ask("load", `{"timeout_ns":30000000000}`); !strings.Contains(refusal, "no edit") {
		t.Errorf("reload without an edit: %q", refusal)
	}
	failed := attack(t, l) // a Begin that fails begins nothing
	if _, refusal := failed.ask("begin", oneLine(planted("../x", specWith("")))); refusal == "" {
		t.Error("an ID that is a path is taken")
	}
	if _, refusal := failed.ask("load", `{"timeout_ns":30000000000}`); refusal == "" {
		t.Error("reload after a failed begin")
	}
	if now, err := l.LB.Workers(t.Context()); err != nil || !maps.Equal(now, before) {
		t.Errorf("workers %v became %v, %v", before, now, err)
	}
}

// "An edit that nobody loads does not stay": the agent undoes it when its caller goes.
func TestCallerCannotLeaveAnEditBehind(t *testing.T) {
	l := labFor(t)
	before := configuration(t, l)
	a := attack(t, l)
	var report struct {
		Files   map[string]string
		Servers []struct{ Module, Upstream, Address, File string }
	}
	if err := json.Unmarshal(a.mustAsk("plan", `{"targets":["192.168.1.10"],"want":"out"}`), &report); err != nil {
		t.Fatal(err)
	}
	a.mustAsk("begin", oneLine(planted(newID(), specWith(""))))
	s := report.Servers[0]
	a.mustAsk("stage", fmt.Sprintf(`{"files":{%q:%q},"wants":[{"want":"out","servers":[{"module":%q,"upstream":%q,"address":%q}]}]}`, s.File, report.Files[s.File], s.Module, s.Upstream, s.Address))
	a.close()
	sameFiles(t, before, configuration(t, l))
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0, "is drained") // no lock is left
}

// "What one user records is bounded": large and deep specs, long reasons and many
// operations are refused, and root's own drain goes on.
func TestCallerCannotFillTheJournal(t *testing.T) {
	l := labFor(t)
	deep := strings.Repeat(`{"x":`, 9900) + "1" + strings.Repeat("}", 9900)
	for name, spec := range map[string]string{
		"deep":        specWith(`,"per_backend":{"a":` + deep + `}`),
		"unknown":     specWith(`,"zzz":` + deep),
		"long reason": specWith(`,"reason":"` + strings.Repeat("x", 100_000) + `"`),
		"null":        "null",
	} {
		a := attack(t, l)
		if _, refusal := a.ask("begin", oneLine(planted(newID(), spec))); refusal == "" {
			t.Errorf("%s is recorded", name)
		}
		if _, refusal := a.ask("state", `{}`); refusal != "" {
			t.Errorf("%s: the agent does not go on: %s", name, refusal)
		}
		a.close()
	}
	a := attack(t, l)
	a.mustAsk("begin", oneLine(planted(newID(), specWith(""))))
	line := `{"event":"warning","text":"` + strings.Repeat("x", 1<<20) + `"}`
	for range 40 {
		if _, refusal := a.ask("record", `{"lines":[`+line+`]}`); refusal != "" {
			break
		}
	}
	a.close()
	if size := strings.Fields(mustRun(t, l.LB, "du", "-sk", "/var/lib/drainctl"))[0]; len(size) > 5 || size > "20000" && len(size) == 5 {
		t.Errorf("the journal takes %s KiB", size)
	}
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0, "is drained")
}

// hostileText does what a text can do to a terminal, and forges a line of drainctl's.
const hostileText = "x\x1b]0;title\x07\x1b[2J\x1b[31mred\r\n\u202ehidden\u200b\u009b5m\ndrainctl: FORGED\t"

// printedByDrainctl are the sequences that drainctl itself prints on a terminal.
var printedByDrainctl = regexp.MustCompile(`\x1b\[[0-9;]*[mAHJK]|\x1b[78]|\r\n`)

// coloured are those of them that nobody else may cause.
var coloured = regexp.MustCompile(`\x1b\[31mred|\x1b\[2J`)

// onTerminal types a command on the load balancer, as root, on a terminal, and checks that
// nothing but drainctl's own sequences reaches it.
func onTerminal(t *testing.T, l *lab.Lab, line string) ending {
	t.Helper()
	e := on(t, l, "env", "LC_ALL=C.UTF-8", "TERM=xterm", "script", "-qec", line, "/dev/null")
	text := printedByDrainctl.ReplaceAllString(e.stdout, "\n")
	raw := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && r != '\r' && r != '\t' && !unicode.IsGraphic(r) })
	switch {
	case coloured.MatchString(e.stdout):
		t.Errorf("%s: a sequence of somebody else's:\n%q", line, e.stdout)
	case raw >= 0:
		t.Errorf("%s: %q reaches the terminal:\n%q", line, text[raw:min(len(text), raw+8)], e.stdout)
	case regexp.MustCompile(`(?m)^(drainctl: FORGED|\s*drainctl: hint: FORGED)`).MatchString(text):
		t.Errorf("%s: a line of somebody else's looks like drainctl's:\n%q", line, e.stdout)
	}
	return e
}

// What a caller of the agent records, of itself and of what it wants, reaches the terminal
// of nobody as it is.
func TestCallerCannotWriteToATerminal(t *testing.T) {
	l := labFor(t)
	app, a := l.Apps[0], attack(t, l)
	b, err := json.Marshal(hostileText + "\nhint: FORGED")
	if err != nil {
		t.Fatal(err)
	}
	id, text := newID(), string(b)
	holder := fmt.Sprintf(`{"name":"x","id":%q,"kind":%s,"targets":[%q,%s],"user":%s,"host":%s,"reason":%s,"time":%q}`, id, text, app.Addr, text, text, text, text, time.Now().Format(time.RFC3339))
	if _, refusal := a.ask("lock", fmt.Sprintf(`{"backends":[%q],"holder":%s}`, app.Addr, holder)); refusal != "" {
		t.Logf("the agent records no such lock: %q", refusal)
	}
	spec := strings.Replace(specWith(fmt.Sprintf(`,"reason":%s`, text)), `"user":"root","host":"lb"`, `"user":`+text+`,"host":`+text, 1)
	spec = strings.Replace(spec, `"ssh":{}`, `"ssh":{"host":`+text+`,"user":`+text+`}`, 1)
	if _, refusal := a.ask("begin", oneLine(planted(id, spec))); refusal != "" {
		t.Errorf("the agent records no such operation: %q", refusal)
	}
	for _, line := range []string{"status", "status --verbose", "drain " + app.Addr + " --poll lb", "check"} {
		onTerminal(t, l, "drainctl "+line)
	}
	a.close()
	for _, line := range []string{
		"status", "history", "history " + id, "history " + id + " --output json", "history --output json", "history " + id + " --html -",
		"resume", "resume none", "resume " + id, "check " + app.Addr, "__complete -- 'drainctl history '", "undrain " + app.Addr, "drain " + app.Addr + " --poll lb",
	} {
		onTerminal(t, l, "drainctl "+line)
	}
}

// What the caller records is no flag of a command that drainctl prints for others, and
// hides no drain of theirs.
func TestCallerCannotPrintACommand(t *testing.T) {
	l := labFor(t)
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0)
	a := attack(t, l)
	const evil = "--test-command=touch /tmp/owned"
	for _, spec := range []string{
		strings.Replace(specWith(""), `"targets":["192.168.1.10"]`, `"targets":["`+evil+`","192.168.1.10"]`, 1),
		specWith(`,"upstreams":["` + evil + `"]`), specWith(`,"continues":"` + evil + `"`),
	} {
		if _, refusal := a.ask("begin", oneLine(planted(newID(), spec))); refusal == "" {
			t.Errorf("the agent records %s", spec)
		}
	}
	a.close()
	for _, end := range []string{"", `,{"event":"result","exit_code":5,"result":"partial","next":[{"words":["touch","/tmp/owned"]},{"words":["drainctl","undrain","` + evil + `","192.168.1.10"]}]}`} {
		a, id := attack(t, l), newID()
		begin := strings.NewReplacer(`"kind":"drain","targets":["192.168.1.10"],"user":"root","host":"lb","servers":[]}]`,
			`"kind":"drain","targets":["`+evil+`","192.168.1.10"],"user":"root","host":"lb","servers":[]}`+end+`]`).Replace(oneLine(planted(id, specWith(""))))
		if !strings.Contains(begin, evil) {
			t.Fatal("the attack is no attack")
		}
		a.mustAsk("begin", begin)
		a.close()
		if r := drainctl(t, l, "status", "192.168.1.10"); strings.Contains(r.stdout, "next:") || !strings.Contains(r.stdout, "drained") {
			t.Errorf("status hides the drain: %s", r.stdout)
		}
		r := drainctl(t, l, "history", id)
		if r.wants(t, 0); end == "" {
			r.wants(t, 0, "next: drainctl undrain 192.168.1.10 ")
		}
		for _, line := range strings.Split(r.stdout, "\n") {
			if strings.Contains(line, "next:") && strings.Contains(line, "touch") {
				t.Errorf("the history prints the caller's command: %s", line)
			}
		}
	}
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0)
}

// A setting that the caller records decides no undrain of root.
func TestCallerCannotSetTheLimitsOfAnUndrain(t *testing.T) {
	l := labFor(t)
	attack(t, l).drainAs(specWith(`,"reload_timeout_ns":1,"stop_timeout_ns":1,"interval_ns":1`))
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
	for _, value := range []string{`"reload_timeout_ns":-1`, `"counter":"x"`, `"threshold":-1`} {
		a := attack(t, l)
		if _, refusal := a.ask("begin", oneLine(planted(newID(), specWith(","+value)))); refusal == "" {
			t.Errorf("the agent records %s", value)
		}
		a.close()
	}
}

// "The agent works on no configuration that its caller can write": it reads nothing of it to
// the caller, and nginx does not run on it.
func TestCallerCannotPlantAConfiguration(t *testing.T) {
	l := labFor(t)
	mustRun(t, l.LB, "sh", "-c", "chown deploy /etc/nginx/conf.d && rm -f /tmp/owned.log")
	writable := func(what string) {
		t.Helper()
		a := attack(t, l)
		for _, method := range []string{"plan", "begin", "stage", "load"} {
			params := map[string]string{
				"plan":  `{"targets":["192.168.1.10"],"want":"out","preflight":true}`,
				"begin": oneLine(planted(newID(), specWith(""))),
				"stage": `{"wants":[{"want":"out","servers":[{"module":"http","upstream":"backend_servers","address":"192.168.1.10:8080"}]}]}`,
				"load":  `{"timeout_ns":10000000000}`,
			}[method]
			result, refusal := a.ask(method, params)
			for _, secret := range []string{"root:$", "root:*", "root:!", "daemon:"} {
				if strings.Contains(string(result)+refusal, secret) {
					t.Errorf("%s: %s repeats a secret file: %s%s", what, method, result, refusal)
				}
			}
			if method == "plan" && !strings.Contains(refusal, "/etc/nginx/conf.d") {
				t.Errorf("%s: the plan is %q", what, refusal)
			}
		}
		a.close()
		mustRun(t, l.LB, "sh", "-c", "! test -e /tmp/owned.log")
	}
	as := func(script string) { t.Helper(); mustRun(t, l.LB, lab.As(lab.DeployUser, "sh", "-c", script)...) }
	as("ln -s /etc/shadow /etc/nginx/conf.d/x.conf")
	writable("a link to a secret file")
	as("rm /etc/nginx/conf.d/x.conf; echo 'access_log /tmp/owned.log; error_log /tmp/owned.log;' >/etc/nginx/conf.d/x.conf")
	writable("a log of the caller's")
	as("echo 'include /nowhere/x;' >/etc/nginx/conf.d/x.conf")
	writable("an include that fails")
	as("rm /etc/nginx/conf.d/x.conf")
	mustRun(t, l.LB, "sh", "-c", "chown root:deploy /etc/nginx/conf.d; chmod 775 /etc/nginx/conf.d")
	writable("a directory of the caller's group")
	mustRun(t, l.LB, "sh", "-c", "chown root:root /etc/nginx/conf.d; chmod 755 /etc/nginx/conf.d")
	attack(t, l).mustAsk("plan", `{"targets":["192.168.1.10"],"want":"out","preflight":true}`)
	// The operator is told what to change.
	mustRun(t, l.LB, "chown", "deploy", "/etc/nginx/conf.d")
	on(t, l, lab.As(lab.DeployUser, "drainctl", "drain", "192.168.1.10", "--poll", "lb")...).wants(t, 4, "deploy (uid ", "/etc/nginx/conf.d", "chown root")
}

// secretConf is a configuration with a secret, a word that begins with CANARY, in every
// place around the servers of app1 where nginx takes one.
const secretConf = `log_format secret 'CANARY-format $request';
map $uri $mapped {
    default CANARY-map;
    /app1   http://192.168.1.10:8080/?key=CANARY-map-url;
}
geo $from_geo { default CANARY-geo; }
split_clients $uri $splitted { 50% CANARY-split; * ""; }
proxy_set_header Authorization "Bearer CANARY-before";
upstream lines { # CANARY-opening
    # CANARY-comment
    zone CANARY-zone 64k;
    hash CANARY-hash$request_uri;
    server 192.168.1.10:8080; # CANARY-line
    server 192.168.1.10:8081 # CANARY-inside
        max_fails=2; server 192.168.1.11:8080; keepalive 7; # CANARY-behind
    include /etc/nginx/secret.inc;
    server 192.168.1.12:8080;
    keepalive_time 59m; # CANARY-last
} # CANARY-closing
proxy_set_header Cookie "CANARY-after";
server { listen 81; set $a "CANARY-one-before"; return 200 $a; } upstream one { server 192.168.1.10:8080; server 192.168.1.11:8080; } server { listen 82; set $a "CANARY-one-after"; return 200 $a; }
server {
    listen 83;
    auth_basic "CANARY-realm";
    auth_basic_user_file /etc/nginx/CANARY-users;
    access_log /var/log/nginx/CANARY.log secret;
    add_header X-Key CANARY-header;
    location / { proxy_pass http://lines; proxy_set_header X-Key "CANARY-key"; }
    location /direct { proxy_pass http://192.168.1.10:8080/path?key=CANARY-pass; }
    location /set { set $to http://192.168.1.10:8080/?key=CANARY-set; proxy_pass $to; }
    location /return { return 302 http://user:CANARY-return@192.168.1.10:8080/; }
}
`

// secretFragment is included by the upstream of secretConf.
const secretFragment = `# CANARY-fragment
server 192.168.1.10:8082; # CANARY-fragment-line
# CANARY-fragment-end
`

// noCanary checks that an answer has nothing of secretConf's secrets.
func noCanary(t *testing.T, what, answer string) {
	t.Helper()
	for _, found := range slices.Compact(slices.Sorted(slices.Values(canary.FindAllString(answer, -1)))) {
		t.Errorf("%s tells %s", what, found)
	}
}

var canary = regexp.MustCompile(`CANARY[a-z-]*`)

func TestCallerCannotReadTheConfiguration(t *testing.T) {
	l := labFor(t)
	files := map[string]string{"/etc/nginx/conf.d/secret.conf": secretConf, "/etc/nginx/secret.inc": secretFragment}
	if err := l.LB.WriteConf(t.Context(), files); err != nil {
		t.Fatal(err)
	}
	before := configuration(t, l)
	a := attack(t, l)
	for _, query := range []string{
		`{}`, `{"targets":["192.168.1.10"],"want":"out","preflight":true,"connections":true}`,
		`{"upstreams":["lines"],"want":"out"}`, `{"targets":["192.168.1.10"],"upstreams":["one"],"want":"out"}`,
		`{"targets":["192.168.1.99"]}`, `{"upstreams":["nowhere"]}`,
	} {
		result, refusal := a.ask("plan", query)
		noCanary(t, "plan "+query, string(result)+refusal)
	}
	a.close()
	deploy := func(code int, args ...string) {
		e := on(t, l, lab.As(lab.DeployUser, append([]string{"drainctl"}, args...)...)...).wants(t, code)
		noCanary(t, e.line, e.stdout+e.stderr)
	}
	drain := []string{"drain", "192.168.1.10", "--poll", "lb", "--min-up", "0"}
	deploy(0, append(drain, "--dry-run", "--allow-direct")...)
	for _, output := range []string{"--output=text", "--output=json"} {
		deploy(4, append(drain, output)...) // there are direct references
		deploy(0, append(drain, output, "--allow-direct")...)
		deploy(0, "status", output)
		undrain := []string{"undrain", "192.168.1.10", output, "--health", "http://192.168.1.10:8080/"}
		deploy(0, append(undrain, "--dry-run")...)
		deploy(0, undrain...)
		deploy(0, "check", output)
	}
	a = attack(t, l)
	noCanary(t, "state", string(a.mustAsk("state", `{}`)))
	list := a.mustAsk("history", `{}`)
	noCanary(t, "history", string(list))
	ids := regexp.MustCompile(`"id":"([^"]+)"`).FindAllStringSubmatch(string(list), -1)
	if len(ids) < 4 {
		t.Errorf("%d operations are in the history, want 4", len(ids))
	}
	for _, found := range ids {
		id := found[1]
		noCanary(t, "history "+id, string(a.mustAsk("history", `{"id":"`+id+`"}`)))
	}
	sameFiles(t, before, configuration(t, l))
}

// lenientSudo has sudo pass on what its caller says, as some sudoers files do.
func lenientSudo(t *testing.T, l *lab.Lab) {
	t.Helper()
	writeOnLB(t, l, "/etc/sudoers.d/zz-lenient", "Defaults:deploy !secure_path, !env_reset, setenv\nDefaults:deploy env_keep+=\"PATH LD_PRELOAD NGINX GODEBUG\"\n", 0o440)
}

// "Its caller chooses neither the programs that the agent runs nor their environment":
// where sudo passes on PATH and the rest, they decide nothing.
func TestCallerCannotChooseTheProgramsTheAgentRuns(t *testing.T) {
	l := labFor(t)
	lenientSudo(t, l)
	const mark, dir = "/tmp/owned", "/tmp/evil"
	writeOnLB(t, l, "/etc/drainctl.yaml", "nginx: {test-command: \"sh -c 'env >/tmp/env; pwd >>/tmp/env; umask >>/tmp/env; nginx -t'\"}\n", 0o644)
	t.Cleanup(func() {
		_, _ = l.LB.Run(context.Background(), "rm", "-rf", "/etc/drainctl.yaml", dir, mark, "/tmp/env")
	})
	for _, name := range []string{"nginx", "ss", "getent", "journalctl", "systemctl", "sh", "env"} {
		writeOnLB(t, l, dir+"/"+name, "#!/bin/sh\ntouch "+mark+"\nPATH=/usr/sbin:/usr/bin exec "+name+" \"$@\"\n", 0o755)
	}
	line := "cd " + dir + " && umask 0 && exec sudo -n PATH=" + dir + ":.:/usr/bin LD_PRELOAD=" + dir + "/x.so 'NGINX=3;4;' GODEBUG=gctrace=1 GOGC=off MINE=1 /usr/bin/drainctl agent"
	a := attackWith(t, l, lab.As(lab.DeployUser, "/bin/sh", "-c", line)...)
	a.drainAs(specWith(""))
	a.ask("connections", `{"servers":[{"module":"http","upstream":"backend_servers","address":"192.168.1.10:8080"}],"held":true}`)
	if out, err := l.LB.Run(t.Context(), "ls", mark); err == nil {
		t.Errorf("the agent ran the caller's program: %s", out)
	}
	env := mustRun(t, l.LB, "cat", "/tmp/env")
	for word := range strings.FieldsSeq(env) {
		name, _, _ := strings.Cut(word, "=")
		switch {
		case slices.Contains([]string{"SUDO_UID", "SUDO_GID", "SUDO_USER", "PWD", "SHLVL", "_", "OLDPWD"}, name): // sudo's, and the shell's own
		case slices.Contains([]string{"LC_ALL=C", "/", "0022"}, word):
		case name == "PATH" && !strings.Contains(word, dir):
		default:
			t.Errorf("the agent's commands have %s", word)
		}
	}
	if strings.Contains(a.stderr.String(), "gc 1 ") {
		t.Error("GODEBUG of the caller holds")
	}
}

// "Nor its limits": those that the caller has set are not the agent's. Where root may not
// raise them, as on a machine without CAP_SYS_RESOURCE, the agent refuses to start with
// limits that it cannot work with.
func TestCallerCannotStarveTheAgent(t *testing.T) {
	l := labFor(t)
	for option, reset := range map[string]string{
		"--fsize=512:512": "Max file size unlimited unlimited", "--nofile=48:48": "Max open files 65536 65536",
		"--cpu=20:20": "Max cpu time unlimited unlimited", "--stack=1048576:1048576": "Max stack size 8388608 unlimited",
	} {
		const script = `sleep 5 | sudo -n /usr/bin/drainctl agent 2>&1 & sleep 3; sed -n 's/  */ /gp' /proc/$(pgrep -x drainctl)/limits; wait`
		out := mustRun(t, l.LB, lab.As(lab.DeployUser, "prlimit", option, "sh", "-c", script)...)
		t.Logf("%s: %s", option, out)
		if !strings.Contains(out, reset) && !strings.Contains(out, "and root may not raise that") {
			t.Errorf("%s: the limit is not %s, and the agent does not refuse: %s", option, reset, out)
		}
	}
	a := attackWith(t, l, lab.As(lab.DeployUser, "prlimit", "--fsize=512:unlimited", "--nofile=48:20000", "--cpu=20:unlimited", "--stack=1048576:unlimited",
		"nice", "-n", "19", "ionice", "-c", "3", "taskset", "-c", "0", "chrt", "--idle", "0",
		"sh", "-c", "echo 1000 >/proc/self/oom_score_adj; echo 1000000000000000 >/proc/$$/timerslack_ns; exec sudo -n /usr/bin/drainctl agent")...)
	pid := agentPID(t, l)
	if nice := strings.Fields(mustRun(t, l.LB, "ps", "-o", "ni=,comm=", "-p", pid)); nice[0] != "0" || nice[1] != "drainctl" {
		t.Errorf("the agent's nice value and name are %s", nice)
	}
	if score := strings.TrimSpace(mustRun(t, l.LB, "cat", "/proc/"+pid+"/oom_score_adj")); score != "0" {
		t.Errorf("oom_score_adj is %s", score)
	}
	if slack := strings.TrimSpace(mustRun(t, l.LB, "cat", "/proc/"+pid+"/timerslack_ns")); slack != "50000" {
		t.Errorf("the timer slack is %s ns", slack)
	}
	if class := mustRun(t, l.LB, "ionice", "-p", pid); strings.Contains(class, "idle") {
		t.Errorf("the I/O priority is %s", class)
	}
	if policy := mustRun(t, l.LB, "chrt", "-p", pid); !strings.Contains(policy, "SCHED_OTHER") {
		t.Errorf("the scheduling is %s", policy)
	}
	cpus := func(pid string) string {
		return mustRun(t, l.LB, "grep", "Cpus_allowed_list", "/proc/"+pid+"/status")
	}
	if got, want := cpus(pid), cpus("self"); got != want {
		t.Errorf("the agent may run on %s, and root on %s", got, want)
	}
	a.drainAs(specWith("")) // files of more than 512 bytes
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
}

// A terminal is a shell with job control that deploy types to.
type terminal struct {
	*typed
	in io.WriteCloser
}

func openTerminal(t *testing.T, l *lab.Lab) terminal {
	t.Helper()
	c := &typed{t: t, l: l, line: "a terminal", cancel: func() {}, stdout: &screen{}, stderr: &screen{}}
	c.cmd = l.LB.Command(t.Context(), lab.As(lab.DeployUser, "script", "-qfc", "bash --norc -i", "/dev/null")...)
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	in, err := c.cmd.StdinPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.LB.Signal(c.cmd, unix.SIGKILL)
		_ = c.cmd.Wait()
	})
	return terminal{c, in}
}

func (c terminal) types(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, text); err != nil {
		c.t.Fatal(err)
	}
}

const lockApp1 = `{"id":1,"method":"lock","params":{"backends":["192.168.1.10"],"holder":{"name":"","kind":"drain","user":"x","host":"y","reason":"z","time":"2026-01-01T00:00:00Z"}}}`

// "An agent whose client is silent for 30 s ends, and its locks with it": a key that stops
// the commands of a terminal does not stop the agent.
func TestCallerCannotHoldALockInSilence(t *testing.T) {
	l := labFor(t)
	c := openTerminal(t, l)
	c.types(`(echo '` + lockApp1 + `'; while sleep 3; do echo '{"id":0,"method":"ping","params":{}}'; done) | sudo -n /usr/bin/drainctl agent` + "\n")
	c.until(`"result":true`)
	time.Sleep(40 * time.Second) // while it is heard it has the lock
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 4, "is locked by", "deploy (uid ")
	c.types("\x1a")
	eventually(t, "the terminal has stopped its commands", func() bool { return strings.Contains(c.stdout.String(), "Stopped") })
	time.Sleep(40 * time.Second)
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0, "is drained")
}

// "An edit that nobody loads does not stay": neither does it when the caller's terminal
// interrupts the agent.
func TestCallerCannotInterruptAnEdit(t *testing.T) {
	l := labFor(t)
	before := configuration(t, l)
	for _, key := range []string{"\x03", "\x1c"} { // Ctrl-C and Ctrl-\
		id := newID()
		s, sha := attack(t, l).planOfApp1()
		stage := fmt.Sprintf(`{"id":2,"method":"stage","params":{"files":{%q:%q},"wants":[{"want":"out","servers":[{"module":%q,"upstream":%q,"address":%q}]}]}}`, s.File, sha, s.Module, s.Upstream, s.Address)
		begin := `{"id":1,"method":"begin","params":` + oneLine(planted(id, specWith(""))) + `}`
		writeOnLB(t, l, "/tmp/begin", begin+"\n", 0o644)
		writeOnLB(t, l, "/tmp/edit", stage+"\n", 0o644)
		mustRun(t, l.LB, "rm", "-f", "/tmp/begun")
		c := openTerminal(t, l)
		// The agent answers calls side by side: the edit waits for the operation.
		c.types("(cat /tmp/begin; until test -e /tmp/begun; do sleep 0.1; done; cat /tmp/edit; sleep 100) | sudo -n /usr/bin/drainctl agent\n")
		c.until(`"id":1,"result":true`)
		mustRun(t, l.LB, "touch", "/tmp/begun")
		c.until(`"edited"`)
		c.types(key)
		eventually(t, "the agent has ended", func() bool { _, err := l.LB.Run(t.Context(), "pgrep", "-x", "drainctl"); return err != nil })
		sameFiles(t, before, configuration(t, l))
	}
}

// planOfApp1 is the server line of app1, and the hash of its file.
func (a *attackAgent) planOfApp1() (s struct{ Module, Upstream, Address, File string }, sha string) {
	a.t.Helper()
	var report struct {
		Files   map[string]string
		Servers []struct{ Module, Upstream, Address, File string }
	}
	if err := json.Unmarshal(a.mustAsk("plan", `{"targets":["192.168.1.10"],"want":"out"}`), &report); err != nil {
		a.t.Fatal(err)
	}
	a.close()
	return report.Servers[0], report.Files[report.Servers[0].File]
}

// agentPID is the process of the only agent on the load balancer.
func agentPID(t *testing.T, l *lab.Lab) string {
	t.Helper()
	return strings.TrimSpace(mustRun(t, l.LB, "pgrep", "-x", "drainctl"))
}

// lockOf is a request for the lock of a backend, with a reason of a size.
func lockOf(id int, backend string, size int) string {
	return fmt.Sprintf(`{"id":%d,"method":"lock","params":{"backends":[%q],"wait_ns":-1,"holder":{"name":"","kind":"drain","user":"x","host":"y","reason":"%s"}}}`, id, backend, strings.Repeat("x", size))
}

// "The memory of an agent is bounded": calls that wait count, and their bytes, even if
// they were cancelled.
func TestCallerCannotFillTheMemory(t *testing.T) {
	l := labFor(t)
	a := attack(t, l)
	pid := agentPID(t, l)
	holder := attackWith(t, l, "drainctl", "agent")
	if err := holder.send(lockApp1); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := a.send(lockOf(1, "192.168.1.10", 10)); err != nil { // waits, and everything after it
		t.Fatal(err)
	}
	for id := 2; id <= 61; id++ {
		if err := a.send(lockOf(id, "192.168.1.10", 1900<<10) + "\n" + fmt.Sprintf(`{"id":%d,"method":"cancel","params":{}}`, id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.send(`{"id":999,"method":"none","params":{}}`); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for line := ""; !strings.Contains(line, `"id":999,`); refused++ {
		var err error
		if line, err = a.out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	memory := 0
	if _, err := fmt.Sscan(strings.Fields(mustRun(t, l.LB, "grep", "VmHWM", "/proc/"+pid+"/status"))[1], &memory); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of 60 calls are refused; the agent took %d KiB at most", refused-1, memory)
	if refused-1 < 57 || memory > 100<<10 {
		t.Errorf("%d of 60 calls are refused; the agent took %d KiB at most", refused-1, memory)
	}
}

// "Locks are bounded", and leave no file.
func TestCallerCannotTakeManyLocks(t *testing.T) {
	l := labFor(t)
	a := attack(t, l)
	names := func(from, n int) string {
		var all []string
		for i := from; i < from+n; i++ {
			all = append(all, fmt.Sprintf("10.9.%d.%d", i/256, i%256))
		}
		text, _ := json.Marshal(all)
		return `{"backends":` + string(text) + `,"holder":{"name":"","kind":"drain","user":"x","host":"y"}}`
	}
	if _, refusal := a.ask("lock", names(0, 5000)); !strings.Contains(refusal, "at most") {
		t.Errorf("5,000 locks in one call: %q", refusal)
	}
	a.mustAsk("lock", names(0, 900))
	if _, refusal := a.ask("lock", names(900, 900)); !strings.Contains(refusal, "at most") {
		t.Errorf("1,800 locks in two calls: %q", refusal)
	}
	for _, name := range []string{"../../x", "a b", strings.Repeat("x", 250) + ".com", `\u001b[2J`} {
		if _, refusal := a.ask("lock", `{"backends":["`+name+`"],"holder":{"name":""}}`); refusal == "" {
			t.Errorf("%.20q is locked", name)
		}
	}
	a.close()
	eventually(t, "no lock file is left", func() bool {
		out, _ := l.LB.Run(t.Context(), "ls", "/var/lib/drainctl/locks")
		return strings.TrimSpace(out) == ""
	})
}

// "A client that reads nothing for 30 s loses its agent, and its locks": also one that
// says all the time that it is there, or sends an endless message.
func TestCallerCannotHoldALockWithoutReading(t *testing.T) {
	l := labFor(t)
	a := attack(t, l)
	if _, err := unix.FcntlInt(a.pipe.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	a.mustAsk("lock", `{"backends":["192.168.1.10"],"holder":{"name":"","kind":"drain","user":"x","host":"y"}}`)
	for id := 100; id < 108; id++ {
		if err := a.send(fmt.Sprintf(`{"id":%d,"method":"plan","params":{}}`, id)); err != nil {
			t.Fatal(err)
		}
	}
	gone := a.pings()
	select {
	case <-gone:
	case <-time.After(90 * time.Second):
		t.Error("the agent goes on for 90 s")
	}
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0, "is drained")
}

// pings says that the client is there until the agent has ended; then gone is closed.
func (a *attackAgent) pings() (gone <-chan struct{}) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for a.send(`{"id":0,"method":"ping","params":{}}`) == nil && a.t.Context().Err() == nil {
			time.Sleep(time.Second)
		}
	}()
	return ended
}

// "Who waits for a client keeps no other from the journal": a message that never ends holds
// up nobody, but for the backend that its sender has locked.
func TestCallerCannotKeepTheJournal(t *testing.T) {
	l := labFor(t)
	a := attack(t, l)
	a.mustAsk("lock", `{"backends":["192.168.1.11"],"holder":{"name":"","kind":"drain","user":"x","host":"y"}}`)
	a.mustAsk("begin", oneLine(planted(newID(), specWith(""))))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for { // one byte a second of a message that does not end
			if _, err := io.WriteString(a.in, " "); err != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 0, "is drained")
	drainctl(t, l, "undrain", "192.168.1.10").wants(t, 0, "is back")
	drainctl(t, l, "drain", "192.168.1.11").wants(t, 4, "is locked by drain by x on y, recorded as deploy (uid ")
}
