package spec

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// filled is a value of a type that is not its zero value.
func filled(t *testing.T, typ reflect.Type) reflect.Value {
	t.Helper()
	v := reflect.New(typ).Elem()
	switch typ {
	case reflect.TypeFor[netip.Prefix]():
		return reflect.ValueOf(netip.MustParsePrefix("10.1.0.0/16"))
	case reflect.TypeFor[time.Duration]():
		return reflect.ValueOf(7 * time.Second)
	case reflect.TypeFor[json.RawMessage]():
		return reflect.ValueOf(json.RawMessage(`{"threshold":3}`))
	}
	switch typ.Kind() {
	case reflect.String:
		v.SetString("some-text")
	case reflect.Int:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(typ.Elem()))
		v.Elem().Set(filled(t, typ.Elem()))
	case reflect.Map:
		v.Set(reflect.MakeMap(typ))
		v.SetMapIndex(filled(t, typ.Key()), filled(t, typ.Elem()))
	case reflect.Slice:
		v.Set(reflect.Append(v, filled(t, typ.Elem())))
	case reflect.Struct:
		for i := range typ.NumField() {
			if typ.Field(i).Tag.Get("json") != "-" {
				v.Field(i).Set(filled(t, typ.Field(i).Type))
			}
		}
	default:
		t.Fatalf("the test knows no value of %s: add one", typ)
	}
	return v
}

// What is said now, and what is not taken over because each run has its own.
var ownToEachRun = []string{"LBs", "Config", "Parallel", "SkipUnreachable", "User", "Host", "Wait", "AsRecorded", "Continues", "Given"}

// TestSpecSurvives: each field of a spec survives the journal, and what an
// operation was asked for is what its resume does.
func TestSpecSurvives(t *testing.T) {
	asked := filled(t, reflect.TypeFor[Spec]()).Interface().(Spec)
	asked.Kind, asked.Given = Undrain, nil
	op := recorded(t, asked)
	asked = asked.Recordable()
	was, err := FromOperation(op)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(was, asked) {
		t.Errorf("the journal has\n%+v\nwant\n%+v", was, asked)
	}
	resumed, err := Default("").Resume(RecordedOperation{Operation: op})
	if err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[Spec]().NumField() {
		name := reflect.TypeFor[Spec]().Field(i).Name
		if !reflect.TypeFor[Spec]().Field(i).IsExported() {
			continue
		}
		got, want := reflect.ValueOf(resumed).Field(i).Interface(), reflect.ValueOf(asked).Field(i).Interface()
		if !slices.Contains(ownToEachRun, name) && !reflect.DeepEqual(got, want) {
			t.Errorf("resume has lost %s: %v, want %v", name, got, want)
		}
	}
	if resumed.Continues != op.ID {
		t.Errorf("it continues %q, want %q", resumed.Continues, op.ID)
	}
}

func recorded(t *testing.T, s Spec) journal.Operation {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return journal.Operation{ID: "20260101-000000.000-abcd", Kind: string(s.Kind), Targets: s.Targets, Spec: text,
		Servers: []journal.Located{{Server: journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}}}}
}

// TestSpecFlags: what is given now wins over what is taken over, field by field.
func TestSpecFlags(t *testing.T) {
	was := filled(t, reflect.TypeFor[Spec]()).Interface().(Spec)
	was.Kind = Drain
	n := 0
	eachFlag(reflect.ValueOf(&was).Elem(), func(name string, _ reflect.Value) {
		n++
		now := Default(Drain)
		now.Given = []string{name}
		var given, got any
		eachFlag(reflect.ValueOf(&now).Elem(), func(other string, v reflect.Value) {
			if other == name {
				given = v.Interface()
			}
		})
		resumed, err := now.Resume(RecordedOperation{Operation: recorded(t, was)})
		if err != nil {
			t.Fatal(err)
		}
		eachFlag(reflect.ValueOf(resumed), func(other string, v reflect.Value) {
			if other == name {
				got = v.Interface()
			}
		})
		if !reflect.DeepEqual(got, given) {
			t.Errorf("--%s was given, and is %v, not %v", name, got, given)
		}
	})
	t.Logf("%d flags", n)
}

// TestUndrainInherits: an undrain, and its rollback, know what the drain was
// given.
func TestUndrainInherits(t *testing.T) {
	was := filled(t, reflect.TypeFor[Spec]()).Interface().(Spec)
	was.Kind, was.Targets = Drain, []string{"192.168.1.10"}
	asked := Default(Undrain)
	asked.Targets = was.Targets
	got, err := asked.Inherit([]RecordedOperation{{Operation: recorded(t, was)}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[Spec]().NumField() {
		f := reflect.TypeFor[Spec]().Field(i)
		if !strings.Contains(f.Tag.Get("keep"), "undrain") {
			continue
		}
		if a, b := reflect.ValueOf(got).Field(i).Interface(), reflect.ValueOf(was).Field(i).Interface(); !reflect.DeepEqual(a, b) {
			t.Errorf("%s is %v, want the drain's %v", f.Name, a, b)
		}
	}
	if got.Allow != (Allow{UDP: true, StoppedNginx: true}) {
		t.Errorf("an undrain allows %+v", got.Allow)
	}
	if got.Kind != Undrain || got.Health != HealthTCP || got.MinUp != DefaultMinUp {
		t.Errorf("an undrain took over what is a drain's own: %+v", got)
	}
	asked.Service, asked.Given = "other", []string{"service"}
	if got, err = asked.Inherit([]RecordedOperation{{Operation: recorded(t, was)}}); err != nil || got.Service != "other" {
		t.Errorf("service %q, %v; want the one given now", got.Service, err)
	}
}

// TestInheritSeveral: a drain without a service does not hide the service of one
// before, and two services are ambiguous.
func TestInheritSeveral(t *testing.T) {
	with := func(service Units, threshold int) RecordedOperation {
		s := Default(Drain)
		s.Targets, s.Service, s.Threshold = []string{"192.168.1.10"}, service, threshold
		return RecordedOperation{Operation: recorded(t, s)}
	}
	asked := Default(Undrain)
	asked.Targets = []string{"192.168.1.10"}
	for _, c := range []struct {
		ops     []RecordedOperation
		service Units
		refused bool
	}{
		{nil, "", false},
		{[]RecordedOperation{with("", 0)}, "", false},
		{[]RecordedOperation{with("app", 0), with("", 3)}, "app", false},
		{[]RecordedOperation{with("", 3), with("app", 0)}, "app", false},
		{[]RecordedOperation{with("app", 0), with("app", 1)}, "app", false},
		{[]RecordedOperation{with("app", 0), with("web", 0)}, "", true},
	} {
		got, err := asked.Inherit(c.ops)
		if (err != nil) != c.refused || (err == nil && got.Service != c.service) {
			t.Errorf("%d operations: service %q, %v; want %q, refused %t", len(c.ops), got.Service, err, c.service, c.refused)
		}
	}
	// Which of two configurations is meant, the operator says.
	in := func(conf string) RecordedOperation {
		s := Default(Drain)
		s.Targets, s.Nginx.Conf = []string{"192.168.1.10"}, conf
		return RecordedOperation{Operation: recorded(t, s)}
	}
	if _, err := asked.Inherit([]RecordedOperation{in("/a.conf"), in("/b.conf")}); ExitOf(err) != Refused || !strings.Contains(err.Error(), "in different configurations: /a.conf") {
		t.Errorf("two configurations: exit %d, %v", ExitOf(err), err)
	}
	asked.Nginx.Conf, asked.Given = "/b.conf", []string{"nginx-conf"}
	if got, err := asked.Inherit([]RecordedOperation{in("/a.conf"), in("/b.conf")}); err != nil || got.Nginx.Conf != "/b.conf" {
		t.Errorf("one of two configurations: %q, %v", got.Nginx.Conf, err)
	}
}

// An upstream is named with its module or without, in the journal as on the command line.
func TestNames(t *testing.T) {
	server := journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}
	for _, test := range []struct {
		targets, upstreams []string
		want               bool
	}{
		{[]string{"192.168.1.10"}, nil, true},
		{[]string{"192.168.1.11", "192.168.1.10:8080"}, nil, true},
		{[]string{"192.168.1.10:9090"}, nil, false},
		{[]string{"192.168.1.10"}, []string{"other", "pool"}, true},
		{[]string{"192.168.1.10"}, []string{"other", "http/pool"}, true},
		{[]string{"192.168.1.10"}, []string{"stream/pool"}, false},
		{[]string{"192.168.1.10"}, []string{"other"}, false},
	} {
		if got := (Spec{Targets: test.targets, Upstreams: test.upstreams}).Names(server); got != test.want {
			t.Errorf("%v of %v means %+v: %t, want %t", test.targets, test.upstreams, server, got, test.want)
		}
	}
}

// A later command needs the flags that were given, and the LBs wherever they came from.
func TestWords(t *testing.T) {
	s := Default(Drain)
	s.LBs, s.Nginx.StateDir, s.Nginx.Path = []string{"lb1", "lb2"}, "/state", "/usr/sbin/nginx"
	s.Given = []string{"state-dir", "timeout"}
	if got, want := s.Words(WhereFlags...), []string{"--lb", "lb1", "--lb", "lb2", "--state-dir", "/state"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The settings of a backend stand before those of its upstream, and change nothing of the others'.
func TestSettingsOfABackend(t *testing.T) {
	s := Default(Drain)
	s.IgnorePeers = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s.PerUpstream = map[string]json.RawMessage{"pool": json.RawMessage(`{"threshold":1,"min_up":2}`)}
	s.PerBackend = map[string]json.RawMessage{"app1": json.RawMessage(`{"threshold":3,"ignore_peers":["192.168.0.0/16"]}`)}
	set, err := s.SettingsOf([]string{"pool"}, []string{"app1"})
	if err != nil || set.Threshold != 3 || set.MinUp != 2 || set.IgnorePeers[0].String() != "192.168.0.0/16" {
		t.Errorf("%+v, %v", set, err)
	}
	if got := s.IgnorePeers[0].String(); got != "10.0.0.0/8" {
		t.Errorf("the other backends ignore %s", got)
	}
}

func TestOnLB(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1": true, "127.8.8.8:80": true, "::1": true, "[::1]:80": true, "localhost:80": true, "LocalHost": true,
		"unix:/run/app.sock": true, "10.0.0.1": false, "localhost.example.com": false, "0.0.0.0": false,
	} {
		to, err := nginx.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		if OnLB(to) != want {
			t.Errorf("%s is on the load balancer: %t, want %t", target, !want, want)
		}
	}
}

func TestOverSSH(t *testing.T) {
	for _, test := range []struct {
		name   string
		kind   Kind
		target string
		change func(*Spec)
		want   bool
	}{
		{"drain", Drain, "10.0.0.1", func(*Spec) {}, true},
		{"counted here", Drain, "10.0.0.1", func(s *Spec) { s.Counter = CounterLB }, false},
		{"counted here, service there", Drain, "10.0.0.1", func(s *Spec) { s.Counter, s.Service = CounterLB, "app" }, true},
		{"status from here", Drain, "10.0.0.1", func(s *Spec) { s.Counter, s.StatusURL = CounterStubStatus, "http://10.0.0.1/s" }, false},
		{"status there", Drain, "10.0.0.1", func(s *Spec) { s.Counter, s.StatusURL = CounterStubStatus, "http://localhost/s" }, true},
		{"local", Drain, "127.0.0.1:80", func(s *Spec) { s.Service = "app" }, false},
		{"local, and yet by SSH", Drain, "127.0.0.1:80", func(s *Spec) { s.Service, s.SSH.Host = "app", "app-1" }, true},
		{"local, beside one that is not", Drain, "127.0.0.1:80", func(s *Spec) { s.Targets = append(s.Targets, "10.0.0.1") }, true},
		{"run", Run, "10.0.0.1", func(s *Spec) { s.Counter, s.Rollout.Command = CounterLB, []string{"true"} }, false},
		{"run on the backend", Run, "10.0.0.1", func(s *Spec) { s.Counter, s.Rollout.Command, s.Rollout.OnBackend = CounterLB, []string{"true"}, true }, true},
		{"run that reboots", Run, "10.0.0.1", func(s *Spec) { s.Counter, s.Rollout.Reboot = CounterLB, true }, true},
		{"run that asks the backend", Run, "10.0.0.1", func(s *Spec) { s.Counter, s.Rollout.OnlyIf = CounterLB, "test -e /x" }, true},
		{"undrain", Undrain, "10.0.0.1", func(*Spec) {}, false},
		{"undrain with a service", Undrain, "10.0.0.1", func(s *Spec) { s.Service = "app" }, true},
	} {
		s := Default(test.kind)
		s.Targets = []string{test.target}
		test.change(&s)
		if got := s.OverSSH(); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}
