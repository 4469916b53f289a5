package account

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

func TestAccounts(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := l.user("alice")
	ci := l.robot("ci")
	if alice.UID == ci.UID || len(alice.UID) != uidLength || alice.Secret == 0 || alice.Kind != registry.User || ci.Kind != registry.Robot {
		t.Errorf("made %+v and %+v", alice, ci)
	}
	_, _, err := l.AddRobot(ctx, root, "alice")
	l.fails(err, registry.ErrConflict)
	for _, bad := range []string{"", "Alice", ".a", "-a", "a b", "a/b", "ä", strings.Repeat("a", 65), "anonymous", "token", "_token", "a\x00"} {
		_, _, err := l.AddUser(ctx, root, bad, "", "")
		l.fails(err, registry.ErrInvalid)
	}
	for _, good := range []string{"0", "a.b-c_d", strings.Repeat("a", 64)} {
		_, _, err := l.AddUser(ctx, root, good, "x@example.com", "")
		l.must(err)
	}
	_, _, err = l.AddUser(ctx, root, "bob", "not an address", "")
	l.fails(err, registry.ErrInvalid)
	_, _, err = l.AddUser(ctx, root, "bob", "", "short")
	l.fails(err, registry.ErrInvalid)

	version, err := l.Disable(ctx, root, "alice")
	l.must(err)
	if e := l.audited(); e.What != "user disable" || e.Subject != "user:alice" || e.Who.Name != "root" || e.Addr != root.Addr || e.Version != version || e.Err != nil || e.Time != l.now() {
		t.Errorf("audited %+v", e)
	}
	got, err := l.ShowAccount(ctx, registry.User, "alice")
	if l.must(err); !got.Disabled {
		t.Error("alice is not disabled")
	}
	_, err = l.Enable(ctx, root, "alice")
	l.must(err)
	_, err = l.Enable(ctx, root, "nobody")
	l.fails(err, registry.ErrNotFound)
	_, err = l.ShowAccount(ctx, registry.Robot, "alice")
	l.fails(err, registry.ErrNotFound)
	users, err := l.ListAccounts(ctx, registry.User)
	l.must(err)
	robots, err := l.ListAccounts(ctx, registry.Robot)
	if l.must(err); len(users) != 4 || len(robots) != 1 || robots[0].Name != "ci" {
		t.Errorf("users %v, robots %v", users, robots)
	}
}

func TestRemoveAccountTakesAllThatIsItsOwn(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.user("alice")
	l.user("bob")
	for _, name := range []string{"alice", "bob"} {
		nt, err := l.CreateTokenFor(ctx, root, name, registry.TokenSpec{})
		l.must(err)
		if nt.Mark() != registry.TokenMark(nt.Secret) || nt.ID != nt.UID+"t"+nt.Mark() {
			t.Errorf("the secret %q has the ID %q", nt.Secret, nt.ID)
		}
		_, _, err = l.Grant(ctx, root, GrantSpec{To: name, Right: "pull oci:acme/*"})
		l.must(err)
		l.Used(map[string]time.Time{nt.ID: l.now()})
		l.must(l.writeUsed(ctx))
	}
	before := len(l.keys("s/"))
	_, err := l.RemoveAccount(ctx, root, registry.Robot, "alice")
	l.fails(err, registry.ErrNotFound)
	version, err := l.RemoveAccount(ctx, root, registry.User, "alice")
	l.must(err)
	if version == 0 || len(l.keys(tokenPrefix)) != 1 || len(l.keys(grantPrefix)) != 1 || len(l.keys("s/")) != before-2 {
		t.Errorf("version %d, left %v %v", version, l.keys("e/"), l.keys("s/"))
	}
	// The account goes before what is its own.
	var order []string
	for rec, err := range l.db.Changes(ctx, version-1) {
		l.must(err)
		order = append(order, rec.Key)
	}
	if order[0] != accountPrefix+"alice" {
		t.Errorf("removed in the order %v", order)
	}
	// What is left behind because the database failed meanwhile the sweep takes.
	bob, err := l.ShowAccount(ctx, "", "bob")
	l.must(err)
	_, err = l.store.remove(ctx, accountPrefix+"bob")
	l.must(err)
	l.user("bob") // another one, whose password stays
	more, err := l.sweep(ctx)
	if l.must(err); more || len(l.keys(tokenPrefix)) != 0 || len(l.keys(grantPrefix)) != 0 || len(l.keys("s/")) != 1 {
		t.Errorf("%v: more %v, left %v %v", bob, more, l.keys("e/"), l.keys("s/"))
	}
}

func TestTeams(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.user("alice")
	l.robot("ci")
	core, _, err := l.AddTeam(ctx, root, "core")
	l.must(err)
	_, _, err = l.AddTeam(ctx, root, "core")
	l.fails(err, registry.ErrConflict)
	for _, name := range []string{"alice", "ci", "alice"} {
		_, err = l.AddMember(ctx, root, "core", name)
		l.must(err)
	}
	_, err = l.AddMember(ctx, root, "core", "nobody")
	l.fails(err, registry.ErrNotFound)
	_, err = l.AddMember(ctx, root, "none", "alice")
	l.fails(err, registry.ErrNotFound)
	team, members, err := l.ShowTeam(ctx, "core")
	if l.must(err); team.UID != core.UID || !slices.Equal(members, []string{"alice", "ci"}) {
		t.Errorf("%+v %v", team, members)
	}
	_, err = l.RemoveMember(ctx, root, "core", "ci")
	l.must(err)
	g, _, err := l.Grant(ctx, root, GrantSpec{To: "core", Right: "push oci:acme/*"})
	if l.must(err); g.To != "team:core" || g.UID != core.UID {
		t.Errorf("granted %+v", g)
	}
	_, err = l.RemoveTeam(ctx, root, "core")
	l.must(err)
	alice, err := l.ShowAccount(ctx, "", "alice")
	if l.must(err); len(alice.Teams) != 0 || len(l.keys(grantPrefix)) != 0 {
		t.Errorf("left %+v %v", alice, l.keys(grantPrefix))
	}
	_, _, err = l.ShowTeam(ctx, "core")
	l.fails(err, registry.ErrNotFound)
}

func TestTooManyTeams(t *testing.T) {
	l := newLab(t)
	l.robot("ci")
	_, _, err := l.AddTeam(t.Context(), root, "core")
	l.must(err)
	_, _, err = update(t.Context(), l.store, accountPrefix+"ci", func(acc *registry.Account) error {
		for range maxTeams - 1 {
			acc.Teams = append(acc.Teams, randomID(uidLength))
		}
		return nil
	})
	l.must(err)
	_, err = l.AddMember(t.Context(), root, "core", "ci")
	l.must(err)
	_, _, err = l.AddTeam(t.Context(), root, "more")
	l.must(err)
	_, err = l.AddMember(t.Context(), root, "more", "ci")
	l.fails(err, registry.ErrInvalid)
}

func TestGrants(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := l.user("alice")
	l.robot("both")
	_, _, err := l.AddTeam(ctx, root, "both")
	l.must(err)
	g, version, err := l.Grant(ctx, root, GrantSpec{To: "alice", Right: "pull oci:acme/*", Lifetime: time.Hour})
	l.must(err)
	want := registry.Grant{ID: g.ID, To: "user:alice", UID: alice.UID, Right: "pull oci:acme/*",
		Expires: testTime.Add(time.Hour).Truncate(time.Second), Created: testTime.Truncate(time.Second), By: "root"}
	if g != want || version == 0 {
		t.Errorf("granted %+v, want %+v", g, want)
	}
	again, _, err := l.Grant(ctx, root, GrantSpec{To: "user:alice", Right: "pull oci:acme/*"})
	if l.must(err); again.ID != g.ID || !again.Expires.IsZero() {
		t.Errorf("granted again %+v", again)
	}
	deny, _, err := l.Grant(ctx, root, GrantSpec{To: "user:alice", Right: "pull oci:acme/*", Deny: true})
	if l.must(err); deny.ID == g.ID || !deny.Deny {
		t.Errorf("denied %+v", deny)
	}
	everyone, _, err := l.Grant(ctx, root, GrantSpec{To: "anonymous", Right: "pull npm:*"})
	if l.must(err); everyone.UID != "" || everyone.To != "anonymous" {
		t.Errorf("granted to everyone %+v", everyone)
	}
	for to, kind := range map[string]error{"both": registry.ErrInvalid, "nobody": registry.ErrNotFound, "robot:alice": registry.ErrNotFound,
		"group:alice": registry.ErrInvalid, "": registry.ErrNotFound, "team:": registry.ErrNotFound} {
		_, _, err := l.Grant(ctx, root, GrantSpec{To: to, Right: "pull *"})
		l.fails(err, kind)
	}
	for _, right := range []string{"", "pull", "pull ", "fetch oci:*", "pull oci", "pull oci:", "pull :x", "pull oci:a b", "pull oci:a\n", "pull oci:" + strings.Repeat("a", 2000)} {
		_, _, err := l.Grant(ctx, root, GrantSpec{To: "alice", Right: right})
		l.fails(err, registry.ErrInvalid)
	}
	_, _, err = l.Grant(ctx, root, GrantSpec{To: "alice", Right: "pull *", Lifetime: -1})
	l.fails(err, registry.ErrInvalid)
	of, err := l.ListGrants(ctx, "alice")
	l.must(err)
	all, err := l.ListGrants(ctx, "")
	l.must(err)
	anyone, err := l.ListGrants(ctx, "anonymous")
	if l.must(err); len(of) != 2 || len(all) != 3 || len(anyone) != 1 {
		t.Errorf("listed %v %v %v", of, all, anyone)
	}
	gone, _, err := l.RevokeGrant(ctx, root, deny.ID)
	if l.must(err); gone != deny || l.audited().What != "grant revoke" {
		t.Errorf("revoked %+v, audited %+v", gone, l.audited())
	}
	for _, id := range []string{deny.ID, "", "../x", "A"} {
		_, _, err = l.RevokeGrant(ctx, root, id)
		l.fails(err, registry.ErrNotFound)
	}
}

func TestTokens(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice, bob := principal(l.user("alice")), principal(l.user("bob"))
	nt, err := l.CreateToken(ctx, alice, registry.TokenSpec{Note: "laptop", Rights: []string{"pull oci:*"},
		From: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("::ffff:192.0.2.1/120")}, Lifetime: time.Hour})
	l.must(err)
	if !registry.CheckTokenText(nt.Secret) || nt.Hash != nil || nt.Version == 0 || !nt.Expires.Equal(testTime.Add(time.Hour).Truncate(time.Second)) ||
		nt.From[0].String() != "10.0.0.0/8" || nt.From[1].String() != "192.0.2.0/24" {
		t.Errorf("made %+v", nt)
	}
	if p, err := l.replica.Token(nt.Secret, here); err != nil || p.Name != "alice" || p.Token != nt.ID {
		t.Errorf("it is %+v, %v", p, err)
	}
	for _, rec := range l.keys("") {
		if r, err := l.db.Get(ctx, rec); err != nil || strings.Contains(string(r.Value), nt.Secret) {
			t.Errorf("%s holds the secret, or %v", rec, err)
		}
	}
	list, err := l.ListTokens(ctx, alice)
	if l.must(err); len(list) != 1 || list[0].ID != nt.ID || list[0].Hash != nil || list[0].Note != "laptop" {
		t.Errorf("listed %+v", list)
	}
	l.fails(l.RevokeToken(ctx, bob, nt.ID), registry.ErrNotFound)
	l.must(l.RevokeToken(ctx, alice, nt.ID))
	l.fails(l.RevokeToken(ctx, alice, nt.ID), registry.ErrNotFound)
	for _, spec := range []registry.TokenSpec{{Kind: "exchange"}, {Kind: "other"}, {Rights: []string{"nonsense"}}, {Rights: slices.Repeat([]string{"pull *"}, maxRights+1)},
		{Note: "a\nb"}, {Note: strings.Repeat("a", maxNote+1)}, {Lifetime: -1}, {From: make([]netip.Prefix, 1)}, {From: slices.Repeat([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, maxFrom+1)}} {
		_, err := l.CreateToken(ctx, alice, spec)
		l.fails(err, registry.ErrInvalid)
	}
	for _, who := range []registry.Principal{{}, {Node: true, Name: "edge"}, {Name: "alice", UID: "of another"}, {Name: "gone", UID: "x"}} {
		_, err := l.CreateToken(ctx, who, registry.TokenSpec{})
		l.fails(err, registry.ErrUnauthenticated)
	}
	_, err = l.Disable(ctx, root, "alice")
	l.must(err)
	_, err = l.CreateToken(ctx, alice, registry.TokenSpec{})
	l.fails(err, registry.ErrUnauthenticated)
}

func TestNarrowTokensMakeNoWiderOnes(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := principal(l.user("alice"))
	with := func(spec registry.TokenSpec) registry.Principal {
		nt, err := l.CreateToken(ctx, alice, spec)
		l.must(err)
		p := alice
		p.Token = nt.ID
		return p
	}
	net := func(s ...string) (all []netip.Prefix) {
		for _, one := range s {
			all = append(all, netip.MustParsePrefix(one))
		}
		return all
	}
	rights := with(registry.TokenSpec{Rights: []string{"push oci:acme/*", "pull npm:left-pad"}})
	nets := with(registry.TokenSpec{From: net("10.0.0.0/8", "fd00::/8")})
	ends := with(registry.TokenSpec{Lifetime: time.Hour})
	session := with(registry.TokenSpec{Kind: "session", Lifetime: time.Hour})
	only := alice
	only.Only = []registry.Right{}
	for _, c := range []struct {
		what string
		by   registry.Principal
		spec registry.TokenSpec
		ok   bool
	}{
		{"a password", alice, registry.TokenSpec{}, true},
		{"a session", session, registry.TokenSpec{}, true},
		{"the same right", rights, registry.TokenSpec{Rights: []string{"push oci:acme/*"}}, true},
		{"less of it", rights, registry.TokenSpec{Rights: []string{"pull oci:acme/app", "pull oci:acme/x*y", "pull npm:left-pad"}}, true},
		{"no rights", rights, registry.TokenSpec{}, false},
		{"a higher action", rights, registry.TokenSpec{Rights: []string{"admin oci:acme/*"}}, false},
		{"a wider pattern", rights, registry.TokenSpec{Rights: []string{"pull oci:acme*"}}, false},
		{"another pattern", rights, registry.TokenSpec{Rights: []string{"pull oci:*me/app"}}, false},
		{"another protocol", rights, registry.TokenSpec{Rights: []string{"pull npm:acme/app"}}, false},
		{"everything", rights, registry.TokenSpec{Rights: []string{"pull *"}}, false},
		{"one too many", rights, registry.TokenSpec{Rights: []string{"pull oci:acme/app", "pull npm:lodash"}}, false},
		{"a network inside", nets, registry.TokenSpec{From: net("10.1.0.0/16", "::ffff:10.2.0.0/112", "fd01::/16")}, true},
		{"no network", nets, registry.TokenSpec{}, false},
		{"a network around", nets, registry.TokenSpec{From: net("0.0.0.0/0")}, false},
		{"one outside", nets, registry.TokenSpec{From: net("10.1.0.0/16", "192.0.2.0/24")}, false},
		{"an earlier end", ends, registry.TokenSpec{Lifetime: time.Minute}, true},
		{"a later end", ends, registry.TokenSpec{Lifetime: 2 * time.Hour}, false},
		{"no end", ends, registry.TokenSpec{}, false},
		{"a short-lived token", only, registry.TokenSpec{Rights: []string{"pull oci:acme/app"}}, false},
	} {
		_, err := l.CreateToken(ctx, c.by, c.spec)
		if c.ok {
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		l.fails(err, registry.ErrDenied)
		l.fails(err, registry.ErrScope)
	}
	other := with(registry.TokenSpec{})
	l.fails(l.RevokeToken(ctx, rights, other.Token), registry.ErrDenied)
	l.must(l.RevokeToken(ctx, rights, rights.Token))
	_, err := l.CreateToken(ctx, rights, registry.TokenSpec{Rights: []string{"pull oci:acme/app"}})
	l.fails(err, registry.ErrUnauthenticated)
	l.pass(2 * time.Hour)
	_, err = l.CreateToken(ctx, ends, registry.TokenSpec{Lifetime: time.Second})
	l.fails(err, registry.ErrUnauthenticated)
}

func TestTokensAreBounded(t *testing.T) {
	l := newLab(t)
	acc := l.robot("ci")
	for range maxTokens - 1 {
		_, err := create(t.Context(), l.store, tokenPrefix+acc.UID+"t"+randomID(8), registry.Token{})
		l.must(err)
	}
	_, err := l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{})
	l.must(err)
	_, err = l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{})
	l.fails(err, registry.ErrLimited)
	_, err = l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{Kind: "session"})
	l.must(err)
	l.exchanges[acc.UID] = maxExchanges - 1
	_, err = l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{Kind: "exchange"})
	l.must(err)
	_, err = l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{Kind: "exchange"})
	l.fails(err, registry.ErrLimited)
}

func TestATokenThatIsNotKnownHereIsTakenBack(t *testing.T) {
	l := newLab(t)
	l.robot("ci")
	l.replica.behind = true
	_, err := l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{})
	l.fails(err, registry.ErrUnavailable)
	if left := l.keys(tokenPrefix); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestUsed(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.robot("ci")
	nt, err := l.CreateTokenFor(ctx, root, "ci", registry.TokenSpec{})
	l.must(err)
	used := func() time.Time {
		list, err := l.ListTokensOf(ctx, "ci")
		l.must(err)
		one, err := l.ShowToken(ctx, nt.ID)
		if l.must(err); !one.Used.Equal(list[0].Used) {
			t.Errorf("shown %v, listed %v", one.Used, list[0].Used)
		}
		return list[0].Used
	}
	head := func() uint64 {
		n, err := l.db.Head(ctx)
		l.must(err)
		return n
	}
	minute := testTime.Truncate(time.Minute)
	l.Used(map[string]time.Time{nt.ID: testTime.Add(time.Hour), "unknown": testTime, "../evil": testTime})
	if got := used(); !got.Equal(minute) {
		t.Errorf("used %v, want %v: not in the future", got, minute)
	}
	l.must(l.writeUsed(ctx))
	at := head()
	if got := l.keys(usedPrefix); len(got) != 1 || len(l.used.pending) != 0 {
		t.Errorf("wrote %v, pending %v", got, l.used.pending)
	}
	for range 4 { // more often than it is written
		l.pass(time.Minute)
		l.Used(map[string]time.Time{nt.ID: l.now()})
		l.must(l.writeUsed(ctx))
	}
	if head() != at || !used().Equal(minute.Add(4*time.Minute)) {
		t.Errorf("written %d times; used %v", head()-at, used())
	}
	l.pass(time.Minute)
	l.must(l.writeUsed(ctx))
	if head() != at+1 {
		t.Errorf("written %d times after five minutes", head()-at)
	}
	_, _, err = l.Revoke(ctx, root, nt.ID)
	l.must(err)
	if left := l.keys(usedPrefix); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	many := map[string]time.Time{}
	for range maxPending + 10 {
		many[randomID(20)] = l.now()
	}
	l.Used(many)
	if n := len(l.used.pending); n != maxPending {
		t.Errorf("%d are pending, %d is the most", n, maxPending)
	}
}

func TestSweepRemovesWhatHasExpired(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.robot("ci")
	for _, spec := range []registry.TokenSpec{{}, {Lifetime: time.Hour}, {Kind: exchange, Lifetime: time.Hour}, {Kind: exchange, Lifetime: 3 * time.Hour}} {
		_, err := l.CreateTokenFor(ctx, root, "ci", spec)
		l.must(err)
	}
	_, _, err := l.Grant(ctx, root, GrantSpec{To: "ci", Right: "pull *", Lifetime: time.Hour})
	l.must(err)
	_, err = l.Begin(ctx, here)
	l.must(err)
	count := func(tokens, grants, logins int) {
		t.Helper()
		_, err := l.sweep(ctx)
		l.must(err)
		if a, b, c := len(l.keys(tokenPrefix)), len(l.keys(grantPrefix)), len(l.keys(loginPrefix)); a != tokens || b != grants || c != logins {
			t.Errorf("left %d tokens, %d grants, %d logins; want %d, %d, %d", a, b, c, tokens, grants, logins)
		}
	}
	count(4, 1, 1)
	l.pass(2 * time.Hour)
	count(3, 1, 0)
	l.pass(expiredKept)
	count(1, 0, 0)
	for range sweepMost + 1 {
		id := randomID(24)
		_, err := create(ctx, l.store, tokenPrefix+id, registry.Token{ID: id, UID: "gone"})
		l.must(err)
	}
	if more, err := l.sweep(ctx); err != nil || !more {
		t.Errorf("more %v, %v", more, err)
	}
	count(1, 0, 0)
}

func TestKeysRotate(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	first := l.replica.Keys()
	if len(first) != 1 || len(first[0].Secret) != keySize || first[0].ID != "20310506" {
		t.Fatalf("began with %+v", first)
	}
	for day := range 5 {
		l.pass(24 * time.Hour)
		var wg sync.WaitGroup
		for range 4 { // several nodes at once
			wg.Go(func() {
				other, err := Open(ctx, Options{Metadata: l.db, Replica: l.replica, Now: l.now, Log: l.o.Log})
				if err != nil || other.Database() != l.Database() {
					t.Errorf("another node: %v", err)
				}
			})
		}
		wg.Wait()
		keys := l.replica.Keys()
		if want := min(day+2, keysKept); len(keys) != want || keys[0].Created.Before(l.now().Add(-time.Second)) {
			t.Errorf("day %d: %d keys, the newest of %v", day, len(keys), keys[0].Created)
		}
	}
	head, err := l.db.Head(ctx)
	l.must(err)
	l.pass(-48 * time.Hour) // a clock that is behind
	l.must(l.rotateKeys(ctx))
	if now, err := l.db.Head(ctx); err != nil || now != head {
		t.Errorf("a clock that is behind made %d changes, %v", now-head, err)
	}
	if l.Database() == "" || l.Database() == newLab(t).Database() {
		t.Error("databases are not told apart")
	}
}

func TestOpenSaysThatTheDatabaseIsDamaged(t *testing.T) {
	l := newLab(t)
	for key, value := range map[string]string{databaseKey: `""`, keyPrefix + "x": "nonsense"} {
		rec, _ := l.db.Get(t.Context(), key)
		_, err := l.db.Put(t.Context(), key, rec.Rev, []byte(value))
		l.must(err)
		_, err = Open(t.Context(), Options{Metadata: l.db, Replica: l.replica})
		l.fails(err, registry.ErrUnavailable)
	}
}

// Records are read by other packages: their JSON is the registry's types'.
func TestRecordsAreOfTheRegistrysTypes(t *testing.T) {
	l := newLab(t)
	l.user("alice")
	_, err := l.CreateTokenFor(t.Context(), root, "alice", registry.TokenSpec{})
	l.must(err)
	_, _, err = l.Grant(t.Context(), root, GrantSpec{To: "alice", Right: "pull *"})
	l.must(err)
	for prefix, v := range map[string]any{accountPrefix: &registry.Account{}, tokenPrefix: &registry.Token{}, grantPrefix: &registry.Grant{}, keyPrefix: &registry.SigningKey{}} {
		for rec, err := range l.db.List(context.Background(), prefix, "") {
			if l.must(err); decodeStrictly(rec.Value, v) != nil {
				t.Errorf("%s: %s", rec.Key, rec.Value)
			}
			if again, err := json.Marshal(v); err != nil || string(again) != string(rec.Value) {
				t.Errorf("%s: %s, again %s", rec.Key, rec.Value, again)
			}
		}
	}
}

func TestRunDoesWhatIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(o *Options) { o.Now = time.Now })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx) })
		l.robot("ci")
		nt, err := l.CreateTokenFor(ctx, root, "ci", registry.TokenSpec{Kind: exchange, Lifetime: time.Hour})
		l.must(err)
		l.Used(map[string]time.Time{nt.ID: time.Now()})
		time.Sleep(usedRound + time.Second)
		if n := len(l.keys(usedPrefix)); n != 1 {
			t.Errorf("%d uses are written after %v", n, usedRound)
		}
		time.Sleep(time.Hour + sweepRound)
		if left := append(l.keys(usedPrefix), l.keys(tokenPrefix)...); len(left) != 0 {
			t.Errorf("left after its end: %v", left)
		}
		time.Sleep(24 * time.Hour)
		if n := len(l.replica.Keys()); n != 2 {
			t.Errorf("%d keys after a day", n)
		}
		cancel()
		wg.Wait()
	})
}
