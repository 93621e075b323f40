package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// maxModules bounds the modules in a program that runs as root and is copied to load
// balancers. Each of them is code that somebody must trust.
const maxModules = 30

func TestProgramHasFewModules(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	if len(modules) == 0 || len(modules) > maxModules {
		t.Errorf("%d modules, want at most %d:\n%s", len(modules), maxModules, strings.Join(modules, "\n"))
	}
}

// packages are the packages of the program, from the top down. Each may import those below it.
var packages = []string{
	"", "cli", "cli/show", "drain", "drain/status", "drain/fleet", "drain/event", "drain/plan", "drain/spec",
	"drain/backend", "drain/balancer", "drain/journal", "nginx", "remote", "sockets", "command",
}

// The packages import each other in one direction. The journal, nginx, remote and sockets import command alone.
func TestImportsRunOneWay(t *testing.T) {
	const module = "github.com/drainctl/drainctl"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, ".", "./cli/...", "./drain/...", "./nginx", "./remote", "./sockets", "./command").Output()
	if err != nil {
		t.Fatal(err)
	}
	rank := func(path string) int {
		return slices.Index(packages, strings.TrimPrefix(strings.TrimPrefix(path, module), "/"))
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < len(packages) {
		t.Errorf("%d packages, want at least %d", len(lines), len(packages))
	}
	for _, line := range lines {
		paths := strings.Fields(line)
		from := rank(paths[0])
		if from < 0 {
			if strings.HasPrefix(paths[0], module+"/cli/show/") {
				continue // tests alone
			}
			t.Errorf("%s is not in the list of packages", paths[0])
		}
		for _, path := range paths[1:] {
			lowest := from >= rank("drain/journal") && path != module+"/command"
			if strings.HasPrefix(path, module) && (rank(path) <= from || lowest) {
				t.Errorf("%s imports %s", paths[0], path)
			}
		}
	}
}
