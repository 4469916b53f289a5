package conformance_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/registry"
)

// tenants are two of one weir: acme, whose images and packages are here because acme
// has pulled them, and bob, who has repositories in the same registry and a
// registry of his own, which says what he likes.
type tenants struct {
	*lab.Weir
	acme, bob string // their tokens
	// manifest and layer are acme's, none is nobody's. bob has pulled a manifest
	// of his that lists both, as layers of layer's size.
	manifest, layer, none string
	size                  int64
	// many are small layers of acme's and as many of nobody's, of which bob's
	// own/many says that it is made.
	manyHere, manyAbsent []string
	hub                  *lab.Registry
}

// bobsRegistry is the registry that bob runs.
const bobsRegistry = "registry.bob.test"

// evil answers manifests in a registry's place.
type evil struct {
	http.Handler
	manifests map[string][]byte // by path
}

func (e *evil) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m, ok := e.manifests[r.URL.Path]
	if !ok {
		e.Handler.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", ociDigest(m))
	w.Header().Set("Content-Length", fmt.Sprint(len(m)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(m)
	}
}

// claim makes own/NAME:1 an image of these layers, whoever has them, and of what
// like is of: an image that bob has.
func (e *evil) claim(t *testing.T, like []byte, name string, size int64, layers ...string) {
	t.Helper()
	var m struct {
		Schema int               `json:"schemaVersion"`
		Type   string            `json:"mediaType"`
		Config json.RawMessage   `json:"config"`
		Layers []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(like, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range layers {
		m.Layers = append(m.Layers, fmt.Appendf(nil, `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, d, size))
	}
	m.Type = "application/vnd.oci.image.manifest.v1+json"
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"1", ociDigest(text)} {
		e.manifests["/v2/own/"+name+"/manifests/"+ref] = text
	}
}

func startTenants(t *testing.T) *tenants {
	t.Helper()
	x := &tenants{hub: lab.StartRegistry(t), none: ociDigest([]byte("nowhere"))}
	bobs, packages := lab.StartRegistry(t), newNpmLab(t)
	secret := lab.Noise("acme's", 100_000)
	x.layer, x.size = ociDigest(secret), int64(len(secret))
	lab.Push(t, x.hub.Addr, "acme/stone:care", lab.MakeBlobs(t, secret))
	const small = 64
	many := make([][]byte, conformance.TimingSamples())
	for i := range many {
		many[i] = lab.Noise(fmt.Sprint("many ", i), small)
		x.manyHere = append(x.manyHere, ociDigest(many[i]))
		x.manyAbsent = append(x.manyAbsent, ociDigest(fmt.Append(nil, "nowhere ", i)))
	}
	pushMany(t, x.hub, "acme/stone", "many", many)
	lab.Push(t, x.hub.Addr, "bob/app:1", lab.MakeBlobs(t, []byte("bob's")))
	lab.Push(t, bobs.Addr, "own/app:1", lab.MakeBlobs(t, []byte("bob's")))
	stone := packages.Publish(npmlab.Version{Name: "@acme/stone", Version: "1.0.0"})
	packages.PublishRaw("@bob/evil", claimingPackument(packages.URL, stone, []byte("nowhere")), nil)
	packages.Publish(npmlab.Version{Name: "@bob/app", Version: "1.0.0"})

	u, err := url.Parse(bobs.URL)
	if err != nil {
		t.Fatal(err)
	}
	like, err := ociAsk(http.DefaultClient, "GET", bobs.URL+"/v2/own/app/manifests/1", "Accept", "application/vnd.oci.image.manifest.v1+json")
	if err != nil || like.status != 200 {
		t.Fatal(err, like.status)
	}
	e := &evil{httputil.NewSingleHostReverseProxy(u), map[string][]byte{}}
	e.claim(t, like.body, "evil", x.size, x.layer, x.none)
	e.claim(t, like.body, "many", small, append(x.manyHere, x.manyAbsent...)...)
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	x.Weir = lab.StartWeir(t, fmt.Sprintf("oci: {default: docker.io, upstreams: {docker.io: {url: %q, fresh: 1h}, %s: {url: %q, fresh: 1h}}}\n", x.hub.URL, bobsRegistry, s.URL)+
		fmt.Sprintf("npm: {upstreams: {public: {url: %q, fresh: 1h}}}\naccess: {anonymous: []}\n", packages.URL))
	x.acme = x.robot(t, "acme", "pull oci:docker.io/acme/*", "pull npm:@acme/*")
	x.bob = x.robot(t, "bob", "pull oci:docker.io/bob/*", "pull oci:"+bobsRegistry+"/*", "pull npm:@bob/*")

	x.manifest = ociDigest(x.ask(t, x.acme, "/v2/acme/stone/manifests/care", 200).body)
	x.ask(t, x.acme, "/v2/acme/stone/manifests/many", 200)
	for _, d := range x.manyHere {
		x.ask(t, x.acme, "/v2/acme/stone/blobs/"+d, 200)
	}
	for _, path := range []string{"/v2/acme/stone/manifests/" + x.manifest, "/v2/acme/stone/blobs/" + x.layer, "/v2/acme/stone/tags/list",
		"/v2/acme/stone/referrers/" + x.manifest, "/npm/@acme/stone", "/npm/@acme/stone/1.0.0", "/npm/@acme/stone/-/stone-1.0.0.tgz"} {
		x.ask(t, x.acme, path, 200)
	}
	return x
}

// pushMany pushes an image of so many layers that a client which looks after each of
// them takes its time. Its answers are looked at in the end: the registry takes no
// manifest of which it lacks something.
func pushMany(t *testing.T, hub *lab.Registry, repo, tag string, layers [][]byte) {
	t.Helper()
	client := ociClient(t)
	send := func(method, path string, body []byte, mediaType string) (*http.Response, error) {
		req, err := http.NewRequest(method, path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	push := func(blob []byte) error {
		begun, err := send("POST", hub.URL+"/v2/"+repo+"/blobs/uploads/", nil, "")
		if err == nil {
			_, err = send("PUT", begun.Header.Get("Location")+"&digest="+url.QueryEscape(ociDigest(blob)), blob, "application/octet-stream")
		}
		return err
	}
	describe := func(mediaType string, blob []byte) string {
		return fmt.Sprintf(`{"mediaType": %q, "digest": %q, "size": %d}`, mediaType, ociDigest(blob), len(blob))
	}
	config := []byte("{}")
	var work errgroup.Group
	work.SetLimit(8)
	work.Go(func() error { return push(config) })
	var described []string
	for _, l := range layers {
		work.Go(func() error { return push(l) })
		described = append(described, describe("application/vnd.oci.image.layer.v1.tar", l))
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	resp, err := send("PUT", hub.URL+"/v2/"+repo+"/manifests/"+tag, fmt.Appendf(nil, `{"schemaVersion": 2, "mediaType": %q, "config": %s, "layers": [%s]}`,
		manifest, describe("application/vnd.oci.image.config.v1+json", config), strings.Join(described, ", ")), manifest)
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatal(err, resp)
	}
}

// claimingPackument is of bob's package evil, whose versions 1.0.0 and 1.0.1 are by
// their integrity acme's tarball and nobody's. The registry has neither of them.
func claimingPackument(url string, tarballs ...[]byte) []byte {
	var versions []string
	for i, tarball := range tarballs {
		sum := sha512.Sum512(tarball)
		versions = append(versions, fmt.Sprintf(`"1.0.%[1]d": {"name": "@bob/evil", "version": "1.0.%[1]d", "dist": {"tarball": "%[2]s/@bob/evil/-/evil-1.0.%[1]d.tgz", "integrity": "sha512-%[3]s"}}`,
			i, url, base64.StdEncoding.EncodeToString(sum[:])))
	}
	return []byte(`{"name": "@bob/evil", "dist-tags": {"latest": "1.0.0"}, "versions": {` + strings.Join(versions, ", ") + `}}`)
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
// if they had it. What is here and what is nowhere is called by the same letters:
// how long a name takes to be looked through must not count.
func (x *tenants) foreign(status int) (strangers, own []foreignCase) {
	const acme = "/v2/acme/stone/"
	strangers = []foreignCase{
		{"blob", acme + "blobs/" + x.layer, acme + "blobs/" + x.none, status},
		{"manifest", acme + "manifests/" + x.manifest, acme + "manifests/" + x.none, status},
		{"referrers", acme + "referrers/" + x.manifest, acme + "referrers/" + x.none, status},
		{"tag", acme + "manifests/care", acme + "manifests/race", status},
		{"tags", acme + "tags/list", "/v2/acme/notes/tags/list", status},
		{"repository", acme + "manifests/care", "/v2/acme/notes/manifests/care", status},
		{"token", "/token?scope=repository:acme/stone:pull", "/token?scope=repository:acme/notes:pull", 200},
		{"packument", "/npm/@acme/stone", "/npm/@acme/notes", status},
		{"version", "/npm/@acme/stone/1.0.0", "/npm/@acme/notes/1.0.0", status},
		{"tarball", "/npm/@acme/stone/-/stone-1.0.0.tgz", "/npm/@acme/notes/-/notes-1.0.0.tgz", status},
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
	x.secrets(t, x.bob, own)
	x.ask(t, x.bob, "/v2/"+bobsRegistry+"/own/many/manifests/1", 200)
	t.Run("first answers", x.firstAnswers)
	x.ask(t, x.bob, "/npm/@bob/evil", 200)
	tarballs := [2][]string{{"/npm/@bob/evil/-/evil-1.0.0.tgz"}, {"/npm/@bob/evil/-/evil-1.0.1.tgz"}}
	x.ask(t, x.bob, tarballs[0][0], 404)
	x.ask(t, x.bob, tarballs[1][0], 404)
	conformance.FirstAnswersAt(t, x.Addr, bearerHeader(x.bob), tarballs[0], tarballs[1]) // now the second
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
	if a := x.ask(t, x.acme, "/v2/acme/stone/blobs/"+x.layer, 200); ociDigest(a.body) != x.layer {
		t.Errorf("acme gets something else, after %v", time.Since(begun))
	}
	x.ask(t, x.bob, "/v2/acme/stone/blobs/"+x.layer, http.StatusForbidden)
}

// leastFirst is how probable the times of first answers must at least be, if there
// is no difference: they cannot be had again.
const leastFirst = 0.0001

// firstAnswers has bob ask for many of acme's layers, and for as many of nobody's,
// each once: by acme's repository, by one of his that is in the same registry, and
// by one of which his own registry says that it has them.
//
// For what a repository claims its registry is asked: by HEAD for what is here, by
// GET for what is to be fetched. So whoever has such a registry can tell, by its
// own log and by the time; here only the answers must be the same.
func (x *tenants) firstAnswers(t *testing.T) {
	for name, claimed := range map[string]bool{"acme/stone": false, "bob/app": false, bobsRegistry + "/own/many": true} {
		t.Run(name, func(t *testing.T) {
			var here, absent []string
			for i := range x.manyHere {
				here = append(here, "/v2/"+name+"/blobs/"+x.manyHere[i])
				absent = append(absent, "/v2/"+name+"/blobs/"+x.manyAbsent[i])
			}
			found := conformance.FirstAnswersAt(t, x.Addr, bearerHeader(x.bob), here, absent)
			t.Log(found)
			if !claimed && !found.Alike(leastFirst) {
				t.Error("the first answers tell them apart")
			}
		})
	}
}
