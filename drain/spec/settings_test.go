package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// TestSetFlag: every field that a flag sets can be set from the text that the
// command line has for it.
func TestSetFlag(t *testing.T) {
	want := filled(t, reflect.TypeFor[Spec]()).Interface().(Spec)
	var got Spec
	n := 0
	EachFlag(want, func(name string, v reflect.Value) {
		n++
		texts := []string{fmt.Sprint(reflect.Indirect(v).Interface())}
		if v.Kind() == reflect.Slice {
			texts = []string{fmt.Sprint(v.Index(0).Interface())}
		}
		if name == "health-ca" {
			return // it names a file: TestReadCertificates
		}
		if err := SetFlag(&got, name, texts...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	EachFlag(want, func(name string, v reflect.Value) {
		if field := flagOf(t, got, name); name != "health-ca" && !reflect.DeepEqual(field, v.Interface()) {
			t.Errorf("%s is %v, want %v", name, field, v.Interface())
		}
	})
	if SetFlag(&got, "no-such-flag", "x") == nil {
		t.Error("a flag that there is not was set")
	}
	t.Logf("%d flags", n)
}

func flagOf(t *testing.T, of any, flag string) any {
	var found any
	EachFlag(of, func(name string, v reflect.Value) {
		if name == flag {
			found = v.Interface()
		}
	})
	if found == nil {
		t.Fatalf("no field of flag %s", flag)
	}
	return found
}

// TestOnly: settings of one backend are those that were named, also where they are
// the zero value; all others are as they were.
func TestOnly(t *testing.T) {
	all := filled(t, reflect.TypeFor[Settings]()).Interface().(Settings)
	for _, values := range []Settings{filled(t, reflect.TypeFor[Settings]()).Interface().(Settings), {}} {
		EachFlag(values, func(name string, v reflect.Value) {
			raw, err := values.Only(name)
			if err != nil {
				t.Fatal(err)
			}
			base := Settings{Service: "other", Timeout: time.Hour, SSH: SSH{User: "else", Port: 3}}
			if values.Service == "" {
				base = all
			}
			got, err := Spec{Settings: base, PerBackend: map[string]json.RawMessage{"app1": raw}}.SettingsOf(nil, []string{"app1"})
			if err != nil {
				t.Fatal(err)
			}
			EachFlag(got, func(other string, is reflect.Value) {
				want := flagOf(t, base, other)
				if other == name {
					want = v.Interface()
				}
				if !reflect.DeepEqual(is.Interface(), want) && fmt.Sprint(is.Interface()) != fmt.Sprint(want) {
					t.Errorf("with %s of app1, %s is %v, want %v", raw, other, is.Interface(), want)
				}
			})
		})
	}
}

// A flag of the drain wins over its file, for the undrain and the resume as well: another service
// than the one that was stopped is not started.
func TestContinuedFlags(t *testing.T) {
	was := Default(Drain)
	was.Targets, was.Service, was.SSH.User, was.Given = []string{"app1"}, "shop", "deploy", []string{"service", "ssh-user"}
	was.PerBackend = map[string]json.RawMessage{"app1": json.RawMessage(`{"service":"of-the-file","ssh":{"user":"else"}}`)}
	now := Default(Undrain)
	now.Targets = was.Targets
	op := RecordedOperation{Operation: recorded(t, was)}
	for name, continued := range map[string]func() (Spec, error){
		"undrain": func() (Spec, error) { return now.Inherit([]RecordedOperation{op}) },
		"resume":  func() (Spec, error) { return Default("").Resume(op) },
	} {
		full, err := continued()
		if err != nil {
			t.Fatal(err)
		}
		if set, err := full.SettingsOf(nil, []string{"app1"}); err != nil || set.Service != "shop" || set.SSH.User != "deploy" {
			t.Errorf("%s has the service %s and the user %s, %v", name, set.Service, set.SSH.User, err)
		}
	}
}

// TestContinuedSettings: an undrain takes over what the drain did to a backend by its
// own settings, and not what the undrain alone uses. A flag stands before both.
func TestContinuedSettings(t *testing.T) {
	raw := func(text string) map[string]json.RawMessage {
		return map[string]json.RawMessage{"app1": json.RawMessage(text)}
	}
	was := Default(Drain)
	was.Targets, was.Service, was.Health = []string{"app1"}, "app", "http://app1/old"
	was.PerBackend = raw(`{"service":"shop","health":"http://app1/broken","ssh":{"user":"deploy"}}`)
	was.PerUpstream = map[string]json.RawMessage{"pool": json.RawMessage(`{"threshold":3}`)}

	now := Default(Undrain)
	now.Targets, now.Service, now.Health = was.Targets, "of-the-file", "http://app1/ready"
	now.PerBackend = raw(`{"service":"changed-since","health":"http://app1/fixed","ssh":{"user":"else"},"threshold":9}`)

	undrain := func(s Spec) Settings {
		t.Helper()
		full, err := s.Inherit([]RecordedOperation{{Operation: recorded(t, was)}})
		if err != nil {
			t.Fatal(err)
		}
		set, err := full.SettingsOf([]string{"pool"}, []string{"app1"})
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	got := undrain(now)
	if got.Service != "shop" || got.SSH.User != "deploy" || got.Threshold != 3 || got.Health != "http://app1/fixed" {
		t.Errorf("the undrain has %+v", got)
	}
	now.Given = []string{"service"}
	if got := undrain(now); got.Service != "of-the-file" {
		t.Errorf("--service was given, and is %s", got.Service)
	}
	// A health check that the drain's command line had is no file's.
	was.Given, now.Given = []string{"health", "health-host", "health-ca"}, nil
	was.HealthHost, was.HealthCA = "app1.example.com", Certificates(newCA(t))
	if got := undrain(now); got.Health != "http://app1/old" || got.HealthHost != was.HealthHost || got.HealthCA != was.HealthCA {
		t.Errorf("drain --health was given, and undrain has %+v", got)
	}
	now.Given = []string{"health"}
	if got := undrain(now); got.Health != "http://app1/ready" {
		t.Errorf("undrain --health was given, and is %s", got.Health)
	}
	was.Given, was.HealthHost, was.HealthCA = nil, "", ""
	// A resume does what was asked for, whatever the file says now.
	now.Given = nil
	resumed, err := now.Resume(RecordedOperation{Operation: recorded(t, was)})
	if err != nil {
		t.Fatal(err)
	}
	if set, err := resumed.SettingsOf(nil, []string{"app1"}); err != nil || set.Health != "http://app1/broken" || set.Threshold != 0 {
		t.Errorf("the resume has %+v, %v", set, err)
	}
}

// TestSystemNginx: an agent is told what the operator asked for; what the machine's
// own file says, it reads itself, so that sudo's rule needs no arguments.
func TestSystemNginx(t *testing.T) {
	system := Nginx{Conf: "/srv/nginx.conf", ReloadCommand: "systemctl reload nginx"}
	if got, want := (Nginx{Conf: "/x.conf", Keep: 3}).Or(system), (Nginx{Conf: "/x.conf", ReloadCommand: "systemctl reload nginx", Keep: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if args := (Nginx{}).AgentArgs("drainctl"); !slices.Equal(args, []string{"drainctl", "agent"}) {
		t.Errorf("%q", args)
	}
}

// A URL with a password is refused wherever it stands, such as in what an earlier
// drainctl recorded, and the error does not repeat it.
func TestURLsWithASecretAreRefused(t *testing.T) {
	per := map[string]json.RawMessage{"app1": json.RawMessage(`{"health":"http://user:SECRET@{host}/"}`)}
	for name, change := range map[string]func(*Spec){
		"health":       func(s *Spec) { s.Health = "http://user:SECRET@{host}:{port}/" },
		"status URL":   func(s *Spec) { s.StatusURL = "http://app1/?token=SECRET" },
		"redacted":     func(s *Spec) { s.Health = "http://xxxxx@app1/" },
		"per upstream": func(s *Spec) { s.PerUpstream = per },
		"per backend":  func(s *Spec) { s.PerBackend = per },
	} {
		s := Default(Drain)
		s.Targets = []string{"app1"}
		change(&s)
		err := s.Check()
		if ExitOf(err) != Usage || !errors.Is(err, remote.ErrSecret) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
