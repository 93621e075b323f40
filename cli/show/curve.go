package show

import (
	"slices"
	"strings"
	"time"
)

// A series is a count over time: one value for each span since the beginning.
type series struct {
	values []int
	span   time.Duration
}

// maxSeries bounds the values of a series; beyond it two become one.
const maxSeries = 512

// add notes the count at a time. While nothing is noted it is as it was last.
func (s *series) add(at time.Duration, n int) {
	if s.span == 0 {
		s.span = 250 * time.Millisecond
	}
	for at/s.span >= maxSeries {
		s.values = squeeze(s.values, (len(s.values)+1)/2)
		s.span *= 2
	}
	for i := int(at / s.span); len(s.values) <= i; {
		last := n
		if len(s.values) > 0 && len(s.values) < i {
			last = s.values[len(s.values)-1]
		}
		s.values = append(s.values, last)
	}
	s.values[len(s.values)-1] = n
}

// squeeze makes values fit a width: each column is the highest of its values, so
// that no peak is lost.
func squeeze(values []int, width int) []int {
	if len(values) <= width {
		return values
	}
	columns := make([]int, width)
	for i := range columns {
		columns[i] = slices.Max(values[i*len(values)/width : (i+1)*len(values)/width])
	}
	return columns
}

var blocks = []rune("▁▂▃▄▅▆▇█")

// curve draws values in blocks, at most width of them: the highest value is a whole
// block, and only 0 is the lowest.
func curve(values []int, width int) string {
	if len(values) == 0 || width < 1 {
		return ""
	}
	var b strings.Builder
	columns := squeeze(values, width)
	top := max(1, slices.Max(columns))
	for _, n := range columns {
		level := 0
		if n > 0 {
			level = 1 + (n*(len(blocks)-1)-1)/top
		}
		b.WriteRune(blocks[level])
	}
	return b.String()
}

// What an estimate needs: so many connections above the threshold, as the last few
// end when each pleases, and a fall by a third over so long.
const (
	estimateLeast = 3
	estimateOver  = 2 * time.Second
)

// left estimates how long the count takes to fall to a threshold: it goes on at the
// pace at which the last third of what was open went. There is none while the count
// has not fallen that far, or has stood still for the second half of that time.
func (s *series) left(threshold int) (time.Duration, bool) {
	end := len(s.values) - 1
	if end < 0 || s.values[end]-threshold < estimateLeast {
		return 0, false
	}
	now, begin := s.values[end], end
	for begin >= 0 && 2*s.values[begin] < 3*now {
		begin--
	}
	over := time.Duration(end-begin) * s.span
	if begin < 0 || over < estimateOver || s.values[(begin+end+1)/2] <= now {
		return 0, false
	}
	return over * time.Duration(now-threshold) / time.Duration(s.values[begin]-now), true
}
