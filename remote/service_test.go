package remote

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestService(t *testing.T) {
	t.Parallel()
	unit := func(text string) string { return "[Service]\n" + text + "\n" }
	c := startContainer(t, map[string]string{
		"etc/systemd/system/my-web-app.service": unit("ExecStart=/bin/sh -c 'echo hello from the app; exec sleep infinity'"),
		"etc/systemd/system/broken.service":     unit("Type=oneshot\nExecStart=/bin/sh -c 'echo it went wrong >&2; exit 3'"),
		"etc/systemd/system/stubborn.service":   unit("TimeoutStopSec=1\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'"),
		"etc/systemd/system/awkward.service":    "[Unit]\nRefuseManualStart=yes\nRefuseManualStop=yes\n" + unit("KillMode=process\nExecStart=/bin/sleep infinity"),
		`etc/systemd/system/wakes\x2dit.socket`: "[Socket]\nListenStream=127.0.0.1:1234\nService=my-web-app.service\n",
		"etc/systemd/system/bad.service":        unit("Type=simple"),
	})
	root, web, none := c.connect(t, "root"), c.connect(t, webUser), c.connect(t, noUser)
	state := func(t *testing.T, h Host, name, want string) {
		t.Helper()
		s, err := Service{Host: h, Unit: name}.State(limit(t, time.Minute))
		got := strings.Join([]string{s.Load, s.Active, s.Sub, s.Result}, " ")
		if err != nil || got != want {
			t.Errorf("%s: %s, %v, not %s", name, got, err, want)
		}
	}
	// The root of the container, and a user who may just do this.
	for _, h := range []Host{root, web} {
		t.Run("start and stop as "+h.User(), func(t *testing.T) {
			s := Service{Host: h, Unit: "my-web-app"}
			if err := s.SudoCheck(limit(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			state(t, h, "my-web-app", "loaded inactive dead success")
			for range 2 { // the second time nothing is to be done
				if err := s.Start(limit(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				state(t, h, "my-web-app", "loaded active running success")
				state(t, h, "my-web-app.service", "loaded active running success")
			}
			for range 2 {
				if err := s.Stop(limit(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				state(t, h, "my-web-app", "loaded inactive dead success")
			}
		})
	}
	t.Run("not there", func(t *testing.T) {
		s := Service{Host: root, Unit: "nowhere"}
		if _, err := s.State(limit(t, time.Minute)); !errors.Is(err, ErrNoUnit) {
			t.Errorf("state: %v", err)
		}
		if err := s.Start(limit(t, time.Minute)); !errors.Is(err, ErrNoUnit) {
			t.Errorf("start: %v", err)
		}
		if err := s.Stop(limit(t, time.Minute)); !errors.Is(err, ErrNoUnit) {
			t.Errorf("stop: %v", err)
		}
	})
	t.Run("masked", func(t *testing.T) {
		state(t, root, "masked", "masked inactive dead success")
		if err := (Service{Host: root, Unit: "masked"}).Start(limit(t, time.Minute)); err == nil || errors.Is(err, ErrNoUnit) || !strings.Contains(err.Error(), "masked") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("what decides", func(t *testing.T) {
		if r := sh(t, root, `systemctl start 'wakes\x2dit.socket'`); r.Code != 0 {
			t.Fatal(r.Err())
		}
		defer sh(t, root, `systemctl stop 'wakes\x2dit.socket'`)
		for name, want := range map[string]ServiceState{
			"my-web-app": {Load: "loaded", File: "static", CanStart: "yes", CanStop: "yes", KillMode: "control-group", Starters: []string{`wakes\x2dit.socket`}},
			"awkward":    {Load: "loaded", File: "static", CanStart: "no", CanStop: "no", KillMode: "process"},
			"bad":        {Load: "bad-setting", File: "static", CanStart: "no", CanStop: "yes", KillMode: "control-group"},
			"masked":     {Load: "masked", File: "masked", CanStart: "no", CanStop: "yes", KillMode: "control-group"},
		} {
			s, err := Service{Host: web, Unit: name}.State(limit(t, time.Minute))
			s.Active, s.Sub, s.Result = "", "", ""
			if err != nil || !reflect.DeepEqual(s, want) {
				t.Errorf("%s: %+v, %v, want %+v", name, s, err, want)
			}
		}
	})
	t.Run("a failing start", func(t *testing.T) {
		err := Service{Host: root, Unit: "broken"}.Start(limit(t, time.Minute))
		if err == nil {
			t.Fatal("no error")
		}
		for _, words := range []string{"start broken on root@", "control process exited with error code", "broken is failed (failed), result: exit-code"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("no %q in: %v", words, err)
			}
		}
		log, err := Service{Host: root, Unit: "broken"}.Logs(limit(t, time.Minute), 10)
		if err != nil || !strings.Contains(log, "it went wrong") {
			t.Errorf("%q, %v", log, err)
		}
		state(t, root, "broken", "loaded failed failed exit-code")
	})
	t.Run("killed at stop", func(t *testing.T) {
		s := Service{Host: root, Unit: "stubborn"}
		if err := s.Start(limit(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(limit(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		state(t, root, "stubborn", "loaded failed failed timeout")
	})
	t.Run("without the right", func(t *testing.T) {
		s := Service{Host: web, Unit: "stubborn"}
		rule := webUser + " ALL=(root) NOPASSWD: /usr/bin/systemctl start stubborn, /usr/bin/systemctl stop stubborn"
		checkRefusal(t, s.SudoCheck(limit(t, time.Minute)), false, SudoDenied, rule)
		checkRefusal(t, Service{Host: none, Unit: "x"}.SudoCheck(limit(t, time.Minute)), false, SudoPassword,
			noUser+" ALL=(root) NOPASSWD: /usr/bin/systemctl start x, /usr/bin/systemctl stop x")
		checkRefusal(t, Service{Host: none, Unit: "x"}.Stop(limit(t, time.Minute)), false, SudoPassword, "")
	})
	t.Run("logs", func(t *testing.T) {
		log, err := Service{Host: root, Unit: "my-web-app"}.Logs(limit(t, time.Minute), 5)
		if err != nil || !strings.Contains(log, "hello from the app") && !strings.Contains(log, "my-web-app") {
			t.Errorf("%q, %v", log, err)
		}
		if n := strings.Count(log, "\n"); n > 4 {
			t.Errorf("%d lines", n+1)
		}
		// One who may not read the journal sees the state at least.
		log, err = Service{Host: none, Unit: "my-web-app"}.Logs(limit(t, time.Minute), 5)
		if err != nil || !strings.Contains(log, "my-web-app.service") {
			t.Errorf("%q, %v", log, err)
		}
		if log, err := (Service{Host: root, Unit: "nowhere"}).Logs(limit(t, time.Minute), 5); err == nil {
			t.Errorf("of a unit that is not there: %q", log)
		}
	})
	t.Run("stopping takes longer than anybody waits", func(t *testing.T) {
		admin(t, `sed -i s/TimeoutStopSec=1/TimeoutStopSec=30/ "$1/etc/systemd/system/stubborn.service"`, c.root)
		if r := sh(t, root, "systemctl daemon-reload"); r.Code != 0 {
			t.Fatal(r.Err())
		}
		s := Service{Host: root, Unit: "stubborn"}
		if err := s.Start(limit(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := s.Stop(limit(t, time.Second)); err == nil || time.Since(begin) > 20*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		state(t, root, "stubborn", "loaded deactivating stop-sigterm success")
	})
}

func TestValidUnit(t *testing.T) {
	for _, good := range []string{"my-web-app", "my-web-app.service", "app@1.service", `a\x2db.service`, "a:b_c", "A.socket"} {
		if err := ValidUnit(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-x", "--now", "a b", "a*", "a?", "[a]", "a/b", "a;b", "a\n", "$(id)", "ä", strings.Repeat("a", 256)} {
		if err := ValidUnit(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
		if err := (Service{Host: Local(nil), Unit: bad}).Stop(limit(t, time.Minute)); err == nil {
			t.Errorf("%q: stopped", bad)
		}
	}
}

// TestNoSystemd is a machine whose init is something else.
func TestNoSystemd(t *testing.T) {
	needRoot(t)
	bin := place(t)
	write(t, bin+"/systemctl", "#!/bin/sh\necho 'System has not been booted with systemd as init system (PID 1). Can'\"'\"'t operate.' >&2\nexit 1\n")
	admin(t, `chmod 755 "$1/systemctl"; ln -s "$(command -v sh)" "$1/sh"`, bin)
	h := pathHost{bare{Local(nil)}, bin}
	if _, err := (Service{Host: h, Unit: "x"}).State(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "has not been booted with systemd") {
		t.Errorf("got %v", err)
	}
	admin(t, `rm "$1/systemctl"`, bin)
	if _, err := (Service{Host: h, Unit: "x"}).State(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "127") {
		t.Errorf("got %v", err)
	}
}
