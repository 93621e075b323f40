package show

import "time"

// A waitLog is the lines of a wait where there is no screen: one now and then, while
// a step is under way, so that a log of a long wait stays short, and is never silent
// for long.
type waitLog struct {
	v     *Text
	shown bool
	next  *time.Timer // when a line is due
	last  time.Time
}

// waitEvery is between two lines of a wait.
const waitEvery = 10 * time.Second

// begin is for what is under way from now on.
func (l *waitLog) begin() {
	l.end()
	l.shown, l.last = false, time.Now()
	l.next = time.AfterFunc(waitEvery, l.due)
}

// end is for when it is not any more.
func (l *waitLog) end() {
	if l.next != nil {
		l.next.Stop()
	}
	l.next = nil
}

// due prints the line of a wait when nothing was printed for a while.
func (l *waitLog) due() {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	if l.next != nil && time.Since(l.last) >= waitEvery {
		l.v.line("  %s", waitText(&l.v.run, l.v.many))
	}
}

// reading prints the first reading of a wait; one that says nothing yet is no reason
// for a line of its own.
func (l *waitLog) reading(quiet bool) {
	if !l.shown && !quiet {
		l.shown = true
		l.v.line("  %s", waitText(&l.v.run, l.v.many))
	}
}

// printed puts the next line off.
func (l *waitLog) printed() {
	if l.next != nil {
		l.last = time.Now()
		l.next.Reset(waitEvery)
	}
}
