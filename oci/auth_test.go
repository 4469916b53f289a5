package oci

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// tokens is a token server and the guard of a registry that believes it.
type tokens struct {
	mu     sync.Mutex
	asked  []string // queries
	auths  []string
	valid  map[string]bool
	issued atomic.Int32
	life   int
	field  string
	status int // not 0: the answer
	hang   bool
}

func newTokens() *tokens { return &tokens{valid: map[string]bool{}, life: 300, field: "token"} }

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.RawQuery)
	s.auths = append(s.auths, r.Header.Get("Authorization"))
	hang, code := s.hang, s.status
	s.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if code != 0 {
		w.WriteHeader(code)
		return
	}
	t := fmt.Sprintf("t%d", s.issued.Add(1))
	s.mu.Lock()
	s.valid["Bearer "+t] = true
	s.mu.Unlock()
	body := fmt.Sprintf(`{%q:%q,"expires_in":%d}`, s.field, t, s.life)
	if s.life == 0 {
		body = fmt.Sprintf(`{%q:%q}`, s.field, t)
	}
	send(w, r, body)
}

// guard answers 401 with a challenge unless the token is good.
func (s *tokens) guard(challenges ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.valid[r.Header.Get("Authorization")] {
			return false
		}
		for _, c := range challenges {
			w.Header().Add("Www-Authenticate", c)
		}
		w.WriteHeader(401)
		return true
	}
}

func (s *tokens) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.valid)
}

func (s *tokens) took() (asked, auths []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, auths = s.asked, s.auths
	s.asked, s.auths = nil, nil
	return asked, auths
}

const bearer = `Bearer realm="https://auth.hub.test/token",service="hub.test",scope="repository:library/a:pull"`

// guarded is a weir in front of an https upstream at registry.hub.test with a
// token server at auth.hub.test.
func guarded(t *testing.T, username, password string, net network, challenges ...string) (*weir, *upstream, *tokens) {
	up, tok := newUpstream(), newTokens()
	all := network{"registry.hub.test": up, "auth.hub.test": tok}
	for k, v := range net {
		all[k] = v
	}
	up.set(tok.guard(challenges...))
	w := newWeir(t, all, Options{Default: hub}, Registry{Name: hub, URL: "https://registry.hub.test", Username: username, Password: password, Realms: []string{"listed.test"}})
	return w, up, tok
}

func TestTokenFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up, tok := guarded(t, "", "", nil, bearer)
		up.image(t, "library/a", "a", "x")
		up.image(t, "library/b", "b", "x")
		w.pull("a", "x")
		asked, auths := tok.took()
		if !slices.Equal(asked, []string{"scope=repository%3Alibrary%2Fa%3Apull&service=hub.test"}) || auths[0] != "" {
			t.Errorf("token asked for with %v as %q", asked, auths)
		}
		if got := up.took(); len(got) != 5 || got[0] != got[1] {
			t.Errorf("a pull after a challenge: %v", got)
		}
		// What was learnt saves the challenge for the next repository.
		w.pull("b", "x")
		if asked, _ := tok.took(); !slices.Equal(asked, []string{"scope=repository%3Alibrary%2Fb%3Apull&service=hub.test"}) {
			t.Errorf("second repository: %v", asked)
		}
		if got := up.took(); len(got) != 4 {
			t.Errorf("second repository: %v", got)
		}
		// A token is used until shortly before it expires.
		pass(4 * time.Minute)
		w.pull("a", "x")
		if asked, _ := tok.took(); len(asked) != 0 {
			t.Errorf("a good token was not used: %v", asked)
		}
		pass(52 * time.Second)
		w.get("/v2/a/manifests/other", 404, "MANIFEST_UNKNOWN")
		synctest.Wait()
		if asked, _ := tok.took(); len(asked) != 1 {
			t.Errorf("an expiring token: %v", asked)
		}
	})
}

func TestTokenWithoutLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up, tok := guarded(t, "", "", nil, bearer)
		tok.life, tok.field = 0, "access_token"
		up.image(t, "library/a", "a", "x")
		w.pull("a", "x")
		tok.took()
		pass(45 * time.Second)
		w.get("/v2/a/manifests/other", 404, "MANIFEST_UNKNOWN")
		if asked, _ := tok.took(); len(asked) != 0 {
			t.Errorf("after 45 s: %v", asked)
		}
		pass(15 * time.Second)
		w.get("/v2/a/manifests/another", 404, "MANIFEST_UNKNOWN")
		if asked, _ := tok.took(); len(asked) != 1 {
			t.Errorf("after 60 s: %v", asked)
		}
	})
}

func TestTokenRevoked(t *testing.T) {
	w, up, tok := guarded(t, "", "", nil, bearer)
	m, _ := up.image(t, "library/a", "a", "x")
	w.get("/v2/a/manifests/x", 200, "")
	tok.took()
	tok.revoke()
	w.get("/v2/a/blobs/"+string(m.Config.Digest), 200, "")
	if asked, _ := tok.took(); len(asked) != 1 {
		t.Errorf("%v", asked)
	}
}

// TestTokenOnce: however many need a token, it is asked for once.
func TestTokenOnce(t *testing.T) {
	w, up, tok := guarded(t, "", "", nil, bearer)
	m, _ := up.image(t, "library/a", "a", "x")
	w.get("/v2/a/manifests/x", 200, "")
	tok.took()
	rm := w.ups.remotes[hub]
	rm.auth.mu.Lock()
	clear(rm.auth.tokens)
	rm.auth.mu.Unlock()
	gate := make(chan struct{})
	tok.mu.Lock() // nobody gets a token before all want one
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			<-gate
			resp, err := rm.do(t.Context(), "HEAD", "library/a", "blobs/"+string(m.Config.Digest), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Error(resp, err)
			}
		})
	}
	close(gate)
	tok.mu.Unlock()
	wg.Wait()
	if asked, _ := tok.took(); len(asked) == 0 || len(asked) > 2 {
		t.Errorf("asked %d times", len(asked))
	}
}

func TestBasic(t *testing.T) {
	up := newUpstream()
	up.image(t, "library/a", "a", "x")
	const want = "Basic dXNlcjpwYXNz" // user:pass
	up.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == want {
			return false
		}
		rw.Header().Set("Www-Authenticate", `Basic realm="x"`)
		rw.WriteHeader(401)
		return true
	})
	net := network{"hub.test": up}
	w := newWeir(t, net, Options{Default: hub}, Registry{Name: hub, URL: "https://hub.test", Username: "user", Password: "pass"})
	w.pull("a", "x")
	if n := len(up.took()); n != 5 {
		t.Errorf("%d requests", n)
	}
	for _, r := range []Registry{{Name: hub, URL: "https://hub.test"}, {Name: hub, URL: "https://hub.test", Username: "user", Password: "wrong"}} {
		w := newWeir(t, net, Options{Default: hub}, r)
		w.get("/v2/a/manifests/x", 401, "UNAUTHORIZED")
		if n := len(up.took()); n > 2 {
			t.Errorf("%d tries to log in", n)
		}
	}
}

// TestRealms: credentials go to the registry's own token server, and a realm
// elsewhere gets nothing at all.
func TestRealms(t *testing.T) {
	for realm, trusted := range map[string]bool{
		"https://auth.hub.test/token": true, "https://registry.hub.test/token": true, "https://hub.test/token": true, "https://listed.test/token": true,
		"https://AUTH.hub.test/token?account=x": true, "https://registry.hub.test:8443/token": true,
		"https://evil.test/token": false, "https://hub.test.evil.test/token": false, "https://evilhub.test/token": false, "http://auth.hub.test/token": false,
		"https://listed.test:8443/token": false, "https://sub.listed.test/token": false, "https://x:y@auth.hub.test/token": false,
		"https://auth.hub.test@evil.test/token": false, "//evil.test/token": false, "/token": false, "ftp://auth.hub.test/token": false, "https://%zz": false,
		"https://127.0.0.1/token": false, "https://[::1]/token": false,
	} {
		evil := newTokens()
		net := network{}
		for _, host := range []string{"evil.test", "hub.test.evil.test", "evilhub.test", "hub.test", "listed.test", "listed.test:8443", "sub.listed.test", "127.0.0.1", "[::1]", "registry.hub.test:8443", "AUTH.hub.test"} {
			net[host] = evil
		}
		w, up, tok := guarded(t, "user", "secret", net, fmt.Sprintf(`Bearer realm=%q,service="s"`, realm))
		up.image(t, "library/a", "a", "x")
		own := up.wrap
		up.set(func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				evil.ServeHTTP(rw, r)
				return true
			}
			evil.mu.Lock()
			good := evil.valid[r.Header.Get("Authorization")]
			evil.mu.Unlock()
			return !good && own(rw, r)
		})
		rec := w.do("GET", "/v2/a/manifests/x")
		_, atOwn := tok.took()
		_, elsewhere := evil.took()
		asked := append(atOwn, elsewhere...)
		if trusted {
			if rec.Code != 200 || len(asked) != 1 || asked[0] != "Basic dXNlcjpzZWNyZXQ=" {
				t.Errorf("%s: %d, asked with %q", realm, rec.Code, asked)
			}
			continue
		}
		if rec.Code != 503 || len(asked) != 0 {
			t.Errorf("%s: %d, asked with %q", realm, rec.Code, asked)
		}
		for _, a := range up.auths {
			if a != "" {
				t.Errorf("%s: the registry got %q", realm, a)
			}
		}
	}
}

func TestSameSite(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"auth.docker.io", "registry-1.docker.io", true}, {"a.example.co.uk", "b.example.co.uk", true}, {"a.co.uk", "b.co.uk", false},
		{"a.github.io", "b.github.io", false}, {"docker.io", "io", false}, {"127.0.0.1", "127.0.0.1", false}, {"1.0.0.1", "2.0.0.1", false},
		{"localhost", "localhost", false}, {"a.s3.amazonaws.com", "b.s3.amazonaws.com", false}, {"X.docker.IO", "y.Docker.io", true},
	} {
		if got := sameSite(c.a, c.b); got != c.want {
			t.Errorf("%s %s: %v", c.a, c.b, got)
		}
	}
}

// TestTokenServerFails: that says nothing about images.
func TestTokenServerFails(t *testing.T) {
	for code, want := range map[int]int{500: 503, 503: 503, 404: 503, 400: 503, 302: 503, 429: 429, 401: 401, 403: 403, 204: 503} {
		w, up, tok := guarded(t, "user", "pass", nil, bearer)
		up.image(t, "library/a", "a", "x")
		tok.status = code
		rec := w.do("GET", "/v2/a/manifests/x")
		if rec.Code != want || !strings.Contains(rec.Body.String(), "token server") {
			t.Errorf("%d: %d %s", code, rec.Code, rec.Body)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w, up, tok := guarded(t, "user", "pass", nil, bearer)
		up.image(t, "library/a", "a", "x")
		tok.hang = true
		begun := time.Now()
		w.get("/v2/a/manifests/x", 503, "UNAVAILABLE")
		if took := time.Since(begun); took > 25*time.Second {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
	})
}

// TestSlowConversation: answers that are each in time do not add up to a hang.
func TestSlowConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up, _ := guarded(t, "", "", nil, bearer)
		challenge := up.wrap
		up.set(func(rw http.ResponseWriter, r *http.Request) bool {
			select {
			case <-time.After(14 * time.Second):
			case <-r.Context().Done():
			}
			return challenge(rw, r)
		})
		begun := time.Now()
		_, err := w.ups.remotes[hub].do(t.Context(), "GET", "library/a", "manifests/x", nil)
		if registry.KindOf(err) != registry.ErrUnavailable || registry.Public(err) != "docker.io does not answer" || time.Since(begun) != askTime {
			t.Errorf("after %v: %v, public %q", time.Since(begun), err, registry.Public(err))
		}
	})
}

func TestBadTokens(t *testing.T) {
	for _, body := range []string{"", "{}", "[]", `{"token":""}`, `{"token":"a b"}`, `{"token":"a\r\nX-Evil: 1"}`, `{"token":"é"}`, `{"token":5}`, "<html>", strings.Repeat("x", maxToken+10)} {
		w, up, _ := guarded(t, "", "", network{"auth.hub.test": http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { send(rw, r, body) })}, bearer)
		up.image(t, "library/a", "a", "x")
		w.get("/v2/a/manifests/x", 503, "UNAVAILABLE")
	}
}

// TestStill401: after the token flow an upstream's refusal stays one, without
// trying for ever.
func TestStill401(t *testing.T) {
	w, up, tok := guarded(t, "user", "pass", nil)
	up.set(answers(401, "Www-Authenticate", bearer))
	w.get("/v2/a/manifests/x", 401, "UNAUTHORIZED")
	if n := len(up.took()); n != 2 {
		t.Errorf("%d requests", n)
	}
	if asked, _ := tok.took(); len(asked) != 1 {
		t.Errorf("%d tokens", len(asked))
	}
}

// TestOtherScope: the scope is the challenge's, where it differs from the
// usual one.
func TestOtherScope(t *testing.T) {
	w, up, tok := guarded(t, "", "", nil, `Basic realm="x", Bearer realm="https://auth.hub.test/token?a=b",scope="repository:x:pull repository:y:pull"`)
	up.image(t, "library/a", "a", "x")
	w.pull("a", "x")
	if asked, _ := tok.took(); !slices.Equal(asked, []string{"a=b&scope=repository%3Ax%3Apull&scope=repository%3Ay%3Apull"}) {
		t.Errorf("%v", asked)
	}
}

// TestClientCredentialsStay: what a client sends to weir is for weir.
func TestClientCredentialsStay(t *testing.T) {
	w, up := one(t)
	up.image(t, "library/a", "a", "x")
	w.check(w.do("GET", "/v2/a/manifests/x", "Authorization", "Basic c2VjcmV0OnNlY3JldA==", "Cookie", "a=b", "X-Forwarded-For", "1.2.3.4"), "GET", 200, "")
	for _, h := range up.seen {
		for k := range h {
			if !slices.Contains([]string{"Accept", "Accept-Encoding", "User-Agent"}, k) {
				t.Errorf("the upstream got %s: %s", k, h.Get(k))
			}
		}
	}
}

// TestChallengeOfAnotherHost: a redirect's target cannot ask for credentials.
func TestChallengeOfAnotherHost(t *testing.T) {
	evil := newUpstream()
	evil.set(answers(401, "Www-Authenticate", `Basic realm="x"`))
	w, up, _ := guarded(t, "user", "pass", network{"cdn.test": evil})
	up.set(func(rw http.ResponseWriter, r *http.Request) bool {
		http.Redirect(rw, r, "https://cdn.test/x", http.StatusTemporaryRedirect)
		return true
	})
	w.get("/v2/a/blobs/"+sha256Of, 401, "UNAUTHORIZED")
	for _, a := range append(evil.auths, up.auths...) {
		if a != "" {
			t.Errorf("sent %q", a)
		}
	}
}
