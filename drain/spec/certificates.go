package spec

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
)

// Certificates are certificates in PEM, and nothing else: a key beside them is a secret, and a spec
// is printed and recorded.
type Certificates string

// maxCAFile is more than any file of certificates has, in bytes.
const maxCAFile = 4 << 20

// readCertificates reads the certificates of a file.
func readCertificates(path string) (Certificates, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the certificates: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCAFile))
	if err != nil {
		return "", fmt.Errorf("read the certificates: %w", err)
	}
	c, err := certificatesOf(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// certificatesOf returns the certificates of a text in PEM, without the rest of it.
func certificatesOf(text []byte) (Certificates, error) {
	var all strings.Builder
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", err
		}
		all.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	switch {
	case all.Len() == 0:
		return "", errors.New("no certificate in PEM")
	case all.Len() > balancer.MaxCA:
		return "", fmt.Errorf("%d bytes of certificates, more than %d\nhint: name a file with your own CA alone", all.Len(), balancer.MaxCA)
	}
	return Certificates(all.String()), nil
}

// String names the certificates for a person.
func (c Certificates) String() string {
	var names []string
	for block, rest := pem.Decode([]byte(c)); block != nil; block, rest = pem.Decode(rest) {
		if one, err := x509.ParseCertificate(block.Bytes); err == nil {
			names = append(names, fmt.Sprintf("%s (SHA-256 %x)", one.Subject, sha256.Sum256(one.Raw)))
		}
	}
	return strings.Join(names, "; ")
}
