package npm_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
)

func TestOneQuestion(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	spellings := []string{"/npm/@acme/right", "/npm/@acme%2fright", "/npm/@acme%2Fright", "/npm/%40acme%2fright"}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if a, err := n.try("GET", spellings[i%len(spellings)], nil, "Accept-Encoding", "gzip"); err != nil || a.StatusCode != 200 {
				t.Errorf("%v %v", a.Response, err)
			}
		})
	}
	wg.Wait()
	n.get("/npm/@acme%2fright").is(t, 200)
	if q := up.Requests("right"); len(q) != 1 || q[0].Path != "/@acme%2fright" {
		t.Errorf("the upstream was asked %v", q)
	}
}

func TestRepresentations(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	type form struct{ accept, encoding string }
	seen := map[string]form{}
	for _, accept := range []string{"application/json", corgiAccept} {
		for _, encoding := range []string{"gzip,deflate", "identity"} {
			a := n.get("/npm/left", "Accept", accept, "Accept-Encoding", encoding).is(t, 200)
			if got := a.Header.Get("Content-Encoding"); (got == "gzip") != (encoding != "identity") {
				t.Errorf("Content-Encoding %q for %q", got, encoding)
			}
			want := "application/json"
			if accept == corgiAccept {
				want = "application/vnd.npm.install-v1+json"
			}
			if a.Header.Get("Content-Type") != want {
				t.Errorf("Content-Type %q for %q", a.Header.Get("Content-Type"), accept)
			}
			if _, ok := a.json(t)["_id"]; ok != (accept != corgiAccept) {
				t.Errorf("%q: the wrong form: %s", accept, a.body)
			}
			if got := at(a.json(t), "versions", "1.1.0", "dist", "tarball"); got != n.url+"/npm/left/-/left-1.1.0.tgz" {
				t.Errorf("tarball %q", got)
			}
			tag := a.Header.Get("ETag")
			if other, ok := seen[tag]; ok {
				t.Errorf("%v and %v have the ETag %s", other, form{accept, encoding}, tag)
			}
			seen[tag] = form{accept, encoding}
			head := n.do("HEAD", "/npm/left", nil, "Accept", accept, "Accept-Encoding", encoding).is(t, 200)
			for _, k := range []string{"Content-Type", "Content-Encoding", "Content-Length", "ETag", "Vary", "Cache-Control"} {
				if head.Header.Get(k) != a.Header.Get(k) {
					t.Errorf("%s: HEAD %q, GET %q", k, head.Header.Get(k), a.Header.Get(k))
				}
			}
		}
	}
	// npm keeps entity tags by address alone and sends one it learnt from
	// another form.
	for tag, owner := range seen {
		for _, f := range seen {
			want := 200
			if f == owner {
				want = 304
			}
			a := n.get("/npm/left", "Accept", f.accept, "Accept-Encoding", f.encoding, "If-None-Match", tag).is(t, want)
			if a.Header.Get("Vary") != "Accept, Accept-Encoding" || a.Header.Get("Cache-Control") != "public, max-age=60" {
				t.Errorf("%d: Vary %q, Cache-Control %q", want, a.Header.Get("Vary"), a.Header.Get("Cache-Control"))
			}
			if want == 304 && (len(a.raw) > 0 || a.Header.Get("ETag") != tag) {
				t.Errorf("304 with %d bytes and ETag %s", len(a.raw), a.Header.Get("ETag"))
			}
		}
	}
	if q := up.Requests("/left"); len(q) != 1 {
		t.Errorf("the upstream was asked %d times", len(q))
	}
}

func TestRevalidation(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, func(r *npm.Registry, _ *npm.Config) { r.Fresh = 20 * time.Millisecond })
	tag := n.get("/npm/left").is(t, 200).Header.Get("ETag")
	eventually(t, "a 304", func() error {
		n.get("/npm/left").is(t, 200)
		for _, q := range up.Requests("/left") {
			if q.Status == http.StatusNotModified {
				return nil
			}
		}
		return errNotYet
	})
	if again := n.get("/npm/left").is(t, 200).Header.Get("ETag"); again != tag {
		t.Errorf("the ETag went from %s to %s", tag, again)
	}
	for _, q := range up.Requests("/left")[1:] {
		if q.Status != http.StatusNotModified {
			t.Errorf("%s %s: %d", q.Method, q.Path, q.Status)
		}
	}
}

// TestPoorUpstream is one that gives no validator, no compression and no
// abbreviated form.
func TestPoorUpstream(t *testing.T) {
	asked := make(chan struct{}, 100)
	doc := `{"name":"left","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"left","version":"1.0.0","dist":{"shasum":"` +
		strings.Repeat("ab", 20) + `","tarball":"http://elsewhere.example/left/-/left-1.0.0.tgz"}}},"time":{"1.0.0":"2020-01-02T03:04:05.678Z"}}`
	n := newNode(t, script(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" {
			t.Errorf("asked with If-None-Match %s", r.Header.Get("If-None-Match"))
		}
		asked <- struct{}{}
		w.Write([]byte(doc))
	}), func(r *npm.Registry, _ *npm.Config) { r.Fresh = time.Millisecond })
	tag := ""
	for len(asked) < 3 {
		a := n.get("/npm/left", "Accept", corgiAccept, "Accept-Encoding", "gzip").is(t, 200)
		if tag != "" && a.Header.Get("ETag") != tag {
			t.Fatalf("the ETag went from %s to %s with nothing new", tag, a.Header.Get("ETag"))
		}
		tag = a.Header.Get("ETag")
		if a.Header.Get("Content-Encoding") != "gzip" || a.json(t)["modified"] != "2020-01-02T03:04:05.678Z" {
			t.Fatalf("%v %s", a.Header, a.body)
		}
	}
}

func TestTarballs(t *testing.T) {
	up := lab(t)
	big := bytes.Repeat([]byte("wide "), 20000)
	wide := up.Publish(npmlab.Version{Name: "@acme/wide", Version: "1.0.0", Files: map[string]string{"data": string(big)}})
	old := up.Publish(npmlab.Version{Name: "old", Version: "0.0.1", Old: true})
	n := newNode(t, up.URL, nil)
	for path, want := range map[string][]byte{
		"/npm/@acme/wide/-/wide-1.0.0.tgz":         wide,
		"/npm/@acme%2fwide/-/wide-1.0.0.tgz":       wide,
		"/npm/@acme/wide/-/@acme/wide-1.0.0.tgz":   wide,
		"/npm/@acme/wide/-/@acme%2fwide-1.0.0.tgz": wide,
		"/npm/old/-/old-0.0.1.tgz":                 old,
	} {
		a := n.get(path, "Accept-Encoding", "gzip, br").is(t, 200)
		if !bytes.Equal(a.raw, want) || a.Header.Get("Content-Encoding") != "" || a.Header.Get("Content-Length") != fmt.Sprint(len(want)) {
			t.Errorf("%s: %d bytes of %d, %v", path, len(a.raw), len(want), a.Header)
		}
		if a.Header.Get("Cache-Control") != "public, immutable, max-age=31557600" || a.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %v", path, a.Header)
		}
		tag := a.Header.Get("ETag")
		n.get(path, "If-None-Match", tag).is(t, 304)
		part := n.get(path, "Range", "bytes=10-19", "If-Range", tag).is(t, 206)
		if !bytes.Equal(part.raw, want[10:20]) {
			t.Errorf("%s: %q for a range", path, part.raw)
		}
		n.get(path, "Range", "bytes=99999999-").is(t, 416)
		if h := n.do("HEAD", path, nil).is(t, 200); h.Header.Get("Content-Length") != fmt.Sprint(len(want)) {
			t.Errorf("%s: HEAD %v", path, h.Header)
		}
	}
	if q := up.Requests("wide-1.0.0.tgz"); len(q) != 1 {
		t.Errorf("the upstream was asked for one tarball %d times", len(q))
	}
	n.do("HEAD", "/npm/left/-/left-1.0.0.tgz", nil).is(t, 200)
	for _, q := range up.Requests("left-1.0.0.tgz") {
		if q.Method != "HEAD" {
			t.Errorf("a HEAD of a cold tarball is a %s upstream", q.Method)
		}
	}
	n.get("/npm/left/-/left-9.9.9.tgz").is(t, 404)
	n.get("/npm/none/-/none-1.0.0.tgz").is(t, 404)
}

func TestVersions(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	for ref, want := range map[string]string{"1.0.0": "1.0.0", "latest": "1.1.0", "next": "2.0.0-rc.1"} {
		a := n.get("/npm/left/"+ref).is(t, 200)
		m := a.json(t)
		if m["version"] != want || at(m, "dist", "tarball") != n.url+"/npm/left/-/left-"+want+".tgz" || at(m, "dist", "signatures") == nil {
			t.Errorf("%s: %s", ref, a.body)
		}
	}
	n.get("/npm/@acme%2fright/1.0.0").is(t, 200)
	for path, want := range map[string]string{"/npm/left/%5E3.0.0": `"version not found: ^3.0.0"`, "/npm/left/7.7.7": `"version not found: 7.7.7"`} {
		if a := n.get(path).is(t, 404); string(a.body) != want {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	if a := n.get("/npm/-/package/left/dist-tags").is(t, 200); string(a.body) != `{"latest":"1.1.0","next":"2.0.0-rc.1"}` && string(a.body) != `{"next":"2.0.0-rc.1","latest":"1.1.0"}` {
		t.Errorf("dist-tags: %s", a.body)
	}
	n.get("/npm/-/package/@acme%2fright/dist-tags").is(t, 200)
	n.get("/npm/-/package/none/dist-tags").is(t, 404)
	before := n.bound()
	for i := range 5 {
		n.get(fmt.Sprintf("/npm/left/3.0.%d", i)).is(t, 404)
		n.get(fmt.Sprintf("/npm/left/-/left-3.0.%d.tgz", i)).is(t, 404)
	}
	if after := n.bound(); after != before {
		t.Errorf("%d names were bound by asking for what is not there", after-before)
	}
	// One recheck for all of them: nobody can make this node hammer another.
	if q := up.Requests("/left"); len(q) > 3 {
		t.Errorf("the upstream was asked %d times", len(q))
	}
}

func TestPublishTakedownDeprecation(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil) // fresh for an hour
	n.get("/npm/left").is(t, 200)
	fresh := up.Publish(npmlab.Version{Name: "left", Version: "1.2.0"})
	if a := n.get("/npm/left/-/left-1.2.0.tgz").is(t, 200); !bytes.Equal(a.raw, fresh) {
		t.Errorf("%d bytes of %d", len(a.raw), len(fresh))
	}
	if a := n.get("/npm/left").is(t, 200); at(a.json(t), "dist-tags", "latest") != "1.2.0" {
		t.Errorf("latest is not the version that was seen")
	}
	up.TakeDown("left", "1.2.0")
	up.Deprecate("left", "1.0.0", "too old")
	if a := n.get("/npm/left?write=true", "Accept", corgiAccept).is(t, 200); at(a.json(t), "versions", "1.2.0") != nil ||
		at(a.json(t), "versions", "1.0.0", "deprecated") != "too old" || a.json(t)["_id"] == nil {
		t.Errorf("write=true: %s", a.body)
	}
	n.get("/npm/left/-/left-1.2.0.tgz").is(t, 404)
	if a := n.get("/npm/left", "Accept", corgiAccept).is(t, 200); at(a.json(t), "versions", "1.0.0", "deprecated") != "too old" {
		t.Errorf("not deprecated: %s", a.body)
	}
}

func TestFailuresAreTold(t *testing.T) {
	up := lab(t)
	for name, c := range map[string]struct {
		fault npmlab.Fault
		want  int
	}{
		"500":    {npmlab.Fault{Status: 500, Body: "oops"}, 503},
		"429":    {npmlab.Fault{Status: 429, Header: map[string]string{"Retry-After": "17"}}, 429},
		"401":    {npmlab.Fault{Status: 401}, 401},
		"403":    {npmlab.Fault{Status: 403}, 403},
		"404":    {npmlab.Fault{Status: 404}, 404},
		"410":    {npmlab.Fault{Status: 410}, 404},
		"portal": {npmlab.Fault{Status: 200, Body: "<html>please log in</html>"}, 503},
		"login":  {npmlab.Fault{Status: 200, Body: `{"error":"please log in"}`}, 503},
		"half":   {npmlab.Fault{Status: 200, Body: `{"name":"left","versions":{`}, 503},
		"array":  {npmlab.Fault{Status: 200, Body: `[]`}, 503},
		"hang":   {npmlab.Fault{Hold: make(chan struct{})}, 503},
	} {
		t.Run(name, func(t *testing.T) {
			c.fault.Match = "left"
			heal := up.Fail(c.fault)
			defer heal()
			for _, path := range []string{"/npm/left", "/npm/left/1.0.0", "/npm/left/-/left-1.0.0.tgz"} {
				n := newNode(t, up.URL, func(r *npm.Registry, _ *npm.Config) { r.Negative = time.Millisecond })
				a := n.get(path).is(t, c.want)
				if name == "429" && a.Header.Get("Retry-After") != "17" {
					t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
				}
				if name == "401" && a.Header.Get("WWW-Authenticate") == "" {
					t.Error("401 without WWW-Authenticate")
				}
				if strings.Contains(string(a.body), "127.0.0.1") {
					t.Errorf("an address in %s", a.body)
				}
			}
		})
	}
}

func TestStaleIsServed(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, func(r *npm.Registry, _ *npm.Config) { r.Fresh = 10 * time.Millisecond })
	n.get("/npm/left").is(t, 200)
	n.get("/npm/left/-/left-1.0.0.tgz").is(t, 200)
	n.get("/npm/-/npm/v1/keys").is(t, 200)
	heal := up.Fail(npmlab.Fault{Match: "/", Status: 500})
	defer heal()
	eventually(t, "a warning", func() error {
		a := n.get("/npm/left").is(t, 200)
		if !strings.HasPrefix(a.Header.Get("Warning"), "299 ") {
			return errNotYet
		}
		if cc := a.Header.Get("Cache-Control"); cc != "public, no-cache" {
			t.Errorf("Cache-Control %q", cc)
		}
		return nil
	})
	n.get("/npm/left/-/left-1.0.0.tgz").is(t, 200)
	n.get("/npm/left/latest").is(t, 200)
	n.get("/npm/-/npm/v1/keys").is(t, 200)
	// Whether these exist is not known: that is not 404.
	n.get("/npm/left/-/left-1.9.0.tgz").is(t, 503)
	n.get("/npm/left/1.9.0").is(t, 503)
	n.get("/npm/left?write=true").is(t, 503)
	n.get("/npm/other").is(t, 503)
}

func TestGuard(t *testing.T) {
	up := lab(t)
	up.Publish(npmlab.Version{Name: "secret", Version: "1.0.0"})
	n := newNode(t, up.URL, func(_ *npm.Registry, c *npm.Config) {
		c.Service = &registry.Service{Guard: everyone{deny: "secret"}}
	})
	for _, path := range []string{"/npm/secret", "/npm/secret/1.0.0", "/npm/secret/-/secret-1.0.0.tgz", "/npm/-/package/secret/dist-tags",
		"/npm/-/npm/v1/attestations/secret@1.0.0"} {
		n.get(path).is(t, 403)
	}
	if q := up.Requests("secret"); len(q) != 0 {
		t.Errorf("%d questions for one who is not entitled", len(q))
	}
}

// TestEvicted: what a full store has lost is fetched or made again, and never
// looks like a package that does not exist.
func TestEvicted(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	left := registry.Name{Space: "npm", Repo: "left"}
	n.get("/npm/left", "Accept-Encoding", "gzip").is(t, 200)
	n.get("/npm/left/1.0.0").is(t, 200)
	n.evict(left)
	n.get("/npm/left/1.0.0").is(t, 200) // out of the document
	n.evict(left)
	n.get("/npm/left", "Accept", corgiAccept).is(t, 200) // a view that was not made before
	views := 0
	for name, err := range n.names.List(context.Background(), "npm", "left", "") {
		if err == nil && strings.HasPrefix(name.Ref, "view/") {
			views++
			n.evict(name)
		}
	}
	if views != 3 {
		t.Errorf("%d views", views)
	}
	n.get("/npm/left", "Accept", corgiAccept).is(t, 200)
	n.get("/npm/left/-/left-1.0.0.tgz").is(t, 200)
	if q := up.Requests("/left"); len(q) != 4 {
		t.Errorf("the upstream was asked %d times", len(q))
	}
	// And with the upstream gone.
	n.evict(left)
	heal := up.Fail(npmlab.Fault{Match: "/left", Status: 500})
	n.get("/npm/left", "Accept", corgiAccept).is(t, 200)
	n.get("/npm/left/1.0.0").is(t, 503)
	n.get("/npm/left").is(t, 503)
	heal()
}
