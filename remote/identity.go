package remote

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// passphraseTries is how often the passphrase of a key is asked for.
const passphraseTries = 3

// agentTimeout is how long an agent may take to list its keys.
const agentTimeout = 5 * time.Second

// AuthError says that a host refused the login.
type AuthError struct {
	Host  string   // "user@address"
	Tried []string // the keys that were shown to it
	Notes []string // keys that could not be used, and why
	Cause error
}

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ssh to %s: login refused", e.Host)
	if len(e.Tried) > 0 {
		fmt.Fprintf(&b, "; keys tried: %s", strings.Join(e.Tried, ", "))
	} else {
		b.WriteString("; there was no key to try (start an agent and ssh-add one, or name one with --identity)")
	}
	if len(e.Notes) > 0 {
		fmt.Fprintf(&b, "; %s", strings.Join(e.Notes, "; "))
	}
	return b.String()
}

func (e *AuthError) Unwrap() error { return e.Cause }

// keyring holds the keys of one run, so that no passphrase is asked for twice.
type keyring struct {
	passphrase func(path string) ([]byte, error)
	mu         sync.Mutex
	opened     map[string]ssh.Signer
}

// offer is the keys shown to one host in one attempt to log in.
type offer struct {
	signers []ssh.Signer
	tried   []string
	notes   []string
	needed  error // the host asked for a key that could not be opened
	close   func()
	// pause stops the clock of the attempt while a person types.
	pause func() (resume func())
}

// agentKey is a key that the agent holds.
type agentKey struct {
	ssh.Signer
	comment string
	offer   *offer
}

// offer gathers the keys for e, in the order in which ssh shows them: what the
// user named for this run, what the agent holds (first of what the
// configuration names), other files, and files whose passphrase must be asked
// for last. A host closes after a few wrong ones.
func (k *keyring) offer(ctx context.Context, e endpoint) (*offer, error) {
	o := &offer{close: func() {}, pause: func() func() { return func() {} }}
	held := k.agentKeys(ctx, e, o)
	var explicit, named, files, locked []ssh.Signer
	var describe = make(map[ssh.Signer]string)
	for _, id := range e.identities {
		key, signer, encrypted, err := k.load(id.path, o)
		if err != nil {
			if id.explicit {
				o.close()
				return nil, fmt.Errorf("ssh identity: %w", err)
			}
			if id.named && !errors.Is(err, fs.ErrNotExist) {
				o.notes = append(o.notes, err.Error())
			}
			continue
		}
		list, name := &files, id.path
		if a := take(&held, key); a != nil {
			signer, encrypted = a, false
			list, name = &named, id.path+" (agent)"
		}
		switch {
		case signer == nil: // a public key, the private one of which is not there
			o.notes = append(o.notes, fmt.Sprintf("%s: the agent does not hold its private key", id.path))
			continue
		case id.explicit:
			list = &explicit
		case encrypted:
			list = &locked
		}
		for _, s := range certified(signer, append([]string{id.path + "-cert.pub"}, e.certificates...)) {
			describe[s] = name
			*list = append(*list, s)
		}
	}
	var others []ssh.Signer
	if !e.onlyThese {
		for _, a := range held {
			describe[a] = strings.TrimSpace("agent: " + a.comment)
			others = append(others, a)
		}
	}
	for _, list := range [][]ssh.Signer{explicit, named, others, files, locked} {
		for _, s := range list {
			o.signers = append(o.signers, s)
			o.tried = append(o.tried, fmt.Sprintf("%s %s", describe[s], ssh.FingerprintSHA256(s.PublicKey())))
		}
	}
	return o, nil
}

// agentKeys returns the keys of e's agent. One that does not answer is a note,
// no error: the key files may do.
func (k *keyring) agentKeys(ctx context.Context, e endpoint, o *offer) []*agentKey {
	if e.agent == "" {
		return nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", e.agent)
	if err != nil {
		o.notes = append(o.notes, fmt.Sprintf("the agent does not answer: %v", err))
		return nil
	}
	o.close = func() { conn.Close() }
	// Listing asks nobody anything.
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	defer conn.SetDeadline(time.Time{})
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err == nil {
		var signers []ssh.Signer
		if signers, err = client.Signers(); err == nil && len(signers) == len(keys) {
			held := make([]*agentKey, len(keys))
			for i, s := range signers {
				held[i] = &agentKey{Signer: s, comment: keys[i].Comment, offer: o}
			}
			return held
		}
	}
	o.notes = append(o.notes, fmt.Sprintf("the agent does not answer: %v", err))
	return nil
}

// SignWithAlgorithm implements ssh.AlgorithmSigner.
func (a *agentKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	// It may ask for a touch or a confirmation.
	resume := a.offer.pause()
	defer resume()
	if s, ok := a.Signer.(ssh.AlgorithmSigner); ok {
		return s.SignWithAlgorithm(rand, data, algorithm)
	}
	return a.Sign(rand, data)
}

// take removes from held the key that is key, and returns it.
func take(held *[]*agentKey, key ssh.PublicKey) *agentKey {
	for i, a := range *held {
		if bytes.Equal(a.PublicKey().Marshal(), key.Marshal()) {
			*held = append((*held)[:i:i], (*held)[i+1:]...)
			return a
		}
	}
	return nil
}

// load reads the key file at path. The signer of an encrypted one asks for its
// passphrase when it is used; that of a public key is nil.
func (k *keyring) load(path string, o *offer) (ssh.PublicKey, ssh.Signer, bool, error) {
	k.mu.Lock()
	opened := k.opened[path]
	k.mu.Unlock()
	if opened != nil {
		return opened.PublicKey(), opened, false, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		// The public half is enough where an agent has the other.
		if public, perr := readPublic(path + ".pub"); perr == nil {
			return public, nil, false, nil
		}
	}
	if err != nil {
		return nil, nil, false, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	var missing *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return signer.PublicKey(), signer, false, nil
	case errors.As(err, &missing):
		public := missing.PublicKey
		if public == nil { // the old format does not tell
			if public, err = readPublic(path + ".pub"); err != nil {
				return nil, nil, false, fmt.Errorf("%s is encrypted and in the old PEM format, and %s.pub is not there to tell which key it is; run: ssh-add %s",
					path, path, Quote(path))
			}
		}
		locked := &lockedKey{ring: k, offer: o, path: path, text: text, public: public}
		return public, locked, true, nil
	}
	if public, perr := readPublic(path); perr == nil {
		return public, nil, false, nil
	}
	return nil, nil, false, fmt.Errorf("%s: %w", path, err)
}

// readPublic reads the public key in the file at path.
func readPublic(path string) (ssh.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	return key, err
}

// certified returns the signers for s: one for each certificate of its key
// among files, and s itself.
func certified(s ssh.Signer, files []string) []ssh.Signer {
	var all []ssh.Signer
	for _, file := range files {
		public, err := readPublic(file)
		if err != nil {
			continue
		}
		cert, ok := public.(*ssh.Certificate)
		if !ok || !bytes.Equal(cert.Key.Marshal(), s.PublicKey().Marshal()) {
			continue
		}
		if c, err := ssh.NewCertSigner(cert, s); err == nil {
			all = append(all, c)
		}
	}
	return append(all, s)
}

// lockedKey is an encrypted key. Its public half is shown to a host; only if
// the host would take it, the passphrase is asked for.
type lockedKey struct {
	ring   *keyring
	offer  *offer
	path   string
	text   []byte
	public ssh.PublicKey
}

// PublicKey implements ssh.Signer.
func (l *lockedKey) PublicKey() ssh.PublicKey { return l.public }

// Sign implements ssh.Signer.
func (l *lockedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return l.SignWithAlgorithm(rand, data, "")
}

// SignWithAlgorithm implements ssh.AlgorithmSigner.
func (l *lockedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signer, err := l.open()
	if err != nil {
		l.offer.needed = err
		return nil, err
	}
	if s, ok := signer.(ssh.AlgorithmSigner); ok && algorithm != "" {
		return s.SignWithAlgorithm(rand, data, algorithm)
	}
	return signer.Sign(rand, data)
}

// open decrypts the key. Two connections at once ask for it once.
func (l *lockedKey) open() (ssh.Signer, error) {
	l.ring.mu.Lock()
	defer l.ring.mu.Unlock()
	if s := l.ring.opened[l.path]; s != nil {
		return s, nil
	}
	if l.ring.passphrase == nil {
		return nil, fmt.Errorf("the key %s is encrypted and no agent holds it; run: ssh-add %s", l.path, Quote(l.path))
	}
	resume := l.offer.pause()
	defer resume()
	for range passphraseTries {
		passphrase, err := l.ring.passphrase(l.path)
		if err != nil {
			return nil, fmt.Errorf("the key %s is encrypted: %w", l.path, err)
		}
		s, err := ssh.ParsePrivateKeyWithPassphrase(l.text, passphrase)
		clear(passphrase)
		if err == nil {
			l.ring.opened[l.path] = s
			return s, nil
		}
		if !errors.Is(err, x509.IncorrectPasswordError) {
			return nil, fmt.Errorf("the key %s: %w", l.path, err)
		}
	}
	return nil, fmt.Errorf("the key %s: the passphrase is wrong", l.path)
}
