// Package browser_test opens the pages that drainctl writes in a real browser:
// Chromium, without a display and without a network.
package browser_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// limit bounds all tests together, on a slow machine too.
const limit = 3 * time.Minute

// browser is one Chromium for all tests. Where it cannot start, they fail.
var browser context.Context

func TestMain(m *testing.M) {
	os.Exit(withBrowser(m.Run))
}

// withBrowser starts Chromium, and ends it when run does.
func withBrowser(run func() int) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.NoSandbox, // there is none for root
		// It reads files, and finds no host.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND"),
	)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	defer stop()
	browser, _ = chromedp.NewContext(ctx)
	if err := chromedp.Do(browser, chromedp.Navigate("about:blank")); err != nil {
		fmt.Fprintf(os.Stderr, "start Chromium, which testdata/lab/setup.sh installs: %v\n", err)
		return 1
	}
	defer func() { _ = chromedp.Cancel(browser) }()
	return run()
}

// A tab is a page in the browser, and what it has said and asked for.
type tab struct {
	*testing.T
	ctx context.Context

	mu       sync.Mutex
	said     []string // on the console, and errors
	requests []string
}

// open writes the page of a recorded operation to a file, and opens it.
func open(t *testing.T, name string) *tab {
	file := filepath.Join(t.TempDir(), name+".html")
	var b bytes.Buffer
	if err := show.WritePage(&b, recorded(t, name), "test"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return openFile(t, file)
}

func openFile(t *testing.T, file string) *tab {
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	b := &tab{T: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	address := (&url.URL{Scheme: "file", Path: file}).String()
	call(b, network.Enable, network.EnableParams{})
	call(b, log.Enable, cdp.Empty{})
	b.do(chromedp.Navigate(address))
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.said) > 0 {
			t.Errorf("the browser says %q", b.said)
		}
		if !slices.Equal(b.requests, []string{address}) {
			t.Errorf("the page asks for %q, want itself alone", b.requests)
		}
	})
	return b
}

func (b *tab) hear(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *log.EventEntryAdded:
		b.said = append(b.said, e.Entry.Text)
	case *runtime.EventConsoleAPICalled:
		b.said = append(b.said, string(e.Type))
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, e.ExceptionDetails.Text)
	}
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.Fatal(err)
	}
}

// call runs a command of the browser's protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.Fatal(err)
	}
}

// get is what an action gives.
func get[T any](b *tab, action chromedp.Action[T]) T {
	b.Helper()
	value, err := chromedp.Run(b.ctx, action)
	if err != nil {
		b.Fatal(err)
	}
	return value
}

// eval is the value of an expression in the page.
func eval[T any](b *tab, expression string) T {
	b.Helper()
	return get(b, chromedp.Evaluate[T](expression))
}

// size is the window's, in dark or in light.
func (b *tab) size(width int64, scheme string) {
	b.Helper()
	b.do(chromedp.EmulateViewport(width, 900))
	b.media("screen", scheme)
}

func (b *tab) media(media, scheme string) {
	b.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// keep keeps a picture of the whole page; go test -artifacts says where.
func (b *tab) keep(name string) {
	b.Helper()
	png := get(b, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(b.ArtifactDir(), name+".png"), png, 0o600); err != nil {
		b.Fatal(err)
	}
}

// recorded is an operation of the lab, as its history had it.
func recorded(t *testing.T, name string) show.Operation {
	t.Helper()
	text, err := os.Open(filepath.Join("../../../testdata/histories", name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	op := show.Operation{ID: "20261125-031858.465-fx77"}
	for lines := bufio.NewScanner(text); lines.Scan(); {
		e, err := event.Parse(lines.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		op.Events = append(op.Events, e)
	}
	op.Next = status.Unended(spec.Spec{}, op.ID, op.Events)
	return op
}

// Each recorded operation is a page that fits a phone and a desk, in light and in
// dark, and says what happened.
func TestPages(t *testing.T) {
	for name, texts := range map[string][]string{
		"drain":    {"drain 192.168.1.10", "exit code 0: done", "Open connections to 192.168.1.10", "deploy on desk", "kernel update, CHG-4711", "server 192.168.1.10:8080 down;", "nginx-test", "threshold: 2"},
		"undrain":  {"undrain 192.168.1.10", "wait until healthy", "3 of 3 checks passed", "is back: my-web-app on 192.168.1.10 runs"},
		"rollback": {"rolled back", "exit code 3: not drained in time", "rollback: clear down", "configuration as before", "the time was up", "everything is as it was before"},
		"run":      {"batch 1/3", "batch 3/3", "3 backends done and back in the pool", "deploy@192.168.1.2", "deploy@192.168.1.3", "on every LB"},
		"unended":  {"not ended", "drainctl resume", "drainctl undrain 192.168.1.11", "no end"},
		"old":      {"drain 192.168.1.12", "an older drainctl", "inserted at byte", "Open connections to 192.168.1.12"},
		"partial":  {"a person must look", "failed, and out of the pool: 192.168.1.11", "not begun: 192.168.1.12", "one live server left", "puts 192.168.1.11 back", "exit status 1"},
		"otherlb":  {"192.168.1.3 still opens connections", "rolled back"},
		"stuck":    {"3 upgraded connections (WebSocket?), open for up to 2m", "Held longest", "192.168.1.2:53412 open 2m, idle 1s, by lb1", "192.168.1.77 still opens connections", "the last log lines of the app"},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, name)
			backs := map[string]string{}
			for _, scheme := range []string{"light", "dark"} {
				for _, width := range []int64{360, 1000} {
					b.size(width, scheme)
					if wide := eval[int64](b, `document.documentElement.scrollWidth`); wide > width {
						t.Errorf("at %d px it is %d px wide", width, wide)
					}
					b.keep(fmt.Sprintf("%s-%d-%s", name, width, scheme))
				}
				backs[scheme] = eval[string](b, `getComputedStyle(document.body).backgroundColor`)
			}
			if backs["light"] != "rgb(255, 255, 255)" || backs["dark"] == backs["light"] {
				t.Errorf("the backgrounds are %v", backs)
			}
			seen := strings.Join(strings.Fields(eval[string](b, `document.body.innerText`)), " ")
			for _, text := range texts {
				if !strings.Contains(strings.ToLower(seen), strings.ToLower(text)) {
					t.Errorf("the page lacks %q:\n%s", text, seen)
				}
			}
			for _, text := range []string{"%!", "<nil>", "[object"} {
				if strings.Contains(seen, text) {
					t.Errorf("the page has %q", text)
				}
			}
		})
	}
}

// A curve is seen, and not by the eye alone.
func TestCurve(t *testing.T) {
	b := open(t, "drain")
	b.size(360, "light")
	type curve struct {
		Width, Height, Line float64
		Named               bool
		Readings            int
	}
	seen := eval[[]curve](b, `[...document.querySelectorAll('svg')].map(s => ({
		Width: s.getBoundingClientRect().width, Height: s.getBoundingClientRect().height,
		Line: s.querySelector('.line').getBoundingClientRect().height,
		Named: s.getAttribute('aria-labelledby').split(' ').every(id => document.getElementById(id).textContent.includes('connections') || id.endsWith('desc') && document.getElementById(id).textContent.includes('at the end')),
		Readings: s.closest('figure').querySelectorAll('tbody tr').length,
	}))`)
	if len(seen) != 1 {
		t.Fatalf("%d curves", len(seen))
	}
	if c := seen[0]; c.Width < 250 || c.Height < 80 || c.Line < c.Height/2 || !c.Named || c.Readings < 3 {
		t.Errorf("the curve is %+v", c)
	}
}

// Text is told from its background as WCAG's AA asks, in both schemes.
func TestContrast(t *testing.T) {
	for _, name := range []string{"stuck", "run", "unended"} {
		b := open(t, name)
		for _, scheme := range []string{"light", "dark"} {
			b.size(1000, scheme)
			if low := eval[[]string](b, contrast); len(low) > 0 {
				t.Errorf("%s, %s: %s", name, scheme, strings.Join(low, "\n"))
			}
		}
	}
}

// contrast lists the texts whose contrast is below 4.5.
const contrast = `(() => {
	const rgb = c => c.match(/[\d.]+/g).map(Number)
	const light = c => { const [r, g, b] = rgb(c).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
	const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c } return 'rgb(255, 255, 255)' }
	const low = new Set()
	for (const e of document.querySelectorAll('body *')) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest('svg')) continue
		const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x)
		const ratio = (a + 0.05) / (b + 0.05)
		if (ratio < 4.5) low.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2))
	}
	return [...low]
})()`

// The order of headings, the heads of tables, and what else a screen reader goes by.
func TestStructure(t *testing.T) {
	b := open(t, "run")
	for what, expression := range map[string]string{
		"one h1":                 `document.querySelectorAll('h1').length === 1`,
		"a language":             `document.documentElement.lang === 'en'`,
		"a title":                `document.title.includes('run 192.168.1.10') && document.title.endsWith(': done')`,
		"no level left out":      `[...document.querySelectorAll('h1,h2,h3')].every((h, i, all) => i === 0 || h.tagName[1] - all[i-1].tagName[1] <= 1)`,
		"every column named":     `[...document.querySelectorAll('table')].every(t => t.querySelectorAll('thead th[scope=col]').length >= 2)`,
		"no script":              `document.scripts.length === 0`,
		"no id twice":            `new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === document.querySelectorAll('[id]').length`,
		"the list of a timeline": `document.querySelectorAll('table.timeline tbody').length > 15`,
	} {
		if !eval[bool](b, expression) {
			t.Errorf("the page has not: %s", what)
		}
	}
}

// On paper it is dark on white, whatever the screen is, and cut nowhere.
func TestPaper(t *testing.T) {
	b := open(t, "drain")
	b.size(1000, "dark")
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{})
	pdf := get(b, chromedp.PrintToPDF(chromedp.PDFPreferCSSPageSize()))
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "drain.pdf"), pdf, 0o600); err != nil {
		t.Fatal(err)
	}
	pages := len(regexp.MustCompile(`/Type\s*/Page\b`).FindAll(pdf, -1))
	fonts := bytes.Contains(pdf, []byte("/Font"))
	if !bytes.HasPrefix(pdf, []byte("%PDF-")) || pages < 1 || pages > 4 || !fonts || len(pdf) < 10_000 {
		t.Errorf("%d bytes, %d pages, fonts: %v", len(pdf), pages, fonts)
	}
	b.media("print", "dark")
	if back := eval[string](b, `getComputedStyle(document.body).backgroundColor`); back != "rgb(255, 255, 255)" {
		t.Errorf("on paper the background is %s", back)
	}
}

// What others have written stays text, in a browser too.
func TestHostileText(t *testing.T) {
	const attack = `</title></style></script><script>document.title='owned'</script><img src=x onerror="document.title='owned'"><svg onload="document.title='owned'">" onmouseover="x" 'x' ${1} {{.}} ` + "\u202e\x00`"
	at := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	head := event.Header{Time: at, LB: attack, Target: attack, Step: plan.StepWait, Direction: plan.Forward}
	op := show.Operation{ID: attack, Events: []event.Event{
		&event.OperationStarted{Header: head, Kind: attack, Targets: []string{attack}, User: attack, Host: attack, Reason: attack, Service: attack, Drainctl: attack},
		&event.StepStarted{Header: head, Description: plan.Description{Counter: attack}},
		&event.Waiting{Header: head, Open: 3, Held: []event.Held{{Address: attack, LB: attack}}},
		&event.Edited{Header: head, Diff: "--- " + attack + "\n+" + attack + "\n"},
		&event.StepFailed{Header: head, Error: attack},
		&event.Result{Header: head, ExitCode: spec.TimedOut, Error: attack, Log: []string{attack}, Next: []spec.Command{{Words: []string{attack}, Reason: attack, On: attack}}},
	}}
	file := filepath.Join(t.TempDir(), "hostile.html")
	var b bytes.Buffer
	if err := show.WritePage(&b, op, attack); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := openFile(t, file)
	if title := eval[string](tab, `document.title`); title == "owned" {
		t.Error("a script has run")
	}
	if found := eval[int](tab, `document.querySelectorAll('script, img, [onerror], [onload], [onmouseover]').length`); found != 0 {
		t.Errorf("%d elements came from the text", found)
	}
	if got := eval[string](tab, `document.querySelector('h1').textContent`); !strings.Contains(got, `<script>document.title='owned'</script>`) {
		t.Errorf("the heading is %q", got)
	}
	tab.size(360, "light")
	if wide := eval[int](tab, `document.documentElement.scrollWidth`); wide > 360 {
		t.Errorf("at 360 px it is %d px wide", wide)
	}
}
