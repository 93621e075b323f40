package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"al.essio.dev/pkg/shellescape"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	programs := map[string]func(){
		"drainctl": func() {
			systemConfig = os.Getenv("SYSTEM_CONFIG")
			os.Exit(runChecked(os.Args))
		},
		// As main starts it, so that an agent isolates itself from its caller.
		"isolated": func() {
			systemConfig = "/no-such/drainctl.yaml"
			os.Exit(Run(os.Args, os.Stdout, os.Stderr))
		},
		"nobody": nobody,
		"typed":  typedInShell,
	}
	syscall.Umask(0o022) // drainctl reads no configuration file that a group can write
	if programs[filepath.Base(os.Args[0])] == nil {
		heedSignals(syscall.SIGINT, syscall.SIGHUP)
		// What the tester has set for other runs is not for these.
		for _, kv := range os.Environ() {
			if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, envPrefix) {
				os.Unsetenv(name)
			}
		}
		// Neither is what the tester's machine has in its configuration files.
		systemConfig = "/no-such/drainctl.yaml"
		os.Setenv("XDG_CONFIG_HOME", "/no-such")
	}
	testscript.Main(m, programs)
}

// heedSignals has the commands that these tests start heed signals, although the tests
// may have been started to ignore them, as nohup and a shell's & do: what is ignored is
// inherited, what is caught is not (signal(7)).
func heedSignals(all ...os.Signal) {
	for _, s := range all {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// TestScript runs testdata/script, where each file is a part of what a person
// at a terminal can expect. Beside testscript's own commands they use
//
//	exits CODE COMMAND…   the command must end with exactly this code
//	nobody COMMAND…       as a user without any rights
//	tty COMMAND…          on a terminal
//	typed SHELL LINE…     each line and a Tab, typed into the shell: prints what it becomes
//	jsonlines             the last output is one JSON object a line
//	needs-root            fails, and says so, where it is not root who tests
//
// and those of live_test.go.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "../testdata/script",
		Cmds:                commands(),
		Setup:               openToAll,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: false,
	})
}

func commands() map[string]func(*testscript.TestScript, bool, []string) {
	all := liveCommands()
	all["exits"], all["tty"], all["jsonlines"], all["needs-root"] = exits, tty, jsonLines, needsRoot
	return all
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts, ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitCode(ts *testscript.TestScript, err error) int {
	var ended *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return ended.ExitCode()
	}
	ts.Fatalf("%v", err)
	return 0
}

// tty runs a command on a pseudo-terminal of script(1), from util-linux.
func tty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: tty COMMAND…")
	}
	if err := ts.Exec("script", "-qefc", shellescape.QuoteCommand(args), os.DevNull); (err == nil) == neg {
		ts.Fatalf("tty: %v", err)
	}
}

func jsonLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: jsonlines")
	}
	lines := 0
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("%v: %s", err, line)
		}
		if object["event"] == nil || object["time"] == nil {
			ts.Fatalf("no event or time in %s", line)
		}
		ts.Check(checkSchema(fmt.Sprint(object["event"]), []byte(line)))
		lines++
	}
	if lines == 0 {
		ts.Fatalf("no line at all")
	}
}

func needsRoot(ts *testscript.TestScript, _ bool, _ []string) {
	if os.Getuid() != 0 {
		ts.Fatalf("this script tests what only root can do: run the tests as root")
	}
}

// openToAll lets every user into the script's directory and to the program.
func openToAll(env *testscript.Env) error {
	program, err := exec.LookPath("drainctl")
	if err != nil {
		return err
	}
	env.Setenv("DRAINCTL", program) // for where PATH is another one
	// The journal of the script alone, not the machine's own.
	env.Values[liveKey{}] = &live{}
	env.Setenv("USER", "ann")
	env.Setenv("SYSTEM_CONFIG", filepath.Join(env.WorkDir, "system.yaml"))
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
	env.Setenv("DRAINCTL_STATE_DIR", filepath.Join(env.WorkDir, "state"))
	if err := openUp(env.WorkDir); err != nil {
		return err
	}
	return openUp(filepath.Dir(program))
}

// openUp lets every user into a directory below the one for temporary files.
func openUp(dir string) error {
	top := filepath.Clean(os.TempDir())
	if !strings.HasPrefix(dir, top+"/") {
		return fmt.Errorf("%s is not below %s, and is not opened to other users", dir, top)
	}
	for ; dir != top; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// nobodyID is the user and group of nobody on Debian and its kin.
const nobodyID = 65534

// nobody is a program: it runs another one without any rights.
func nobody() {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "nobody:", err)
		os.Exit(125)
	}
	if os.Getuid() == 0 {
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobodyID), syscall.Setuid(nobodyID)} {
			if err != nil {
				fail(err)
			}
		}
	}
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		fail(err)
	}
	fail(syscall.Exec(path, os.Args[1:], os.Environ()))
}
