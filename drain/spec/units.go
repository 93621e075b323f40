package spec

import (
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/remote"
)

// Units are the names of systemd units in the order in which they stop, separated by blanks. One unit is
// stored as in earlier versions.
type Units string

// List returns the names.
func (u Units) List() []string {
	if u == "" {
		return nil
	}
	return strings.Split(string(u), " ")
}

// String returns the names for a person.
func (u Units) String() string { return strings.Join(u.List(), ", ") }

// Flags returns the units on a command line.
func (u Units) Flags() string { return strings.Join(flagWords("service", reflect.ValueOf(u)), " ") }

// Do returns the names and a verb: one for a single unit, many for several.
func (u Units) Do(one, many string) string {
	if len(u.List()) > 1 {
		one = many
	}
	return u.String() + " " + one
}

// InStartOrder returns the names in the order in which the units start: the reverse, but sockets first.
// systemd refuses to start a socket whose service is active (socket_start in systemd's
// src/core/socket.c), and at boot it starts sockets before services too (bootup(7)).
func (u Units) InStartOrder() []string {
	names := u.List()
	slices.Reverse(names)
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names
}

func rank(unit string) int {
	if path.Ext(unit) == ".socket" {
		return 0
	}
	return 1
}

// With returns the units, and then others.
func (u Units) With(others Units) Units {
	return Units(strings.Join(append(u.List(), others.List()...), " "))
}

// Shares reports whether a unit is in both.
func (u Units) Shares(other Units) bool {
	return slices.ContainsFunc(u.List(), func(unit string) bool {
		return slices.ContainsFunc(other.List(), func(o string) bool { return remote.FullUnit(o) == remote.FullUnit(unit) })
	})
}
