package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// A saying is what the source says about what to do, and where.
type saying struct {
	at, text string
	override bool
}

// sayings are the overrides of all findings in the source, and the hints in all texts.
func sayings(t *testing.T) (all []saying) {
	files := token.NewFileSet()
	literals := func(n ast.Node, keep func(string) (string, bool), override bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if text, err := strconv.Unquote(lit.Value); err != nil {
				t.Error(err)
			} else if text, ok := keep(text); ok {
				all = append(all, saying{files.Position(lit.Pos()).String(), text, override})
			}
			return true
		})
	}
	every := func(text string) (string, bool) { return text, true }
	hints := func(text string) (string, bool) {
		_, hint, found := strings.Cut(text, "hint: ")
		return hint, found && hint != ""
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "testdata") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		literals(file, hints, false)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Override" {
					literals(n.Value, every, true)
				}
			case *ast.AssignStmt:
				for _, to := range n.Lhs {
					if field, ok := to.(*ast.SelectorExpr); ok && field.Sel.Name == "Override" {
						for _, from := range n.Rhs {
							literals(from, every, true)
						}
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What overrides a refusal is a flag of the commands that are refused: of drain and
// run, or of undrain. What else a hint names is a flag of some command.
func TestOverridesAreFlags(t *testing.T) {
	app := newApp(newSession(nil, nil))
	has := func(name string, commands ...string) bool {
		return !slices.ContainsFunc(commands, func(cmd string) bool { return findFlag(app.Command(cmd).Flags, name) == nil })
	}
	overrides := 0
	for _, s := range sayings(t) {
		found := regexp.MustCompile(`--([a-z][a-z-]+)`).FindAllStringSubmatch(s.text, -1)
		for _, flag := range found {
			switch {
			case s.override && !has(flag[1], "drain", "run") && !has(flag[1], "undrain"):
				t.Errorf("%s: --%s overrides, and is no flag of drain and run, or of undrain", s.at, flag[1])
			case !slices.ContainsFunc(app.Commands, func(cmd *cli.Command) bool { return findFlag(cmd.Flags, flag[1]) != nil }):
				t.Errorf("%s: no command has the flag --%s", s.at, flag[1])
			}
		}
		if s.override && s.text != "" {
			overrides++
			if len(found) == 0 && strings.Trim(s.text, "%0s ") != "" {
				t.Errorf("%s: the override %q names no flag", s.at, s.text)
			}
		}
	}
	if overrides < 15 {
		t.Errorf("only %d overrides were found in the source", overrides)
	}
	t.Logf("%d overrides", overrides)
}
