package cli

import (
	"reflect"

	"github.com/drainctl/drainctl/drain/spec"
)

// choicesOf is the values of a flag that takes one of a few; nil: it takes others.
func choicesOf(flag string) []string {
	if flag == "output" {
		return []string{"text", "json"}
	}
	return spec.Choices(flag)
}

// checkFlag refuses what a flag of the spec, or that key of the configuration file,
// cannot be. as is how it is called: --threshold, or FILE:LINE: threshold.
func checkFlag(as, name string, v reflect.Value) error {
	return usageOf(spec.CheckFlag(as, name, v))
}

// checkLB refuses what cannot be a host to log in to.
func checkLB(as, lb string) error { return usageOf(spec.CheckLB(as, lb)) }

// usageOf is an error of the command line; nil for nil.
func usageOf(err error) error {
	if err == nil {
		return nil
	}
	return usage("%v", err)
}
