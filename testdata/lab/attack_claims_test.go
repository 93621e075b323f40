package lab_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// SECURITY.md names a test after each of its claims. Each of these tests exists, and each
// attack of this directory is named there.
func TestEveryClaimHasItsAttack(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	claimed := regexp.MustCompile(`\bTest\w+`).FindAllString(string(text), -1)
	if len(claimed) < 20 {
		t.Fatalf("SECURITY.md names %d tests only", len(claimed))
	}
	attacks, all := testsIn(t, "."), testsIn(t, root)
	for _, name := range claimed {
		if all[name] == "" {
			t.Errorf("SECURITY.md names %s, which is no test", name)
		}
	}
	for name, file := range attacks {
		if strings.HasPrefix(filepath.Base(file), "attack_") && name != t.Name() && !slices.Contains(claimed, name) {
			t.Errorf("SECURITY.md names no claim that %s in %s tries to break", name, file)
		}
	}
}

// testsIn is the files of the tests below a directory, by the tests' names.
func testsIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	tests := map[string]string{}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range function.FindAllStringSubmatch(string(text), -1) {
			tests[found[1]] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}
