package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// getLimit is how long Get waits for an answer.
const getLimit = 10 * time.Second

// Dialer connects to addresses, as a Host does from itself.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Get asks for address, a URL, through d and returns the status and the body. An answer of which
// the header or the body is longer than 64 KiB, or that takes longer than 10 s, is an
// error. Get follows no redirects, uses no proxy, and checks certificates against the
// authorities that this machine trusts. Names are resolved by d. The address must pass
// [CheckURL], and errors hold no secret of a URL.
func Get(ctx context.Context, d Dialer, address string) (status int, body []byte, err error) {
	if err := CheckURL(address); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, getLimit, fmt.Errorf("no answer within %v", getLimit))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("get %q: %w", address, err)
	}
	request.Header.Set("User-Agent", "drainctl")
	transport := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: maxBody}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, getError(ctx, address, err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("the answer is longer than %d KiB", maxBody>>10)
	}
	if err != nil {
		return response.StatusCode, nil, getError(ctx, address, err)
	}
	return response.StatusCode, body, nil
}

// getError is err, or why ctx ended, with the address that was asked for.
func getError(ctx context.Context, address string, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = withoutSecrets(err)            // before it is clipped: half a URL is none
	if errors.As(err, new(*url.Error)) { // has the address in it
		return clippedError{err}
	}
	return fmt.Errorf("get %q: %w", address, clippedError{err})
}
