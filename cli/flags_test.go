package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/spec"
)

// A heard is what a command line came to: what the commands would have worked
// with, and what a person would have seen.
type heard struct {
	reached bool // it got as far as a command
	spec    spec.Spec
	name    string // of what to resume, or to show
	dryRun  bool
	values  []show.ConfigValue
	json    bool
	metrics string
	page    string // file of it
	watch   bool
	asks    bool // the backends
	options show.Options
	code    int
	out     string
	err     string
}

// hear runs a command line up to where its flags have been read.
func hear(words ...string) *heard {
	var out, errOut bytes.Buffer
	h := &heard{}
	s := newSession(&out, &errOut)
	s.newView = func(output string, options show.Options) show.View {
		h.json, h.options = output == "json", options
		return s.viewFor(output, options)
	}
	got := func(sp spec.Spec, name string) error {
		h.reached, h.spec, h.name = true, sp, name
		h.metrics, h.watch, h.asks = s.metrics, s.watch, s.backends
		return shownError{nil}
	}
	s.operate = func(_ context.Context, sp spec.Spec, dryRun bool) error {
		h.dryRun = dryRun
		return got(sp, "")
	}
	s.resume = func(_ context.Context, sp spec.Spec, name string) error { return got(sp, name) }
	s.show = func(_ context.Context, sp spec.Spec) error { return got(sp, "") }
	s.check = func(_ context.Context, sp spec.Spec) error { return got(sp, "") }
	s.list = func(_ context.Context, sp spec.Spec, id, page string) error {
		h.page = page
		return got(sp, id)
	}
	s.begin = func(_ context.Context, sp spec.Spec, path string) error { return got(sp, path) }
	s.serve = func(_ context.Context, sp spec.Spec) error {
		sp.Nginx = sp.Nginx.Or(s.system) // as the agent does
		return got(sp, "")
	}
	s.explain = func(sp spec.Spec, _ []string, values []show.ConfigValue) error {
		h.values = values
		return got(sp, "")
	}
	if slices.Contains(words, "run") && !slices.Contains(words, "--") {
		words = append(words, "--", "./deploy.sh") // it needs something to do
	}
	s.publish = func(*show.Record) {}
	h.code = s.run(append([]string{"drainctl"}, words...))
	h.out, h.err = out.String(), errOut.String()
	return h
}

// refused checks that a command line ended as one that makes no sense.
func (h *heard) refused(t *testing.T, because ...string) {
	t.Helper()
	if h.code != 2 || h.reached {
		t.Errorf("exit code %d, and it got as far as the command (%t): want 2 and nothing done", h.code, h.reached)
	}
	if h.out != "" {
		t.Errorf("standard output has %q, want nothing", h.out)
	}
	for _, text := range append([]string{"drainctl: error: "}, because...) {
		if !strings.Contains(h.err, text) {
			t.Errorf("standard error has %q, want %q in it", h.err, text)
		}
	}
}

// An arrival is a flag's value, not its default, and where it is seen to have
// arrived.
type arrival struct {
	value string
	want  any
	got   func(*heard) any
	with  []string // what else must stand on the line for it to make sense
	// more is a second value, of a flag that is repeatable.
	more string
}

// lbFile is a file of load balancers.
const lbFile = "../testdata/lbs.txt"

// caFile is a certificate.
const caFile = "../testdata/ca.pem"

// configFile has groups of load balancers.
const configFile = "../testdata/drainctl.yaml"

// arrivals has every flag of every command. A flag that is not here fails the
// test.
func arrivals() map[string]arrival {
	forStop, forURL := []string{"--service", "app"}, []string{"--health", "https://app/"}
	ca, _ := os.ReadFile(caFile)
	forSSH := append([]string{"--backends"}, forStop...)
	return map[string]arrival{
		"service":                {value: "my-web-app", want: []string{"my-web-app"}, got: func(h *heard) any { return h.spec.Service.List() }, more: "my-web-app.socket"},
		"threshold":              {value: "7", want: 7, got: func(h *heard) any { return h.spec.Threshold }},
		"interval":               {value: "1.5s", want: 1500 * time.Millisecond, got: func(h *heard) any { return h.spec.Interval }},
		"timeout":                {value: "0", want: time.Duration(0), got: func(h *heard) any { return h.spec.Timeout }},
		"on-timeout":             {value: "stop", want: spec.TimeoutStop, got: func(h *heard) any { return h.spec.OnTimeout }, with: forStop},
		"poll":                   {value: "lb", want: spec.CounterLB, got: func(h *heard) any { return h.spec.Counter }},
		"status-url":             {value: "http://192.168.1.10/nginx?a=b", want: "http://192.168.1.10/nginx?a=b", got: func(h *heard) any { return h.spec.StatusURL }, with: []string{"--poll", "stub_status"}},
		"dry-run":                {value: "true", want: true, got: func(h *heard) any { return h.dryRun }},
		"min-up":                 {value: "2", want: 2, got: func(h *heard) any { return h.spec.MinUp }},
		"allow-direct":           {value: "true", want: spec.Allow{Direct: true}, got: func(h *heard) any { return h.spec.Allow }},
		"allow-other-names":      {value: "true", want: spec.Allow{OtherNames: true}, got: func(h *heard) any { return h.spec.Allow }},
		"allow-shutdown-timeout": {value: "true", want: spec.Allow{ShutdownTimeout: true}, got: func(h *heard) any { return h.spec.Allow }},
		"allow-all-addresses":    {value: "true", want: spec.Allow{AllAddresses: true}, got: func(h *heard) any { return h.spec.Allow }},
		"allow-udp":              {value: "true", want: spec.Allow{UDP: true}, got: func(h *heard) any { return h.spec.Allow }},
		"accept-pending":         {value: "true", want: spec.Allow{Pending: true}, got: func(h *heard) any { return h.spec.Allow }},
		"allow-stopped-nginx":    {value: "true", want: spec.Allow{StoppedNginx: true}, got: func(h *heard) any { return h.spec.Allow }},
		"health-host":            {value: "app.example.com", want: "app.example.com", got: func(h *heard) any { return h.spec.HealthHost }, with: forURL},
		"health-ca":              {value: caFile, want: string(ca), got: func(h *heard) any { return string(h.spec.HealthCA) }, with: forURL},
		"health":                 {value: "https://app/ready", want: "https://app/ready", got: func(h *heard) any { return h.spec.Health }},
		"health-timeout":         {value: "90s", want: 90 * time.Second, got: func(h *heard) any { return h.spec.HealthTimeout }},
		"reload-timeout":         {value: "2m", want: 2 * time.Minute, got: func(h *heard) any { return h.spec.ReloadTimeout }},
		"nginx-conf":             {value: "/srv/a b/nginx.conf", want: spec.Nginx{Conf: "/srv/a b/nginx.conf"}, got: func(h *heard) any { return h.spec.Nginx }},
		"nginx":                  {value: "/opt/nginx", want: spec.Nginx{Path: "/opt/nginx"}, got: func(h *heard) any { return h.spec.Nginx }},
		"test-command":           {value: "docker exec 'the lb' nginx -t", want: spec.Nginx{TestCommand: "docker exec 'the lb' nginx -t"}, got: func(h *heard) any { return h.spec.Nginx }},
		"reload-command":         {value: "kill -HUP 1", want: spec.Nginx{ReloadCommand: "kill -HUP 1"}, got: func(h *heard) any { return h.spec.Nginx }},
		"state-dir":              {value: "/srv/drainctl", want: spec.Nginx{StateDir: "/srv/drainctl"}, got: func(h *heard) any { return h.spec.Nginx }},
		"keep":                   {value: "7", want: spec.Nginx{Keep: 7}, got: func(h *heard) any { return h.spec.Nginx }},
		"upstream":               {value: "pool", want: []string{"pool"}, got: func(h *heard) any { return h.spec.Upstreams }, more: "http/other"},
		"lb":                     {value: "deploy@lb1", want: []string{"deploy@lb1"}, got: func(h *heard) any { return h.spec.LBs }, more: "lb2:2222"},
		"group":                  {value: "deploy@lb3", want: []string{"deploy@lb3"}, got: func(h *heard) any { return h.spec.LBs }, more: "lb4", with: []string{"--config", configFile}},
		"config":                 {value: configFile, want: "drainctl.yaml", got: func(h *heard) any { return filepath.Base(h.spec.Config) }},
		"lb-from":                {value: lbFile, want: []string{"deploy@lb1", "lb2"}, got: func(h *heard) any { return h.spec.LBs }},
		"parallel":               {value: "8", want: 8, got: func(h *heard) any { return h.spec.Parallel }},
		"skip-unreachable-lb":    {value: "1", want: 1, got: func(h *heard) any { return h.spec.SkipUnreachable }},
		"on-backend":             {value: "true", want: true, got: func(h *heard) any { return h.spec.Rollout.OnBackend }},
		"reboot":                 {value: "true", want: true, got: func(h *heard) any { return h.spec.Rollout.Reboot }},
		"reboot-timeout":         {value: "3m", want: 3 * time.Minute, got: func(h *heard) any { return h.spec.Rollout.RebootTimeout }},
		"batch":                  {value: "25%", want: "25%", got: func(h *heard) any { return h.spec.Rollout.Batch }},
		"pause":                  {value: "30s", want: 30 * time.Second, got: func(h *heard) any { return h.spec.Rollout.Pause }},
		"canary":                 {value: "true", want: true, got: func(h *heard) any { return h.spec.Rollout.Canary }, with: []string{"--canary-wait", "1m"}},
		"canary-wait":            {value: "2m", want: 2 * time.Minute, got: func(h *heard) any { return h.spec.Rollout.CanaryWait }, with: []string{"--canary"}},
		"max-failures":           {value: "2", want: 2, got: func(h *heard) any { return h.spec.Rollout.MaxFailures }},
		"max-generations":        {value: "3", want: 3, got: func(h *heard) any { return *cmp.Or(h.spec.Rollout.MaxGenerations, new(int)) }},
		"on-failure":             {value: "undrain", want: spec.FailureUndrain, got: func(h *heard) any { return h.spec.Rollout.OnFailure }},
		"only-if":                {value: "test -e /x", want: "test -e /x", got: func(h *heard) any { return h.spec.Rollout.OnlyIf }},
		"gate":                   {value: "./ok {host}", want: "./ok {host}", got: func(h *heard) any { return h.spec.Rollout.Gate }},
		"together":               {value: "true", want: true, got: func(h *heard) any { return h.spec.Together }},
		"reason":                 {value: "disk is full", want: "disk is full", got: func(h *heard) any { return h.spec.Reason }},
		"wait":                   {value: "true", want: true, got: func(h *heard) any { return h.spec.Wait }},
		"force":                  {value: "true", want: true, got: func(h *heard) any { return h.spec.Force }},
		"as-recorded":            {value: "true", want: true, got: func(h *heard) any { return h.spec.AsRecorded }},
		"stop-timeout":           {value: "30m", want: 30 * time.Minute, got: func(h *heard) any { return h.spec.StopTimeout }, with: forStop},
		"ignore-peer":            {value: "172.16.0.0/12", want: "172.16.0.0/12", got: func(h *heard) any { return join(h.spec.IgnorePeers) }, more: "192.168.1.3/32"},
		"ssh-user":               {value: "deploy", want: spec.SSH{User: "deploy"}, got: func(h *heard) any { return h.spec.SSH }, with: forSSH},
		"ssh-port":               {value: "2222", want: spec.SSH{Port: 2222}, got: func(h *heard) any { return h.spec.SSH }, with: forSSH},
		"identity":               {value: "/root/key", want: spec.SSH{Identity: "/root/key"}, got: func(h *heard) any { return h.spec.SSH }, with: forSSH},
		"ssh-host":               {value: "10.0.0.10", want: spec.SSH{Host: "10.0.0.10"}, got: func(h *heard) any { return h.spec.SSH }, with: forSSH},
		"output":                 {value: "json", want: true, got: func(h *heard) any { return h.json }},
		"metrics":                {value: "../testdata/drainctl.prom", want: "../testdata/drainctl.prom", got: func(h *heard) any { return h.metrics }},
		"html":                   {value: "page.html", want: "page.html", got: func(h *heard) any { return h.page }},
		"backends":               {value: "true", want: true, got: func(h *heard) any { return h.asks }},
		"watch":                  {value: "true", want: true, got: func(h *heard) any { return h.watch }, with: []string{"--output", "json"}},
		"no-color":               {value: "true", want: true, got: func(h *heard) any { return h.options.Plain }},
		"verbose":                {value: "true", want: true, got: func(h *heard) any { return h.options.Verbose }},
	}
}

// Each field of a spec that a flag sets has that flag, on drain, undrain or run, and
// the spec says that it was given.
func TestEveryFieldHasItsFlag(t *testing.T) {
	var fields []string
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if name := f.Tag.Get("flag"); name != "" {
				fields = append(fields, name)
			} else if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[spec.Spec]())
	known := arrivals()
	for _, name := range fields {
		found := false
		for _, cmd := range newApp(newSession(nil, nil)).Commands {
			if (cmd.Name != "drain" && cmd.Name != "undrain" && cmd.Name != "run") || findFlag(cmd.Flags, name) == nil {
				continue
			}
			found = true
			a := known[name]
			h := hear(append(append([]string{cmd.Name, "192.168.1.10"}, commandHas(cmd, a.with)...), "--"+name+"="+a.value)...)
			if h.code != 0 || !slices.Contains(h.spec.Given, name) || !reflect.DeepEqual(a.got(h), a.want) {
				t.Errorf("%s --%s: exit code %d %s, given %q, %v", cmd.Name, name, h.code, h.err, h.spec.Given, a.got(h))
			}
		}
		if !found {
			t.Errorf("no flag --%s on drain, undrain or run, for the field of that tag", name)
		}
	}
	t.Logf("%d fields", len(fields))
}

// join is the values of a repeatable flag.
func join[T any](values []T) string {
	var texts []string
	for _, v := range values {
		texts = append(texts, fmt.Sprint(v))
	}
	return strings.Join(texts, " ")
}

// eachFlag runs a test for every flag of every command but those for help.
func eachFlag(t *testing.T, test func(t *testing.T, cmd *cli.Command, f cli.Flag, a arrival)) {
	t.Helper()
	known := arrivals()
	for _, cmd := range newApp(newSession(nil, nil)).Commands {
		for _, f := range cmd.Flags {
			name := f.Names()[0]
			if findFlag(helpFlags(), name) != nil {
				continue
			}
			t.Run(cmd.Name+"/"+name, func(t *testing.T) {
				a, ok := known[name]
				if !ok {
					t.Fatalf("no test that the value of --%s arrives; add it to arrivals", name)
				}
				test(t, cmd, f, a)
			})
		}
	}
}

// spellings is every way to write a flag and its value.
func spellings(f cli.Flag, value string) [][]string {
	var all [][]string
	for _, name := range f.Names() {
		for _, word := range []string{"--" + name, "-" + name} {
			if takesValue(f) {
				all = append(all, []string{word, value})
			} else {
				all = append(all, []string{word})
			}
			all = append(all, []string{word + "=" + value})
		}
	}
	return all
}

// argument is what a command is given on these lines; some take none.
func argument(cmd string) []string {
	if cmd == "agent" || cmd == "init" {
		return nil
	}
	return []string{"192.168.1.10"}
}

// places is every place on the line: before the command, between the command
// and its argument, after the argument.
func places(cmd string, with, flag []string) [][]string {
	target := argument(cmd)
	all := [][]string{
		slices.Concat(flag, []string{cmd}, target, with),
		slices.Concat([]string{cmd}, flag, target, with),
		slices.Concat([]string{cmd}, target, with, flag),
		slices.Concat(with, flag, []string{cmd}, target),
		slices.Concat([]string{cmd}, with, flag, []string{"--"}, target),
	}
	if cmd == "run" { // its command comes after --
		all = all[:4]
	}
	return all
}

func TestFlagsWorkAnywhere(t *testing.T) {
	lines := 0
	eachFlag(t, func(t *testing.T, cmd *cli.Command, f cli.Flag, a arrival) {
		for _, flag := range spellings(f, a.value) {
			for _, line := range places(cmd.Name, commandHas(cmd, a.with), flag) {
				lines++
				h := hear(line...)
				if h.code != 0 {
					t.Errorf("drainctl %s: exit code %d: %s", strings.Join(line, " "), h.code, h.err)
					continue
				}
				if got := a.got(h); !reflect.DeepEqual(got, a.want) {
					t.Errorf("drainctl %s: got %#v, want %#v", strings.Join(line, " "), got, a.want)
				}
			}
		}
	})
	t.Logf("%d command lines", lines)
}

// commandHas is the words, but for flags that the command has not.
func commandHas(cmd *cli.Command, words []string) (has []string) {
	known := true
	for _, w := range words {
		if name, _, _, ok := flagWord(w); ok {
			known = findFlag(cmd.Flags, name) != nil
		}
		if known {
			has = append(has, w)
		}
	}
	return has
}

func TestFlagsAsEnvironment(t *testing.T) {
	eachFlag(t, func(t *testing.T, cmd *cli.Command, f cli.Flag, a arrival) {
		t.Setenv(envName(f.Names()[0]), a.value)
		h := hear(slices.Concat([]string{cmd.Name}, argument(cmd.Name), commandHas(cmd, a.with))...)
		if h.code != 0 {
			t.Fatalf("exit code %d: %s", h.code, h.err)
		}
		got := a.got(h)
		if taken := reflect.DeepEqual(got, a.want); taken == (cmd.Name == "agent") {
			t.Errorf("got %#v of %#v; the agent takes nothing from the environment, which may be its caller's", got, a.want)
		}
	})
}

// The line wins over the environment: what is typed last, and here, is meant.
func TestLineBeforeEnvironment(t *testing.T) {
	t.Setenv("DRAINCTL_TIMEOUT", "1h")
	t.Setenv("DRAINCTL_UPSTREAM", "other")
	t.Setenv("DRAINCTL_DRY_RUN", "true")
	h := hear("drain", "192.168.1.10", "--timeout", "2s", "--upstream", "pool", "--dry-run=false")
	if h.code != 0 || h.spec.Timeout != 2*time.Second || !reflect.DeepEqual(h.spec.Upstreams, []string{"pool"}) || h.dryRun {
		t.Errorf("exit code %d %s; spec %+v, dry run %t", h.code, h.err, h.spec, h.dryRun)
	}
}

// An environment may be made for several commands and kinds of run; what is
// typed is for this one.
func TestEnvironmentOfOtherRuns(t *testing.T) {
	t.Setenv("DRAINCTL_HEALTH", "http://app/ready")
	t.Setenv("DRAINCTL_SSH_USER", "deploy")
	if h := hear("drain", "192.168.1.10", "--poll", "lb"); h.code != 0 {
		t.Errorf("exit code %d: %s", h.code, h.err)
	}
	hear("drain", "192.168.1.10", "--poll", "lb", "--ssh-user", "root").refused(t, "--ssh-user has no effect")
}

func TestEveryFlagBadlyUsed(t *testing.T) {
	eachFlag(t, func(t *testing.T, cmd *cli.Command, f cli.Flag, a arrival) {
		long := "--" + f.Names()[0]
		line := func(words ...string) *heard {
			return hear(slices.Concat([]string{cmd.Name}, argument(cmd.Name), commandHas(cmd, a.with), words)...)
		}
		if _, many := f.(*cli.StringSliceFlag); many {
			if h := line(long, a.value, long, a.more); h.code != 0 || !strings.Contains(fmt.Sprint(a.got(h)), a.value+" "+a.more) {
				t.Errorf("repeated: exit code %d, %s, %v", h.code, h.err, a.got(h))
			}
		} else {
			for _, one := range spellings(f, a.value) {
				for _, two := range spellings(f, a.value) {
					line(slices.Concat(one, two)...).refused(t, "is given twice")
				}
			}
		}
		if takesValue(f) {
			line(long).refused(t, long, "needs a value")
			line(long, "--").refused(t, long, "needs a value")
			line(long, "--state-dir").refused(t, long, "needs a value")
			if findFlag(cmd.Flags, "c") != nil {
				line(long, "-c").refused(t, long, "needs a value")
			}
			line(long, "").refused(t, long)
			hear(long).refused(t, long)
		}
		line(long+"=").refused(t, long)
		switch f.(type) {
		case *cli.BoolFlag:
			for _, v := range []string{"yes", "on", "2", "tru", " true"} {
				line(long+"="+v).refused(t, long, "is not true or false")
			}
			// A word after it is an argument.
			line(long, "true").refused(t, long+"=true")
		case *cli.IntFlag:
			for _, v := range []string{"x", "1.5", "1e3", "0x10", "1_000", "010", "+1", " 1", "١", "99999999999999999999"} {
				line(long, v).refused(t, long)
			}
			line(long, "-1").refused(t, long)
		case *cli.DurationFlag:
			for _, v := range []string{"5", "x", "5 s", "5sec", "1d", "5m0", "NaN", "-", "9999999h"} {
				line(long, v).refused(t, long, "is not a duration")
			}
			line(long, "-1s").refused(t, long)
		}
		line(long+"x", a.value).refused(t, "unknown flag "+long+"x", "\ndrainctl: hint: did you mean "+long+"?")
		variable := envName(f.Names()[0])
		t.Setenv(variable, "")
		line().refused(t, variable, "is empty")
		switch f.(type) {
		case *cli.StringFlag, *cli.StringSliceFlag:
		default:
			t.Setenv(variable, "bad")
			line().refused(t, variable, `"bad" is not`)
		}
	})
}

func TestEnvironmentMisspelt(t *testing.T) {
	eachFlag(t, func(t *testing.T, cmd *cli.Command, f cli.Flag, a arrival) {
		right := envName(f.Names()[0])
		for _, wrong := range []string{right + "S", strings.ToLower(right), right[:len(right)-1]} {
			t.Setenv(wrong, a.value)
			h := hear(append([]string{cmd.Name}, argument(cmd.Name)...)...)
			os.Unsetenv(wrong)
			h.refused(t, "the environment variable "+wrong+" is no flag's\ndrainctl: hint: did you mean")
		}
	})
}

func TestHelpAnywhere(t *testing.T) {
	app := newApp(newSession(nil, nil))
	for _, cmd := range commandNames(app) {
		noFlag := len(app.Command(cmd).Flags) == len(helpFlags())
		lines := func(word string) [][]string {
			all := [][]string{{cmd, word}, {word, cmd}, {cmd, "192.168.1.10", word}, {cmd, word, "192.168.1.10"}, {word, cmd, "192.168.1.10"}}
			if !noFlag {
				all = append(all, []string{cmd, "192.168.1.10", word, "--state-dir=/x"}, []string{"--state-dir", "x", cmd, "192.168.1.10", word})
			}
			return all
		}
		for _, word := range []string{"--help", "-h", "-help", "--help=true", "--help-all", "-help-all"} {
			for _, line := range lines(word) {
				h := hear(line...)
				if h.code != 0 || h.err != "" || h.reached || !strings.Contains(h.out, "\nUsage: drainctl "+cmd) || (strings.Contains(word, "all") && strings.Contains(h.out, "--state-dir") == noFlag) {
					t.Errorf("drainctl %s: exit code %d, error %q, output %.80q", strings.Join(line, " "), h.code, h.err, h.out)
				}
			}
		}
	}
	for _, line := range [][]string{{}, {"--help"}, {"-h"}, {"--help-all"}} {
		h := hear(line...)
		if h.code != 0 || h.err != "" || !strings.Contains(h.out, "undrain") {
			t.Errorf("drainctl %v: exit code %d, error %q, output %.80q", line, h.code, h.err, h.out)
		}
	}
	for _, line := range [][]string{{"--version"}, {"-v"}} {
		h := hear(line...)
		if h.code != 0 || h.err != "" || !strings.HasPrefix(h.out, "drainctl version ") {
			t.Errorf("drainctl %v: exit code %d, error %q, output %.80q", line, h.code, h.err, h.out)
		}
	}
}

// Every flag's help says what it is for, and the flags that belong to an
// environment variable are the ones that the program reads it for.
func TestFlagsAreDescribed(t *testing.T) {
	eachFlag(t, func(t *testing.T, cmd *cli.Command, f cli.Flag, _ arrival) {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok || doc.GetUsage() == "" {
			t.Error("no usage text")
		}
		want := []string{envName(f.Names()[0])}
		if cmd.Name == "agent" { // it runs as root, and the environment may be its caller's
			want = nil
		}
		if ok && !slices.Equal(doc.GetEnvVars(), want) {
			t.Errorf("environment variables %v, want %v", doc.GetEnvVars(), want)
		}
	})
}

func TestSenselessLines(t *testing.T) {
	for _, test := range []struct {
		line    string
		because string
	}{
		{"drain", "drain needs a TARGET"},
		{"undrain", "undrain needs a TARGET"},
		{"drain a -- --dry-run", "target \"--dry-run\": it looks like a flag\ndrainctl: hint: flags stand before --"},
		{"drian 192.168.1.10", "unknown command \"drian\"\ndrainctl: hint: did you mean drain?"},
		{"help", `unknown command "help"`},
		{"-- drain a", `unknown command "--"`},
		{"192.168.1.10 drain", `unknown command "192.168.1.10"`},
		{"--service drain 192.168.1.10", `unknown command "192.168.1.10"`},
		{"--verbose", "--verbose needs a command\ndrainctl: hint: commands are drain, undrain, run, resume, "},
		{"--output json", "--output needs a command"},
		{"--dryrun drain a", "unknown flag --dryrun"},
		{"drain a --dryrun", "unknown flag --dryrun for drain\ndrainctl: hint: did you mean --dry-run?"},
		{"drain a --version", "unknown flag --version for drain"},
		{"drain a -x", "unknown flag -x for drain"},
		{"drain a -sweb", "unknown flag --sweb for drain"},
		{"drain a ---dry-run", "unknown flag ---dry-run for drain"},
		{"drain a -=x", "unknown flag"},
		{"status a --dry-run", "unknown flag --dry-run for status"},
		{"resume a b", `resume takes one ID or TARGET; "b" is one argument too many`},
		{"resume a --dry-run", "unknown flag --dry-run for resume"},
		{"resume a --service app", "unknown flag --service for resume"},
		{"history a b", `history takes one ID; "b" is one argument too many`},
		{"history --html page.html", "--html needs the ID of an operation"},
		{"history a --nginx-conf /x", "unknown flag --nginx-conf for history"},
		{"drain a --force", "unknown flag --force for drain"},
		{"undrain a --ignore-peer 10.0.0.1", "unknown flag --ignore-peer for undrain"},
		{"drain a --ignore-peer 10.0.0.0/33", "--ignore-peer"},
		{"drain a --ignore-peer monitor", "--ignore-peer"},
		{"drain a --stop-timeout 0", "--stop-timeout 0s: must be longer than 0"},
		{"drain a --state-dir x", "--state-dir x: say the absolute path"},
		{"history --state-dir x", "--state-dir x: say the absolute path"},
		{"status --state-dir ./x", "--state-dir ./x: say the absolute path"},
		{"resume --state-dir x", "--state-dir x: say the absolute path"},
		{"drain a --lb lb1 -c nginx.conf", "--nginx-conf nginx.conf: say the absolute path"},
		{"drain a --lb user@", `--lb "user@": say HOST, USER@HOST or HOST:PORT`},
		{"drain a --lb -oProxyCommand=x", "--lb"},
		{"history --lb lb/1", `--lb "lb/1"`},
		{"undrain a --threshold 1", "unknown flag --threshold for undrain"},
		{"run a --batch 0", `--batch "0": say a number such as 2, or a percentage such as 25%`},
		{"run a --batch 101%", `--batch "101%": say a number`},
		{"run a --on-failure panic", `--on-failure "panic" is none of leave, undrain`},
		{"run a --max-failures -1", "--max-failures -1: must not be negative"},
		{"run a --max-generations -1", "--max-generations -1: must not be negative"},
		{"run a --reboot-timeout 0", "--reboot-timeout 0s: must be longer than 0"},
		{"run a --pause -1s", "--pause -1s: must not be negative"},
		{"run a --canary-wait 1m", "--canary-wait has no effect: it is for --canary"},
		{"run a --gate 'x", `--gate "'x": not a command line`},
		{"drain a --force", "unknown flag --force for drain"},
		{"drain a --threshold -1", "--threshold -1: must not be negative"},
		{"drain a --min-up -1", "--min-up -1: must not be negative"},
		{"drain a --interval 0", "--interval 0s: must be longer than 0"},
		{"drain a --timeout -1s", "--timeout -1s: must not be negative"},
		{"drain a --reload-timeout 0", "--reload-timeout 0s: must be longer than 0"},
		{"undrain a --health-timeout -1s", "--health-timeout -1s: must not be negative"},
		{"drain a --on-timeout panic", `--on-timeout "panic" is none of rollback, leave, stop`},
		{"drain a --on-timeout Leave", `--on-timeout "Leave" is none of`},
		{"drain a --on-timeout stop", "--on-timeout stop has nothing to stop\ndrainctl: hint: name the unit with --service"},
		{"drain a --timeout 0 --on-timeout leave", "--on-timeout has no effect: with --timeout 0 the time is never up"},
		{"drain a --poll netstat", `--poll "netstat" is none of ss, lb, stub_status`},
		{"drain a --poll stub_status", "--poll stub_status has no page to read\ndrainctl: hint: name it with --status-url"},
		{"drain a --poll stub_status --status-url ftp://a/", `--status-url: "ftp://a/" is not an http or https URL`},
		{"drain a --poll stub_status --status-url /status", `--status-url: "/status" is not an http or https URL`},
		{"drain a --status-url http://a/", "--status-url has no effect: it is for --poll stub_status"},
		{"drain a --output yaml", `--output "yaml" is none of text, json`},
		{"status --output JSON", `--output "JSON" is none of text, json`},
		{"undrain a --health udp", `--health: neither "tcp" nor a URL: "udp" is not an http or https URL`},
		{"undrain a --health http://", "--health:"},
		{"undrain a --health http://user:pw@{host}:{port}/", `--health: "http://xxxxx@host:1/": it holds a secret`},
		{"undrain a --health http://a/?token=t", `--health: "http://a/?token=xxxxx": it holds a secret`},
		{"drain a --poll stub_status --status-url http://pw@a/", `--status-url: "http://xxxxx@a/": it holds a secret`},
		{"drain a --ssh-port 0", "--ssh-port 0: must be from 1 to 65535"},
		{"drain a --ssh-port 65536", "--ssh-port 65536: must be from 1 to 65535"},
		{"drain a --poll lb --ssh-user u", "--ssh-user has no effect: nothing in this run is done over SSH"},
		{"drain a --poll lb --ssh-host h", "--ssh-host has no effect"},
		{"drain 127.0.0.1:8080 --service s --ssh-user u", "--ssh-user has no effect: 127.0.0.1:8080 is the load balancer itself"},
		{"drain unix:/run/app.sock --service s --identity k", "--identity has no effect: unix:/run/app.sock is the load balancer itself"},
		{"drain a --service ../x", "--service:"},
		{"drain a --service -x", "--service:"},
		{"undrain a --service a/b", "--service:"},
		{"drain a --test-command 'x", "--test-command \"'x\": not a command line"},
		{"drain a --reload-command \"x", "--reload-command"},
		{"drain 192.168.1.10:", "is not a port"},
		{"drain 192.168.1.10:http", "is not a port"},
		{"drain 192.168.1.10:0", "is not a port"},
		{"drain 192.168.1.10:65536", "is not a port"},
		{"drain http://192.168.1.10:8080", "target"},
		{"drain 192.168.1.10/24", "does not belong in a host name"},
		{"drain app;reboot", "does not belong in a host name"},
		{"drain [2001:db8::1", "no closing bracket"},
		{"drain [app1]:80", "is not an IPv6 address"},
		{"drain unix:", "no path"},
		{"drain unix:run/app.sock", "absolute path"},
		{"drain :8080", "no host"},
		{"status 192.168.1.10:x", "is not a port"},
	} {
		t.Run(test.line, func(t *testing.T) { hear(strings.Fields(test.line)...).refused(t, test.because) })
	}
	hear("drain", "").refused(t, "no host")
	hear("drain", " ").refused(t, "does not belong")
	hear("").refused(t, `unknown command ""`)
}

// Lines that look odd and are meant.
func TestSensibleLines(t *testing.T) {
	for _, line := range []string{
		"drain 127.0.0.1:8080 --service s --ssh-host 10.0.0.1 --ssh-user u",
		"drain a --poll stub_status --status-url http://127.0.0.1/s --ssh-user u", // asked on the backend
		"drain a --poll lb --service s --ssh-user u",
		"drain a --timeout 0",
		"drain a --service app@1.service",
		"drain a --service=app.service --on-timeout stop",
		"drain a --min-up 0 --threshold 0",
		"undrain a --health-timeout 0",
		"drain -- a",
		"drain a --",
		"-s x drain a",
		"drain a --upstream b --upstream http/c --upstream=stream/c",
		"status",
		"status --",
		"history",
		"history x",
		"resume",
		"resume 192.168.1.10",
		"resume 20260504-120000.000-abcd",
		"drain a --lb lb1 -c /etc/nginx/nginx.conf",
		"drain a --ignore-peer 2001:db8::/32 --ignore-peer=10.0.0.1,10.0.0.2",
		"undrain a --ssh-user u", // whether anything is done over SSH, the journal knows
	} {
		if h := hear(strings.Fields(line)...); h.code != 0 || !h.reached {
			t.Errorf("drainctl %s: exit code %d: %s", line, h.code, h.err)
		}
	}
}

// A relative path is what it is to the shell. nginx would take it to be below
// its own prefix.
func TestRelativeConf(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if h := hear("status", "-c", "nginx.conf"); h.code != 0 || h.spec.Nginx.Conf != dir+"/nginx.conf" {
		t.Errorf("exit code %d, configuration %q, want it in %s", h.code, h.spec.Nginx.Conf, dir)
	}
}

// Flags that are not given leave what the help says.
func TestDefaults(t *testing.T) {
	h := hear("drain", "192.168.1.10")
	want := spec.Spec{
		Kind: spec.Drain, Targets: []string{"192.168.1.10"},
		OnTimeout: spec.TimeoutRollback, ReloadTimeout: time.Minute, Parallel: 32,
		Settings: spec.Settings{
			Interval: 500 * time.Millisecond, Timeout: 5 * time.Minute, Counter: spec.CounterSS,
			Health: "tcp", HealthTimeout: time.Minute, StopTimeout: 2 * time.Minute, MinUp: 1,
		},
	}
	want.User, want.Host = whoAsks()
	h.spec.Upstreams = nil
	if !reflect.DeepEqual(h.spec, want) || h.dryRun {
		t.Errorf("got %+v, want %+v", h.spec, want)
	}
	if u := hear("undrain", "192.168.1.10"); u.spec.Kind != spec.Undrain || u.spec.Health != "tcp" {
		t.Errorf("undrain %+v", u.spec)
	}
}

// What is said to a resume now arrives; the rest is in the journal.
func TestResume(t *testing.T) {
	for _, name := range []string{"", "192.168.1.10", "20260504-120000.000-abcd"} {
		line := slices.DeleteFunc([]string{"resume", name, "--reason", "night shift"}, func(word string) bool { return word == "" })
		if h := hear(line...); h.code != 0 || h.name != name || h.spec.Reason != "night shift" || !slices.Equal(h.spec.Given, []string{"reason"}) {
			t.Errorf("drainctl %v: exit code %d %s, %q %+v", line, h.code, h.err, h.name, h.spec)
		}
	}
}

// Nothing to resume is a mistake of the command line, not a failure.
func TestNothingToResume(t *testing.T) {
	var out, errOut bytes.Buffer
	s := newSession(&out, &errOut)
	code := s.run([]string{"drainctl", "resume", "--state-dir", t.TempDir()})
	if code != 2 || out.Len() != 0 || !strings.Contains(errOut.String(), "drainctl: error: no operation was interrupted") {
		t.Errorf("exit code %d, %q, %q", code, out.String(), errOut.String())
	}
}
