package remote

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "",
		"no URL: a@b, ://, user:pw@host":        "no URL: a@b, ://, user:pw@host",
		"http://host/path":                      "http://host/path",
		"http://user:pw@host/path":              "http://xxxxx@host/path",
		"http://user@host":                      "http://xxxxx@host",
		"http://:pw@host:8080/?a=b":             "http://xxxxx@host:8080/?a=b",
		"https://u:p@[2001:db8::1]:8443/":       "https://xxxxx@[2001:db8::1]:8443/",
		"http://u:p@ss@host/":                   "http://xxxxx@host/",
		"http://u:p%40%2F@host/":                "http://xxxxx@host/",
		"http://u:p/w@host/":                    "http://xxxxx@host/",
		"http://u:p?w@host/":                    "http://xxxxx@host/",
		"http://host/@scope/a@1":                "http://host/@scope/a@1",
		"http://host:8080/a@b":                  "http://host:8080/a@b",
		"http://host?mail=a@b":                  "http://host?mail=a@b",
		"http://unix:/run/app.sock:/a@b":        "http://unix:/run/app.sock:/a@b",
		"postgres://app:pw@db/shop":             "postgres://xxxxx@db/shop",
		`Get "http://u:p@host/": refused`:       `Get "http://xxxxx@host/": refused`,
		"http://a/,http://u:p@b/ and c@d":       "http://a/,http://xxxxx@b/ and c@d",
		"from http://u:p@a/ to http://v:q@b/":   "from http://xxxxx@a/ to http://xxxxx@b/",
		"http://host:80: refused, ask a@b":      "http://host:80: refused, ask a@b",
		"http://h/?token=t&a=b":                 "http://h/?token=xxxxx&a=b",
		"http://h/?a=b&Access_Token=t#x":        "http://h/?a=b&Access_Token=xxxxx#x",
		"http://h/?X-Amz-Signature=s;key=k":     "http://h/?X-Amz-Signature=xxxxx;key=xxxxx",
		"GET /ready?password=p HTTP/1.1":        "GET /ready?password=xxxxx HTTP/1.1",
		"http://h/?apikey=k&sig=s&auth=a&pwd=p": "http://h/?apikey=xxxxx&sig=xxxxx&auth=xxxxx&pwd=xxxxx",
		"http://h/?monkey=m&design=d&author=a":  "http://h/?monkey=m&design=d&author=a",
		"http://h/?token=":                      "http://h/?token=",
		`{"health":"http://u:p\u0026w@h/?a=b\u0026token=t\u0026c=d","n":1}`: `{"health":"http://xxxxx@h/?a=b\u0026token=xxxxx\u0026c=d","n":1}`,
	} {
		if got := Redact(text); got != want {
			t.Errorf("Redact(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for _, fine := range []string{"http://host", "https://host:8443/ready?a=b", "http://[::1]:80/", "http://127.0.0.1/nginx?monkey=1"} {
		if err := CheckURL(fine); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
	for _, bad := range []string{"", "host", "/path", "ftp://host/", "http://", "http:host", "://", "http://%zz", "tcp"} {
		if err := CheckURL(bad); err == nil || errors.Is(err, ErrSecret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, secret := range []string{
		"http://user:SECRET@host/", "http://SECRET@host/", "http://user:SE/CRET@host/", "http://host/?token=SECRET", "http://host/?a=b&password=SECRET",
		"http://user:SECRET@host:port/", "http://SECRET@[::1/", "http://u:%zzSECRET@h/",
	} {
		if err := CheckURL(secret); !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), "CRET") {
			t.Errorf("%s: %v", secret, err)
		}
	}
}

// However a password is written, it is gone where net/url finds one, in text and in JSON.
func FuzzRedact(f *testing.F) {
	for _, seed := range []string{"http://u:p@h/", "http://u:p&q@h/?token=t", "a://b:c@d://e:f@g", `"http://u@h"`} {
		f.Add(seed, "see ")
	}
	f.Fuzz(func(t *testing.T, text, before string) {
		got := Redact(before + text)
		if again := Redact(got); again != got {
			t.Errorf("%q, and once more %q", got, again)
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" || u.User == nil {
			return
		}
		if CheckURL(text) == nil {
			t.Errorf("%q: no error", text)
		}
		clean, err := url.Parse(Redact(text))
		if err != nil || clean.User.String() != redacted || clean.Host != u.Host {
			t.Errorf("%q became %q", text, Redact(text))
		}
		encoded, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var decoded string
		if err := json.Unmarshal([]byte(Redact(string(encoded))), &decoded); err != nil {
			t.Fatalf("%q is no JSON any more: %v", encoded, err)
		}
		if clean, err := url.Parse(decoded); err != nil || clean.User.String() != redacted {
			t.Errorf("in JSON %q became %q", text, decoded)
		}
	})
}
