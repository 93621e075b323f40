package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// configOwners returns the users who may own the operator's file: root and the operator.
// An operator who is not root may name any file.
func configOwners(named bool) []int {
	if euid := os.Geteuid(); euid == 0 || !named {
		return []int{0, euid}
	}
	return nil
}

// checkWriters refuses an open file if somebody but its owners could have written or
// replaced it: the file, or a directory or symbolic link on the way to it, has another
// owner, or others can write to it. OpenSSH has this rule for authorized_keys (safe_path
// in misc.c).
func checkWriters(path string, file *os.File, owners []int) error {
	opened, err := file.Stat()
	if err != nil {
		return usage("read the configuration file: %v", err)
	}
	found, err := lstatWay(path, func(at string, info fs.FileInfo) error {
		if why := brokenRule(info, owners); why != "" {
			return usage("%s is not safe to use: %s must %s\nhint: drainctl runs commands from this file, so only its owner may be able to write or replace it", path, at, why)
		}
		return nil
	})
	if err == nil && !os.SameFile(opened, found) {
		err = usage("read the configuration file: %s was replaced meanwhile", path)
	}
	return err
}

// brokenRule returns the rule that a file, directory or link breaks, or "". In a directory
// with the sticky bit others cannot replace what is not theirs.
func brokenRule(info fs.FileInfo, owners []int) string {
	mode := info.Mode()
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !slices.Contains(owners, int(stat.Uid)):
		if slices.Max(owners) == 0 {
			return "be owned by root"
		}
		return "be owned by root or by you"
	case mode&fs.ModeSymlink != 0 || mode&(fs.ModeDir|fs.ModeSticky) == fs.ModeDir|fs.ModeSticky:
		return ""
	case mode.Perm()&0o022 != 0:
		return "not be writable by its group or by others"
	}
	return ""
}

// maxLinks is the number of symbolic links on the way to a file, as Linux bounds it.
const maxLinks = 40

// lstatWay visits each directory and symbolic link on the way to a file, and the file,
// which it returns.
func lstatWay(path string, visit func(at string, info fs.FileInfo) error) (fs.FileInfo, error) {
	at, rest := "/", path
	for links := 0; ; {
		info, err := os.Lstat(at)
		if err != nil {
			return nil, usage("read the configuration file: %v", err)
		}
		if err := visit(at, info); err != nil {
			return nil, err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(at)
			if links++; err == nil && links > maxLinks {
				err = syscall.ELOOP
			}
			if err != nil {
				return nil, usage("read the configuration file: %v", err)
			}
			if !filepath.IsAbs(to) {
				to = filepath.Dir(at) + "/" + to
			}
			at, rest = "/", to+"/"+rest
			continue
		}
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			return info, nil
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		at = filepath.Join(at, name)
	}
}
