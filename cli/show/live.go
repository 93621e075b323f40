package show

import (
	"os"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// A liveLine is the last line of a terminal, which is rewritten. Elsewhere it is
// a line now and then, while a step is under way, so that a log of a long wait
// stays short, and is never silent for long.
type liveLine struct {
	v   *Text
	bar *progressbar.ProgressBar

	step     string // what is under way; empty: nothing
	began    time.Time
	backends []waitState // that are waited for
	shown    bool
	next     *time.Timer // when a line is due
	last     time.Time
}

// A waitState is the latest reading of one backend, in full and in a word or two.
type waitState struct {
	backend, text, short string
	done                 bool
}

// waitEvery is between two lines of a wait that is shown in no live line.
const waitEvery = 10 * time.Second

// begin says what is under way from now on.
func (l *liveLine) begin(step string) {
	l.end()
	l.step, l.began, l.backends, l.shown = step, time.Now(), nil, false
	if !l.v.live {
		l.last = l.began
		l.next = time.AfterFunc(waitEvery, l.due)
	}
}

// end says that it is not under way any more.
func (l *liveLine) end() {
	if l.next != nil {
		l.next.Stop()
	}
	l.step, l.next = "", nil
}

// due prints the line of a wait when nothing was printed for a while.
func (l *liveLine) due() {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	if l.next != nil && time.Since(l.last) >= waitEvery {
		l.v.line("  %s", l.text())
	}
}

// show has a new reading. A quiet one is no reason for a line of its own.
func (l *liveLine) show(s waitState, quiet bool) {
	i := slices.IndexFunc(l.backends, func(had waitState) bool { return had.backend == s.backend })
	if i < 0 {
		i, l.backends = len(l.backends), append(l.backends, s)
	}
	l.backends[i] = s
	if l.v.live {
		l.rewrite(l.text())
	} else if !l.shown && !quiet {
		l.shown = true
		l.v.line("  %s", l.text())
	}
}

// text is what is waited for now: each backend that is not done yet, or the step.
func (l *liveLine) text() string {
	left := slices.DeleteFunc(slices.Clone(l.backends), func(s waitState) bool { return s.done })
	if len(left) == 0 {
		left = l.backends
	}
	return waitText(l.step, time.Since(l.began), left, l.v.many)
}

func (l *liveLine) rewrite(text string) {
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

// clear makes room for another line; after it the wait has none for a while.
func (l *liveLine) clear() {
	if l.bar != nil {
		_ = l.bar.Finish()
		l.bar = nil
	}
	if l.next != nil {
		l.last = time.Now()
		l.next.Reset(waitEvery)
	}
}
