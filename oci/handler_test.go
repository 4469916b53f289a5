package oci

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
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
