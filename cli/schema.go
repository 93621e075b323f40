package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
)

// schemaNames returns the names of all schemas, sorted: of what is printed, and "config",
// the configuration file.
func schemaNames() []string {
	names := append(show.SchemaNames(), "config")
	slices.Sort(names)
	return names
}

// schemaText returns the JSON Schema of this name, or nil if there is none.
func schemaText(name string) []byte {
	if name != "config" {
		return show.Schema(name)
	}
	text, err := json.MarshalIndent(configSchema(), "", "  ")
	if err != nil {
		panic(err) // maps and texts always marshal
	}
	return append(text, '\n')
}

func schemaCommand(s *session) *cli.Command {
	names := strings.Join(schemaNames(), ", ")
	return &cli.Command{
		Name:        "schema",
		Usage:       "print the JSON Schema of what --output json prints",
		ArgsUsage:   "[NAME]",
		Category:    catSetUp,
		UsageText:   "drainctl schema\ndrainctl schema config",
		Description: "NAME is one of " + names + "; without it, events. Fields and events are added, and none is ever removed.",
		Action: func(c *cli.Context) error {
			name := "events"
			if args := c.Args().Slice(); len(args) > 1 {
				return usage("schema takes one NAME; %q is one argument too many", args[1])
			} else if len(args) == 1 {
				name = args[0]
			}
			text := schemaText(name)
			if text == nil {
				return usage("schema %q is none of %s", name, names)
			}
			fmt.Fprintf(s.stdout, "%s", text)
			return nil
		},
	}
}
