//go:build !linux

package remote

import "os"

// memoryFile is a file that has lost its name.
func memoryFile() (*os.File, error) {
	f, err := os.CreateTemp("", "drainctl")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
