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
