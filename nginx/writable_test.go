package nginx

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// aclWith is the value of system.posix_acl_access that lets one more user write: version 2,
// and entries of tag, permissions and ID (acl(5), linux/posix_acl_xattr.h).
func aclWith(uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, ^uint32(0)}, {0x02, 6, uid}, {0x04, 4, ^uint32(0)}, {0x10, 6, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// Whatever lets a user change what nginx reads is found, and what does not is not.
func TestWritableBy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test gives files to other users, and must be root for that")
	}
	const uid, group, other = 61234, 61235, 61236
	groups := []uint32{uid, group}
	for name, c := range map[string]struct {
		change func(dir string) error
		want   []string // below the configuration's directory; empty: nothing
	}{
		"nothing":     {func(string) error { return nil }, nil},
		"owns a file": {func(d string) error { return os.Chown(d+"/conf.d/a.conf", uid, 0) }, []string{"conf.d/a.conf"}},
		"owns one read-only": {func(d string) error {
			return lead(os.Chown(d+"/conf.d/a.conf", uid, 0), os.Chmod(d+"/conf.d/a.conf", 0o444))
		}, []string{"conf.d/a.conf"}},
		"group": {func(d string) error {
			return lead(os.Chown(d+"/conf.d/a.conf", 0, group), os.Chmod(d+"/conf.d/a.conf", 0o664))
		}, []string{"conf.d/a.conf"}},
		"another group": {func(d string) error {
			return lead(os.Chown(d+"/conf.d/a.conf", 0, other), os.Chmod(d+"/conf.d/a.conf", 0o664))
		}, nil},
		"everybody": {func(d string) error { return os.Chmod(d+"/conf.d/a.conf", 0o666) }, []string{"conf.d/a.conf"}},
		"ACL": {func(d string) error {
			return unix.Setxattr(d+"/conf.d/a.conf", "system.posix_acl_access", aclWith(uid), 0)
		}, []string{"conf.d/a.conf"}},
		"ACL of another": {func(d string) error {
			return unix.Setxattr(d+"/conf.d/a.conf", "system.posix_acl_access", aclWith(other), 0)
		}, nil},
		"directory":              {func(d string) error { return os.Chown(d+"/conf.d", uid, 0) }, []string{"conf.d"}},
		"sticky directory":       {func(d string) error { return os.Chmod(d+"/conf.d", 0o777|os.ModeSticky) }, []string{"conf.d"}},
		"empty directory":        {func(d string) error { return os.Chmod(d+"/sites", 0o777) }, []string{"sites"}},
		"directory of a pattern": {func(d string) error { return os.Chmod(d+"/deep/two", 0o777) }, []string{"deep/two"}},
		"above a pattern":        {func(d string) error { return os.Chmod(d+"/deep", 0o777) }, []string{"deep"}},
		"directory of a pattern in one of several files": {func(d string) error {
			return lead(os.Mkdir(d+"/more", 0o755), os.Chmod(d+"/more", 0o777), os.WriteFile(d+"/conf.d/b.conf", []byte("include more/*;\n"), 0o644))
		}, []string{"more"}},
		"main directory": {func(d string) error { return os.Chmod(d, 0o777) }, []string{"."}},
		"module":         {func(d string) error { return os.Chmod(d+"/m.so", 0o666) }, []string{"m.so"}},
		"behind a link": {func(d string) error {
			return lead(os.Mkdir(d+"/away", 0o755), os.WriteFile(d+"/away/x", nil, 0o644), os.Symlink("../away/x", d+"/conf.d/x.conf"), os.Chmod(d+"/away", 0o777))
		}, []string{"away"}},
		"a link of a link": {func(d string) error {
			return lead(os.Mkdir(d+"/v2", 0o777), os.Chmod(d+"/v2", 0o777), os.Symlink("v2", d+"/now"), os.WriteFile(d+"/v2/x", nil, 0o644), os.Symlink(d+"/now/x", d+"/conf.d/x.conf"))
		}, []string{"v2"}},
		"a module that is missing": {func(d string) error { return os.Chmod(d+"/open", 0o777|os.ModeSticky) }, []string{"open"}},
		"a link of the user's in a sticky directory": {func(d string) error {
			return lead(os.Chmod(d+"/kept", 0o777|os.ModeSticky), os.Lchown(d+"/kept/link", uid, 0))
		}, []string{"kept"}},
		"a link of root's in a sticky directory": {func(d string) error { return os.Chmod(d+"/kept", 0o777|os.ModeSticky) }, nil},
		"the directory of the PID file":          {func(d string) error { return os.Chown(d+"/run", uid, 0) }, []string{"run"}},
		"the main file":                          {func(d string) error { return os.Chown(d+"/nginx.conf", uid, 0) }, []string{"nginx.conf"}},
		"a file out of reach": {func(d string) error {
			return lead(os.Chmod(d+"/conf.d/a.conf", 0o666), os.Chmod(d+"/conf.d", 0o700))
		}, nil},
		"behind a link and ..": {func(d string) error { return os.Chown(d+"/far/sites", uid, 0) }, []string{"far/sites"}},
		"a file that cannot be parsed": {func(d string) error {
			return lead(os.WriteFile(d+"/conf.d/b.conf", []byte("} secret"), 0o644), os.Chmod(d+"/conf.d/b.conf", 0o666))
		}, []string{"conf.d/b.conf"}},
	} {
		dir := t.TempDir()
		err := lead(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Mkdir(dir+"/conf.d", 0o755), os.Mkdir(dir+"/sites", 0o755), os.MkdirAll(dir+"/deep/one", 0o755), os.Mkdir(dir+"/deep/two", 0o755),
			os.WriteFile(dir+"/m.so", nil, 0o644), os.WriteFile(dir+"/conf.d/a.conf", []byte("upstream a { server 127.0.0.1; }\n"), 0o644), os.WriteFile(dir+"/deep/one/a", nil, 0o644),
			os.MkdirAll(dir+"/far/conf", 0o755), os.Mkdir(dir+"/far/sites", 0o755), os.Symlink("far/conf", dir+"/near"),
			os.Mkdir(dir+"/open", 0o755), os.Mkdir(dir+"/run", 0o755), os.Mkdir(dir+"/kept", 0o755), os.Symlink("../conf.d/a.conf", dir+"/kept/link"),
			os.WriteFile(dir+"/nginx.conf", []byte("pid run/nginx.pid; load_module m.so; load_module open/none.so; http { include kept/link; include near/../sites/*; include conf.d/*.conf; include sites/*; include deep/*/*; }"), 0o644), c.change(dir))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		conf, err := Load(t.Context(), dir+"/nginx.conf")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		found, err := conf.WritableBy(uid, groups, Build{Prefix: dir})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, w := range found {
			below, _ := filepath.Rel(dir, w.Path)
			got = append(got, below)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found %v, want %v", name, got, c.want)
		}
	}
	// The thread that asked is gone: this process is still root for files.
	if err := os.WriteFile(t.TempDir()+"/x", nil, 0o600); err != nil {
		t.Error(err)
	}
}

// lead is the first error.
func lead(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// An error about a file that cannot be parsed repeats nothing of it.
func TestSyntaxErrorsQuoteNothing(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"root:$y$j9T$secret:19000:0:99999:7:::\n", "secret", "{secret", "secret }", "a \"secret", "a 'secret' secret", "a { secret", "a ${secret"} {
		if err := os.WriteFile(dir+"/nginx.conf", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := Load(t.Context(), dir+"/nginx.conf")
		if err == nil {
			continue // it is a directive, whose name nobody repeats
		}
		if s := err.Error(); strings.Contains(s, "secret") {
			t.Errorf("%q: %s", text, s)
		}
		if conf == nil {
			t.Errorf("%q: what was read is not known", text)
		}
	}
}
