package npm_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
)

func zipped(s string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.Bytes()
}

func TestAuditIsPassedOn(t *testing.T) {
	up := lab(t)
	up.Advise(npmlab.Advisory{ID: 1, Name: "left", Affected: []string{"1.0.0"}, Range: "<1.1.0", Title: "leans", Severity: "high"})
	n := newNode(t, up.URL, nil)
	for _, c := range []struct {
		path string
		body []byte
		enc  string
	}{
		{"/npm/-/npm/v1/security/advisories/bulk", []byte(`{"left":["1.0.0"]}`), ""},
		{"/npm/-/npm/v1/security/advisories/bulk", zipped(`{"left":["1.0.0"]}`), "gzip"},
	} {
		header := []string{"Content-Type", "application/json", "Authorization", "Bearer the-client's"}
		if c.enc != "" {
			header = append(header, "Content-Encoding", c.enc)
		}
		a := n.do("POST", c.path, c.body, header...).is(t, 200)
		if a.json(t)["left"] == nil {
			t.Errorf("%s: %s", c.path, a.body)
		}
		q := up.Requests(strings.TrimPrefix(c.path, "/npm"))
		last := q[len(q)-1]
		if !bytes.Equal(last.Body, c.body) || last.Header.Get("Content-Encoding") != c.enc || last.Header.Get("Authorization") != "" {
			t.Errorf("passed on as %q, %v", last.Body, last.Header)
		}
	}
	n.do("POST", "/npm/-/npm/v1/security/audits/quick", []byte(`{"name":"x","requires":{},"dependencies":{}}`)).is(t, 200)
	n.get("/npm/-/npm/v1/security/advisories/bulk").is(t, 405)
	for status, want := range map[int]int{404: 404, 405: 404, 501: 404, 500: 503, 502: 503, 429: 429, 400: 400} {
		heal := up.Fail(npmlab.Fault{Match: "security", Status: status, Body: `{"error":"scripted"}`, Times: 1})
		n.do("POST", "/npm/-/npm/v1/security/advisories/bulk", []byte(`{}`)).is(t, want)
		heal()
	}
}

func TestAuditBodyIsBounded(t *testing.T) {
	got := make(chan int64, 1)
	n := newNode(t, script(t, func(w http.ResponseWriter, r *http.Request) {
		size, _ := io.Copy(io.Discard, r.Body)
		got <- size
	}), nil)
	req, _ := http.NewRequest("POST", n.url+"/npm/-/npm/v1/security/advisories/bulk", io.LimitReader(zeros{}, 40<<20))
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("40 MB: %s", resp.Status)
		}
	}
	if size := <-got; size > 33<<20 {
		t.Errorf("%d bytes were passed on", size)
	}
	req, _ = http.NewRequest("POST", n.url+"/npm/-/npm/v1/security/advisories/bulk", zeros{})
	req.ContentLength = 40 << 20
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("announced 40 MB: %s", resp.Status)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSearchKeysAttestations(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	a := n.get("/npm/-/v1/search?text=left&size=20&from=0").is(t, 200)
	if objects, _ := a.json(t)["objects"].([]any); len(objects) == 0 {
		t.Errorf("search: %s", a.body)
	}
	n.get("/npm/-/v1/search?size=20").is(t, 400)
	for range 3 {
		if a := n.get("/npm/-/npm/v1/keys").is(t, 200); at(a.json(t), "keys") == nil || a.Header.Get("ETag") == "" {
			t.Errorf("keys: %s", a.body)
		}
	}
	if q := up.Requests("/keys"); len(q) != 1 {
		t.Errorf("the keys were asked for %d times", len(q))
	}
	doc := n.get("/npm/@acme%2fright").is(t, 200).json(t)
	where, _ := at(doc, "versions", "1.0.0", "dist", "attestations", "url").(string)
	u, err := url.Parse(where)
	if err != nil || !strings.HasPrefix(where, n.url+"/npm/-/npm/v1/attestations/") {
		t.Fatalf("attestations at %q", where)
	}
	for range 2 {
		if a := n.get(u.EscapedPath()).is(t, 200); a.json(t)["attestations"] == nil {
			t.Errorf("attestations: %s", a.body)
		}
	}
	if q := up.Requests("/attestations/"); len(q) != 1 {
		t.Errorf("attestations were asked for %d times: %v", len(q), q)
	}
	n.get("/npm/-/npm/v1/attestations/left@1.0.0").is(t, 404)
}

// TestUnsupported: what there is not is said quickly, in npm's form.
func TestUnsupported(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	if a := n.get("/npm/-/ping").is(t, 200); string(a.body) != "{}" {
		t.Errorf("ping: %s", a.body)
	}
	n.get("/npm/").is(t, 200)
	n.get("/npm/-/whoami").is(t, 401)
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"PUT", "/npm/left", 405}, {"DELETE", "/npm/left/-rev/1-abc", 405}, {"PUT", "/npm/left/-rev/1-abc", 405},
		{"PUT", "/npm/-/user/org.couchdb.user:me", 404}, {"POST", "/npm/-/v1/login", 404}, {"GET", "/npm/-/npm/v1/tokens", 404},
		{"DELETE", "/npm/-/user/token/abc", 404}, {"PUT", "/npm/-/package/left/dist-tags/latest", 404}, {"POST", "/npm/-/package/left/dist-tags", 405},
		{"GET", "/npm/-/all", 404}, {"GET", "/npm/-/_view/starredByUser", 404}, {"GET", "/npm/-/npm/v1/hooks", 404},
		{"GET", "/npm/-/package/left/access", 404}, {"POST", "/npm/-/stage/package/left", 404}, {"OPTIONS", "/npm/left", 405},
	} {
		n.do(c.method, c.path, nil).is(t, c.want)
	}
	if q := up.Requests("/"); len(q) != 0 {
		t.Errorf("the upstream was asked: %v", q)
	}
}

func TestMalformedPaths(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	for _, path := range []string{
		"/npm/..%2f..%2fetc%2fpasswd", "/npm/%2e%2e/%2e%2e/etc", "/npm/left/%2e%2e", "/npm/left%00", "/npm/left%5c..", "/npm/%252e%252e",
		"/npm/@acme%252fright", "/npm/@acme%2f..", "/npm/@acme%2f%2e%2e%2fright", "/npm/@%2fright", "/npm/@acme%2f", "/npm/@acme", "/npm/left//1.0.0",
		"/npm/le%2fft", "/npm/.hidden", "/npm/" + strings.Repeat("a", 215), "/npm/left/-/..%2f..%2fx", "/npm/left/-/%2e%2e", "/npm/l%C3%A9ft",
		"/npm/left/" + strings.Repeat("1", 300), "/npm/" + strings.Repeat("a/", 2000), "/npm/-/npm/v1/attestations/left", "/npm/-/package/..%2f/dist-tags",
		"/npm/left%20pad", "/npm/left%3Fx", "/npm/le%0d%0aft",
	} {
		a := n.get(path)
		if a.StatusCode != 400 && !(a.StatusCode == 404 && strings.HasPrefix(path, "/npm/a/a")) {
			t.Errorf("%.80s: %s %.200s", path, a.Status, a.body)
		}
		a.is(t, a.StatusCode)
	}
	if q := up.Requests("/"); len(q) != 0 {
		t.Errorf("the upstream was asked: %v", q)
	}
}

func TestReservedAndLegacyNames(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	for _, name := range []string{"-", "favicon.ico", "npm", "con", "JSONStream", "a.b_c~d", "node_modules", "security", "@npm/-", "v1", "whoami!"} {
		up.Publish(npmlab.Version{Name: name, Version: "1.0.0"})
		path := "/npm/" + strings.Replace(name, "/", "%2f", 1)
		doc := n.get(path).is(t, 200).json(t)
		if doc["name"] != name {
			t.Errorf("%s: %v", path, doc["name"])
		}
		if strings.HasSuffix(name, "-") {
			continue // the scripted registry has no such tarball
		}
		tarball, _ := at(doc, "versions", "1.0.0", "dist", "tarball").(string)
		n.get(strings.TrimPrefix(tarball, n.url)).is(t, 200)
	}
}

func TestBases(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	for _, host := range []string{"packages.example", "Packages.Example:8080", "[::1]:5000"} {
		a := n.get("/npm/left", "Host", host).is(t, 200)
		if got, want := at(a.json(t), "versions", "1.0.0", "dist", "tarball"), "http://"+strings.ToLower(host)+"/npm/left/-/left-1.0.0.tgz"; got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	for _, host := range []string{"a/b", "a@b", "a?b", "a b", "[::1", "::1", "a:b", "a:123456", "x_\"y", "%61"} {
		if a, err := n.try("GET", "/npm/left", nil, "Host", host); err == nil && a.StatusCode != 400 {
			t.Errorf("Host %q: %s", host, a.Status)
		}
	}
	for i := range 70 {
		n.get("/npm/left", "Host", fmt.Sprintf("host-%d.example", i)).is(t, 200)
	}
	before := n.bound()
	for i := range 5 {
		host := fmt.Sprintf("late-%d.example", i)
		a := n.get("/npm/left", "Host", host, "Accept", corgiAccept).is(t, 200)
		if got := at(a.json(t), "versions", "1.0.0", "dist", "tarball"); got != "http://"+host+"/npm/left/-/left-1.0.0.tgz" {
			t.Errorf("%s: %v", host, got)
		}
		n.get("/npm/left", "Host", host, "Accept", corgiAccept, "If-None-Match", a.Header.Get("ETag")).is(t, 304)
		n.get("/npm/left", "Host", host, "If-None-Match", a.Header.Get("ETag")).is(t, 200)
		n.do("HEAD", "/npm/left", nil, "Host", host).is(t, 200)
	}
	if after := n.bound(); after != before || after > 80 {
		t.Errorf("%d names bound, then %d", before, after)
	}
	public := newNode(t, up.URL, func(_ *npm.Registry, c *npm.Config) { c.PublicURL = "https://packages.example/base/" })
	a := public.get("/npm/left", "Host", "whatever.example").is(t, 200)
	if got := at(a.json(t), "versions", "1.0.0", "dist", "tarball"); got != "https://packages.example/base/npm/left/-/left-1.0.0.tgz" {
		t.Errorf("with a public URL: %v", got)
	}
}
