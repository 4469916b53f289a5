package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance/accountlab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/reply"
)

// A house is a weir with accounts, and what it answers with.
type house struct {
	*weir
	accounts *accountlab.Accounts
	up       *upstream
}

// newHouse is a weir where alice may pull acme's images and whoever asks
// those of library, with an image in each and in others' repositories.
func newHouse(t *testing.T, edit ...func(*Config)) *house {
	t.Helper()
	w, up := one(t)
	g := &house{weir: w, accounts: accountlab.New(), up: up}
	g.accounts.Add("alice", "secret", "pull oci:docker.io/acme/*")
	g.accounts.Add("bob", "secret", "push oci:docker.io/bob/*", "pull oci:docker.io/bob/*")
	g.accounts.Grant("", "pull oci:docker.io/library/*")
	up.image(t, "acme/app", "acme", "1")
	up.image(t, "bob/app", "bob", "1")
	up.image(t, "library/alpine", "alpine", "3")
	w.svc.Guard = g.accounts
	c := Config{Service: w.svc, Upstreams: w.ups, Tokens: g.accounts, Gate: gate.New(gate.Config{Identities: g.accounts, Logins: g.accounts})}
	for _, e := range edit {
		e(&c)
	}
	v2, token := New(c), TokenHandler(c)
	w.Handler = reply.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == TokenPath {
			token.ServeHTTP(rw, r)
			return
		}
		v2.ServeHTTP(rw, r)
	}), reply.Options{Space: Space, Log: w.svc.Log})
	return g
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// wants fails the test unless a request is answered like this; challenge is the
// whole WWW-Authenticate, "" for none.
func (g *house) wants(method, target, auth string, code int, challenge, text string) *httptest.ResponseRecorder {
	g.t.Helper()
	var header []string
	if auth != "" {
		header = []string{"Authorization", auth}
	}
	rec := g.do(method, target, header...)
	if got := rec.Header().Get("WWW-Authenticate"); rec.Code != code || got != challenge || !strings.Contains(rec.Body.String(), text) {
		g.t.Errorf("%s %s with %.60q: %d %q\n  %.300s\nwant %d %q with %q", method, target, auth, rec.Code, got, rec.Body, code, challenge, text)
	}
	return rec
}

// asks is the challenge for a repository; "" for none in particular.
func asks(repo, code string) string {
	s := `Bearer realm="http://weir.test/token",service="weir.test"`
	if repo != "" {
		s += `,scope="repository:` + repo + `:pull"`
	}
	if code != "" {
		s += `,error="` + code + `"`
	}
	return s
}

// token asks for one and gives the answer.
func (g *house) token(query, auth string) issued {
	g.t.Helper()
	rec := g.wants("GET", "/token?"+query, auth, 200, "", `"token"`)
	var a issued
	if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || a.Token == "" || a.Token != a.Access || a.Expires < 60 || a.Issued == "" {
		g.t.Fatalf("%s: %s", query, rec.Body)
	}
	if cc := rec.Header().Get("Cache-Control"); cc != "no-store" {
		g.t.Errorf("Cache-Control: %q", cc)
	}
	return a
}

// form posts one to /token.
func (g *house) form(values url.Values) *httptest.ResponseRecorder {
	g.t.Helper()
	r := httptest.NewRequest("POST", "/token", strings.NewReader(values.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rec := httptest.NewRecorder()
	g.ServeHTTP(rec, r)
	return rec
}

func (g *house) posted(values url.Values) issued {
	g.t.Helper()
	rec := g.form(values)
	var a issued
	if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || rec.Code != 200 || a.Access == "" {
		g.t.Fatalf("%v: %d %s", values, rec.Code, rec.Body)
	}
	return a
}

const acme = "/v2/acme/app/manifests/1"

// TestDockerLogin: docker login asks for a refresh token with its password, and
// docker pull for a token with that, by POST.
func TestDockerLogin(t *testing.T) {
	g := newHouse(t)
	g.wants("GET", "/v2/", "", 401, asks("", ""), "UNAUTHORIZED")
	q := "account=alice&client_id=docker&offline_token=true&service=weir.test"
	g.wants("GET", "/token?"+q, basic("alice", "wrong"), 401, `Basic realm="weir"`, "wrong name or password")
	login := g.token(q, basic("alice", "secret"))
	g.wants("GET", "/v2/", "Bearer "+login.Token, 200, "", "{}")
	if !registry.CheckTokenText(login.Refresh) {
		t.Fatalf("no refresh token: %+v", login)
	}
	acc, _ := g.accounts.Account("alice")
	list, _ := g.accounts.ListTokens(t.Context(), registry.Principal{Name: "alice", UID: acc.UID})
	if len(list) != 1 || list[0].Kind != "session" || list[0].Note != "login from 192.0.2.1 by docker" || list[0].Rights != nil ||
		time.Until(list[0].Expires).Round(time.Hour) != sessionLife {
		t.Errorf("%+v", list)
	}

	g.wants("HEAD", acme, "", 401, asks("docker.io/acme/app", ""), "")
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {login.Refresh}, "client_id": {"docker"}, "service": {"x"},
		"scope": {"repository:acme/app:pull"}, "access_type": {"offline"}}
	pull := g.posted(refresh)
	if pull.Refresh != "" || pull.Scope != "repository:acme/app:pull" || pull.Type != "Bearer" {
		t.Errorf("%+v", pull)
	}
	g.wants("GET", acme, "Bearer "+pull.Access, 200, "", "layers")
	if err := g.accounts.RevokeToken(t.Context(), registry.Principal{Name: "alice", UID: acc.UID}, list[0].ID); err != nil {
		t.Fatal(err)
	}
	g.wants("GET", acme, "Bearer "+pull.Access, 401, asks("docker.io/acme/app", "invalid_token"), "revoked")
	if rec := g.form(refresh); rec.Code != 401 || !strings.Contains(rec.Body.String(), "revoked") {
		t.Errorf("a revoked session: %d %s", rec.Code, rec.Body)
	}
}

// TestContainerd: it pings nothing, takes the scope from the challenge, adds
// the one it thinks of itself, and says ns= to /v2/ alone.
func TestContainerd(t *testing.T) {
	g := newHouse(t)
	up := "/v2/acme/app/manifests/1?ns=docker.io"
	g.wants("HEAD", up, "", 401, asks("docker.io/acme/app", ""), "")
	scopes := "scope=repository%3Adocker.io%2Facme%2Fapp%3Apull&scope=repository%3Aacme%2Fapp%3Apull"
	tok := g.token("service=weir.test&"+scopes, basic("alice", "secret")).Token
	g.wants("HEAD", up, "Bearer "+tok, 200, "", "")
	g.wants("GET", "/v2/docker.io/acme/app/manifests/1", "Bearer "+tok, 200, "", "layers")
	post := g.posted(url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"secret"}, "client_id": {"containerd-client"},
		"scope": {"repository:docker.io/acme/app:pull repository:bob/app:pull"}})
	if post.Scope != "repository:docker.io/acme/app:pull" || post.Refresh != "" {
		t.Errorf("%+v", post)
	}
	g.wants("HEAD", up, "Bearer "+post.Token, 200, "", "")
	anon := g.token("scope=repository:library/alpine:pull", "").Token
	g.wants("HEAD", "/v2/alpine/manifests/3?ns=docker.io", "Bearer "+anon, 200, "", "")
}

// TestPodmanAndCrane: they ping first, with or without credentials, and podman
// pings again with its token.
func TestPodmanAndCrane(t *testing.T) {
	g := newHouse(t)
	g.wants("GET", "/v2/", "", 401, asks("", ""), "")
	tok := g.token("account=alice&service=weir.test", basic("alice", "secret"))
	if tok.Refresh != "" {
		t.Error("a refresh token that nobody asked for")
	}
	g.wants("GET", "/v2/", "Bearer "+tok.Token, 200, "", "")
	tok = g.token("account=alice&scope=repository%3Aacme%2Fapp%3Apull&service=weir.test", basic("alice", "secret"))
	g.wants("GET", acme, "Bearer "+tok.Token, 200, "", "layers")
	// Without a login, what is for everyone.
	tok = g.token("scope=repository%3Alibrary%2Falpine%3Apull&service=weir.test", "")
	g.wants("GET", "/v2/library/alpine/manifests/3", "Bearer "+tok.Token, 200, "", "layers")
	g.wants("GET", "/v2/library/alpine/manifests/3", "", 200, "", "layers")
	g.wants("GET", "/v2/", "Bearer "+tok.Token, 401, asks("", ""), "log in")
}

// TestPreemptive: credentials that come with the first request do too.
func TestPreemptive(t *testing.T) {
	g := newHouse(t)
	made, err := g.accounts.CreateToken(t.Context(), g.principal("alice"), registry.TokenSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for _, auth := range []string{basic("alice", "secret"), basic("token", made.Secret), "Bearer " + made.Secret} {
		g.wants("GET", "/v2/", auth, 200, "", "{}")
		g.wants("GET", "/v2", auth, 200, "", "{}")
		g.wants("GET", acme, auth, 200, "", "layers")
		g.wants("GET", "/v2/bob/app/manifests/1", auth, 403, "", "alice may not pull docker.io/bob/app: ask")
	}
	for _, auth := range []string{basic("alice", "wrong"), "Bearer x", "Nonsense", "Bearer " + registry.NewTokenText()} {
		g.wants("GET", "/v2/", auth, 401, asks("", "invalid_token"), "UNAUTHORIZED")
		g.wants("GET", acme, auth, 401, asks("docker.io/acme/app", "invalid_token"), "UNAUTHORIZED")
		// Where an anonymous client may pull, too: it must learn of it.
		g.wants("GET", "/v2/alpine/manifests/3", auth, 401, asks("docker.io/library/alpine", "invalid_token"), "UNAUTHORIZED")
	}
	if rec := g.do("GET", "/v2/", "Authorization", basic("alice", "secret"), "Authorization", basic("alice", "secret")); rec.Code != 401 {
		t.Errorf("two Authorizations: %d", rec.Code)
	}
}

func (g *house) principal(name string) registry.Principal {
	acc, _ := g.accounts.Account(name)
	return registry.Principal{Name: name, UID: acc.UID, Secret: acc.Secret}
}

// TestScopeOfTokens: what a token is good for, and what the client is told.
func TestScopeOfTokens(t *testing.T) {
	g := newHouse(t)
	narrow, err := g.accounts.CreateToken(t.Context(), g.principal("alice"), registry.TokenSpec{Rights: []string{"pull oci:docker.io/acme/other"}})
	if err != nil {
		t.Fatal(err)
	}
	// For another repository than the one it is used for: to be had by asking again.
	tok := g.token("scope=repository:acme/other:pull", basic("alice", "secret")).Token
	g.wants("GET", acme, "Bearer "+tok, 401, asks("docker.io/acme/app", "insufficient_scope"), "issued for something else")
	g.wants("GET", "/v2/bob/app/manifests/1", "Bearer "+tok, 403, "", "alice may not pull")
	// Anonymous, for less than everyone may.
	tok = g.token("", "").Token
	g.wants("GET", "/v2/alpine/manifests/3", "Bearer "+tok, 401, asks("docker.io/library/alpine", "insufficient_scope"), "")
	g.wants("GET", acme, "Bearer "+tok, 401, asks("docker.io/acme/app", ""), "anonymous clients may not pull docker.io/acme/app: log in")
	// The token that it is issued for is for less: asking again is of no use.
	for _, auth := range []string{"Bearer " + narrow.Secret, "Bearer " + g.token("scope=repository:acme/app:pull", basic("alice", narrow.Secret)).Token} {
		g.wants("GET", acme, auth, 403, "", "the token is for less")
	}
	// Scopes that lie.
	rights := func(query string) []registry.Right {
		t.Helper()
		r := httptest.NewRequest("GET", "/v2/", nil)
		r.Header.Set("Authorization", "Bearer "+g.token(query, basic("bob", "secret")).Token)
		p, err := gate.New(gate.Config{Identities: g.accounts}).Who(r)
		if err != nil || p.Name != "bob" || p.Only == nil {
			t.Fatal(p, err)
		}
		return p.Only
	}
	for query, want := range map[string]string{
		"scope=repository:bob/app:pull,push":                                "[{pull oci docker.io/bob/app} {push oci docker.io/bob/app}]",
		"scope=repository:bob/app:*":                                        "[{pull oci docker.io/bob/app} {push oci docker.io/bob/app}]",
		"scope=repository:acme/app:*":                                       "[]",
		"scope=repository:bob/../acme/app:pull":                             "[]",
		"scope=repository:*:pull&scope=registry:catalog:*":                  "[]",
		"scope=repository:alpine:push,pull":                                 "[{pull oci docker.io/library/alpine}]",
		"scope=repository:bob/app:pull%20repository:docker.io/bob/app:pull": "[{pull oci docker.io/bob/app}]",
		"scope=repository:acme/app:pull&scope=repository:no/such:pull&x=y":  "[]",
		"": "[]",
		"account=alice&scope=repository:acme/app:pull": "[]", // whoever that says it is
	} {
		if got := fmt.Sprint(rights(query)); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for _, bad := range []string{"%zz", "scope=" + strings.Repeat("a", maxScope+1), "scope=" + strings.Repeat("a+", maxScopes+1)} {
		g.wants("GET", "/token?"+bad, basic("bob", "secret"), 400, "", "")
	}
	g.wants("GET", "/token", "Bearer "+tok, 403, "", "gets no other")
	g.wants("PUT", "/token", "", 405, "", "")
	if asked := g.up.took(); len(asked) != 0 {
		t.Errorf("for those without a right the upstream was asked %v", asked)
	}
}

// TestNothingShows: of what exists, a client without a right learns nothing.
func TestNothingShows(t *testing.T) {
	g := newHouse(t)
	for _, auth := range []string{"", basic("alice", "secret")} {
		for _, path := range []string{"/v2/%s/manifests/1", "/v2/%s/blobs/" + string(digest.FromString("x")), "/v2/%s/tags/list", "/v2/%s/referrers/" + string(digest.FromString("x"))} {
			a := g.do("GET", fmt.Sprintf(path, "bob/app"), "Authorization", auth)
			b := g.do("GET", fmt.Sprintf(path, "bob/abc"), "Authorization", auth)
			if auth == "" {
				a, b = g.do("GET", fmt.Sprintf(path, "bob/app")), g.do("GET", fmt.Sprintf(path, "bob/abc"))
			}
			if text := strings.ReplaceAll(b.Body.String(), "abc", "app"); a.Code != b.Code || unid(a) != strings.ReplaceAll(unid(b), "abc", "app") || text == "" {
				t.Errorf("%s:\n%d %s\n%d %s", path, a.Code, unid(a), b.Code, unid(b))
			}
		}
	}
	if asked := g.up.took(); len(asked) != 0 {
		t.Errorf("the upstream was asked %v", asked)
	}
}

// unid is an answer without its request's id.
func unid(rec *httptest.ResponseRecorder) string {
	id := rec.Header().Get("X-Request-Id")
	h := rec.Header().Clone()
	h.Del("X-Request-Id")
	return strings.ReplaceAll(fmt.Sprint(rec.Code, h, rec.Body), id, "ID")
}

// TestSessions: who gets a refresh token, and who does not.
func TestSessions(t *testing.T) {
	g := newHouse(t)
	made, err := g.accounts.CreateToken(t.Context(), g.principal("alice"), registry.TokenSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for what, auth := range map[string]string{"a token": basic("alice", made.Secret), "as bearer": "Bearer " + made.Secret, "nobody": ""} {
		if a := g.token("offline_token=true", auth); a.Refresh != "" {
			t.Errorf("%s gets a refresh token", what)
		}
	}
	pw := url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"secret"}, "access_type": {"offline"}}
	if a := g.posted(pw); !registry.CheckTokenText(a.Refresh) {
		t.Errorf("%+v", a)
	}
	for what, form := range map[string]url.Values{
		"no grant type":      {},
		"unknown grant type": {"grant_type": {"client_credentials"}},
		"two passwords":      {"grant_type": {"password"}, "username": {"alice"}, "password": {"secret", "x"}},
		"a large form":       {"grant_type": {"password"}, "username": {"alice"}, "password": {strings.Repeat("x", maxForm)}},
		"many scopes":        {"grant_type": {"password"}, "username": {"alice"}, "password": {"secret"}, "scope": {strings.Repeat("x ", maxScopes+1)}},
	} {
		if rec := g.form(form); rec.Code != 400 {
			t.Errorf("%s: %d %s", what, rec.Code, rec.Body)
		}
	}
	for what, form := range map[string]url.Values{
		"a wrong password":       {"grant_type": {"password"}, "username": {"alice"}, "password": {"x"}},
		"nothing to refresh":     {"grant_type": {"refresh_token"}},
		"a password to refresh":  {"grant_type": {"refresh_token"}, "refresh_token": {"secret"}},
		"an unknown JWT":         {"grant_type": {grantExchange}, "subject_token": {"x.y.z"}},
		"credentials by address": {"grant_type": {"password"}},
	} {
		if rec := g.form(form); rec.Code != 401 || rec.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %s", what, rec.Code, rec.Body)
		}
	}
	g.accounts.Disable("alice")
	g.wants("GET", "/token?scope=repository:acme/app:pull", "Bearer "+made.Secret, 401, `Basic realm="weir"`, "")
}

// TestExchange: a JWT becomes a token that is good everywhere, or, if scopes are
// named, one for those.
func TestExchange(t *testing.T) {
	g := newHouse(t)
	g.accounts.Issuer("h.b.s", "alice")
	a := g.posted(url.Values{"grant_type": {grantExchange}, "subject_token": {"h.b.s"}})
	if !registry.CheckTokenText(a.Access) || a.Kind != typeAccess || a.Type != "Bearer" || a.Expires < 590 || a.Expires > 600 || a.Refresh != "" {
		t.Errorf("%+v", a)
	}
	g.wants("GET", acme, basic("token", a.Access), 200, "", "layers")
	a = g.posted(url.Values{"grant_type": {grantExchange}, "subject_token": {"h.b.s"}, "scope": {"repository:acme/app:pull"}, "access_type": {"offline"}})
	if registry.LooksLikeToken(a.Access) || a.Kind != typeAccess || a.Refresh != "" {
		t.Errorf("%+v", a)
	}
	g.wants("GET", acme, "Bearer "+a.Access, 200, "", "layers")
}

// TestOpen: where everyone may pull everything, nobody is sent to log in, and
// wrong credentials are wrong all the same.
func TestOpen(t *testing.T) {
	g := newHouse(t, func(c *Config) { c.Open = func() bool { return true } })
	g.wants("GET", "/v2/", "", 200, "", "{}")
	g.wants("GET", "/v2/", basic("alice", "wrong"), 401, asks("", "invalid_token"), "wrong name or password")
	g = newHouse(t, func(c *Config) { c.Gate = nil })
	g.wants("GET", "/v2/", basic("alice", "wrong"), 200, "", "{}")
	g.wants("GET", acme, "", 401, "", "UNAUTHORIZED")
	g = newHouse(t, func(c *Config) { c.PublicURL = "https://images.example/x/" })
	g.wants("GET", "/v2/", "", 401, `Bearer realm="https://images.example/x/token",service="images.example"`, "")
}

// TestUpstreamsLogin: that the upstream wants a login is not for the client to
// answer.
func TestUpstreamsLogin(t *testing.T) {
	g := newHouse(t)
	g.up.set(answers(401, "WWW-Authenticate", `Basic realm="hub"`))
	g.wants("GET", "/v2/alpine/manifests/3", "", 401, "", "requires authentication")
	g.wants("GET", acme, basic("alice", "secret"), 401, "", "requires authentication")
	g.up.set(answers(403))
	g.wants("GET", acme, basic("alice", "secret"), 403, "", "docker.io")
}

// TestGuessing: too many wrong passwords are 429, with a time to come back.
func TestGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newHouse(t)
		for i := range 10 {
			g.wants("GET", "/token", basic("alice", fmt.Sprint(i)), 401, `Basic realm="weir"`, "wrong name or password")
		}
		rec := g.wants("GET", "/token", basic("alice", "secret"), 429, "", "too many failed logins")
		if rec.Header().Get("Retry-After") != "10" {
			t.Errorf("Retry-After %q", rec.Header().Get("Retry-After"))
		}
		g.wants("GET", "/v2/", basic("alice", "x"), 429, "", "too many failed logins")
	})
}

// TestUndecided: while the guard cannot decide, no token is issued that would
// say no for minutes.
func TestUndecided(t *testing.T) {
	g := newHouse(t)
	g.svc.Guard = undecided{}
	g.wants("GET", "/token?scope=repository:acme/app:pull", basic("alice", "secret"), 503, "", "not yet")
	g.wants("GET", acme, basic("alice", "secret"), 503, "", "not yet")
}

// TestEndsMeanwhile: an account that ends before its rights are looked up.
func TestEndsMeanwhile(t *testing.T) {
	g := newHouse(t)
	g.svc.Guard = ended{}
	g.wants("GET", "/token?scope=repository:acme/app:pull", basic("alice", "secret"), 401, `Basic realm="weir"`, "gone")
	g.wants("GET", acme, basic("alice", "secret"), 401, asks("docker.io/acme/app", "invalid_token"), "gone")
}

type ended struct{}

func (ended) Admit(context.Context, *registry.Call) error {
	return registry.Errorf(registry.ErrUnauthenticated, "the account is gone")
}

type undecided struct{}

func (undecided) Admit(context.Context, *registry.Call) error {
	return registry.Errorf(registry.ErrUnavailable, "not yet")
}

// TestSharedCachesKeepNothingPrivate: a cache in front that does not look at
// Authorization must not have what alice got to give to others.
func TestSharedCachesKeepNothingPrivate(t *testing.T) {
	g := newHouse(t)
	for repo, shared := range map[string]bool{"acme/app": false, "library/alpine": true} {
		tag := map[bool]string{false: "1", true: "3"}[shared]
		g.up.tags[repo] = []string{tag}
		auth := []string{"Authorization", basic("alice", "secret")}
		rec := g.do("GET", "/v2/"+repo+"/manifests/"+tag, auth...)
		var m struct{ Config struct{ Digest string } }
		if err := json.Unmarshal(rec.Body.Bytes(), &m); err != nil || rec.Code != 200 {
			t.Fatalf("%s: %d %v", repo, rec.Code, err)
		}
		d := rec.Header().Get("Docker-Content-Digest")
		for _, path := range []string{"/manifests/" + tag, "/manifests/" + d, "/blobs/" + m.Config.Digest, "/tags/list", "/referrers/" + d, "/referrers/" + d + "?artifactType=a/b"} {
			for _, method := range []string{"GET", "HEAD"} {
				rec := g.do(method, "/v2/"+repo+path, auth...)
				if got := rec.Header().Get("Cache-Control"); rec.Code != 200 || (got == "private, no-cache") == shared || got == "" {
					t.Errorf("%s %s%s: %d %q", method, repo, path, rec.Code, got)
				}
			}
		}
		if rec := g.do("GET", "/v2/"+repo+"/manifests/"+tag, append(auth, "If-None-Match", `"`+d+`"`)...); rec.Code != 304 || (rec.Header().Get("Cache-Control") == "private, no-cache") == shared {
			t.Errorf("%s: %d %v", repo, rec.Code, rec.Header())
		}
	}
}

// TestLogSaysWho: the log line of a request has the account that was identified,
// and never what somebody claims to be called.
func TestLogSaysWho(t *testing.T) {
	var log bytes.Buffer
	g := newHouse(t, func(c *Config) { c.Service.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, c := range []struct{ target, auth, want string }{
		{"/v2/", basic("alice", "secret"), " who=alice"},
		{"/v2/acme/app/manifests/1", basic("alice", "secret"), " who=alice"},
		{"/v2/bob/app/manifests/1", basic("alice", "secret"), " who=alice"}, // though she may not
		{"/token?scope=repository:acme/app:pull", basic("alice", "secret"), " who=alice"},
		{"/v2/acme/app/manifests/1", basic("alice", "wrong"), ""},
		{"/token", basic("alice", "wrong"), ""},
		{"/v2/", basic("alice", "wrong"), ""},
		{"/v2/library/alpine/manifests/3", "", ""},
		{"/token", "", ""},
	} {
		log.Reset()
		var header []string
		if c.auth != "" {
			header = []string{"Authorization", c.auth}
		}
		g.do("GET", c.target, header...)
		line := log.String()
		if strings.Count(line, "msg=request ") != 1 || !strings.Contains(line, c.want) || c.want == "" && strings.Contains(line, "who=") {
			t.Errorf("%s with %q is logged as %s", c.target, c.auth, line)
		}
	}
}

// fullTokens have no room for one more.
type fullTokens struct{ registry.Tokens }

// CreateToken implements registry.Tokens.
func (fullTokens) CreateToken(context.Context, registry.Principal, registry.TokenSpec) (registry.NewToken, error) {
	return registry.NewToken{}, &registry.Error{Kind: registry.ErrLimited, After: time.Hour, Public: "as many tokens as an account may"}
}

// TestTooManySessionsKeepNobodyOut: who has logged in so often that there is no
// room for a session logs in without.
func TestTooManySessionsKeepNobodyOut(t *testing.T) {
	g := newHouse(t, func(c *Config) { c.Tokens = fullTokens{c.Tokens} })
	rec := g.wants("GET", "/token?service=weir.test&offline_token=true&scope=repository:acme/app:pull", basic("alice", "secret"), 200, "", "")
	var got issued
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got.Refresh != "" {
		t.Fatalf("%s %v", rec.Body, err)
	}
	g.wants("GET", "/v2/acme/app/manifests/1", "Bearer "+got.Token, 200, "", "")
}

// TestRefusalsAreEvents: the guard hears of what somebody wants to do, and what is
// only asked for the answer's sake (may everyone? what may the token be for? would
// logging in help?) is marked, so that no audit log has it for a refusal.
func TestRefusalsAreEvents(t *testing.T) {
	g := newHouse(t)
	alice := basic("alice", "secret")
	for _, c := range []struct {
		target, auth string
		refused      []string // who
	}{
		{"/v2/acme/app/manifests/1", alice, nil}, // though nobody else may
		{"/token?scope=repository:acme/app:pull,push&scope=repository:bob/app:pull", alice, nil},
		{"/token?scope=repository:acme/app:pull", "", nil},
		{"/v2/bob/app/manifests/1", alice, []string{"alice"}},
		{"/v2/acme/app/manifests/1", "", []string{""}},
	} {
		var header []string
		if c.auth != "" {
			header = []string{"Authorization", c.auth}
		}
		g.do("GET", c.target, header...)
		var who []string
		for _, p := range g.accounts.Refused() {
			who = append(who, p.Name)
		}
		if !slices.Equal(who, c.refused) {
			t.Errorf("%s: refused %q, want %q", c.target, who, c.refused)
		}
	}
}
