package conformance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weir-registry/weir/conformance/lab"
)

// TestOCINamespaces has two upstreams hold the same repo:tag with other
// contents, and asks for both in every way there is: they never mix.
func TestOCINamespaces(t *testing.T) {
	t.Parallel()
	hub, other := lab.StartRegistry(t), lab.StartRegistry(t)
	hubProxy, otherProxy := lab.StartProxy(t, hub.URL), lab.StartProxy(t, other.URL)
	b := &ociBench{
		Weir:   lab.StartWeir(t, ociConfig("", "docker.io", hubProxy.URL, ociSecond, otherProxy.URL)),
		client: ociClient(t),
	}
	hubDigest := lab.Push(t, hub.Addr, "library/thing:1", lab.MakeBlobs(t, []byte("of the hub"))).String()
	otherDigest := lab.Push(t, other.Addr, "library/thing:1", lab.MakeBlobs(t, []byte("of the other"))).String()
	hubBlob, otherBlob := ociDigest([]byte("of the hub")), ociDigest([]byte("of the other"))

	check := func(when string) {
		t.Helper()
		for path, want := range map[string]string{
			"/v2/library/thing/manifests/1":                                     hubDigest,
			"/v2/library/thing/manifests/1?ns=docker.io":                        hubDigest,
			"/v2/docker.io/library/thing/manifests/1":                           hubDigest,
			"/v2/thing/manifests/1":                                             hubDigest, // docker.io's own short form
			"/v2/library/thing/manifests/1?ns=" + ociSecond:                     otherDigest,
			"/v2/" + ociSecond + "/library/thing/manifests/1":                   otherDigest,
			"/v2/library/thing/manifests/" + otherDigest + "?ns=" + ociSecond:   otherDigest,
			"/v2/library/thing/blobs/" + hubBlob + "?ns=docker.io":              hubBlob,
			"/v2/library/thing/blobs/" + otherBlob + "?ns=" + ociSecond:         otherBlob,
			"/v2/" + ociSecond + "/library/thing/blobs/" + otherBlob + "?x=y&z": otherBlob,
		} {
			a := b.ask(t, "GET", path)
			if got := ociDigest(a.body); a.status != 200 || got != want || a.header.Get("Docker-Content-Digest") != want {
				t.Errorf("%s, %s: %d, %s (header %s), want %s", when, path, a.status, got, a.header.Get("Docker-Content-Digest"), want)
			}
		}
	}
	check("cold")
	check("warm")
	// The one's content is here, and not the other's to give.
	for _, path := range []string{
		"/v2/library/thing/manifests/" + otherDigest,
		"/v2/library/thing/blobs/" + otherBlob + "?ns=docker.io",
		"/v2/" + ociSecond + "/library/thing/blobs/" + hubBlob,
	} {
		b.ask(t, "GET", path).refused(t, path, 404)
	}
	hubProxy.Down()
	otherProxy.Down()
	b.Restart()
	check("with both gone")
}

// TestOCIUnknownNamespace names registries that are not configured, some of
// them addresses: weir asks nobody.
func TestOCIUnknownNamespace(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	for _, ns := range []string{
		"quay.io", b.registry.Addr, "127.0.0.1", "localhost:5000", "169.254.169.254", "[::1]:80", "http://" + b.registry.Addr,
		"docker.io@" + b.registry.Addr, "docker.io/../..", "", "\x00", strings.Repeat("a", 5000), "docker.io,quay.io",
	} {
		a := b.ask(t, "GET", "/v2/library/thing/manifests/1?ns="+url.QueryEscape(ns))
		if ns == "" {
			continue // as good as none
		}
		if a.status != 400 && a.status != 403 && a.status != 404 {
			t.Errorf("ns=%.60q: %d (%.200q)", ns, a.status, a.body)
			continue
		}
		ociCheckError(t, "ns="+ns, a)
	}
	for _, s := range b.proxy.Seen("", "") {
		if !strings.HasPrefix(s.Path, "/v2/library/thing/") && s.Path != "/v2/" {
			t.Errorf("an unknown namespace made weir ask %s", s.Path)
		}
	}
	if n := b.proxy.Count("", "/manifests/"); n > 2 {
		t.Errorf("unknown namespaces cost %d upstream requests:\n%s", n, b.proxy.Story())
	}
}

// TestOCIManifestsAsTheyCame pulls manifests of both dialects with every sort
// of Accept: bytes, media type and digest are those that were pushed.
func TestOCIManifestsAsTheyCame(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	for name, kind := range map[string]lab.Kind{"oci": lab.OCI(), "docker": lab.Docker()} {
		index, _ := lab.MakeIndex(t, kind, name, 1000)
		lab.Push(t, b.registry.Addr, "library/"+name+":1", index)
		m, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		child, err := index.Image(m.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		for ref, what := range map[string]interface {
			RawManifest() ([]byte, error)
			MediaType() (types.MediaType, error)
			Digest() (v1.Hash, error)
		}{"1": index, m.Manifests[0].Digest.String(): child} {
			raw, _ := what.RawManifest()
			mt, _ := what.MediaType()
			digest, _ := what.Digest()
			for _, accept := range []string{"", "*/*", "application/json", string(types.DockerManifestSchema1Signed),
				string(types.DockerManifestSchema2), string(types.OCIManifestSchema1) + ", " + string(types.OCIImageIndex) + ";q=0.5", "text/html"} {
				path := "/v2/library/" + name + "/manifests/" + ref
				a := b.ask(t, "GET", path, "Accept", accept)
				a.right(t, path, 200, raw)
				h := b.ask(t, "HEAD", path, "Accept", accept)
				for _, got := range []ociAnswer{a, h} {
					if got.header.Get("Content-Type") != string(mt) || got.header.Get("Docker-Content-Digest") != digest.String() ||
						got.header.Get("Etag") != `"`+digest.String()+`"` || got.header.Get("Content-Length") != fmt.Sprint(len(raw)) ||
						got.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" || got.header.Get("X-Request-Id") == "" {
						t.Errorf("%s for Accept %q: %d %v", path, accept, got.status, got.header)
					}
				}
				etag := a.header.Get("Etag")
				if a := b.ask(t, "GET", path, "If-None-Match", etag); a.status != 304 || len(a.body) != 0 {
					t.Errorf("%s, If-None-Match: %d", path, a.status)
				}
			}
		}
	}
}

// TestOCILargeManifest pulls a manifest of nearly 4 MiB, the most that clients
// and registries take, at once by many.
func TestOCILargeManifest(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	img := mutate.Annotations(lab.MakeBlobs(t, []byte("of a large manifest")),
		map[string]string{"large": strings.Repeat("annotation ", 3_900_000/11)}).(v1.Image)
	lab.Push(t, b.registry.Addr, "library/large:1", img)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	b.proxy.Reset()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			a, err := ociAsk(b.client, "GET", b.URL+"/v2/library/large/manifests/1")
			if err != nil {
				t.Error(err)
				return
			}
			a.right(t, "large", 200, raw)
		})
	}
	all.Wait()
	if n := b.proxy.Count("GET", "/manifests/"); n != 1 {
		t.Errorf("%d upstream GETs for one manifest:\n%s", n, b.proxy.Story())
	}
}

// TestOCITags lists tags whole and in pages, fresh, and with the upstream gone.
func TestOCITags(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	img := lab.MakeBlobs(t, []byte("tagged"))
	var tags []string
	for i := range 23 {
		tag := fmt.Sprintf("v%d.%d", i%3, i)
		tags = append(tags, tag)
		lab.Push(t, b.registry.Addr, "library/tags:"+tag, img)
	}
	slices.Sort(tags)
	list := func(query string) ([]string, ociAnswer) {
		t.Helper()
		a := b.ask(t, "GET", "/v2/library/tags/tags/list"+query)
		var body struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(a.body, &body); a.status != 200 || err != nil || body.Name != "library/tags" || body.Tags == nil {
			t.Fatalf("tags/list%s: %d %.300q %v", query, a.status, a.body, err)
		}
		return body.Tags, a
	}
	check := func(when string) {
		t.Helper()
		if got, _ := list(""); !slices.Equal(got, tags) {
			t.Errorf("%s: %v, want %v", when, got, tags)
		}
		if got, _ := list("?last=" + tags[4]); !slices.Equal(got, tags[5:]) {
			t.Errorf("%s: after %s: %v", when, tags[4], got)
		}
		if got, _ := list("?last=v1&n=2"); len(got) != 2 || got[0] <= "v1" {
			t.Errorf("%s: after a tag that is not there: %v", when, got)
		}
		if got, a := list("?n=0"); len(got) != 0 || a.header.Get("Link") != "" {
			t.Errorf("%s: n=0: %v, Link %q", when, got, a.header.Get("Link"))
		}
		if got, a := list("?n=1000"); !slices.Equal(got, tags) || a.header.Get("Link") != "" {
			t.Errorf("%s: n=1000: %v, Link %q", when, got, a.header.Get("Link"))
		}
		var paged []string
		for query := "?n=5"; query != ""; {
			got, a := list(query)
			if len(got) > 5 {
				t.Fatalf("%s: a page of %d", when, len(got))
			}
			paged = append(paged, got...)
			link := a.header.Get("Link")
			query = ""
			if link != "" {
				target, rel, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
				u, err := url.Parse(target)
				if err != nil || !strings.Contains(rel, `rel="next"`) || u.Path != "/v2/library/tags/tags/list" {
					t.Fatalf("%s: Link %q", when, link)
				}
				query = "?" + u.RawQuery
			}
			if len(paged) > 100 {
				t.Fatalf("%s: the pages have no end", when)
			}
		}
		if !slices.Equal(paged, tags) {
			t.Errorf("%s: in pages: %v", when, paged)
		}
	}
	check("cold")
	check("warm")
	for _, n := range []string{"-1", "x", "1.5", "99999999999999999999"} {
		a := b.ask(t, "GET", "/v2/library/tags/tags/list?n="+n)
		if n == "99999999999999999999" && a.status == 200 {
			continue
		}
		if a.status != 400 {
			t.Errorf("n=%s: %d", n, a.status)
			continue
		}
		ociCheckError(t, "n="+n, a)
	}
	b.proxy.Down()
	ociStale(t)
	check("with the upstream gone")
	b.Restart()
	check("after a restart")
}

// TestOCIReferrers lists what refers to an image: from a registry that has the
// referrers API, and from one that has only the tag in its place.
func TestOCIReferrers(t *testing.T) {
	t.Parallel()
	modern := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(modern.Close)
	old := lab.StartRegistry(t)
	for name, addr := range map[string]string{"api": strings.TrimPrefix(modern.URL, "http://"), "tag": old.Addr} {
		t.Run(name, func(t *testing.T) {
			p := lab.StartProxy(t, "http://"+addr)
			b := &ociBench{Weir: lab.StartWeir(t, ociConfig("", "docker.io", p.URL)), proxy: p, client: ociClient(t)}
			img := lab.MakeBlobs(t, []byte("referred to"))
			subject := lab.Push(t, addr, "library/subject:1", img)
			raw, _ := img.RawManifest()
			want := map[string]string{}
			for _, kind := range []string{"application/vnd.example.sbom", "application/vnd.example.signature"} {
				ref := ociArtifact(t, kind, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: subject, Size: int64(len(raw))})
				want[lab.Push(t, addr, "library/subject:"+kind[len(kind)-4:], ref).String()] = kind
			}
			for _, when := range []string{"cold", "warm", "with the upstream gone"} {
				if when == "with the upstream gone" {
					p.Down()
					ociStale(t)
				}
				got, _ := ociReferrers(t, b, subject.String(), "")
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: %v, want %v", when, got, want)
				}
				got, a := ociReferrers(t, b, subject.String(), "?artifactType=application/vnd.example.sbom")
				if len(got) != 1 || a.header.Get("OCI-Filters-Applied") != "artifactType" {
					t.Errorf("%s, filtered: %v, %v", when, got, a.header)
				}
			}
			p.Up()
			if got, _ := ociReferrers(t, b, "sha256:"+strings.Repeat("ef", 32), ""); len(got) != 0 {
				t.Errorf("of what has none: %v", got)
			}
			b.ask(t, "GET", "/v2/library/subject/referrers/sha256:bad").refused(t, "a bad digest", 400, "DIGEST_INVALID")
		})
	}
}

// ociArtifact is an image that refers to subject.
func ociArtifact(t *testing.T, kind string, subject v1.Descriptor) remote.Taggable {
	t.Helper()
	img := mutate.ConfigMediaType(lab.MakeBlobs(t, []byte("artifact "+kind)), types.MediaType(kind))
	return mutate.Subject(img, subject).(v1.Image)
}

// ociReferrers is what weir lists: artifact types by digest.
func ociReferrers(t *testing.T, b *ociBench, digest, query string) (map[string]string, ociAnswer) {
	t.Helper()
	a := b.ask(t, "GET", "/v2/library/subject/referrers/"+digest+query)
	var index struct {
		SchemaVersion int
		MediaType     string
		Manifests     []struct{ Digest, ArtifactType string }
	}
	if err := json.Unmarshal(a.body, &index); err != nil || a.status != 200 || index.SchemaVersion != 2 ||
		a.header.Get("Content-Type") != string(types.OCIImageIndex) || !bytes.Contains(a.body, []byte(`"manifests"`)) {
		t.Fatalf("referrers of %s%s: %d %.300q %v", digest, query, a.status, a.body, err)
	}
	got := map[string]string{}
	for _, m := range index.Manifests {
		got[m.Digest] = m.ArtifactType
	}
	return got, a
}
