# Looks at this host's ports when it is told to, a line each:
#   count ID            the established ones and those in SYN-RECV, grouped by the
#                       address of the peer: while the listen queue is full, a client
#                       has sent its request and the server still shows SYN-RECV
#                       (tcp(7), tcp_abort_on_overflow)
#   held ID             the same, and each of the first 2000: its far end, and how many
#                       ms ago something was last sent on it, and received
#   clients ID ADDR...  the far ends of all that there are or were until a minute
#                       ago (TIME-WAIT), but at ADDR and at this host itself
#   sees ID FILTER      the far ends that FILTER has ss print, in any state
# An answer ends with "end ID STATUS", the exit status of ss. Before this text come
# lines that set ready, what to print first, filter, the sockets for ss, and counted,
# those of them that count.
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# One awk sums up what one ss prints: only the sum travels, however many the sockets
# are. ss is followed by its exit status in the same stream, and says what is wrong
# there too. A line that is neither a socket nor the status makes the answer an error.
common='
  /^exit [0-9]+$/ { status = $2; next }
  function address(end) {
    sub(/:[0-9*]+$/, "", end)
    gsub(/[][]/, "", end)
    if (end !~ /:/) sub(/%.*/, "", end)
    if (end ~ /^::ffff:[0-9.]+$/) end = substr(end, 8)
    return end
  }
  function done() { print "end " id " " (status == "" ? "unknown" : status) }'

count='
  /^([A-Z-]+ +)?[0-9]+ +[0-9]+ +[^ ]+:[0-9]+ +[^ ]+:[0-9]+ *$/ {
    open++
    peer = $NF
    sub(/:[0-9]+$/, "", peer)
    seen[peer]++
    if (held && open <= 2000) far[open] = $NF
    next
  }
  # What -i prints of a socket is on a line of its own. ss leaves out what is 0, and
  # every ss that knows -H knows lastsnd and lastrcv.
  held && /^[ \t]/ {
    if (open <= 2000 && / (rto|cwnd):[0-9]/) ago[open] = " " last("snd") " " last("rcv")
    next
  }
  { if (errors++ < 3) print "error " $0 }
  function last(way) {
    return match($0, " last" way ":[0-9]+") ? substr($0, RSTART + 9, RLENGTH - 9) : 0
  }
  END {
    for (peer in seen) {
      name = address(peer ":0")
      if (!(name in sum)) peers++
      sum[name] += seen[peer]
    }
    print "open " open + 0 " " peers + 0
    for (i = 0; i < 8 && i < peers; i++) {
      most = 0
      for (name in sum) if (sum[name] > most) { most = sum[name]; best = name }
      print "peer " most " " best
      delete sum[best]
    }
    for (i = 1; i in far; i++) print "held " far[i] ago[i]
    done()
  }'

clients='
  /^[A-Z0-9-]+ +[0-9]+ +[0-9]+ +[^ ]+:[0-9]+ +[^ ]+:[0-9]+ *$/ {
    own[address($4)] = 1
    peer = address($5)
    if (index(except, " " peer " ") == 0) { far[++n] = $5; at[n] = peer }
    next
  }
  { if (errors++ < 3) print "error " $0 }
  END {
    for (i = 1; i <= n; i++) {
      if (at[i] in own) continue
      if (++shown > 2000) continue
      print "client " far[i]
    }
    if (shown > 2000) print "more " shown - 2000
    done()
  }'

sees='
  /^[A-Z0-9-]+ +[0-9]+ +[0-9]+ +[^ ]+:[0-9]+ +[^ ]+:[0-9]+ *$/ { print "client " $5; next }
  { if (errors++ < 3) print "error " $0 }
  END { done() }'

# The braces have the shell read all of this before it runs any of it, and what
# follows it is for read.
{
  for tool in ss awk; do
    command -v $tool >/dev/null || { printf '%s\n' "$ready no $tool"; exit; }
  done
  printf '%s\n' "$ready"
  while read -r what id rest; do
    case $what in
      count) { ss -Htn state established state syn-recv "$counted" 2>&1; echo "exit $?"; } | awk -v id="$id" "$common$count" ;;
      held) { ss -Htni state established state syn-recv "$counted" 2>&1; echo "exit $?"; } | awk -v id="$id" -v held=1 "$common$count" ;;
      clients) { ss -Htan state connected "$filter" 2>&1; echo "exit $?"; } | awk -v id="$id" -v except=" $rest " "$common$clients" ;;
      sees) { ss -Htan state connected "$filter and ( $rest )" 2>&1; echo "exit $?"; } | awk -v id="$id" "$common$sees" ;;
    esac </dev/null || printf 'end %s unknown\n' "$id"
  done
  exit
}
