package conformance_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// An ociGate lets nobody through to the registry behind it who has not got a
// token from its realm, and the realm gives one only for its password.
type ociGate struct {
	realm string       // where it sends those without a token
	blobs http.Handler // answers for blobs in the registry's place; nil: the registry does

	mu     sync.Mutex
	tokens int      // guarded by mu; given away
	sent   []string // guarded by mu; every Authorization it was shown
}

const ociPassword = "correct horse"

func (g *ociGate) ServeHTTP(w http.ResponseWriter, r *http.Request, next http.Handler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if auth := r.Header.Get("Authorization"); auth != "" {
		g.sent = append(g.sent, auth)
	}
	if r.URL.Path == "/token" {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != ociPassword {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		g.tokens++
		json.NewEncoder(w).Encode(map[string]any{"token": ociToken(r.FormValue("scope")), "expires_in": 300})
		return
	}
	repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
	repo, _, _ = strings.Cut(repo, "/blobs/")
	scope := "repository:" + repo + ":pull"
	if r.Header.Get("Authorization") != "Bearer "+ociToken(scope) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="hub",scope=%q`, g.realm, scope))
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	if g.blobs != nil && strings.Contains(r.URL.Path, "/blobs/") {
		next = g.blobs
	}
	next.ServeHTTP(w, r)
}

// ociToken is what the realm gives for a scope.
func ociToken(scope string) string { return base64.RawURLEncoding.EncodeToString([]byte(scope)) }

// startGate starts a gate before the registry; realm "" is its own.
func startGate(t *testing.T, r *lab.Registry, realm string) (*ociGate, string) {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	next := httputil.NewSingleHostReverseProxy(u)
	g := &ociGate{realm: realm}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeHTTP(w, r, next) }))
	t.Cleanup(s.Close)
	if realm == "" {
		g.realm = s.URL + "/token"
	}
	return g, s.URL
}

// ociLogin is the configuration of a weir that logs in to docker.io.
func ociLogin(url, password string) string {
	return fmt.Sprintf("oci: {default: docker.io, upstreams: {docker.io: {url: %q, username: me, password: %q}}}\naccess: {anonymous: [\"pull oci:*\"]}",
		url, password)
}

// TestOCIUpstreamLogin puts weir before a registry that wants a token: weir
// gets one, once, with its own password; its clients need none, and what they
// send stays here.
func TestOCIUpstreamLogin(t *testing.T) {
	t.Parallel()
	r := lab.StartRegistry(t)
	g, url := startGate(t, r, "")
	b := &ociBench{Weir: lab.StartWeir(t, ociLogin(url, ociPassword)), registry: r, client: ociClient(t)}
	blobs := [][]byte{lab.Noise("login0", 1000), lab.Noise("login1", 2*mib), lab.Noise("login2", 3*mib)}
	digests := b.pushBlobs(t, "library/secret:1", blobs...)
	token := clientToken(t, b.Weir)
	mine := []string{"Authorization", "Bearer " + token, "Cookie", "session=mine"}
	if a := b.ask(t, "GET", "/v2/library/secret/manifests/1", mine...); a.status != 200 {
		t.Fatalf("manifest: %d %.200q", a.status, a.body)
	}
	for i, d := range digests {
		b.ask(t, "GET", "/v2/library/secret/blobs/"+d, mine...).right(t, d, 200, blobs[i])
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tokens != 1 {
		t.Errorf("one repository cost %d tokens", g.tokens)
	}
	for _, auth := range g.sent {
		if strings.Contains(auth, token) {
			t.Errorf("the client's token was sent upstream")
		}
	}
}

// TestOCIUpstreamLoginFails gives weir a wrong password: that is not "not
// found", and no invitation to the client to send its own.
func TestOCIUpstreamLoginFails(t *testing.T) {
	t.Parallel()
	r := lab.StartRegistry(t)
	_, url := startGate(t, r, "")
	b := &ociBench{Weir: lab.StartWeir(t, ociLogin(url, "wrong")), registry: r, client: ociClient(t)}
	b.pushBlobs(t, "library/secret:1", []byte("secret"))
	a := b.ask(t, "GET", "/v2/library/secret/manifests/1")
	a.refused(t, "a wrong password", 401, "UNAUTHORIZED")
	if got := a.header.Get("WWW-Authenticate"); got != "" {
		t.Errorf("WWW-Authenticate: %q", got)
	}
	if strings.Contains(b.Log(), "wrong\"") || strings.Contains(b.Log(), ociPassword) {
		t.Errorf("a password is in the log")
	}
}

// TestOCIHostileRealm has a registry send weir to another host for its token:
// the password does not go there.
func TestOCIHostileRealm(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	thief := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 1000)
		n, _ := r.Body.Read(body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(r.Method, r.URL, r.Header["Authorization"], string(body[:n])))
		fmt.Fprintf(w, `{"token":%q}`, ociToken("repository:library/secret:pull"))
	}))
	thief.Listener.Close()
	thief.Listener = l
	thief.Start()
	t.Cleanup(thief.Close)
	r := lab.StartRegistry(t)
	_, url := startGate(t, r, thief.URL+"/token")
	b := &ociBench{Weir: lab.StartWeir(t, ociLogin(url, ociPassword)), registry: r, client: ociClient(t)}
	b.pushBlobs(t, "library/secret:1", []byte("secret"))
	if a := b.ask(t, "GET", "/v2/library/secret/manifests/1"); a.status == 404 {
		t.Errorf("got %d %.200q", a.status, a.body)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, req := range got {
		if strings.Contains(req, "Basic") || strings.Contains(req, "password") || strings.Contains(req, "correct") {
			t.Errorf("the password went to another host: %s", req)
		}
	}
}

// TestOCIRedirectedBlobs puts weir before a registry that sends it elsewhere
// for its blobs, as most do: weir follows where its configuration lets it, and
// takes no credentials along.
func TestOCIRedirectedBlobs(t *testing.T) {
	t.Parallel()
	r := lab.StartRegistry(t)
	store := lab.StartProxy(t, r.URL)
	g, url := startGate(t, r, "")
	g.blobs = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store.URL+r.URL.Path+"?signature=1", http.StatusTemporaryRedirect)
	})
	blob := lab.Noise("redirected", 3*mib)
	img := lab.MakeBlobs(t, blob)
	lab.Push(t, r.Addr, "library/secret:1", img)
	for name, redirects := range map[string]string{"allowed": `["127.0.0.1:*"]`, "not allowed": `[]`} {
		store.Reset()
		config := strings.Replace(ociLogin(url, ociPassword), "username:", "redirects: "+redirects+", username:", 1)
		b := &ociBench{Weir: lab.StartWeir(t, config), registry: r, client: ociClient(t)}
		b.learn(t, "library/secret", "1")
		a := b.ask(t, "GET", "/v2/library/secret/blobs/"+ociDigest(blob))
		if name == "not allowed" {
			if n := store.Count("", ""); a.status != 503 && a.status != 502 || n != 0 {
				t.Errorf("%s: %d (%.200q), and %d requests arrived there", name, a.status, a.body, n)
			}
			continue
		}
		a.right(t, name, 200, blob)
		b.ask(t, "GET", "/v2/library/secret/blobs/"+ociDigest(blob)).right(t, "cached", 200, blob)
		for _, s := range store.Seen("", "") {
			if s.Header.Get("Authorization") != "" {
				t.Errorf("the token went along to another host")
			}
		}
		if n := store.Bytes("", ""); n != int64(len(blob)) {
			t.Errorf("%d bytes were fetched of %d", n, len(blob))
		}
	}
}

// clientToken makes an account and is a token of its own: what a client presents,
// and no upstream may see.
func clientToken(t *testing.T, w *lab.Weir) string {
	t.Helper()
	var made registry.NewToken
	admin := w.AdminToken()
	err := w.Admin(admin, "POST", "/admin/v1/robots", map[string]string{"name": "client"}, nil)
	if err == nil {
		err = w.Admin(admin, "POST", "/admin/v1/tokens", map[string]string{"owner": "client"}, &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	return made.Secret
}
