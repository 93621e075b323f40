package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// HostKeyProblem is what is wrong with the key that a host showed.
type HostKeyProblem int

const (
	// HostKeyUnknown says that known_hosts has no key for the host.
	HostKeyUnknown HostKeyProblem = iota
	// HostKeyChanged says that known_hosts has another key for the host.
	HostKeyChanged
	// HostKeyRevoked says that the key is marked as revoked.
	HostKeyRevoked
	// HostKeyCertificate says that the host's certificate is not valid.
	HostKeyCertificate
)

// HostKeyError says that the key of a host was refused. Nothing turns the check
// off; the message says what would make the key known.
type HostKeyError struct {
	Problem     HostKeyProblem
	Host        string     // as in known_hosts: "app1" or "[app1]:2222"
	Type        string     // of the key shown, such as "ssh-ed25519"
	Fingerprint string     // of the key shown, such as "SHA256:…"
	Line        string     // the line for known_hosts that makes the key known
	File        string     // the known_hosts file to add it to; "" if none keeps keys
	Old         []KnownKey // what the files have for the host, or the revoked entry
	Cause       error      // why a certificate is not valid
}

// KnownKey is a key in a known_hosts file.
type KnownKey struct {
	File        string
	Line        int
	Type        string
	Fingerprint string
}

func (k KnownKey) String() string {
	return fmt.Sprintf("%s:%d: %s %s", k.File, k.Line, k.Type, k.Fingerprint)
}

func (e *HostKeyError) Error() string {
	shown := e.Type + " " + e.Fingerprint
	var old, remove []string
	for _, k := range e.Old {
		old = append(old, k.String())
		if k.File != knownHostsCommand {
			remove = append(remove, Quote("ssh-keygen", "-R", e.Host, "-f", k.File))
		}
	}
	known := strings.Join(old, ", ")
	add := fmt.Sprintf("add to %s: %s", e.File, e.Line)
	if e.File == "" {
		add = "set UserKnownHostsFile in ~/.ssh/config to a file that keeps keys, and add to it: " + e.Line
	}
	switch e.Problem {
	case HostKeyChanged:
		return fmt.Sprintf("the host key of %s has changed: it shows %s, known is %s; somebody may be in between\n"+
			"hint: if the host was reinstalled: %s",
			e.Host, shown, known, strings.Join(append(slices.Compact(remove), add), "; "))
	case HostKeyRevoked:
		return fmt.Sprintf("the host key of %s is revoked: %s (%s)", e.Host, shown, known)
	case HostKeyCertificate:
		return fmt.Sprintf("the host certificate of %s is not valid: %s: %v", e.Host, shown, e.Cause)
	}
	return fmt.Sprintf("the host key of %s is not known: it shows %s\n"+
		"hint: if that is the fingerprint which `ssh-keygen -lf` gives for the key in /etc/ssh on the host, %s",
		e.Host, shown, add)
}

func (e *HostKeyError) Unwrap() error { return e.Cause }

// hostKeys checks the keys of hosts against known_hosts files.
type hostKeys struct {
	db      *knownhosts.HostKeyDB
	copied  map[string]string // the known_hosts file that a cleaned copy stands for
	add     string            // the file to add a key to
	revoked map[string]KnownKey
}

// knownHostsCommand stands for the output of KnownHostsCommand where a file is named.
const knownHostsCommand = "KnownHostsCommand"

// loadHostKeys reads the known_hosts files of e, those of them that there are, what its
// KnownHostsCommand prints, and the file of revoked keys. A line in them that cannot be
// read is passed over, as ssh does, unless it revokes a key.
func loadHostKeys(ctx context.Context, e endpoint) (*hostKeys, error) {
	k := &hostKeys{copied: make(map[string]string)}
	if len(e.knownHosts) > 0 && !isDevice(e.knownHosts[0]) {
		k.add = e.knownHosts[0]
	}
	var there []string
	texts := make(map[string][]byte)
	for _, f := range e.knownHosts {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
		there, texts[f] = append(there, f), text
	}
	printed, err := e.askKnownHosts(ctx)
	if err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	if len(printed) > 0 {
		there, texts[knownHostsCommand] = append(there, knownHostsCommand), printed
	} else {
		k.db, err = knownhosts.NewDB(there...)
	}
	if k.db == nil || err != nil {
		if k.db, err = k.loadCleaned(there, texts); err != nil {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
	}
	k.revoked, err = loadRevoked(e.revoked)
	return k, err
}

// isDevice reports whether path is a device, such as /dev/null, which many configurations have as the
// file of known hosts so that ssh asks nothing.
func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

// loadCleaned loads copies of files in which the lines that cannot be read are
// blank. Line numbers stay what they are.
func (k *hostKeys) loadCleaned(files []string, texts map[string][]byte) (*knownhosts.HostKeyDB, error) {
	dir, err := os.MkdirTemp("", "drainctl-known-hosts-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var copies []string
	for i, f := range files {
		text, err := cleaned(f, texts[f])
		if err != nil {
			return nil, err
		}
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return nil, err
		}
		k.copied[name] = f
		copies = append(copies, name)
	}
	return knownhosts.NewDB(copies...)
}

// cleaned is the text of a known_hosts file without the lines that cannot be read.
func cleaned(file string, text []byte) ([]byte, error) {
	lines := bytes.Split(text, []byte("\n"))
	for n, line := range lines {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if _, _, _, _, _, err := ssh.ParseKnownHosts(line); err == nil {
			continue
		} else if bytes.HasPrefix(line, []byte("@revoked")) {
			return nil, fmt.Errorf("%s:%d: a revoked key that cannot be read: %w", file, n+1, err)
		}
		lines[n] = nil
	}
	return bytes.Join(lines, []byte("\n")), nil
}

// loadRevoked reads the file of the RevokedHostKeys option: public keys, a line
// each. The binary form, a KRL, is refused: not to look would be to accept.
func loadRevoked(file string) (map[string]KnownKey, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("revoked host keys: %w", err)
	}
	if bytes.HasPrefix(text, []byte("SSHKRL\n")) {
		return nil, fmt.Errorf("revoked host keys: %s is a KRL, which drainctl cannot read\nhint: list the keys in a text file", file)
	}
	revoked := make(map[string]KnownKey)
	for n, line := range bytes.Split(text, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil {
			return nil, fmt.Errorf("revoked host keys: %s:%d: %w", file, n+1, err)
		}
		revoked[string(key.Marshal())] = KnownKey{File: file, Line: n + 1, Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key)}
	}
	return revoked, nil
}

// algorithms returns the host key algorithms to ask addr for, those of the keys
// it is known by first: a host has several keys, and only those can be checked.
// The others follow, so that a host which has none of the known ones left is
// told apart from one that cannot be talked to.
func (k *hostKeys) algorithms(addr string) []string {
	known := k.db.HostKeys(addr)
	if host, port, err := net.SplitHostPort(addr); err == nil && len(known) == 0 && port != "22" {
		known = k.db.HostKeys(net.JoinHostPort(host, "22"))
	}
	var first []string
	for _, key := range known {
		switch {
		case key.Cert:
			// The type of the authority's key says nothing about the host's.
			first = append(first,
				ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01,
				ssh.CertAlgoECDSA521v01, ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
		case key.Type() == ssh.KeyAlgoRSA:
			// Not ssh-rsa, which signs with SHA-1.
			first = append(first, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			first = append(first, key.Type())
		}
	}
	var unique []string
	for _, a := range append(first,
		ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256) {
		if !slices.Contains(unique, a) {
			unique = append(unique, a)
		}
	}
	return unique
}

// check is nil if key is a known key of addr, else a *HostKeyError.
func (k *hostKeys) check(addr string, remote net.Addr, key ssh.PublicKey) error {
	plain, all := key, []ssh.PublicKey{key}
	if cert, ok := key.(*ssh.Certificate); ok {
		plain, all = cert.Key, append(all, cert.Key, cert.SignatureKey)
	}
	e := &HostKeyError{
		Problem: HostKeyUnknown, Host: knownhosts.Normalize(addr),
		Type: plain.Type(), Fingerprint: ssh.FingerprintSHA256(plain),
		Line: knownhosts.Line([]string{addr}, plain), File: k.add,
	}
	for _, key := range all {
		if listed, found := k.revoked[string(key.Marshal())]; found {
			e.Problem, e.Old = HostKeyRevoked, []KnownKey{listed}
			return e
		}
	}
	callback := k.db.HostKeyCallback()
	err := callback(addr, remote, key)
	var revoked *xknownhosts.RevokedError
	var wrong *xknownhosts.KeyError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		e.Problem, e.Old = HostKeyRevoked, []KnownKey{k.known(revoked.Revoked)}
	case !errors.As(err, &wrong):
		e.Problem, e.Cause = HostKeyCertificate, clippedError{err}
	default:
		if e.Old = k.plainKeys(addr, wrong.Want); len(e.Old) > 0 {
			if e.Problem = HostKeyChanged; e.File == "" && e.Old[0].File != knownHostsCommand {
				e.File = e.Old[0].File
			}
			return e
		}
		// As ssh does: what is known of the host on any port holds.
		host, port, err := net.SplitHostPort(addr)
		if err == nil && port != "22" && callback(net.JoinHostPort(host, "22"), remote, key) == nil {
			return nil
		}
	}
	return e
}

// plainKeys leaves out of want the keys of authorities: a host with a plain key
// where only an authority is known is an unknown host, not a changed one.
func (k *hostKeys) plainKeys(addr string, want []xknownhosts.KnownKey) []KnownKey {
	authority := make(map[string]bool)
	for _, key := range k.db.HostKeys(addr) {
		if key.Cert {
			authority[string(key.Marshal())] = true
		}
	}
	var plain []KnownKey
	for _, w := range want {
		if !authority[string(w.Key.Marshal())] {
			plain = append(plain, k.known(w))
		}
	}
	return plain
}

func (k *hostKeys) known(key xknownhosts.KnownKey) KnownKey {
	file := cmp.Or(k.copied[key.Filename], key.Filename)
	return KnownKey{File: file, Line: key.Line, Type: key.Key.Type(), Fingerprint: ssh.FingerprintSHA256(key.Key)}
}
