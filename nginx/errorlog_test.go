package nginx

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestLoadFailureLines(t *testing.T) {
	const zone = `2026/01/02 03:04:05 [emerg] 7#7: limit_req "one" uses the "$uri" key while previously it used the "$binary_remote_addr" key`
	const bind = `2026/01/02 03:04:05 [emerg] 7#7: bind() to 127.0.0.1:81 failed (98: Address already in use)`
	const still = `2026/01/02 03:04:07 [emerg] 7#7: still could not bind()`
	cases := []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"other levels", "2026/01/02 03:04:05 [error] 7#7: x\n2026/01/02 03:04:05 [notice] 7#7: signal 1 (SIGHUP) received, reconfiguring\n", ""},
		{"a zone", "2026/01/02 03:04:05 [notice] 7#7: reconfiguring\n" + zone + "\n", zone},
		{"CRLF", zone + "\r\n", zone},
		{"no newline at the end", zone, zone},
		{"another process", strings.ReplaceAll(zone, "7#7", "77#77") + "\n" + strings.ReplaceAll(zone, "7#7", "17#17"), ""},
		{"a bind that may still work", bind + "\n" + bind + "\n", ""},
		{"a bind that did not", strings.Repeat(bind+"\n", 5) + still + "\n", bind},
		{"only the end of a bind that did not", still + "\n", still},
		{"a request that quotes one", `2026/01/02 03:04:05 [error] 9#9: *1 open() failed, referrer: "` + zone + `"`, ""},
		{"a bind that worked, then a zone", bind + "\n" + zone + "\n", zone},
	}
	for _, c := range cases {
		if got := loadFailure(c.log, 7); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLoadFailureSinceMark(t *testing.T) {
	dir := t.TempDir()
	logs := []string{dir + "/a log", dir + "/-b"}
	write(t, dir, map[string]string{"a log": "2026/01/02 03:04:05 [emerg] 7#7: old\n"})
	marks := Binary{}.markLogs(logs, 7)
	if got := marks.loadFailure(t.Context(), 7); got != "" {
		t.Errorf("nothing was written, and it says %q", got)
	}
	for i, name := range []string{"a log", "-b"} {
		f, err := os.OpenFile(dir+"/"+name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("2026/01/02 03:04:05 [emerg] 7#7: new\n"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if got, want := marks.loadFailure(t.Context(), 7), "2026/01/02 03:04:05 [emerg] 7#7: new"; got != want {
			t.Errorf("log %d: it says %q, want %q", i, got, want)
		}
		marks = Binary{}.markLogs(logs, 7)
	}
	odd := Binary{}.markLogs([]string{"/dev/stderr", "/dev/stdout", dir, "/nowhere/log"}, 7)
	if got := odd.loadFailure(t.Context(), 7); got != "" {
		t.Errorf("logs that are no files, and it says %q", got)
	}
	if got := (Binary{}).markLogs(nil, os.Getpid()).loadFailure(t.Context(), 7); got != "" {
		t.Errorf("no logs, and it says %q", got)
	}
}

// An nginx that logs to systemd's journal costs a reload no journalctl, unless the load fails:
// it is then asked for what was logged since the reload.
func TestJournalIsAskedAfterAFailure(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"7/cgroup":       "0::/system.slice/nginx.service\n",
		"bin/journalctl": fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s/calls\necho '2026/01/02 03:04:05 [emerg] 7#7: new'\n", dir),
	})
	if err := os.Chmod(dir+"/bin/journalctl", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+"/bin")
	began := time.Now()
	marks := Binary{proc: dir}.markLogs(nil, 7)
	ended := time.Now()
	if calls, err := os.ReadFile(dir + "/calls"); err == nil {
		t.Errorf("journalctl was run before the reload: %s", calls)
	}
	if got, want := marks.loadFailure(t.Context(), 7), "2026/01/02 03:04:05 [emerg] 7#7: new"; got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	calls, err := os.ReadFile(dir + "/calls")
	var seconds, micros int64
	if _, scanErr := fmt.Sscanf(string(calls), "-q -o cat -u nginx.service -n 1000 --since=@%d.%06d\n", &seconds, &micros); err != nil || scanErr != nil {
		t.Fatalf("journalctl was asked %q: %v, %v", calls, err, scanErr)
	}
	if since := time.Unix(seconds, micros*1000); since.Before(began.Truncate(time.Microsecond)) || since.After(ended) {
		t.Errorf("journalctl was asked since %s, and the reload was between %s and %s", since, began, ended)
	}
}
