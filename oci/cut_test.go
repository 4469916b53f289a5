package oci

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

const giga = 1 << 30

// bound has n stand for d from now on.
func bound(t *testing.T, ns registry.Names, n registry.Name, d registry.Descriptor) {
	t.Helper()
	if _, err := ns.Bind(t.Context(), n, registry.Binding{}, registry.Binding{Descriptor: d, Checked: time.Now(), Fresh: time.Now().Add(time.Hour), Listed: true}); err != nil {
		t.Fatal(err)
	}
}

func TestCutLayer(t *testing.T) {
	up, warden := newUpstream(), new(conformance.Warden)
	w := newWeir(t, network{"hub.test": up}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"})
	d := digest.FromString("a gigabyte")
	w.svc.Guard, w.svc.Blobs = warden, conformance.NewSparse(t, w.svc.Blobs, giga, d)
	bound(t, w.svc.Names, registry.Name{Space: Space, Repo: "docker.io/library/a", Ref: blobsRef + string(d)}, registry.Descriptor{Digest: d, Size: giga, MediaType: octetStream})
	bound(t, w.svc.Names, registry.Name{Space: Space, Repo: "docker.io/library/a", Ref: "big"}, registry.Descriptor{Digest: d, Size: giga, MediaType: "application/json"})
	handler := func(log *slog.Logger) http.Handler {
		return reply.Handler(New(Config{Service: w.svc, Upstreams: w.ups, Log: log}), reply.Options{Space: Space, Log: log})
	}
	blob := "/v2/a/blobs/" + string(d)
	conformance.TestCut(t, warden, handler, reply.WriteTimeout, []conformance.CutCase{
		{Name: "blob", Target: blob, Status: 200, Files: true},
		{Name: "range", Target: blob, Header: http.Header{"Range": {"bytes=1000-"}}, Status: 206, Files: true},
		{Name: "ranges", Target: blob, Header: http.Header{"Range": {fmt.Sprintf("bytes=0-499999999,500000000-%d", giga-2)}}, Status: 206},
		{Name: "manifest", Target: "/v2/a/manifests/big", Status: 200, Files: true},
	})
}

// TestCutOneOfAFill: who is cut leaves a fill to the others, and is not what ends it.
func TestCutOneOfAFill(t *testing.T) {
	warden := new(conformance.Warden)
	data := conformance.Bytes(1, 8<<20)
	d := conformance.Describe(octetStream, data)
	gate, rest := make(chan struct{}), make(chan struct{})
	up := &conformance.Upstream{Script: func(o conformance.Op) conformance.Fault { return conformance.Fault{Gate: gate, Chunk: 1 << 20} }}
	up.PutBlob(data)
	ups, err := NewUpstreams([]Registry{{Name: hub, URL: "http://hub.test"}}, Options{Default: hub})
	if err != nil {
		t.Fatal(err)
	}
	ns := new(names.Memory)
	bound(t, ns, registry.Name{Space: Space, Repo: "docker.io/library/a", Ref: blobsRef + string(d.Digest)}, d)
	quiet := slog.New(slog.DiscardHandler)
	svc := &registry.Service{Names: ns, Guard: warden, Log: quiet, Spaces: map[string]registry.Space{Space: ups.Space()},
		Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), up, cachetiers.Options{})}
	s := httptest.NewServer(reply.Handler(New(Config{Service: svc, Upstreams: ups}), reply.Options{Space: Space, Log: quiet}))
	defer s.Close()
	get := func(agent string) io.ReadCloser {
		req, err := http.NewRequestWithContext(context.Background(), "GET", s.URL+"/v2/a/blobs/"+string(d.Digest), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		resp, err := s.Client().Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		return resp.Body
	}
	go func() {
		for range 4 {
			gate <- struct{}{}
		}
		<-rest
		close(gate)
	}()
	good, bad := get("good"), get("bad")
	defer good.Close()
	defer bad.Close()
	if _, err := io.CopyN(io.Discard, bad, 2<<20); err != nil {
		t.Fatal(err)
	}
	// Both wait for what is behind now, which gives nothing more.
	begun := time.Now()
	warden.Revoke(registry.Errorf(registry.ErrDenied, "taken back"), func(c *registry.Call) bool { return c.Agent == "bad" })
	if n, err := io.Copy(io.Discard, bad); err == nil || n > 6<<20 || time.Since(begun) > time.Second {
		t.Errorf("%d bytes more in %v, %v", n, time.Since(begun), err)
	}
	close(rest)
	h := sha256.New()
	if n, err := io.Copy(h, good); err != nil || n != int64(len(data)) || digest.NewDigest(digest.SHA256, h) != d.Digest {
		t.Errorf("the other one: %d bytes, %v", n, err)
	}
	if bodies := up.Bodies(); bodies != 1 {
		t.Errorf("the upstream was asked for the bytes %d times", bodies)
	}
	conformance.Eventually(t, "nothing is watched", func() bool { return warden.Watching() == 0 })
}

// TestRevokedWhileWaiting: who waits for an answer to a cold name is refused when
// it comes.
func TestRevokedWhileWaiting(t *testing.T) {
	up, warden := newUpstream(), new(conformance.Warden)
	arrived, release := make(chan struct{}), make(chan struct{})
	up.image(t, "library/a", "a", "GET", "HEAD")
	up.wrap = func(http.ResponseWriter, *http.Request) bool {
		arrived <- struct{}{}
		<-release
		return false
	}
	w := newWeir(t, network{"hub.test": up}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"})
	w.svc.Guard = warden
	for _, method := range []string{"GET", "HEAD"} {
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- w.do(method, "/v2/a/manifests/"+method, "User-Agent", method) }()
		<-arrived
		warden.Revoke(registry.Errorf(registry.ErrDenied, "taken back"), func(c *registry.Call) bool { return c.Agent == method })
		release <- struct{}{}
		if rec := <-done; rec.Code != 403 {
			t.Errorf("%s: %d", method, rec.Code)
		}
	}
	if warden.Watching() != 0 {
		t.Error("something is watched still")
	}
}

// TestHeadIsNotWatched: a HEAD has nothing to be cut, and a connection that is
// revoked between two requests is answered.
func TestHeadIsNotWatched(t *testing.T) {
	up, warden := newUpstream(), new(conformance.Warden)
	m, _ := up.image(t, "library/a", "a", "x")
	w := newWeir(t, network{"hub.test": up}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"})
	w.svc.Guard = warden
	w.get("/v2/a/manifests/x", 200, "")
	for _, target := range []string{"/v2/a/manifests/x", "/v2/a/blobs/" + string(m.Config.Digest), "/v2/a/tags/list"} {
		w.do("HEAD", target)
		if warden.Watching() != 0 {
			t.Errorf("HEAD %s left a watch", target)
		}
	}
	warden.Revoke(registry.Errorf(registry.ErrUnauthenticated, "gone"), func(*registry.Call) bool { return true })
	w.check(w.do("GET", "/v2/a/manifests/x"), "GET", 401, "UNAUTHORIZED")
}

// TestCutHTTP2: a stream is ended too, and the others of its connection are not.
func TestCutHTTP2(t *testing.T) {
	warden := new(conformance.Warden)
	w := newWeir(t, network{"hub.test": newUpstream()}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"})
	d := digest.FromString("a gigabyte")
	w.svc.Guard, w.svc.Blobs = warden, conformance.NewSparse(t, w.svc.Blobs, giga, d)
	bound(t, w.svc.Names, registry.Name{Space: Space, Repo: "docker.io/library/a", Ref: blobsRef + string(d)}, registry.Descriptor{Digest: d, Size: giga, MediaType: octetStream})
	s := httptest.NewUnstartedServer(w)
	s.EnableHTTP2, s.Config.WriteTimeout = true, reply.WriteTimeout
	s.StartTLS()
	defer s.Close()
	get := func(agent string) io.ReadCloser {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/v2/a/blobs/"+string(d), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		resp, err := s.Client().Do(req)
		if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatal(resp, err)
		}
		return resp.Body
	}
	good, bad := get("good"), get("bad")
	defer good.Close()
	defer bad.Close()
	begun := time.Now() // neither is read
	warden.Revoke(registry.Errorf(registry.ErrDenied, "taken back"), func(c *registry.Call) bool { return c.Agent == "bad" })
	conformance.Eventually(t, "the server has given up", func() bool { return warden.Watching() == 1 })
	if n, err := io.Copy(io.Discard, bad); err == nil || time.Since(begun) > time.Second {
		t.Errorf("%d bytes in %v, %v", n, time.Since(begun), err)
	}
	if n, err := io.CopyN(io.Discard, good, 64<<20); err != nil {
		t.Errorf("the other one: %d bytes, %v", n, err)
	}
}
