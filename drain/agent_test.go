package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// beginSpy is an LB that keeps what it is asked to begin.
type beginSpy struct {
	balancer.Balancer
	begun []balancer.Beginning
}

func (s *beginSpy) Begin(_ context.Context, b balancer.Beginning) error {
	s.begun = append(s.begun, b)
	return nil
}

// An agent records what it has read, in its own spelling, with the way to run nginx that
// it was told itself.
func TestAgentRecordsWhatItReads(t *testing.T) {
	const evil = "touch /tmp/owned"
	for _, key := range []string{"nginx", "Nginx", "NGINX", "nGiNx", "nginX", "ngin\\u0078", "\\u004eginx"} {
		for _, field := range []string{"test_command", "Test_Command", "TEST_COMMAND", "reload_command", "path"} {
			spy := &beginSpy{}
			s := &served{spy, spec.Nginx{StateDir: "/var/lib/drainctl"}}
			text := fmt.Sprintf(`{"kind":"drain","targets":["a"],"user":"","host":"","nginx":{},"%s":{%q:%q},"timeout_ns":0,"health_timeout_ns":0,"min_up":0,"ssh":{},"allow":{}}`, key, field, evil)
			err := s.Begin(t.Context(), balancer.Beginning{Operation: journal.Operation{ID: "x", Kind: "drain", Spec: json.RawMessage(text)}})
			if err != nil || len(spy.begun) != 1 {
				t.Fatalf("%s.%s: %v", key, field, err)
			}
			if sp := string(spy.begun[0].Operation.Spec); strings.Contains(sp, "touch") || !strings.Contains(sp, "/var/lib/drainctl") {
				t.Errorf("%s.%s: the journal gets %s", key, field, sp)
			}
		}
	}
}

// What is no spec is refused, and nothing is recorded.
func TestAgentRefusesWhatItCannotRead(t *testing.T) {
	deep := strings.Repeat(`{"x":`, 9000) + "1" + strings.Repeat("}", 9000)
	for name, text := range map[string]string{
		"unknown field": `{"kind":"drain","hook":"x"}`, "array": `[]`, "two values": `{} {}`, "no JSON": `x`, "nothing": ``,
		"deep":              `{"kind":"drain","per_backend":{"a":` + deep + `}}`,
		"field of Settings": `{"kind":"drain","per_backend":{"a":{"hook":"x"}}}`,
		"odd spelling":      `{"kind":"drain","per_upstream":{"a":{"Service":"x"}}}`,

		"flag as a target":          `{"kind":"drain","targets":["--test-command=touch /x","127.0.0.2"]}`,
		"flag as a short target":    `{"kind":"drain","targets":["-c"]}`,
		"blank in a target":         `{"kind":"drain","targets":["a b"]}`,
		"line end in a target":      `{"kind":"drain","targets":["unix:/run/a\nb"]}`,
		"flag as an upstream":       `{"kind":"drain","targets":["a"],"upstreams":["pool","--force"]}`,
		"control in an upstream":    `{"kind":"drain","targets":["a"],"upstreams":["po\u001bol"]}`,
		"direction in an upstream":  `{"kind":"drain","targets":["a"],"upstreams":["po\u202eol"]}`,
		"flag as a settings' name":  `{"kind":"drain","targets":["a"],"per_upstream":{"--force":{"threshold":1}}}`,
		"control in a backend":      `{"kind":"drain","targets":["a"],"per_backend":{"a\u0007":{"threshold":1}}}`,
		"flag as an ID":             `{"kind":"drain","targets":["a"],"continues":"--force"}`,
		"path as an ID":             `{"kind":"drain","targets":["a"],"continues":"../x"}`,
		"negative time":             `{"kind":"drain","targets":["a"],"reload_timeout_ns":-1}`,
		"negative number":           `{"kind":"drain","targets":["a"],"threshold":-1}`,
		"negative minimum":          `{"kind":"drain","targets":["a"],"min_up":-1}`,
		"unknown counter":           `{"kind":"drain","targets":["a"],"counter":"x"}`,
		"unknown end":               `{"kind":"drain","targets":["a"],"on_timeout":"x"}`,
		"no unit":                   `{"kind":"drain","targets":["a"],"service":"--root=/x"}`,
		"no URL":                    `{"kind":"drain","targets":["a"],"health":"file:///x"}`,
		"URL with a secret":         `{"kind":"drain","targets":["a"],"status_url":"http://a:b@c/"}`,
		"no port":                   `{"kind":"drain","targets":["a"],"ssh":{"port":65536}}`,
		"no LB":                     `{"kind":"drain","targets":["a"],"lbs":["-oProxyCommand=x"]}`,
		"no batch":                  `{"kind":"run","targets":["a"],"rollout":{"batch":"-1"}}`,
		"no generations":            `{"kind":"run","targets":["a"],"rollout":{"max_generations":-1}}`,
		"no command":                `{"kind":"run","targets":["a"],"rollout":{"gate":"'"}}`,
		"time of a backend":         `{"kind":"drain","targets":["a"],"per_backend":{"a":{"stop_timeout_ns":-1}}}`,
		"zero time of a backend":    `{"kind":"drain","targets":["a"],"per_backend":{"a":{"interval_ns":0}}}`,
		"no counter of an upstream": `{"kind":"drain","targets":["a"],"per_upstream":{"a":{"counter":""}}}`,
		"unit that is given away":   `{"kind":"drain","targets":["a"],"given":["service"],"per_backend":{"a":{"service":"-H"}}}`,
		"progress":                  `{"kind":"run"}`,
	} {
		spy := &beginSpy{}
		b := balancer.Beginning{Operation: journal.Operation{ID: "x", Spec: json.RawMessage(text)}}
		if name == "progress" {
			b.Operation.Progress = json.RawMessage(deep)
		}
		var e *balancer.Error
		if err := (&served{spy, spec.Nginx{}}).Begin(t.Context(), b); !errors.As(err, &e) || e.Code != balancer.CodeRefused || len(spy.begun) > 0 {
			t.Errorf("%s: error %v, %d begun", name, err, len(spy.begun))
		}
	}
	// The operation itself says no other targets either.
	spy := &beginSpy{}
	if err := (&served{spy, spec.Nginx{}}).Begin(t.Context(), balancer.Beginning{Operation: journal.Operation{ID: "x", Targets: []string{"--force"}, Spec: json.RawMessage(`{"kind":"drain","targets":["a"]}`)}}); err == nil || len(spy.begun) > 0 {
		t.Errorf("targets of the operation: error %v, %d begun", err, len(spy.begun))
	}
	// null is an empty spec, which the journal refuses; it must not end the agent.
	_ = (&served{&beginSpy{}, spec.Nginx{}}).Begin(t.Context(), balancer.Beginning{Operation: journal.Operation{ID: "x", Spec: json.RawMessage("null")}})
}

// What the command line takes, an agent takes too.
func TestAgentTakesWhatTheCommandLineTakes(t *testing.T) {
	generations := 0
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} {
		s := spec.Default(k)
		s.Targets, s.Upstreams, s.LBs = []string{"app-1:8080", "unix:/run/my app.sock", "[2001:db8::1]:80"}, []string{"http/my pool"}, []string{"ops@lb1:22"}
		s.Service, s.Timeout, s.HealthTimeout, s.MinUp, s.SSH.Port, s.Continues = "shop@8080", 0, 0, 0, 22, "20260504-120000.000-abcd"
		s.Health, s.StatusURL, s.Rollout.MaxGenerations = "http://{host}:{port}/ready", "http://{address}:{port}/status", &generations
		s.PerUpstream = map[string]json.RawMessage{"pool": json.RawMessage(`{"service":"","timeout_ns":0,"ssh":{}}`)}
		s.PerBackend = map[string]json.RawMessage{"[2001:db8::1]:80": json.RawMessage(`{"ssh":{"host":"a"},"ignore_peers":["10.0.0.0/8"]}`)}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		spy := &beginSpy{}
		if err := (&served{spy, spec.Nginx{}}).Begin(t.Context(), balancer.Beginning{Operation: journal.Operation{ID: "x", Spec: text}}); err != nil || len(spy.begun) != 1 {
			t.Errorf("%s: %v", k, err)
		}
	}
}

// IDs follow the clock of the LB, which compares them with it.
func TestIDsAreOfTheLBsClock(t *testing.T) {
	ahead := time.Now().Add(3 * time.Hour)
	id := newID([]plan.LBPlan{{Report: &balancer.Report{Now: ahead}}})
	if err := journal.CheckID(id, ahead, "", false); err != nil {
		t.Error(err)
	}
	if err := journal.CheckID(newID([]plan.LBPlan{{Report: &balancer.Report{}}}), time.Now(), "", false); err != nil {
		t.Errorf("without an LB's clock it is this machine's: %v", err)
	}
	// It is later than the last one of each LB.
	var reports []plan.LBPlan
	for _, last := range []string{"20260504-120000.000-aaaa", journal.NewID(ahead.Add(time.Hour), ""), "20260504-120001.000-bbbb"} {
		reports = append(reports, plan.LBPlan{Report: &balancer.Report{State: journal.State{LastID: last}}})
	}
	if id, last := newID(reports), reports[1].Report.State.LastID; id <= last {
		t.Errorf("%s, after %s", id, last)
	}
}
