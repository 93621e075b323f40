package cli

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// settingsFlags has the flags of every value that a configuration file may have.
func settingsFlags() *specFlags {
	f := &specFlags{spec: spec.Default(spec.Run)}
	f.drain()
	f.rollout()
	f.which()
	f.where()
	f.run()
	f.shown()
	return f
}

func configCommand(s *session) *cli.Command {
	f := settingsFlags()
	f.document = true
	return &cli.Command{
		Name:      "config",
		Usage:     "show the settings of a run, and where each value comes from",
		ArgsUsage: "[TARGET]",
		Category:  catSetUp,
		UsageText: "drainctl config\ndrainctl config 192.168.1.10 --upstream web",
		Description: "Settings come from flags, else from the environment, else from the configuration file: there " +
			"from backends, else upstreams, else defaults. The file is --config FILE, else " +
			"$XDG_CONFIG_HOME/drainctl.yaml (~/.config/drainctl.yaml), else /etc/drainctl.yaml. How this " +
			"machine's nginx is run, the section nginx of /etc/drainctl.yaml says in any case. With a " +
			"TARGET it is the settings for that backend; nginx is not asked, so name its upstream with " +
			"--upstream.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 0); err != nil {
				return err
			}
			if len(f.spec.Targets) > 1 {
				return usage("config takes one TARGET; %q is one argument too many", c.Args().Get(1))
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.explain(f.spec, f.config.files, f.explained(s))
		},
	}
}

// explained is what holds, in the order of the flags.
func (f *specFlags) explained(s *session) []show.ConfigValue {
	if len(f.spec.Targets) == 1 {
		return f.explainedTarget(s, f.spec.Targets[0])
	}
	c := f.config
	values := f.layered(s, "defaults", &f.spec, sectionFields("defaults"), c.defaults)
	if len(f.spec.LBs) == 0 {
		values = append(values, f.layered(s, "nginx", &f.spec.Nginx, sectionFields("nginx"), c.system, c.nginx)...)
	}
	for _, part := range []struct {
		name string
		of   map[string]section
	}{{"upstreams", c.upstreams}, {"backends", c.backends}} {
		for _, name := range slices.Sorted(maps.Keys(part.of)) {
			for _, key := range slices.Sorted(maps.Keys(part.of[name])) {
				v := part.of[name][key]
				values = append(values, show.ConfigValue{Section: part.name + "." + name, Key: key, Value: v.as(sectionFields(part.name)[key].Type()), From: v.at})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.groups)) {
		values = append(values, show.ConfigValue{Section: "groups", Key: name, Value: c.groups[name].texts, From: c.groups[name].at})
	}
	return values
}

// explainedTarget is what holds for one backend, in the upstreams that the line
// names.
func (f *specFlags) explainedTarget(s *session, target string) []show.ConfigValue {
	layers := []section{f.config.defaults}
	for _, name := range upstreamNames(f.spec.Upstreams) {
		layers = append(layers, f.config.upstreams[name])
	}
	if t, err := nginx.ParseTarget(target); err == nil && t.Host != "" && t.Host != target {
		layers = append(layers, f.config.backends[t.Host])
	}
	layers = append(layers, f.config.backends[target])
	return f.layered(s, "backends."+target, &f.spec.Settings, sectionFields("upstreams"), layers...)
}

// upstreamNames is every name of upstreams: which module a bare one is of, only
// nginx's configuration says.
func upstreamNames(names []string) (all []string) {
	for _, name := range names {
		if _, bare, found := strings.Cut(name, "/"); found {
			all = append(all, bare, name)
		} else {
			all = append(all, name, "http/"+name, "stream/"+name)
		}
	}
	return all
}

// layered is the values of flags: as they were given, else as the last of the layers
// has them that has them, else as they are built in.
func (f *specFlags) layered(s *session, name string, of any, flags map[string]reflect.Value, layers ...section) (values []show.ConfigValue) {
	spec.EachFlag(of, func(flag string, field reflect.Value) {
		if _, ok := flags[flag]; !ok {
			return
		}
		v := show.ConfigValue{Section: name, Key: flag, Value: shownValue(field), From: "built-in"}
		switch {
		case s.typed(findFlag(f.flags, flag).Names()...):
			v.From = "flag"
		case slices.Contains(f.spec.Given, flag):
			v.From = "environment"
		default:
			for _, layer := range layers {
				if in, ok := layer[flag]; ok {
					v.Value, v.From = in.as(field.Type()), in.at
				}
			}
		}
		values = append(values, v)
	})
	return values
}

// as is the value of a flag of a type, as it is shown. It was checked when it was read.
func (v fileValue) as(t reflect.Type) any {
	to := reflect.New(t).Elem()
	_ = spec.ParseFlag(to, v.texts...)
	return shownValue(to)
}

// shownValue is a value as a file would have it.
func shownValue(v reflect.Value) any {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Slice {
		texts := []string{}
		for i := range v.Len() {
			texts = append(texts, fmt.Sprint(v.Index(i)))
		}
		return texts
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return backend.Span(d)
	}
	if units, ok := v.Interface().(spec.Units); ok && len(units.List()) > 1 {
		return units.List()
	}
	if c, ok := v.Interface().(spec.Certificates); ok {
		return c.String()
	}
	return v.Interface()
}

func (s *session) showConfig(_ spec.Spec, files []string, values []show.ConfigValue) error {
	s.view.Config(files, values)
	return shownError{nil} // there is no result to add to it
}
