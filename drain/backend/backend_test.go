package backend

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// Connections are counted only by what is a page of stub_status for certain.
func TestStatusCounter(t *testing.T) {
	const page = "Active connections: 3 \nserver accepts handled requests\n 7 7 9 \nReading: 0 Writing: 1 Waiting: 2 \n"
	for _, test := range []struct {
		code int
		body string
		open int
		says string // of the error
	}{
		{200, page, 2, ""},
		{404, page, 0, "answered with status 404"},
		{500, page, 0, "answered with status 500"},
		{302, page, 0, "answered with status 302"},
		{200, "Active connections: 3 \n", 0, "not a stub_status page"},
		{200, "", 0, "not a stub_status page"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.code)
			_, _ = w.Write([]byte(test.body))
		}))
		count, err := StatusCounter{Host: remote.Local(nil), URL: s.URL + "/status"}.Count(t.Context())
		s.Close()
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) || count.Open != test.open {
			t.Errorf("status %d, %.20q: %d open, error %v", test.code, test.body, count.Open, err)
		}
	}
}

// A logHost has a log.
type logHost struct {
	remote.Host
	log string
}

func (logHost) Name() string { return "app-1" }

func (h logHost) Run(context.Context, remote.Command) (remote.Result, error) {
	return remote.Result{Stdout: []byte(h.log)}, nil
}

// What a service logs is recorded without the secrets of URLs.
func TestLog(t *testing.T) {
	b := &Unit{Service: remote.Service{Host: logHost{log: "started\nget http://user:SECRET@db/?token=SECRET failed\n"}, Unit: "app"}}
	if got := strings.Join(b.Log(t.Context()), "|"); got != "started|get http://xxxxx@db/?token=xxxxx failed" {
		t.Error(got)
	}
}

// A bootHost tells the ID of one boot after the other, and then the last for ever. An empty one
// is no answer.
type bootHost struct {
	remote.Host
	boots   []string
	code    int // of the command that reboots it
	reboots int
}

func (h *bootHost) Run(_ context.Context, c remote.Command) (remote.Result, error) {
	if c.Args[0] == "systemctl" {
		h.reboots++
		if h.code != 0 {
			return remote.Result{Code: h.code}, nil
		}
		return remote.Result{}, fmt.Errorf("app-1: %w", remote.ErrConnection) // it is gone before it answers
	}
	boot := h.boots[0]
	if len(h.boots) > 1 {
		h.boots = h.boots[1:]
	}
	if boot == "" {
		return remote.Result{}, fmt.Errorf("app-1: %w", remote.ErrConnection)
	}
	return remote.Result{Stdout: []byte(boot + "\n")}, nil
}

// A host is rebooted when it runs another boot, and not when it answers.
func TestReboot(t *testing.T) {
	for name, test := range map[string]struct {
		host    bootHost
		reboots int
		says    string // of the error
	}{
		"it answers while it goes down": {bootHost{boots: []string{"one", "one", "one", "", "", "two"}}, 1, ""},
		"it does not go down":           {bootHost{boots: []string{"one"}}, 1, "reboot app-1: not within 1m (--reboot-timeout): it still runs the boot before"},
		"it does not come back":         {bootHost{boots: []string{"one", ""}}, 1, "reboot app-1: not within 1m (--reboot-timeout): app-1: no connection"},
		"it refuses":                    {bootHost{boots: []string{"one"}, code: 1}, 1, "reboot app-1: systemctl reboot: exit status 1"},
		"it cannot be asked":            {bootHost{boots: []string{""}}, 0, "reboot app-1: app-1: no connection"},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &Backend{Name: "app-1", Host: &test.host}
			err := b.Reboot(t.Context(), time.Minute)
			if (err == nil) != (test.says == "") || err != nil && err.Error() != test.says || test.host.reboots != test.reboots {
				t.Errorf("%s: %d reboots, error %v", name, test.host.reboots, err)
			}
			if last := test.host.boots[len(test.host.boots)-1]; err == nil && (len(test.host.boots) > 1 || last != "two") {
				t.Errorf("%s: it has not answered yet: %q", name, test.host.boots)
			}
		})
	}
}
