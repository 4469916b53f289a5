package npm_test

import (
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
)

// begin begins a login and gives the paths of its page and of its end.
func begin(t *testing.T, n *node) (page, done string) {
	t.Helper()
	a := n.do("POST", "/npm/-/v1/login", []byte(`{}`), "User-Agent", "npm/11.0.0 node/v24", "Authorization", "Bearer old").is(t, 200).json(t)
	at := func(key string) string {
		s, _ := a[key].(string)
		path, ok := strings.CutPrefix(s, n.url)
		if !ok {
			t.Fatalf("%s is %q", key, s)
		}
		return path
	}
	return at("loginUrl"), at("doneUrl")
}

// form is what a browser sends of the page at a path.
func form(page, name, password string) []byte {
	return []byte(url.Values{"login": {page[strings.LastIndexByte(page, '/')+1:]}, "name": {name}, "password": {password}}.Encode())
}

func browser(n *node, more ...string) []string {
	return append([]string{"Content-Type", "application/x-www-form-urlencoded", "Origin", n.url}, more...)
}

// TestWebLogin: a person approves what a program asked for, once.
func TestWebLogin(t *testing.T) {
	n, _, _ := withPeople(t)
	page, done := begin(t, n)
	if strings.Contains(page, done[strings.LastIndexByte(done, '/')+1:]) {
		t.Error("the page's address tells what the token is claimed with")
	}
	if a := n.get(done).is(t, 202); a.Header.Get("Retry-After") != "1" {
		t.Errorf("%v", a.Header)
	}
	a := n.get(page)
	if text := string(a.body); a.StatusCode != 200 || !strings.Contains(text, "127.0.0.1") || !strings.Contains(text, "npm/11.0.0") || strings.Contains(text, "another address") || !strings.Contains(text, n.url+"/npm/<") {
		t.Errorf("%s %s", a.Status, text)
	}
	// From another address than the program's.
	elsewhere, shown := httptest.NewRequest("GET", n.url+page, nil), httptest.NewRecorder()
	elsewhere.RemoteAddr = "192.0.2.7:1"
	n.npm.ServeHTTP(shown, elsewhere)
	if text := shown.Body.String(); shown.Code != 200 || !strings.Contains(text, "at another address than this browser") || !strings.Contains(text, "127.0.0.1") {
		t.Errorf("%d %s", shown.Code, text)
	}
	a = n.do("POST", page, form(page, `al"><script>`, "wrong"), browser(n)...)
	if text := string(a.body); a.StatusCode != 403 || !strings.Contains(text, "Wrong name or password.") || strings.Contains(text, "<script") || strings.Contains(text, "wrong\"") {
		t.Errorf("%s %s", a.Status, text)
	}
	csp := regexp.MustCompile(`^default-src 'none'; style-src 'nonce-([A-Z0-9]+)'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'$`)
	if m := csp.FindStringSubmatch(a.Header.Get("Content-Security-Policy")); m == nil || !strings.Contains(string(a.body), `<style nonce="`+m[1]+`">`) {
		t.Errorf("CSP %q", a.Header.Get("Content-Security-Policy"))
	}
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("X-Frame-Options") != "DENY" || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		t.Errorf("%v", a.Header)
	}
	for _, header := range [][]string{{"Origin", "http://evil.example"}, {"Origin", "null"}, {"Origin", n.url, "Sec-Fetch-Site", "cross-site"}, {"Origin", n.url, "Sec-Fetch-Site", "same-site"}} {
		header = append(header, "Content-Type", "application/x-www-form-urlencoded")
		if a := n.do("POST", page, form(page, "alice", "correct horse"), header...); a.StatusCode != 403 || !strings.Contains(string(a.body), "another site") {
			t.Errorf("%v: %s", header, a.Status)
		}
	}
	for _, body := range []string{"", "login=x&name=alice&password=correct+horse", "%zz", strings.Repeat("a", 65<<10)} {
		if a := n.do("POST", page, []byte(body), browser(n)...); a.StatusCode != 400 {
			t.Errorf("%.20q: %s", body, a.Status)
		}
	}
	n.get(done).is(t, 202) // none of that approved it
	if a := n.do("POST", page, form(page, "alice", "correct horse"), browser(n, "Sec-Fetch-Site", "same-origin")...); a.StatusCode != 200 || !strings.Contains(string(a.body), "You are logged in as alice") {
		t.Errorf("%s %s", a.Status, a.body)
	}
	got := n.get(done).is(t, 200)
	token, _ := got.json(t)["token"].(string)
	if who := n.get("/npm/-/whoami", bearer(token)...).is(t, 200).json(t)["username"]; who != "alice" || got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v %v", who, got.Header)
	}
	if a := n.get(done).is(t, 404); !strings.Contains(a.Header.Get("Npm-Notice"), "begin again") {
		t.Errorf("%v", a.Header)
	}
	if a := n.do("POST", page, form(page, "alice", "correct horse"), browser(n)...); a.StatusCode != 404 || !strings.Contains(string(a.body), "This login is over") {
		t.Errorf("again: %s", a.Status)
	}
}

// TestWebLoginFails: what a person and a program are told when it does not go on.
func TestWebLoginFails(t *testing.T) {
	n, p, _ := withPeople(t)
	page, done := begin(t, n)
	for _, path := range []string{page[:len(page)-1], page + "A", "/npm/-/v1/login/x", "/npm/-/v1/login/" + strings.Repeat("A", 200)} {
		if a := n.get(path); a.StatusCode != 404 || !strings.Contains(string(a.body), "There is no such login") {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
	p.Fail(&registry.Error{Kind: registry.ErrLimited, After: 90 * time.Second})
	a := n.do("POST", page, form(page, "alice", "correct horse"), browser(n)...)
	if a.StatusCode != 429 || a.Header.Get("Retry-After") != "90" || !strings.Contains(string(a.body), "wait 2 minutes") || !strings.Contains(string(a.body), `name="password"`) {
		t.Errorf("%s %s", a.Status, a.body)
	}
	p.Fail(registry.Errorf(registry.ErrUnavailable, "internal detail"))
	a = n.do("POST", page, form(page, "alice", "correct horse"), browser(n)...)
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || strings.Contains(string(a.body), "internal") {
		t.Errorf("%s %s", a.Status, a.body)
	}
	n.do("POST", "/npm/-/v1/login", []byte(`{}`)).is(t, 503)
	p.Fail(nil)
	for body, want := range map[string]int{``: 200, `{"create":true}`: 200, `[]`: 400, `{`: 400} {
		n.do("POST", "/npm/-/v1/login", []byte(body)).is(t, want)
	}
	n.do("HEAD", done, nil).is(t, 405)
	n.get(done).is(t, 202)
	// By another address than the node's own.
	public := newNode(t, "http://127.0.0.1:1", func(_ *npm.Registry, c *npm.Config) {
		c.PublicURL, c.Gate, c.Logins, c.Tokens, c.Identities = "https://packages.example", p, p, p, p
	})
	at, _ := public.do("POST", "/npm/-/v1/login", nil).is(t, 200).json(t)["loginUrl"].(string)
	path, ok := strings.CutPrefix(at, "https://packages.example")
	if !ok {
		t.Fatal(at)
	}
	if a := public.do("POST", path, form(path, "alice", "correct horse"), browser(n, "Origin", "https://packages.example")...); a.StatusCode != 403 {
		t.Errorf("two origins: %s", a.Status)
	}
	if a := public.do("POST", path, form(path, "alice", "correct horse"), "Content-Type", "application/x-www-form-urlencoded", "Origin", "https://packages.example"); a.StatusCode != 200 {
		t.Errorf("behind a proxy: %s %s", a.Status, a.body)
	}
}
