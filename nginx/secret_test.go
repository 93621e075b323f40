package nginx

import (
	"strings"
	"testing"
)

// A link to a file that only root can read must not show a word of it: whoever may ask
// drainctl about the configuration may not read everything on the machine.
func TestErrorsQuoteNoFile(t *testing.T) {
	for _, text := range []string{
		"hush:$y$hush:1::", "}hush", "hush}", `"hush`, `"hush"hush`, "{hush", ";hush", "hush { hush", "a_by_lua_block { hush",
		"server hush:hush;", "server [hush;", "server [hush]:1;", "server [::1]hush;", "server :hush;", "server;",
		"server a:1 \"hush\"\\;hush;", `"server" hush:1;`, "server `hush hush`;", "server hush\\{;", "server hush weight=`hush hush`;",
		strings.Repeat("hush", 2000) + ";" + strings.Repeat(" ", 5000), "include hush hush;", strings.Repeat("hush { ", 65),
	} {
		for _, files := range []memory{
			{mainConf: text},
			{mainConf: "include f;", "/etc/nginx/f": text},
			{mainConf: "http { include f; }", "/etc/nginx/f": "upstream u { " + text + " }"},
			{mainConf: "http { upstream u { server a:1; include f; } }", "/etc/nginx/f": text},
		} {
			for _, err := range allErrors(t, files) {
				if strings.Contains(err.Error(), "hush") {
					t.Errorf("%q is quoted: %v", text, err)
				}
			}
		}
	}
}

// allErrors is what there is to say about a configuration.
func allErrors(t *testing.T, files memory) []error {
	t.Helper()
	c, err := load(t.Context(), files, mainConf)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, sk := range c.Skipped {
		errs = append(errs, sk.Err)
	}
	for _, u := range c.Upstreams {
		errs = append(errs, u.CrossCheck())
		for _, s := range u.Servers {
			errs = append(errs, s.Err, c.Verify(s.Edits(!s.IsDown())))
		}
	}
	found := errs[:0]
	for _, err := range errs {
		if err != nil {
			found = append(found, err)
		}
	}
	return found
}
