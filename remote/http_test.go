package remote

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestGet(t *testing.T) {
	makeUsers(t)
	s := startServer(t, serverOptions{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "fine "+r.UserAgent())
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "no")
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/ok", http.StatusFound)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), maxBody))
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for _, err := w.Write(make([]byte, 1<<20)); err == nil; _, err = w.Write(make([]byte, 1<<20)) {
		}
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 2*maxBody))
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	})
	plain, secure := httptest.NewServer(mux), httptest.NewUnstartedServer(mux)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // it is meant to fail
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	for _, h := range []Host{Local(nil), s.connect(t, opUser)} {
		for path, want := range map[string]struct {
			status int
			body   string
		}{
			"/ok": {200, "fine drainctl"}, "/broken": {503, "no"}, "/nowhere": {404, "404 page not found\n"},
			"/big": {200, strings.Repeat("x", maxBody)},
		} {
			status, body, err := Get(limit(t, time.Minute), h, plain.URL+path)
			if err != nil || status != want.status || string(body) != want.body {
				t.Errorf("%s: %s: %d, %d bytes, %v", h.Name(), path, status, len(body), err)
			}
		}
		for path, want := range map[string]string{"/endless": "longer than 64 KiB", "/header": "header"} {
			status, body, err := Get(limit(t, time.Minute), h, plain.URL+path)
			if err == nil || !strings.Contains(err.Error(), want) || len(body) > 0 {
				t.Errorf("%s: %s: %d, %d bytes, %v", h.Name(), path, status, len(body), err)
			}
		}
		if status, _, err := Get(limit(t, time.Minute), h, plain.URL+"/away"); err != nil || status != http.StatusFound {
			t.Errorf("%s: a redirect: %d, %v", h.Name(), status, err)
		}
		if _, _, err := Get(limit(t, time.Minute), h, secure.URL+"/ok"); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: a certificate that nobody trusts: %v", h.Name(), err)
		}
		begin := time.Now()
		if _, _, err := Get(limit(t, 500*time.Millisecond), h, plain.URL+"/slow"); err == nil || time.Since(begin) > 20*time.Second {
			t.Errorf("%s: a slow answer: %v after %v", h.Name(), err, time.Since(begin))
		}
		for _, bad := range []string{"http://127.0.0.1:1/", "://", "ftp://127.0.0.1/", "http://%zz"} {
			if _, _, err := Get(limit(t, time.Minute), h, bad); err == nil {
				t.Errorf("%s: %s: no error", h.Name(), bad)
			}
		}
	}
	var uerr *url.Error
	if _, _, err := Get(limit(t, time.Minute), Local(nil), "http://127.0.0.1:1/"); !errors.As(err, &uerr) {
		t.Errorf("got %v", err)
	}
}
