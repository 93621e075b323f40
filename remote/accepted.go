package remote

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
)

// unmatchedScript counts, for each of the processes it is given, how many more
// established connections it has accepted than it has made, and prints the sum.
// What it has accepted has a port at the near end that something listens on.
const unmatchedScript = `command -v ss >/dev/null || exit 90
exec 3>&1
said=$({ { ss -Htn state listening; echo "exit $?"; ss -Htnp state established; echo "exit $?"; } | awk -v pids=" $* " '
  $1 == "exit" { if ($2 != 0) code = $2; part++; next }
  { port = $3; sub(/.*:/, "", port) }
  part == 0 { listens[port] = 1; next }
  {
    if (!match($0, /pid=[0-9]+/)) next
    pid = substr($0, RSTART + 4, RLENGTH - 4)
    if (index(pids, " " pid " ") == 0) next
    if (port in listens) accepted[pid]++; else made[pid]++
  }
  END {
    for (pid in accepted) if (accepted[pid] > made[pid]) n += accepted[pid] - made[pid]
    printf "sockets %d 0\n", n
    print "end " (part == 2 ? code + 0 : "unknown")
  }' >&3; } 2>&1)
[ -z "$said" ] || { printf '%s\n' "$said" | head -n 3 >&2; exit 91; }
`

// Unmatched counts, for the processes of h with the numbers pids, the connections
// that they have accepted and have made none of their own to match. Of a proxy
// these are the requests that it has not passed on yet, or whose answer it holds
// itself. It needs root; of a process that is gone there are none.
func Unmatched(ctx context.Context, h Host, pids []int) (int, error) {
	const what = "look at the connections of processes"
	var words []string
	for _, pid := range pids {
		words = append(words, strconv.Itoa(pid))
	}
	mark := rand.Text()
	r, err := h.Run(ctx, Command{Args: scriptArgs(unmatchedScript, mark, words), Root: true})
	if err == nil {
		err = r.Err("ss")
	}
	if err != nil {
		return 0, fmt.Errorf("%s on %s: %w", what, h.Name(), err)
	}
	_, out, _ := strings.Cut(string(r.Stdout), mark+"\n")
	s, err := parseSum(out)
	if err != nil {
		return 0, fmt.Errorf("%s on %s: %w", what, h.Name(), err)
	}
	return s.Count, nil
}
