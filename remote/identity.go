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
	"slices"
	"strings"
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
	tried := "there was no key to try (start an agent and ssh-add one, or name one with --identity)"
	if len(e.Tried) > 0 {
		tried = "keys tried: " + strings.Join(e.Tried, ", ")
	}
	return strings.Join(append([]string{fmt.Sprintf("ssh to %s: login refused", e.Host), tried}, e.Notes...), "; ")
}

func (e *AuthError) Unwrap() error { return e.Cause }

// keyring holds the keys of one run, so that no passphrase is asked for twice.
type keyring struct {
	passphrase func(ctx context.Context, path string) ([]byte, error)
	mutex      chan struct{} // full while somebody uses what follows, and asks
	opened     map[string]ssh.Signer
}

// lock waits for the keyring.
func (k *keyring) lock(ctx context.Context) error {
	select {
	case k.mutex <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *keyring) unlock() { <-k.mutex }

// authAttempt is the keys shown to one host in one attempt to log in.
type authAttempt struct {
	ctx     context.Context
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
	attempt *authAttempt
}

// attempt gathers the keys for e, in the order in which ssh shows them: what the
// user named for this run, what the agent holds (first of what the
// configuration names), other files, and files whose passphrase must be asked
// for last. A host closes after a few wrong ones.
func (k *keyring) attempt(ctx context.Context, e endpoint) (*authAttempt, error) {
	a := &authAttempt{ctx: ctx, close: func() {}, pause: func() func() { return func() {} }}
	held, err := agentKeys(ctx, e, a)
	if err != nil { // no error: the key files may do
		a.notes = append(a.notes, fmt.Sprintf("the agent does not answer: %v", err))
	}
	var lists [5][]ssh.Signer
	const explicit, named, others, files, locked = 0, 1, 2, 3, 4
	describe := make(map[ssh.Signer]string)
	for _, id := range e.identities {
		key, signer, encrypted, err := k.load(id.path, a)
		if err != nil {
			if id.explicit {
				a.close()
				return nil, fmt.Errorf("ssh identity: %w", err)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				a.notes = append(a.notes, err.Error())
			}
			continue
		}
		list, name := files, id.path
		if i := slices.IndexFunc(held, func(h *agentKey) bool { return sameKey(h.PublicKey(), key) }); i >= 0 {
			signer, encrypted = held[i], false
			held = slices.Delete(held, i, i+1)
			list, name = named, id.path+" (agent)"
		}
		switch {
		case signer == nil: // a public key, the private one of which is not there
			a.notes = append(a.notes, fmt.Sprintf("%s: the agent does not hold its private key", id.path))
			continue
		case id.explicit:
			list = explicit
		case encrypted:
			list = locked
		}
		for _, s := range certified(signer, append([]string{id.path + "-cert.pub"}, e.certificates...)) {
			describe[s] = name
			lists[list] = append(lists[list], s)
		}
	}
	for _, h := range held {
		if !e.onlyThese {
			describe[h] = strings.TrimSpace("agent: " + h.comment)
			lists[others] = append(lists[others], h)
		}
	}
	a.signers = slices.Concat(lists[:]...)
	for _, s := range a.signers {
		a.tried = append(a.tried, fmt.Sprintf("%s %s", describe[s], ssh.FingerprintSHA256(s.PublicKey())))
	}
	return a, nil
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// agentKeys returns the keys of e's agent, if it has one.
func agentKeys(ctx context.Context, e endpoint, a *authAttempt) ([]*agentKey, error) {
	if e.agent == "" {
		return nil, nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", e.agent)
	if err != nil {
		return nil, err
	}
	a.close = func() { conn.Close() }
	// Listing asks nobody anything.
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err != nil {
		return nil, err
	}
	signers, err := client.Signers()
	if err != nil || len(signers) != len(keys) {
		return nil, fmt.Errorf("%d keys, and %d to sign with: %w", len(keys), len(signers), err)
	}
	held := make([]*agentKey, len(keys))
	for i, s := range signers {
		held[i] = &agentKey{Signer: s, comment: keys[i].Comment, attempt: a}
	}
	return held, nil
}

// SignWithAlgorithm implements ssh.AlgorithmSigner.
func (a *agentKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	// It may ask for a touch or a confirmation.
	resume := a.attempt.pause()
	defer resume()
	return sign(a.Signer, rand, data, algorithm)
}

func sign(s ssh.Signer, rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	if s, ok := s.(ssh.AlgorithmSigner); ok && algorithm != "" {
		return s.SignWithAlgorithm(rand, data, algorithm)
	}
	return s.Sign(rand, data)
}

// load reads the key file at path. The signer of an encrypted one asks for its
// passphrase when it is used; that of a public key is nil.
func (k *keyring) load(path string, a *authAttempt) (public ssh.PublicKey, signer ssh.Signer, encrypted bool, err error) {
	if err := k.lock(a.ctx); err != nil {
		return nil, nil, false, err
	}
	opened := k.opened[path]
	k.unlock()
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
	signer, err = ssh.ParsePrivateKey(text)
	var missing *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return signer.PublicKey(), signer, false, nil
	case errors.As(err, &missing):
		public := missing.PublicKey
		if public == nil { // the old format does not tell
			if public, err = readPublic(path + ".pub"); err != nil {
				return nil, nil, false, fmt.Errorf("%s is encrypted and in the old PEM format, and %s.pub is not there to tell which key it is\nhint: ssh-add %s",
					path, path, Quote(path))
			}
		}
		return public, &lockedKey{ring: k, attempt: a, path: path, text: text, public: public}, true, nil
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
		if cert, ok := public.(*ssh.Certificate); ok && sameKey(cert.Key, s.PublicKey()) {
			if c, err := ssh.NewCertSigner(cert, s); err == nil {
				all = append(all, c)
			}
		}
	}
	return append(all, s)
}

// lockedKey is an encrypted key. Its public half is shown to a host; only if
// the host would take it, the passphrase is asked for.
type lockedKey struct {
	ring    *keyring
	attempt *authAttempt
	path    string
	text    []byte
	public  ssh.PublicKey
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
		l.attempt.needed = err
		return nil, err
	}
	return sign(signer, rand, data, algorithm)
}

// open decrypts the key. Two connections at once ask for it once.
func (l *lockedKey) open() (ssh.Signer, error) {
	resume := l.attempt.pause()
	defer resume()
	if err := l.ring.lock(l.attempt.ctx); err != nil {
		return nil, err
	}
	defer l.ring.unlock()
	if s := l.ring.opened[l.path]; s != nil {
		return s, nil
	}
	if l.ring.passphrase == nil {
		return nil, fmt.Errorf("the key %s is encrypted and no agent holds it\nhint: ssh-add %s", l.path, Quote(l.path))
	}
	for range passphraseTries {
		passphrase, err := l.ring.passphrase(l.attempt.ctx, l.path)
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
