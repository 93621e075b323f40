package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
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
		if _, err := get(ctx, h.URL); err != nil {
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
func get(ctx context.Context, address string) (body []byte, err error) {
	if err := remote.CheckURL(address); err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "drainctl")
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxBody},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, shortened(err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 200 && response.StatusCode <= 299 {
		return body, nil
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return nil, errors.New(strings.TrimSpace(fmt.Sprintf("%s answered with status %d: %s", address, response.StatusCode, shown(line))))
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
	body, err := get(ctx, url)
	if err != nil {
		return 0, asError(err)
	}
	s, err := nginx.ParseStubStatus(body)
	if err != nil {
		return 0, asError(fmt.Errorf("%s: %w", url, err))
	}
	return s.Open(), nil
}
