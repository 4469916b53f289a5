package relay_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// accounts decides about accounts, at the authority of a test. It counts what it
// does, and keeps tokens in the entitlements.
type accounts struct {
	rep *replica

	mu     sync.Mutex
	did    map[string]int
	tokens map[string]registry.Token
	fail   error // every answer
	asked  []any // what was presented
}

func (a *accounts) configure(c *relay.Config) {
	a.rep, a.did, a.tokens = c.Source.(*replica), map[string]int{}, map[string]registry.Token{}
	c.Logins, c.Tokens = a, a
}

func (a *accounts) note(what string, asked ...any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.did[what]++
	a.asked = asked
	return a.fail
}

func (a *accounts) count(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.did[what]
}

func (a *accounts) failing(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

func (a *accounts) last() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// make makes a token, which is in the entitlements when it returns.
func (a *accounts) make(owner, kind string) registry.NewToken {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := fmt.Sprint("t", len(a.tokens))
	t := registry.Token{ID: id, Owner: owner, Kind: kind}
	a.tokens[id] = t
	return registry.NewToken{Token: t, Secret: "sesame-" + id, Version: a.rep.put(record("e/token/"+id, owner))}
}

func (a *accounts) Password(_ context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	return registry.Principal{Name: name, UID: "u-" + name}, a.note("password", name, password, from)
}

func (a *accounts) Exchange(_ context.Context, jwt string, from netip.Addr) (registry.NewToken, error) {
	if err := a.note("exchange", jwt, from); err != nil {
		return registry.NewToken{}, err
	}
	return a.make("ci", "exchange"), nil
}

func (a *accounts) Begin(_ context.Context, from netip.Addr) (string, error) {
	return "login-1", a.note("begin", from)
}

func (a *accounts) Approve(_ context.Context, id string, p registry.Principal) error {
	return a.note("approve", id, p)
}

func (a *accounts) Claim(_ context.Context, id string, from netip.Addr) (registry.NewToken, error) {
	if err := a.note("claim", id, from); err != nil {
		return registry.NewToken{}, err
	}
	return a.make("alice", "session"), nil
}

func (a *accounts) CreateToken(_ context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	if err := a.note("create", by, spec); err != nil {
		return registry.NewToken{}, err
	}
	return a.make(by.Name, "token"), nil
}

func (a *accounts) RevokeToken(_ context.Context, by registry.Principal, id string) error {
	if err := a.note("revoke", by, id); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.tokens[id]; !ok {
		return registry.Errorf(registry.ErrNotFound, "there is no token %s", id)
	}
	delete(a.tokens, id)
	a.rep.put(registry.Record{Key: "e/token/" + id})
	return nil
}

func (a *accounts) ListTokens(_ context.Context, by registry.Principal) ([]registry.Token, error) {
	if err := a.note("list", by); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	list := []registry.Token{}
	for _, t := range a.tokens {
		list = append(list, t)
	}
	return list, nil
}

// chain is an origin, a shield and an edge.
func chain(t testing.TB) (origin, shield, edge *node, who *accounts) {
	p := newPKI(t)
	who = &accounts{}
	origin = start(t, p, "origin", setup{database: "db", config: who.configure})
	shield = start(t, p, "shield", setup{next: []string{origin.url()}})
	edge = start(t, p, "edge", setup{next: []string{shield.url()}})
	edge.has(origin)
	conformance.Eventually(t, "all follow", func() bool { return shield.client.Following() != "" && edge.client.Following() != "" })
	return origin, shield, edge, who
}

var from = netip.MustParseAddr("192.0.2.7")

// TestAccounts: every method arrives as it was called, over two levels, and what
// comes back is known at the edge.
func TestAccounts(t *testing.T) {
	t.Parallel()
	origin, _, edge, who := chain(t)
	ctx := t.Context()
	alice := registry.Principal{Name: "alice", UID: "u-alice", Token: "t9", Only: []registry.Right{{Action: registry.Pull, Space: "oci", Repo: "docker.io/a/b"}}}
	said := alice
	said.Via = "shield" // the nearest to the one that decides
	presented := func(want ...any) {
		t.Helper()
		if got := who.last(); !reflect.DeepEqual(got, want) {
			t.Errorf("presented %v, want %v", got, want)
		}
	}
	known := func(n registry.NewToken, err error) {
		t.Helper()
		if err != nil || n.Secret == "" || n.ID == "" || n.Owner == "" {
			t.Fatalf("%+v, %v", n, err)
		}
		if is := edge.rep.State(); is.Version < n.Version || n.Version == 0 {
			t.Errorf("the token is of version %d, and the edge has %d", n.Version, is.Version)
		}
	}
	p, err := edge.client.Password(ctx, "alice", "hunter2", from)
	if err != nil || p.Name != "alice" || p.UID != "u-alice" {
		t.Errorf("%+v, %v", p, err)
	}
	presented("alice", "hunter2", from)
	known(edge.client.Exchange(ctx, "a.b.c", from))
	presented("a.b.c", from)
	id, err := edge.client.Begin(ctx, from)
	if err != nil || id != "login-1" {
		t.Errorf("%q, %v", id, err)
	}
	if err := edge.client.Approve(ctx, id, alice); err != nil {
		t.Error(err)
	}
	presented(id, said)
	known(edge.client.Claim(ctx, id, netip.Addr{}))
	presented(id, netip.Addr{})
	spec := registry.TokenSpec{Note: "é<&>", Rights: []string{"pull oci:*"}, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Lifetime: time.Hour}
	made, err := edge.client.CreateToken(ctx, alice, spec)
	known(made, err)
	presented(said, spec)
	list, err := edge.client.ListTokens(ctx, alice)
	if err != nil || len(list) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := edge.client.RevokeToken(ctx, alice, made.ID); err != nil {
		t.Error(err)
	}
	if !edge.same(origin) {
		t.Error("a token was revoked, and the edge does not know yet")
	}
	for _, n := range []*node{edge, origin} {
		for _, secret := range []string{"hunter2", "sesame", "a.b.c"} {
			if strings.Contains(n.log.String(), secret) {
				t.Errorf("%s has logged %q", n.name, secret)
			}
		}
	}
}

// TestFailuresTravel: each kind of failure arrives as what it is, over two
// levels, with its text and its time.
func TestFailuresTravel(t *testing.T) {
	t.Parallel()
	_, _, edge, who := chain(t)
	for _, kind := range []error{registry.ErrInvalid, registry.ErrNotFound, registry.ErrConflict, registry.ErrGone, registry.ErrCorrupt, registry.ErrUnauthenticated,
		registry.ErrDenied, registry.ErrLimited, registry.ErrTooLarge, registry.ErrNoRoom, registry.ErrUnavailable} {
		who.failing(&registry.Error{Kind: kind, Text: "secret reason", Public: "Grüße: " + kind.Error(), After: 1500 * time.Millisecond})
		_, err := edge.client.CreateToken(t.Context(), registry.Principal{Name: "a"}, registry.TokenSpec{})
		if registry.KindOf(err) != kind || registry.Public(err) != "Grüße: "+kind.Error() || registry.RetryAfter(err) != 1500*time.Millisecond || strings.Contains(err.Error(), "secret reason") {
			t.Errorf("%v came as %v (%v): %q, %v", kind, registry.KindOf(err), err, registry.Public(err), registry.RetryAfter(err))
		}
	}
	who.failing(&registry.Error{Kind: registry.ErrDenied, Err: registry.ErrScope})
	if err := edge.client.Approve(t.Context(), "x", registry.Principal{Name: "a"}); registry.KindOf(err) != registry.ErrDenied || !errors.Is(err, registry.ErrScope) {
		t.Errorf("a scope came as %v", err)
	}
	if n := who.count("create"); n != 11 {
		t.Errorf("11 questions were decided %d times", n)
	}
}

// TestLostAnswer: what may have been executed is put again only if it may be.
func TestLostAnswer(t *testing.T) {
	p := newPKI(t)
	who := &accounts{}
	origin := start(t, p, "origin", setup{database: "db", config: who.configure})
	// Two shields; of the first all answers about accounts are lost.
	first := start(t, p, "shield-1", setup{next: []string{origin.url()}})
	second := start(t, p, "shield-2", setup{next: []string{origin.url()}})
	first.has(origin)
	second.has(origin)
	first.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/weir/v1/account/") {
			return false
		}
		first.handler.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
	edge := start(t, p, "edge", setup{next: []string{first.url(), second.url()}})
	edge.has(origin)
	alice := registry.Principal{Name: "alice"}
	token := who.make("alice", "token")
	for what, test := range map[string]struct {
		call  func() error
		times int
		ok    bool
	}{
		"password": {func() error { _, err := edge.client.Password(t.Context(), "a", "b", from); return err }, 2, true},
		"begin":    {func() error { _, err := edge.client.Begin(t.Context(), from); return err }, 2, true},
		"list":     {func() error { _, err := edge.client.ListTokens(t.Context(), alice); return err }, 2, true},
		"revoke":   {func() error { return edge.client.RevokeToken(t.Context(), alice, token.ID) }, 2, true},
		"create":   {func() error { _, err := edge.client.CreateToken(t.Context(), alice, registry.TokenSpec{}); return err }, 1, false},
		"claim":    {func() error { _, err := edge.client.Claim(t.Context(), "x", from); return err }, 1, false},
		"exchange": {func() error { _, err := edge.client.Exchange(t.Context(), "x", from); return err }, 1, false},
		"approve":  {func() error { return edge.client.Approve(t.Context(), "x", alice) }, 1, false},
	} {
		err := test.call()
		if n := who.count(what); n != test.times || (err == nil) != test.ok {
			t.Errorf("%s was executed %d times, want %d: %v", what, n, test.times, err)
		}
		if err != nil && (registry.KindOf(err) != registry.ErrUnavailable || !strings.Contains(registry.Public(err), "not known")) {
			t.Errorf("%s: %v, %q", what, err, registry.Public(err))
		}
	}
	// One that cannot be reached has executed nothing.
	first.down()
	conformance.Eventually(t, "the edge knows", func() bool { return edge.client.Following() == second.addr })
	if _, err := edge.client.CreateToken(t.Context(), alice, registry.TokenSpec{}); err != nil || who.count("create") != 2 {
		t.Errorf("executed %d times: %v", who.count("create"), err)
	}
	// Nor have those in between, if they can reach nobody themselves; that is
	// known at the edge.
	origin.down()
	conformance.Eventually(t, "the shield knows", func() bool { return second.client.Following() == "" })
	_, err := edge.client.CreateToken(t.Context(), alice, registry.TokenSpec{})
	if registry.KindOf(err) != registry.ErrUnavailable || strings.Contains(registry.Public(err), "not known") || registry.RetryAfter(err) == 0 {
		t.Errorf("with nobody to decide: %v, %q", err, registry.Public(err))
	}
}

// TestLateCopy: a token whose version this node does not get is given all the
// same, after two seconds.
func TestLateCopy(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	who := &accounts{}
	origin := start(t, p, "origin", setup{database: "db", config: who.configure})
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, stopped: true})
	begun := time.Now()
	made, err := edge.client.CreateToken(t.Context(), registry.Principal{Name: "alice"}, registry.TokenSpec{})
	if took := time.Since(begun); err != nil || made.Secret == "" || took < 1900*time.Millisecond || took > 4*time.Second {
		t.Errorf("%+v, %v after %v", made, err, took)
	}
	if edge.meter.count("entitlements late") != 1 || strings.Contains(edge.log.String(), made.Secret) {
		t.Errorf("%s", edge.log)
	}
}
