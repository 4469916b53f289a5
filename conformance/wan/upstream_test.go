package wan_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/conformance/wan"
)

func ask(t *testing.T, method, url, rng string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestUpstreamServes(t *testing.T) {
	u := wan.StartUpstream(t)
	const size = 1<<20 + 7
	b := u.Blob(size, "one")
	if again := u.Blob(size, "one"); again != b {
		t.Errorf("the same blob twice: %v, %v", b, again)
	}
	if other := u.Blob(size, "two"); other.Digest == b.Digest || other.Sum == b.Sum {
		t.Error("another seed gives the same blob")
	}
	m := u.Image("library/thing", "1", b)
	resp, text, err := ask(t, "GET", u.URL+wan.ManifestPath("library/thing", "1"), "")
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != v1.MediaTypeImageManifest ||
		digest.FromBytes(text) != m.Digest || resp.Header.Get("Docker-Content-Digest") != m.Digest.String() {
		t.Fatalf("manifest: %v %.200q %v", resp, text, err)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil || len(manifest.Layers) != 1 || manifest.Layers[0].Digest != b.Digest || manifest.Layers[0].Size != size {
		t.Errorf("manifest: %s, %v", text, err)
	}
	_, config, err := ask(t, "GET", u.URL+"/v2/library/thing/blobs/"+manifest.Config.Digest.String(), "")
	if err != nil || digest.FromBytes(config) != manifest.Config.Digest {
		t.Errorf("config: %.100q, %v", config, err)
	}
	path := u.URL + wan.BlobPath("library/thing", b)
	_, whole, err := ask(t, "GET", path, "")
	if err != nil || sha256.Sum256(whole) != [32]byte(must(t, b.Digest)) {
		t.Fatalf("blob: %d bytes, %v", len(whole), err)
	}
	for rng, want := range map[string][]byte{"bytes=0-0": whole[:1], "bytes=17-1000016": whole[17:1000017], "bytes=65536-": whole[65536:], "bytes=-3": whole[size-3:]} {
		if resp, part, err := ask(t, "GET", path, rng); err != nil || resp.StatusCode != 206 || !bytes.Equal(part, want) {
			t.Errorf("%s: %d, %d bytes, %v", rng, resp.StatusCode, len(part), err)
		}
	}
	if resp, _, err := ask(t, "HEAD", path, ""); err != nil || resp.ContentLength != size {
		t.Errorf("HEAD: %v, %v", resp, err)
	}
	for _, p := range []string{wan.ManifestPath("library/thing", "2"), wan.ManifestPath("library/other", "1"), "/v2/library/thing/blobs/" + digest.FromString("x").String()} {
		if resp, _, err := ask(t, "GET", u.URL+p, ""); err != nil || resp.StatusCode != 404 {
			t.Errorf("%s: %v, %v", p, resp, err)
		}
	}
}

func must(t *testing.T, d digest.Digest) []byte {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(d.Encoded(), "%x", &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUpstreamCounts what was read, and what was read twice.
func TestUpstreamCounts(t *testing.T) {
	u := wan.StartUpstream(t)
	const size = 1_000_000
	b := u.Blob(size, "counts")
	path := u.URL + wan.BlobPath("library/thing", b)
	for _, rng := range []string{"bytes=500000-", "bytes=0-499999"} {
		ask(t, "GET", path, rng)
	}
	ask(t, "HEAD", path, "")
	if r := u.Read(b.Digest); r != (wan.Read{Requests: 2, Bytes: size}) {
		t.Errorf("two halves: %+v", r)
	}
	ask(t, "GET", path, "bytes=400000-600999")
	if r := u.Read(b.Digest); r != (wan.Read{Requests: 3, Bytes: size + 201000, Twice: 201000}) {
		t.Errorf("and a part of both again: %+v", r)
	}
	if n := len(u.Asked("HEAD", "")); n != 1 {
		t.Errorf("%d HEADs", n)
	}
	if s := u.Story(); strings.Count(s, "\n") != 4 || !strings.Contains(s, "bytes=500000- -> 206, 500000 bytes from 500000") {
		t.Errorf("story:\n%s", s)
	}
	u.Reset()
	if r := u.Read(b.Digest); r != (wan.Read{}) {
		t.Errorf("after Reset: %+v", r)
	}
}

func TestUpstreamModes(t *testing.T) {
	u := wan.StartUpstream(t)
	b := u.Blob(2_000_000, "modes")
	path := u.URL + wan.BlobPath("library/thing", b)
	u.SetMode(wan.Mode{Status: 429, RetryAfter: 7})
	if resp, _, err := ask(t, "GET", path, ""); err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" {
		t.Errorf("429: %v, %v", resp, err)
	}
	u.SetMode(wan.Mode{Rate: 4_000_000})
	start := time.Now()
	if _, got, err := ask(t, "GET", path, ""); err != nil || len(got) != 2_000_000 || time.Since(start) < 450*time.Millisecond {
		t.Errorf("2 MB at 4 MB/s: %d bytes after %v, %v", len(got), time.Since(start), err)
	}
	http.DefaultClient.CloseIdleConnections()
	u.SetMode(wan.Mode{ResetAfter: 700_000})
	if _, got, err := ask(t, "GET", path, ""); !errors.Is(err, syscall.ECONNRESET) || len(got) > 700_000 {
		t.Errorf("reset after 700,000: %d bytes, %v", len(got), err)
	}
	u.SetMode(wan.Mode{Hang: true})
	client := &http.Client{Timeout: 100 * time.Millisecond}
	if _, err := client.Get(path); err == nil {
		t.Error("hang: there was an answer")
	}
	u.SetMode(wan.Mode{Delay: 50 * time.Millisecond})
	start = time.Now()
	if _, _, err := ask(t, "HEAD", path, ""); err != nil || time.Since(start) < 50*time.Millisecond {
		t.Errorf("delay: after %v, %v", time.Since(start), err)
	}
	u.SetMode(wan.Mode{})
	u.Down()
	if _, _, err := ask(t, "HEAD", path, ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("down: %v", err)
	}
	u.Up()
	if _, got, err := ask(t, "GET", path, ""); err != nil || digest.FromBytes(got) != b.Digest {
		t.Errorf("up again: %d bytes, %v", len(got), err)
	}
}

// TestUpstreamForMany has many read at once, each something else.
func TestUpstreamForMany(t *testing.T) {
	u := wan.StartUpstream(t)
	c := wan.NewClient(t, 0)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			b := u.Blob(100_000, fmt.Sprint(i))
			if a := c.Get(t.Context(), wan.Want{URL: u.URL + wan.BlobPath("library/thing", b), Blob: b}); a.Fault != wan.OK || a.Bytes != 100_000 {
				t.Errorf("%d: %+v", i, a)
			}
		})
	}
	all.Wait()
}
