package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
)

// schemas are the JSON Schemas of what is printed and of the configuration file, by
// name.
func schemas() map[string]func() any {
	all := maps.Clone(show.Schemas)
	all["config"] = configSchema
	return all
}

func schemaCommand(s *session) *cli.Command {
	names := strings.Join(slices.Sorted(maps.Keys(schemas())), ", ")
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
			schema := schemas()[name]
			if schema == nil {
				return usage("schema %q is none of %s", name, names)
			}
			text, err := json.MarshalIndent(schema(), "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintf(s.stdout, "%s\n", text)
			return nil
		},
	}
}
