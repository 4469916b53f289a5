package reply

import (
	"crypto/tls"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestBase(t *testing.T) {
	for _, c := range []struct {
		public, host string
		tls          bool
		want         string // "": an error
	}{
		{"", "Weir.example:5000", false, "http://weir.example:5000"},
		{"", "weir.example", true, "https://weir.example"},
		{"", "[::1]:5000", false, "http://[::1]:5000"},
		{"https://packages.example/x/", "anything at all", false, "https://packages.example/x"},
		{"", `a",service="b`, false, ""},
		{"", "", false, ""},
		{"", "a/b", false, ""},
		{"", "me@a", false, ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = c.host
		if c.tls {
			r.TLS = &tls.ConnectionState{}
		}
		r.Header.Set("X-Forwarded-Host", "elsewhere.example")
		r.Header.Set("X-Forwarded-Proto", "https")
		if got, err := Base(r, c.public); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q %v", c, got, err)
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a", "a:1", "[::1]:80", "a b", "a/..", "[::1%25eth0]", ":80", "a:", "[a]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToLower(s)
		if !validHost(s) {
			return
		}
		if u, err := url.Parse("http://" + s + "/npm"); err != nil || u.Host != s || u.Path != "/npm" || u.User != nil {
			t.Fatalf("%q makes the address %v, %v", s, u, err)
		}
	})
}
