// Package spec holds what an operator asks for: a [Spec], which flags write into, the journal stores,
// and resume reads back. It decides what a later operation inherits from the journal, and it has the
// ways in which a command ends: exit codes, findings and failures.
package spec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A Kind is what an operator asks for.
type Kind string

// The kinds of operations.
const (
	Drain   Kind = journal.KindDrain
	Undrain Kind = journal.KindUndrain
	Run     Kind = journal.KindRun
	Forget  Kind = journal.KindForget
)

// Counter names where open connections are counted.
type Counter string

// The connection counters: ss on the backend, the sockets of the load balancer, or the
// stub_status of the backend's own nginx.
const (
	CounterSS         Counter = "ss"
	CounterLB         Counter = "lb"
	CounterStubStatus Counter = "stub_status"
)

// OnTimeout is what a drain does when the backend is not drained in time.
type OnTimeout string

// What can be done when the time is up: roll back, leave the server down and the
// app running, or stop the app anyway.
const (
	TimeoutRollback OnTimeout = "rollback"
	TimeoutLeave    OnTimeout = "leave"
	TimeoutStop     OnTimeout = "stop"
)

// HealthTCP is the health check that only connects. The others take its place for a backend that is
// reached over UDP alone.
const (
	HealthTCP  = "tcp"
	HealthUDP  = "udp"  // the backend has the UDP ports open, and the service is active
	HealthNone = "none" // without a login there, nothing can be asked
)

// Defaults of a spec.
const (
	DefaultInterval      = 500 * time.Millisecond
	DefaultTimeout       = 5 * time.Minute
	DefaultHealthTimeout = 60 * time.Second
	DefaultReloadTimeout = 60 * time.Second
	DefaultStopTimeout   = 2 * time.Minute
	DefaultMinUp         = 1
	DefaultParallel      = 32
)

// A Spec is everything an operator asks for. Flags write into it, the journal
// stores it, and resume reads it back. A field's flag tag is the flag that sets
// it; keep says which later operations take it over where they are not told
// otherwise: an undrain that of the drain, a resume that of what it resumes. Of another
// user's drain, an undrain takes over the acting flags alone, with consent.
type Spec struct {
	Kind      Kind     `json:"kind" keep:"resume"`
	Targets   []string `json:"targets" keep:"resume"`
	Upstreams []string `json:"upstreams,omitempty" flag:"upstream" keep:"resume"`
	LBs       []string `json:"lbs,omitempty" flag:"lb"`        // none: this machine
	Config    string   `json:"config,omitempty" flag:"config"` // a file of settings, which were read from it into the rest

	Settings
	// PerUpstream and PerBackend are settings of single upstreams and backends, by
	// their names: the fields of Settings that differ there.
	PerUpstream map[string]json.RawMessage `json:"per_upstream,omitempty" keep:"resume,undrain"`
	PerBackend  map[string]json.RawMessage `json:"per_backend,omitempty" keep:"resume,undrain"`

	OnTimeout       OnTimeout     `json:"on_timeout,omitempty" flag:"on-timeout" keep:"resume"`
	ReloadTimeout   time.Duration `json:"reload_timeout_ns,omitempty" flag:"reload-timeout" keep:"resume,undrain"`
	Together        bool          `json:"together,omitempty" flag:"together" keep:"resume"` // one that fails takes all back
	Parallel        int           `json:"parallel,omitempty" flag:"parallel"`               // LBs at once
	SkipUnreachable int           `json:"skip_unreachable_lb,omitempty" flag:"skip-unreachable-lb"`

	Allow Allow `json:"allow" keep:"resume"`
	Force bool  `json:"force,omitempty" flag:"force" keep:"resume"` // undrain: clear a down that drainctl did not put there, too

	Nginx   Nginx   `json:"nginx"`
	Rollout Rollout `json:"rollout,omitzero" keep:"resume"` // of a Run

	User   string `json:"user"`
	Host   string `json:"host"`
	Reason string `json:"reason,omitempty" flag:"reason" keep:"resume"`
	Wait   bool   `json:"wait,omitempty" flag:"wait"` // for another operator's lock
	// AsRecorded consents to settings that another user recorded.
	AsRecorded bool              `json:"as_recorded,omitempty" flag:"as-recorded"`
	Continues  string            `json:"continues,omitempty"` // ID of the operation that is resumed
	Recorder   *journal.Recorder `json:"-"`                   // who recorded that one

	// Given are the flags that the operator set, on the line or in the
	// environment.
	Given []string `json:"given,omitempty"`
}

// Settings are what may differ from backend to backend, and from upstream to
// upstream.
type Settings struct {
	Service     Units          `json:"service,omitempty" flag:"service" keep:"resume,undrain"`
	Counter     Counter        `json:"counter,omitempty" flag:"poll" keep:"resume,undrain"`
	StatusURL   string         `json:"status_url,omitempty" flag:"status-url" keep:"resume,undrain"`
	Threshold   int            `json:"threshold,omitempty" flag:"threshold" keep:"resume,undrain"` // connections
	IgnorePeers []netip.Prefix `json:"ignore_peers,omitempty" flag:"ignore-peer" keep:"resume,undrain"`
	Interval    time.Duration  `json:"interval_ns,omitempty" flag:"interval" keep:"resume,undrain"`
	Timeout     time.Duration  `json:"timeout_ns" flag:"timeout" keep:"resume,undrain"` // of the wait; 0: no limit

	Health        string        `json:"health,omitempty" flag:"health" keep:"resume"`           // a URL, or HealthTCP
	HealthHost    string        `json:"health_host,omitempty" flag:"health-host" keep:"resume"` // the Host header; "": the URL's
	HealthCA      Certificates  `json:"health_ca,omitempty" flag:"health-ca" keep:"resume"`     // that its certificate may be signed by
	HealthTimeout time.Duration `json:"health_timeout_ns" flag:"health-timeout" keep:"resume"`
	StopTimeout   time.Duration `json:"stop_timeout_ns,omitempty" flag:"stop-timeout" keep:"resume,undrain"`

	MinUp int `json:"min_up" flag:"min-up" keep:"resume"` // live primaries an upstream must keep
	SSH   SSH `json:"ssh" keep:"resume,undrain"`
}

// Allow is the guards an operator has overridden.
type Allow struct {
	Direct          bool `json:"direct,omitempty" flag:"allow-direct"`                     // the target is also reached outside its upstreams
	OtherNames      bool `json:"other_names,omitempty" flag:"allow-other-names"`           // it is also reached by another name
	ShutdownTimeout bool `json:"shutdown_timeout,omitempty" flag:"allow-shutdown-timeout"` // nginx cuts requests before the wait is over
	AllAddresses    bool `json:"all_addresses,omitempty" flag:"allow-all-addresses"`       // a server's name has several addresses
	UDP             bool `json:"udp,omitempty" flag:"allow-udp" keep:"undrain"`            // the reload ends UDP sessions of the target's upstreams
	Pending         bool `json:"pending,omitempty" flag:"accept-pending"`                  // files changed since nginx was last loaded
	// StoppedNginx edits an LB whose nginx is stopped. An undrain that does not would leave a standby LB down.
	StoppedNginx bool `json:"stopped_nginx,omitempty" flag:"allow-stopped-nginx" keep:"undrain"`
}

// SSH is how a backend is reached, as far as the operator says so.
type SSH struct {
	Host     string `json:"host,omitempty" flag:"ssh-host"` // where it is not the target's own
	User     string `json:"user,omitempty" flag:"ssh-user"`
	Port     int    `json:"port,omitempty" flag:"ssh-port"`
	Identity string `json:"identity,omitempty" flag:"identity"`
}

// A continuation says what takes fields over.
type continuation string

const (
	byResume  continuation = "resume"
	byUndrain continuation = "undrain"
)

// keeps reports whether a continuation takes a field over.
func keeps(f reflect.StructField, by continuation) bool {
	return slices.Contains(strings.Split(f.Tag.Get("keep"), ","), string(by))
}

// complete is the spec with what it takes over from an earlier one: of all
// fields that are kept, those whose flag was not given now. It keeps
// the same fields of the settings of single upstreams and backends.
func (s Spec) complete(from Spec, kept func(reflect.StructField) bool) (_ Spec, err error) {
	if from.PerUpstream, err = mixed(s.PerUpstream, from.PerUpstream, kept); err != nil {
		return s, err
	}
	if from.PerBackend, err = mixed(s.PerBackend, from.PerBackend, kept); err != nil {
		return s, err
	}
	takeOver(reflect.ValueOf(&s).Elem(), reflect.ValueOf(from), kept, s.Given)
	s.Given = append(slices.Clone(s.Given), from.givenOf(reflect.TypeFor[Settings](), kept)...)
	return s, nil
}

// givenOf returns the flags of settings that are kept and were given. They go on to win over settings
// of single upstreams and backends.
func (s Spec) givenOf(settings reflect.Type, kept func(reflect.StructField) bool) (flags []string) {
	for f := range settings.Fields() {
		flag := f.Tag.Get("flag")
		switch {
		case f.Type.Kind() == reflect.Struct && kept(f):
			flags = append(flags, s.givenOf(f.Type, func(reflect.StructField) bool { return true })...)
		case flag != "" && kept(f) && s.given(flag):
			flags = append(flags, flag)
		}
	}
	return flags
}

// takeOver copies the fields of from that are kept and not given. A struct's
// fields are kept as the struct is.
func takeOver(to, from reflect.Value, kept func(reflect.StructField) bool, given []string) {
	for i := range to.NumField() {
		f := to.Type().Field(i)
		switch {
		case f.Type.Kind() == reflect.Struct && kept(f):
			takeOver(to.Field(i), from.Field(i), func(reflect.StructField) bool { return true }, given)
		case f.Type.Kind() == reflect.Struct:
			takeOver(to.Field(i), from.Field(i), kept, given)
		case !kept(f), slices.Contains(given, f.Tag.Get("flag")):
		default:
			to.Field(i).Set(from.Field(i))
		}
	}
}

// SettingsOf is the settings of one backend, by all its names, in the named upstreams: its own, else its
// upstreams', else the spec's; and before all of them what the operator gave.
func (s Spec) SettingsOf(upstreams, backends []string) (Settings, error) {
	set := s.Settings
	set.IgnorePeers = slices.Clone(set.IgnorePeers) // json would write into it
	for _, from := range []struct {
		names []string
		per   map[string]json.RawMessage
	}{{upstreams, s.PerUpstream}, {backends, s.PerBackend}} {
		for _, name := range from.names {
			if raw := from.per[name]; raw != nil {
				if err := json.Unmarshal(raw, &set); err != nil {
					return set, fmt.Errorf("settings of %s: %w", name, err)
				}
			}
		}
	}
	asked := map[string]reflect.Value{}
	eachFlag(reflect.ValueOf(s.Settings), func(name string, v reflect.Value) { asked[name] = v })
	eachFlag(reflect.ValueOf(&set).Elem(), func(name string, v reflect.Value) {
		if s.given(name) {
			v.Set(asked[name])
		}
	})
	return set, nil
}

// Check refuses settings that cannot be used.
func (s Spec) Check() error {
	if err := s.Settings.check(); err != nil {
		return UsageError("%w", err)
	}
	for name := range s.PerUpstream {
		set, err := s.SettingsOf([]string{name}, nil)
		if err = cmp.Or(err, set.check()); err != nil {
			return UsageError("%w", err)
		}
	}
	for name := range s.PerBackend {
		set, err := s.SettingsOf(nil, []string{name})
		if err = cmp.Or(err, set.check()); err != nil {
			return UsageError("%w", err)
		}
	}
	return nil
}

// given tells whether one of the flags was set.
func (s Spec) given(flags ...string) bool {
	return slices.ContainsFunc(flags, func(f string) bool { return slices.Contains(s.Given, f) })
}

// Words is the command line of those of the flags that were given. The LBs may
// have come from a file.
func (s Spec) Words(flags ...string) []string {
	var all []string
	eachFlag(reflect.ValueOf(s), func(name string, v reflect.Value) {
		if !slices.Contains(flags, name) || !s.given(name) && name != "lb" {
			return
		}
		all = append(all, flagWords(name, v)...)
	})
	return all
}

// flagWords is a flag with its value on a command line.
func flagWords(name string, v reflect.Value) (words []string) {
	if units, ok := v.Interface().(Units); ok {
		v = reflect.ValueOf(units.List())
	}
	if v.Kind() != reflect.Slice {
		return []string{"--" + name, fmt.Sprint(v.Interface())}
	}
	for i := range v.Len() {
		words = append(words, "--"+name, fmt.Sprint(v.Index(i).Interface()))
	}
	return words
}

// eachFlag walks the fields that flags set.
func eachFlag(v reflect.Value, visit func(name string, v reflect.Value)) {
	for i := range v.NumField() {
		switch f := v.Type().Field(i); {
		case f.Tag.Get("flag") != "":
			visit(f.Tag.Get("flag"), v.Field(i))
		case f.Type.Kind() == reflect.Struct:
			eachFlag(v.Field(i), visit)
		}
	}
}

// OnLB tells whether a target is on the load balancer itself: a unix socket, or
// an address of the loopback interface. No SSH is needed to reach it.
func OnLB(t nginx.Target) bool { return t.Unix != "" || isLoopback(t.Host) }

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// needsBackend tells whether a run of a kind must run commands on the backend.
func (s Settings) needsBackend(k Kind) bool {
	switch {
	case s.Service != "":
		return true
	case k == Undrain:
		return false
	case s.Counter == CounterStubStatus:
		return s.StatusOnBackend()
	}
	return s.Counter == CounterSS
}

// StatusOnBackend tells whether stub_status answers on the loopback interface
// alone, which then means the backend's.
func (s Settings) StatusOnBackend() bool {
	u, err := url.Parse(s.StatusURL)
	return err == nil && isLoopback(u.Hostname())
}

// local tells whether the backends are the load balancer itself.
func (s Spec) local() bool {
	if s.SSH.Host != "" || len(s.Targets) == 0 {
		return false
	}
	for _, text := range s.Targets {
		t, err := nginx.ParseTarget(text)
		if err != nil || !OnLB(t) {
			return false
		}
	}
	return true
}

// Needs tells whether the run must run commands on a backend with these settings.
func (s Spec) Needs(set Settings) bool {
	return set.needsBackend(s.Kind) || s.Kind == Run && s.Rollout.NeedsBackend()
}

// OverSSH tells whether the run logs in to a backend, and that is not the load
// balancer itself.
func (s Spec) OverSSH() bool { return !s.local() && s.Any(s.Needs) }

// Default is a spec as it is without any flag.
func Default(k Kind) Spec {
	s := Spec{
		Kind: k, OnTimeout: TimeoutRollback, ReloadTimeout: DefaultReloadTimeout, Parallel: DefaultParallel,
		Settings: Settings{
			Counter: CounterSS, Interval: DefaultInterval, Timeout: DefaultTimeout, Health: HealthTCP,
			HealthTimeout: DefaultHealthTimeout, StopTimeout: DefaultStopTimeout, MinUp: DefaultMinUp,
		},
	}
	if k == Run {
		s.Rollout = Rollout{Batch: DefaultBatch, OnFailure: FailureLeave, RebootTimeout: DefaultRebootTimeout}
	}
	return s
}

// OnFailure is what a rolling run does with a backend whose work failed.
type OnFailure string

// What can be done with it: leave it out of the pool, or put it back.
const (
	FailureLeave   OnFailure = "leave"
	FailureUndrain OnFailure = "undrain"
)

// Defaults of a rolling run.
const (
	DefaultBatch         = "1"
	DefaultRebootTimeout = 10 * time.Minute
)

// A Rollout is what a rolling run is asked for besides its drains and undrains:
// some backends at a time, there and back, with work in between.
type Rollout struct {
	Command       []string      `json:"command,omitempty"`
	OnBackend     bool          `json:"on_backend,omitempty" flag:"on-backend"` // where Command is run; false: here
	Reboot        bool          `json:"reboot,omitempty" flag:"reboot"`
	RebootTimeout time.Duration `json:"reboot_timeout_ns,omitempty" flag:"reboot-timeout"`
	Batch         string        `json:"batch,omitempty" flag:"batch"` // a number, or a percentage of what is up

	Pause          time.Duration `json:"pause_ns,omitempty" flag:"pause"` // between two batches
	Canary         bool          `json:"canary,omitempty" flag:"canary"`  // one first, and then ask, or wait
	CanaryWait     time.Duration `json:"canary_wait_ns,omitempty" flag:"canary-wait"`
	MaxFailures    int           `json:"max_failures,omitempty" flag:"max-failures"`
	MaxGenerations *int          `json:"max_generations,omitempty" flag:"max-generations"` // earlier ones; nil: no limit
	OnFailure      OnFailure     `json:"on_failure,omitempty" flag:"on-failure"`

	OnlyIf string `json:"only_if,omitempty" flag:"only-if"` // asked on each backend: 1 skips it, more is an error
	Gate   string `json:"gate,omitempty" flag:"gate"`       // asked here before each batch: not zero ends the run
}

// NeedsBackend tells whether commands are run on the backends.
func (r Rollout) NeedsBackend() bool {
	return r.Reboot || r.OnlyIf != "" || r.OnBackend && len(r.Command) > 0
}

// BatchSize is how many of n backends are taken at once, by a number or a percentage.
func BatchSize(text string, n int) (int, error) {
	number, percent := strings.CutSuffix(text, "%")
	size, err := strconv.Atoi(number)
	if err != nil || size < 1 || percent && size > 100 {
		return 0, fmt.Errorf("%q: say a number such as 2, or a percentage such as 25%%", text)
	}
	if percent {
		size = max(1, n*size/100)
	}
	return size, nil
}

// Names tells whether a spec's targets and upstreams mean a server. Without targets, it means all.
func (s Spec) Names(server journal.Server) bool {
	a, err := nginx.ParseAddress(server.Address)
	if err != nil {
		return false
	}
	if len(s.Upstreams) > 0 && !slices.Contains(s.Upstreams, server.Upstream) && !slices.Contains(s.Upstreams, server.Module+"/"+server.Upstream) {
		return false
	}
	return len(s.Targets) == 0 || slices.ContainsFunc(s.Targets, func(text string) bool {
		t, err := nginx.ParseTarget(text)
		return err == nil && t.Matches(a)
	})
}

// Matches tells whether one of the targets names an address.
func Matches(targets []nginx.Target, address string) bool {
	a, err := nginx.ParseAddress(address)
	return err == nil && slices.ContainsFunc(targets, func(t nginx.Target) bool { return t.Matches(a) })
}
