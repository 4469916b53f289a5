package account

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Who was known by a password that is another now is nobody: neither what he
// approved before nor what he asks for at the same moment gives him a session
// that outlives the change.
func TestAnOldPasswordLeavesNothingBehind(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.user("alice")
	old, err := l.Password(ctx, "alice", secretPassword, here)
	l.must(err)
	id, err := l.Begin(ctx, here)
	l.must(err)
	l.must(l.Approve(ctx, id, old))
	_, err = l.SetPassword(ctx, root, "alice", "another password")
	l.must(err)
	_, err = l.Claim(ctx, id, here)
	l.fails(err, registry.ErrUnauthenticated)
	// A node that remembers the old password asks with it until it has heard.
	_, err = l.CreateToken(ctx, old, registry.TokenSpec{Kind: session, Lifetime: sessionLife})
	l.fails(err, registry.ErrUnauthenticated)
	later, err := l.Begin(ctx, here)
	l.must(err)
	l.fails(l.Approve(ctx, later, old), registry.ErrUnauthenticated)
	_, err = l.ListTokens(ctx, old)
	l.fails(err, registry.ErrUnauthenticated)
	if left := l.keys(tokenPrefix); len(left) > 0 {
		t.Errorf("there are %q", left)
	}
	now, err := l.Password(ctx, "alice", "another password", here)
	l.must(err)
	_, err = l.CreateToken(ctx, now, registry.TokenSpec{Kind: session, Lifetime: sessionLife})
	l.must(err)
}

// A session that a token had begun would go on when the token is revoked.
func TestATokenBeginsNoSession(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := principal(l.user("alice"))
	for _, kind := range []string{asked, session} {
		made, err := l.CreateToken(ctx, alice, registry.TokenSpec{Kind: kind})
		l.must(err)
		by := registry.Principal{Name: "alice", UID: alice.UID, Token: made.ID}
		_, err = l.CreateToken(ctx, by, registry.TokenSpec{Kind: session, Lifetime: sessionLife})
		l.fails(err, registry.ErrDenied)
		id, err := l.Begin(ctx, here)
		l.must(err)
		l.fails(l.Approve(ctx, id, by), registry.ErrDenied)
		_, err = l.Claim(ctx, id, here)
		l.fails(err, registry.ErrConflict)
	}
}

// meanwhile is a database in which something happens just before a token is
// written.
type meanwhile struct {
	registry.Metadata
	do func()
}

func (m *meanwhile) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	if do := m.do; do != nil && strings.HasPrefix(key, tokenPrefix) && value != nil {
		m.do = nil
		do()
	}
	return m.Metadata.Put(ctx, key, rev, value)
}

// What ends an account's sessions may have looked for them when a new one is
// about to be written.
func TestATokenThatIsLateForItsOwnersEndIsTakenBack(t *testing.T) {
	db := &meanwhile{}
	l := newLab(t, func(o *Options) { db.Metadata, o.Metadata = o.Metadata, db })
	ctx := t.Context()
	l.user("alice")
	old, err := l.Password(ctx, "alice", secretPassword, here)
	l.must(err)
	db.do = func() {
		_, err := l.SetPassword(ctx, root, "alice", "another password")
		l.must(err)
	}
	_, err = l.CreateToken(ctx, old, registry.TokenSpec{Kind: session, Lifetime: sessionLife})
	l.fails(err, registry.ErrUnauthenticated)
	if left := l.keys(tokenPrefix); len(left) > 0 || db.do != nil {
		t.Errorf("there are %q", left)
	}
	now, err := l.Password(ctx, "alice", "another password", here)
	l.must(err)
	parent, err := l.CreateToken(ctx, now, registry.TokenSpec{})
	l.must(err)
	db.do = func() {
		_, _, err := l.Revoke(ctx, root, parent.ID)
		l.must(err)
	}
	_, err = l.CreateToken(ctx, registry.Principal{Name: "alice", UID: now.UID, Token: parent.ID}, registry.TokenSpec{})
	l.fails(err, registry.ErrUnauthenticated)
	if left := l.keys(tokenPrefix); len(left) > 0 || db.do != nil {
		t.Errorf("there are %q", left)
	}
}

// What is made on a node's word says so, and what is made with that does too.
func TestTokensSayOnWhoseWordTheyWereMade(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := principal(l.user("alice"))
	said := alice
	said.Via = "edge1"
	made, err := l.CreateToken(ctx, said, registry.TokenSpec{})
	l.must(err)
	child, err := l.CreateToken(ctx, registry.Principal{Name: "alice", UID: alice.UID, Token: made.ID}, registry.TokenSpec{})
	l.must(err)
	id, err := l.Begin(ctx, here)
	l.must(err)
	l.must(l.Approve(ctx, id, said))
	claimed, err := l.Claim(ctx, id, here)
	l.must(err)
	own, err := l.CreateToken(ctx, alice, registry.TokenSpec{})
	l.must(err)
	for id, via := range map[string]string{made.ID: "edge1", child.ID: "edge1", claimed.ID: "edge1", own.ID: ""} {
		if kept, err := l.ShowToken(ctx, id); err != nil || kept.Via != via {
			t.Errorf("%+v %v, want Via %q", kept, err, via)
		}
	}
}

// A short-lived token is for some repositories: it neither shows nor ends the
// tokens of who has got it with a password.
func TestAShortLivedTokenManagesNone(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	alice := principal(l.user("alice"))
	made, err := l.CreateToken(ctx, alice, registry.TokenSpec{})
	l.must(err)
	alice.Only = []registry.Right{}
	l.fails(l.RevokeToken(ctx, alice, made.ID), registry.ErrDenied)
	_, err = l.ListTokens(ctx, alice)
	l.fails(err, registry.ErrDenied)
	alice.Token = made.ID
	l.fails(l.RevokeToken(ctx, alice, made.ID), registry.ErrDenied)
	_, err = l.CreateToken(ctx, alice, registry.TokenSpec{})
	l.fails(err, registry.ErrDenied)
}

// No key of before is left, today's is not made again, and tomorrow's is.
func TestRekey(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	for range 3 {
		l.pass(24 * time.Hour)
		l.must(l.rotateKeys(ctx))
	}
	old := map[string]bool{}
	for _, k := range l.replica.Keys() {
		old[k.ID], old[string(k.Secret)] = true, true
	}
	version, err := l.Rekey(ctx, root)
	l.must(err)
	l.must(l.rotateKeys(ctx))
	now := l.replica.Keys()
	if len(now) != 1 || old[now[0].ID] || old[string(now[0].Secret)] || len(now[0].Secret) != keySize || len(old) != 2*keysKept {
		t.Errorf("of %d keys, after the renewal there are %+v", len(old)/2, now)
	}
	if e := l.audited(); e.What != "keys renew" || e.Version != version || version == 0 {
		t.Errorf("audited %+v", e)
	}
	l.pass(24 * time.Hour)
	l.must(l.rotateKeys(ctx))
	if later := l.replica.Keys(); len(later) != 2 || later[1].ID != now[0].ID {
		t.Errorf("a day later there are %+v", later)
	}
}
