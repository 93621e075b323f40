package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is asked of a Unix socket, and the attribute of the answer: UDIAG_SHOW_VFS and UNIX_DIAG_VFS.
const (
	showFile      = 2
	attributeFile = 1
)

// unixConnection matches a connection in /proc/net/unix (proc(5)): its inode and the name of the
// listening socket. State 02 waits in the listen queue and has the inode 0; a program has accepted
// state 03. The name may hold blanks.
var unixConnection = regexp.MustCompile(`^\S+ \S+ \S+ \S+ 0001 0[23] +([0-9]+) (.+)`)

// ToUnix counts the connections from this network namespace to the Unix socket at path: those that a
// program has accepted and those that wait for it to, which /proc/net/unix alone has if the program
// listens in another namespace. The program may have bound the socket by another name: another path of
// the file, a relative path, or the path in a container. Where nothing tells the file, the last part of
// the name decides.
func ToUnix(path string) (n int, err error) {
	text, err := os.ReadFile("/proc/net/unix")
	if err == nil && !strings.HasPrefix(string(text), "Num ") {
		err = errors.New("unexpected /proc/net/unix")
	}
	if err != nil {
		return 0, fmt.Errorf("list Unix sockets: %w", err)
	}
	here := fileAt(path)
	named := map[string]os.FileInfo{}
	var files map[uint32]unixFile
	for line := range strings.Lines(string(text)) {
		m := unixConnection.FindStringSubmatch(line)
		if m == nil { // also the rest of a name with a line break
			continue
		}
		inode, name := m[1], m[2]
		if _, known := named[name]; !known {
			named[name] = fileAt(name)
		}
		sameBase := filepath.Base(name) == filepath.Base(path)
		if name == path || here != nil && os.SameFile(named[name], here) {
			n++
			continue
		}
		if inode == "0" { // it waits
			if sameBase && named[name] == nil {
				n++
			}
			continue
		}
		if files == nil {
			files = unixFiles()
		}
		number, _ := strconv.ParseUint(inode, 10, 32)
		file, known := files[uint32(number)]
		if sameBase && (!known || here == nil) || known && here != nil && file.is(here, sameBase) {
			n++
		}
	}
	return n, nil
}

// fileAt is the file at an absolute path, nil if there is none.
func fileAt(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil || !filepath.IsAbs(path) {
		return nil
	}
	return info
}

// A unixFile is the file that a socket is bound to. The kernel gives the low half of a long inode number.
type unixFile struct{ inode, dev uint32 }

// is reports whether it is the file of info. Some file systems (btrfs, overlayfs) tell another device by
// stat(2) than the kernel has: there the last part of the name decides.
func (f unixFile) is(info os.FileInfo, sameBase bool) bool {
	stat := info.Sys().(*syscall.Stat_t)
	dev := unix.Major(uint64(stat.Dev))<<20 | unix.Minor(uint64(stat.Dev)) //nolint:unconvert // its type differs
	return f.inode == uint32(stat.Ino) && (f.dev == dev || sameBase)
}

// unixFiles is the file of each connected Unix socket, by the socket's inode. It is empty where the kernel
// cannot tell: a file that is not known counts.
func unixFiles() map[uint32]unixFile {
	data := make([]byte, 24) // struct unix_diag_req
	data[0] = familyUnix
	binary.NativeEndian.PutUint32(data[4:], 1<<Established)
	binary.NativeEndian.PutUint32(data[12:], showFile)
	files := map[uint32]unixFile{}
	err := dump([]request{{requestByFamily, data}}, func(data []byte) error {
		inode, file, err := parseUnix(data)
		if err == nil && file != (unixFile{}) {
			files[inode] = file
		}
		return err
	})
	if err != nil {
		return map[uint32]unixFile{}
	}
	return files
}

// parseUnix reads the inode and the file of a struct unix_diag_msg and its attributes.
func parseUnix(data []byte) (inode uint32, file unixFile, err error) {
	if len(data) < 16 {
		return 0, file, errShort
	}
	err = attributes(data[16:], func(kind uint16, value []byte) error {
		switch {
		case kind != attributeFile:
		case len(value) < 8:
			return errShort
		default:
			file = unixFile{binary.NativeEndian.Uint32(value), binary.NativeEndian.Uint32(value[4:])}
		}
		return nil
	})
	return binary.NativeEndian.Uint32(data[4:]), file, err
}
