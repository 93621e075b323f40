package remote

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuote(t *testing.T) {
	for _, args := range [][]string{{""}, {"a"}, {"a b", "it's"}, {"\n", "$x", "`y`", "\xff"}} {
		out, err := exec.Command("sh", "-c", `printf '%s\0' `+Quote(args...)).Output()
		if err != nil || string(out) != strings.Join(args, "\x00")+"\x00" {
			t.Errorf("%q: %q, %v", args, out, err)
		}
	}
}

func TestResultErr(t *testing.T) {
	if err := (Result{}).Err("x"); err != nil {
		t.Error(err)
	}
	for want, r := range map[string]Result{
		"nginx -t: exit status 1: bad":                                   {Code: 1, Stderr: []byte("\nbad\n\n"), Stdout: []byte("out")},
		"nginx -t: exit status 1: out":                                   {Code: 1, Stdout: []byte("out\n")},
		"nginx -t: exit status 3":                                        {Code: 3},
		"nginx -t: exit status 1: 3\n  4\n  5\n  6\n  7\n  8\n  9\n  10": {Code: 1, Stderr: []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n")},
	} {
		err := r.Err("nginx", "-t")
		var failed *ExitError
		if !errors.As(err, &failed) || err.Error() != want || failed.Code != r.Code {
			t.Errorf("%q, not %q", err, want)
		}
	}
}

// TestNothingPrinted keeps the package's promise that it prints nothing.
func TestNothingPrinted(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"os.Stdout", "os.Stderr", "fmt.Print", "println("} {
			if strings.Contains(string(text), word) {
				t.Errorf("%s: %s", file, word)
			}
		}
	}
}
