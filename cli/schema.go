package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/invopop/jsonschema"
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

// schemas are the JSON Schemas of what is printed, by name.
var schemas = map[string]func() any{
	"check":     func() any { return drain.Schema(&checkDocument{}) },
	"config":    configSchema, // of the file
	"events":    func() any { return eventSchema() },
	"history":   func() any { return drain.Schema(&historyDocument{}) },
	"operation": func() any { return operationSchema() },
	"plan":      func() any { return drain.Schema(&drain.Planned{}) },
	"settings":  func() any { return drain.Schema(&configDocument{}) },
	"status":    func() any { return drain.Schema(&statusDocument{}) },
}

// eventSchema is of a line of --output json.
func eventSchema() *jsonschema.Schema { return drain.EventSchema(&commandLine{}, &signalLine{}) }

// operationSchema is of one operation of the history, which holds events.
func operationSchema() *jsonschema.Schema {
	s, events := drain.Schema(&operationDocument{}), eventSchema()
	maps.Copy(s.Definitions, events.Definitions)
	list, _ := s.Definitions["cli.operationDocument"].Properties.Get("events")
	list.OneOf[0].Items = &jsonschema.Schema{OneOf: events.OneOf}
	return s
}

func schemaCommand(s *session) *cli.Command {
	names := strings.Join(slices.Sorted(maps.Keys(schemas)), ", ")
	return &cli.Command{
		Name:        "schema",
		Usage:       "print the JSON Schema of what is printed with --output json",
		ArgsUsage:   "[NAME]",
		Description: "NAME is one of " + names + "; without it, events. Fields and events are added, and\nnone is ever removed.",
		Action: func(c *cli.Context) error {
			name := "events"
			if args := c.Args().Slice(); len(args) > 1 {
				return usage("schema takes one NAME; %q is one argument too many", args[1])
			} else if len(args) == 1 {
				name = args[0]
			}
			schema := schemas[name]
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
