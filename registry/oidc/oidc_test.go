package oidc_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/oidc"
)

func TestGoodTokens(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	for what, jwt := range map[string]string{
		"RSA":                 f.token(t, nil),
		"elliptic":            sign(t, jose.ES256, f.ec, "e1", f.claims(nil)),
		"without kid":         sign(t, jose.ES256, f.ec, "", f.claims(nil)),
		"a list of audiences": f.token(t, map[string]any{"aud": []string{"other", audience}}),
		"no nbf and no iat":   f.token(t, map[string]any{"nbf": nil, "iat": nil}),
		"a clock a bit ahead": f.token(t, map[string]any{"nbf": now().Unix() + 59, "iat": now().Unix() + 59}),
		"fractions":           f.token(t, map[string]any{"exp": float64(now().Unix()) + 0.5}),
	} {
		for range 2 { // it may be shown again
			m, err := e.Check(t.Context(), jwt)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				break
			}
			if m.Robot != "ci" || m.Lifetime != 5*time.Minute || !slices.Equal(m.Rights, []string{"pull oci:acme/*"}) ||
				m.Issuer != f.URL || m.Subject != "repo:acme/app:ref:refs/heads/main" || !m.Expires.After(now()) {
				t.Errorf("%s: %+v", what, m)
			}
		}
	}
	m, err := e.Check(t.Context(), f.token(t, map[string]any{"sub": "repo:acme/app:ref:refs/tags/v1"}))
	if err != nil || m.Robot != "release" || m.Lifetime != 15*time.Minute || m.Rights != nil {
		t.Errorf("the first rule: %+v, %v", m, err)
	}
	if f.fetches.Load() != 1 || f.discoveries.Load() != 1 {
		t.Errorf("the issuer was asked %d times for its keys, %d times where they are", f.fetches.Load(), f.discoveries.Load())
	}
}

// hs256 is what a library would make that takes the key for a secret.
func hs256(header string, secret []byte, claims map[string]any) string {
	payload, _ := json.Marshal(claims)
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func unsigned(header string, claims map[string]any) string {
	text := hs256(header, nil, claims)
	return text[:strings.LastIndexByte(text, '.')+1]
}

func TestForgedTokens(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(f.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk, _ := json.Marshal(jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "r1", Algorithm: "RS256", Use: "sig"})
	good := f.token(t, nil)
	parts := strings.Split(good, ".")
	evil, _ := json.Marshal(f.claims(map[string]any{"repository": "acme/other"}))
	embedded, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: other}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(f.claims(nil))
	jws, err := embedded.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	withKey, _ := jws.CompactSerialize()
	cases := map[string]string{
		"alg none":               unsigned(`{"alg":"none"}`, f.claims(nil)),
		"alg None with kid":      unsigned(`{"alg":"None","kid":"r1"}`, f.claims(nil)),
		"no alg":                 unsigned(`{"kid":"r1"}`, f.claims(nil)),
		"RS256 unsigned":         unsigned(`{"alg":"RS256","kid":"r1"}`, f.claims(nil)),
		"HS256 by the PEM":       hs256(`{"alg":"HS256","kid":"r1"}`, public, f.claims(nil)),
		"HS256 by the DER":       hs256(`{"alg":"HS256","kid":"r1"}`, der, f.claims(nil)),
		"HS256 by the JWK":       hs256(`{"alg":"HS256","kid":"r1"}`, jwk, f.claims(nil)),
		"HS256 by the modulus":   hs256(`{"alg":"HS256","kid":"r1"}`, f.rsa.N.Bytes(), f.claims(nil)),
		"HS256 by nothing":       hs256(`{"alg":"HS256","kid":"r1"}`, nil, f.claims(nil)),
		"another key, known kid": sign(t, jose.RS256, other, "r1", f.claims(nil)),
		"another key, its kid":   sign(t, jose.RS256, other, "r2", f.claims(nil)),
		"another key, no kid":    sign(t, jose.RS256, other, "", f.claims(nil)),
		"a key of its own":       withKey,
		"another algorithm":      sign(t, jose.PS256, f.rsa, "r1", f.claims(nil)),
		"the other key's kid":    sign(t, jose.ES256, f.ec, "r1", f.claims(nil)),
		"other claims":           parts[0] + "." + base64.RawURLEncoding.EncodeToString(evil) + "." + parts[2],
		"a flipped signature":    parts[0] + "." + parts[1] + "." + "AA" + parts[2][2:],
		"JSON serialization":     jws.FullSerialize(),
	}
	for what, jwt := range cases {
		m, err := e.Check(t.Context(), jwt)
		if !errors.Is(err, registry.ErrUnauthenticated) {
			t.Errorf("%s: %+v, %v", what, m, err)
		}
	}
	if _, err := e.Check(t.Context(), good); err != nil {
		t.Errorf("the good token: %v", err)
	}
}

// TestWrongTokens are signed well. Nobody is asked about them.
func TestWrongTokens(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	at := now().Unix()
	twice := fmt.Appendf(nil, `{"iss":%q,"aud":"other","aud":%q,"exp":%d,"repository":"acme/app"}`, f.URL, audience, at+300)
	upper := fmt.Appendf(nil, `{"ISS":%q,"aud":%q,"exp":%d,"repository":"acme/app"}`, f.URL, audience, at+300)
	for what, c := range map[string]struct{ jwt, says string }{
		"expired":              {f.token(t, map[string]any{"exp": at - 1}), "expired"},
		"expiring now":         {f.token(t, map[string]any{"exp": at}), "expired"},
		"no exp":               {f.token(t, map[string]any{"exp": nil}), "expires"},
		"exp of text":          {f.token(t, map[string]any{"exp": "tomorrow"}), "exp is no time"},
		"exp beyond all":       {f.token(t, map[string]any{"exp": 1e300}), "exp is no time"},
		"exp below all":        {f.token(t, map[string]any{"exp": -1e300}), "exp is no time"},
		"a future nbf":         {f.token(t, map[string]any{"nbf": at + 61}), "good only from"},
		"nbf beyond all":       {f.token(t, map[string]any{"nbf": 1e300}), "nbf is no time"},
		"a future iat":         {f.token(t, map[string]any{"iat": at + 61}), "in the future"},
		"iat beyond all":       {f.token(t, map[string]any{"iat": 9e18}), "iat is no time"},
		"a negative iat":       {f.token(t, map[string]any{"iat": -1}), "iat is no time"},
		"iat after exp":        {f.token(t, map[string]any{"exp": at + 10, "iat": at + 20}), "before it was made"},
		"another audience":     {f.token(t, map[string]any{"aud": "https://other.test"}), "is for"},
		"other audiences":      {f.token(t, map[string]any{"aud": []string{"a", audience + "/"}}), "is for"},
		"no audience":          {f.token(t, map[string]any{"aud": nil}), "is for"},
		"audience in a list":   {f.token(t, map[string]any{"aud": []any{[]string{audience}}}), "is for"},
		"a slash more":         {f.token(t, map[string]any{"iss": f.URL + "/"}), "no issuer"},
		"another issuer":       {f.token(t, map[string]any{"iss": "https://evil.test\n"}), "no issuer"},
		"no issuer":            {f.token(t, map[string]any{"iss": nil}), "no issuer"},
		"an issuer of numbers": {f.token(t, map[string]any{"iss": 5}), "no issuer"},
		"a claim twice":        {sign(t, jose.RS256, f.rsa, "r1", twice), "no JWT"},
		"a claim in capitals":  {sign(t, jose.RS256, f.rsa, "r1", upper), "no issuer"},
		"no claims":            {sign(t, jose.RS256, f.rsa, "r1", []byte("null")), "no JWT"},
		"a list of claims":     {sign(t, jose.RS256, f.rsa, "r1", []byte("[]")), "no JWT"},
		"nothing":              {"", "no JWT"},
		"dots":                 {"..", "no JWT"},
		"four parts":           {f.token(t, nil) + ".x", "no JWT"},
		"padding":              {"e30=.e30=.e30=", "no JWT"},
	} {
		m, err := e.Check(t.Context(), c.jwt)
		if !errors.Is(err, registry.ErrUnauthenticated) || !strings.Contains(registry.Public(err), c.says) {
			t.Errorf("%s: %+v, %v", what, m, err)
		}
		if strings.ContainsAny(registry.Public(err), "\n\r") {
			t.Errorf("%s: the text has what the client sent: %q", what, registry.Public(err))
		}
	}
	if n := f.discoveries.Load() + f.fetches.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
}

func TestLength(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	base := len(f.token(t, map[string]any{"pad": ""}))
	for n := (16<<10 - base) * 3 / 4; ; n++ {
		jwt := f.token(t, map[string]any{"pad": strings.Repeat("x", n)})
		_, err := e.Check(t.Context(), jwt)
		if len(jwt) > 16<<10 {
			if !errors.Is(err, registry.ErrUnauthenticated) || !strings.Contains(err.Error(), "bytes") {
				t.Errorf("%d bytes: %v", len(jwt), err)
			}
			break
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", len(jwt), err)
		}
	}
}

func TestNoRule(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	_, err := e.Check(t.Context(), f.token(t, map[string]any{"repository": "evil/app", "sub": "a\nb"}))
	if !errors.Is(err, registry.ErrUnauthenticated) {
		t.Fatal(err)
	}
	public := registry.Public(err)
	if !strings.Contains(public, f.URL) || !strings.Contains(public, `"a\nb"`) || strings.Contains(public, "acme") {
		t.Errorf("the client reads %q", public)
	}
	for _, want := range []string{`rule 1 (release): repository is "evil/app", not "acme/app"`, `rule 2 (ci): repository is "evil/app", not "acme/*"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the log says %q, without %q", err, want)
		}
	}
	_, err = e.Check(t.Context(), f.token(t, map[string]any{"repository": nil}))
	if !errors.Is(err, registry.ErrUnauthenticated) || !strings.Contains(err.Error(), "repository is missing") {
		t.Errorf("the log says %v", err)
	}
}

func TestKubernetes(t *testing.T) {
	f := newFake(t)
	f.instead(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/.well-known/openid-configuration" {
			http.Error(w, "forbidden", http.StatusForbidden)
			return true
		}
		return false
	})
	for path, ok := range map[string]bool{
		"kubernetes.io/serviceaccount/name": true,
		"kubernetes.io.serviceaccount.name": true,
		"kubernetes.io/serviceaccount":      false,
		"kubernetes/io/serviceaccount/name": false,
		"name":                              false,
	} {
		e := f.exchange(t, func(i *oidc.Issuer) {
			i.JWKS = f.URL + "/keys"
			i.Rules = []oidc.Rule{{Claims: map[string]string{path: "puller", "kubernetes.io/namespace": "build"}, Robot: "k"}}
		})
		if _, err := e.Check(t.Context(), f.token(t, nil)); (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
		// A claim that is called as the path is would be a second answer, if the
		// path leads anywhere.
		only := path == "name" || path == "kubernetes/io/serviceaccount/name"
		if _, err := e.Check(t.Context(), f.token(t, map[string]any{path: "puller"})); only != (err == nil) {
			t.Errorf("%s as a claim of its own: %v", path, err)
		}
	}
	if f.discoveries.Load() != 0 {
		t.Error("the issuer was asked where its keys are")
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "a/b:c", true}, {"a*", "a", true}, {"a*", "ba", false},
		{"*a", "ba", true}, {"*a", "ab", false}, {"a*b", "ab", true}, {"a*b", "aXbX", false}, {"a*a", "a", false},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "abbc", true}, {"a*bc*bc", "abc", false}, {"**", "x", true}, {"a?c", "abc", false},
		{"[a]", "a", false}, {"repo:acme/*:ref:refs/heads/main", "repo:acme/x:ref:refs/heads/main", true},
		{"repo:acme/*:ref:refs/heads/main", "repo:acme/x:ref:refs/heads/mainly", false},
	} {
		if got := oidc.Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.s, got)
		}
	}
}

func TestClaimValues(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		value   any
		pattern string
		want    bool
	}{
		{true, "true", true}, {false, "true", false}, {7, "7", true}, {7.5, "7.5", true}, {1 << 52, "4503599627370496", true},
		{uint64(1<<53 + 1), "*", false}, {[]any{"a", "b"}, "b", true}, {[]any{"a", 3}, "3", true}, {[]any{[]any{"b"}}, "b", false},
		{map[string]any{"a": 1}, "*", false}, {[]any{}, "*", false}, {"", "*", true},
	} {
		e := f.exchange(t, func(i *oidc.Issuer) {
			i.Rules = []oidc.Rule{{Claims: map[string]string{"x": c.pattern}, Robot: "r"}}
		})
		if _, err := e.Check(t.Context(), f.token(t, map[string]any{"x": c.value})); (err == nil) != c.want {
			t.Errorf("%v by %q: %v", c.value, c.pattern, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := oidc.Issuer{URL: "https://issuer.test", Audience: "a", Rules: rules()}
	if _, err := oidc.New([]oidc.Issuer{good}, oidc.Options{}); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*oidc.Issuer){
		"http":              func(i *oidc.Issuer) { i.URL = "http://issuer.test" },
		"http to a network": func(i *oidc.Issuer) { i.URL = "http://10.0.0.1" },
		"looks like here":   func(i *oidc.Issuer) { i.URL = "http://127.0.0.1.evil.test" },
		"here as user":      func(i *oidc.Issuer) { i.URL = "http://localhost@evil.test" },
		"no host":           func(i *oidc.Issuer) { i.URL = "https://" },
		"file":              func(i *oidc.Issuer) { i.URL = "file:///etc/passwd" },
		"query":             func(i *oidc.Issuer) { i.URL += "/?a=b" },
		"keys by http":      func(i *oidc.Issuer) { i.JWKS = "http://issuer.test/keys" },
		"no audience":       func(i *oidc.Issuer) { i.Audience = "" },
		"no rules":          func(i *oidc.Issuer) { i.Rules = nil },
		"no claims":         func(i *oidc.Issuer) { i.Rules = []oidc.Rule{{Robot: "r"}} },
		"no robot":          func(i *oidc.Issuer) { i.Rules = []oidc.Rule{{Claims: map[string]string{"a": "b"}}} },
		"empty pattern":     func(i *oidc.Issuer) { i.Rules = []oidc.Rule{{Claims: map[string]string{"a": ""}, Robot: "r"}} },
		"negative lifetime": func(i *oidc.Issuer) {
			i.Rules = []oidc.Rule{{Claims: map[string]string{"a": "b"}, Robot: "r", Lifetime: -1}}
		},
		"no such CA": func(i *oidc.Issuer) { i.CA = empty + ".not" },
		"an empty CA": func(i *oidc.Issuer) {
			i.CA = empty
		},
	} {
		issuer := good
		change(&issuer)
		if _, err := oidc.New([]oidc.Issuer{issuer}, oidc.Options{}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := oidc.New([]oidc.Issuer{good, good}, oidc.Options{}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("twice the same: %v", err)
	}
	other := good
	other.Audience = "b"
	if _, err := oidc.New([]oidc.Issuer{good, other}, oidc.Options{}); err != nil {
		t.Errorf("two audiences of one issuer: %v", err)
	}
}

// TestCA has an issuer with a certificate of its own.
func TestCA(t *testing.T) {
	f := newFake(t)
	secure := httptest.NewTLSServer(f)
	t.Cleanup(secure.Close)
	f.URL = secure.URL
	jwt := f.token(t, nil)
	if _, err := f.exchange(t, nil).Check(t.Context(), jwt); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.exchange(t, func(i *oidc.Issuer) { i.CA = ca }).Check(t.Context(), jwt); err != nil {
		t.Error(err)
	}
}

func TestConcurrent(t *testing.T) {
	f := newFake(t)
	held := make(chan struct{})
	f.instead(func(http.ResponseWriter, *http.Request) bool { <-held; return false })
	e := f.exchange(t, nil)
	jwt := f.token(t, nil)
	leaver, leave := context.WithCancel(t.Context())
	var left, group sync.WaitGroup
	left.Go(func() { // it may well be the one that has begun the question
		if _, err := e.Check(leaver, jwt); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("who left: %v", err)
		}
	})
	for range 50 {
		group.Go(func() {
			if _, err := e.Check(t.Context(), jwt); err != nil {
				t.Error(err)
			}
		})
	}
	leave()
	left.Wait()
	close(held)
	group.Wait()
	if f.fetches.Load() != 1 || f.discoveries.Load() != 1 {
		t.Errorf("%d questions for the keys, %d where they are", f.fetches.Load(), f.discoveries.Load())
	}
}

func FuzzCheck(f *testing.F) {
	issuer := newFake(f)
	e := issuer.exchange(f, nil)
	good := issuer.token(f, nil)
	if _, err := e.Check(f.Context(), good); err != nil {
		f.Fatal(err)
	}
	e.SetPause(0)
	f.Add(good)
	f.Add(unsigned(`{"alg":"none"}`, issuer.claims(nil)))
	f.Add(hs256(`{"alg":"HS256","kid":"r1"}`, issuer.rsa.N.Bytes(), issuer.claims(nil)))
	f.Add(issuer.token(f, map[string]any{"aud": []any{1, nil, audience}, "exp": 1e18}))
	f.Add("..")
	f.Add("e30.e30.e30")
	signed := good[:strings.LastIndexByte(good, '.')+1]
	f.Fuzz(func(t *testing.T, jwt string) {
		m, err := e.Check(t.Context(), jwt)
		if err == nil && !strings.HasPrefix(jwt, signed) {
			t.Fatalf("%q is taken for %+v", jwt, m)
		}
		if err != nil && (registry.KindOf(err) != registry.ErrUnauthenticated || strings.ContainsAny(registry.Public(err), "\n\r\x1b")) {
			t.Fatalf("%q: %v", jwt, err)
		}
	})
}
