package drain

import (
	"context"
	"fmt"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// unsentGrace is for how long, from the first low reading on, a wait goes on for
// requests that may yet be sent to the backend. It is not longer because a request
// whose answer nginx itself sends, slowly, looks the same and may take for ever.
const unsentGrace = 10 * time.Second

// unsent looks for requests that workers of earlier generations hold and have not
// passed on: uploads that are still being read, most often (nginx connects to a
// server when it has all of the body, see proxy_request_buffering). To those
// workers the target is up. They may send it such a request long after the gauge
// has read 0.
type unsent struct {
	r     *run
	since time.Time // the first low reading
	told  bool      // that there are some
	gone  bool      // on without them, and said so
}

// look tells whether there are any, in which case the backend is not empty yet.
// The reading of the gauge that counts has to come after it. Where it cannot be
// known, for want of root, the gauge alone has to do.
func (u *unsent) look(ctx context.Context) bool {
	if u.since.IsZero() {
		u.since = time.Now()
	}
	held := 0
	for _, c := range u.r.close.lbs {
		if len(c.earlier) == 0 {
			continue
		}
		n, err := remote.Unmatched(ctx, c.lb.Host, c.earlier)
		if err == nil {
			held += n
		}
	}
	switch {
	case held == 0, u.gone:
		return false
	case time.Since(u.since) > unsentGrace:
		u.gone = true
		u.r.tell(Warned{fmt.Sprintf("earlier workers of nginx still hold %s without a server after %s; if it is sent to one now, that may be this backend", requests(held), unsentGrace)})
		return false
	}
	if !u.told {
		u.told = true
		u.r.tell(Progress{StepEmpty, fmt.Sprintf("earlier workers of nginx hold %s that may yet be sent to the backend; waiting for that, at most %s", requests(held), unsentGrace)})
	}
	return true
}

func requests(n int) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}
