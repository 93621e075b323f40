package drain

import "time"

// An Event is something that happened, for whoever shows it: one of the types
// below.
type Event interface{ event() }

// A StepStarted says that a step begins.
type StepStarted struct {
	Step   StepName
	Way    Way
	Number int    // from 1, in the order they are taken
	Of     int    // how many there are
	Text   string // what it is about to do, such as "mark 192.168.1.10:8080 down"
}

// A StepDone says that a step is done and seen to be done.
type StepDone struct {
	Step    StepName
	Way     Way
	Changed bool // false: it was so already
	Text    string
	Elapsed time.Duration
}

// A StepFailed says that a step failed; what was done is taken back next,
// unless the operator wants it left.
type StepFailed struct {
	Step StepName
	Way  Way
	Err  error
}

// A Progress is something seen within a step: a test passed, a reload sent.
type Progress struct {
	Step StepName
	Text string
}

// A Waiting is one reading of the gauge during the wait.
type Waiting struct {
	Reading
	Threshold int
	Elapsed   time.Duration
	Limit     time.Duration // 0: none
	Low       int           // how many readings in a row were low enough
	Lost      error         // why the gauge could not be read, nil if it could
}

// A HealthTried is one try of the health check.
type HealthTried struct {
	Err     error // nil: it succeeded
	InARow  int
	Needed  int
	Elapsed time.Duration
	Limit   time.Duration
}

// A RollingBack says that what was done is being taken back, and why.
type RollingBack struct{ Why error }

// A Warned is something the operator should know, though it stops nothing.
type Warned struct{ Text string }

func (StepStarted) event() {}
func (StepDone) event()    {}
func (StepFailed) event()  {}
func (Progress) event()    {}
func (Waiting) event()     {}
func (HealthTried) event() {}
func (RollingBack) event() {}
func (Warned) event()      {}
