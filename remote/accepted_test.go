package remote

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A connection that a process has accepted is matched by one that it has made.
func TestUnmatched(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, self := Local(nil), os.Getpid()
	unmatched := func(want int) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for n := -1; n != want; time.Sleep(20 * time.Millisecond) {
			if n, err = Unmatched(t.Context(), host, []int{1 << 22, self}); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d unmatched, want %d", n, want)
			}
		}
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for n := range 2 {
		client := exec.Command("bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/"$1" && read -r`, "bash", port)
		input, err := client.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = input.Close(); _ = client.Wait() }()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		unmatched(n + 1)
	}
	onward, err := net.Dial("tcp", elsewhere(t))
	if err != nil {
		t.Fatal(err)
	}
	unmatched(1)
	onward.Close()
	unmatched(2)
	if n, err := Unmatched(t.Context(), host, []int{1 << 22}); n != 0 || err != nil {
		t.Errorf("a process that is not there has %d, %v", n, err)
	}
}

// elsewhere is the address of a listener at which nobody accepts: the connection is
// established all the same, and only its near end is a process's.
func elsewhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}
