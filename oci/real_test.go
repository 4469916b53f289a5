package oci

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	craneremote "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// TestRealPeers: a client and a registry that others wrote, over sockets.
func TestRealPeers(t *testing.T) {
	var asked atomic.Int32
	reg := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), ggcr.WithReferrersSupport(true))
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		reg.ServeHTTP(w, r)
	}))
	defer up.Close()
	idx, err := random.Index(100_000, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(strings.TrimPrefix(up.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := craneremote.WriteIndex(tag, idx); err != nil {
		t.Fatal(err)
	}
	ups, err := NewUpstreams([]Registry{{Name: "up.test", URL: up.URL}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	svc := &registry.Service{Names: &names.Memory{}, Guard: allow{}, Spaces: map[string]registry.Space{Space: ups.Space()},
		Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), ups, cachetiers.Options{})}
	edge := httptest.NewServer(New(Config{Service: svc, Upstreams: ups}))
	defer edge.Close()
	host := strings.TrimPrefix(edge.URL, "http://")
	mirrored, err := name.NewTag(host + "/up.test/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	asked.Store(0)
	for round := range 2 {
		got, err := craneremote.Index(mirrored)
		if err != nil {
			t.Fatal(err)
		}
		if err := readAll(got); err != nil {
			t.Fatal(err)
		}
		same(t, idx, got)
		// The tag, two children, and a config and three layers of each.
		if n := asked.Load(); n != 1+2+2*4 {
			t.Errorf("round %d: %d upstream requests", round, n)
		}
	}
	if list, err := craneremote.List(mirrored.Context()); err != nil || len(list) != 1 || list[0] != "1" {
		t.Errorf("tags %v, %v", list, err)
	}
	d, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := craneremote.Referrers(mirrored.Context().Digest(d.String())); err != nil {
		t.Error(err)
	}
	if err := craneremote.Write(mirrored, small(t)); err == nil {
		t.Error("a push succeeded")
	}
	up.Close()
	if got, err := craneremote.Index(mirrored); err != nil {
		t.Error(err)
	} else if err := readAll(got); err != nil {
		t.Errorf("with the upstream gone: %v", err)
	}
}

func small(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func same(t *testing.T, want, got v1.ImageIndex) {
	t.Helper()
	a, err1 := want.RawManifest()
	b, err2 := got.RawManifest()
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Errorf("not the same bytes: %v %v", err1, err2)
	}
}

// TestRawPaths: what a client writes on the wire reaches the grammar as it is;
// no redirect, no cleaning, and no panic for what a URL cannot hold.
func TestRawPaths(t *testing.T) {
	ups, err := NewUpstreams([]Registry{{Name: hub, URL: "http://127.0.0.1:1"}}, Options{Default: hub})
	if err != nil {
		t.Fatal(err)
	}
	svc := &registry.Service{Names: &names.Memory{}, Guard: allow{}, Spaces: map[string]registry.Space{Space: ups.Space()}, Blobs: cachetiers.NewMemory(1 << 20)}
	edge := httptest.NewServer(New(Config{Service: svc, Upstreams: ups}))
	defer edge.Close()
	for path, code := range map[string]int{
		"/v2/a//b/manifests/x": 400, "/v2//a/manifests/x": 400, "/v2/a/./manifests/x": 400, "/v2/a/../b/manifests/x": 400, "//v2/": 404, "/v2//": 404,
		"/v2/a%2fb/manifests/x": 400, "/v2/a/manifests/%2e%2e": 400, "/v2/a/manifests/x%00": 400, "/v2/a;b/manifests/x": 400, "/v2/a/manifests/x;y=z": 400,
		"/v2/" + strings.Repeat("a/", 2000) + "manifests/x": 400, "/v2/a/manifests/" + strings.Repeat("x", 20000): 400,
		"/v2/a/manifests/x": 503, "/v2/a/manifests/x%3F": 400, "/v2/a/manifests/x%23": 400, "/v2/a+b/manifests/x": 400,
	} {
		req, err := http.NewRequest(http.MethodGet, edge.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = path
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Errorf("%.60s: %v", path, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != code || !bytes.HasPrefix(body, []byte(`{"errors":[{"code":"`)) {
			t.Errorf("%.60s: %d %s, want %d", path, resp.StatusCode, body, code)
		}
	}
}

// readAll reads all layers and configs of an index; the client checks each
// against its digest.
func readAll(idx v1.ImageIndex) error {
	m, err := idx.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range m.Manifests {
		img, err := idx.Image(d.Digest)
		if err != nil {
			return err
		}
		if _, err := img.RawConfigFile(); err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		for _, l := range layers {
			rc, err := l.Compressed()
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, rc)
			rc.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
