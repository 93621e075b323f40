package show

import (
	"slices"
	"testing"
	"time"
)

func TestCurve(t *testing.T) {
	for _, test := range []struct {
		values []int
		width  int
		want   string
	}{
		{nil, 10, ""},
		{[]int{3}, 0, ""},
		{[]int{0, 0}, 10, "▁▁"},
		{[]int{5, 5}, 10, "██"},
		{[]int{70, 60, 50, 40, 30, 20, 10, 0}, 8, "█▇▆▅▄▃▂▁"},
		{[]int{1000, 1, 0}, 8, "█▂▁"},              // few are not none
		{[]int{1, 1, 9, 1, 0, 0, 0, 0}, 4, "▂█▁▁"}, // no peak is lost
		{[]int{3, 2, 1}, 2, "█▆"},
	} {
		if got := curve(test.values, test.width); got != test.want {
			t.Errorf("%v in %d: %q, want %q", test.values, test.width, got, test.want)
		}
	}
}

func TestSeries(t *testing.T) {
	var s series
	s.add(0, 8)
	s.add(100*time.Millisecond, 7) // the latest of a span counts
	s.add(time.Second, 4)          // until then it is as it was
	s.add(time.Second, 3)
	if want := []int{7, 7, 7, 7, 3}; !slices.Equal(s.values, want) {
		t.Errorf("%v, want %v", s.values, want)
	}
	for second := range 3000 {
		s.add(time.Duration(second)*time.Second, 3000-second)
	}
	if n := len(s.values); n > maxSeries || n < maxSeries/2 || s.values[n-1] != 1 {
		t.Errorf("%d values, the last %d; want at most %d, and 1", n, s.values[n-1], maxSeries)
	}
	if got, want := s.span*time.Duration(len(s.values)), 3000*time.Second; got < want || got > want+s.span {
		t.Errorf("%d values of %s are %s, want %s", len(s.values), s.span, got, want)
	}
}

func TestEstimate(t *testing.T) {
	// counts is 60 s of readings, one a second.
	counts := func(at func(second int) int) (s series) {
		for second := range 61 {
			s.add(time.Duration(second)*time.Second, at(second))
		}
		return s
	}
	for name, test := range map[string]struct {
		counts    series
		threshold int
		want      time.Duration
	}{
		"one a second":           {counts(func(s int) int { return 100 - s }), 0, 40 * time.Second},
		"to a threshold":         {counts(func(s int) int { return 100 - s }), 10, 30 * time.Second},
		"none have ended":        {counts(func(int) int { return 100 }), 0, 0},
		"hardly any have ended":  {counts(func(s int) int { return 100 - s/4 }), 0, 0},
		"more and more":          {counts(func(s int) int { return 10 + s }), 0, 0},
		"standing still by now":  {counts(func(s int) int { return max(30, 100-4*s) }), 0, 0},
		"the last few":           {counts(func(s int) int { return max(2, 62-s) }), 0, 0},
		"all at once, just now":  {counts(func(s int) int { return 100 - s/60*50 }), 0, 0},
		"at the threshold":       {counts(func(s int) int { return 100 - s }), 40, 0},
		"no reading":             {series{}, 0, 0},
		"the latest pace counts": {counts(func(s int) int { return 400 - min(s, 40)*8 - max(0, s-40)*2 }), 0, 20 * time.Second},
	} {
		got, _ := test.counts.left(test.threshold)
		if d := got - test.want; d < -5*time.Second || d > 5*time.Second {
			t.Errorf("%s: %s, want about %s", name, got, test.want)
		}
	}
}
