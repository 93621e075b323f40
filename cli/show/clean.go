package show

import (
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Most of what drainctl shows are the words of others: names in a configuration, what
// users recorded in a journal, what the programs of a backend print. A terminal must show
// these words, and not act on them. Each renderer for people calls cleaned once, where it
// receives something to show, and then adds its own colours and lines.

// Clean returns a text as one line without anything that a terminal acts on, that has no
// width, or that reorders what is beside it. It writes such a character as Go does: \x1b,
// \n, \u202e, and a byte that is no UTF-8 as \xff.
func Clean(text string) string { return escape(text, "") }

// cleanLines does the same with each line of a text that may have several, such as an error.
func cleanLines(text string) string { return escape(strings.ReplaceAll(text, "\t", " "), "\n") }

// cleanDiff does the same with a diff, whose tabs and line ends are those of the file.
func cleanDiff(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		line, found := strings.CutSuffix(line, "\r")
		if lines[i] = escape(line, "\t"); found {
			lines[i] += "\r"
		}
	}
	return strings.Join(lines, "\n")
}

// colours are the sequences that change nothing but the look of what follows.
var colours = regexp.MustCompile(`\x1b\[[0-9;:]*m`)

// cleanOutput cleans a line that a program printed. Its colours are dropped, and so is
// what ends the line.
func cleanOutput(text string) string {
	return Clean(strings.ReplaceAll(strings.TrimRight(colours.ReplaceAllString(text, ""), "\r\n"), "\t", " "))
}

func escape(text, keep string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteString(`\x` + strconv.FormatUint(uint64(text[i])|0x100, 16)[1:])
		case isVisible(r) || strings.ContainsRune(keep, r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		i += size
	}
	return b.String()
}

// isVisible reports whether a terminal shows a character, and does nothing else with it.
func isVisible(r rune) bool {
	return unicode.IsGraphic(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// cleanJSON escapes the same characters in a JSON text. Its values stay what they are.
func cleanJSON(text []byte) []byte {
	b := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case isVisible(r) || r == '\n':
			b = utf8.AppendRune(b, r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				b = append(b, `\u`+strconv.FormatUint(uint64(unit)|0x10000, 16)[1:]...)
			}
		}
	}
	return b
}

// cleaned returns a deep copy of something to show in which every string is clean. Only
// fields that are known to have several lines keep their line ends.
func cleaned[T any](v T) T {
	copied := v
	cleanValue(reflect.ValueOf(&copied).Elem(), Clean)
	return copied
}

// cleanValue replaces a value, which may share memory with the original, by a clean copy.
func cleanValue(v reflect.Value, clean func(string) string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(clean(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			v.Set(cleanCopy(v.Elem(), clean).Addr())
		}
	case reflect.Interface:
		if !v.IsNil() {
			v.Set(cleanCopy(v.Elem(), clean))
		}
	case reflect.Slice:
		if !v.IsNil() {
			items := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
			reflect.Copy(items, v)
			v.Set(items)
			cleanItems(v, clean)
		}
	case reflect.Array:
		cleanItems(v, clean)
	case reflect.Map:
		if !v.IsNil() {
			entries := reflect.MakeMapWithSize(v.Type(), v.Len())
			for key, value := range v.Seq2() {
				entries.SetMapIndex(cleanCopy(key, clean), cleanCopy(value, clean))
			}
			v.Set(entries)
		}
	case reflect.Struct:
		cleanFields(v)
	}
}

// cleanCopy returns a clean copy of a value, which is addressable.
func cleanCopy(v reflect.Value, clean func(string) string) reflect.Value {
	copied := reflect.New(v.Type()).Elem()
	copied.Set(v)
	cleanValue(copied, clean)
	return copied
}

func cleanItems(v reflect.Value, clean func(string) string) {
	for i := range v.Len() {
		cleanValue(v.Index(i), clean)
	}
}

func cleanFields(v reflect.Value) {
	switch of := v.Addr().Interface().(type) {
	case *netip.Addr: // its zone may be any text
		*of = of.WithZone(Clean(of.Zone()))
		return
	case *netip.AddrPort:
		*of = netip.AddrPortFrom(of.Addr().WithZone(Clean(of.Addr().Zone())), of.Port())
		return
	}
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.IsExported() {
			cleanValue(v.Field(i), cleanerOf(v.Type().Name(), f.Name))
		}
	}
}

// cleanerOf returns how a field is cleaned, by its name and that of its struct.
func cleanerOf(of, field string) func(string) string {
	switch {
	case field == "Diff", of == "Diff" && field == "Text":
		return cleanDiff
	case field == "Log", of == "WorkOutput" && field == "Line":
		return cleanOutput
	case strings.HasSuffix(field, "Error"), of == "Finding" && field == "Text", of == "Warning" && field == "Text",
		field == "Uncounted", field == "Unknown", field == "Warnings", field == "Unchecked", of == "BackendSkipped", of == "Skip":
		return cleanLines
	}
	return Clean
}
