package integrations_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// collection lays the collection out as Ansible wants it, and gives the directory of all
// collections.
func collection(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "ansible_collections/drainctl/drainctl"), os.DirFS("ansible")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Each flag of a command is an option of its module, and the other way round.
func TestModuleOptionsAreTheFlags(t *testing.T) {
	drainctl, env := build(t), []string{"ANSIBLE_COLLECTIONS_PATH=" + collection(t), "HOME=" + t.TempDir()}
	// How it is shown is the module's own business, and so is what check mode is.
	ours := []string{"dry-run", "help", "help-all", "no-color", "output", "verbose", "watch"}
	for _, command := range []string{"drain", "undrain", "status"} {
		var flags, options []string
		for _, found := range regexp.MustCompile(`(?m)^  (?:    |-., )--([a-z-]+)`).FindAllStringSubmatch(mustRun(t, ".", nil, drainctl, command, "--help-all"), -1) {
			if !slices.Contains(ours, found[1]) {
				flags = append(flags, strings.ReplaceAll(found[1], "-", "_"))
			}
		}
		module := "drainctl.drainctl." + command
		var documented map[string]struct {
			Doc struct{ Options map[string]any }
		}
		if err := json.Unmarshal([]byte(mustRun(t, ".", env, "ansible-doc", "--json", module)), &documented); err != nil {
			t.Fatal(err)
		}
		for name := range documented[module].Doc.Options {
			if name != "executable" && name != "target" {
				options = append(options, name)
			}
		}
		slices.Sort(flags)
		slices.Sort(options)
		if !slices.Equal(flags, options) || len(flags) == 0 {
			t.Errorf("the module %s has the options\n%s\nand the command has the flags\n%s", command, options, flags)
		}
	}
}

// The modules read what drainctl says a line an event, and as one document.
func TestModulesReadLinesAndDocuments(t *testing.T) {
	dir, env := t.TempDir(), []string{"ANSIBLE_COLLECTIONS_PATH=" + collection(t), "HOME=" + t.TempDir()}
	const (
		plan   = `{"spec": {}, "lbs": [{"lb": "lb1", "report": {"diff": "+ down\n", "servers": [{"configure": true}]}}], "steps": [], "findings": [{"text": "one left", "warning": true}], "exit_code": 0}`
		result = `{"event": "result", "result": "done", "exit_code": 0, "changed": false, "findings": []}`
	)
	for name, text := range map[string]string{
		"lines":        `{"event": "plan", "plan": ` + plan + "}\n" + result + "\n",
		"one document": "{\n\"plan\": " + plan + ",\n\"result\": " + result + "\n}\n",
		"the plan":     plan + "\n",
	} {
		write(t, dir+"/drainctl", "#!/bin/sh\ncat <<'E'\n"+text+"E\n", 0o755)
		out := mustRun(t, dir, env, "ansible", "localhost", "-m", "drainctl.drainctl.drain", "--check", "--diff",
			"-a", `{"target": ["192.168.1.10"], "executable": "`+dir+`/drainctl"}`)
		t.Log(name)
		says(t, out, "localhost | CHANGED", "on lb1", "+ down", "[WARNING]: one left")
	}
}

// A URL with a password is refused, and msg does not repeat the password.
func TestModuleMessageHoldsNoSecret(t *testing.T) {
	dir, env := t.TempDir(), []string{"ANSIBLE_COLLECTIONS_PATH=" + collection(t), "HOME=" + t.TempDir()}
	out, err := run(t, dir, env, "ansible", "localhost", "-m", "drainctl.drainctl.undrain",
		"-a", `{"target": ["192.168.1.10"], "health": "http://user:SECRET@app1/", "executable": "`+build(t)+`"}`)
	if err == nil {
		t.Fatalf("no error:\n%s", out)
	}
	says(t, out, `"exit_code": 2`, "--health: ", "http://xxxxx@app1/", "it holds a secret")
	if strings.Contains(out, "SECRET") {
		t.Errorf("it repeats the password:\n%s", out)
	}
}

// The collection passes ansible-test's sanity tests, with the tools that Debian has in
// place of those that ansible-test would download. What is left out is pylint.
func TestAnsibleSanity(t *testing.T) {
	dir, home := filepath.Join(collection(t), "ansible_collections/drainctl/drainctl"), t.TempDir()
	// Only with the system's own Python do the system's packages go along.
	env := []string{"HOME=" + home, "PATH=/usr/bin:/bin"}
	sanity := []string{"ansible-test", "sanity", "--local", "--color", "no", "--skip-test", "pylint"}
	for range 12 { // it makes one virtual environment after the other, and stops where it cannot fill it
		out, err := run(t, dir, env, append(sanity, "--prime-venvs")...)
		if err == nil {
			break
		}
		if !strings.Contains(out, "does not have pip available") {
			t.Fatalf("%v\n%s", err, out)
		}
		fillEnvironments(t, home)
	}
	says(t, mustRun(t, dir, env, sanity...), `Running sanity test "validate-modules"`, `Running sanity test "yamllint"`)
}

// fillEnvironments lets the system's packages into the virtual environments, and marks
// them as ready.
func fillEnvironments(t *testing.T, home string) {
	t.Helper()
	configs, err := filepath.Glob(home + "/.ansible/test/venv/*/*/*/pyvenv.cfg")
	if err != nil || len(configs) == 0 {
		t.Fatalf("ansible-test has made no virtual environment (%v)", err)
	}
	for _, config := range configs {
		text := strings.Replace(read(t, config), "include-system-site-packages = false", "include-system-site-packages = true", 1)
		write(t, config, text, 0o644)
		write(t, filepath.Join(filepath.Dir(config), "meta.yaml.json"), "true\n", 0o644)
		write(t, filepath.Join(filepath.Dir(config), "marker.txt"), "", 0o644)
	}
}
