package balancer

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

// What a web server answers may hold secrets of others: an address to go to, or a page
// that quotes one. A URL with a password is not asked at all.
func TestErrorsOfHTTPHoldNoSecret(t *testing.T) {
	pages := http.NewServeMux()
	pages.HandleFunc("/location", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://user:SECRET@%zz/")
		w.WriteHeader(http.StatusFound)
	})
	pages.HandleFunc("/body", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, "go to "+strings.Repeat("x", 90)+" http://user:SECRETSECRET@host/?token=SECRET")
	})
	pages.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "http://user:SECRET@host/") })
	asked := false
	pages.HandleFunc("/user", func(http.ResponseWriter, *http.Request) { asked = true })
	s := httptest.NewServer(pages)
	defer s.Close()
	l := NewLocal(Options{StateDir: t.TempDir()})
	withUser := strings.Replace(s.URL, "://", "://user:SECRET@", 1)
	for _, url := range []string{s.URL + "/location", s.URL + "/body", withUser + "/user", withUser + ":port/user", s.URL + "/user?token=SECRET"} {
		if err := l.Health(t.Context(), HealthCheck{URL: url}); err == nil || strings.Contains(err.Error(), "SEC") {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{s.URL + "/page", withUser + "/user"} {
		if _, err := l.Connections(t.Context(), ConnectionsQuery{StatusURL: url}); err == nil || strings.Contains(err.Error(), "SEC") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if asked {
		t.Error("a URL with a password was asked")
	}
}

// An earlier drainctl recorded passwords. They are not given out; the command that resume
// runs is as it was.
func TestJournalOfEarlierVersionsHoldsNoSecret(t *testing.T) {
	const url = `http://user:SECRET@host/?a=b\u0026token=SECRET`
	dir := t.TempDir()
	j := journal.Journal{Dir: dir}
	op := journal.Operation{
		ID: journal.NewID(time.Now(), ""), Kind: journal.KindRun, Targets: []string{"a"}, Reason: "see http://user:SECRET@ci/job",
		Spec: json.RawMessage(`{"health":"` + url + `","per_backend":{"a":{"status_url": "` + url + `"}},"rollout":{"command":["fetch","http://user:KEPT@host/"]}}`),
	}
	if err := j.Update(t.Context(), func(s *journal.State) error { return s.Begin(op) }); err != nil {
		t.Fatal(err)
	}
	if err := j.Create(op.ID, journal.Recorder{}, []byte(`{"event":"operation_started","reason":"`+url+`"}`), []byte(`{"event":"result","error":"Get \"`+url+`\""}`)); err != nil {
		t.Fatal(err)
	}
	l := NewLocal(Options{StateDir: dir})
	state, err := l.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := []any{state}
	for _, q := range []HistoryQuery{{}, {ID: op.ID}} {
		h, err := l.History(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	for _, v := range all {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "SECRET") || !strings.Contains(string(text), "xxxxx") {
			t.Errorf("it tells %s", text)
		}
	}
	if got := string(state.Operations[0].Spec); !strings.Contains(got, "http://user:KEPT@host/") {
		t.Errorf("the command has become %s", got)
	}
}
