package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// healthTimeout bounds one try.
const healthTimeout = 5 * time.Second

// Health implements [Balancer].
func (l *Local) Health(ctx context.Context, h HealthCheck) error {
	if err := checkNumber("servers", len(h.Servers)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if h.URL != "" {
		if _, err := get(l.traffic.trace(ctx), h); err != nil {
			return asError(err)
		}
		return nil
	}
	addresses, err := l.addresses(ctx, h.Servers)
	if err != nil {
		return asError(err)
	}
	for _, a := range addresses {
		network, address := "tcp", a.String()
		if a.Unix != "" {
			network, address = "unix", a.Unix
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return asError(fmt.Errorf("connect: %w", err))
		}
		l.traffic.own(conn)
		conn.Close()
	}
	return nil
}

// maxBodyShown bounds how much of an answer an error repeats, and maxBody what is read of
// its header and of its body, in bytes.
const (
	maxBodyShown = 120
	maxBody      = 64 << 10
)

// get asks for a URL once, unless it holds a secret. It follows no redirect and uses no
// proxy.
func get(ctx context.Context, h HealthCheck) (body []byte, err error) {
	address := h.URL
	if err := remote.CheckURL(address); err != nil {
		return nil, err
	}
	trusted, err := h.tls()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "drainctl")
	request.Host = h.Host
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxBody, TLSClientConfig: trusted},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, &Error{Code: codeOfFailure(0, err), Message: remote.Redact(shortened(err).Error()), cause: err}
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return nil, &Error{Code: codeOfFailure(0, err), Message: err.Error(), cause: err}
	}
	status := response.StatusCode
	if status >= 200 && status <= 299 {
		return body, nil
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if to := response.Header.Get("Location"); to != "" {
		line = "it redirects to " + to
	}
	text := strings.TrimSuffix(fmt.Sprintf("%s answered with status %d: %s", address, status, shown(line)), ": ")
	return nil, &Error{Code: codeOfFailure(status, nil), Message: text}
}

// tls is what the certificate of a health check's server must match.
func (h HealthCheck) tls() (*tls.Config, error) {
	c := &tls.Config{ServerName: (&url.URL{Host: h.Host}).Hostname()}
	if h.CA == "" {
		return c, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // the LB trusts nobody by itself
	}
	if len(h.CA) > MaxCA || !pool.AppendCertsFromPEM([]byte(h.CA)) {
		return nil, &Error{Code: CodeRefused, Message: fmt.Sprintf("the CA of the health check is no certificates in PEM of at most %d bytes", MaxCA)}
	}
	c.RootCAs = pool
	return c, nil
}

// codeOfFailure tells what an app can recover from by itself, or by a restart, from a URL that
// is wrong: by the status of the answer, or by why there is none.
func codeOfFailure(status int, err error) Code {
	var op *net.OpError
	var late net.Error
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		return CodeUnhealthy
	case status >= 500:
		return CodeUnhealthy
	case status != 0: // a redirect, no permission, not found
		return CodeWrongURL
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	case errors.As(err, &op) && op.Op == "dial" && !errors.As(err, new(*net.DNSError)):
		return CodeUnreachable
	case errors.As(err, &late) && late.Timeout() && !errors.As(err, new(*net.DNSError)),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return CodeUnhealthy
	}
	return CodeWrongURL // its name, its certificate, or no HTTP
}

// shortened is err with a bounded text: it repeats what is no answer of HTTP.
func shortened(err error) error {
	var failed *url.Error
	if !errors.As(err, &failed) || len(failed.Err.Error()) <= maxBodyShown {
		return err
	}
	return fmt.Errorf("%s: %s…", failed.URL, shown(failed.Err.Error()))
}

// shown is what an error repeats of an answer. Secrets are redacted before the text is
// cut: half a URL is none.
func shown(text string) string {
	text = remote.Redact(text)
	return text[:min(len(text), maxBodyShown)]
}

// statusOf is the open connections that a page of stub_status tells of, without
// the one that asks.
func statusOf(ctx context.Context, url string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	body, err := get(ctx, HealthCheck{URL: url})
	if err != nil {
		return 0, asError(err)
	}
	s, err := nginx.ParseStubStatus(body)
	if err != nil {
		return 0, asError(fmt.Errorf("%s: %w", url, err))
	}
	return s.Open(), nil
}
