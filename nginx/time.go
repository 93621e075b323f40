package nginx

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	// timePart is one number of a time, with its unit or, before a blank or the
	// end, without.
	timePart  = regexp.MustCompile(`^([0-9]{1,12})(?:(ms|[smhdwMy]) *|(?: +|$))`)
	timeUnits = map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "": time.Second, "m": time.Minute, "h": time.Hour,
		"d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "M": 30 * 24 * time.Hour, "y": 365 * 24 * time.Hour,
	}
)

// ParseTime reads a time as nginx writes it: a number of seconds, or numbers
// with the units ms, s, m, h, d, w, M, y (ngx_parse_time). Whether a directive
// takes the units, and in that order, is nginx's to judge.
func ParseTime(s string) (time.Duration, error) {
	var total time.Duration
	for rest, more := strings.TrimSpace(s), true; more; more = rest != "" {
		part := timePart.FindStringSubmatch(rest)
		if part == nil {
			return 0, fmt.Errorf("%q is not a time", s)
		}
		n, _ := strconv.ParseInt(part[1], 10, 64) // it is digits, and few
		unit := timeUnits[part[2]]
		if time.Duration(n) > (math.MaxInt64-total)/unit {
			return 0, fmt.Errorf("%q is too long a time", s)
		}
		total += time.Duration(n) * unit
		rest = rest[len(part[0]):]
	}
	return total, nil
}
