package remote

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// redacted stands for a secret, as in [url.URL.Redacted].
const redacted = "xxxxx"

// ErrSecret is wrapped by the error of a URL that holds a secret.
var ErrSecret = errors.New("it holds a secret")

// CheckURL refuses what is not an http or https URL, and a URL with user info or with a
// query parameter such as token or password: URLs are printed and recorded. The error
// repeats nothing that may be secret.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case Redact(text) != text, err == nil && u.User != nil:
		return fmt.Errorf("%q: %w, and drainctl prints and records URLs\nhint: use a URL that needs no password, such as one that only the load balancer may ask for", Redact(text), ErrSecret)
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q is not an http or https URL", text)
	}
	return nil
}

// Redact is text with xxxxx for the secrets of the URLs in it: all user info, and the
// values of query parameters that are called token, password and the like. It works on
// JSON too.
func Redact(text string) string {
	parts := strings.Split(text, "://")
	for i, part := range parts[1:] {
		parts[i+1] = withoutUserInfo(part)
	}
	return secretParameter.ReplaceAllString(strings.Join(parts, "://"), "${1}"+redacted)
}

// withoutSecrets is err with its text redacted.
func withoutSecrets(err error) error { return redactedError{err} }

type redactedError struct{ error }

func (e redactedError) Error() string { return Redact(e.error.Error()) }

func (e redactedError) Unwrap() error { return e.error }

// withoutUserInfo redacts what follows "://". It errs on the side of the secret: the
// text may be no valid URL.
func withoutUserInfo(text string) string {
	address := text
	if end := strings.IndexAny(text, " \t\r\n\""); end >= 0 {
		address = text[:end]
	}
	authority := address
	if end := strings.IndexAny(address, `/?#`); end >= 0 {
		authority = address[:end]
	}
	at := strings.LastIndexByte(authority, '@')
	if at < 0 && !hostPort.MatchString(authority) { // the password has a slash
		at = strings.LastIndexByte(address, '@')
	}
	if at < 0 {
		return text
	}
	return redacted + text[at:]
}

var hostPort = regexp.MustCompile(`^(\[[^\]]*\]|[^:]*)(:\d*)?$`)

// secretParameter is a query parameter whose name says that it is a secret, up to its
// value, and the value. JSON has \u0026 for &.
var secretParameter = regexp.MustCompile(`(?i)((?:[?&;]|\\u0026)` +
	`(?:[^\s"=&;?#\\]*(?:token|passw|secret|signature|credential|api[-_]?key)[^\s"=&;?#\\]*|key|sig|auth|pass|pwd)=)[^\s"&;#\\]+`)
