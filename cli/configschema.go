package cli

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain/spec"
)

// configSchema is the JSON Schema of the configuration file.
func configSchema() any {
	return map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "drainctl's configuration file",
		"type":    []string{"object", "null"},
		"properties": map[string]any{
			"groups":    byName("load balancers by the name of a group, for --group NAME", list(map[string]any{"type": "string"})),
			"defaults":  sectionSchema("defaults", "what every run has, where nothing else says otherwise"),
			"upstreams": byName("what the backends of an upstream have, by its name", sectionSchema("upstreams", "")),
			"backends":  byName("what a backend has, by its name as a target", sectionSchema("backends", "")),
			"nginx":     sectionSchema("nginx", "how this machine's own nginx is found, tested and reloaded"),
		},
		"additionalProperties": false,
	}
}

func byName(description string, of any) map[string]any {
	return map[string]any{"description": description, "type": []string{"object", "null"}, "additionalProperties": of, "propertyNames": map[string]any{"minLength": 1}}
}

func list(of any) map[string]any {
	return map[string]any{"type": "array", "items": of, "minItems": 1}
}

// sectionSchema is the keys of a section, described as the flags are.
func sectionSchema(name, description string) map[string]any {
	flags := settingsFlags().flags
	keys := map[string]any{}
	for flag, field := range sectionFields(name) {
		key := keySchema(flag, field.Type())
		if doc, ok := findFlag(flags, flag).(cli.DocGenerationFlag); ok {
			key["description"] = doc.GetUsage()
		}
		keys[flag] = key
	}
	schema := map[string]any{"type": []string{"object", "null"}, "properties": keys, "additionalProperties": false}
	if description != "" {
		schema["description"] = description
	}
	return schema
}

// keySchema is the values of a key.
func keySchema(flag string, t reflect.Type) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		units := `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`
		if spec.Least(flag) > 0 {
			return map[string]any{"type": "string", "pattern": units}
		}
		return map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": units}, map[string]any{"const": 0}}}
	case t.Kind() == reflect.Slice && t.Elem() == reflect.TypeFor[netip.Prefix]():
		return list(map[string]any{"type": "string", "pattern": `^[0-9a-fA-F.:]+(/[0-9]+)?$`})
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	case t.Kind() == reflect.Int && flag == "ssh-port":
		return map[string]any{"type": "integer", "minimum": 1, "maximum": 65535}
	case t.Kind() == reflect.Int:
		return map[string]any{"type": "integer", "minimum": spec.Least(flag)}
	case choicesOf(flag) != nil:
		return map[string]any{"enum": choicesOf(flag)}
	case flag == "batch":
		return map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": "^[0-9]+%?$"}, map[string]any{"type": "integer", "minimum": 1}}}
	case flag == "service":
		unit := map[string]any{"type": "string", "minLength": 1}
		return map[string]any{"anyOf": []any{unit, list(unit)}}
	case slices.Contains([]string{"state-dir", "nginx-conf"}, flag):
		return map[string]any{"type": "string", "pattern": "^/"}
	}
	return map[string]any{"type": "string", "minLength": 1}
}
