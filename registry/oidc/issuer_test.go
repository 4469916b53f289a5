package oidc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/weir-registry/weir/registry/oidc"
)

// fake is an issuer that does what a test wants.
type fake struct {
	*httptest.Server
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey

	discoveries, fetches atomic.Int32

	mu     sync.Mutex
	keys   []jose.JSONWebKey                                 // guarded by mu
	answer func(w http.ResponseWriter, r *http.Request) bool // guarded by mu; true: it has answered
}

// keyOfMany is the RSA key of all fakes: making one takes long.
var keyOfMany = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// newFake makes an issuer whose key "r1" is RSA and "e1" is elliptic.
func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{}
	var err error
	if f.rsa, err = keyOfMany(); err != nil {
		t.Fatal(err)
	}
	if f.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	f.publish(jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "r1", Algorithm: "RS256", Use: "sig"},
		jose.JSONWebKey{Key: f.ec.Public(), KeyID: "e1", Algorithm: "ES256"})
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) publish(keys ...jose.JSONWebKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = keys
}

// instead has requests answered by a function for as long as it wants to.
func (f *fake) instead(answer func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	answer, keys := f.answer, f.keys
	f.mu.Unlock()
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		f.discoveries.Add(1)
	case "/keys":
		f.fetches.Add(1)
	}
	if answer != nil && answer(w, r) {
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": f.URL, "jwks_uri": f.URL + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: keys})
	default:
		http.NotFound(w, r)
	}
}

// now is the time of all tests here.
func now() time.Time { return time.Unix(1_790_000_000, 0) }

const audience = "https://weir.test"

// claims are those of a good token, with some replaced; nil removes one.
func (f *fake) claims(other map[string]any) map[string]any {
	c := map[string]any{
		"iss": f.URL, "aud": audience, "sub": "repo:acme/app:ref:refs/heads/main", "repository": "acme/app",
		"iat": now().Unix() - 10, "nbf": now().Unix() - 10, "exp": now().Unix() + 300,
		"kubernetes.io": map[string]any{"namespace": "build", "serviceaccount": map[string]any{"name": "puller"}},
	}
	maps.Copy(c, other)
	for name, v := range c {
		if v == nil {
			delete(c, name)
		}
	}
	return c
}

// sign signs claims with any key.
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims any) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if kid != "" {
		options.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options.WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	payload, ok := claims.([]byte)
	if !ok {
		if payload, err = json.Marshal(claims); err != nil {
			t.Fatal(err)
		}
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// token is a good one, with some claims replaced.
func (f *fake) token(t testing.TB, other map[string]any) string {
	return sign(t, jose.RS256, f.rsa, "r1", f.claims(other))
}

func rules() []oidc.Rule {
	return []oidc.Rule{
		{Claims: map[string]string{"repository": "acme/app", "sub": "repo:acme/app:ref:refs/tags/*"}, Robot: "release"},
		{Claims: map[string]string{"repository": "acme/*"}, Robot: "ci", Rights: []string{"pull oci:acme/*"}, Lifetime: 5 * time.Minute},
		{Claims: map[string]string{"repository": "acme/app"}, Robot: "never"},
	}
}

// exchange is an Exchange for f alone.
func (f *fake) exchange(t testing.TB, change func(*oidc.Issuer)) *oidc.Exchange {
	t.Helper()
	issuer := oidc.Issuer{URL: f.URL, Audience: audience, Rules: rules()}
	if change != nil {
		change(&issuer)
	}
	e, err := oidc.New([]oidc.Issuer{issuer}, oidc.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	e.SetPause(20 * time.Millisecond)
	return e
}

func numbered(n int) string { return fmt.Sprintf("k%d", n) }
