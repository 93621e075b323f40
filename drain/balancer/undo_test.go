package balancer

import (
	"testing"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// FuzzInverse: whatever edits of one file were made, the splices that the journal
// keeps of them give the old bytes back.
func FuzzInverse(f *testing.F) {
	f.Add("server a down down;", []byte{8, 5, 0, 13, 5, 0})
	f.Add("0123456789", []byte{2, 0, 1, 2, 0, 1, 8, 2, 0})
	f.Add("server a; server b down;", []byte{8, 0, 1, 18, 5, 0})
	f.Fuzz(func(t *testing.T, src string, raw []byte) {
		var edits []nginx.Edit
		var splices []journal.Splice
		at := map[int]bool{}
		for ; len(raw) >= 3; raw = raw[3:] {
			e := nginx.Edit{Start: int(raw[0]), End: int(raw[0]) + int(raw[1])}
			if raw[2]%2 == 1 {
				e.New = " down"
			}
			if at[e.Start] || e.End > len(src) { // each line is edited in one way
				continue
			}
			at[e.Start] = true
			edits = append(edits, e)
			splices = append(splices, journal.Splice{At: e.Start, Old: src[e.Start:e.End], New: e.New})
		}
		now, err := nginx.Apply(src, edits)
		if err != nil {
			return
		}
		// A fragment that two upstreams include has each of its splices twice.
		for _, all := range [][]journal.Splice{splices, append(splices, splices...)} {
			if was := inverse(now, all); was != src {
				t.Fatalf("%q became %q by %v, and %q by the inverse", src, now, edits, was)
			}
		}
	})
}
