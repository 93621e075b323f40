package sockets

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is asked of a Unix socket, and the attributes of the answer.
const (
	showName, showFile, showPending       = 1, 2, 8 // UDIAG_SHOW_NAME, _VFS, _ICONS
	attributeName, attributeFile, pending = 0, 1, 3 // UNIX_DIAG_NAME, _VFS, _ICONS
)

// ToUnix counts the connections to the Unix socket at path: those that a program has accepted and those
// that wait for it. An accepted socket has the name and the file of the listening one. The program may
// have bound the socket by another name (another path of the file, a relative path, the path in a
// container), and the file may have been replaced since: a connection counts if either the name or the
// file is that of path.
func ToUnix(path string) (n int, err error) {
	data := make([]byte, 24) // struct unix_diag_req
	data[0] = familyUnix
	binary.NativeEndian.PutUint32(data[4:], 1<<Established|1<<Listening)
	binary.NativeEndian.PutUint32(data[12:], showName|showFile|showPending)
	is, err := unixFile(path)
	if err != nil {
		return 0, err
	}
	err = dump([]request{{requestByFamily, data}}, func(data []byte) error {
		s, err := parseUnix(data)
		switch {
		case err != nil || s.name != path && !is(s):
		case s.state == Listening:
			n += s.pending
		default:
			n++
		}
		return err
	})
	return n, err
}

type unixSocket struct {
	state       State
	name        string
	inode, dev  uint32 // of the file; the kernel gives the low half of a long inode number
	pending     int    // connections that nobody has accepted
	isBoundFile bool
}

// parseUnix reads a struct unix_diag_msg and its attributes.
func parseUnix(data []byte) (s unixSocket, err error) {
	if len(data) < 16 {
		return s, errShort
	}
	s.state = State(data[2])
	err = attributes(data[16:], func(kind uint16, value []byte) error {
		switch kind {
		case attributeName:
			s.name = strings.TrimRight(string(value), "\x00")
		case attributeFile:
			if len(value) < 8 {
				return errShort
			}
			s.inode, s.dev = binary.NativeEndian.Uint32(value), binary.NativeEndian.Uint32(value[4:])
			s.isBoundFile = true
		case pending:
			s.pending = len(value) / 4
		}
		return nil
	})
	return s, err
}

// unixFile returns a function that reports whether a socket is bound to the file at path. Some file
// systems (btrfs, overlayfs) tell another device by stat(2) than the kernel has: there the last part of
// the name decides.
func unixFile(path string) (func(unixSocket) bool, error) {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return func(unixSocket) bool { return false }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("count connections: %w", err)
	}
	file := info.Sys().(*syscall.Stat_t)
	dev := unix.Major(uint64(file.Dev))<<20 | unix.Minor(uint64(file.Dev)) //nolint:unconvert // its type differs
	return func(s unixSocket) bool {
		return s.isBoundFile && s.inode == uint32(file.Ino) && (s.dev == dev || filepath.Base(s.name) == filepath.Base(path))
	}, nil
}
