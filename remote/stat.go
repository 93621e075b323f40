package remote

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// resolve returns the absolute path of the file at path, symlinks followed.
func resolve(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err // an errno, which EvalSymlinks does not always have
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", pathCause(err)
	}
	return filepath.Abs(real)
}

// statLocal describes the file at path on this machine, symlinks followed.
func statLocal(path string) (FileInfo, error) {
	real, err := resolve(path)
	if err != nil {
		return FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return FileInfo{
		Path: real,
		Mod:  time.Unix(st.Mtim.Unix()), Change: time.Unix(st.Ctim.Unix()),
		Size: st.Size, Links: int(st.Nlink),
		Dev: uint64(st.Dev), Ino: st.Ino,
	}, nil
}

// pathCause takes the path out of err, where err is one of os's own errors: who
// calls names the path once, as the user wrote it.
func pathCause(err error) error {
	switch e := err.(type) {
	case *fs.PathError:
		return pathCause(e.Err)
	case *os.LinkError:
		return pathCause(e.Err)
	case *xattr.Error:
		return pathCause(e.Err)
	}
	return err
}
