// Command up boots the lab and keeps it up until Ctrl-C, for trying things by hand.
//
//	go run ./testdata/lab/up          boot, and stay
//	go run ./testdata/lab/up -clear   take down what a killed lab has left behind
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
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

func main() {
	clear := flag.Bool("clear", false, "take down what a killed lab has left behind, and end")
	wait := flag.Duration("wait", 0, "how long to wait for another lab to come down (default 5m)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *clear, *wait); err != nil {
		fmt.Fprintf(os.Stderr, "lab: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, clear bool, wait time.Duration) error {
	if clear {
		return lab.Clear(ctx, os.Stderr)
	}
	l, err := lab.Up(ctx, lab.Options{Log: os.Stderr, Wait: wait})
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
	for _, m := range append([]*lab.Machine{l.LB, l.Client}, l.Apps...) {
		fmt.Printf("%-8s %-14s testdata/lab/enter %s\n", m.Name, m.Addr, m.Name)
	}
	fmt.Printf(`
From another terminal:
  testdata/lab/enter lb                      a shell on the load balancer
  testdata/lab/enter lb drainctl status      a command on it
  testdata/lab/enter client curl -s http://%s/
  testdata/lab/enter app1 systemctl status %s
A new drainctl goes onto the load balancer with
  go build -o /run/drainctl-lab/roots/lb/usr/bin/drainctl .
Ctrl-C here takes the lab down.
`, lab.LBAddr, lab.AppUnit)
}
