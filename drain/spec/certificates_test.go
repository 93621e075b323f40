package spec

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
)

// newCA returns a certificate in PEM.
func newCA(t *testing.T) string {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// --health-ca reads a file once, for it is the operator's. A spec has the certificates in it, and
// neither a key nor any other text.
func TestReadCertificates(t *testing.T) {
	ca := newCA(t)
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}))
	for _, test := range []struct{ name, text, want, says string }{
		{"one", ca, ca, ""},
		{"two, a key and text", "CA\n" + ca + key + ca, ca + ca, ""},
		{"a key", key, "", "no certificate in PEM"},
		{"no PEM", "root:x:0:0", "", "no certificate in PEM"},
		{"a broken one", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), "", "x509: "},
		{"a bundle", strings.Repeat(ca, balancer.MaxCA/len(ca)+1), "", "bytes of certificates, more than 16384"},
	} {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Default(Run)
		err := SetFlag(&s, "health-ca", path)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) || string(s.HealthCA) != test.want {
			t.Errorf("%s: %v, %q", test.name, err, s.HealthCA)
		}
	}
	if text := Certificates(ca).String(); !strings.HasPrefix(text, "O=Acme Co (SHA-256 ") {
		t.Errorf("it is shown as %q", text)
	}
	s := Default(Run)
	if err := SetFlag(&s, "health-ca", "/no/such/file"); err == nil {
		t.Error("a file that is missing is read")
	}
	// An agent is told the certificates, and no file.
	s.HealthCA = "/etc/shadow"
	if err := s.CheckToRecord(); err == nil {
		t.Error("a path is recorded")
	}
	for host, ok := range map[string]bool{"app.example.com": true, "app:8443": true, "{host}": true, "[::1]:80": true, "a b": false, "a/b": false, "u@a": false, "a\r\nX: y": false, ":80": false} {
		if err := CheckFlag("--health-host", "health-host", reflect.ValueOf(host)); (err == nil) != ok {
			t.Errorf("--health-host %q: %v", host, err)
		}
	}
}
