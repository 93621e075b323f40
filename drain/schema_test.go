package drain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sync"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemaFile has the published schema of all events.
const schemaFile = "../cli/show/schemas/events.json"

// compiledEvents are the schemas of the events, by name. Each is a part of the
// published one, which would be slow to try in tests with thousands of events.
var compiledEvents = sync.OnceValue(func() map[string]*jsonschema.Schema {
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		panic(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		panic(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("events", document); err != nil {
		panic(err)
	}
	all := map[string]*jsonschema.Schema{}
	for _, e := range event.All() {
		name := e.Head().Event
		part, err := c.Compile("events#/$defs/event." + reflect.TypeOf(e).Elem().Name())
		if err != nil {
			panic(fmt.Sprintf("event %s has no schema, make docs writes it: %v", name, err))
		}
		all[name] = part
	}
	return all
})

// valid panics when an event of a test is not as its published schema says.
func valid(e event.Event) {
	text, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	schema := compiledEvents()[e.Head().Event]
	if schema == nil {
		panic(fmt.Sprintf("an event that Events does not list: %s", text))
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		panic(fmt.Sprintf("an event is not as its schema says: %v: %s", err, text))
	}
}

// checked has the events of a run validated when it is over, so that the run is not
// slowed down.
func checked(o *Options) (check func()) {
	var mu sync.Mutex
	var seen []event.Event
	emit := o.Emit
	o.Emit = func(e event.Event) {
		mu.Lock()
		seen = append(seen, e)
		mu.Unlock()
		emit(e)
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range seen {
			valid(e)
		}
	}
}
