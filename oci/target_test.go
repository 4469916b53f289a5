package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
)

func TestChoose(t *testing.T) {
	w := newWeir(t, network{}, Options{Default: "registry-1.docker.io"},
		Registry{Name: "index.docker.io"}, Registry{Name: "ghcr.io"}, Registry{Name: "local.test:5000", URL: "http://x.test"})
	for _, c := range []struct{ ns, repo, want string }{
		{"", "alpine", "docker.io/library/alpine"}, {"", "library/alpine", "docker.io/library/alpine"}, {"", "a/b/c", "docker.io/a/b/c"},
		{"docker.io", "alpine", "docker.io/library/alpine"}, {"registry-1.docker.io", "alpine", "docker.io/library/alpine"},
		{"INDEX.docker.io", "a/b", "docker.io/a/b"}, {"ghcr.io", "alpine", "ghcr.io/alpine"}, {"local.test:5000", "alpine", "local.test:5000/alpine"},
		{"", "ghcr.io/owner/app", "ghcr.io/owner/app"}, {"", "docker.io/alpine", "docker.io/library/alpine"},
		{"", "index.docker.io/library/alpine", "docker.io/library/alpine"}, {"", "ghcr.io", "docker.io/library/ghcr.io"},
		{"docker.io", "ghcr.io/owner/app", "docker.io/ghcr.io/owner/app"}, {"", "quay.io/a/b", "docker.io/quay.io/a/b"},
	} {
		if got, err := w.ups.choose(c.ns, c.repo); got != c.want || err != nil {
			t.Errorf("%q %q: %q, %v; want %q", c.ns, c.repo, got, err, c.want)
		}
	}
	none := newWeir(t, network{}, Options{}, Registry{Name: "ghcr.io"})
	if _, err := none.ups.choose("", "alpine"); registry.KindOf(err) != registry.ErrNotFound || !strings.Contains(registry.Public(err), "ghcr.io") {
		t.Error(err)
	}
}

// TestNamespaces: two upstreams with the same repository and tag never mix, by
// whatever way they are named, not even for blobs.
func TestNamespaces(t *testing.T) {
	a, b := newUpstream(), newUpstream()
	w := newWeir(t, network{"a.test": a, "b.test:5000": b}, Options{Default: "a.test"},
		Registry{Name: "a.test", URL: "http://a.test"}, Registry{Name: "b.test:5000", URL: "http://b.test:5000/prefix/"})
	ma, da := a.image(t, "team/app", "of a", "1")
	b.prefix = "/prefix"
	_, db := b.image(t, "team/app", "of b", "1")
	for range 2 {
		plain := w.get("/v2/team/app/manifests/1", 200, "")
		byNS := w.get("/v2/team/app/manifests/1?ns=a.test", 200, "")
		byPath := w.get("/v2/a.test/team/app/manifests/1", 200, "")
		if plain.Body.String() != byNS.Body.String() || byNS.Body.String() != byPath.Body.String() {
			t.Error("one image, three answers")
		}
		if byNS.Header().Get("OCI-Namespace") != "a.test" || plain.Header().Get("OCI-Namespace") != "" {
			t.Errorf("OCI-Namespace %q and %q", byNS.Header().Get("OCI-Namespace"), plain.Header().Get("OCI-Namespace"))
		}
	}
	other := w.do("GET", "/v2/team/app/manifests/1?ns=b.test:5000")
	if other.Code != 200 || digest.FromBytes(other.Body.Bytes()) != db || other.Header().Get("OCI-Namespace") != "b.test:5000" {
		t.Errorf("b answers %d %s", other.Code, other.Body)
	}
	if asked := b.took(); len(asked) == 0 || !strings.HasPrefix(asked[0], "GET /prefix/v2/team/app/manifests/1") {
		t.Errorf("b was asked %v", asked)
	}
	w.check(w.do("GET", "/v2/team/app/blobs/"+string(ma.Config.Digest)+"?ns=b.test:5000"), "a's blob of b", 404, "BLOB_UNKNOWN")
	w.check(w.do("GET", "/v2/team/app/manifests/"+string(da)+"?ns=b.test:5000"), "a's manifest of b", 404, "MANIFEST_UNKNOWN")
}

// TestNamespaceIsNoAddress: ns is the client's words, and nobody is dialled
// because of them.
func TestNamespaceIsNoAddress(t *testing.T) {
	inside, hubUp := newUpstream(), newUpstream()
	net := network{}
	for _, host := range []string{"127.0.0.1:80", "169.254.169.254", "evil.test", "hub.test", "docker.io:443", "docker.io/x", "docker.io@evil.test", "DOCKER.IO.", "[::1]", " docker.io"} {
		net[host] = inside
	}
	net["hub.test"] = hubUp
	w := newWeir(t, net, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"})
	for _, ns := range []string{"127.0.0.1:80", "169.254.169.254", "evil.test", "hub.test", "docker.io:443", "docker.io%2Fx", "docker.io@evil.test", "DOCKER.IO.", "%5B::1%5D", "%20docker.io", "http:%2F%2Fevil.test", strings.Repeat("a", 5000)} {
		rec := w.get("/v2/alpine/manifests/3?ns="+ns, 404, "NAME_UNKNOWN")
		if !strings.Contains(rec.Body.String(), "docker.io") || rec.Body.Len() > 1000 || rec.Header().Get("OCI-Namespace") != "" {
			t.Errorf("%s: %s", ns, rec.Body)
		}
	}
	if asked := append(inside.took(), hubUp.took()...); len(asked) != 0 {
		t.Errorf("asked: %v", asked)
	}
}

func TestConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		regs []Registry
	}{
		"twice":           {Options{}, []Registry{{Name: "docker.io"}, {Name: "index.docker.io"}}},
		"no name":         {Options{}, []Registry{{}}},
		"slash":           {Options{}, []Registry{{Name: "a/b"}}},
		"unknown default": {Options{Default: "ghcr.io"}, []Registry{{Name: "docker.io"}}},
		"scheme":          {Options{}, []Registry{{Name: "a.test", URL: "ftp://a.test"}}},
		"credentials":     {Options{}, []Registry{{Name: "a.test", URL: "https://u:p@a.test"}}},
		"realm":           {Options{}, []Registry{{Name: "a.test", Realms: []string{"https://a.test"}}}},
		"redirect":        {Options{}, []Registry{{Name: "a.test", Redirects: []string{"*"}}}},
		"address":         {Options{}, []Registry{{Name: "a.test", URL: "http://a.test:x"}}},
	} {
		if _, err := NewUpstreams(c.regs, c.o); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	u, err := NewUpstreams([]Registry{{Name: "docker.io"}, {Name: "ghcr.io"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"docker.io": "https://registry-1.docker.io", "ghcr.io": "https://ghcr.io"} {
		if got := u.remotes[name].client.Base().String(); got != want {
			t.Errorf("%s is at %s", name, got)
		}
	}
	if _, _, err := u.of(registry.Name{Space: Space, Repo: "quay.io/a"}); registry.KindOf(err) != registry.ErrNotFound {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	n := registry.Name{Space: Space, Repo: "docker.io/library/a", Ref: "x"}
	good := `{"digest":"` + sha256Of + `","size":3,"mediaType":"` + v1.MediaTypeImageManifest + `"}`
	for doc, want := range map[string][]string{
		`{"config":` + good + `,"layers":[` + good + `]}`:                                              {blobsRef + sha256Of},
		`{"manifests":[` + good + `]}`:                                                                 {sha256Of},
		`{"manifests":[` + strings.Replace(good, v1.MediaTypeImageManifest, "application/x", 1) + `]}`: nil,
		`{"layers":[` + strings.Replace(good, `{`, `{"urls":["https://x.test"],`, 1) + `]}`:            nil,
		`{}`: nil,
	} {
		held, err := Lists(n, registry.Binding{}, strings.NewReader(doc))
		var got []string
		for _, h := range held {
			got = append(got, h.Ref)
			if h.Size != 3 || h.Digest != sha256Of {
				t.Errorf("%+v", h)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v", doc, got, err)
		}
	}
	for _, doc := range []string{``, `[]`, `{"layers":[{}]}`, `{"layers":[` + strings.Replace(good, "3", "-3", 1) + `]}`, `{"config":{"digest":"` + sha1Of + `"}}`,
		`{"layers":3}`, `{"manifests":[` + strings.Replace(good, sha256Of, "../../x", 1) + `]}`} {
		if held, err := Lists(n, registry.Binding{}, strings.NewReader(doc)); registry.KindOf(err) != registry.ErrInvalid || len(held) != 0 {
			t.Errorf("%s: %v %v", doc, held, err)
		}
	}
}

func FuzzLists(f *testing.F) {
	f.Add(`{"config":{"digest":"` + sha256Of + `","size":1},"layers":[],"manifests":[{"digest":"x"}]}`)
	f.Add(`{"layers":[{"size":-1}]}`)
	f.Fuzz(func(t *testing.T, doc string) {
		held, err := Lists(registry.Name{Space: Space, Repo: "a/b", Ref: "x"}, registry.Binding{}, strings.NewReader(doc))
		if err != nil && registry.KindOf(err) != registry.ErrInvalid {
			t.Fatal(err)
		}
		for _, h := range held {
			if !validDigest(string(h.Digest)) || h.Size < 0 || strings.TrimPrefix(h.Ref, blobsRef) != string(h.Digest) {
				t.Errorf("%+v", h)
			}
		}
	})
}
