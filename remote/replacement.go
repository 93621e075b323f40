package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// replaceLocal is Host.Replace on this machine, as the user that runs it.
func replaceLocal(path string, was, now []byte) error {
	fail := func(err error) error {
		return &fs.PathError{Op: "replace", Path: path, Err: pathCause(err)}
	}
	real, err := resolve(path)
	if err != nil {
		return fail(err)
	}
	if err := compareLocal(real, was); err != nil {
		return fail(err)
	}
	dir := filepath.Dir(real)
	temp, err := renameio.NewPendingFile(real, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return fail(err)
	}
	defer temp.Cleanup() // a no-op once the file is in place
	if _, err := temp.Write(now); err != nil {
		return fail(err)
	}
	if err := copyAttributes(temp.File, real); err != nil {
		return fail(err)
	}
	// The sync may take long on a busy disk; it comes before the last look, so
	// that next to nothing lies between that and the rename.
	if err := temp.Sync(); err != nil {
		return fail(err)
	}
	if err := compareLocal(real, was); err != nil {
		return fail(err)
	}
	if err := temp.CloseAtomicallyReplace(); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			err = fmt.Errorf("it is a mount point (a bind mount?): %w", syscall.EBUSY)
		}
		return fail(err)
	}
	if err := syncDir(dir); err != nil {
		return fail(fmt.Errorf("the new content is in place, but the directory could not be synced: %w", err))
	}
	return nil
}

// compareLocal is nil if the file is one that can be replaced and holds was.
func compareLocal(real string, was []byte) error {
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		return fmt.Errorf("%w (%d): replacing one would leave the others old", ErrHardLinks, st.Nlink)
	}
	is, err := readLocal(real)
	if err != nil {
		return err
	}
	if !bytes.Equal(is, was) {
		return ErrChanged
	}
	return nil
}

// copyAttributes gives to the owner, mode and extended attributes (and with
// them the ACL and the SELinux context) of the file at from.
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
	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return copyXattrs(to, from)
}

// copyXattrs makes the extended attributes of to those of the file at from.
func copyXattrs(to *os.File, from string) error {
	names, err := xattr.List(from)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
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
		// What the directory already gave it (an SELinux context) may
		// not be ours to set, and need not be.
		if have, err := xattr.FGet(to, name); err == nil && bytes.Equal(have, value) {
			continue
		}
		if err := xattr.FSet(to, name, value); err != nil {
			return fmt.Errorf("extended attribute %s: %w", name, pathCause(err))
		}
	}
	return dropXattrs(to, names)
}

// dropXattrs removes from f the ACL that a default ACL of the directory gave
// it, if the file it stands in for has none.
func dropXattrs(f *os.File, keep []string) error {
	const acl = "system.posix_acl_access"
	for _, name := range keep {
		if name == acl {
			return nil
		}
	}
	if _, err := xattr.FGet(f, acl); err != nil {
		return nil // there is none
	}
	return xattr.FRemove(f, acl)
}

// appendLocal is Host.Append on this machine, as the user that runs it.
func appendLocal(path string, data []byte) error {
	fail := func(err error) error {
		return &fs.PathError{Op: "append", Path: path, Err: pathCause(err)}
	}
	f, created, err := openAppend(path, os.O_WRONLY|os.O_APPEND)
	if errors.Is(err, syscall.EISDIR) {
		err = notRegular(fs.ModeDir)
	}
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !info.Mode().IsRegular() {
		return fail(notRegular(info.Mode()))
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		if cut := f.Truncate(info.Size()); cut != nil {
			err = fmt.Errorf("%w (and it could not be cut back: %w)", err, pathCause(cut))
		}
		return fail(err)
	}
	if created {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return fail(err)
		}
	}
	return nil
}

// openAppend opens the file at path, which it creates, with its directories,
// where it is missing.
func openAppend(path string, flags int) (f *os.File, created bool, err error) {
	flags |= syscall.O_NONBLOCK // see readLocal
	f, err = os.OpenFile(path, flags, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, false, err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, false, err
	}
	f, err = os.OpenFile(path, flags|os.O_CREATE, 0o600)
	return f, true, err
}

// makeDirs creates dir and its missing parents with mode 0755, whatever the
// umask says, and makes them durable.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // if it is no directory, the open will say so
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
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
