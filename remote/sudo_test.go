package remote

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestSudo(t *testing.T) {
	makeUsers(t)
	s := startServer(t, serverOptions{})
	web, none, op := s.connect(t, webUser), s.connect(t, noUser), s.connect(t, opUser)
	for _, c := range []struct {
		name string
		host Host
		args []string
		ok   bool
		want SudoProblem
		rule string
	}{
		{"root", Local(nil), []string{"anything"}, true, 0, ""},
		{"root over ssh", s.connect(t, "root"), []string{"anything"}, true, 0, ""},
		{"everything is allowed", op, []string{"systemctl", "stop", "my-web-app"}, true, 0, ""},
		{"this is allowed", web, []string{"systemctl", "stop", "my-web-app"}, true, 0, ""},
		{"and this", web, []string{"systemctl", "start", "my-web-app"}, true, 0, ""},
		{"another unit", web, []string{"systemctl", "stop", "other"}, false, SudoDenied,
			webUser + " ALL=(root) NOPASSWD: /usr/bin/systemctl stop other"},
		{"another verb", web, []string{"systemctl", "restart", "my-web-app"}, false, SudoDenied, ""},
		{"more arguments", web, []string{"systemctl", "stop", "my-web-app", "--force"}, false, SudoDenied, ""},
		{"with a password", web, []string{"id"}, false, SudoPassword, webUser + ` ALL=(root) NOPASSWD: /usr/bin/id ""`},
		{"nothing is allowed", none, []string{"systemctl", "stop", "a:b,c"}, false, SudoPassword,
			noUser + ` ALL=(root) NOPASSWD: /usr/bin/systemctl stop a\:b\,c`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := SudoCheck(limit(t, time.Minute), c.host, c.args...)
			checkRefusal(t, err, c.ok, c.want, c.rule)
		})
	}
	t.Run("it does not exist", func(t *testing.T) {
		var failed *ExitError
		if err := SudoCheck(limit(t, time.Minute), op, "drainctl-no-such-command"); !errors.As(err, &failed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("run", func(t *testing.T) {
		_, err := none.Run(limit(t, time.Minute), Command{Args: []string{"id"}, Root: true})
		checkRefusal(t, err, false, SudoPassword, noUser+` ALL=(root) NOPASSWD: /usr/bin/id ""`)
		_, err = web.Run(limit(t, time.Minute), Command{Args: []string{"systemctl", "stop", "other"}, Root: true})
		checkRefusal(t, err, false, SudoPassword, "")
		// What a command says itself is not sudo's refusal.
		r, err := op.Run(limit(t, time.Minute), Command{Args: []string{"sh", "-c", "echo a password is required >&2; exit 1"}, Root: true})
		if err != nil || r.Code != 1 {
			t.Errorf("%d, %v", r.Code, err)
		}
		// A sudo rule by arguments must match exactly what is run.
		r, err = web.Run(limit(t, time.Minute), Command{Args: []string{"systemctl", "stop", "my-web-app"}, Root: true})
		if err != nil {
			t.Errorf("an allowed command: %v", err)
		} else if r.Code == 0 {
			t.Log("systemctl works here")
		}
	})
	t.Run("the rule helps", func(t *testing.T) {
		var refused *SudoError
		if err := SudoCheck(limit(t, time.Minute), none, "systemctl", "stop", `odd\x2dname@1:2.service`); !errors.As(err, &refused) {
			t.Fatalf("got %v", err)
		}
		if err := os.WriteFile("/etc/sudoers.d/"+noUser, []byte(refused.Rule()+"\n"), 0o440); err != nil {
			t.Fatal(err)
		}
		defer os.Remove("/etc/sudoers.d/" + noUser)
		run(t, "visudo", "-c", "-q")
		if err := SudoCheck(limit(t, time.Minute), none, "systemctl", "stop", `odd\x2dname@1:2.service`); err != nil {
			t.Error(err)
		}
		if err := SudoCheck(limit(t, time.Minute), none, "systemctl", "stop", "other"); err == nil {
			t.Error("the rule allows more than it should")
		}
		for _, c := range []string{"*", "?", "[a]", "]", "!", `"`, "#", " ", ",", "=", ":", "'", "(", "%", "@", "+", "~", "\\"} {
			refused.Commands = [][]string{{"/usr/bin/echo", "a" + c + "b"}}
			if err := os.WriteFile("/etc/sudoers.d/"+noUser, []byte(refused.Rule()+"\n"), 0o440); err != nil {
				t.Fatal(err)
			}
			if err := SudoCheck(limit(t, time.Minute), none, "echo", "a"+c+"b"); err != nil {
				t.Error(err)
			}
			if err := SudoCheck(limit(t, time.Minute), none, "echo", "axb"); err == nil {
				t.Errorf("the rule for %q allows more", c)
			}
		}
	})
	t.Run("other rules", func(t *testing.T) {
		defer os.Remove("/etc/sudoers.d/" + noUser)
		for rules, ok := range map[string]bool{
			"Defaults:U !authenticate\nU ALL=(root) /usr/bin/systemctl":                                           true,
			"U ALL=(root) NOPASSWD: /usr/bin/systemctl stop *":                                                    true,
			"Defaults:U !authenticate\nU ALL=(root) PASSWD: /usr/bin/systemctl":                                   false,
			"U ALL=(ALL:ALL) NOPASSWD: ALL":                                                                       true,
			"U ALL=(ALL:ALL) NOPASSWD: ALL\nU ALL=(root) PASSWD: /usr/bin/systemctl":                              false,
			"U ALL=(root) PASSWD: ALL\nU ALL=(root) NOPASSWD: /usr/bin/systemctl stop my-web-app":                 true,
			"U ALL=(root) NOPASSWD: /usr/bin/id\nU ALL=(root) PASSWD: /usr/bin/systemctl stop my-web-app":         false,
			"U ALL=(root) NOPASSWD: /usr/bin/id, PASSWD: /usr/bin/":                                               false,
			"U ALL=(nobody) NOPASSWD: ALL":                                                                        false,
			"U ALL=(root) NOPASSWD: ALL, !/usr/bin/systemctl":                                                     false,
			"Cmnd_Alias WEB = /usr/bin/systemctl stop my-web-app, /usr/bin/id\nU ALL=(root) NOPASSWD: WEB":        true,
			"U ALL=(root) NOPASSWD: /usr/bin/id, /bin/systemctl stop my-web-app, /bin/systemctl start my-web-app": true,
		} {
			text := strings.ReplaceAll(rules, "U ", noUser+" ")
			if err := os.WriteFile("/etc/sudoers.d/"+noUser, []byte(text+"\n"), 0o440); err != nil {
				t.Fatal(err)
			}
			err := SudoCheck(limit(t, time.Minute), none, "systemctl", "stop", "my-web-app")
			var refused *SudoError
			if ok != (err == nil) || !ok && !errors.As(err, &refused) {
				t.Errorf("%s: %v", text, err)
			}
			// The check and the run must agree.
			_, err = none.Run(limit(t, time.Minute), Command{Args: []string{"systemctl", "stop", "my-web-app"}, Root: true})
			if ok != (err == nil) {
				t.Errorf("%s: run: %v", text, err)
			}
		}
	})
	t.Run("both verbs of a service", func(t *testing.T) {
		defer os.Remove("/etc/sudoers.d/" + noUser)
		const stop, start = "/usr/bin/systemctl stop my-web-app", "/usr/bin/systemctl start my-web-app"
		for allowed, ok := range map[string]bool{stop: false, start: false, stop + ", " + start: true} {
			if err := os.WriteFile("/etc/sudoers.d/"+noUser, []byte(noUser+" ALL=(root) NOPASSWD: "+allowed+"\n"), 0o440); err != nil {
				t.Fatal(err)
			}
			err := Service{Host: none, Unit: "my-web-app"}.SudoCheck(limit(t, time.Minute))
			checkRefusal(t, err, ok, SudoDenied, noUser+" ALL=(root) NOPASSWD: "+start+", "+stop)
		}
	})
	t.Run("a stream", func(t *testing.T) {
		args := []string{"/usr/bin/drainctl", "agent"}
		stream, err := none.Start(limit(t, time.Minute), Command{Args: args, Root: true})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		code, err := stream.Wait()
		if err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, Refusal(none, args, Result{Code: code, Stderr: []byte(stream.Stderr())}), false, SudoPassword,
			noUser+" ALL=(root) NOPASSWD: /usr/bin/drainctl agent")
	})
}

func checkRefusal(t *testing.T, err error, ok bool, want SudoProblem, rule string) {
	t.Helper()
	if ok {
		if err != nil {
			t.Error(err)
		}
		return
	}
	var refused *SudoError
	if !errors.As(err, &refused) || refused.Problem != want {
		t.Errorf("got %v", err)
		return
	}
	if rule != "" && (refused.Rule() != rule || !strings.Contains(err.Error(), rule)) {
		t.Errorf("rule %q, not %q, in: %v", refused.Rule(), rule, err)
	}
}

func TestNoSudo(t *testing.T) {
	needRoot(t)
	bin := place(t)
	run(t, "sh", "-c", `for t in env sh id; do ln -s "$(command -v $t)" "$1/$t"; done`, "sh", bin)
	h := pathHost{bare{Local(nil)}, bin}
	err := SudoCheck(limit(t, time.Minute), h, "systemctl", "stop", "x")
	checkRefusal(t, err, false, SudoMissing, "")
	if !strings.Contains(err.Error(), "install it") {
		t.Error(err)
	}
}

// bare is this machine as an unprivileged user would see it.
type bare struct{ Host }

func (bare) User() string { return "somebody" }

// pathHost runs everything with another PATH, and says that it is not root.
type pathHost struct {
	Host
	path string
}

func (h pathHost) Run(ctx context.Context, c Command) (Result, error) {
	if c.Args[0] == "id" {
		return Result{Stdout: []byte("1000\n")}, nil
	}
	c.Args = append([]string{"/usr/bin/env", "PATH=" + h.path}, c.Args...)
	return h.Host.Run(ctx, c)
}

func TestSudoEntries(t *testing.T) {
	// As sudo 1.9.15 and later answer when asked about one command.
	newer := "Sudoers entry: /etc/sudoers.d/web\n    RunAsUsers: root\n    Options: !authenticate\n    Matched: /usr/bin/systemctl stop x\n"
	if e := parseSudoEntries(newer); len(e) != 1 || !passwordless(e, "") {
		t.Errorf("%+v", e)
	}
	asks := strings.Replace(newer, "    Options: !authenticate\n", "", 1)
	if e := parseSudoEntries(asks); len(e) != 1 || passwordless(e, "") {
		t.Errorf("%+v", e)
	}
	for _, c := range []struct {
		rule string
		args string
		want bool
	}{
		{"ALL", "stop x", true},
		{"/usr/bin/systemctl", "stop x", true},
		{"/bin/systemctl stop x", "stop x", true},
		{"/usr/bin/systemctl stop *", "stop x", true},
		{"/usr/bin/", "stop x", true},
		{"/usr/sbin/", "stop x", false},
		{`/usr/bin/systemctl ""`, "stop x", false},
		{`/usr/bin/systemctl ""`, "", true},
		{"/usr/bin/systemctl stop y", "stop x", false},
		{"!/usr/bin/systemctl", "stop x", false},
		{"/usr/bin/*ctl stop [xy]", "stop x", true},
		{`/usr/bin/systemctl stop a\:b`, "stop a:b", true},
		{"/usr/bin/other", "stop x", false},
		{"sudoedit /etc/x", "stop x", false},
	} {
		if got := ruleMatches(c.rule, "/usr/bin/systemctl", strings.Fields(c.args)); got != c.want {
			t.Errorf("%q with %q: %v", c.rule, c.args, got)
		}
	}
}

func FuzzSudoEntries(f *testing.F) {
	f.Add("\nSudoers entry:\n    RunAsUsers: root\n    Options: !authenticate\n    Commands:\n\t/usr/bin/systemctl stop x\n")
	f.Fuzz(func(_ *testing.T, out string) {
		entries := parseSudoEntries(out)
		passwordless(matchingEntries(entries, "/usr/bin/systemctl", []string{"systemctl", "stop", "x"}), out)
	})
}
