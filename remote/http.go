package remote

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxBody is how many bytes of an answer Get returns at most.
const maxBody = 1 << 20

// Dialer connects to addresses, as a Host does from itself.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Get asks for url through d and returns the status and the first MiB of the
// body. It follows no redirects, uses no proxy, and checks certificates against
// the authorities that this machine trusts. Names are resolved by d.
func Get(ctx context.Context, d Dialer, url string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("get %q: %w", url, err)
	}
	request.Header.Set("User-Agent", "drainctl")
	transport := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return response.StatusCode, body, fmt.Errorf("get %q: %w", url, err)
	}
	return response.StatusCode, body, nil
}
