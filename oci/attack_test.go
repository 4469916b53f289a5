package oci

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestOneQuestion: a hundred clients that want one cold tag ask the upstream
// once, and so do a hundred that want one cold layer.
func TestOneQuestion(t *testing.T) {
	w, up := one(t)
	m, _ := up.image(t, "library/a", "a", "x")
	for _, target := range []string{"/v2/a/manifests/x", "/v2/a/blobs/" + string(m.Layers[1].Digest)} {
		begin := make(chan struct{})
		up.set(func(http.ResponseWriter, *http.Request) bool { <-begin; return false })
		var started, done sync.WaitGroup
		for range 100 {
			started.Add(1)
			done.Go(func() {
				started.Done()
				w.get(target, 200, "")
			})
		}
		started.Wait()
		close(begin)
		done.Wait()
		wantAsked(t, up, target, "GET /v2/library/a"+strings.TrimPrefix(target, "/v2/a"))
	}
}

// TestClientLeaves: the first client going away changes nothing for the rest.
func TestClientLeaves(t *testing.T) {
	w, up := one(t)
	up.image(t, "library/a", "a", "x")
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	up.set(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(asked) })
		<-answer
		return false
	})
	ctx, leave := context.WithCancel(t.Context())
	var first, second sync.WaitGroup
	first.Go(func() {
		r := httptest.NewRequest("GET", "/v2/a/manifests/x", nil).WithContext(ctx)
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, r)
		if rec.Code != 503 {
			t.Errorf("the one that left got %d", rec.Code)
		}
	})
	<-asked
	second.Go(func() { w.get("/v2/a/manifests/x", 200, "") })
	leave()
	first.Wait()
	close(answer)
	second.Wait()
	wantAsked(t, up, "both", "GET /v2/library/a/manifests/x")
}

// TestHostileManifest: what an upstream lists cannot hurt, and is passed on
// as it came if it is only senseless.
func TestHostileManifest(t *testing.T) {
	for name, body := range map[string]string{
		"nested":        strings.Repeat(`{"manifests":[`, 20000) + strings.Repeat(`]}`, 20000),
		"negative":      `{"layers":[{"digest":"` + sha256Of + `","size":-5}]}`,
		"huge size":     `{"layers":[{"digest":"` + sha256Of + `","size":9223372036854775807}]}`,
		"no json":       `<html>`,
		"empty":         ``,
		"a traversal":   `{"layers":[{"digest":"sha256:../../../../etc/passwd","size":1}]}`,
		"too many":      `{"layers":[` + strings.Repeat(`{"digest":"`+sha256Of+`","size":1},`, maxHeld*2) + `{}]}`,
		"not a list":    `{"layers":{"digest":1},"manifests":"x"}`,
		"itself":        `{"manifests":[{"mediaType":"` + v1.MediaTypeImageIndex + `","digest":"` + sha256Of + `","size":0}]}`,
		"wrong strings": "{\"config\":{\"digest\":\"\xff\xfe\",\"size\":1}}",
	} {
		w, up := one(t)
		up.put("library/a", v1.MediaTypeImageManifest, body, "x")
		for range 2 {
			if rec := w.get("/v2/a/manifests/x", 200, ""); rec.Body.String() != body {
				t.Errorf("%s: changed", name)
			}
		}
	}
}

// FuzzHandler sends paths and queries and looks at what reaches the upstream
// and what comes back: always an answer in the protocol's form, never a
// question outside of /v2/ and the grammar.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/manifests/x", "/v2/a/manifests/" + sha256Of, "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list?n=1&last=x", "/v2/a/referrers/" + sha256Of + "?artifactType=x",
		"/v2/a/manifests/x?ns=evil.test", "/v2/docker.io/a/manifests/x?ns=docker.io", "/v2/%2e%2e/manifests/x", "//x/v2/", "/v2/a/manifests/x?ns=%00", "/v2/a/tags/list?n=-9&n=3", "*", "/v2/a/blobs/uploads/1?digest=x"} {
		f.Add("GET", s)
	}
	f.Add("HEAD", "/v2/a/manifests/x")
	f.Add("PUT", "/v2/a/manifests/x")
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || method == "" {
			return
		}
		w, up := one(t)
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL = method, u
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, r)
		if rec.Code != 200 && (rec.Code < 400 || rec.Code > 499) {
			t.Errorf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		}
		if method != "HEAD" && !json.Valid(rec.Body.Bytes()) {
			t.Errorf("%s %q: %q", method, target, rec.Body)
		}
		if rec.Header().Get("Location") != "" || rec.Header().Get("Cache-Status") == "" {
			t.Errorf("%s %q: %v", method, target, rec.Header())
		}
		for _, asked := range up.took() {
			_, uri, _ := strings.Cut(asked, " ")
			path, _, _ := strings.Cut(uri, "?")
			if p, fault := parsePath(path); p.kind == other || p.kind == uploads || fault != sound {
				t.Errorf("%s %q: the upstream was asked %q", method, target, asked)
			}
		}
	})
}
