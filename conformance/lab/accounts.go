package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Accounts are accounts, tokens and grants in memory, as simple as they can be:
// what the rooms that only use them are tested with. They implement
// registry.Identities, Logins, Tokens and Guard.
type Accounts struct {
	mu        sync.Mutex
	accounts  map[string]registry.Account   // these are guarded by mu
	passwords map[string]string             // by name
	tokens    map[[32]byte]registry.Token   // by hash
	grants    map[string][]string           // by name, "" anonymous; as Grant.Right
	jwts      map[string]registry.Principal // what Exchange knows
	keys      []registry.SigningKey
	checks    int

	// Now is the clock; set it before use. nil: time.Now.
	Now func() time.Time
	// Slow, if not nil, is called before each password check.
	Slow func()
}

var (
	_ registry.Identities = (*Accounts)(nil)
	_ registry.Logins     = (*Accounts)(nil)
	_ registry.Tokens     = (*Accounts)(nil)
	_ registry.Guard      = (*Accounts)(nil)
)

// NewAccounts has one signing key and nobody.
func NewAccounts() *Accounts {
	a := &Accounts{accounts: map[string]registry.Account{}, passwords: map[string]string{}, tokens: map[[32]byte]registry.Token{},
		grants: map[string][]string{}, jwts: map[string]registry.Principal{}}
	a.Rekey()
	return a
}

func (a *Accounts) now() time.Time {
	if a.Now != nil {
		return a.Now()
	}
	return time.Now()
}

// Rekey puts a new signing key in place of the others.
func (a *Accounts) Rekey() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = []registry.SigningKey{{ID: rand.Text(), Secret: []byte(rand.Text() + rand.Text()), Created: a.now()}}
}

// Add makes an account, anew if there is one of that name.
func (a *Accounts) Add(name, password string, rights ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.accounts[name] = registry.Account{Name: name, UID: rand.Text(), Kind: registry.User, Secret: 1, Created: a.now()}
	a.passwords[name], a.grants[name] = password, rights
}

// Grant says what a name is granted; "" is anonymous. The rights are as in
// registry.Grant, with at most one "*" and that at the end.
func (a *Accounts) Grant(name string, rights ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grants[name] = rights
}

// SetPassword changes a password.
func (a *Accounts) SetPassword(name, password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.accounts[name]
	acc.Secret++
	a.accounts[name], a.passwords[name] = acc, password
}

// Disable disables an account.
func (a *Accounts) Disable(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.accounts[name]
	acc.Disabled = true
	a.accounts[name] = acc
}

// Remove removes an account.
func (a *Accounts) Remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.accounts, name)
	delete(a.passwords, name)
}

// Issuer makes Exchange take jwt for an account.
func (a *Accounts) Issuer(jwt, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.jwts[jwt] = registry.Principal{Name: name, UID: a.accounts[name].UID, Secret: a.accounts[name].Secret}
}

// Checks is how many passwords have been checked.
func (a *Accounts) Checks() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checks
}

func unauthenticated(text string) error {
	return registry.Errorf(registry.ErrUnauthenticated, "%s", text)
}

// Token implements registry.Identities.
func (a *Accounts) Token(secret string, addr netip.Addr) (registry.Principal, error) {
	if !registry.CheckTokenText(secret) {
		return registry.Principal{}, unauthenticated("the token is malformed: it was not copied whole")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.tokens[registry.HashToken(secret)]
	switch {
	case !ok:
		return registry.Principal{}, unauthenticated("the token is unknown or has been revoked")
	case !t.Expires.IsZero() && !a.now().Before(t.Expires):
		return registry.Principal{}, unauthenticated("the token has expired")
	case !usedFrom(t, addr):
		return registry.Principal{}, unauthenticated("the token is not for that address")
	}
	p := registry.Principal{Name: t.Owner, UID: t.UID, Token: t.ID}
	return p, a.currentLocked(p)
}

// usedFrom reports whether a token may be used from an address.
func usedFrom(t registry.Token, addr netip.Addr) bool {
	return len(t.From) == 0 || slices.ContainsFunc(t.From, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Current implements registry.Identities.
func (a *Accounts) Current(p registry.Principal, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.currentLocked(p)
	if err == nil && p.Token == "" && p.Secret != a.accounts[p.Name].Secret {
		err = unauthenticated("the password has changed")
	}
	if t, ok := a.byIDLocked(p.Token); ok && err == nil && !usedFrom(t, addr) {
		err = unauthenticated("the token is not for that address")
	}
	return err
}

func (a *Accounts) currentLocked(p registry.Principal) error {
	acc, ok := a.accounts[p.Name]
	if !ok || acc.UID != p.UID || acc.Disabled {
		return unauthenticated("the account is gone")
	}
	if _, ok := a.byIDLocked(p.Token); !ok && p.Token != "" {
		return unauthenticated("the token is unknown or has been revoked")
	}
	return nil
}

func (a *Accounts) byIDLocked(id string) (registry.Token, bool) {
	for _, t := range a.tokens {
		if t.ID == id && (t.Expires.IsZero() || a.now().Before(t.Expires)) {
			return t, true
		}
	}
	return registry.Token{}, false
}

// Account implements registry.Identities.
func (a *Accounts) Account(name string) (registry.Account, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc, ok := a.accounts[name]
	return acc, ok
}

// Keys implements registry.Identities.
func (a *Accounts) Keys() []registry.SigningKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys
}

// Password implements registry.Logins.
func (a *Accounts) Password(_ context.Context, name, password string, _ netip.Addr) (registry.Principal, error) {
	if a.Slow != nil {
		a.Slow()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks++
	acc, ok := a.accounts[name]
	if !ok || acc.Disabled || a.passwords[name] != password {
		return registry.Principal{}, unauthenticated("wrong name or password")
	}
	return registry.Principal{Name: name, UID: acc.UID, Secret: acc.Secret}, nil
}

// Exchange implements registry.Logins.
func (a *Accounts) Exchange(ctx context.Context, jwt string, _ netip.Addr) (registry.NewToken, error) {
	a.mu.Lock()
	p, ok := a.jwts[jwt]
	a.mu.Unlock()
	if !ok {
		return registry.NewToken{}, unauthenticated("no rule of a configured issuer fits the token")
	}
	return a.CreateToken(ctx, p, registry.TokenSpec{Kind: "exchange", Lifetime: 10 * time.Minute})
}

// Begin implements registry.Logins: there are no browsers.
func (*Accounts) Begin(context.Context, netip.Addr) (string, error) {
	return "", registry.Errorf(registry.ErrUnavailable, "there are no browsers here")
}

// Approve implements registry.Logins.
func (*Accounts) Approve(context.Context, string, registry.Principal) error {
	return registry.Errorf(registry.ErrNotFound, "no such login")
}

// Claim implements registry.Logins.
func (*Accounts) Claim(context.Context, string, netip.Addr) (registry.NewToken, error) {
	return registry.NewToken{}, registry.Errorf(registry.ErrNotFound, "no such login")
}

// CreateToken implements registry.Tokens.
func (a *Accounts) CreateToken(_ context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.currentLocked(by); err != nil {
		return registry.NewToken{}, err
	}
	if by.Anonymous() || by.Only != nil {
		panic("a token is asked for by one who can have none")
	}
	secret := registry.NewTokenText()
	t := registry.Token{ID: rand.Text(), Owner: by.Name, UID: by.UID, Kind: spec.Kind, Note: spec.Note, Rights: spec.Rights, From: spec.From, Created: a.now()}
	if spec.Lifetime != 0 {
		t.Expires = a.now().Add(spec.Lifetime)
	}
	a.tokens[registry.HashToken(secret)] = t
	return registry.NewToken{Token: t, Secret: secret}, nil
}

// RevokeToken implements registry.Tokens.
func (a *Accounts) RevokeToken(_ context.Context, by registry.Principal, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for hash, t := range a.tokens {
		if t.ID == id && t.UID == by.UID {
			delete(a.tokens, hash)
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
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(x, y registry.Token) int { return x.Created.Compare(y.Created) })
	return list, nil
}

// Admit implements registry.Guard, by the rules that grants have, denials apart.
func (a *Accounts) Admit(_ context.Context, c *registry.Call) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.Who.Node {
		return nil
	}
	what := fmt.Sprintf("%s %s:%s", c.Action, c.Name.Space, c.Name.Repo)
	if !c.Who.Anonymous() {
		if err := a.currentLocked(c.Who); err != nil {
			return err
		}
	}
	if !covered(a.grants[""], what) && (c.Who.Anonymous() || !covered(a.grants[c.Who.Name], what)) {
		if c.Who.Anonymous() {
			return unauthenticated("log in to " + string(c.Action) + " this")
		}
		return registry.Errorf(registry.ErrDenied, "%s may not %s %s", c.Who.Name, c.Action, c.Name.Repo)
	}
	t, _ := a.byIDLocked(c.Who.Token)
	only := c.Who.Only == nil || slices.Contains(c.Who.Only, registry.Right{Action: c.Action, Space: c.Name.Space, Repo: c.Name.Repo})
	if len(t.Rights) > 0 && !covered(t.Rights, what) || !only {
		text := fmt.Sprintf("%s may %s %s, but the token is for less", c.Who.Name, c.Action, c.Name.Repo)
		return &registry.Error{Kind: registry.ErrDenied, Text: text, Public: text, Err: registry.ErrScope}
	}
	return nil
}

// covered reports whether one of the rights is what.
func covered(rights []string, what string) bool {
	return slices.ContainsFunc(rights, func(right string) bool {
		prefix, star := strings.CutSuffix(right, "*")
		return right == what || star && strings.HasPrefix(what, prefix)
	})
}
