package oci

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/singleflight"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

const (
	// defaultLife is a token's if its server does not say (the token
	// authentication specification of distribution).
	defaultLife = 60 * time.Second
	// tokenTime is how long one question to a token server may take.
	tokenTime = 15 * time.Second
	maxTokens = 4096
	// maxToken bounds a token server's answer, in bytes.
	maxToken = 1 << 20
)

// An authorizer knows how one upstream wants to be asked: anonymously, with
// Basic credentials, or with a Bearer token from a token server. It learns it
// from the first challenge and from then on asks for the token beforehand,
// which saves a request per repository.
type authorizer struct {
	client             *outbound.Client
	username, password string
	realms             outbound.Hosts
	fetches            singleflight.Group // by grant.key

	mu      sync.Mutex
	learned *grant            // guarded by mu; without a scope
	tokens  map[string]*token // by grant.key; guarded by mu
	scopes  map[string]string // scopes that differ from what scopeOf says, by repository; guarded by mu
}

// A grant is what a token is asked for. An empty realm means Basic.
type grant struct{ realm, service, scope string }

func (g grant) key() string { return g.realm + "\x00" + g.service + "\x00" + g.scope }

type token struct {
	value   string
	refresh time.Time // from then on a new one is asked for
}

func newAuthorizer(c *outbound.Client, username, password string, realms outbound.Hosts) *authorizer {
	return &authorizer{client: c, username: username, password: password, realms: realms,
		tokens: map[string]*token{}, scopes: map[string]string{}}
}

// scopeOf is what a pull from repo needs.
func scopeOf(repo string) string { return "repository:" + repo + ":pull" }

// authorize adds to req what the upstream is known to want, and gives the
// token that it used.
func (a *authorizer) authorize(ctx context.Context, req *http.Request, repo string) (*token, error) {
	a.mu.Lock()
	g := a.learned
	scope, other := a.scopes[repo]
	a.mu.Unlock()
	if g == nil {
		return nil, nil
	}
	if g.realm == "" {
		req.SetBasicAuth(a.username, a.password)
		return nil, nil
	}
	want := grant{g.realm, g.service, scopeOf(repo)}
	if other {
		want.scope = scope
	}
	t, err := a.token(ctx, want)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+t.value)
	return t, nil
}

// challenged learns from a 401's WWW-Authenticate fields. It reports whether
// there is something new to try: never if what was tried is what is asked for.
func (a *authorizer) challenged(fields []string, repo string, used *token) (bool, error) {
	basic := false
	for _, c := range parseChallenges(fields) {
		switch c.scheme {
		case "bearer":
			if c.params["realm"] == "" {
				continue
			}
			g := grant{realm: c.params["realm"], service: c.params["service"]}
			if err := a.trusts(g.realm); err != nil {
				return false, err
			}
			a.learn(g, repo, c.params["scope"], used)
			return true, nil
		case "basic":
			basic = true
		}
	}
	if !basic || a.username == "" && a.password == "" {
		return false, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	tried := a.learned != nil && a.learned.realm == ""
	a.learned = &grant{}
	return !tried, nil
}

// learn remembers how to ask, and drops the token that was refused.
func (a *authorizer) learn(g grant, repo, scope string, used *token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.learned = &g
	if scope != "" && scope != scopeOf(repo) {
		if len(a.scopes) >= maxTokens {
			clear(a.scopes)
		}
		a.scopes[repo] = scope
	} else {
		delete(a.scopes, repo)
	}
	for k, t := range a.tokens {
		if t == used {
			delete(a.tokens, k)
		}
	}
}

// trusts reports why a token server must not be asked. Credentials go to the
// registry's own host, to its registrable domain, or to what is configured;
// without credentials there is nothing to lose but the question.
func (a *authorizer) trusts(realm string) error {
	base := a.client.Base()
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || base.Scheme != "http") {
		return a.refused("names a token server that makes no sense", realm)
	}
	if a.username == "" && a.password == "" {
		return nil
	}
	if strings.EqualFold(u.Hostname(), base.Hostname()) || a.realms.Has(outbound.HostPort(u)) || sameSite(u.Hostname(), base.Hostname()) {
		return nil
	}
	return a.refused("names a token server on another site, which does not get its credentials unless it is listed under realms", realm)
}

func (a *authorizer) refused(why, realm string) error {
	public := a.client.Name() + " " + why
	return &registry.Error{Kind: registry.ErrUnavailable, Text: public + ": " + realm, Public: public}
}

// sameSite reports whether two hosts are below one registrable domain, by the
// public suffix list: what anyone can register below is no common owner.
func sameSite(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	for _, h := range []string{a, b} {
		if _, err := netip.ParseAddr(h); err == nil {
			return false
		}
	}
	x, err1 := publicsuffix.EffectiveTLDPlusOne(a)
	y, err2 := publicsuffix.EffectiveTLDPlusOne(b)
	return err1 == nil && err2 == nil && x == y
}

// token gives a token for g, asking for one if there is none or it is about to
// expire. However many want it, it is asked for once.
func (a *authorizer) token(ctx context.Context, g grant) (*token, error) {
	key := g.key()
	a.mu.Lock()
	t := a.tokens[key]
	a.mu.Unlock()
	if t != nil && time.Now().Before(t.refresh) {
		return t, nil
	}
	fetched := a.fetches.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTime)
		defer cancel()
		t, err := a.fetch(ctx, g)
		if err == nil {
			a.keep(key, t)
		}
		return t, err
	})
	select {
	case r := <-fetched:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*token), nil
	case <-ctx.Done():
		return nil, registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for a token of "+a.client.Name())
	}
}

// keep remembers a token, in bounds.
func (a *authorizer) keep(key string, t *token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxTokens {
		now := time.Now()
		for k, old := range a.tokens {
			if now.After(old.refresh) || len(a.tokens) >= maxTokens {
				delete(a.tokens, k)
			}
		}
	}
	a.tokens[key] = t
}

// fetch asks the token server. Its failures are ErrUnavailable; only a refusal
// of the credentials is one.
func (a *authorizer) fetch(ctx context.Context, g grant) (*token, error) {
	if err := a.trusts(g.realm); err != nil {
		return nil, err
	}
	u, err := url.Parse(g.realm)
	if err != nil {
		return nil, a.refused("names a token server that makes no sense", g.realm)
	}
	q := u.Query()
	if g.service != "" {
		q.Set("service", g.service)
	}
	for _, s := range strings.Fields(g.scope) {
		q.Add("scope", s)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, a.refused("names a token server that makes no sense", g.realm)
	}
	if a.username != "" || a.password != "" {
		req.SetBasicAuth(a.username, a.password)
	}
	req.Header.Set("Accept", "application/json")
	begun := time.Now()
	resp, err := a.client.Do(ctx, req, outbound.Load{})
	if err != nil {
		return nil, a.failed(err)
	}
	if err := a.client.Check(resp, "get a token from "+u.Host); err != nil {
		return nil, a.failed(err)
	}
	defer resp.Body.Close()
	t, err := readToken(resp.Body, begun)
	if err != nil {
		return nil, a.failed(err)
	}
	return t, nil
}

// failed gives a token server's failure the right kind: a token server that
// has no such page says nothing about images.
func (a *authorizer) failed(err error) error {
	e := &registry.Error{Kind: registry.KindOf(err), Text: "token", After: registry.RetryAfter(err), Err: err}
	switch e.Kind {
	case registry.ErrUnauthenticated, registry.ErrDenied:
		e.Public = a.client.Name() + "'s token server refuses to give a token"
	case registry.ErrLimited:
		e.Public = a.client.Name() + "'s token server limits how often it may be asked"
	default:
		e.Kind, e.Public = registry.ErrUnavailable, a.client.Name()+"'s token server does not answer as it should"
	}
	return e
}

// readToken reads a token server's answer to a question asked at begun. The
// lifetime counts from then by this machine's clock; a token is not used in
// the last quarter of it, or in the last ten seconds of a long one.
func readToken(r io.Reader, begun time.Time) (*token, error) {
	var answer struct {
		Token   string  `json:"token"`
		Access  string  `json:"access_token"`
		Expires float64 `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxToken)).Decode(&answer); err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "read a token")
	}
	t := &token{value: answer.Token}
	if t.value == "" {
		t.value = answer.Access
	}
	if t.value == "" || strings.ContainsFunc(t.value, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, registry.Errorf(registry.ErrUnavailable, "the answer has no usable token")
	}
	life := defaultLife
	if answer.Expires >= 1 {
		life = time.Duration(min(answer.Expires, 86400)) * time.Second
	}
	t.refresh = begun.Add(life - min(life/4, 10*time.Second))
	return t, nil
}
