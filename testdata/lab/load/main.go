// Command load makes the lab's load on one or more addresses and prints what it has seen as
// JSON: a line a second, and a last one when all clients have ended. It ends on
// SIGINT or SIGTERM, after the time it was given, or when nobody reads it any more;
// what is open then ends well first.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

func main() {
	clients := flag.Int("clients", traffic.DefaultClients, "`number` of clients that loop over requests")
	streams := flag.Int("streams", traffic.DefaultStreams, "`number` of upgraded streams open at once")
	limit := flag.Duration("for", traffic.DefaultLimit, "`time` after which the load ends by itself")
	only := flag.String("only", "", "the `kind` of request that the clients send: fast, uploads, even or varied; by default all there are")
	every := flag.Duration("every", time.Second, "`time` between two lines of progress")
	flag.Parse()
	known := *only == "" || slices.Contains(traffic.Kinds, traffic.Kind(*only))
	if flag.NArg() == 0 || *clients < 0 || *streams < 0 || *limit <= 0 || *every <= 0 || !known {
		fmt.Fprintln(os.Stderr, "usage: load [flags] HOST:PORT...")
		flag.PrintDefaults()
		os.Exit(2)
	}
	err := run(traffic.Options{
		Targets: flag.Args(), Clients: none(*clients), Streams: none(*streams), Limit: *limit, Every: *every, Only: traffic.Kind(*only),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "load: error: %v\n", err)
		os.Exit(1)
	}
}

func run(o traffic.Options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := json.NewEncoder(os.Stdout)
	o.Progress = func(s traffic.Summary) {
		s.Failures = nil // the last line has them
		if out.Encode(s) != nil {
			stop()
		}
	}
	return out.Encode(traffic.Run(ctx, o))
}

// none turns a count of 0 into the number that means none to the traffic, to which 0
// means its default.
func none(count int) int {
	if count == 0 {
		return -1
	}
	return count
}
