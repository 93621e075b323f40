package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	invopop "github.com/invopop/jsonschema"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/event"
)

// compiled are the schemas, by name.
var compiled = sync.OnceValue(func() map[string]*jsonschema.Schema {
	all := map[string]*jsonschema.Schema{}
	for _, name := range schemaNames() {
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaText(name)))
		if err != nil {
			panic(err)
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource(name, document); err != nil {
			panic(err)
		}
		all[name] = c.MustCompile(name)
	}
	return all
})

// checkSchema validates what is printed under an event's name: a document has a
// schema of that name.
func checkSchema(ev string, text []byte) error {
	if ev == "config" { // that name is the file's
		ev = "settings"
	}
	schema := compiled()[ev]
	if schema == nil {
		schema = compiled()["events"]
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		return fmt.Errorf("not as its schema says: %w: %s", err, text)
	}
	return nil
}

// runChecked is Run, and ends at once when an event is not as its schema says.
func runChecked(args []string) int {
	signal.Ignore(syscall.SIGPIPE)
	s := newSession(os.Stdout, os.Stderr)
	s.listeners = append(s.listeners, func(e event.Event) {
		text, err := json.Marshal(e)
		if err == nil {
			err = checkSchema(e.Head().Event, text)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
	})
	return s.run(args)
}

// A schema says what is wrong with a line that is not an event.
func TestSchemaRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"an unknown event": `{"event":"no_such","time":"2026-01-01T00:00:00Z"}`,
		"a missing field":  `{"event":"warning","time":"2026-01-01T00:00:00Z"}`,
		"another type":     `{"event":"warning","time":"2026-01-01T00:00:00Z","text":1}`,
		"no time":          `{"event":"warning","time":"yesterday","text":"x"}`,
	} {
		if checkSchema("events", []byte(line)) == nil {
			t.Errorf("%s is valid: %s", name, line)
		}
	}
}

// fieldNames is the names of all fields of what is printed, each after the event
// or document that it is in.
func fieldNames() []string {
	names := map[string]bool{}
	for _, name := range show.SchemaNames() {
		var root invopop.Schema
		if err := json.Unmarshal(show.Schema(name), &root); err != nil {
			panic(err)
		}
		var walk func(path string, s *invopop.Schema)
		walk = func(path string, s *invopop.Schema) {
			if s == nil {
				return
			}
			if s.Ref != "" {
				s = root.Definitions[strings.TrimPrefix(s.Ref, "#/$defs/")]
			}
			if s.Properties != nil {
				if ev, ok := s.Properties.Get("event"); path == "" && ok {
					path = fmt.Sprint(append(ev.Enum, ev.Const)[0])
				}
				for p := s.Properties.Oldest(); p != nil; p = p.Next() {
					names[path+"."+p.Key] = true
					walk(path+"."+p.Key, p.Value)
				}
			}
			for _, one := range s.OneOf {
				walk(path, one)
			}
			if path != "operation.events" {
				walk(path+"[]", s.Items)
			}
			walk(path+".*", s.AdditionalProperties)
		}
		walk("", &invopop.Schema{OneOf: root.OneOf})
	}
	return slices.Sorted(maps.Keys(names))
}

// namesFile has all names that were ever published.
const namesFile = "../testdata/field_names.txt"

// A program that reads what is printed today reads it tomorrow: no name is ever
// removed.
func TestNamesAreNeverRemoved(t *testing.T) {
	text, err := os.ReadFile(namesFile)
	if err != nil {
		t.Fatal(err)
	}
	published, now := strings.Fields(string(text)), fieldNames()
	for _, name := range published {
		if !slices.Contains(now, name) {
			t.Errorf("%s is gone: programs read it, and a name is never removed", name)
		}
	}
	added := slices.DeleteFunc(now, func(name string) bool { return slices.Contains(published, name) })
	if len(added) > 0 {
		t.Errorf("new names: add them to %s, where they stay for ever:\n%s", namesFile, strings.Join(added, "\n"))
	}
}

func TestSchemaCommand(t *testing.T) {
	for _, name := range schemaNames() {
		h := hear("schema", name)
		var printed map[string]any
		if err := json.Unmarshal([]byte(h.out), &printed); h.code != 0 || err != nil || printed["$schema"] == nil {
			t.Errorf("schema %s: exit code %d, %v: %s%s", name, h.code, err, h.out, h.err)
		}
	}
	if hear("schema").out != hear("schema", "events").out {
		t.Error("schema without a name is not that of the events")
	}
	hear("schema", "no-such").refused(t, `schema "no-such" is none of check, config, events, history, operation, plan, settings, status`)
	hear("schema", "events", "plan").refused(t, "one argument too many")
}
