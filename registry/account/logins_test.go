package account

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

func TestPassword(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := l.user("alice")
	p, err := l.Password(ctx, "alice", secretPassword, here)
	if l.must(err); p.Name != "alice" || p.UID != alice.UID || p.Token != "" {
		t.Errorf("alice is %+v", p)
	}
	for _, rec := range l.keys("e/") {
		if r, err := l.db.Get(ctx, rec); err != nil || strings.Contains(string(r.Value), "argon2") {
			t.Errorf("%s, which every node gets: %s %v", rec, r.Value, err)
		}
	}
	nt, err := l.CreateToken(ctx, p, registry.TokenSpec{Kind: session})
	l.must(err)
	for _, bad := range []string{"", "1234567", strings.Repeat("a", 257), "\xff1234567", "weir_1234567"} {
		_, err := l.SetPassword(ctx, root, "alice", bad)
		l.fails(err, registry.ErrInvalid)
	}
	for _, good := range []string{"12345678", strings.Repeat("a", 256)} {
		_, err := l.SetPassword(ctx, root, "alice", good)
		l.must(err)
		_, err = l.Password(ctx, "alice", good, here)
		l.must(err)
	}
	_, err = l.Password(ctx, "alice", secretPassword, here)
	l.fails(err, registry.ErrUnauthenticated)
	now, err := l.ShowAccount(ctx, "", "alice")
	if l.must(err); now.Secret == alice.Secret {
		t.Error("Secret is the same for another password")
	}
	_, err = l.replica.Token(nt.Secret, here)
	l.fails(err, registry.ErrUnauthenticated) // a session of the old password
	l.robot("ci")
	_, err = l.SetPassword(ctx, root, "ci", "12345678")
	l.fails(err, registry.ErrInvalid)
	_, err = l.SetPassword(ctx, root, "nobody", "12345678")
	l.fails(err, registry.ErrNotFound)
}

// A password does not open an account of the same name that is made later.
func TestAPasswordIsOneAccounts(t *testing.T) {
	l := newLab(t)
	l.user("alice")
	kept, err := l.db.Get(t.Context(), passwordPrefix+"alice")
	l.must(err)
	_, err = l.RemoveAccount(t.Context(), root, registry.User, "alice")
	l.must(err)
	_, err = l.db.Put(t.Context(), passwordPrefix+"alice", 0, kept.Value) // as if its removal had failed
	l.must(err)
	_, _, err = l.AddUser(t.Context(), root, "alice", "", "")
	l.must(err)
	_, err = l.Password(t.Context(), "alice", secretPassword, here)
	l.fails(err, registry.ErrUnauthenticated)
}

func TestATokenDoesForAPassword(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.user("alice")
	l.user("bob")
	nt, err := l.CreateTokenFor(ctx, root, "alice", registry.TokenSpec{})
	l.must(err)
	for _, name := range []string{"alice", "token", "_token"} {
		p, err := l.Password(ctx, name, nt.Secret, here)
		if l.must(err); p.Token != nt.ID || p.Name != "alice" {
			t.Errorf("as %s it is %+v", name, p)
		}
	}
	for _, name := range []string{"bob", "", "Token", "alice "} {
		p, err := l.Password(ctx, name, nt.Secret, here)
		if l.fails(err, registry.ErrUnauthenticated); p.Name != "" {
			t.Errorf("as %s it is %+v", name, p)
		}
	}
}

// refusals are the ways in which a name and a password can be wrong.
func (l *lab) refusals() map[string][2]string {
	l.user("alice")
	l.user("disabled")
	_, err := l.Disable(l.t.Context(), root, "disabled")
	l.must(err)
	_, _, err = l.AddUser(l.t.Context(), root, "unset", "", "")
	l.must(err)
	l.robot("ci")
	return map[string][2]string{
		"wrong password": {"alice", "wrong password"}, "no such user": {"nobody", secretPassword}, "robot": {"ci", secretPassword},
		"disabled": {"disabled", secretPassword}, "no password": {"unset", secretPassword}, "no name": {"", secretPassword},
		"no possible name": {"../alice", secretPassword},
	}
}

func TestWhatIsWrongWithALoginIsNotTold(t *testing.T) {
	l := newLab(t)
	answers := map[string]bool{}
	for what, try := range l.refusals() {
		p, err := l.Password(t.Context(), try[0], try[1], here)
		l.fails(err, registry.ErrUnauthenticated)
		if p.Name != "" || l.audited().What != "login" || l.audited().Err == nil || l.audited().Addr != here {
			t.Errorf("%s: %+v, audited %+v", what, p, l.audited())
		}
		answers[registry.Public(err)+registry.RetryAfter(err).String()] = true
	}
	if len(answers) != 1 {
		t.Errorf("the answers are %v", answers)
	}
}

func TestWhatIsWrongWithALoginTakesTheSameTime(t *testing.T) {
	l := newLab(t)
	took := map[string][]time.Duration{}
	tries := l.refusals()
	off := "?"
	for round := 0; round < 4 && off != ""; round++ { // more rounds only if the machine was busy
		for range 12 { // in turn, so that what else the machine does is in all of them
			for what, try := range tries {
				began := time.Now()
				_, err := l.password(t.Context(), try[0], try[1])
				took[what] = append(took[what], time.Since(began))
				l.fails(err, registry.ErrUnauthenticated)
			}
		}
		off = apart(t, took)
	}
	if off != "" {
		t.Error(off)
	}
}

// apart says what takes another time than the rest: both in the middle and at
// the least, for a busy machine makes one of them uncertain.
func apart(t *testing.T, took map[string][]time.Duration) string {
	const usual = "wrong password"
	for _, all := range took {
		slices.Sort(all)
	}
	off := ""
	near := func(a, b time.Duration) bool { return a > b/2 && a < b*2 }
	for what, all := range took {
		middle, least := all[len(all)/2], all[0]
		t.Logf("%-18s %v, at least %v", what, middle, least)
		if !near(middle, took[usual][len(all)/2]) && !near(least, took[usual][0]) {
			off = what + " takes another time than a " + usual
		}
	}
	return off
}

func TestPasswordsAreComputedTwoAtATime(t *testing.T) {
	h := newHasher()
	var leave []func()
	for range atOnce {
		l, err := h.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range maxQueue {
		h.queue <- struct{}{} // as those that wait
	}
	if _, err := h.matches(ctx, nil, "x"); !errors.Is(err, registry.ErrLimited) || registry.RetryAfter(err) == 0 {
		t.Errorf("beyond the queue: %v", err)
	}
	<-h.queue
	wg.Go(func() {
		if _, err := h.matches(ctx, nil, "x"); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("who waits no longer: %v", err)
		}
	})
	cancel()
	wg.Wait()
	for _, l := range leave {
		l()
	}
	if len(h.queue) != maxQueue-1 || len(h.slots) != 0 {
		t.Errorf("left %d in the queue, %d in slots", len(h.queue), len(h.slots))
	}
}

// failing counts how many wrong passwords are looked at until no more are.
func failing(g *guesses, name string, addr netip.Addr, now time.Time) int {
	for n := range 1000 {
		try, err := g.begin(name, addr, now)
		if err != nil {
			return n
		}
		g.end(try, false, true, now)
	}
	return 1000
}

func TestGuessesAreLimited(t *testing.T) {
	g, now := newGuesses(), testTime
	if n := failing(g, "alice", here, now); n != accountBurst {
		t.Errorf("%d guesses at one account, want %d", n, accountBurst)
	}
	if n := failing(g, "alice", there, now); n != 0 {
		t.Errorf("%d more from another address", n)
	}
	if n := failing(g, "bob", here, now) + failing(g, "carol", here, now); n != addressBurst-accountBurst {
		t.Errorf("%d guesses more from one address, want %d", n, addressBurst-accountBurst)
	}
	_, err := g.begin("alice", there, now)
	if after := registry.RetryAfter(err); !errors.Is(err, registry.ErrLimited) || after < accountEvery/2 || after > accountEvery+time.Second {
		t.Errorf("%v, again after %v", err, after)
	}
	if n := failing(g, "alice", there, now.Add(2*accountEvery)); n != 2 {
		t.Errorf("%d guesses after twice the time, want 2", n)
	}
	g.forgive("alice")
	if n := failing(g, "alice", netip.MustParseAddr("192.0.2.99"), now); n != accountBurst {
		t.Errorf("%d guesses at an account that has been forgiven, want %d", n, accountBurst)
	}
}

func TestGuessesFromOneCustomersIPv6AreOneAddresss(t *testing.T) {
	g := newGuesses()
	sum := 0
	for i := range 40 {
		sum += failing(g, fmt.Sprint("user", i), netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2:%x::1", i)), testTime)
	}
	if sum != addressBurst {
		t.Errorf("%d guesses from one /64, want %d", sum, addressBurst)
	}
	if n := failing(g, "other", netip.MustParseAddr("2001:db8:1:3::1"), testTime); n != accountBurst {
		t.Errorf("%d from another /64", n)
	}
}

func TestGuessesAtOnceAreLimited(t *testing.T) {
	g := newGuesses()
	open := 0
	for range 100 { // none of them has ended
		if _, err := g.begin("alice", here, testTime); err == nil {
			open++
		}
	}
	if open != accountBurst {
		t.Errorf("%d are tried at once, want %d", open, accountBurst)
	}
}

// Nobody can lock a user out by guessing, and nobody gets more guesses at
// others by logging in.
func TestAKnownPlaceHasABudgetOfItsOwn(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.user("alice")
	l.user("mallory")
	_, err := l.Password(ctx, "alice", secretPassword, here)
	l.must(err)
	if n := failing(l.guesses, "alice", there, l.now()); n != accountBurst {
		t.Errorf("%d guesses", n)
	}
	_, err = l.Password(ctx, "alice", secretPassword, there)
	l.fails(err, registry.ErrLimited) // right, but nobody learns that
	_, err = l.Password(ctx, "alice", secretPassword, here)
	l.must(err)
	// The budget of a known place is no way around the others.
	if n := failing(l.guesses, "alice", here, l.now()); n != knownBurst {
		t.Errorf("%d guesses from a known place, want %d", n, knownBurst)
	}
	// Mallory's own success does not give back what his guesses used up.
	mallory := netip.MustParseAddr("192.0.2.66")
	for range 50 {
		_, err := l.Password(ctx, "mallory", secretPassword, mallory)
		l.must(err)
		failing(l.guesses, "bob", mallory, l.now())
		failing(l.guesses, "carol", mallory, l.now())
		failing(l.guesses, "dave", mallory, l.now())
		if n := failing(l.guesses, "erin", mallory, l.now()); n != 0 {
			t.Fatalf("%d guesses more after logging in", n)
		}
	}
	// A new password makes the account's budget whole.
	_, err = l.SetPassword(ctx, root, "alice", secretPassword+"2")
	l.must(err)
	_, err = l.Password(ctx, "alice", secretPassword+"2", there)
	l.must(err)
}

func TestTablesOfGuessesAreBounded(t *testing.T) {
	g := newGuesses()
	for i := range maxBudgets + 100 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		try, err := g.begin(fmt.Sprint("u", i), a, testTime)
		if err != nil {
			t.Fatal(err)
		}
		g.end(try, true, true, testTime)
	}
	if a, b, c := len(g.addresses.all), len(g.accounts.all), len(g.known.all); a > maxBudgets || b > maxBudgets || c > maxBudgets || a < maxBudgets/2 {
		t.Errorf("%d addresses, %d accounts, %d places; %d is the most", a, b, c, maxBudgets)
	}
	// Those that are whole again go first, all at once.
	failing(g, "last", there, testTime.Add(time.Hour))
	if n := len(g.accounts.all); n != 1 {
		t.Errorf("%d accounts are left", n)
	}
}

func TestBrowserLogin(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice, bob := principal(l.user("alice")), principal(l.user("bob"))
	id, err := l.Begin(ctx, here)
	if l.must(err); len(id) != loginLetters {
		t.Errorf("the ID is %q", id)
	}
	_, err = l.Claim(ctx, id, here)
	l.fails(err, registry.ErrConflict)
	l.fails(l.Approve(ctx, id, registry.Principal{}), registry.ErrUnauthenticated)
	narrow, err := l.CreateToken(ctx, alice, registry.TokenSpec{Rights: []string{"pull *"}})
	l.must(err)
	l.fails(l.Approve(ctx, id, registry.Principal{Name: "alice", UID: alice.UID, Token: narrow.ID}), registry.ErrDenied)
	l.must(l.Approve(ctx, id, alice))
	l.must(l.Approve(ctx, id, alice))
	l.fails(l.Approve(ctx, id, bob), registry.ErrConflict)
	nt, err := l.Claim(ctx, id, there)
	if l.must(err); nt.Owner != "alice" || nt.Kind != session || !registry.CheckTokenText(nt.Secret) || nt.Expires.Sub(l.now()) > sessionLife {
		t.Errorf("claimed %+v", nt)
	}
	_, err = l.Claim(ctx, id, there)
	l.fails(err, registry.ErrNotFound)
	l.fails(l.Approve(ctx, id, alice), registry.ErrNotFound)
	for _, bad := range []string{"", "../alice", strings.Repeat("a", 2000), randomID(loginLetters)} {
		_, err = l.Claim(ctx, bad, there)
		l.fails(err, registry.ErrNotFound)
		l.fails(l.Approve(ctx, bad, alice), registry.ErrNotFound)
	}
	late, err := l.Begin(ctx, here)
	l.must(err)
	l.must(l.Approve(ctx, late, alice))
	l.pass(loginTime)
	_, err = l.Claim(ctx, late, here)
	l.fails(err, registry.ErrNotFound)
	gone, err := l.Begin(ctx, here)
	l.must(err)
	l.must(l.Approve(ctx, gone, bob))
	_, err = l.Disable(ctx, root, "bob")
	l.must(err)
	_, err = l.Claim(ctx, gone, here)
	l.fails(err, registry.ErrUnauthenticated)
}

func TestALoginIsClaimedOnce(t *testing.T) {
	l := newLab(t)
	alice := principal(l.user("alice"))
	id, err := l.Begin(t.Context(), here)
	l.must(err)
	l.must(l.Approve(t.Context(), id, alice))
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for range 16 {
		wg.Go(func() {
			if _, err := l.Claim(t.Context(), id, here); err == nil {
				mu.Lock()
				defer mu.Unlock()
				got++
			}
		})
	}
	wg.Wait()
	if tokens := l.keys(tokenPrefix); got != 1 || len(tokens) != 1 {
		t.Errorf("%d got it, there are %d tokens", got, len(tokens))
	}
	// One that was claimed, and could not be removed since, is gone too.
	left := login{Expires: l.now().Add(loginTime), By: alice, Claimed: "x"}
	_, err = create(t.Context(), l.store, loginPrefix+"left", left)
	l.must(err)
	_, err = l.Claim(t.Context(), "left", here)
	l.fails(err, registry.ErrNotFound)
}

func TestLoginsThatBeginAreLimited(t *testing.T) {
	l := newLab(t)
	for range beginBurst {
		_, err := l.Begin(t.Context(), here)
		l.must(err)
	}
	_, err := l.Begin(t.Context(), here)
	l.fails(err, registry.ErrLimited)
	for i := range 1000 {
		if _, err = l.Begin(t.Context(), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})); err != nil {
			break
		}
	}
	l.fails(err, registry.ErrLimited)
	if n := len(l.keys(loginPrefix)); n != 5*allBegins {
		t.Errorf("%d have begun, %d is the most", n, 5*allBegins)
	}
}

// rules is an Exchange whose JWTs are the names of robots.
type rules struct{ m Match }

func (r *rules) Check(_ context.Context, jwt string) (Match, error) {
	if jwt == "bad" {
		return Match{}, registry.Errorf(registry.ErrUnauthenticated, "the JWT is for another audience")
	}
	m := r.m
	m.Robot = jwt
	return m, nil
}

func TestExchange(t *testing.T) {
	r := &rules{m: Match{Rights: []string{"pull oci:acme/*"}, Lifetime: 10 * time.Minute, Note: "https://issuer repo:acme/app"}}
	l := newLab(t, func(o *Options) { o.Exchange = r })
	ctx := t.Context()
	l.robot("ci")
	l.user("alice")
	nt, err := l.Exchange(ctx, "ci", here)
	if l.must(err); nt.Kind != exchange || nt.Owner != "ci" || !slices.Equal(nt.Rights, r.m.Rights) || nt.Note != r.m.Note || nt.Expires.After(l.now().Add(10*time.Minute)) || nt.Expires.Before(l.now().Add(9*time.Minute)) {
		t.Errorf("made %+v", nt)
	}
	if e := l.audited(); e.What != "exchange create" || e.Who.Name != "ci" || e.Addr != here {
		t.Errorf("audited %+v", e)
	}
	r.m = Match{}
	nt, err = l.Exchange(ctx, "ci", here)
	if l.must(err); nt.Expires.IsZero() || nt.Expires.After(l.now().Add(exchangeLife)) {
		t.Errorf("a rule that does not say: %+v", nt)
	}
	for _, bad := range []string{"bad", "alice", "nobody", strings.Repeat("a", maxJWT+1)} {
		_, err := l.Exchange(ctx, bad, here)
		l.fails(err, registry.ErrUnauthenticated)
	}
	_, err = l.Exchange(ctx, "nobody", there)
	if text := registry.Public(err); !strings.Contains(text, "nobody") || !strings.Contains(text, "weir robot add") {
		t.Errorf("a rule for no robot: %q", text)
	}
	_, err = l.Disable(ctx, root, "ci")
	l.must(err)
	_, err = l.Exchange(ctx, "ci", here)
	l.fails(err, registry.ErrUnauthenticated)
	for range 2 * addressBurst {
		_, err = l.Exchange(ctx, "bad", here)
	}
	l.fails(err, registry.ErrUnauthenticated) // and not ErrLimited
	if _, err := l.Password(ctx, "alice", secretPassword, here); err != nil {
		t.Errorf("JWTs that are refused count as passwords: %v", err)
	}
	none := newLab(t)
	_, err = none.Exchange(ctx, "ci", here)
	none.fails(err, registry.ErrUnauthenticated)
}

func FuzzParseHashed(f *testing.F) {
	f.Add(hashed{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, 16), key: make([]byte, 32)}.String())
	f.Add("$argon2id$v=19$m=4294967295,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$$")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseHashed(text)
		if err == nil && (p.String() != text || p.memory > 256<<10 || p.time > 16 || p.threads == 0) {
			t.Errorf("%q is %+v", text, p)
		}
	})
}
