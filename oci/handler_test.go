package oci

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
)

var zeroTime time.Time

// pass lets time go by on the test's clock.
func pass(d time.Duration) { <-time.After(d) }

// pull does what a client does for an image, and gives the manifest's bytes.
func (w *weir) pull(repo, tag string) string {
	w.t.Helper()
	head := w.do("HEAD", "/v2/"+repo+"/manifests/"+tag)
	w.check(head, "HEAD "+tag, 200, "")
	d := head.Header().Get("Docker-Content-Digest")
	rec := w.get("/v2/"+repo+"/manifests/"+d, 200, "")
	body := rec.Body.String()
	if digest.FromString(body) != digest.Digest(d) {
		w.t.Errorf("%s: not the bytes of %s", repo, d)
	}
	var m v1.Manifest
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		w.t.Fatal(err)
	}
	for _, l := range append(m.Layers, m.Config) {
		got := w.get("/v2/"+repo+"/blobs/"+string(l.Digest), 200, "")
		if digest.FromBytes(got.Body.Bytes()) != l.Digest {
			w.t.Errorf("%s: not the bytes of %s", repo, l.Digest)
		}
	}
	return body
}

// TestRequestsPerPull counts: a cold pull asks for each thing once, one within
// the fresh time for nothing, one after it whether the tag has changed.
func TestRequestsPerPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		m, _ := up.image(t, "library/alpine", "a", "3")
		w.pull("alpine", "3")
		p := "/v2/library/alpine/"
		wantAsked(t, up, "cold", "GET "+p+"manifests/3", "GET "+p+"blobs/"+string(m.Config.Digest),
			"GET "+p+"blobs/"+string(m.Layers[0].Digest), "GET "+p+"blobs/"+string(m.Layers[1].Digest))
		w.pull("library/alpine", "3")
		w.pull("docker.io/alpine", "3")
		wantAsked(t, up, "warm")
		pass(61 * time.Second)
		w.pull("alpine", "3")
		synctest.Wait()
		wantAsked(t, up, "after the fresh time", "HEAD "+p+"manifests/3")
		pass(time.Hour)
		w.pull("alpine", "3")
		wantAsked(t, up, "long after", "HEAD "+p+"manifests/3")
	})
}

func TestManifest(t *testing.T) {
	w, up := one(t)
	m, d := up.image(t, "library/alpine", "a", "3")
	_ = m
	body := up.docs["library/alpine/manifests/3"].body
	for _, ref := range []string{"3", string(d), "3"} {
		for _, method := range []string{"HEAD", "GET"} {
			// Accept's order, number and contents do not matter.
			for _, acc := range [][]string{nil, {"Accept", "application/json"}, {"Accept", "*/*", "Accept", v1.MediaTypeImageIndex},
				{"Accept", "application/vnd.docker.distribution.manifest.v1+prettyjws"}} {
				rec := w.do(method, "/v2/alpine/manifests/"+ref, acc...)
				w.check(rec, method+" "+ref, 200, "")
				want := body
				if method == "HEAD" {
					want = ""
				}
				h := rec.Header()
				if rec.Body.String() != want || h.Get("Content-Type") != v1.MediaTypeImageManifest || h.Get("Docker-Content-Digest") != string(d) ||
					h.Get("ETag") != `"`+string(d)+`"` || h.Get("Content-Length") != strconv.Itoa(len(body)) {
					t.Errorf("%s %s: %q %v", method, ref, rec.Body, h)
				}
				if h.Get("Cache-Status") == "" || h.Get("X-Request-Id") == "" {
					t.Errorf("%s %s: %v", method, ref, h)
				}
			}
		}
	}
	for _, r := range up.seen {
		if len(r.Values("Accept")) != 1 || r.Get("Accept") != accept[0] || r.Get("Accept-Encoding") != "identity" {
			t.Errorf("upstream was asked with %v", r)
		}
	}
	wantAsked(t, up, "all of it", "GET /v2/library/alpine/manifests/3")
	if rec := w.do("GET", "/v2/alpine/manifests/3", "If-None-Match", `"`+string(d)+`"`); rec.Code != 304 || rec.Body.Len() != 0 {
		t.Errorf("If-None-Match: %d", rec.Code)
	}
}

func TestMediaTypeParametersAreDropped(t *testing.T) {
	w, up := one(t)
	up.put("library/a", v1.MediaTypeImageIndex+"; charset=utf-8", `{"manifests":[]}`, "x")
	if ct := w.get("/v2/a/manifests/x", 200, "").Header().Get("Content-Type"); ct != v1.MediaTypeImageIndex {
		t.Error(ct)
	}
}

// TestUnverifiedManifest: an upstream's digest is a promise to be kept.
func TestUnverifiedManifest(t *testing.T) {
	w, up := one(t)
	d := up.put("library/a", v1.MediaTypeImageManifest, `{"layers":[]}`, "x")
	for _, ref := range []string{"x", string(d)} {
		up.docs["library/a/manifests/"+ref] = doc{v1.MediaTypeImageManifest, `{"layers":[] }`, d}
		w.get("/v2/a/manifests/"+ref, 502, "UNKNOWN")
	}
	// The lie is not kept: the truth is served as soon as it is told.
	up.docs["library/a/manifests/x"] = doc{v1.MediaTypeImageManifest, `{"layers":[]}`, d}
	w.get("/v2/a/manifests/x", 200, "")
}

func TestSHA512(t *testing.T) {
	w, up := one(t)
	body := `{"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`
	up.put("library/a", v1.MediaTypeImageIndex, body, "x")
	sum := sha512.Sum512([]byte(body))
	d := "sha512:" + hex.EncodeToString(sum[:])
	w.get("/v2/a/manifests/x", 200, "")
	for _, method := range []string{"GET", "HEAD"} {
		if rec := w.do(method, "/v2/a/manifests/"+d); rec.Code != 200 || rec.Header().Get("Docker-Content-Digest") != d {
			t.Errorf("%s: %d %v", method, rec.Code, rec.Header())
		}
	}
	up.blobs["library/a/blobs/"+d] = body
	rec := w.get("/v2/a/blobs/"+d, 200, "")
	if rec.Header().Get("Docker-Content-Digest") != d || rec.Body.String() != body {
		t.Errorf("blob: %q %v", rec.Body, rec.Header())
	}
}

func TestBlob(t *testing.T) {
	w, up := one(t)
	m, _ := up.image(t, "library/alpine", "a", "3")
	w.get("/v2/alpine/manifests/3", 200, "")
	up.took()
	l := m.Layers[1]
	at := "/v2/alpine/blobs/" + string(l.Digest)
	whole := up.blobs["library/alpine/blobs/"+string(l.Digest)]

	rec := w.do("HEAD", at)
	h := rec.Header()
	if rec.Code != 200 || h.Get("Content-Length") != strconv.Itoa(len(whole)) || h.Get("Docker-Content-Digest") != string(l.Digest) ||
		h.Get("Content-Type") != octetStream || h.Get("Accept-Ranges") != "bytes" || !strings.Contains(h.Get("Cache-Control"), "immutable") {
		t.Errorf("HEAD: %d %v", rec.Code, h)
	}
	wantAsked(t, up, "HEAD of a blob that is held")

	for r, want := range map[string]string{"bytes=1000-1999": whole[1000:2000], "bytes=1000-": whole[1000:], "bytes=-10": whole[len(whole)-10:]} {
		rec := w.do("GET", at, "Range", r)
		if rec.Code != 206 || rec.Body.String() != want {
			t.Errorf("%s: %d, %d bytes", r, rec.Code, rec.Body.Len())
		}
	}
	for _, r := range []string{"bytes=900000-", "bytes=500-0"} {
		rec := w.do("GET", at, "Range", r)
		w.check(rec, r, 416, "RANGE_INVALID")
		if rec.Header().Get("Content-Range") != fmt.Sprintf("bytes */%d", len(whole)) {
			t.Errorf("%s: %d %v", r, rec.Code, rec.Header())
		}
	}
	if got := w.get(at, 200, ""); got.Body.String() != whole || got.Header().Get("ETag") != `"`+string(l.Digest)+`"` {
		t.Error("GET")
	}
}

// TestDigestIsNoRight: what one repository holds is not to be had through
// another, though the bytes are here.
func TestDigestIsNoRight(t *testing.T) {
	w, up := one(t)
	m, d := up.image(t, "library/mine", "a", "1")
	w.pull("mine", "1")
	up.took()
	for _, l := range append(m.Layers, m.Config) {
		w.get("/v2/yours/blobs/"+string(l.Digest), 404, "BLOB_UNKNOWN")
		w.check(w.do("HEAD", "/v2/other/blobs/"+string(l.Digest)), "HEAD", 404, "")
	}
	w.get("/v2/yours/manifests/"+string(d), 404, "MANIFEST_UNKNOWN")
	for _, a := range up.took() {
		if strings.Contains(a, "/blobs/") && strings.HasPrefix(a, "GET") {
			t.Errorf("a download to find out: %s", a)
		}
	}
}

// TestBlobIsNoManifest: what was uploaded as a blob stays one, even if it
// looks like a manifest and has been asked for already.
func TestBlobIsNoManifest(t *testing.T) {
	w, up := one(t)
	desc := up.blob("library/a", `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageIndex+`","manifests":[]}`)
	w.get("/v2/a/blobs/"+string(desc.Digest), 200, "")
	w.get("/v2/a/manifests/"+string(desc.Digest), 404, "MANIFEST_UNKNOWN")
	w.get("/v2/a/blobs/"+string(desc.Digest), 200, "")
}

func TestUnheldBlob(t *testing.T) {
	w, up := one(t)
	desc := up.blob("library/a", "some layer")
	at := "/v2/a/blobs/" + string(desc.Digest)
	if rec := w.do("HEAD", at); rec.Code != 200 || rec.Header().Get("Content-Length") != "10" {
		t.Errorf("%d %v", rec.Code, rec.Header())
	}
	wantAsked(t, up, "cold HEAD", "HEAD /v2/library/a/blobs/"+string(desc.Digest))
	if got := w.get(at, 200, "").Body.String(); got != "some layer" {
		t.Error(got)
	}
	wantAsked(t, up, "GET", "GET /v2/library/a/blobs/"+string(desc.Digest))
}

// TestHeadlessUpstream: an upstream whose HEAD does not work, or says no
// length, as signed addresses of object stores do.
func TestHeadlessUpstream(t *testing.T) {
	for _, code := range []int{400, 401, 403, 405, 501, 200} {
		w, up := one(t)
		m, _ := up.image(t, "library/a", "a", "x")
		up.set(func(rw http.ResponseWriter, r *http.Request) bool {
			if r.Method == "HEAD" {
				rw.WriteHeader(code)
				return true
			}
			return false
		})
		rec := w.do("HEAD", "/v2/a/blobs/"+string(m.Layers[1].Digest))
		if rec.Code != 200 || rec.Header().Get("Content-Length") != strconv.FormatInt(m.Layers[1].Size, 10) {
			t.Errorf("%d: %d %v", code, rec.Code, rec.Header())
		}
		for _, a := range up.seen {
			if r := a.Get("Range"); r != "" && r != "bytes=0-0" {
				t.Errorf("%d: Range %s", code, r)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	w, up := one(t)
	up.image(t, "library/a", "a", "x")
	for _, c := range []struct {
		target string
		code   int
		id     string
	}{
		{"/v2/a/manifests/gone", 404, "MANIFEST_UNKNOWN"}, {"/v2/none/manifests/x", 404, "MANIFEST_UNKNOWN"},
		{"/v2/a/blobs/" + sha256Of, 404, "BLOB_UNKNOWN"}, {"/v2/none/tags/list", 404, "NAME_UNKNOWN"},
		{"/v2/A/manifests/x", 400, "NAME_INVALID"}, {"/v2/a//b/manifests/x", 400, "NAME_INVALID"}, {"/v2/a%2Fb/manifests/x", 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a", 256) + "/tags/list", 400, "NAME_INVALID"}, {"/v2/a/../../etc/manifests/x", 400, "NAME_INVALID"},
		{"/v2/a/manifests/-x", 400, "TAG_INVALID"}, {"/v2/a/manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"},
		{"/v2/a/blobs/sha256:x", 400, "DIGEST_INVALID"}, {"/v2/a/referrers/sha256:x", 400, "DIGEST_INVALID"}, {"/v2/a/blobs/" + sha1Of, 400, "DIGEST_INVALID"},
		{"/v2/a/manifests/x?ns=%zz", 400, "UNSUPPORTED"}, {"/v2/a/manifests/x?ns=a&ns=b", 400, "UNSUPPORTED"},
		{"/v2/a/blobs/uploads/", 404, "BLOB_UPLOAD_UNKNOWN"}, {"/v2/_catalog", 404, "UNSUPPORTED"}, {"/v2//", 404, "UNSUPPORTED"},
		{"/v2/a//b", 404, "UNSUPPORTED"}, {"/v2/../x", 404, "UNSUPPORTED"}, {"/v2/./", 404, "UNSUPPORTED"},
	} {
		w.get(c.target, c.code, c.id)
		if rec := w.do("HEAD", c.target); rec.Code != c.code || rec.Body.Len() != 0 {
			t.Errorf("HEAD %s: %d %q", c.target, rec.Code, rec.Body)
		}
	}
	for _, c := range []struct{ method, target string }{
		{"PUT", "/v2/a/manifests/x"}, {"DELETE", "/v2/a/manifests/x"}, {"POST", "/v2/a/blobs/uploads/"}, {"PATCH", "/v2/a/blobs/uploads/1"},
		{"DELETE", "/v2/a/blobs/" + sha256Of}, {"OPTIONS", "/v2/a/tags/list"}, {"POST", "/v2/"}, {"PUT", "/v2/A/manifests/x"}, {"TRACE", "/v2"},
	} {
		rec := w.do(c.method, c.target)
		w.check(rec, c.method+" "+c.target, 405, "UNSUPPORTED")
		if rec.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow %q", c.method, c.target, rec.Header().Get("Allow"))
		}
	}
	for _, target := range []string{"/v2", "/v2/"} {
		if rec := w.get(target, 200, ""); rec.Body.String() != "{}" || rec.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %q", target, rec.Body)
		}
	}
}

// TestUpstreamFailures: none of them becomes "not found", with or without
// something to fall back on.
func TestUpstreamFailures(t *testing.T) {
	for _, c := range []struct {
		upstream int
		header   []string
		code     int
		id       string
		after    string
	}{
		{401, nil, 401, "UNAUTHORIZED", ""}, {403, nil, 403, "DENIED", ""},
		{429, []string{"Retry-After", "7"}, 429, "TOOMANYREQUESTS", "7"}, {429, nil, 429, "TOOMANYREQUESTS", "1"},
		{500, nil, 503, "UNAVAILABLE", "5"}, {503, []string{"Retry-After", "9"}, 503, "UNAVAILABLE", "9"}, {502, nil, 503, "UNAVAILABLE", "5"},
		{400, nil, 503, "UNAVAILABLE", "5"}, {302, nil, 503, "UNAVAILABLE", "5"}, {418, nil, 503, "UNAVAILABLE", "5"},
	} {
		for _, target := range []string{"/v2/a/manifests/x", "/v2/a/manifests/" + sha256Of, "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list", "/v2/a/referrers/" + sha256Of} {
			w, up := one(t)
			up.set(answers(c.upstream, c.header...))
			rec := w.get(target, c.code, c.id)
			if got := rec.Header().Get("Retry-After"); got != c.after {
				t.Errorf("%d: %s: Retry-After %q, want %q", c.upstream, target, got, c.after)
			}
			if rec.Header().Get("Www-Authenticate") != "" {
				t.Errorf("%d: a challenge, which makes dockerd send Docker Hub's password", c.upstream)
			}
			if strings.Contains(rec.Body.String(), "hub.test") {
				t.Errorf("%d: an address for the client: %s", c.upstream, rec.Body)
			}
		}
	}
}

func TestUpstreamHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		up.set(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		for _, target := range []string{"/v2/a/manifests/x", "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list", "/v2/a/referrers/" + sha256Of} {
			begun := time.Now()
			w.get(target, 503, "UNAVAILABLE")
			if took := time.Since(begun); took > 25*time.Second {
				t.Errorf("%s: %v until the answer", target, took)
			}
		}
		synctest.Wait()
	})
}

// TestStale: what is here is served when the upstream fails, and says so.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, fail := range []func(http.ResponseWriter, *http.Request) bool{
			answers(401), answers(403), answers(429, "Retry-After", "600"), answers(500), answers(503),
			func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		} {
			w, up := one(t)
			_, d := up.image(t, "library/a", "a", "x")
			up.tags["library/a"] = []string{"x"}
			w.pull("a", "x")
			w.get("/v2/a/tags/list", 200, "")
			w.get("/v2/a/referrers/"+string(d), 200, "")
			up.set(fail)
			pass(time.Hour)
			for _, target := range []string{"/v2/a/manifests/x", "/v2/a/tags/list", "/v2/a/referrers/" + string(d)} {
				begun := time.Now()
				rec := w.get(target, 200, "")
				if h := rec.Header(); !strings.HasPrefix(h.Get("Warning"), "299 - ") || !strings.Contains(h.Get("Cache-Status"), "fwd=stale") {
					t.Errorf("%s: %v", target, h)
				}
				if took := time.Since(begun); took > 4*time.Second {
					t.Errorf("%s: %v", target, took)
				}
			}
			w.get("/v2/a/manifests/"+string(d), 200, "")
			w.pull("a", "x")
			synctest.Wait()
			pass(time.Minute)
		}
	})
}

func TestTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		up.image(t, "library/a", "a", "x")
		w.pull("a", "x")
		delete(up.docs, "library/a/manifests/x")
		pass(time.Hour)
		w.get("/v2/a/manifests/x", 404, "MANIFEST_UNKNOWN")
		up.set(answers(503))
		pass(time.Minute)
		w.get("/v2/a/manifests/x", 503, "UNAVAILABLE")
	})
}

func TestTagMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, noDigest := range []bool{false, true} {
			w, up := one(t)
			up.noDigest = noDigest
			_, first := up.image(t, "library/a", "a", "x")
			w.pull("a", "x")
			m, second := up.image(t, "library/a", "b", "x")
			if rec := w.get("/v2/a/manifests/x", 200, ""); rec.Header().Get("Docker-Content-Digest") != string(first) {
				t.Error("asked within the fresh time")
			}
			pass(time.Hour)
			up.took()
			if rec := w.get("/v2/a/manifests/x", 200, ""); rec.Header().Get("Docker-Content-Digest") != string(second) {
				t.Errorf("an hour later still %v", rec.Header())
			}
			asked := up.took()
			// By tag again: what the HEAD said of its size nobody vouches for.
			if !slices.Equal(asked, []string{"HEAD /v2/library/a/manifests/x", "GET /v2/library/a/manifests/x"}) {
				t.Errorf("asked %v", asked)
			}
			w.check(w.do("HEAD", "/v2/a/blobs/"+string(m.Layers[0].Digest)), "HEAD", 200, "")
			if asked := up.took(); len(asked) != 0 {
				t.Errorf("the new layers are not held: %v", asked)
			}
		}
	})
}

// TestWebPage: a captive portal's page is not a manifest, a list or a token.
func TestWebPage(t *testing.T) {
	w, up := one(t)
	up.set(func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Content-Type", "text/html")
		send(rw, r, "<html>log in</html>")
		return true
	})
	w.get("/v2/a/manifests/x", 503, "UNAVAILABLE")
	w.get("/v2/a/tags/list", 503, "UNAVAILABLE")
}

func TestTooLarge(t *testing.T) {
	w, up := one(t)
	up.put("library/a", v1.MediaTypeImageIndex, `{"manifests":[],"x":"`+strings.Repeat("x", maxManifest)+`"}`, "x")
	w.get("/v2/a/manifests/x", 502, "UNKNOWN")
	up.put("library/a", v1.MediaTypeImageIndex, `{"manifests":[],"x":"`+strings.Repeat("x", 4<<20)+`"}`, "y")
	w.get("/v2/a/manifests/y", 200, "")
}

// deny is a guard that refuses one kind of call.
type deny struct{ err func(*registry.Call) error }

func (d deny) Admit(_ context.Context, c *registry.Call) error { return d.err(c) }

func TestGuard(t *testing.T) {
	w, up := one(t)
	m, d := up.image(t, "library/a", "a", "x")
	w.pull("a", "x")
	up.took()
	targets := []string{"manifests/x", "manifests/" + string(d), "blobs/" + string(m.Config.Digest), "tags/list", "referrers/" + string(d)}
	for name, g := range map[string]struct {
		admit func(*registry.Call) error
		code  int
		id    string
	}{
		"nobody":    {func(*registry.Call) error { return registry.ErrUnauthenticated }, 401, "UNAUTHORIZED"},
		"denied":    {func(*registry.Call) error { return registry.ErrDenied }, 403, "DENIED"},
		"limited":   {func(*registry.Call) error { return registry.ErrLimited }, 429, "TOOMANYREQUESTS"},
		"by digest": {func(c *registry.Call) error { return onlyUnresolved(c) }, 403, "DENIED"},
	} {
		w.svc.Guard = deny{g.admit}
		for _, target := range targets {
			if name == "by digest" && !strings.Contains(target, "s/x") && !strings.HasPrefix(target, "blobs") {
				continue
			}
			w.get("/v2/a/"+target, g.code, g.id)
			w.check(w.do("HEAD", "/v2/a/"+target), name+" HEAD "+target, g.code, "")
		}
		w.get("/v2/secret/manifests/x", g.code, g.id)
		if asked := up.took(); name != "by digest" && len(asked) != 0 {
			t.Errorf("%s: the upstream was asked %v", name, asked)
		}
	}
}

// onlyUnresolved admits a name and refuses what it turns out to stand for.
func onlyUnresolved(c *registry.Call) error {
	if c.Name.Repo == "docker.io/library/secret" || c.Binding.Rev != "" {
		return registry.ErrDenied
	}
	return nil
}
