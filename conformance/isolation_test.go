package conformance_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/registry"
)

// Two tenants of one weir: acme, whose images and packages are here because acme
// has pulled them, and bob, who has repositories in the same registry and a
// registry of his own, which says what he likes.
type tenants struct {
	*lab.Weir
	acme, bob string // their tokens
	// manifest and layer are acme's, none is nobody's. bob has pulled a manifest
	// of his that lists both, as layers of layer's size.
	manifest, layer, none string
	size                  int64
	hub                   *lab.Registry
}

// bobsRegistry is the registry that bob runs.
const bobsRegistry = "registry.bob.test"

// evil answers one manifest in a registry's place.
type evil struct {
	http.Handler
	path, digest string
	manifest     []byte
}

func (e *evil) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, e.path); !ok || rest != "1" && rest != e.digest {
		e.Handler.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", e.digest)
	w.Header().Set("Content-Length", fmt.Sprint(len(e.manifest)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(e.manifest)
	}
}

func startTenants(t *testing.T) *tenants {
	t.Helper()
	x := &tenants{hub: lab.StartRegistry(t), none: ociDigest([]byte("nowhere"))}
	bobs, packages := lab.StartRegistry(t), newNpmLab(t)
	secret := lab.Noise("acme's", 100_000)
	x.layer, x.size = ociDigest(secret), int64(len(secret))
	lab.Push(t, x.hub.Addr, "acme/zebra:here", lab.MakeBlobs(t, secret))
	lab.Push(t, x.hub.Addr, "bob/app:1", lab.MakeBlobs(t, []byte("bob's")))
	lab.Push(t, bobs.Addr, "own/app:1", lab.MakeBlobs(t, []byte("bob's")))
	packages.Publish(npmlab.Version{Name: "@acme/zebra", Version: "1.0.0"})
	packages.Publish(npmlab.Version{Name: "@bob/app", Version: "1.0.0"})

	u, err := url.Parse(bobs.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(x.evil(t, bobs, httputil.NewSingleHostReverseProxy(u)))
	t.Cleanup(s.Close)
	x.Weir = lab.StartWeir(t, fmt.Sprintf("oci: {default: docker.io, upstreams: {docker.io: {url: %q, fresh: 1h}, %s: {url: %q, fresh: 1h}}}\n", x.hub.URL, bobsRegistry, s.URL)+
		fmt.Sprintf("npm: {upstreams: {public: {url: %q, fresh: 1h}}}\naccess: {anonymous: []}\n", packages.URL))
	x.acme = x.robot(t, "acme", "pull oci:docker.io/acme/*", "pull npm:@acme/*")
	x.bob = x.robot(t, "bob", "pull oci:docker.io/bob/*", "pull oci:"+bobsRegistry+"/*", "pull npm:@bob/*")

	x.manifest = ociDigest(x.ask(t, x.acme, "/v2/acme/zebra/manifests/here", 200).body)
	for _, path := range []string{"/v2/acme/zebra/manifests/" + x.manifest, "/v2/acme/zebra/blobs/" + x.layer, "/v2/acme/zebra/tags/list",
		"/v2/acme/zebra/referrers/" + x.manifest, "/npm/@acme/zebra", "/npm/@acme/zebra/1.0.0", "/npm/@acme/zebra/-/zebra-1.0.0.tgz"} {
		x.ask(t, x.acme, path, 200)
	}
	return x
}

// evil is bob's registry. Its image own/evil:1 is of acme's layer, of nobody's, and
// of a layer and a configuration that bob has.
func (x *tenants) evil(t *testing.T, bobs *lab.Registry, rest http.Handler) *evil {
	t.Helper()
	own, err := ociAsk(http.DefaultClient, "GET", bobs.URL+"/v2/own/app/manifests/1", "Accept", "application/vnd.oci.image.manifest.v1+json",
		"Accept", "application/vnd.docker.distribution.manifest.v2+json")
	if err != nil || own.status != 200 {
		t.Fatal(err, own.status)
	}
	var m struct {
		Schema int               `json:"schemaVersion"`
		Type   string            `json:"mediaType"`
		Config json.RawMessage   `json:"config"`
		Layers []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(own.body, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{x.layer, x.none} {
		m.Layers = append(m.Layers, fmt.Appendf(nil, `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, d, x.size))
	}
	m.Type = "application/vnd.oci.image.manifest.v1+json"
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &evil{rest, "/v2/own/evil/manifests/", ociDigest(text), text}
}

// robot adds a robot that is granted rights, and makes it a token.
func (x *tenants) robot(t *testing.T, name string, rights ...string) string {
	t.Helper()
	x.MustCommand("", "robot", "add", name)
	for _, r := range rights {
		x.MustCommand("", "grant", "add", "robot:"+name, r)
	}
	var made registry.NewToken
	if err := json.Unmarshal([]byte(x.MustCommand("", "token", "create", name, "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	return made.Secret
}

func bearerHeader(token string) http.Header {
	h := http.Header{"User-Agent": {"stranger"}}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return h
}

func (x *tenants) ask(t *testing.T, token, path string, status int) ociAnswer {
	t.Helper()
	var header []string
	if token != "" {
		header = []string{"Authorization", "Bearer " + token}
	}
	a, err := ociAsk(http.DefaultClient, "GET", x.URL+path, header...)
	if err != nil || a.err != nil || a.status != status {
		t.Fatalf("GET %s: %v, %v, %d %.300s, want %d", path, err, a.err, a.status, a.body, status)
	}
	return a
}

// foreign are what bob has no right to, or could have by his own repositories only
// if they had it.
func (x *tenants) foreign(status int) (strangers, own []foreignCase) {
	const acme = "/v2/acme/zebra/"
	strangers = []foreignCase{
		{"blob", acme + "blobs/" + x.layer, acme + "blobs/" + x.none, status},
		{"manifest", acme + "manifests/" + x.manifest, acme + "manifests/" + x.none, status},
		{"referrers", acme + "referrers/" + x.manifest, acme + "referrers/" + x.none, status},
		{"tag", acme + "manifests/here", acme + "manifests/away", status},
		{"tags", acme + "tags/list", "/v2/acme/yacht/tags/list", status},
		{"repository", acme + "manifests/here", "/v2/acme/yacht/manifests/here", status},
		{"token", "/token?scope=repository:acme/zebra:pull", "/token?scope=repository:acme/yacht:pull", 200},
		{"packument", "/npm/@acme/zebra", "/npm/@acme/yacht", status},
		{"version", "/npm/@acme/zebra/1.0.0", "/npm/@acme/yacht/1.0.0", status},
		{"tarball", "/npm/@acme/zebra/-/zebra-1.0.0.tgz", "/npm/@acme/yacht/-/yacht-1.0.0.tgz", status},
	}
	const evil, mine, beside = "/v2/" + bobsRegistry + "/own/evil/", "/v2/" + bobsRegistry + "/own/app/", "/v2/bob/app/"
	own = []foreignCase{
		{"a layer that bob's manifest lists", evil + "blobs/" + x.layer, evil + "blobs/" + x.none, 404},
		{"a layer by bob's repository elsewhere", mine + "blobs/" + x.layer, mine + "blobs/" + x.none, 404},
		{"a layer by bob's repository in the same registry", beside + "blobs/" + x.layer, beside + "blobs/" + x.none, 404},
		{"a manifest by bob's repository in the same registry", beside + "manifests/" + x.manifest, beside + "manifests/" + x.none, 404},
	}
	return strangers, own
}

type foreignCase struct {
	name, here, absent string
	status             int
}

// secrets checks that all are answered as they should be, and makes them ready
// to be compared.
func (x *tenants) secrets(t *testing.T, token string, cases []foreignCase) (secrets []conformance.Secret) {
	t.Helper()
	for _, c := range cases {
		for _, path := range []string{c.here, c.absent} {
			x.ask(t, token, path, c.status)
		}
		secrets = append(secrets, conformance.Secret{Name: c.name, Here: c.here, Absent: c.absent})
	}
	return secrets
}

// TestIsolation: what is here because of acme, bob gets by no way, not by a
// manifest of his own that lists it either; and nothing of the answers tells him
// that it is here, nor how long they take.
func TestIsolation(t *testing.T) {
	x := startTenants(t)
	strangers, own := x.foreign(http.StatusForbidden)
	x.ask(t, x.bob, "/v2/"+bobsRegistry+"/own/evil/manifests/1", 200)
	x.ask(t, x.bob, "/v2/bob/app/manifests/1", 200)
	t.Run("bob", func(t *testing.T) {
		conformance.TestIndistinguishableAt(t, x.Addr, bearerHeader(x.bob), x.secrets(t, x.bob, strangers))
	})
	t.Run("bob's own", func(t *testing.T) {
		conformance.TestIndistinguishableAt(t, x.Addr, bearerHeader(x.bob), x.secrets(t, x.bob, own))
	})
	strangers, _ = x.foreign(http.StatusUnauthorized)
	t.Run("anonymous", func(t *testing.T) {
		conformance.TestIndistinguishableAt(t, x.Addr, bearerHeader(""), x.secrets(t, "", strangers))
	})
	// The manifest is bob's to have, and a client that pulls it gets nothing.
	crane := craneLogin(t, x.Addr)
	if r := crane.login(t, "token", x.bob); r.Code != 0 {
		t.Fatal(r)
	}
	if r := crane.pull(t, bobsRegistry+"/own/evil:1", "", ""); r.Code == 0 || !strings.Contains(r.Stderr, "BLOB_UNKNOWN") {
		t.Errorf("crane pulls a manifest that lists what bob's registry does not have: %d %s", r.Code, r.Stderr)
	}
	// What bob has asked for in vain is acme's still, and costs nothing.
	x.hub.Stop()
	begun := time.Now()
	if a := x.ask(t, x.acme, "/v2/acme/zebra/blobs/"+x.layer, 200); ociDigest(a.body) != x.layer {
		t.Errorf("acme gets something else, after %v", time.Since(begun))
	}
	x.ask(t, x.bob, "/v2/acme/zebra/blobs/"+x.layer, http.StatusForbidden)
}
