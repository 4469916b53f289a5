package conformance_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestNpmBadInput: what makes no sense is refused in npm's form with the
// status that says why, without a question to the upstream, and weir goes on.
func TestNpmBadInput(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	long := strings.Repeat("a", 300)
	for _, c := range []struct {
		method, path string
		want         []int
	}{
		{"GET", "/npm/%2e%2e", []int{400}},
		{"GET", "/npm/%2e%2e%2f%2e%2e%2fetc%2fpasswd", []int{400}},
		{"GET", "/npm/..%2f..%2fetc", []int{400}},
		{"GET", "/npm/@acme%2f..%2f..%2fleft", []int{400}},
		{"GET", "/npm/@acme%2f%2e%2e", []int{400}},
		{"GET", "/npm/left%00", []int{400}},
		{"GET", "/npm/left%0d%0aX-Evil:%20yes", []int{400}},
		{"GET", "/npm/%252e%252e", []int{400}},
		{"GET", "/npm/@acme%252fright", []int{400}},
		{"GET", "/npm/left%5c..%5cright", []int{400}},
		{"GET", "/npm/.hidden", []int{400}},
		{"GET", "/npm/le%66t%20two", []int{400}},
		{"GET", "/npm/@", []int{400}},
		{"GET", "/npm/@acme", []int{400}},
		{"GET", "/npm/@acme%2f", []int{400}},
		{"GET", "/npm/@%2fright", []int{400}},
		{"GET", "/npm/left%2fright", []int{400}},
		{"GET", "/npm/%ff%fe", []int{400}},
		{"GET", "/npm/" + long, []int{400}},
		{"GET", "/npm/left/" + long, []int{400}},
		{"GET", "/npm/left/-/%2e%2e%2fright-1.0.0.tgz", []int{400}},
		{"GET", "/npm/left/-/" + long + ".tgz", []int{400}},
		{"GET", "/npm/" + strings.Repeat("a/", 5000), []int{400, 404, 414}},
		{"GET", "/npm/-/npm/v1/attestations/left", []int{400, 404}},
		{"GET", "/npm/-/no/such/thing", []int{404}},
		{"GET", "/npm/-/all", []int{404}},
		{"GET", "/npm/left/-/a/b/c", []int{400, 404}},
		{"PUT", "/npm/left", []int{405}},
		{"POST", "/npm/left", []int{405}},
		{"DELETE", "/npm/left/-/left-1.1.0.tgz/-rev/1", []int{404, 405}},
		{"PATCH", "/npm/left", []int{405}},
		{"BREW", "/npm/left", []int{405, 501}},
		{"DELETE", "/npm/-/ping", []int{405}},
		{"GET", "/npm/-/npm/v1/security/advisories/bulk", []int{404, 405}},
		{"GET", "/npm/-/whoami", []int{401}},
		{"GET", "/npm/-/v1/login", []int{404, 405}},
		{"PUT", "/npm/-/user/org.couchdb.user:me", []int{400}},
	} {
		a := ask(t, c.method, w.URL, c.path)
		ok := false
		for _, status := range c.want {
			ok = ok || a.StatusCode == status
		}
		if !ok {
			t.Errorf("%s %.60s: %s, not one of %v", c.method, c.path, a.Status, c.want)
		}
		npmError(t, a)
		if a.StatusCode == http.StatusMethodNotAllowed && a.Header.Get("Allow") == "" {
			t.Errorf("%s %.60s: 405 without Allow", c.method, c.path)
		}
		if a.Header.Get("X-Evil") != "" {
			t.Errorf("%s %.60s: a header was smuggled", c.method, c.path)
		}
	}
	if asked := up.Requests(""); len(asked) != 0 {
		t.Errorf("the upstream was asked %s %s", asked[0].Method, asked[0].Path)
	}
	if a := ask(t, "GET", w.URL, "/npm/left"); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", a.Status)
	}
}

// TestNpmBadBytes: what is not even HTTP, or too much of it.
func TestNpmBadBytes(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	for name, c := range map[string]struct {
		request string
		want    []int
	}{
		"bad escape":       {"GET /npm/left%zz HTTP/1.1\r\nHost: weir\r\n\r\n", []int{400}},
		"control":          {"GET /npm/le\x01ft HTTP/1.1\r\nHost: weir\r\n\r\n", []int{400}},
		"no host":          {"GET /npm/left HTTP/1.1\r\n\r\n", []int{400}},
		"two hosts":        {"GET /npm/left HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", []int{400}},
		"evil host":        {"GET /npm/left HTTP/1.1\r\nHost: a\"/><b\r\n\r\n", []int{400}},
		"two lengths":      {"POST /npm/-/npm/v1/security/advisories/bulk HTTP/1.1\r\nHost: weir\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", []int{400}},
		"header flood":     {"GET /npm/left HTTP/1.1\r\nHost: weir\r\nX-Much: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", []int{400, 431}},
		"path of a MB":     {"GET /npm/" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: weir\r\n\r\n", []int{400, 414, 431}},
		"not HTTP":         {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
		"absolute":         {"GET http://elsewhere.example/npm/left HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", []int{200, 400, 404}},
		"unencoded dotdot": {"GET /npm/../../etc/passwd HTTP/1.1\r\nHost: weir\r\n\r\n", []int{301, 307, 308, 400, 404}},
	} {
		a := askRaw(t, w.Addr, c.request)
		ok := false
		for _, status := range c.want {
			ok = ok || a.StatusCode == status
		}
		if !ok {
			t.Errorf("%s: %s, not one of %v: %s", name, a.Status, c.want, clipped(string(a.body)))
		}
	}
	bomb := fmt.Sprintf("POST /npm/-/npm/v1/security/advisories/bulk HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", 1<<40)
	a := askRaw(t, w.Addr, bomb)
	if npmError(t, a); a.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of a TiB: %s", a.Status)
	}
	if asked := up.Requests("security"); len(asked) != 0 {
		t.Errorf("the upstream was posted %d bodies", len(asked))
	}
	if a := ask(t, "GET", w.URL, "/npm/left"); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", a.Status)
	}
}
