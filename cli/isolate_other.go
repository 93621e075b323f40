//go:build !linux

package cli

// isolate refuses: an agent serves an nginx on Linux.
func isolate() error { return usage("drainctl agent works on Linux only") }
