package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

var (
	// ErrChanged says that a file no longer holds what the caller had read.
	ErrChanged = errors.New("the file was changed by another process")
	// ErrHardLinks says that a file has several names: an atomic replacement
	// would change one and leave the others old.
	ErrHardLinks = errors.New("the file has several hard links")
)

// Replace puts now in the place of was in the file at path, atomically and
// durably: whatever fails, and whenever, the file holds one or the other, whole.
// Symlinks are followed and kept, as are owner, mode and extended attributes
// (and with them the ACL and the SELinux context). The error is an
// *[fs.PathError]: [ErrChanged] if the file does not hold was; [ErrHardLinks],
// [ErrNotRegular] and [syscall.EBUSY] (a mount point) where it cannot be done.
func Replace(path string, was, now []byte) error {
	return replaceError(path, replace(path, was, now))
}

func replace(path string, was, now []byte) error {
	real, err := RealPath(path)
	if err != nil {
		return err
	}
	if err := compare(real, was); err != nil {
		return err
	}
	temp, err := newTemp(real)
	if err != nil {
		return err
	}
	defer temp.Cleanup() // a no-op once the file is in place
	if _, err := temp.Write(now); err != nil {
		return err
	}
	if err := copyAttributes(temp.File, real); err != nil {
		return err
	}
	// The sync may take long on a busy disk. It comes before the last
	// comparison, so that next to nothing lies between that and the rename.
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := compare(real, was); err != nil {
		return err
	}
	if err := temp.CloseAtomicallyReplace(); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			return errMountPoint
		}
		return err
	}
	if err := syncDir(filepath.Dir(real)); err != nil {
		return fmt.Errorf("the new content is in place, but the directory could not be synced: %w", err)
	}
	return nil
}

// CheckReplace is the error that Replace would meet, as far as that can be known
// without doing it. It creates a temporary file and removes it.
func CheckReplace(path string) error {
	return replaceError(path, checkReplace(path))
}

func checkReplace(path string) error {
	real, err := RealPath(path)
	if err != nil {
		return err
	}
	if _, err := appendFile(nil, real); err != nil {
		return err
	}
	if err := checkLinks(real); err != nil {
		return err
	}
	if err := checkAttributes(real); err != nil {
		return err
	}
	temp, err := newTemp(real)
	if err != nil {
		return err
	}
	return temp.Cleanup()
}

// errMountPoint is the error of a file that has a file system mounted on it.
var errMountPoint = fmt.Errorf("it is a mount point (a bind mount?): %w", syscall.EBUSY)

// newTemp creates the file that is to replace the one at real.
func newTemp(real string) (*renameio.PendingFile, error) {
	return renameio.NewPendingFile(real, renameio.WithTempDir(filepath.Dir(real)), renameio.WithStaticPermissions(0o600))
}

// compare is nil if the file is one that can be replaced and holds was.
func compare(real string, was []byte) error {
	if err := checkLinks(real); err != nil {
		return err
	}
	is, err := appendFile(nil, real)
	if err != nil {
		return err
	}
	if !bytes.Equal(is, was) {
		return ErrChanged
	}
	return nil
}

func checkLinks(real string) error {
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		return fmt.Errorf("%w (%d): replacing one would leave the others old", ErrHardLinks, st.Nlink)
	}
	return nil
}

// copyAttributes gives to the owner, mode and extended attributes of the file at
// from.
func copyAttributes(to *os.File, from string) error {
	var st, own unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := unix.Fstat(int(to.Fd()), &own); err != nil {
		return err
	}
	if st.Uid != own.Uid || st.Gid != own.Gid {
		if err := to.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	// After the owner: changing that clears the set-id bits.
	if err := unix.Fchmod(int(to.Fd()), uint32(st.Mode)&0o7777); err != nil {
		return err
	}
	return copyXattrs(to, from)
}

// aclXattr holds a file's ACL.
const aclXattr = "system.posix_acl_access"

// copyXattrs makes the extended attributes of to those of the file at from.
func copyXattrs(to *os.File, from string) error {
	names, err := xattr.List(from)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	hasACL := false
	for _, name := range names {
		if name == "security.ima" || name == "security.evm" {
			continue // hashes over the old content
		}
		value, err := xattr.Get(from, name)
		if errors.Is(err, xattr.ENOATTR) {
			continue
		}
		if err != nil {
			return err
		}
		hasACL = hasACL || name == aclXattr
		// What the directory already gave it (an SELinux context) may
		// not be ours to set, and need not be.
		if have, err := xattr.FGet(to, name); err == nil && bytes.Equal(have, value) {
			continue
		}
		if err := xattr.FSet(to, name, value); err != nil {
			return fmt.Errorf("extended attribute %s: %w", name, cause(err))
		}
	}
	// A default ACL of the directory must not open up a file that has none.
	if _, err := xattr.FGet(to, aclXattr); hasACL || err != nil {
		return nil
	}
	return xattr.FRemove(to, aclXattr)
}

// syncDir makes the entries of dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RealPath is the absolute path of the file at path, symlinks followed.
func RealPath(path string) (string, error) {
	if _, err := ChangeTime(path); err != nil {
		return "", err // an errno, which EvalSymlinks does not always have
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(real)
}

// ChangeTime is when the content or the attributes of the file at path were last
// changed (ctime), symlinks followed.
func ChangeTime(path string) (time.Time, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return time.Time{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return time.Unix(st.Ctim.Unix()), nil
}

// replaceError names the path once, as the caller wrote it.
func replaceError(path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "replace", Path: path, Err: cause(err)}
}

// cause takes the path out of err, where err is one of os's own errors.
func cause(err error) error {
	switch e := err.(type) { //nolint:errorlint // what stands around the path is to stay
	case *fs.PathError:
		return cause(e.Err)
	case *os.LinkError:
		return cause(e.Err)
	case *xattr.Error:
		return cause(e.Err)
	}
	return err
}
