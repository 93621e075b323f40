package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// EachFlag walks the fields of a spec, or of a part of one, that flags set. Through
// a pointer they can be set.
func EachFlag(of any, visit func(name string, field reflect.Value)) {
	eachFlag(reflect.Indirect(reflect.ValueOf(of)), visit)
}

// SetFlag sets the field of a flag, in the spec or the part of one that to points
// to, to what texts say: one, or any number for a list.
func SetFlag(to any, name string, texts ...string) error {
	err := fmt.Errorf("no field of %T has the flag %s", to, name)
	EachFlag(to, func(n string, field reflect.Value) {
		if n == name {
			err = ParseFlag(field, texts...)
		}
	})
	return err
}

// ParseFlag sets a value from texts as they stand on the command line.
func ParseFlag(v reflect.Value, texts ...string) (err error) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return ParseFlag(v.Elem(), texts...)
	case reflect.Slice:
		v.SetZero()
		for _, text := range texts {
			one := reflect.New(v.Type().Elem()).Elem()
			if err := ParseFlag(one, text); err != nil {
				return err
			}
			v.Set(reflect.Append(v, one))
		}
		return nil
	}
	text := strings.Join(texts, " ")
	kind := ""
	switch v.Interface().(type) {
	case time.Duration:
		var d time.Duration
		kind = "a duration such as 500ms, 30s or 5m"
		d, err = time.ParseDuration(text)
		v.SetInt(int64(d))
	case netip.Prefix:
		var p netip.Prefix
		kind = "an address or a network such as 10.0.0.0/8"
		p, err = parseNetwork(text)
		v.Set(reflect.ValueOf(p))
	case Certificates:
		c, err := readCertificates(text)
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(c))
	case Units:
		for _, name := range texts {
			if err := remote.ValidUnit(name); err != nil { // a blank would make two of it
				return err
			}
		}
		v.SetString(text)
	default:
		switch v.Kind() {
		case reflect.String:
			v.SetString(text)
		case reflect.Bool:
			var b bool
			kind = "true or false"
			b, err = strconv.ParseBool(text)
			v.SetBool(b)
		case reflect.Int:
			var n int
			kind = "a whole number"
			if n, err = strconv.Atoi(text); err == nil && strconv.Itoa(n) != text {
				// urfave/cli, and YAML, take 010 for 8.
				kind = fmt.Sprintf("a plainly written number; is %d meant?", n)
				err = strconv.ErrSyntax
			}
			v.SetInt(int64(n))
		default:
			panic("drain: no flag sets a " + v.Type().String())
		}
	}
	if err != nil {
		return fmt.Errorf("%q is not %s", text, kind)
	}
	return nil
}

// parseNetwork reads a network, or a single address.
func parseNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
		p, err = a.Prefix(a.BitLen())
	}
	return p.Masked(), err
}

// CheckURL refuses what --health and --status-url cannot be: a URL that cannot be asked,
// or one that holds a secret. {host}, {address}, {port} and {upstream} may be in it.
func CheckURL(text string) error { return remote.CheckURL(example(text)) }

// example fills in what stands in braces.
func example(text string) string {
	return strings.NewReplacer("{host}", "host", "{address}", "address", "{port}", "1", "{upstream}", "upstream").Replace(text)
}

// check refuses URLs that hold a secret: the spec may come from the journal of an earlier
// drainctl.
func (s Settings) check() error {
	for flag, text := range map[string]string{"health": s.Health, "status-url": s.StatusURL} {
		if err := CheckURL(text); errors.Is(err, remote.ErrSecret) {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return nil
}

// Only is the JSON of those settings alone whose flags are named, as PerUpstream and
// PerBackend have them.
func (s Settings) Only(flags ...string) (json.RawMessage, error) {
	return json.Marshal(only(reflect.ValueOf(s), flags))
}

func only(v reflect.Value, flags []string) map[string]any {
	fields := map[string]any{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case f.Type.Kind() != reflect.Struct:
			if slices.Contains(flags, f.Tag.Get("flag")) {
				fields[jsonName(f)] = v.Field(i).Interface()
			}
		default:
			if inner := only(v.Field(i), flags); len(inner) > 0 {
				fields[jsonName(f)] = inner
			}
		}
	}
	return fields
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// Any tells whether it is so in the settings of the spec, or in those of one of its
// upstreams or backends.
func (s Spec) Any(is func(Settings) bool) bool {
	any := is(s.Settings)
	for name := range s.PerUpstream {
		set, err := s.SettingsOf([]string{name}, nil)
		any = any || err == nil && is(set)
	}
	for name := range s.PerBackend {
		set, err := s.SettingsOf(nil, []string{name})
		any = any || err == nil && is(set)
	}
	return any
}

// mixed is the settings by name that a continuation has: the fields that it keeps as
// from has them, the others as they are now.
func mixed(now, from map[string]json.RawMessage, kept func(reflect.StructField) bool) (per map[string]json.RawMessage, err error) {
	all := map[string]map[string]json.RawMessage{}
	add := func(source map[string]json.RawMessage, want bool) error {
		for name, raw := range source {
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(raw, &fields); err != nil {
				return UsageError("settings of %s: %w", name, err)
			}
			for i := range reflect.TypeFor[Settings]().NumField() {
				if f := reflect.TypeFor[Settings]().Field(i); kept(f) != want {
					delete(fields, jsonName(f))
				}
			}
			if all[name] == nil {
				all[name] = map[string]json.RawMessage{}
			}
			maps.Copy(all[name], fields)
		}
		return nil
	}
	if err := errors.Join(add(now, false), add(from, true)); err != nil || len(all) == 0 {
		return nil, err
	}
	per = map[string]json.RawMessage{}
	for name, fields := range all {
		if per[name], err = json.Marshal(fields); err != nil {
			return nil, err
		}
	}
	return per, nil
}
