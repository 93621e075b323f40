package lab_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"testing"

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
