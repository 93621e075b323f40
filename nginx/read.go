package nginx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

var (
	// ErrNotRegular says that a path is a directory, pipe, socket or device.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge says that a file is larger than [MaxFileSize].
	ErrTooLarge = errors.New("file too large")
)

// appendFile appends the content of the regular file at path, of at most
// MaxFileSize bytes, to buf.
func appendFile(buf []byte, path string) ([]byte, error) {
	// A pipe with no writer must not block the open; regular files do not mind.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return buf, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return buf, err
	case info.IsDir():
		err = fmt.Errorf("%w: %w", ErrNotRegular, syscall.EISDIR)
	case !info.Mode().IsRegular() && path != os.DevNull:
		err = ErrNotRegular
	}
	before := len(buf)
	for size := info.Size(); err == nil && size <= MaxFileSize; size = int64(len(buf) - before) {
		buf = slices.Grow(buf, max(int(info.Size())-len(buf)+before, 0)+1) // one more, to see the end
		var n int
		n, err = f.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; errors.Is(err, io.EOF) {
			return buf, nil
		}
	}
	if err == nil {
		err = ErrTooLarge
	}
	return buf, &fs.PathError{Op: "read", Path: path, Err: cause(err)}
}
