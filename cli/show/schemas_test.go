package show

import (
	"encoding"
	"encoding/json"
	"maps"
	"os"
	"path"
	"reflect"
	"slices"
	"testing"

	"github.com/invopop/jsonschema"

	"github.com/drainctl/drainctl/drain/event"
)

// The published schemas are those of the types. UPDATE_DOCS=1 writes them.
func TestSchemas(t *testing.T) {
	current := map[string]*jsonschema.Schema{
		"check":     schemaOf(&checkDocument{}),
		"events":    eventSchema(),
		"history":   schemaOf(&historyDocument{}),
		"operation": operationSchema(),
		"plan":      schemaOf(event.Stamp(&event.Planned{})),
		"settings":  schemaOf(&configDocument{}),
		"status":    schemaOf(&statusDocument{}),
	}
	for name, schema := range current {
		text, err := json.MarshalIndent(schema, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, '\n')
		if os.Getenv("UPDATE_DOCS") != "" {
			if err := os.WriteFile("schemas/"+name+".json", text, 0o644); err != nil {
				t.Fatal(err)
			}
		} else if string(text) != string(Schema(name)) {
			t.Errorf("schemas/%s.json is stale: make docs writes it", name)
		}
	}
	if names := slices.Sorted(maps.Keys(current)); os.Getenv("UPDATE_DOCS") == "" && !slices.Equal(names, SchemaNames()) {
		t.Errorf("schemas/ has %q, want %q", SchemaNames(), names)
	}
}

// eventSchema returns the schema of a line of --output json.
func eventSchema() *jsonschema.Schema {
	all := []any{&commandLine{}, &signalLine{}}
	for _, e := range event.All() {
		all = append(all, e)
	}
	return schemaOf(all...)
}

// operationSchema returns the schema of one operation of the history, which holds events.
func operationSchema() *jsonschema.Schema {
	s, events := schemaOf(&operationDocument{}), eventSchema()
	maps.Copy(s.Definitions, events.Definitions)
	list, _ := s.Definitions["show.operationDocument"].Properties.Get("events")
	list.OneOf[0].Items = &jsonschema.Schema{OneOf: events.OneOf}
	return s
}

// schemaOf returns the JSON Schema of a document that is one of the types of values.
// Fields may be added to them, and none is ever removed.
func schemaOf(values ...any) *jsonschema.Schema {
	s := &jsonschema.Schema{Version: jsonschema.Version, Definitions: jsonschema.Definitions{}}
	r := jsonschema.Reflector{
		Anonymous: true, AllowAdditionalProperties: true, Mapper: textSchema,
		// Packages have types of the same name.
		Namer: func(t reflect.Type) string {
			if t.Name() == "" || t.PkgPath() == "" {
				return ""
			}
			return path.Base(t.PkgPath()) + "." + t.Name()
		},
	}
	for _, v := range values {
		one := r.Reflect(v)
		maps.Copy(s.Definitions, one.Definitions)
		if e, ok := v.(event.Event); ok {
			name, _ := one.Definitions[path.Base(one.Ref)].Properties.Get("event")
			name.Const = e.Head().Event
		}
		s.OneOf = append(s.OneOf, &jsonschema.Schema{Ref: one.Ref})
	}
	for _, d := range s.Definitions {
		allowNull(d)
	}
	return s
}

// textSchema is the schema of what marshals itself as a text.
func textSchema(t reflect.Type) *jsonschema.Schema {
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) && t.PkgPath() != "time" {
		return &jsonschema.Schema{Type: "string"}
	}
	return nil
}

// allowNull has an object's lists and maps be null where they are empty and not
// left out, as encoding/json writes them.
func allowNull(object *jsonschema.Schema) {
	if object.Properties == nil {
		return
	}
	for p := object.Properties.Oldest(); p != nil; p = p.Next() {
		isMap := p.Value.Type == "object" && p.Value.AdditionalProperties != nil
		if slices.Contains(object.Required, p.Key) && (p.Value.Type == "array" || isMap) {
			p.Value = &jsonschema.Schema{OneOf: []*jsonschema.Schema{p.Value, {Type: "null"}}}
		}
	}
}
