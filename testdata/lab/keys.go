package lab

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// keyring holds the SSH keys of one lab. All are new each time.
type keyring struct {
	operator keyPair              // root's on the load balancers, and every operator's
	hosts    map[string][]keyPair // by the host's name; an Ed25519 and an ECDSA key each
}

type keyPair struct {
	kind    string // as in the file name: ed25519, ecdsa
	private []byte // in OpenSSH's format
	public  ssh.PublicKey
}

func newKeyring(hosts []*Machine) (keyring, error) {
	operator, err := newKeyPair("ed25519", "root@lb")
	if err != nil {
		return keyring{}, err
	}
	ring := keyring{operator: operator, hosts: map[string][]keyPair{}}
	for _, host := range hosts {
		for _, kind := range []string{"ed25519", "ecdsa"} {
			pair, err := newKeyPair(kind, "root@"+host.Name)
			if err != nil {
				return keyring{}, err
			}
			ring.hosts[host.Name] = append(ring.hosts[host.Name], pair)
		}
	}
	return ring, nil
}

func newKeyPair(kind, comment string) (keyPair, error) {
	var secret crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, secret, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		secret, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return keyPair{}, fmt.Errorf("new %s key: %w", kind, err)
	}
	public, err := ssh.NewPublicKey(secret.Public())
	if err != nil {
		return keyPair{}, fmt.Errorf("new %s key: %w", kind, err)
	}
	block, err := ssh.MarshalPrivateKey(secret, comment)
	if err != nil {
		return keyPair{}, fmt.Errorf("new %s key: %w", kind, err)
	}
	return keyPair{kind: kind, private: pem.EncodeToMemory(block), public: public}, nil
}

func (k keyPair) authorized() []byte { return ssh.MarshalAuthorizedKey(k.public) }

// knownHosts is an operator's known_hosts: every key of every host, by address and by
// name, hashed as Debian's ssh writes them.
func (l *Lab) knownHosts() []byte {
	var file bytes.Buffer
	for _, host := range l.Hosts() {
		for _, pair := range l.keys.hosts[host.Name] {
			for _, name := range []string{host.Addr, host.Name} {
				fmt.Fprintln(&file, knownhosts.Line([]string{knownhosts.HashHostname(name)}, pair.public))
			}
		}
	}
	return file.Bytes()
}
