package oidc_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/oidc"
)

// unavailable checks an answer that must come within five seconds.
func unavailable(t *testing.T, e *oidc.Exchange, jwt, what string) {
	t.Helper()
	start := time.Now()
	_, err := e.Check(t.Context(), jwt)
	if !errors.Is(err, registry.ErrUnavailable) || registry.RetryAfter(err) <= 0 {
		t.Errorf("%s: %v, again after %v", what, err, registry.RetryAfter(err))
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("%s: it took %v", what, took)
	}
}

func TestIssuerMisbehaves(t *testing.T) {
	var elsewhere atomic.Int32
	f := newFake(t)
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(thief.Close)
	discovery := func(answer string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				return false
			}
			_, _ = io.WriteString(w, answer)
			return true
		}
	}
	keys := func(answer string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				return false
			}
			_, _ = io.WriteString(w, answer)
			return true
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	private, _ := json.Marshal(jose.JSONWebKey{Key: f.rsa, KeyID: "r1"})
	short, _ := json.Marshal(jose.JSONWebKey{Key: weak.Public(), KeyID: "r1"})
	for what, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"redirects": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusFound)
			return true
		},
		"redirects its keys": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
			}
			return r.URL.Path == "/keys"
		},
		"fails":             func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true },
		"another issuer":    discovery(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, f.URL+"/", f.URL+"/keys")),
		"keys by http":      discovery(fmt.Sprintf(`{"issuer":%q,"jwks_uri":"http://issuer.test/keys"}`, f.URL)),
		"keys in a file":    discovery(fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, f.URL)),
		"no keys' address":  discovery(fmt.Sprintf(`{"issuer":%q}`, f.URL)),
		"a huge discovery":  discovery(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"x":%q}`, f.URL, f.URL+"/keys", strings.Repeat("x", 256<<10))),
		"HTML":              discovery("<html>"),
		"keys of HTML":      keys("<html>"),
		"no keys":           keys(`{"keys":[]}`),
		"its private key":   keys(fmt.Sprintf(`{"keys":[%s]}`, private)),
		"a secret":          keys(`{"keys":[{"kty":"oct","k":"AAAA","kid":"r1"}]}`),
		"a short key":       keys(fmt.Sprintf(`{"keys":[%s]}`, short)),
		"a key of no kind":  keys(`{"keys":[{"kty":"XX"},5,null,"r1"]}`),
		"huge keys":         keys(fmt.Sprintf(`{"keys":[],"x":%q}`, strings.Repeat("x", 256<<10))),
		"an answer cut off": func(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		f.instead(answer)
		unavailable(t, f.exchange(t, nil), f.token(t, nil), what)
	}
	if elsewhere.Load() != 0 {
		t.Errorf("a redirect was followed %d times", elsewhere.Load())
	}
}

// TestLargestAnswers are at their limits.
func TestLargestAnswers(t *testing.T) {
	f := newFake(t)
	jwt := f.token(t, nil)
	set, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: f.rsa.Public(), KeyID: "r1"}}})
	for extra, ok := range map[int]bool{0: true, 1: false} {
		f.instead(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = w.Write(append(set, strings.Repeat(" ", 256<<10-len(set)+extra)...))
			}
			return r.URL.Path == "/keys"
		})
		if _, err := f.exchange(t, nil).Check(t.Context(), jwt); (err == nil) != ok {
			t.Errorf("%d bytes over the limit: %v", extra, err)
		}
	}
	f.instead(nil)
	for before, ok := range map[int]bool{63: true, 64: false} {
		var all []jose.JSONWebKey
		for n := range before {
			all = append(all, jose.JSONWebKey{Key: f.ec.Public(), KeyID: numbered(n)})
		}
		f.publish(append(all, jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "r1"})...)
		if _, err := f.exchange(t, nil).Check(t.Context(), jwt); (err == nil) != ok {
			t.Errorf("%d keys before the right one: %v", before, err)
		}
	}
}

// TestIssuerSilent never answers, or stops in the middle.
func TestIssuerSilent(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	gone := make(chan struct{})
	t.Cleanup(func() { close(gone) })
	f.instead(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-r.Context().Done():
		case <-gone:
		}
		return true
	})
	e := f.exchange(t, nil)
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() { unavailable(t, e, f.token(t, nil), "silence") })
	}
	group.Wait()
	if n := f.discoveries.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times", n)
	}
}

// TestKeysOutliveTheIssuer goes on with keys that are known.
func TestKeysOutliveTheIssuer(t *testing.T) {
	f := newFake(t)
	var clock atomic.Int64
	e, err := oidc.New([]oidc.Issuer{{URL: f.URL, Audience: audience, Rules: rules()}},
		oidc.Options{Now: func() time.Time { return now().Add(time.Duration(clock.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	e.SetPause(0)
	jwt := f.token(t, map[string]any{"exp": now().Unix() + 1e6})
	ok := func(what string, fetches int32) {
		t.Helper()
		if _, err := e.Check(t.Context(), jwt); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := f.fetches.Load(); n != fetches {
			t.Errorf("%s: the issuer was asked for its keys %d times, want %d", what, n, fetches)
		}
	}
	ok("at first", 1)
	ok("at once", 1)
	clock.Store(int64(16 * time.Minute))
	ok("when the keys are old", 2)
	f.instead(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(502); return true })
	ok("when it is down", 2)
	clock.Add(int64(16 * time.Minute))
	asked := f.discoveries.Load()
	ok("when it is down and the keys are old", 2)
	ok("and at once again", 2)
	if n := f.discoveries.Load(); n != asked+1 {
		t.Errorf("an issuer that is down was asked %d times in a row", n-asked)
	}
	unavailable(t, e, sign(t, jose.RS256, f.rsa, "new", f.claims(map[string]any{"exp": now().Unix() + 1e6})), "a key unknown")
	f.publish(jose.JSONWebKey{Key: f.ec.Public(), KeyID: "e1"})
	f.instead(nil)
	clock.Add(int64(time.Minute))
	if _, err := e.Check(t.Context(), jwt); !errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("a key that was withdrawn: %v", err)
	}
}

func TestRotation(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	old := f.token(t, nil)
	if _, err := e.Check(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	next, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, kid := range []string{"r2", "r1"} { // some call all their keys the same
		f.publish(jose.JSONWebKey{Key: next.Public(), KeyID: kid})
		jwt := sign(t, jose.RS256, next, kid, f.claims(nil))
		var group sync.WaitGroup
		before := f.fetches.Load()
		for range 20 {
			group.Go(func() {
				if _, err := e.Check(t.Context(), jwt); err != nil {
					t.Errorf("the new key %s: %v", kid, err)
				}
			})
		}
		group.Wait()
		if n := f.fetches.Load() - before; n != 1 {
			t.Errorf("the new key was asked for %d times", n)
		}
		if _, err := e.Check(t.Context(), old); !errors.Is(err, registry.ErrUnauthenticated) {
			t.Errorf("the old key: %v", err)
		}
		f.publish(jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "r1"})
		if _, err := e.Check(t.Context(), old); err != nil {
			t.Errorf("the old key that is back: %v", err)
		}
	}
}

// TestUnknownKeysAskSeldom floods with keys nobody knows.
func TestUnknownKeysAskSeldom(t *testing.T) {
	f := newFake(t)
	e := f.exchange(t, nil)
	e.SetPause(100 * time.Millisecond)
	start := time.Now()
	var group sync.WaitGroup
	for n := range 40 {
		jwt := sign(t, jose.ES256, f.ec, numbered(n), f.claims(nil))
		group.Go(func() {
			for range 3 {
				if _, err := e.Check(t.Context(), jwt); !errors.Is(err, registry.ErrUnauthenticated) {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if most := int32(time.Since(start)/(100*time.Millisecond)) + 2; f.fetches.Load() > most {
		t.Errorf("120 tokens made %d questions in %v", f.fetches.Load(), time.Since(start))
	}
}

// TestRealIssuer takes tokens from oidc-provider.
func TestRealIssuer(t *testing.T) {
	t.Parallel()
	p := lab.StartIssuer(t)
	rule := oidc.Rule{Robot: "ci", Claims: map[string]string{"repository": "acme/*", "ref": "refs/heads/*", "run_attempt": "1",
		"kubernetes.io/serviceaccount/name": "puller"}}
	e, err := oidc.New([]oidc.Issuer{{URL: p.URL, Audience: audience, Rules: []oidc.Rule{rule}},
		{URL: p.URL, Audience: audience + "/ec", Rules: []oidc.Rule{rule}}}, oidc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{audience, audience + "/ec"} {
		m, err := e.Check(t.Context(), p.Token(resource))
		if err != nil || m.Robot != "ci" || m.Subject != "ci" || m.Issuer != p.URL || time.Until(m.Expires) < 4*time.Minute {
			t.Errorf("%s: %+v, %v", resource, m, err)
		}
	}
	if _, err := e.Check(t.Context(), p.Token("https://other.test")); !errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("a token for others: %v", err)
	}
	last := p.Token(audience)
	p.Stop()
	if _, err := e.Check(t.Context(), last); err != nil {
		t.Errorf("when the issuer is gone: %v", err)
	}
}
