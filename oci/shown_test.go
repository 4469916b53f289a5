package oci

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
)

// tenants is a weir in front of two registries, of which each repository must show
// what it has.
func tenants(t *testing.T) (w *weir, theirs, ours *upstream) {
	t.Helper()
	theirs, ours = newUpstream(), newUpstream()
	w = newWeir(t, network{"theirs.test": theirs, "ours.test": ours}, Options{},
		Registry{Name: "theirs", URL: "http://theirs.test"}, Registry{Name: "ours", URL: "http://ours.test"})
	w.svc.Prove = func(registry.Name) bool { return true }
	w.svc.Witness = new(registry.Witness)
	w.svc.Blobs = cachetiers.NewTier(w.near, w.svc.Witness.Over(w.ups), cachetiers.Options{})
	return w, theirs, ours
}

// listing adds an image to u whose config is its own and whose layer is anyone's.
func listing(t *testing.T, u *upstream, repo string, layer v1.Descriptor) {
	t.Helper()
	data, err := json.Marshal(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: u.blob(repo, "config of "+repo), Layers: []v1.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	u.put(repo, v1.MediaTypeImageManifest, string(data), "x")
}

var requestID = regexp.MustCompile(`[0-9a-f]{16}"`)

// said is all that a client is told.
func (w *weir) said(method, target string, header ...string) string {
	rec := w.do(method, target, header...)
	var head strings.Builder
	h := rec.Header().Clone()
	h.Del("X-Request-Id")
	_ = h.Write(&head)
	return http.StatusText(rec.Code) + "\n" + head.String() + "\n" + requestID.ReplaceAllString(rec.Body.String(), `"`)
}

// TestForeignDigest: a repository that lists the digest of what another has is not
// given it, and its clients are not told whether it is here.
func TestForeignDigest(t *testing.T) {
	for name, claim := range map[string]func(v1.Descriptor) v1.Descriptor{
		"as it is":     func(d v1.Descriptor) v1.Descriptor { return d },
		"longer":       func(d v1.Descriptor) v1.Descriptor { d.Size++; return d },
		"shorter":      func(d v1.Descriptor) v1.Descriptor { d.Size--; return d },
		"much shorter": func(d v1.Descriptor) v1.Descriptor { d.Size = 3; return d },
	} {
		t.Run(name, func(t *testing.T) {
			answers := map[bool][]string{}
			for _, cached := range []bool{false, true} {
				w, theirs, ours := tenants(t)
				m, secret := theirs.image(t, "secret", "s", "x")
				layer := m.Layers[1]
				listing(t, ours, "mine", claim(layer))
				manifest := theirs.docs["secret/manifests/"+string(secret)]
				if cached {
					w.get("/v2/theirs/secret/manifests/x", 200, "")
					w.get("/v2/theirs/secret/blobs/"+string(layer.Digest), 200, "")
				}
				w.get("/v2/ours/mine/manifests/x", 200, "")
				blob := "/v2/ours/mine/blobs/" + string(layer.Digest)
				for range 2 {
					for _, header := range [][]string{nil, {"Range", "bytes=0-9"}, {"Range", "bytes=2-"}, {"Range", "bytes=0-0,4-5"}, {"Range", "bytes=99999999-"}, {"If-None-Match", `"x"`}} {
						for _, method := range []string{"HEAD", "GET"} {
							said := w.said(method, blob, header...)
							if strings.Contains(said, "layer two") {
								t.Errorf("cached %v: %s %v gave it away", cached, method, header)
							}
							answers[cached] = append(answers[cached], said)
						}
					}
				}
				if rec := w.do("GET", blob); rec.Code != 404 {
					t.Errorf("cached %v: %d", cached, rec.Code)
				}
				answers[cached] = append(answers[cached], w.said("GET", "/v2/ours/mine/manifests/"+string(secret)),
					w.said("GET", "/v2/ours/other/blobs/"+string(layer.Digest)), w.said("GET", "/v2/ours/mine/blobs/"+string(manifest.digest)))
			}
			for i, cold := range answers[false] {
				if cold != answers[true][i] {
					t.Errorf("%d: not cached:\n%s\ncached:\n%s", i, cold, answers[true][i])
				}
			}
		})
	}
}

// TestForeignChild: an index that lists another's manifest.
func TestForeignChild(t *testing.T) {
	w, theirs, ours := tenants(t)
	_, secret := theirs.image(t, "secret", "s", "x")
	body := theirs.docs["secret/manifests/x"].body
	w.get("/v2/theirs/secret/manifests/"+string(secret), 200, "")
	data, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: secret, Size: int64(len(body))}}})
	if err != nil {
		t.Fatal(err)
	}
	ours.put("mine", v1.MediaTypeImageIndex, string(data), "x")
	w.get("/v2/ours/mine/manifests/x", 200, "")
	if rec := w.do("GET", "/v2/ours/mine/manifests/"+string(secret)); rec.Code != 404 || strings.Contains(rec.Body.String(), "layers") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestOwnCostsNothing: what a repository's own upstream gives is shown by that,
// however many ask at once; and then it is known.
func TestOwnCostsNothing(t *testing.T) {
	w, up, _ := tenants(t)
	m, d := up.image(t, "app", "a", "x")
	w.get("/v2/theirs/app/manifests/x", 200, "")
	w.get("/v2/theirs/app/manifests/"+string(d), 200, "")
	blobs := []v1.Descriptor{m.Config, m.Layers[0], m.Layers[1]}
	for _, b := range blobs {
		w.check(w.do("HEAD", "/v2/theirs/app/blobs/"+string(b.Digest)), "HEAD", 200, "")
	}
	wantAsked(t, up, "until bytes are wanted", "GET /v2/app/manifests/x")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for _, b := range blobs {
				w.get("/v2/theirs/app/blobs/"+string(b.Digest), 200, "")
			}
		})
	}
	all.Wait()
	asked := up.took()
	for _, a := range asked {
		if !strings.HasPrefix(a, "GET /v2/app/blobs/") {
			t.Errorf("asked %s", a)
		}
	}
	if len(asked) != len(blobs) {
		t.Errorf("asked %v for %d blobs", asked, len(blobs))
	}
	w.svc.Witness = nil // it is in the names too
	for _, b := range blobs {
		w.get("/v2/theirs/app/blobs/"+string(b.Digest), 200, "")
	}
	w.get("/v2/theirs/app/manifests/"+string(d), 200, "")
	wantAsked(t, up, "warm")
}

// TestSharedCostsOneHEAD: what another repository of one upstream has brought is
// asked for once, and not fetched.
func TestSharedCostsOneHEAD(t *testing.T) {
	w, up, _ := tenants(t)
	base := strings.Repeat("base ", 1000)
	for _, repo := range []string{"one", "two", "liar"} {
		layer := up.blob(repo, base)
		listing(t, up, repo, layer)
		if repo == "liar" {
			delete(up.blobs, repo+"/blobs/"+string(layer.Digest))
		}
		w.get("/v2/theirs/"+repo+"/manifests/x", 200, "")
		up.took()
		target := "/v2/theirs/" + repo + "/blobs/" + string(layer.Digest)
		switch repo {
		case "one":
			w.get(target, 200, "")
			wantAsked(t, up, "the first", "GET /v2/one/blobs/"+string(layer.Digest))
		case "two":
			up.set(answers(500))
			w.get(target, 503, "UNAVAILABLE")
			up.set(nil)
			up.took()
			rec := w.get(target, 200, "")
			if rec.Body.String() != base || !strings.HasPrefix(rec.Header().Get("Cache-Status"), "weir; fwd=stale") {
				t.Errorf("%d bytes, %v", rec.Body.Len(), rec.Header())
			}
			wantAsked(t, up, "the second", "HEAD /v2/two/blobs/"+string(layer.Digest))
			up.set(answers(500))
			w.get(target, 200, "")
			wantAsked(t, up, "and then")
			up.set(nil)
		case "liar":
			w.get(target, 404, "BLOB_UNKNOWN")
		}
	}
}

// TestOpenToAll: where nothing has to be shown nothing is asked.
func TestOpenToAll(t *testing.T) {
	w, up, _ := tenants(t)
	w.svc.Prove = nil
	for _, repo := range []string{"one", "two"} {
		layer := up.blob(repo, "base")
		listing(t, up, repo, layer)
		w.get("/v2/theirs/"+repo+"/manifests/x", 200, "")
		w.get("/v2/theirs/"+repo+"/blobs/"+string(layer.Digest), 200, "")
	}
	for _, a := range up.took() {
		if strings.HasPrefix(a, "HEAD") {
			t.Errorf("asked %s", a)
		}
	}
}

// TestAnswersToEverything: a proxy that answers every address with its own page
// shows nothing, before or after what it was asked for is here.
func TestAnswersToEverything(t *testing.T) {
	w, theirs, ours := tenants(t)
	m, _ := theirs.image(t, "secret", "s", "x")
	layer := m.Layers[1]
	listing(t, ours, "mine", layer)
	w.get("/v2/ours/mine/manifests/x", 200, "")
	ours.set(func(rw http.ResponseWriter, r *http.Request) bool {
		send(rw, r, "<html>please log in</html>")
		return true
	})
	mine := "/v2/ours/mine/blobs/" + string(layer.Digest)
	if rec := w.do("GET", mine); rec.Code == 200 {
		t.Errorf("not cached: %d %s", rec.Code, rec.Body)
	}
	w.get("/v2/theirs/secret/manifests/x", 200, "")
	w.get("/v2/theirs/secret/blobs/"+string(layer.Digest), 200, "")
	for range 2 {
		if rec := w.do("GET", mine); rec.Code == 200 || strings.Contains(rec.Body.String(), "layer two") {
			t.Errorf("cached: %d, %d bytes", rec.Code, rec.Body.Len())
		}
	}
}
