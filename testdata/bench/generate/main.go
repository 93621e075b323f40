// Command generate writes the configuration of 100,000 servers in 500 files
// that drainctl is measured with, for nginx to be measured beside it:
//
//	go run ./testdata/bench/generate DIR
//	nginx -t -p DIR -c DIR/nginx.conf
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/drainctl/drainctl/testdata/bench"
)

func main() {
	pool := bench.Large()
	flag.IntVar(&pool.Files, "files", pool.Files, "how many files, with ten upstreams in each")
	flag.IntVar(&pool.Servers, "servers", pool.Servers, "how many servers, in all of them together")
	flag.Parse()
	if flag.NArg() != 1 || pool.Files < 1 || pool.Servers < 10*pool.Files || pool.Servers > 1<<24 {
		fmt.Fprintln(os.Stderr, "usage: generate [-files N] [-servers N] DIR")
		os.Exit(2)
	}
	if err := pool.Write(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}
