package show

import (
	"maps"

	"github.com/invopop/jsonschema"

	"github.com/drainctl/drainctl/drain"
)

// Schemas are the JSON Schemas of the documents and events, by name.
var Schemas = map[string]func() any{
	"check":     func() any { return drain.Schema(&checkDocument{}) },
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
	list, _ := s.Definitions["show.operationDocument"].Properties.Get("events")
	list.OneOf[0].Items = &jsonschema.Schema{OneOf: events.OneOf}
	return s
}
