// Command up boots the lab and keeps it up until Ctrl-C, for trying things by hand.
//
//	go run ./testdata/lab/up          boot, and stay
//	go run ./testdata/lab/up -fleet   the same, with a second load balancer, a desk and a jump host
//	go run ./testdata/lab/up -clear   take down what killed labs have left behind
//
// From another terminal, testdata/lab/enter runs a command on a host.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/drainctl/drainctl/testdata/lab"
)

func main() {
	clear := flag.Bool("clear", false, "take down what killed labs have left behind, and end")
	wait := flag.Duration("wait", 0, "how long to wait for a place when too many labs are up (default 5m)")
	fleet := flag.Bool("fleet", false, "with a second load balancer, a desk and a jump host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *clear, lab.Options{Log: os.Stderr, Wait: *wait, Fleet: *fleet}); err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, clear bool, options lab.Options) error {
	if clear {
		return lab.Clear(os.Stderr)
	}
	l, err := lab.Up(ctx, options)
	if err != nil {
		return err
	}
	if err := l.Install(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "lab: drainctl is not on the load balancer: %v\n", err)
	}
	explain(l)
	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "\nlab: coming down")
	return l.Down()
}

func explain(l *lab.Lab) {
	fmt.Printf("\n%-8s %-14s\n", "host", "address")
	enter := fmt.Sprintf("testdata/lab/enter %d", l.Number)
	for _, m := range append(l.Hosts(), l.Client) {
		fmt.Printf("%-8s %-14s %s %s\n", m.Name, m.Addr, enter, m.Name)
	}
	fmt.Printf(`
From another terminal:
  %[1]s lb                      a shell on the load balancer
  %[1]s lb drainctl status      a command on it
  %[1]s client curl -s http://%[2]s/
  %[1]s app1 systemctl status %[3]s
While it is the only lab on the machine, its number %[4]d may be left out.
A new drainctl goes onto the load balancer with
  go build -o %[5]s/usr/bin/drainctl .
Ctrl-C here takes the lab down.
`, enter, lab.LBAddr, lab.AppUnit, l.Number, l.LB.Root)
}
