package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// Settings that another user recorded are shown first, and used only with consent.

// Recordable is the spec as a journal may have it: without the programs that are run as
// root on an LB. Those come from the command line or from root's own file, each time.
func (s Spec) Recordable() Spec {
	s.Nginx.Path, s.Nginx.TestCommand, s.Nginx.ReloadCommand = "", "", ""
	return s
}

// SettingsFields are the names that the fields of Settings have in JSON.
var SettingsFields = func() map[string]bool {
	names := map[string]bool{}
	for f := range reflect.TypeFor[Settings]().Fields() {
		names[jsonName(f)] = true
	}
	return names
}()

// FromOperation is what an operation in a journal was asked for.
func FromOperation(op journal.Operation) (Spec, error) {
	s := Default(Kind(op.Kind))
	if err := json.Unmarshal(op.Spec, &s); err != nil {
		return s, fmt.Errorf("operation %s in the journal: %w", op.ID, err)
	}
	s = s.Recordable()
	s.Given = nil // the flags that count are those of who reads it
	var bad error
	s.Any(func(set Settings) bool {
		for _, unit := range set.Service.List() {
			if err := checkRecordedUnit(unit); err != nil {
				bad = fmt.Errorf("operation %s in the journal: %w", op.ID, err)
			}
		}
		return false
	})
	return s, bad
}

// unitName is a name that systemd.unit(5) allows and that no program takes for a flag.
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@{][A-Za-z0-9:_.\\@{}-]*$`)

// otherUnitTypes are the types of units that are no app and start none (systemd.unit(5)):
// poweroff.target is one.
var otherUnitTypes = []string{".target", ".mount", ".automount", ".swap", ".device", ".slice", ".scope", ".snapshot"}

// checkRecordedUnit refuses a unit of a journal that is no app and starts none.
func checkRecordedUnit(unit string) error {
	if !unitName.MatchString(unit) || slices.Contains(otherUnitTypes, path.Ext(unit)) {
		return fmt.Errorf("the unit %q is no service, socket, timer or path: name the unit with --service", unit)
	}
	return nil
}

// A CallersState is the journal of an LB, and who asks for it as the LB sees them.
type CallersState struct {
	journal.State
	Caller journal.Recorder
}

// IsForeign reports whether the LB has the operation from another user than the caller
// and root.
func (s CallersState) IsForeign(id string) bool {
	op, ok := s.Find(id)
	return ok && !s.Caller.Trusts(op.Recorder)
}

// A RecordedOperation is an operation that settings are inherited from.
type RecordedOperation struct {
	journal.Operation
	Foreign bool // another user than the caller and root recorded it, on one LB at least
}

// DrainsOf is the operations that an undrain inherits from, the oldest first, each once:
// those that own a mark on one of its servers, and others on these servers by the same
// recorders, the caller or root. Whoever only claims a server has no say.
func DrainsOf(spec Spec, states []CallersState) (all []RecordedOperation) {
	for _, s := range states {
		var owners []*journal.Recorder
		owns := func(op journal.Operation) bool {
			return slices.ContainsFunc(s.Marks, func(m journal.Mark) bool { return m.Operation == op.ID && spec.Names(m.Server) })
		}
		for _, op := range s.Operations {
			if owns(op) {
				owners = append(owners, op.Recorder)
			}
		}
		for _, op := range s.Operations {
			covers := slices.ContainsFunc(op.Servers, func(l journal.Located) bool { return spec.Names(l.Server) })
			byOwner := op.Recorder != nil && slices.ContainsFunc(owners, op.Recorder.IsSame)
			if !covers || !owns(op) && !byOwner && !s.Caller.Trusts(op.Recorder) {
				continue
			}
			i := slices.IndexFunc(all, func(had RecordedOperation) bool { return had.ID == op.ID })
			if i < 0 {
				i, all = len(all), append(all, RecordedOperation{Operation: op})
			}
			all[i].Foreign = all[i].Foreign || s.IsForeign(op.ID)
		}
	}
	slices.SortStableFunc(all, func(a, b RecordedOperation) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Inherit is an undrain's spec with what the drains that it ends were given. What acts is
// of the latest of them, the rest of the latest that the caller trusts.
func (s Spec) Inherit(drains []RecordedOperation) (Spec, error) {
	var from, trusted *Spec
	var id string
	for _, op := range drains {
		was, err := FromOperation(op.Operation)
		if err != nil {
			if s.given("service") {
				continue // the operator says what is to be started
			}
			return s, Refuse(Finding{Code: "recorded-unit", Override: "--service", Text: err.Error()})
		}
		switch {
		case from == nil:
		case was.Service == "" && from.HasService() && (from.Service != "" || !was.HasService()):
			continue
		case was.Service == from.Service:
		case from.Service != "" && !s.given("service"):
			return s, Refuse(Finding{Code: "several-services", Override: "--service",
				Text: fmt.Sprintf("the target was drained with different services: %s (%s) and %s (%s)\nhint: a target with its port may have one of them", from.Service, id, was.Service, op.ID)})
		}
		if from != nil && from.Nginx.Conf != was.Nginx.Conf && !s.given("nginx-conf") {
			return s, Refuse(Finding{Code: "several-configurations", Override: "--nginx-conf",
				Text: fmt.Sprintf("the target was drained in different configurations: %s (%s) and %s (%s)", journal.OneLine(from.Nginx.Conf), id, journal.OneLine(was.Nginx.Conf), op.ID)})
		}
		was.Given = typed(op.Operation)
		from, id = &was, op.ID
		if !op.Foreign {
			trusted = from
		}
	}
	if from == nil {
		return s, nil
	}
	full, err := s, error(nil)
	if trusted != nil {
		full, err = s.complete(*trusted, func(f reflect.StructField) bool { return trusted.givesUndrain(f) && !isActing(f) })
	}
	given := full.Given
	if err == nil {
		full, err = full.complete(*from, func(f reflect.StructField) bool {
			return from.givesUndrain(f) && (isActing(f) || f.Type == reflect.TypeFor[map[string]json.RawMessage]()) // settings by name have both kinds
		})
	}
	if err != nil {
		return s, err
	}
	if from != trusted && !s.AsRecorded {
		full.Given = given // another user's flags win over no settings of one's own backends
	}
	return full, s.confirm(full, s, actingFlags, drains...)
}

// healthFlags say how health is checked. A file may have been corrected since the drain: an undrain
// takes over what the drain's command line had, and the rest from its own file.
var healthFlags = []string{"health", "health-host", "health-ca"}

// givesUndrain reports whether an undrain takes a field over from a drain.
func (s Spec) givesUndrain(f reflect.StructField) bool {
	flag := f.Tag.Get("flag")
	return keeps(f, byUndrain) || slices.Contains(healthFlags, flag) && s.given(flag)
}

// typed returns the flags that the operator of an operation gave.
func typed(op journal.Operation) []string {
	var s struct {
		Given []string `json:"given"`
	}
	_ = json.Unmarshal(op.Spec, &s) // FromOperation has read it
	return s.Given
}

// HasService reports whether the spec has a service for all backends, or for those of an
// upstream, or for one.
func (s Spec) HasService() bool {
	return s.Any(func(set Settings) bool { return set.Service != "" })
}

// Resume is the spec that continues with an operation: what it was asked for, with what
// is given now before it.
func (s Spec) Resume(op RecordedOperation) (Spec, error) {
	from, err := FromOperation(op.Operation)
	if err != nil {
		return s, Refuse(Finding{Code: "recorded-unit", Text: err.Error()})
	}
	from.Given = typed(op.Operation)
	next, err := s.complete(from, func(f reflect.StructField) bool { return keeps(f, byResume) })
	if err != nil {
		return s, err
	}
	next.Continues, next.Recorder = op.ID, op.Recorder
	if !s.consents(op) {
		next.Given = s.Given
	}
	return next, s.confirm(next, Default(next.Kind), nil, op)
}

// actingFlags are the settings of an undrain that decide which machine is asked, and what
// is run or started there. Of a resume, each setting decides.
var actingFlags = []string{"service", "ssh-host", "ssh-user", "ssh-port", "identity", "health", "health-host", "health-ca", "status-url", "nginx-conf", "state-dir", "on-backend", "reboot", "gate", "only-if"}

// isActing reports whether a field is set by an acting flag. Each flag of SSH is one.
func isActing(f reflect.StructField) bool {
	return slices.Contains(actingFlags, f.Tag.Get("flag")) || f.Type == reflect.TypeFor[SSH]()
}

func isForeign(op RecordedOperation) bool { return op.Foreign }

// consents reports whether the operator uses what the operations have recorded.
func (s Spec) consents(ops ...RecordedOperation) bool {
	return s.AsRecorded || !slices.ContainsFunc(ops, isForeign)
}

// confirm refuses a spec with settings that another user recorded, unless the operator
// has consented to them: those of the flags that full has otherwise than base. Without
// flags it is any setting.
func (s Spec) confirm(full, base Spec, flags []string, ops ...RecordedOperation) error {
	if s.consents(ops...) {
		return nil
	}
	inherited := s.inherited(full, base, flags)
	if len(inherited) == 0 {
		return nil
	}
	by, i := "an unknown user", slices.IndexFunc(ops, isForeign)
	if r := ops[i].Recorder; r != nil {
		by = r.String()
	}
	return Refuse(Finding{Code: "recorded-by-another", Override: "--as-recorded", Text: fmt.Sprintf(
		"operation %s was recorded by %s, and would have this command use: %s\nhint: --as-recorded consents to these settings; flags on the command line replace them",
		ops[i].ID, journal.OneLine(by), journal.OneLine(strings.Join(inherited, "; ")))})
}

// inherited is the settings that full has otherwise than base, as flags.
func (s Spec) inherited(full, base Spec, only []string) (texts []string) {
	asked := map[string]any{}
	EachFlag(s, func(name string, v reflect.Value) { asked[name] = v.Interface() })
	flags := func(of any, than any) (words []string) {
		were := map[string]any{}
		EachFlag(than, func(name string, v reflect.Value) { were[name] = v.Interface() })
		EachFlag(of, func(name string, v reflect.Value) {
			if (only == nil || slices.Contains(only, name)) && !s.given(name) && !reflect.DeepEqual(v.Interface(), were[name]) && !reflect.DeepEqual(v.Interface(), asked[name]) {
				words = append(words, remote.Quote(flagWords(name, v)...))
			}
		})
		return words
	}
	texts = flags(full, base)
	for _, part := range []struct {
		what string
		per  map[string]json.RawMessage
	}{{"upstream", full.PerUpstream}, {"backend", full.PerBackend}} {
		for _, name := range slices.Sorted(maps.Keys(part.per)) {
			var set Settings
			_ = json.Unmarshal(part.per[name], &set) // settings has read it before
			if words := flags(set, Settings{}); len(words) > 0 {
				texts = append(texts, fmt.Sprintf("%s %s: %s", part.what, remote.Quote(name), strings.Join(words, " ")))
			}
		}
	}
	if command := full.Rollout.Command; len(command) > 0 {
		texts = append(texts, "the command "+remote.Quote(command...))
	}
	return texts
}

// WhereFlags are the flags that a later command needs again: which LBs and journal are
// meant, and what the journal does not store.
var WhereFlags = []string{"config", "lb", "state-dir", "nginx", "test-command", "reload-command"}
