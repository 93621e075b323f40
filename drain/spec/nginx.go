package spec

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Nginx is how nginx is run on an LB, and where its journal is, as far as the
// operator says so. What is run as root is never recorded.
type Nginx struct {
	Path          string `json:"path,omitempty" flag:"nginx"`
	Conf          string `json:"configuration,omitempty" flag:"nginx-conf" keep:"resume,undrain"`
	TestCommand   string `json:"test_command,omitempty" flag:"test-command"`
	ReloadCommand string `json:"reload_command,omitempty" flag:"reload-command"`
	StateDir      string `json:"state_dir,omitempty" flag:"state-dir" keep:"resume,undrain"`
	Keep          int    `json:"keep,omitempty" flag:"keep" keep:"resume,undrain"`
}

// Or is n, and what it leaves open as other has it.
func (n Nginx) Or(other Nginx) Nginx {
	to, from := reflect.ValueOf(&n).Elem(), reflect.ValueOf(other)
	for i := range to.NumField() {
		if to.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
	return n
}

// Options is how nginx is run, for the LB's own machine.
func (n Nginx) Options() (balancer.Options, error) {
	o := balancer.Options{Nginx: nginx.Binary{Path: n.Path, Conf: n.Conf}, StateDir: n.StateDir, Keep: n.Keep}
	for _, c := range []struct {
		flag, text string
		to         *[]string
	}{{"test-command", n.TestCommand, &o.Nginx.TestCommand}, {"reload-command", n.ReloadCommand, &o.Nginx.ReloadCommand}} {
		if c.text == "" {
			continue
		}
		words, err := remote.Split(c.text)
		if err != nil || len(words) == 0 {
			return o, UsageError("--%s %q: not a command line: %w", c.flag, c.text, errors.Join(err, errors.New("no words")))
		}
		*c.to = words
	}
	return o, nil
}

// AgentArgs is the command line of an agent with these options.
func (n Nginx) AgentArgs(program string) []string {
	args := []string{program, "agent"}
	eachFlag(reflect.ValueOf(n), func(name string, v reflect.Value) {
		if !v.IsZero() {
			args = append(args, "--"+name, fmt.Sprint(v.Interface()))
		}
	})
	return args
}
