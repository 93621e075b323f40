package cli

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/remote"
)

// choices are the values of flags that take one of a few.
var choices = map[string][]string{
	"on-timeout": {string(drain.TimeoutRollback), string(drain.TimeoutLeave), string(drain.TimeoutStop)},
	"on-failure": {string(drain.FailureLeave), string(drain.FailureUndrain)},
	"poll":       {string(drain.CounterSS), string(drain.CounterLB), string(drain.CounterStubStatus)},
	"output":     {"text", "json"},
}

// least is the lowest value of a flag that counts; a time must be longer than 0,
// where it is 1.
var least = map[string]int64{
	"threshold": 0, "min-up": 0, "keep": 0, "skip-unreachable-lb": 0, "parallel": 1,
	"timeout": 0, "health-timeout": 0, "interval": 1, "stop-timeout": 1, "reload-timeout": 1,
	"max-failures": 0, "max-generations": 0, "pause": 0, "canary-wait": 0, "reboot-timeout": 1,
}

// checkFlag refuses what a flag of the spec, or that key of the configuration file,
// cannot be. as is how it is called: --threshold, or FILE:LINE: threshold.
func checkFlag(as, name string, v reflect.Value) error {
	v = reflect.Indirect(v)
	if lowest, ok := least[name]; ok && v.Int() < lowest {
		switch {
		case lowest == 0:
			return usage("%s %v: must not be negative", as, v)
		case v.Kind() == reflect.Int64:
			return usage("%s %v: must be longer than 0", as, v)
		}
		return usage("%s %v: must be %d or more", as, v, lowest)
	}
	if few := choices[name]; few != nil {
		return oneOf(as, v.String(), few...)
	}
	switch name {
	case "ssh-port":
		if v.Int() < 1 || v.Int() > 65535 {
			return usage("%s %v: must be from 1 to 65535", as, v)
		}
	case "service":
		if err := remote.ValidUnit(v.String()); err != nil {
			return usage("%s: %v", as, err)
		}
	case "health":
		switch err := drain.CheckURL(v.String()); {
		case err == nil, v.String() == drain.HealthTCP:
		case errors.Is(err, remote.ErrSecret):
			return usage("%s: %v", as, err)
		default:
			return usage("%s: neither %q nor a URL: %v", as, drain.HealthTCP, err)
		}
	case "status-url":
		if err := drain.CheckURL(v.String()); err != nil {
			return usage("%s: %v", as, err)
		}
	case "state-dir", "nginx-conf":
		// It would be another one on each machine that it is asked from.
		if !filepath.IsAbs(v.String()) {
			return usage("%s %s: say the absolute path", as, v)
		}
	case "batch":
		if _, err := drain.BatchSize(v.String(), 1); err != nil {
			return usage("%s %v", as, err)
		}
	case "test-command", "reload-command", "only-if", "gate":
		if command, err := remote.Split(v.String()); err != nil || len(command) == 0 {
			return usage("%s %q: not a command line: %v", as, v.String(), err)
		}
	case "lb":
		for i := range v.Len() {
			if err := checkLB(as, v.Index(i).String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLB refuses what cannot be a host to log in to.
func checkLB(as, lb string) error {
	_, host, found := strings.Cut(lb, "@")
	if !found {
		host = lb
	}
	if host == "" || strings.HasPrefix(lb, "@") || strings.HasPrefix(host, "-") || strings.ContainsAny(host, " \t\n/") {
		return usage("%s %q: say HOST, USER@HOST or HOST:PORT", as, lb)
	}
	return nil
}

// oneOf tells whether value is one of the words a flag takes.
func oneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return usage("%s %q is none of %s", flag, value, strings.Join(words, ", "))
}
