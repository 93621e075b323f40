// Command drainctl takes a backend out of an nginx pool without cutting a
// single request, and puts it back.
package main

import (
	"os"

	"github.com/drainctl/drainctl/cli"
)

func main() {
	os.Exit(cli.Run(os.Args, os.Stdout, os.Stderr))
}
