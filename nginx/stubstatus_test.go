package nginx

import "testing"

const statusPage = "Active connections: 291 \nserver accepts handled requests\n 16630948 16630946 31070465 \nReading: 6 Writing: 179 Waiting: 106 \n"

// statusCases are pages, and the first number on them; -1: not such a page.
var statusCases = []struct {
	name, page string
	active     int
}{
	{"as nginx writes it", statusPage, 291},
	{"CRLF", "Active connections: 1\r\nserver accepts handled requests\r\n 1 1 1\r\nReading: 0 Writing: 1 Waiting: 0\r\n", 1},
	{"no final newline", "Active connections: 1 \nserver accepts handled requests\n 1 1 1 \nReading: 0 Writing: 1 Waiting: 0", 1},
	{"empty", "", -1},
	{"HTML", "<html>\n<head><title>404 Not Found</title></head>\n<body>\n</body>\n", -1},
	{"cut short", "Active connections: 291 \nserver accepts handled requests\n", -1},
	{"more lines", statusPage + "x\n", -1},
	{"words out of place", "Active connections: 1 \nserver accepts handled requests\n 1 1 1 \nWriting: 1 Reading: 0 Waiting: 0\n", -1},
	{"no number", "Active connections: many \nserver accepts handled requests\n 1 1 1 \nReading: 0 Writing: 1 Waiting: 0\n", -1},
	{"negative", "Active connections: -1 \nserver accepts handled requests\n 1 1 1 \nReading: 0 Writing: 1 Waiting: 0\n", -1},
	{"a number too many", "Active connections: 1 \nserver accepts handled requests\n 1 1 1 1 \nReading: 0 Writing: 1 Waiting: 0\n", -1},
	{"a number too large", "Active connections: 99999999999999999999 \nserver accepts handled requests\n 1 1 1 \nReading: 0 Writing: 1 Waiting: 0\n", -1},
	{"Tengine's", "Active connections: 1 \nserver accepts handled requests request_time\n 1 1 1 5 \nReading: 0 Writing: 1 Waiting: 0\n", -1},
}

func TestParseStubStatus(t *testing.T) {
	for _, c := range statusCases {
		s, err := ParseStubStatus([]byte(c.page))
		if (err != nil) != (c.active < 0) || (err == nil && s.Active != c.active) {
			t.Errorf("%s: %+v, %v", c.name, s, err)
		}
	}
	want := StubStatus{291, 16630948, 16630946, 31070465, 6, 179, 106}
	if s, err := ParseStubStatus([]byte(statusPage)); err != nil || s != want || s.Open() != 290 {
		t.Errorf("%+v, %v, open %d", s, err, s.Open())
	}
	if n := (StubStatus{}).Open(); n != 0 {
		t.Errorf("open %d of none", n)
	}
}
