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
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// passphraseTries is how often the passphrase of a key is asked for.
const passphraseTries = 3

// agentTimeout is how long an agent may take to list its keys.
const agentTimeout = 5 * time.Second

// publicKey is the login with a key (RFC 4252, section 7).
const publicKey = "publickey"

// AuthError says that a host refused the login.
type AuthError struct {
	Host  string   // "user@address"
	Tried []string // the keys that were shown to it
	Notes []string // keys that could not be used, and why
	// Accepted says that a key was accepted, and was not enough.
	Accepted bool
	Wants    []string // the methods that the host still accepts, as in RFC 4252: "password"
	Cause    error
}

func (e *AuthError) Error() string {
	tried, hint := "there was no key to try (start an agent and ssh-add one, or name one with --identity)", ""
	if len(e.Tried) > 0 {
		tried = "keys tried: " + strings.Join(e.Tried, ", ")
	}
	wants := clip(strings.ReplaceAll(strings.Join(e.Wants, " or "), publicKey, "another key"))
	switch {
	case e.Accepted:
		tried = "the key was accepted; the host also wants " + wants
		hint = "\nhint: have sshd let this user in with a key alone (AuthenticationMethods)"
	case len(e.Wants) > 0 && !slices.Contains(e.Wants, publicKey):
		tried = "the host wants " + wants + ", not a key"
		hint = "\nhint: have sshd let this user in with a key alone (PubkeyAuthentication, AuthenticationMethods)"
	}
	return strings.Join(append([]string{fmt.Sprintf("ssh to %s: login refused", e.Host), tried}, e.Notes...), "; ") + hint
}

func (e *AuthError) Unwrap() error { return e.Cause }

// keyring holds the keys for one host, so that no passphrase is asked for twice.
type keyring struct {
	passphrase func(ctx context.Context, path string) ([]byte, error)
	opened     sync.Map // of paths to the ssh.Signer of what was encrypted there
}

// authAttempt is one attempt to log in to one host, and the keys that are shown to it.
type authAttempt struct {
	ctx     context.Context
	signers []ssh.Signer
	tried   []string
	notes   []string
	needed  error                 // the host asked for a key that could not be opened
	refused error                 // why the key of the host was refused: the library may reword that
	trusted bool                  // whether the key of the host was checked and is known
	state   ssh.ClientAuthContext // the methods that the host has accepted and still accepts
	close   func()
	// pause stops the clock of the attempt while a person types.
	pause func() (resume func())
}

// slowKey is a key whose use may wait for a person: an encrypted one, or one that the agent
// holds, which may ask for a touch or a confirmation. Its public half is shown to a host; only
// if the host would take it, it is opened.
type slowKey struct {
	public  ssh.PublicKey
	open    func() (ssh.Signer, error) // nil where nobody has the private half
	attempt *authAttempt
}

// PublicKey implements ssh.Signer.
func (k *slowKey) PublicKey() ssh.PublicKey { return k.public }

// Sign implements ssh.Signer.
func (k *slowKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, "")
}

// SignWithAlgorithm implements ssh.AlgorithmSigner.
func (k *slowKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	resume := k.attempt.pause()
	defer resume()
	signer, err := k.open()
	if err != nil {
		k.attempt.needed = err
		return nil, err
	}
	if s, ok := signer.(ssh.AlgorithmSigner); ok && algorithm != "" {
		return s.SignWithAlgorithm(rand, data, algorithm)
	}
	return signer.Sign(rand, data)
}

// offer is a key to be shown to a host, and where it comes from.
type offer struct {
	ssh.Signer
	from string
}

// attempt gathers the keys for e, in the order in which ssh shows them: what the
// user named for this run, what the agent holds (first of what the
// configuration names), other files, and files whose passphrase must be asked
// for last. A host closes after a few wrong ones.
func (k *keyring) attempt(ctx context.Context, e endpoint) (*authAttempt, error) {
	a := &authAttempt{ctx: ctx, close: func() {}}
	held, err := agentKeys(ctx, e, a)
	if err != nil { // no error: the key files may do
		a.notes = append(a.notes, fmt.Sprintf("the agent does not answer: %v", err))
	}
	const explicit, named, others, files, locked = 0, 1, 2, 3, 4
	var lists [5][]offer
	for _, id := range e.identities {
		key, err := k.load(id.path, a)
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
		list, from := files, id.path
		slow, _ := key.(*slowKey)
		i := slices.IndexFunc(held, func(h offer) bool { return sameKey(h.PublicKey(), key.PublicKey()) })
		switch {
		case i >= 0:
			list, from, key = named, id.path+" (agent)", held[i].Signer
			held = slices.Delete(held, i, i+1)
		case slow != nil && slow.open == nil:
			a.notes = append(a.notes, fmt.Sprintf("%s: the agent does not hold its private key", id.path))
			continue
		case slow != nil:
			list = locked
		}
		if id.explicit {
			list = explicit
		}
		for _, s := range certified(key, append([]string{id.path + "-cert.pub"}, e.certificates...)) {
			lists[list] = append(lists[list], offer{s, from})
		}
	}
	if !e.onlyThese {
		lists[others] = held
	}
	for _, o := range slices.Concat(lists[:]...) {
		a.signers = append(a.signers, o.Signer)
		a.tried = append(a.tried, fmt.Sprintf("%s %s", o.from, ssh.FingerprintSHA256(o.PublicKey())))
	}
	return a, nil
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// agentKeys returns the keys of e's agent, if it has one.
func agentKeys(ctx context.Context, e endpoint, a *authAttempt) ([]offer, error) {
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
	held := make([]offer, len(keys))
	for i, s := range signers {
		key := &slowKey{s.PublicKey(), func() (ssh.Signer, error) { return s, nil }, a}
		held[i] = offer{key, strings.TrimSpace("agent: " + keys[i].Comment)}
	}
	return held, nil
}

// load reads the key file at path. An encrypted key is a slowKey, and so is a public key.
func (k *keyring) load(path string, a *authAttempt) (ssh.Signer, error) {
	if opened, ok := k.opened.Load(path); ok {
		return opened.(ssh.Signer), nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		// The public half is enough where an agent has the other.
		if public, perr := readPublic(path + ".pub"); perr == nil {
			return &slowKey{public: public}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err == nil {
		return signer, nil
	}
	var missing *ssh.PassphraseMissingError
	if !errors.As(err, &missing) {
		public, perr := readPublic(path)
		if perr != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return &slowKey{public: public}, nil
	}
	public := missing.PublicKey
	if public == nil { // the old format does not tell
		if public, err = readPublic(path + ".pub"); err != nil {
			return nil, fmt.Errorf("%s is encrypted and in the old PEM format, and %s.pub is not there to tell which key it is\nhint: ssh-add %s",
				path, path, Quote(path))
		}
	}
	return &slowKey{public, func() (ssh.Signer, error) { return k.decrypt(a.ctx, path, text) }, a}, nil
}

// decrypt opens the encrypted key that was read from path.
func (k *keyring) decrypt(ctx context.Context, path string, text []byte) (ssh.Signer, error) {
	if k.passphrase == nil {
		return nil, fmt.Errorf("the key %s is encrypted and no agent holds it\nhint: ssh-add %s", path, Quote(path))
	}
	for range passphraseTries {
		passphrase, err := k.passphrase(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("the key %s is encrypted: %w", path, err)
		}
		s, err := ssh.ParsePrivateKeyWithPassphrase(text, passphrase)
		clear(passphrase)
		switch {
		case err == nil:
			k.opened.Store(path, s)
			return s, nil
		case !errors.Is(err, x509.IncorrectPasswordError):
			return nil, fmt.Errorf("the key %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("the key %s: the passphrase is wrong", path)
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
		public, _ := readPublic(file)
		if cert, ok := public.(*ssh.Certificate); ok && sameKey(cert.Key, s.PublicKey()) {
			if c, err := ssh.NewCertSigner(cert, s); err == nil {
				all = append(all, c)
			}
		}
	}
	return append(all, s)
}
