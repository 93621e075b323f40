// Command drainctl takes a backend out of an nginx pool without cutting a
// single request, and puts it back.
package main

import (
	"io"
	"log"
	"os"

	"github.com/drainctl/drainctl/cli"
)

func main() {
	log.SetOutput(io.Discard) // net/http logs what a hostile server sends; drainctl itself logs nothing
	os.Exit(cli.Run(os.Args, os.Stdout, os.Stderr))
}
