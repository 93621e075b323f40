package cli

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// A liveLine is the last line of a terminal, which is rewritten. Elsewhere it is
// a line now and then, so that a log of a long wait stays short.
type liveLine struct {
	v    *textView
	bar  *progressbar.ProgressBar
	last time.Time
	kind string
}

// waitEvery is between two lines of a wait that is shown in no live line.
const waitEvery = 5 * time.Second

// show shows text, or leaves it out where it is too early for another line of
// the same kind.
func (l *liveLine) show(kind, text string) {
	if !l.v.live {
		if time.Since(l.last) >= waitEvery || kind != l.kind {
			l.last, l.kind = time.Now(), kind
			l.v.line("  %s", text)
		}
		return
	}
	if l.bar == nil {
		l.bar = progressbar.NewOptions(-1,
			progressbar.OptionSetWriter(l.v.out),
			progressbar.OptionSpinnerType(14),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetRenderBlankState(false),
		)
	}
	if f, ok := l.v.out.(*os.File); ok {
		// A line that wraps cannot be rewritten.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 8 {
			if runes := []rune(text); len(runes) > width-4 {
				text = string(runes[:width-5]) + "…"
			}
		}
	}
	l.bar.Describe(text)
	_ = l.bar.Add(1)
}

func (l *liveLine) clear() {
	if l.bar != nil {
		_ = l.bar.Finish()
		l.bar = nil
	}
}
