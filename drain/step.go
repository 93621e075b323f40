package drain

// A StepName names a step.
type StepName string

// The steps, in the order of a drain.
const (
	StepMarkDown StepName = "mark down"    // reverse: clear down
	StepWait     StepName = "wait"         // until no connection is open; reverse: until healthy
	StepService  StepName = "stop service" // reverse: start it
	StepWork     StepName = "work"         // of a rolling run, between there and back
)

// A Direction is how a step is run: a drain runs forward, an undrain in reverse.
type Direction string

// The directions.
const (
	Forward Direction = "forward"
	Reverse Direction = "reverse"
)

// Opposite is the direction of what undoes it.
func (d Direction) Opposite() Direction {
	if d == Forward {
		return Reverse
	}
	return Forward
}
