package accountlab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Password implements registry.Logins. A token of the same name does too, as it
// does with the real ones.
func (a *Accounts) Password(_ context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	if registry.LooksLikeToken(password) {
		who, err := a.Token(password, from)
		if err == nil && who.Name != name {
			return registry.Principal{}, wrong("this token is another account's")
		}
		return who, err
	}
	if a.Slow != nil {
		a.Slow()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return registry.Principal{}, a.down
	}
	a.checks++
	one := a.all[name]
	if one == nil || one.Disabled || one.password != password {
		return registry.Principal{}, wrong("wrong name or password")
	}
	return registry.Principal{Name: name, UID: one.UID, Secret: one.Secret}, nil
}

// Exchange implements registry.Logins, for what Issuer said.
func (a *Accounts) Exchange(_ context.Context, jwt string, _ netip.Addr) (registry.NewToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[a.jwts[jwt]]
	if one == nil || one.Disabled {
		return registry.NewToken{}, wrong("no rule of a configured issuer fits the token")
	}
	return a.newLocked(one, registry.TokenSpec{Kind: "exchange", Lifetime: 10 * time.Minute}), nil
}

// Begin implements registry.Logins.
func (a *Accounts) Begin(context.Context, netip.Addr) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return "", a.down
	}
	a.made++
	id := fmt.Sprintf("%08d%s", a.made, strings.Repeat("x", 24))
	a.logins[id] = &login{}
	return id, nil
}

// Approve implements registry.Logins.
func (a *Accounts) Approve(_ context.Context, id string, who registry.Principal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logins[id]
	if l == nil {
		return registry.Errorf(registry.ErrNotFound, "no such login")
	}
	if err := a.currentLocked(who); err != nil {
		return err
	}
	l.who = who.Name
	return nil
}

// Claim implements registry.Logins.
func (a *Accounts) Claim(_ context.Context, id string, _ netip.Addr) (registry.NewToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logins[id]
	if l == nil {
		return registry.NewToken{}, registry.Errorf(registry.ErrNotFound, "no such login")
	}
	if l.who == "" {
		return registry.NewToken{}, registry.Errorf(registry.ErrConflict, "not approved yet")
	}
	delete(a.logins, id)
	return a.newLocked(a.all[l.who], registry.TokenSpec{Kind: "session", Lifetime: time.Hour}), nil
}

// CreateToken implements registry.Tokens.
func (a *Accounts) CreateToken(_ context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if by.Anonymous() || by.Only != nil {
		panic("a token is asked for by one who can have none")
	}
	if a.down != nil {
		return registry.NewToken{}, a.down
	}
	if err := a.currentLocked(by); err != nil {
		return registry.NewToken{}, err
	}
	if with := a.byIDLocked(by.Token); with != nil && len(with.Rights) > 0 {
		if len(spec.Rights) == 0 || slices.ContainsFunc(spec.Rights, func(r string) bool { return !covered(with.Rights, r) }) {
			return registry.NewToken{}, registry.Errorf(registry.ErrDenied, "a token makes none that is wider than itself")
		}
	}
	return a.newLocked(a.all[by.Name], spec), nil
}

// RevokeToken implements registry.Tokens.
func (a *Accounts) RevokeToken(_ context.Context, by registry.Principal, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, t := range a.tokens {
		if t.ID == id && t.UID == by.UID {
			a.tokens = slices.Delete(a.tokens, i, i+1)
			return nil
		}
	}
	return registry.Errorf(registry.ErrNotFound, "no such token")
}

// ListTokens implements registry.Tokens.
func (a *Accounts) ListTokens(_ context.Context, by registry.Principal) ([]registry.Token, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []registry.Token
	for _, t := range a.tokens {
		if t.UID == by.UID {
			list = append(list, t.Token)
		}
	}
	return list, nil
}
