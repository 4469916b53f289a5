package account

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Kinds of registry.Token.
const (
	asked    = "token"
	session  = "session"
	exchange = "exchange"
)

const (
	tokenPrefix = "e/token/"
	// maxTokens is how many tokens of a kind an account may have at once, so
	// that no client can fill the database.
	maxTokens    = 1000
	maxExchanges = 10_000
)

// kindLetter is the letter of a kind in an ID, so that an account's tokens of
// one kind are found by a prefix.
func kindLetter(kind string) string {
	switch kind {
	case session:
		return "s"
	case exchange:
		return "x"
	}
	return "t"
}

// CreateToken implements registry.Tokens. Errors beside its: ErrInvalid, and
// ErrLimited for an account that has as many tokens as it may.
//
// A token with rights, networks or an end makes none that goes beyond them, and
// no session, which would outlive its revocation unseen. A session's end counts
// for nothing there: it stands for a person who has logged in.
func (a *Authority) CreateToken(ctx context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	acc, err := a.self(ctx, by)
	if err != nil {
		return registry.NewToken{}, err
	}
	if err := a.checkNarrow(ctx, by, spec); err != nil {
		a.audit(event(Actor{Who: by}, "token create", acc.Kind+":"+acc.Name), err)
		return registry.NewToken{}, err
	}
	return a.ownToken(ctx, Actor{Who: by}, acc, spec)
}

// ownToken makes a token of the account of by. A new password ends sessions, and a
// revoked token makes none: if either happens while it is being made, the token
// may come after the sessions were looked for; so it is looked once more who by
// is, and what was made for nobody is taken back.
func (a *Authority) ownToken(ctx context.Context, by Actor, acc registry.Account, spec registry.TokenSpec) (registry.NewToken, error) {
	if by.Who.Token != "" {
		with, err := a.live(ctx, by.Who)
		if err != nil {
			return registry.NewToken{}, err
		}
		if by.Who.Via == "" {
			by.Who.Via = with.Via
		}
	}
	made, err := a.newToken(ctx, by, acc, spec)
	if err != nil {
		return made, err
	}
	if _, err = a.self(ctx, by.Who); err == nil && by.Who.Token != "" {
		_, err = a.live(ctx, by.Who)
	}
	if err != nil {
		_, rerr := a.revoke(context.WithoutCancel(ctx), Actor{}, made.Token)
		return registry.NewToken{}, registry.Wrap(registry.ErrUnavailable, errors.Join(err, rerr), "make a token for one who has ended")
	}
	return made, nil
}

// CreateTokenFor makes a token of any account's, for those who administer.
// Errors: ErrNotFound, ErrInvalid, ErrLimited.
func (a *Authority) CreateTokenFor(ctx context.Context, by Actor, owner string, spec registry.TokenSpec) (registry.NewToken, error) {
	acc, err := a.ShowAccount(ctx, "", owner)
	if err != nil {
		return registry.NewToken{}, err
	}
	return a.newToken(ctx, by, acc, spec)
}

// self is the account of one who manages what is his own.
func (a *Authority) self(ctx context.Context, by registry.Principal) (registry.Account, error) {
	if by.Node || by.UID == "" {
		return registry.Account{}, registry.Errorf(registry.ErrUnauthenticated, "log in first")
	}
	acc, err := a.ShowAccount(ctx, "", by.Name)
	switch {
	case errors.Is(err, registry.ErrNotFound), err == nil && (acc.UID != by.UID || acc.Disabled):
		return acc, registry.Errorf(registry.ErrUnauthenticated, "the account %q is gone or disabled", by.Name)
	case err == nil && by.Token == "" && by.Secret != acc.Secret:
		return acc, registry.Errorf(registry.ErrUnauthenticated, "the password of %q has changed; log in again", by.Name)
	}
	return acc, err
}

// whole is self for one who is not known by a short-lived token, which is for
// some repositories and not for tokens.
func (a *Authority) whole(ctx context.Context, by registry.Principal) (registry.Account, error) {
	if by.Only != nil {
		return registry.Account{}, &registry.Error{Kind: registry.ErrDenied, Err: registry.ErrScope, Text: "a short-lived token was to manage tokens",
			Public: "the token this was asked with is short-lived and for some repositories only"}
	}
	return a.self(ctx, by)
}

// newToken makes a token of an account's.
func (a *Authority) newToken(ctx context.Context, by Actor, acc registry.Account, spec registry.TokenSpec) (registry.NewToken, error) {
	secret := registry.NewTokenText()
	t, err := a.tokenOf(acc, spec, secret)
	if err != nil {
		return registry.NewToken{}, err
	}
	if err := a.room(ctx, acc, t.Kind); err != nil {
		return registry.NewToken{}, err
	}
	t.Via = by.Who.Via
	hash := registry.HashToken(secret)
	t.Hash = hash[:]
	e := event(by, t.Kind+" create", t.ID)
	if t.Kind == asked {
		e.What = "token create"
	}
	e.Detail = "for " + acc.Kind + ":" + acc.Name
	e.Version, err = create(ctx, a.store, tokenPrefix+t.ID, t)
	if err == nil {
		if serr := a.settled(ctx, e.Version); serr != nil {
			// Nobody will be told the secret: it is not to be left behind.
			_, rerr := a.store.remove(context.WithoutCancel(ctx), tokenPrefix+t.ID)
			err = &registry.Error{Kind: registry.ErrUnavailable, After: time.Second, Err: errors.Join(serr, rerr),
				Text: "a new token did not reach this node's own copy", Public: "the token could not be made known here; try again"}
		}
	}
	a.audit(e, err)
	if err != nil {
		return registry.NewToken{}, registry.Wrap(registry.ErrUnavailable, err, "make a token")
	}
	t.Hash = nil
	return registry.NewToken{Token: t, Secret: secret, Version: e.Version}, nil
}

// tokenOf is the record that a specification asks for, without the secret's hash.
// Its ID is the account's UID, the letter of its kind and the secret's mark.
func (a *Authority) tokenOf(acc registry.Account, spec registry.TokenSpec, secret string) (registry.Token, error) {
	kind := spec.Kind
	if kind == "" {
		kind = asked
	}
	if !slices.Contains([]string{asked, session, exchange}, kind) {
		return registry.Token{}, registry.Errorf(registry.ErrInvalid, "there is no kind of token %.100q", kind)
	}
	if _, err := parseRights(spec.Rights); err != nil {
		return registry.Token{}, err
	}
	if err := checkText("note", spec.Note, maxNote); err != nil {
		return registry.Token{}, err
	}
	if len(spec.From) > maxFrom {
		return registry.Token{}, registry.Errorf(registry.ErrInvalid, "a token can be bound to %d networks, not %d", maxFrom, len(spec.From))
	}
	t := registry.Token{ID: acc.UID + kindLetter(kind) + registry.TokenMark(secret), Owner: acc.Name, UID: acc.UID,
		Kind: kind, Note: spec.Note, Rights: spec.Rights, Created: a.now()}
	for _, p := range spec.From {
		if !p.IsValid() {
			return t, registry.Errorf(registry.ErrInvalid, "a network is not one such as 10.0.0.0/8")
		}
		t.From = append(t.From, unmapped(p))
	}
	switch {
	case spec.Lifetime < 0:
		return t, registry.Errorf(registry.ErrInvalid, "a token cannot end before it begins")
	case spec.Lifetime > 0:
		// To the second, and not beyond what was asked for.
		t.Expires = a.o.Now().Add(spec.Lifetime).UTC().Truncate(time.Second)
	}
	return t, nil
}

// unmapped writes a network of IPv4 addresses in IPv6's clothes as what it is,
// without bits beyond its length.
func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// checkNarrow refuses a token that would be wider than the one it is asked for
// with.
func (a *Authority) checkNarrow(ctx context.Context, by registry.Principal, spec registry.TokenSpec) error {
	wider := func(how string) error {
		return &registry.Error{Kind: registry.ErrDenied, Err: registry.ErrScope, Text: "a token was asked for that is wider than the one it was asked with",
			Public: "the token this was asked with " + how + ", and makes none that goes beyond that; log in with your password for one that does"}
	}
	if spec.Kind == exchange {
		return registry.Errorf(registry.ErrInvalid, "there is no kind of token %q that can be asked for", spec.Kind)
	}
	if by.Only != nil {
		return wider("is short-lived and for some repositories only")
	}
	if by.Token == "" {
		return nil
	}
	if spec.Kind == session {
		return &registry.Error{Kind: registry.ErrDenied, Text: "a session was asked for with a token",
			Public: "a token begins no session, which would outlive it: log in with the password"}
	}
	parent, err := a.live(ctx, by)
	if err != nil {
		return err
	}
	inner, err := parseRights(spec.Rights)
	if err != nil {
		return err
	}
	outer, err := parseRights(parent.Rights)
	if err != nil {
		return err
	}
	if len(outer) > 0 && !within(outer, inner) {
		return wider("is only for " + strings.Join(parent.Rights, ", "))
	}
	if len(parent.From) > 0 && (len(spec.From) == 0 || slices.ContainsFunc(spec.From, func(p netip.Prefix) bool { return !inside(parent.From, p) })) {
		return wider("is bound to networks")
	}
	if ends := parent.Expires; !ends.IsZero() && parent.Kind != session && (spec.Lifetime <= 0 || a.o.Now().Add(spec.Lifetime).After(ends)) {
		return wider("ends at " + ends.UTC().Format(time.RFC3339))
	}
	return nil
}

// inside reports whether a network lies in one of others.
func inside(outer []netip.Prefix, p netip.Prefix) bool {
	p = unmapped(p)
	return slices.ContainsFunc(outer, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// live is the token that one presents. ErrUnauthenticated if it is gone.
func (a *Authority) live(ctx context.Context, by registry.Principal) (registry.Token, error) {
	t, err := a.ShowToken(ctx, by.Token)
	if errors.Is(err, registry.ErrNotFound) || err == nil && (t.UID != by.UID || !t.Expires.IsZero() && !a.o.Now().Before(t.Expires)) {
		return t, registry.Errorf(registry.ErrUnauthenticated, "the token is gone or has expired; log in again")
	}
	return t, err
}

// room refuses a token that would be one too many.
func (a *Authority) room(ctx context.Context, acc registry.Account, kind string) error {
	full := func(most int, after time.Duration) error {
		return &registry.Error{Kind: registry.ErrLimited, After: after, Text: acc.Name + " has as many tokens as it may",
			Public: acc.Name + " has as many tokens as an account may; revoke some of them"}
	}
	if kind == exchange {
		// To list them each time would cost too much. The sweep counts them;
		// other nodes' are seen then.
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.exchanges[acc.UID] >= maxExchanges {
			return full(maxExchanges, time.Minute)
		}
		a.exchanges[acc.UID]++
		return nil
	}
	n := 0
	for _, err := range a.store.List(ctx, tokenPrefix+acc.UID+kindLetter(kind), "") {
		if err != nil {
			return registry.Wrap(registry.ErrUnavailable, err, "count tokens")
		}
		if n++; n >= maxTokens {
			return full(maxTokens, time.Hour)
		}
	}
	return nil
}

// RevokeToken implements registry.Tokens. A token that is for some rights only
// revokes no other than itself, and a short-lived one none: ErrDenied.
func (a *Authority) RevokeToken(ctx context.Context, by registry.Principal, id string) error {
	acc, err := a.whole(ctx, by)
	if err != nil {
		return err
	}
	t, err := a.ShowToken(ctx, id)
	if err != nil {
		return err
	}
	if t.UID != acc.UID {
		return noToken(id)
	}
	if by.Token != "" && by.Token != id {
		mine, err := a.live(ctx, by)
		if err != nil {
			return err
		}
		if len(mine.Rights) > 0 {
			return &registry.Error{Kind: registry.ErrDenied, Err: registry.ErrScope, Text: "a narrow token was to revoke another",
				Public: "the token this was asked with is for some rights only, and revokes no other than itself"}
		}
	}
	_, err = a.revoke(ctx, Actor{Who: by}, t)
	return err
}

// Revoke ends any token, for those who administer. It returns what the token
// was. ErrNotFound if there is none of that ID.
func (a *Authority) Revoke(ctx context.Context, by Actor, id string) (registry.Token, uint64, error) {
	t, err := a.ShowToken(ctx, id)
	if err != nil {
		return t, 0, err
	}
	version, err := a.revoke(ctx, by, t)
	return t, version, err
}

func (a *Authority) revoke(ctx context.Context, by Actor, t registry.Token) (uint64, error) {
	e := event(by, "token revoke", t.ID)
	e.Detail = "of " + t.Owner
	var err error
	e.Version, err = a.store.remove(ctx, tokenPrefix+t.ID)
	if err == nil {
		a.forget(ctx, t.ID)
	}
	return e.Version, a.done(ctx, e, err)
}

// ShowToken is one token, without its hash. ErrNotFound if there is none.
func (a *Authority) ShowToken(ctx context.Context, id string) (registry.Token, error) {
	if !validID(id) {
		return registry.Token{}, noToken(id)
	}
	t, _, ok, err := read[registry.Token](ctx, a.store, tokenPrefix+id)
	if err == nil && !ok {
		err = noToken(id)
	}
	if err != nil {
		return registry.Token{}, err
	}
	t.Hash = nil
	t.Used, err = a.lastUsed(ctx, id)
	return t, err
}

func noToken(id string) error {
	return registry.Errorf(registry.ErrNotFound, "there is no token %.100q", id)
}

// byHash is the token whose secret has a hash. ErrNotFound if there is none. It
// looks through all there are.
func (a *Authority) byHash(ctx context.Context, hash []byte) (registry.Token, error) {
	all, err := list[registry.Token](ctx, a.store, tokenPrefix)
	for _, t := range all {
		if err == nil && subtle.ConstantTimeCompare(t.Hash, hash) == 1 {
			return t, nil
		}
	}
	if err == nil {
		err = registry.Errorf(registry.ErrNotFound, "there is no token with that secret: it was revoked, or never was")
	}
	return registry.Token{}, err
}

// hashPrefix begins what a token can be called by instead of its ID: the hash of
// its secret, in hex. Who has found the secret has no ID.
const hashPrefix = "sha256:"

// tokenID is the ID of the token that is called by its ID, or by hashPrefix and
// the hash of its secret. Whether there is one of that ID is not looked at.
func (a *Authority) tokenID(ctx context.Context, called string) (string, error) {
	text, ok := strings.CutPrefix(called, hashPrefix)
	if !ok {
		return called, nil
	}
	hash, err := hex.DecodeString(text)
	if err != nil {
		return "", noToken(called)
	}
	t, err := a.byHash(ctx, hash)
	return t.ID, err
}

// ListTokens implements registry.Tokens.
func (a *Authority) ListTokens(ctx context.Context, by registry.Principal) ([]registry.Token, error) {
	acc, err := a.whole(ctx, by)
	if err != nil {
		return nil, err
	}
	return a.tokens(ctx, acc.UID)
}

// ListTokensOf lists the tokens of an account, or with "" of all, oldest first
// and without their hashes. ErrNotFound if there is no such account.
func (a *Authority) ListTokensOf(ctx context.Context, owner string) ([]registry.Token, error) {
	if owner == "" {
		return a.tokens(ctx, "")
	}
	acc, err := a.ShowAccount(ctx, "", owner)
	if err != nil {
		return nil, err
	}
	return a.tokens(ctx, acc.UID)
}

func (a *Authority) tokens(ctx context.Context, uid string) ([]registry.Token, error) {
	all, err := list[registry.Token](ctx, a.store, tokenPrefix+uid)
	if err != nil {
		return nil, err
	}
	used, err := a.allUsed(ctx, uid)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].Hash, all[i].Used = nil, used[all[i].ID]
	}
	slices.SortStableFunc(all, func(x, y registry.Token) int { return x.Created.Compare(y.Created) })
	return all, nil
}
