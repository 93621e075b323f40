package remote

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNoUnit says that systemd knows no such unit.
var ErrNoUnit = errors.New("no such unit")

// Service is a systemd unit on a host.
type Service struct {
	Host Host
	Unit string // with or without ".service"
}

// ServiceState is what systemd says of a unit (org.freedesktop.systemd1(5)). A property
// that the host's systemd does not know is empty.
type ServiceState struct {
	Load     string // "loaded", "masked", "bad-setting", ...
	Active   string // "active", "inactive", "failed", "activating", "deactivating", ...
	Sub      string // "running", "dead", "stop-sigterm", ...
	Result   string // of the last run: "success", "exit-code", "timeout", ...
	File     string // UnitFileState: "enabled", "masked", "transient", ...
	CanStart string // by an operator: "yes" or "no"
	CanStop  string
	KillMode string   // "control-group", "process", ...
	Job      string   // the number of a start or stop that has yet to begin or to end; empty or "0": none
	Starters []string // units that start it again while they are active
	Triggers []string // units that it starts. systemd forgets, where it has unloaded this one, that it is a starter of theirs
	// Dependents are the units that systemd stops with it, and does not start with it.
	Dependents []string
}

// HasJob tells whether systemd has a job for the unit, such as a stop that waits for another unit.
func (s ServiceState) HasJob() bool { return s.Job != "" && s.Job != "0" }

// unitName is what systemd takes for the name of a unit (systemd.unit(5)).
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*$`)

// unitTypes are the types of units, with which their names end (systemd.unit(5)).
var unitTypes = []string{".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope"}

// FullUnit returns the name of a unit with its type. systemctl takes a name without a type for that of
// a service.
func FullUnit(name string) string {
	if slices.Contains(unitTypes, path.Ext(name)) {
		return name
	}
	return name + ".service"
}

// ValidUnit says whether name can be the name of a unit. Patterns, which
// systemctl would take for several, are none.
func ValidUnit(name string) error {
	switch {
	case name == "":
		return errors.New("the name of the unit is empty")
	case len(name) > 255:
		return fmt.Errorf("%q is not the name of a unit: longer than 255 characters", name)
	case !unitName.MatchString(name):
		return fmt.Errorf("%q is not the name of a unit: only letters, digits and :_.\\@- may be in it, and no - at the start", name)
	}
	return nil
}

// State asks systemd for the state of the unit. It needs no root. The error is
// ErrNoUnit where there is no such unit.
func (s Service) State(ctx context.Context) (ServiceState, error) {
	if err := ValidUnit(s.Unit); err != nil {
		return ServiceState{}, err
	}
	text, err := output(ctx, s.Host, "systemctl", "show", "--property="+strings.Join(stateProperties, ","), s.Unit)
	if err != nil {
		return ServiceState{}, s.failed("ask for the state of", err)
	}
	state, ok := parseState(text)
	switch {
	case !ok:
		err = fmt.Errorf("unexpected output of systemctl: %q", clip(lastLines([]byte(text), 4)))
		return ServiceState{}, s.failed("ask for the state of", err)
	case state.Load == "not-found":
		return state, s.failed("ask for the state of", ErrNoUnit)
	}
	return state, nil
}

// stateProperties are the properties of a [ServiceState].
var stateProperties = []string{
	"LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "CanStart", "CanStop", "KillMode", "Job",
	"TriggeredBy", "UpheldBy", "Triggers",
	"RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo",
}

// stateWord matches each property that is one word.
var stateWord = regexp.MustCompile(`^[a-z0-9-]{0,64}$`)

// parseState reads the properties that systemctl show prints, a line each.
func parseState(text string) (s ServiceState, ok bool) {
	words := map[string]*string{
		"LoadState": &s.Load, "ActiveState": &s.Active, "SubState": &s.Sub, "Result": &s.Result, "UnitFileState": &s.File,
		"CanStart": &s.CanStart, "CanStop": &s.CanStop, "KillMode": &s.KillMode, "Job": &s.Job,
	}
	lists := map[string]*[]string{
		"TriggeredBy": &s.Starters, "UpheldBy": &s.Starters, "Triggers": &s.Triggers, "RequiredBy": &s.Dependents, "RequisiteOf": &s.Dependents,
		"BoundBy": &s.Dependents, "ConsistsOf": &s.Dependents, "PropagatesStopTo": &s.Dependents,
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if word := words[name]; word != nil {
			if !stateWord.MatchString(value) {
				return ServiceState{}, false
			}
			*word = value
		}
		if list := lists[name]; list != nil {
			units, err := Split(value) // systemctl quotes a name that has a backslash
			if err != nil || slices.ContainsFunc(units, func(u string) bool { return ValidUnit(u) != nil }) {
				return ServiceState{}, false
			}
			*list = append(*list, units...)
		}
	}
	return s, s.Load != ""
}

// Start starts the unit, as root, with exactly `systemctl start UNIT`, for which it
// waits as long as ctx lasts. That systemctl is content does not say that the unit is
// active: see State.
func (s Service) Start(ctx context.Context) error { return s.control(ctx, "start") }

// Stop stops the unit, as root, with exactly `systemctl stop UNIT`, which takes
// until the unit has ended or systemd has killed it, or ctx ends. See State afterwards.
func (s Service) Stop(ctx context.Context) error { return s.control(ctx, "stop") }

func (s Service) control(ctx context.Context, verb string) error {
	if err := ValidUnit(s.Unit); err != nil {
		return err
	}
	args := s.command(verb)
	r, err := s.Host.Run(ctx, Command{Args: args, Root: true, Limit: NoLimit})
	if err != nil {
		return s.failed(verb, s.withRule(err))
	}
	if err := r.Err(args...); err != nil {
		if strings.Contains(string(r.Stderr), "not found") || strings.Contains(string(r.Stderr), "not loaded") {
			err = fmt.Errorf("%w: %w", ErrNoUnit, err)
		}
		return s.failed(verb, s.withStatus(ctx, err))
	}
	return nil
}

func (s Service) command(verb string) []string { return []string{"systemctl", verb, s.Unit} }

func (s Service) failed(what string, err error) error {
	return fmt.Errorf("%s %s on %s: %w", what, s.Unit, s.Host.Name(), err)
}

// withStatus adds to err what systemd says of the unit.
func (s Service) withStatus(ctx context.Context, err error) error {
	if state, serr := s.State(ctx); serr == nil {
		err = fmt.Errorf("%w\n%s is %s (%s), result: %s", err, s.Unit, state.Active, state.Sub, state.Result)
	}
	return err
}

// SudoCheck says whether Start and Stop could be run without a password, and
// runs neither. The rule in its *SudoError allows both.
func (s Service) SudoCheck(ctx context.Context) error {
	if err := ValidUnit(s.Unit); err != nil {
		return err
	}
	for _, verb := range []string{"stop", "start"} {
		if err := SudoCheck(ctx, s.Host, s.command(verb)...); err != nil {
			return s.withRule(err)
		}
	}
	return nil
}

// withRule makes the rule of a *SudoError one for both commands: who must have
// one of them allowed will want the other too.
func (s Service) withRule(err error) error {
	var refused *SudoError
	if !errors.As(err, &refused) || len(refused.Commands) != 1 {
		return err
	}
	program := refused.Commands[0][0]
	refused.Commands = nil
	for _, verb := range []string{"start", "stop"} {
		refused.Commands = append(refused.Commands, append([]string{program}, s.command(verb)[1:]...))
	}
	return err
}

// Logs returns the last n lines of the unit's log. Where the journal may not be
// read, or tells nothing, it is what systemctl status shows.
func (s Service) Logs(ctx context.Context, n int) (string, error) {
	if err := ValidUnit(s.Unit); err != nil {
		return "", err
	}
	lines := strconv.Itoa(n)
	args := []string{"journalctl", "--unit=" + s.Unit, "--lines=" + lines, "--no-pager", "--quiet", "--output=short-iso"}
	r, err := s.Host.Run(ctx, Command{Args: args})
	if err != nil {
		return "", s.failed("read the log of", err)
	}
	if text := lastLines(r.Stdout, n); r.Code == 0 && text != "" {
		return text, nil
	}
	args = []string{"systemctl", "status", "--no-pager", "--full", "--lines=" + lines, s.Unit}
	r, err = s.Host.Run(ctx, Command{Args: args})
	if err != nil {
		return "", s.failed("read the log of", err)
	}
	// Its exit status tells the unit's state; 4 is that there is none.
	if text := strings.TrimRight(string(r.Stdout), "\n"); text != "" {
		return text, nil
	}
	return "", s.failed("read the log of", r.Err(args...))
}
