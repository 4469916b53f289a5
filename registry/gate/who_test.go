package gate

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/conformance/accountlab"
	"github.com/weir-registry/weir/registry"
)

const (
	password = "correct: horse%41"
	here     = "192.0.2.1:1000"
	there    = "192.0.2.2:1000"
)

// newGate is a gate with alice, bob and their passwords behind it.
func newGate() (*Gate, *accountlab.Accounts) {
	a := accountlab.New()
	a.Add("alice", password)
	a.Add("bob", "bob's")
	return New(Config{Identities: a, Logins: a}), a
}

func request(from string, authorization ...string) *http.Request {
	r := httptest.NewRequest("GET", "/v2/", nil)
	r.RemoteAddr = from
	r.Header["Authorization"] = authorization
	if authorization == nil {
		delete(r.Header, "Authorization")
	}
	return r
}

func basicOf(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func token(t testing.TB, a *accountlab.Accounts, owner string, spec registry.TokenSpec) registry.NewToken {
	t.Helper()
	acc, _ := a.Account(owner)
	made, err := a.CreateToken(context.Background(), registry.Principal{Name: owner, UID: acc.UID, Secret: acc.Secret}, spec)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// is fails the test unless the request is name's.
func (g *Gate) is(t *testing.T, name string, r *http.Request) registry.Principal {
	t.Helper()
	p, err := g.Who(r)
	if err != nil || p.Name != name {
		t.Fatalf("%q: %+v %v, want %q", r.Header["Authorization"], p, err, name)
	}
	return p
}

// isNot fails the test unless the request is refused like this, and nobody's.
func (g *Gate) isNot(t *testing.T, kind error, text string, r *http.Request) error {
	t.Helper()
	p, err := g.Who(r)
	if !errors.Is(registry.KindOf(err), kind) || !strings.Contains(registry.Public(err), text) || p.Name != "" || p.UID != "" {
		t.Fatalf("%.100q: %+v %v (%v), want %v with %q", r.Header["Authorization"], p, err, registry.Public(err), kind, text)
	}
	return err
}

func TestWho(t *testing.T) {
	g, a := newGate()
	made := token(t, a, "alice", registry.TokenSpec{})
	if p := g.is(t, "", request(here)); !p.Anonymous() || p.Only != nil {
		t.Errorf("%+v", p)
	}
	for _, auth := range []string{
		basicOf("alice", password),
		"basic  " + strings.TrimPrefix(basicOf("alice", password), "Basic ") + " ",
		strings.TrimRight(basicOf("alice", password), "="),
		basicOf("%61lice", "correct%3A+horse%2541"), // all of it encoded
		basicOf("alice", made.Secret),
		basicOf("token", made.Secret),
		basicOf("_token", made.Secret),
		basicOf("weir", made.Secret),
		"Bearer " + made.Secret,
		"bearer  " + made.Secret,
	} {
		p := g.is(t, "alice", request(here, auth))
		if known := p.Token == made.ID; known != strings.Contains(auth, "earer") && p.Token != "" && !known {
			t.Errorf("%s: token %q", auth, p.Token)
		}
	}
	short, _, err := g.Issue(registry.Principal{Name: "alice", UID: g.is(t, "alice", request(here, "Bearer "+made.Secret)).UID, Token: made.ID}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := g.is(t, "alice", request(here, "Bearer "+short)); p.Token != made.ID || p.Only == nil || len(p.Only) != 0 {
		t.Errorf("%+v", p)
	}
	var none *Gate
	none.is(t, "", request(here, basicOf("alice", "wrong")))
	if _, _, err := none.Issue(registry.Principal{}, nil); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("a gate without identities issues: %v", err)
	}
}

// TestMalformed gives what is no credential, or a wrong one, which is never
// taken for none.
func TestMalformed(t *testing.T) {
	g, a := newGate()
	made := token(t, a, "alice", registry.TokenSpec{}).Secret
	flipped := made[:10] + string(made[10]^1) + made[11:]
	if registry.CheckTokenText(flipped) {
		t.Fatal("the flipped token's checksum is right")
	}
	for auth, text := range map[string]string{
		"":                                       "neither Basic nor Bearer",
		"Basic":                                  "not base64",
		"Basic !!!!":                             "not base64",
		"Basic YWxpY2U=":                         "no colon",
		basicOf("", ""):                          "no user",
		basicOf("%zz", "x"):                      "no account's name",
		"Digest username=x":                      "neither Basic nor Bearer",
		"Basic" + basicOf("alice", password)[6:]: "neither Basic nor Bearer",
		"Bearer":                                 "no token",
		"Bearer ":                                "no token",
		"Bearer abc":                             "none of this registry's",
		"Bearer a.b.c":                           "none of this registry's",
		"Bearer " + flipped:                      "malformed",
		basicOf("x", flipped):                    "malformed",
		basicOf("bob", made):                     "not that user's",
		basicOf("alice", ""):                     "wrong name or password",
		basicOf("alice", "no"):                   "wrong name or password",
		basicOf("nobody", "x"):                   "wrong name or password",
		basicOf(strings.Repeat("a", 65), "x"):    "wrong name or password",
		basicOf("alice", password+"\x00"):        "wrong name or password",
		basicOf("alice", strings.Repeat("x", 1025)):       "wrong name or password",
		"Bearer " + strings.Repeat("x", maxAuthorization): "longer than",
	} {
		g.isNot(t, registry.ErrUnauthenticated, text, request(here, auth))
	}
	g.isNot(t, registry.ErrUnauthenticated, "more than one", request(here, basicOf("alice", password), basicOf("alice", password)))
	g.isNot(t, registry.ErrUnauthenticated, "more than one", request(here, "Bearer "+made, ""))
	// A percent sign in a password alone is one.
	a.SetPassword("bob", "%41")
	g.is(t, "bob", request(here, basicOf("bob", "%41")))
	g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("bob", "A")))
}

// TestRemembered has one password checked once, until anything changes.
func TestRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		alice := request(here, basicOf("alice", password))
		checks := 0
		checked := func(what string, n int) {
			t.Helper()
			if got := a.Checks() - checks; got != n {
				t.Errorf("%s: %d checks, want %d", what, got, n)
			}
			checks = a.Checks()
		}
		var wg sync.WaitGroup
		a.Slow = func() { time.Sleep(time.Second) }
		for range 100 {
			wg.Go(func() { g.is(t, "alice", request(here, basicOf("alice", password))) })
		}
		wg.Wait()
		a.Slow = nil
		checked("at once", 1)
		g.is(t, "alice", alice)
		g.is(t, "alice", request(there, basicOf("alice", password)))
		checked("again", 0)
		g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("alice", password+"x")))
		g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("alice", password+"x")))
		checked("wrong ones", 2)
		time.Sleep(rememberFor)
		g.is(t, "alice", alice)
		checked("late", 1)
		a.SetPassword("alice", "new")
		g.isNot(t, registry.ErrUnauthenticated, "wrong", alice)
		checked("the old one", 1)
		g.is(t, "alice", request(here, basicOf("alice", "new")))
		checked("the new one", 1)
		a.Add("alice", "new") // another one of that name
		p := g.is(t, "alice", request(here, basicOf("alice", "new")))
		if acc, _ := a.Account("alice"); p.UID != acc.UID {
			t.Errorf("the new alice is taken for the old one")
		}
		checked("another alice", 1)
		a.Disable("alice")
		g.isNot(t, registry.ErrUnauthenticated, "wrong name or password", request(here, basicOf("alice", "new")))
		a.Add("alice", "new")
		g.is(t, "alice", request(here, basicOf("alice", "new")))
		a.Remove("alice")
		g.isNot(t, registry.ErrUnauthenticated, "wrong name or password", request(here, basicOf("alice", "new")))
	})
}

// TestPasswordChangesDuringCheck has a check end after the password changed:
// what it found is not remembered.
func TestPasswordChangesDuringCheck(t *testing.T) {
	g, a := newGate()
	late := &lateLogins{Accounts: a, after: func() { a.SetPassword("alice", "new") }}
	g.c.Logins = late
	g.is(t, "alice", request(here, basicOf("alice", password)))
	late.after = func() {}
	g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("alice", password)))
}

// TestNotKnownHere logs in to an account that this node has not heard of yet.
func TestNotKnownHere(t *testing.T) {
	g, a := newGate()
	g.c.Identities = accountlab.New()
	for range 2 {
		g.is(t, "alice", request(here, basicOf("alice", password)))
	}
	if n := a.Checks(); n != 2 {
		t.Errorf("%d checks: a password is remembered that nothing here would end", n)
	}
	g.c.Identities = a
	g.is(t, "alice", request(here, basicOf("alice", password)))
	if n := a.Checks(); n != 3 {
		t.Errorf("%d checks: what was remembered before the account was known counts", n)
	}
}

type lateLogins struct {
	*accountlab.Accounts
	after func()
}

func (l *lateLogins) Password(ctx context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	defer l.after()
	return l.Accounts.Password(ctx, name, password, from)
}

// TestLimitByAddress guesses from one address, at many names.
func TestLimitByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		made := token(t, a, "bob", registry.TokenSpec{}).Secret
		g.is(t, "alice", request(here, basicOf("alice", password)))
		for i := range 30 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf(fmt.Sprint("user", i), "x")))
		}
		before := a.Checks()
		err := g.isNot(t, registry.ErrLimited, "from this address", request(here, basicOf("user31", "x")))
		if after := registry.RetryAfter(err); after < time.Second || after > 6*time.Second {
			t.Errorf("Retry-After %v", after)
		}
		// The right one too, as it is not remembered: or guessing would go on.
		g.isNot(t, registry.ErrLimited, "from this address", request(here, basicOf("bob", "bob's")))
		if n := a.Checks() - before; n != 0 {
			t.Errorf("%d passwords were checked beyond the limit", n)
		}
		// Who shares the address goes on as far as it is known from memory.
		g.is(t, "alice", request(here, basicOf("alice", password)))
		g.is(t, "bob", request(here, "Bearer "+made))
		g.is(t, "bob", request(here, basicOf("bob", made)))
		g.is(t, "bob", request(there, basicOf("bob", "bob's")))
		time.Sleep(6 * time.Second)
		g.is(t, "bob", request(here, basicOf("bob", "bob's"))) // right ones cost nothing
		g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("user32", "x")))
		g.isNot(t, registry.ErrLimited, "from this address", request(here, basicOf("user33", "x")))
	})
}

// TestLimitByNetwork guesses from many addresses of one IPv6 network, and from
// another.
func TestLimitByNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGate()
		for i := range 30 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(fmt.Sprintf("[2001:db8::%x:1]:9", i), basicOf(fmt.Sprint("user", i), "x")))
		}
		g.isNot(t, registry.ErrLimited, "from this address", request("[2001:db8::ffff:ffff:ffff]:9", basicOf("alice", "x")))
		g.isNot(t, registry.ErrUnauthenticated, "wrong", request("[2001:db8:0:1::1]:9", basicOf("alice", "x")))
		g.isNot(t, registry.ErrUnauthenticated, "wrong", request("nonsense", basicOf("alice", "x")))
	})
}

// TestLimitByAccount guesses one account's password from everywhere.
func TestLimitByAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		made := token(t, a, "alice", registry.TokenSpec{}).Secret
		for i := range 10 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(fmt.Sprintf("10.0.0.%d:1", i), basicOf("alice", fmt.Sprint(i))))
		}
		g.isNot(t, registry.ErrLimited, "to this account", request("10.0.1.1:1", basicOf("alice", "x")))
		g.is(t, "alice", request(here, "Bearer "+made))
		g.is(t, "bob", request("10.0.1.1:1", basicOf("bob", "bob's")))
		time.Sleep(10 * time.Second)
		g.is(t, "alice", request(here, basicOf("alice", password)))
	})
}

// TestLimitKnown guesses an account's password from everywhere without end: from
// where its owner has logged in before, he still can, and guessing there is
// limited too.
func TestLimitKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGate()
		alice := request(here, basicOf("alice", password))
		g.is(t, "alice", alice)
		time.Sleep(rememberFor)
		for i := range 10 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(fmt.Sprintf("10.0.0.%d:1", i), basicOf("alice", fmt.Sprint(i))))
		}
		g.isNot(t, registry.ErrLimited, "to this account", request(there, basicOf("alice", password)))
		for range 5 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(here, basicOf("alice", "x")))
		}
		g.isNot(t, registry.ErrLimited, "to this account", alice)
		time.Sleep(time.Minute)
		g.is(t, "alice", alice)
		time.Sleep(knownFor)
		for i := range 10 {
			g.isNot(t, registry.ErrUnauthenticated, "wrong", request(fmt.Sprintf("10.0.0.%d:1", i), basicOf("alice", fmt.Sprint(i))))
		}
		g.isNot(t, registry.ErrLimited, "to this account", alice)
	})
}

// TestLimitAtOnce makes many attempts before the first has failed.
func TestLimitAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		a.Slow = func() { time.Sleep(time.Second) }
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { _, _ = g.Who(request(fmt.Sprintf("10.0.0.%d:1", i), basicOf("alice", fmt.Sprint(i)))) })
		}
		wg.Wait()
		if n := a.Checks(); n != 10 {
			t.Errorf("%d passwords of one account were checked at once", n)
		}
	})
}

// TestWrongTokens presents wrong tokens without end: each is told that it is wrong,
// and the right ones go on, and so do passwords.
func TestWrongTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		made := token(t, a, "alice", registry.TokenSpec{}).Secret
		for range 1000 {
			g.isNot(t, registry.ErrUnauthenticated, "unknown", request(here, "Bearer "+registry.NewTokenText()))
		}
		g.isNot(t, registry.ErrUnauthenticated, "", request(here, "Bearer a.b.c"))
		g.is(t, "alice", request(here, "Bearer "+made))
		g.is(t, "bob", request(here, basicOf("bob", "bob's")))
	})
}

// TestUnavailable has the node that checks passwords away: that is no failed
// attempt, and nothing is remembered of it.
func TestUnavailable(t *testing.T) {
	g, a := newGate()
	away := &awayLogins{Accounts: a}
	g.c.Logins = away
	for range 100 {
		g.isNot(t, registry.ErrUnavailable, "", request(here, basicOf("alice", password)))
	}
	g.c.Logins = a
	g.is(t, "alice", request(here, basicOf("alice", password)))
	g.c.Logins = nil
	g.isNot(t, registry.ErrUnauthenticated, "tokens only", request(here, basicOf("bob", "bob's")))
}

type awayLogins struct{ *accountlab.Accounts }

func (awayLogins) Password(context.Context, string, string, netip.Addr) (registry.Principal, error) {
	return registry.Principal{}, registry.Errorf(registry.ErrUnavailable, "the node that decides does not answer")
}

// TestGone has a client leave before its password is checked.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		a.Slow = func() { time.Sleep(time.Second) }
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		g.isNot(t, registry.ErrUnavailable, "", request(here, basicOf("alice", password)).WithContext(ctx))
		g.is(t, "alice", request(here, basicOf("alice", password))) // the check went on
		if n := a.Checks(); n != 1 {
			t.Errorf("%d checks", n)
		}
	})
}

// TestBounded fills what is remembered: it stays within its bounds, and what is
// used stays in it.
func TestBounded(t *testing.T) {
	var r recent[int, int]
	for i := range 10 * recentMost {
		r.put(i, i)
		if v, ok := r.get(0); !ok || v != 0 {
			t.Fatalf("what is used all the time was forgotten after %d others", i)
		}
		if n := len(r.young) + len(r.old); n > 2*recentMost {
			t.Fatalf("%d are kept", n)
		}
	}
	if _, ok := r.get(5); ok {
		t.Error("what was not used for long is still there")
	}
}
