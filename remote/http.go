package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxBody is how many bytes of an answer Get returns at most.
const maxBody = 1 << 20

// Get asks for url from h and returns the status and the first MiB of the body.
// It follows no redirects, uses no proxy, and checks certificates against the
// authorities that this machine trusts. Names are resolved by h.
func Get(ctx context.Context, h Host, url string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("get %q: %w", url, err)
	}
	request.Header.Set("User-Agent", "drainctl")
	transport := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("from %s: %w", h.Name(), err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return response.StatusCode, body, fmt.Errorf("from %s: get %q: %w", h.Name(), url, err)
	}
	return response.StatusCode, body, nil
}

// Connect says whether h can connect to addr, "host:port" or "unix:/path".
func Connect(ctx context.Context, h Host, addr string) error {
	network := "tcp"
	if path, found := strings.CutPrefix(addr, "unix:"); found {
		network, addr = "unix", path
	}
	conn, err := h.DialContext(ctx, network, addr)
	if err != nil {
		return fmt.Errorf("connect from %s: %w", h.Name(), err)
	}
	return conn.Close()
}
