package drain

import (
	"encoding"
	"maps"
	"path"
	"reflect"
	"slices"

	"github.com/invopop/jsonschema"
)

// EventSchema is the JSON Schema of a line that is one of the events, or one of
// the further types.
func EventSchema(more ...any) *jsonschema.Schema {
	all := more
	for _, name := range sortedKeys(kinds) {
		all = append(all, kinds[name]())
	}
	return Schema(all...)
}

// Schema is the JSON Schema of a document that is one of the types of values.
// Fields may be added to them, and none is ever removed.
func Schema(values ...any) *jsonschema.Schema {
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
		if e, ok := v.(Event); ok {
			name, _ := one.Definitions[path.Base(one.Ref)].Properties.Get("event")
			name.Const = e.name()
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
