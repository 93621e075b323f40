package cli

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
)

//go:embed man.tmpl
var manText string

var manTemplate = template.Must(template.New("man").Funcs(template.FuncMap{
	"roff": roff, "fill": func(text string) string { return atLineStart(wrapped(roff(text), 0, 0)) }, "upper": strings.ToUpper, "code": func(text string) bool { return strings.HasPrefix(text, " ") },
}).Parse(manText))

// A manPage is one page of the manual.
type manPage struct {
	Name, Version, Date, Usage, Synopsis, Examples string
	Description                                    []string // paragraphs; an indented one is code
	Kinds                                          []kind
	Groups                                         []manGroup
	SeeAlso                                        []string
}

type manGroup struct {
	Name  string
	Flags []flagDoc
}

func manCommand(s *session) *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "write the pages of the manual into a directory", ArgsUsage: "DIRECTORY", Hidden: true,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usage("man takes a DIRECTORY")
			}
			for _, p := range manPages(c.App) {
				var text strings.Builder
				if err := manTemplate.Execute(&text, p); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(c.Args().First(), p.Name+".1"), []byte(text.String()), 0o644); err != nil {
					return fmt.Errorf("write the manual: %w", err)
				}
			}
			return nil
		},
	}
}

// manPages is the page of the program, and those of its commands.
func manPages(app *cli.App) []manPage {
	main := manPage{
		Name: app.Name, Version: versionText(), Date: buildDate(), Usage: app.Usage, Synopsis: appUsageLine, Examples: app.UsageText,
		Description: strings.Split(app.Description, "\n\n"),
	}
	var pages []manPage
	for _, kind := range kindsOf(app) {
		main.Kinds = append(main.Kinds, kind)
		for _, cmd := range kind.Commands {
			p := main
			p.Kinds, p.Name, p.Usage, p.Synopsis, p.Examples = nil, app.Name+"-"+cmd.Name, cmd.Usage, usageLine(cmd), cmd.UsageText
			p.Description, p.SeeAlso = append([]string{sentence(cmd.Usage)}, strings.Split(cmd.Description, "\n\n")...), []string{app.Name}
			for _, d := range docsOf(cmd) {
				if n := len(p.Groups); n == 0 || p.Groups[n-1].Name != strings.TrimSuffix(d.Group, ":") {
					p.Groups = append(p.Groups, manGroup{Name: strings.TrimSuffix(d.Group, ":")})
				}
				g := &p.Groups[len(p.Groups)-1]
				g.Flags = append(g.Flags, d)
			}
			pages = append(pages, p)
		}
	}
	return append(pages, main)
}

// roff escapes a text. Hyphens are what they are on a command line.
func roff(text string) string {
	return atLineStart(strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text))
}

// atLineStart escapes what would be a request there.
func atLineStart(text string) string {
	for _, first := range []string{".", "'"} {
		text = strings.ReplaceAll("\n"+text, "\n"+first, "\n\\&"+first)[1:]
	}
	return text
}

// buildDate is the day of the commit that this was built from, if that is known. Two
// builds of it write the same.
func buildDate() string {
	info, _ := debug.ReadBuildInfo()
	if info != nil {
		for _, set := range info.Settings {
			if set.Key == "vcs.time" && len(set.Value) >= len("2006-01-02") {
				return set.Value[:len("2006-01-02")]
			}
		}
	}
	return ""
}
