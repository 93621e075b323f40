package spec

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// choices are the values of flags that take one of a few.
var choices = map[string][]string{
	"on-timeout": {string(TimeoutRollback), string(TimeoutLeave), string(TimeoutStop)},
	"on-failure": {string(FailureLeave), string(FailureUndrain)},
	"poll":       {string(CounterSS), string(CounterLB), string(CounterStubStatus)},
}

// least is the lowest value of a flag that counts; a time must be longer than 0,
// where it is 1.
var least = map[string]int64{
	"threshold": 0, "min-up": 0, "keep": 0, "skip-unreachable-lb": 0, "parallel": 1,
	"timeout": 0, "health-timeout": 0, "interval": 1, "stop-timeout": 1, "reload-timeout": 1,
	"max-failures": 0, "max-generations": 0, "pause": 0, "canary-wait": 0, "reboot-timeout": 1,
}

// Choices is the values of a flag that takes one of a few; nil: it takes others.
func Choices(flag string) []string { return choices[flag] }

// Least is the lowest value of a flag that counts. A time must be longer than 0 where
// it is 1.
func Least(flag string) int64 { return least[flag] }

// CheckFlag refuses what a flag of the spec, or that key of the configuration file,
// cannot be. as is how it is called: --threshold, or FILE:LINE: threshold.
func CheckFlag(as, name string, v reflect.Value) error {
	v = reflect.Indirect(v)
	if lowest, ok := least[name]; ok && v.Int() < lowest {
		switch {
		case lowest == 0:
			return fmt.Errorf("%s %v: must not be negative", as, v)
		case v.Type() == reflect.TypeFor[time.Duration]():
			return fmt.Errorf("%s %v: must be longer than 0", as, v)
		}
		return fmt.Errorf("%s %v: must be %d or more", as, v, lowest)
	}
	if few := choices[name]; few != nil {
		return OneOf(as, v.String(), few...)
	}
	switch name {
	case "ssh-port":
		if v.Int() < 1 || v.Int() > 65535 {
			return fmt.Errorf("%s %v: must be from 1 to 65535", as, v)
		}
	case "service":
		return checkUnits(as, Units(v.String()).List())
	case "health":
		switch err := CheckURL(v.String()); {
		case err == nil, v.String() == HealthTCP:
		case errors.Is(err, remote.ErrSecret):
			return fmt.Errorf("%s: %w", as, err)
		default:
			return fmt.Errorf("%s: neither %q nor a URL: %w", as, HealthTCP, err)
		}
	case "health-host":
		if u, err := url.Parse("http://" + example(v.String())); err != nil || u.Hostname() == "" || u.Host != example(v.String()) {
			return fmt.Errorf("%s %q: say HOST or HOST:PORT", as, v.String())
		}
	case "health-ca":
		if _, err := certificatesOf([]byte(v.String())); err != nil {
			return fmt.Errorf("%s: %w", as, err)
		}
	case "status-url":
		if err := CheckURL(v.String()); err != nil {
			return fmt.Errorf("%s: %w", as, err)
		}
	case "state-dir", "nginx-conf":
		// It would be another one on each machine that it is asked from.
		if !filepath.IsAbs(v.String()) {
			return fmt.Errorf("%s %s: say the absolute path", as, v)
		}
	case "batch":
		if _, err := BatchSize(v.String(), 1); err != nil {
			return fmt.Errorf("%s %w", as, err)
		}
	case "test-command", "reload-command", "only-if", "gate":
		if command, err := remote.Split(v.String()); err != nil || len(command) == 0 {
			return fmt.Errorf("%s %q: not a command line: %w", as, v.String(), cmp.Or(err, errors.New("no words")))
		}
	case "lb":
		for i := range v.Len() {
			if err := CheckLB(as, v.Index(i).String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkUnits refuses names that are none of units, and a unit that is named twice.
func checkUnits(as string, names []string) error {
	for i, name := range names {
		if err := remote.ValidUnit(name); err != nil {
			return fmt.Errorf("%s: %w", as, err)
		}
		if Units(strings.Join(names[:i], " ")).Shares(Units(name)) {
			return fmt.Errorf("%s: the unit %s is named twice", as, name)
		}
	}
	return nil
}

// CheckLB refuses what cannot be a host to log in to.
func CheckLB(as, lb string) error {
	_, host, found := strings.Cut(lb, "@")
	if !found {
		host = lb
	}
	if host == "" || strings.HasPrefix(lb, "@") || strings.HasPrefix(host, "-") || strings.ContainsAny(host, " \t\n/") {
		return fmt.Errorf("%s %q: say HOST, USER@HOST or HOST:PORT", as, lb)
	}
	return nil
}

// OneOf refuses a value that is none of the words a flag takes.
func OneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return fmt.Errorf("%s %q is none of %s", flag, value, strings.Join(words, ", "))
}

// CheckToRecord refuses a spec that the command line would not make: a caller of an agent
// says what is recorded, and others act on it.
func (s Spec) CheckToRecord() error {
	for _, text := range s.Targets {
		if _, err := nginx.ParseTarget(text); err != nil {
			return err
		}
	}
	for _, name := range slices.Concat(s.Upstreams, slices.Sorted(maps.Keys(s.PerUpstream)), slices.Sorted(maps.Keys(s.PerBackend))) {
		if IsFlagLike(name) {
			return fmt.Errorf("%.80q is not the name of an upstream or a backend", name)
		}
	}
	if s.Continues != "" && !IsID(s.Continues) {
		return fmt.Errorf("%.80q is not the ID of an operation", s.Continues)
	}
	s.Nginx = Nginx{} // of the agent's own command line
	err := checkFlags(s, func(string) bool { return false })
	for _, per := range []map[string]json.RawMessage{s.PerUpstream, s.PerBackend} {
		for _, name := range slices.Sorted(maps.Keys(per)) {
			err = errors.Join(err, checkSettings(name, per[name]))
		}
	}
	return err
}

// checkSettings refuses the settings of an upstream or a backend that have a value which a
// configuration file would not have.
func checkSettings(name string, text json.RawMessage) error {
	var set Settings
	var fields map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(text, &set), json.Unmarshal(text, &fields)); err != nil {
		return fmt.Errorf("settings of %.80q: %w", name, err)
	}
	counts := map[string]bool{} // flags whose zero value is one that was set
	for f := range reflect.TypeFor[Settings]().Fields() {
		flag, _ := f.Tag.Lookup("flag")
		_, isSet := fields[jsonName(f)]
		_, hasLeast := least[flag]
		counts[flag] = isSet && (hasLeast || choices[flag] != nil)
	}
	if err := checkFlags(set, func(flag string) bool { return counts[flag] }); err != nil {
		return fmt.Errorf("settings of %.80q: %w", name, err)
	}
	return nil
}

// checkFlags checks the fields that flags set. A zero value is the default, unless it
// counts.
func checkFlags(of any, zeroCounts func(flag string) bool) (err error) {
	EachFlag(of, func(name string, v reflect.Value) {
		if !v.IsZero() || zeroCounts(name) {
			err = errors.Join(err, CheckFlag("--"+name, name, v))
		}
	})
	return err
}

// operationID is an ID that no program takes for a flag (journal.NewID).
var operationID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]{0,63}$`)

// IsID reports whether a text is the ID of an operation, and no flag.
func IsID(text string) bool { return operationID.MatchString(text) }

// IsFlagLike reports whether a program may take a name for a flag, or a terminal for more
// than a name.
func IsFlagLike(name string) bool {
	return strings.HasPrefix(name, "-") || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
