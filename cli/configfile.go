package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v4"

	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// systemConfig is the machine's own configuration file. Tests have another one.
var systemConfig = "/etc/drainctl.yaml"

// perRun are the flags of a spec that are for one run, not for a file.
var perRun = []string{"config", "lb", "upstream", "skip-unreachable-lb", "force", "as-recorded", "reboot", "reason"}

// A fileValue is what a configuration file says, and where.
type fileValue struct {
	texts []string // as on the command line
	at    string   // FILE:LINE
}

// A section is the values of a part of the file by the flags they stand for.
type section map[string]fileValue

// A config is what a configuration file says.
type config struct {
	files               []string // that were read
	groups              map[string]fileValue
	defaults            section
	upstreams, backends map[string]section
	nginx               section // this machine's, by the operator's own file
	system              section // the same, by the machine's file
}

// readConfig reads the operator's file, else the machine's. Of the machine's, how its
// nginx is run holds in any case: the agent, which reads no other, has it so too.
func (f *specFlags) readConfig(s *session) (*config, error) {
	system, err := load(systemConfig, []int{0})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	system.system, system.nginx = system.nginx, nil
	for name, v := range system.system {
		if err := spec.SetFlag(&s.system, name, v.texts...); err != nil {
			return nil, err
		}
	}
	if f.agent {
		return system, nil
	}
	path := f.spec.Config
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return system, nil // there is no home, as in some services
		}
		path = filepath.Join(dir, "drainctl.yaml")
	} else if path, err = filepath.Abs(path); err == nil {
		f.spec.Config = path // for what is printed to go on with
	}
	own, err := load(path, configOwners(f.spec.Config != ""))
	if f.spec.Config == "" && errors.Is(err, fs.ErrNotExist) {
		return system, nil
	}
	if len(system.system) > 0 {
		own.files, own.system = append(own.files, system.files...), system.system
	}
	return own, err
}

// load reads a configuration file that nobody but these owners can have written, since
// drainctl runs the commands in it. No owners: any file.
func load(path string, owners []int) (*config, error) {
	c := newConfig()
	file, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("%w: %w", usage("read the configuration file"), err)
	}
	defer file.Close()
	if owners != nil {
		if err := checkWriters(path, file, owners); err != nil {
			return c, err
		}
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return c, usage("read the configuration file: %v", err)
	}
	c.files = []string{path}
	return c, c.parse(path, text)
}

func newConfig() *config {
	return &config{groups: map[string]fileValue{}, defaults: section{}, nginx: section{}, upstreams: map[string]section{}, backends: map[string]section{}}
}

func (c *config) parse(path string, text []byte) error {
	var documents []yaml.Node
	if err := yaml.Load(text, &documents, yaml.WithAllDocuments()); err != nil {
		var at *yaml.LoadError
		if errors.As(err, &at) && at.Mark.Line > 0 {
			return usage("%s:%d: %s", path, at.Mark.Line, at.Message)
		}
		return usage("%s: %v", path, err)
	}
	if len(documents) == 0 {
		return nil
	}
	r := configReader{path}
	if len(documents) > 1 {
		return r.fail(&documents[1], "a second document; one is all that there may be")
	}
	return r.mapping(documents[0].Content[0], "the file", []string{"groups", "defaults", "upstreams", "backends", "nginx"}, nil, func(name string, n *yaml.Node) error {
		switch name {
		case "groups":
			return r.mapping(n, name, nil, nil, func(group string, n *yaml.Node) (err error) {
				c.groups[group], err = r.value(n, "group "+group, "lb", reflect.TypeFor[[]string]())
				return err
			})
		case "defaults":
			return r.section(n, name, sectionFields("defaults"), c.defaults)
		case "nginx":
			return r.section(n, name, sectionFields("nginx"), c.nginx)
		case "upstreams":
			return r.sections(n, name, nil, c.upstreams)
		}
		return r.sections(n, name, asTarget, c.backends)
	})
}

// asTarget is a target as a spec has it.
func asTarget(name string) (string, error) {
	t, err := nginx.ParseTarget(name)
	return t.String(), err
}

// sectionFields are the fields that a section may set, by their flags.
func sectionFields(name string) map[string]reflect.Value {
	switch name {
	case "nginx":
		return specFields(&spec.Nginx{})
	case "backends":
		fields := specFields(&spec.Settings{})
		delete(fields, "min-up") // an upstream keeps servers up, not a backend
		return fields
	case "defaults":
		fields := specFields(&spec.Spec{})
		maps.DeleteFunc(fields, func(flag string, _ reflect.Value) bool {
			_, ofNginx := specFields(&spec.Nginx{})[flag]
			return ofNginx || slices.Contains(perRun, flag)
		})
		return fields
	}
	return specFields(&spec.Settings{})
}

// A configReader reads a file of this path; every error says where.
type configReader struct{ path string }

func (r configReader) at(n *yaml.Node) string { return fmt.Sprintf("%s:%d", r.path, n.Line) }

func (r configReader) fail(n *yaml.Node, format string, args ...any) error {
	return usage("%s: %s", r.at(n), fmt.Sprintf(format, args...))
}

// mapping visits the keys of a mapping: known ones alone, unless known is nil, and
// each once. as makes one name of the spellings of a key.
func (r configReader) mapping(n *yaml.Node, what string, known []string, as func(string) (string, error), visit func(string, *yaml.Node) error) error {
	n = resolved(n)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return r.fail(n, "%s must be keys with values", what)
	}
	lines := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key, name := n.Content[i], n.Content[i].Value
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" || name == "" {
			return r.fail(key, "a key in %s is no text", what)
		}
		if known != nil && !slices.Contains(known, name) {
			return r.fail(key, "unknown key %q in %s%s", name, what, elsewhere(name, what, known))
		}
		if as != nil {
			var err error
			if name, err = as(name); err != nil {
				return r.fail(key, "%s: %v", what, err)
			}
		}
		if line, twice := lines[name]; twice {
			return r.fail(key, "%q stands twice in %s: on line %d as well", name, what, line)
		}
		lines[name] = key.Line
		if err := visit(name, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// elsewhere says where a key that is unknown in a section belongs, or which one may
// be meant.
func elsewhere(name, what string, known []string) string {
	for _, other := range []string{"nginx", "upstreams", "defaults"} {
		if _, ok := sectionFields(other)[name]; ok && other != what && what != "the file" {
			return "\nhint: it belongs in " + other
		}
	}
	if slices.Contains(perRun, name) {
		return "\nhint: it is for the command line alone"
	}
	return didYouMean(name, known)
}

// sections reads settings by name.
func (r configReader) sections(n *yaml.Node, what string, as func(string) (string, error), to map[string]section) error {
	return r.mapping(n, what, nil, as, func(name string, n *yaml.Node) error {
		if to[name] == nil {
			to[name] = section{}
		}
		return r.section(n, what+": "+name, sectionFields(what), to[name])
	})
}

// section reads values that flags could have as well.
func (r configReader) section(n *yaml.Node, what string, fields map[string]reflect.Value, to section) error {
	return r.mapping(n, what, slices.Sorted(maps.Keys(fields)), nil, func(name string, n *yaml.Node) (err error) {
		to[name], err = r.value(n, name, name, fields[name].Type())
		return err
	})
}

// value reads and checks the value of a flag; as is how its key is called.
func (r configReader) value(n *yaml.Node, as, flag string, t reflect.Type) (fileValue, error) {
	n = resolved(n)
	v := fileValue{at: r.at(n)}
	nodes := []*yaml.Node{n}
	if t.Kind() == reflect.Slice || flag == "service" && n.Kind == yaml.SequenceNode {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
			return v, r.fail(n, "%s must be a list, such as [a, b]", as)
		}
		nodes = n.Content
	}
	for _, n := range nodes {
		n = resolved(n)
		if n.Kind != yaml.ScalarNode || n.Value == "" || n.Tag == "!!null" {
			return v, r.fail(n, "%s: a single value is missing here", as)
		}
		text := n.Value
		if home, err := os.UserHomeDir(); err == nil && (flag == "identity" || flag == "health-ca") && strings.HasPrefix(text, "~/") {
			text = home + text[1:] // a shell does that for a flag
		}
		v.texts = append(v.texts, text)
	}
	to := reflect.New(t).Elem()
	if err := spec.ParseFlag(to, v.texts...); err != nil {
		return v, r.fail(n, "%s: %v", as, err)
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if tag := yamlTags[t.Kind()]; tag != "" && n.Kind == yaml.ScalarNode && n.Tag != tag && (flag != "batch" || n.Tag != "!!int") {
		quotes := "in"
		if n.Tag == "!!str" {
			quotes = "without"
		}
		return v, r.fail(n, "%s: write %s %s quotes", as, n.Value, quotes)
	}
	return v, checkFlag(v.at+": "+as, flag, to)
}

// yamlTags are the types that values have in YAML; lists and times have several.
var yamlTags = map[reflect.Kind]string{reflect.String: "!!str", reflect.Bool: "!!bool", reflect.Int: "!!int"}

// resolved is what an alias stands for.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// expand adds the load balancers of groups, each once.
func (c *config) expand(groups, lbs []string) ([]string, error) {
	for _, name := range groups {
		group, ok := c.groups[name]
		known := slices.Sorted(maps.Keys(c.groups))
		switch {
		case len(known) == 0:
			return nil, usage("--group %s: no configuration file has groups\nhint: name them in the section groups of drainctl.yaml, or the file with --config", name)
		case !ok:
			return nil, usage("--group %s: no such group%s\nhint: there is %s", name, didYouMean(name, known), strings.Join(known, ", "))
		}
		for _, lb := range group.texts {
			if !slices.Contains(lbs, lb) {
				lbs = append(lbs, lb)
			}
		}
	}
	return lbs, nil
}

// set puts a value into a spec that does not have it from the line or the environment.
func (v fileValue) set(s *spec.Spec, flag string) error {
	if slices.Contains(s.Given, flag) {
		return nil
	}
	if err := spec.SetFlag(s, flag, v.texts...); err != nil {
		return usage("%s: %s: %v", v.at, flag, err)
	}
	return nil
}

// fill puts into a spec what the file says and neither the line nor the environment
// does, as far as the command has to do with it. How this machine's nginx is run is
// nothing to other load balancers.
func (c *config) fill(s *spec.Spec, flags []cli.Flag) error {
	settings := sectionFields("upstreams")
	for name, v := range c.defaults {
		_, setting := settings[name]
		if setting || findFlag(flags, name) != nil {
			if err := v.set(s, name); err != nil {
				return err
			}
		}
	}
	for name, v := range c.nginx {
		if len(s.LBs) == 0 {
			if err := v.set(s, name); err != nil {
				return err
			}
		}
	}
	for _, part := range []struct {
		from map[string]section
		to   *map[string]json.RawMessage
	}{{c.upstreams, &s.PerUpstream}, {c.backends, &s.PerBackend}} {
		for name, values := range part.from {
			var set spec.Settings
			for flag, v := range values {
				if err := spec.SetFlag(&set, flag, v.texts...); err != nil {
					return usage("%s: %s: %v", v.at, flag, err)
				}
			}
			raw, err := set.Only(slices.Collect(maps.Keys(values))...)
			if err != nil {
				return err
			}
			if *part.to == nil {
				*part.to = map[string]json.RawMessage{}
			}
			(*part.to)[name] = raw
		}
	}
	return nil
}
