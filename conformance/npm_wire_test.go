package conformance_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
)

// corgiAccept is what npm sends when the abbreviated packument will do.
const corgiAccept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"

// publishLeft publishes a package of two versions and one that depends on it.
func publishLeft(up *npmlab.Registry) (tarball []byte) {
	up.Publish(npmlab.Version{Name: "left", Version: "1.0.0", Manifest: map[string]any{"description": "The left one."}})
	tarball = up.Publish(npmlab.Version{Name: "left", Version: "1.1.0", Manifest: map[string]any{"description": "The left one."}})
	up.Publish(npmlab.Version{Name: "left", Version: "2.0.0-rc.1", Tag: "next"})
	up.Publish(npmlab.Version{Name: "@acme/right", Version: "1.0.0", Manifest: map[string]any{
		"description": "The right one.", "dependencies": map[string]string{"left": "^1.0.0"},
		"scripts": map[string]any{"test": "true"}}})
	return tarball
}

// checkRepresentations checks what HTTP wants of two representations of one
// packument, both zipped.
func checkRepresentations(t *testing.T, full, corgi answer) {
	t.Helper()
	if ct := full.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("full: Content-Type %q", ct)
	}
	if ct := corgi.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/vnd.npm.install-v1+json") {
		t.Errorf("abbreviated: Content-Type %q", ct)
	}
	for _, a := range []answer{full, corgi} {
		if a.StatusCode != http.StatusOK || a.err != nil {
			t.Fatalf("%s, %v: %s", a.Status, a.err, clipped(string(a.body)))
		}
		if a.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("Content-Encoding %q", a.Header.Get("Content-Encoding"))
		}
		if a.Header.Get("Etag") == "" || strings.HasPrefix(a.Header.Get("Etag"), "W/") {
			t.Errorf("ETag %q", a.Header.Get("Etag"))
		}
		if !strings.Contains(a.Header.Get("Cache-Control"), "max-age=") {
			t.Errorf("Cache-Control %q", a.Header.Get("Cache-Control"))
		}
		if got := a.Header.Get("Content-Length"); got != strconv.Itoa(len(a.raw)) {
			t.Errorf("Content-Length %q of %d bytes", got, len(a.raw))
		}
		if !strings.HasPrefix(a.Header.Get("Cache-Status"), "weir; ") {
			t.Errorf("Cache-Status %q", a.Header.Get("Cache-Status"))
		}
		checkVary(t, a)
	}
	if full.Header.Get("Etag") == corgi.Header.Get("Etag") {
		t.Errorf("both have the ETag %s", full.Header.Get("Etag"))
	}
}

func checkVary(t *testing.T, a answer) {
	t.Helper()
	vary := strings.ToLower(strings.Join(a.Header.Values("Vary"), ","))
	for _, want := range []string{"accept", "accept-encoding"} {
		found := false
		for _, v := range strings.Split(vary, ",") {
			found = found || strings.TrimSpace(v) == want
		}
		if !found {
			t.Errorf("%s: Vary %q lacks %s", a.Status, vary, want)
		}
	}
}

// TestNpmValidators: every representation has an ETag of its own, which is
// good for a 304 of that representation and of no other.
func TestNpmValidators(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	for _, path := range []string{"/npm/left", "/npm/@acme%2fright", "/npm/@acme%2Fright", "/npm/@acme/right", "/npm/%40acme%2fright"} {
		tags := map[string]string{}
		for _, accept := range []string{"application/json", corgiAccept} {
			for _, encoding := range []string{"gzip", "identity"} {
				name := accept + " " + encoding
				get := ask(t, "GET", w.URL, path, "Accept", accept, "Accept-Encoding", encoding)
				if get.StatusCode != http.StatusOK {
					t.Fatalf("%s: %s: %s", path, get.Status, clipped(string(get.body)))
				}
				etag := get.Header.Get("Etag")
				if other, ok := tags[etag]; ok {
					t.Errorf("%s: %q and %q have the ETag %s", path, other, name, etag)
				}
				tags[etag] = name
				head := ask(t, "HEAD", w.URL, path, "Accept", accept, "Accept-Encoding", encoding)
				for _, h := range []string{"Content-Type", "Content-Length", "Content-Encoding", "Etag", "Vary", "Cache-Control"} {
					if head.Header.Get(h) != get.Header.Get(h) {
						t.Errorf("%s: %s is %q for HEAD, %q for GET", path, h, head.Header.Get(h), get.Header.Get(h))
					}
				}
				if len(head.raw) != 0 {
					t.Errorf("%s: HEAD has a body", path)
				}
				same := ask(t, "GET", w.URL, path, "Accept", accept, "Accept-Encoding", encoding, "If-None-Match", `"x", `+etag)
				if same.StatusCode != http.StatusNotModified || len(same.raw) != 0 || same.Header.Get("Etag") != etag {
					t.Errorf("%s: %q: %s with ETag %s for If-None-Match %s", path, name, same.Status, same.Header.Get("Etag"), etag)
				}
				checkVary(t, same)
			}
		}
		for etag, owner := range tags {
			for _, accept := range []string{"application/json", corgiAccept} {
				a := ask(t, "GET", w.URL, path, "Accept", accept, "Accept-Encoding", "gzip", "If-None-Match", etag)
				want := http.StatusOK
				if owner == accept+" gzip" {
					want = http.StatusNotModified
				}
				if a.StatusCode != want {
					t.Errorf("%s: %s to %q zipped with the ETag of %q", path, a.Status, accept, owner)
				}
			}
		}
	}
	if n := len(up.Requests("/left")); n != 1 {
		t.Errorf("the upstream was asked for left %d times", n)
	}
	if n := len(up.Requests("right")); n != 1 {
		t.Errorf("the upstream was asked for right %d times, however it was spelt", n)
	}
}

// TestNpmAccept: the quality values decide.
func TestNpmAccept(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	for accept, corgi := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		"application/json":                    false,
		corgiAccept:                           true,
		"application/vnd.npm.install-v1+json": true,
		"application/json; q=1.0, application/vnd.npm.install-v1+json; q=0.5":     false,
		"application/vnd.npm.install-v1+json;q=0, */*":                            false,
		"text/html, application/vnd.npm.install-v1+json;q=0.9, */*;q=0.1":         true,
		"application/vnd.npm.install-v1+json;Q=0.3, application/json ; q=0.20,,":  true,
		"application/vnd.npm.install-v1+json; q=nonsense, application/json; q=.9": false,
	} {
		a := ask(t, "GET", w.URL, "/npm/left", "Accept", accept)
		if got := strings.HasPrefix(a.Header.Get("Content-Type"), "application/vnd.npm.install-v1+json"); a.StatusCode != 200 || got != corgi {
			t.Errorf("Accept %q: %s, %s", accept, a.Status, a.Header.Get("Content-Type"))
		}
	}
}

// TestNpmRevalidation: what is stale is asked for again by its ETag, an
// unchanged packument costs no body, and a real npm gets its 304 from weir.
func TestNpmRevalidation(t *testing.T) {
	w, up := startNpm(t)
	publishLeft(up)
	first := ask(t, "GET", w.URL, "/npm/left")
	lab.Eventually(t, 20*time.Second, "a 304 of the upstream", func() error {
		ask(t, "GET", w.URL, "/npm/left")
		for _, q := range up.Requests("/left") {
			if q.Status == http.StatusNotModified {
				return nil
			}
		}
		return fmt.Errorf("%d questions, none with a 304", len(up.Requests("/left")))
	})
	whole := 0
	for _, q := range up.Requests("/left") {
		if q.Status == http.StatusOK {
			whole++
		}
	}
	if whole != 1 {
		t.Errorf("the packument was fetched whole %d times", whole)
	}
	if again := ask(t, "GET", w.URL, "/npm/left"); again.Header.Get("Etag") != first.Header.Get("Etag") {
		t.Errorf("the ETag changed from %s to %s with nothing new", first.Header.Get("Etag"), again.Header.Get("Etag"))
	}
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "view", "left", "version", "--prefer-online")
	if r := h.run("npm", "view", "left", "version", "--prefer-online", "--loglevel=http"); !strings.Contains(r.Stderr, "cache revalidated") {
		t.Errorf("npm's second view got no 304: %s", r.Stderr)
	}
}

// TestNpmOneQuestion: however many ask at once for what is not here, the
// upstream is asked once.
func TestNpmOneQuestion(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	tarball := publishLeft(up)
	const readers = 20
	for path, match := range map[string]string{"/npm/@acme%2fright": "right", "/npm/left/-/left-1.1.0.tgz": "left-1.1.0.tgz"} {
		hold := make(chan struct{})
		heal := up.Fail(npmlab.Fault{Match: match, Hold: hold})
		var wg sync.WaitGroup
		answers := make([]answer, readers)
		errs := make([]error, readers)
		for i := range readers {
			wg.Go(func() { answers[i], errs[i] = tryAsk("GET", w.URL, path, nil) })
		}
		lab.Eventually(t, 20*time.Second, "the upstream to be asked", func() error {
			if len(up.Requests(match)) == 0 {
				return fmt.Errorf("no question for %s", match)
			}
			return nil
		})
		heal()
		close(hold)
		wg.Wait()
		for i, a := range answers {
			if errs[i] != nil || a.StatusCode != http.StatusOK || a.err != nil || !bytes.Equal(a.raw, answers[0].raw) {
				t.Fatalf("%s, reader %d: %v %v", path, i, errs[i], a.Response)
			}
		}
		if strings.HasSuffix(path, ".tgz") && !bytes.Equal(answers[0].raw, tarball) {
			t.Errorf("%s: other bytes than were published", path)
		}
		if n := len(up.Requests(match)); n != 1 {
			t.Errorf("%s: the upstream was asked %d times", path, n)
		}
	}
}

// TestNpmTarball: tarballs have validators, lengths and ranges, at every path
// that clients use for them.
func TestNpmTarball(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	scoped := up.Publish(npmlab.Version{Name: "@acme/wide", Version: "1.0.0", Files: map[string]string{"data": strings.Repeat("wide ", 10000)}})
	old := up.Publish(npmlab.Version{Name: "old", Version: "0.0.1", Old: true})
	for path, want := range map[string][]byte{
		"/npm/@acme/wide/-/wide-1.0.0.tgz":       scoped,
		"/npm/@acme%2fwide/-/wide-1.0.0.tgz":     scoped,
		"/npm/@acme/wide/-/@acme/wide-1.0.0.tgz": scoped,
		"/npm/old/-/old-0.0.1.tgz":               old,
	} {
		a := ask(t, "GET", w.URL, path, "Accept-Encoding", "gzip")
		if a.StatusCode != 200 || !bytes.Equal(a.raw, want) {
			t.Fatalf("%s: %s, %d bytes of %d", path, a.Status, len(a.raw), len(want))
		}
		if a.Header.Get("Content-Encoding") != "" || a.Header.Get("Content-Length") != strconv.Itoa(len(want)) {
			t.Errorf("%s: Content-Encoding %q, Content-Length %q", path, a.Header.Get("Content-Encoding"), a.Header.Get("Content-Length"))
		}
		if !strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: Cache-Control %q", path, a.Header.Get("Cache-Control"))
		}
		etag := a.Header.Get("Etag")
		if same := ask(t, "GET", w.URL, path, "If-None-Match", etag); etag == "" || same.StatusCode != http.StatusNotModified {
			t.Errorf("%s: %s for ETag %q", path, same.Status, etag)
		}
		if part := ask(t, "GET", w.URL, path, "Range", "bytes=10-19", "If-Range", etag); part.StatusCode != http.StatusPartialContent || !bytes.Equal(part.raw, want[10:20]) {
			t.Errorf("%s: %s, %d bytes for a range of 10", path, part.Status, len(part.raw))
		}
		if head := ask(t, "HEAD", w.URL, path); head.StatusCode != 200 || head.Header.Get("Content-Length") != strconv.Itoa(len(want)) {
			t.Errorf("%s: HEAD: %s, Content-Length %q", path, head.Status, head.Header.Get("Content-Length"))
		}
	}
	for _, path := range []string{"/npm/left/-/left-9.9.9.tgz", "/npm/left/-/right-1.0.0.tgz", "/npm/none/-/none-1.0.0.tgz"} {
		a := ask(t, "GET", w.URL, path)
		if npmError(t, a); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
}

// TestNpmDamage: a tarball that is not what its packument says, or only the
// half of it, is never served as if it were whole, and is right the next time.
func TestNpmDamage(t *testing.T) {
	for name, fault := range map[string]npmlab.Fault{"garbled": {Garble: true}, "cut": {Cut: true}} {
		t.Run(name, func(t *testing.T) {
			w, up := startNpm(t, "fresh: 1h")
			data := strings.Repeat("0123456789abcdef", 64<<10)
			want := up.Publish(npmlab.Version{Name: "big", Version: "1.0.0", Files: map[string]string{"data": data}})
			fault.Match = ".tgz"
			heal := up.Fail(fault)
			a, err := tryAsk("GET", w.URL, "/npm/big/-/big-1.0.0.tgz", nil)
			if err == nil && a.StatusCode == http.StatusOK && a.err == nil {
				t.Fatalf("%d bytes of %d were served as whole", len(a.raw), len(want))
			}
			if err == nil && a.StatusCode == http.StatusNotFound {
				t.Errorf("a damaged answer became %s", a.Status)
			}
			heal()
			lab.Eventually(t, 20*time.Second, "the tarball as published", func() error {
				a, err := tryAsk("GET", w.URL, "/npm/big/-/big-1.0.0.tgz", nil)
				if err == nil {
					err = a.err
				}
				if err != nil {
					return err
				}
				if a.StatusCode != http.StatusOK {
					return fmt.Errorf("%s: %s", a.Status, a.body)
				}
				if !bytes.Equal(a.raw, want) {
					t.Fatalf("%d bytes of %d, and not those", len(a.raw), len(want))
				}
				return nil
			})
		})
	}
}
