package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// A line is parted as a shell does, though a quote in it is still open.
func TestLineWords(t *testing.T) {
	for line, want := range map[string][]string{
		"drainctl":                      {"drainctl"},
		"drainctl ":                     {"drainctl", ""},
		"drainctl drain  a":             {"drainctl", "drain", "a"},
		"drainctl --reason 'two words":  {"drainctl", "--reason", "two words"},
		`drainctl --reason "two w" `:    {"drainctl", "--reason", "two w", ""},
		`drainctl --reason "two 'wo`:    {"drainctl", "--reason", "two 'wo"},
		`drainctl drain \[2001:db8::1`:  {"drainctl", "drain", "[2001:db8::1"},
		`drainctl --reason=it\'s\ late`: {"drainctl", "--reason=it's late"},
		"":                              {""},
	} {
		if got := lineWords(line); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// What cannot be understood, or asked, has no candidates.
func TestNothingToComplete(t *testing.T) {
	s := newSession(nil, nil)
	for _, line := range []string{"", "drainctl", "drainctl nosuch ", "drainctl drain --nosuch ", "drainctl drain --parallel x --group ", "drainctl -- ", "drainctl drain --timeout ", "drainctl drain --reason=", "drainctl agent "} {
		if got := s.complete(t.Context(), newApp(s), line); len(got) != 0 {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// interactive is how each shell is started without the files of its user, and what is
// typed there first.
var interactive = map[string][2]string{
	"bash": {"bash --norc --noprofile -i", "PS1=; source <(drainctl completion bash)"},
	"zsh":  {"zsh -f -i", "PS1=; bindkey -e; autoload -U compinit; compinit -D -u; source <(drainctl completion zsh)"},
}

// typedInShell is a program: it types lines into a shell on a terminal, each with a Tab at its
// end, and prints what each of them has become. fish tells itself.
func typedInShell() {
	shell, lines := os.Args[1], os.Args[2:]
	if shell == "fish" {
		for _, line := range lines {
			cmd := exec.Command("fish", "--no-config", "-c", "drainctl completion fish | source; complete -C $argv[1]", line)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				typedFailed(err)
			}
		}
		return
	}
	cmd := exec.Command("script", "-qefc", interactive[shell][0], os.DevNull)
	keys, err := cmd.StdinPipe()
	if err != nil {
		typedFailed(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		typedFailed(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	// At the beginning of the line (Ctrl-A) it is made one that is only printed.
	const mark = "became:"
	fmt.Fprintf(keys, "%s\r", interactive[shell][1])
	screen := bufio.NewScanner(out)
	for _, line := range lines {
		fmt.Fprintf(keys, "%s\t\x01echo %s\r", line, mark)
		for found := false; !found; {
			if !screen.Scan() {
				typedFailed(fmt.Errorf("%s ended at %q: %w", shell, line, io.ErrUnexpectedEOF))
			}
			var became string
			if _, became, found = strings.Cut("\n"+strings.TrimLeft(screen.Text(), "\r"), "\n"+mark); found {
				fmt.Println(strings.TrimSpace(became))
			}
		}
	}
	fmt.Fprint(keys, "exit\r")
	_ = keys.Close()
	_ = cmd.Wait()
}

func typedFailed(err error) {
	fmt.Fprintln(os.Stderr, "typed:", err)
	os.Exit(1)
}

// A word of a configuration or of a history that a shell would expand, run, or take for a
// flag is no candidate.
func TestPlainWords(t *testing.T) {
	for _, word := range []string{"192.168.1.10:8080", "[2001:db8::1]:80", "unix:/run/app.sock", "my-app@1.service", "bücher.example", "fe80::1%eth0", "--poll=lb"} {
		if !plainWord.MatchString(word) {
			t.Errorf("%q is none", word)
		}
	}
	for _, word := range []string{"", "a b", "$(id)", "`id`", "a;b", "~root", "a\x1b[2J", "a\u202eb", "a\u200bb", "a\xffb", "a\nb", "a\tb", "{a,b}", "a*", "a'b", `a"b`, `a\b`, "a|b", "a&b", "<a", "a#b", "!a", "^a"} {
		if plainWord.MatchString(word) {
			t.Errorf("%q is one", word)
		}
	}
}
