package spec

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/journal"
)

// Sockets start before services, which otherwise start in the reverse order.
func TestUnitsInStartOrder(t *testing.T) {
	for _, test := range []struct {
		units Units
		want  string
	}{
		{"", ""},
		{"shop", "shop"},
		{"web worker db", "db worker web"},
		{"shop.socket shop", "shop.socket shop"},
		{"web.socket web api.socket api", "api.socket web.socket api web"},
		{"shop.timer shop.service", "shop.service shop.timer"},
	} {
		if got := strings.Join(test.units.InStartOrder(), " "); got != test.want {
			t.Errorf("%q starts in the order %q, want %q", string(test.units), got, test.want)
		}
	}
	if text := Units("shop.socket shop"); text.String() != "shop.socket, shop" || text.Do("is", "are") != "shop.socket, shop are" || Units("shop").Do("is", "are") != "shop is" {
		t.Errorf("in words: %s", text)
	}
}

// A flag has one unit each time, and each unit once.
func TestUnitsOfAFlag(t *testing.T) {
	for _, test := range []struct {
		texts []string
		want  Units
		says  string
	}{
		{[]string{"shop"}, "shop", ""},
		{[]string{"shop.socket", "shop"}, "shop.socket shop", ""},
		{[]string{"shop@1", "shop@2"}, "shop@1 shop@2", ""},
		{[]string{"shop", "shop"}, "", "the unit shop is named twice"},
		{[]string{"shop", "api", "shop.service"}, "", "the unit shop.service is named twice"},
		{[]string{"shop.v2.service", "shop.v2"}, "", "the unit shop.v2 is named twice"},
		{[]string{"shop api"}, "", `"shop api" is not the name of a unit`},
		{[]string{"shop", "-H"}, "", `"-H" is not the name of a unit`},
	} {
		var s Spec
		err := SetFlag(&s, "service", test.texts...)
		if err == nil {
			err = CheckFlag("--service", "service", reflect.ValueOf(s.Service))
		}
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) || err == nil && s.Service != test.want {
			t.Errorf("%q: %q, %v", test.texts, string(s.Service), err)
		}
	}
}

// The one unit that an earlier version has recorded is read, and several are taken over.
func TestRecordedUnitsAreInherited(t *testing.T) {
	asked := Default(Undrain)
	asked.Targets = []string{"192.168.1.10"}
	for record, want := range map[string]Units{
		`{"targets":["192.168.1.10"],"service":"shop"}`:                        "shop",
		`{"targets":["192.168.1.10"],"service":"shop.socket shop.timer shop"}`: "shop.socket shop.timer shop",
	} {
		op := journal.Operation{ID: "1", Kind: string(Drain), Spec: json.RawMessage(record)}
		got, err := asked.Inherit([]RecordedOperation{{Operation: op}})
		if err != nil || got.Service != want {
			t.Errorf("%s: %q, %v", record, string(got.Service), err)
		}
	}
	planted := journal.Operation{ID: "1", Kind: string(Drain), Spec: json.RawMessage(`{"targets":["192.168.1.10"],"service":"shop poweroff.target"}`)}
	if _, err := asked.Inherit([]RecordedOperation{{Operation: planted}}); ExitOf(err) != Refused || !strings.Contains(err.Error(), "poweroff.target") {
		t.Errorf("planted: %v", err)
	}
	foreign := recorded(t, func() Spec {
		s := Default(Drain)
		s.Targets, s.Service = asked.Targets, "shop.socket shop"
		return s
	}())
	if _, err := asked.Inherit([]RecordedOperation{{Operation: foreign, Foreign: true}}); err == nil || !strings.Contains(err.Error(), "--service shop.socket --service shop\n") {
		t.Errorf("another user's: %v", err)
	}
	if words := (Spec{Given: []string{"service"}, Settings: Settings{Service: "shop.socket shop"}}).Words("service"); !slices.Equal(words, []string{"--service", "shop.socket", "--service", "shop"}) {
		t.Errorf("on a command line: %q", words)
	}
}
