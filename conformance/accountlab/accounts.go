// Package accountlab is accounts in memory, for tests of what asks for them: it
// says who makes a request, decides what they may do, logs people in and keeps
// their tokens. Nothing in it is limited or written down.
package accountlab

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Accounts are accounts, their grants and their tokens. All methods may be called
// at once.
type Accounts struct {
	mu     sync.Mutex
	all    map[string]*person  // these are guarded by mu; by name
	grants map[string][]string // by name; "" is anonymous
	tokens []*token            // oldest first
	jwts   map[string]string   // the name that Exchange takes each for
	logins map[string]*login   // by ID
	keys   []registry.SigningKey
	down   error
	made   int // of IDs
	checks int
	events []registry.Principal // who was refused

	// Slow, if not nil, is called before each password check; set it before use.
	Slow func()
}

type person struct {
	registry.Account
	password string
}

type token struct {
	registry.Token
	secret string
}

type login struct{ who string }

var (
	_ registry.Identities = (*Accounts)(nil)
	_ registry.Logins     = (*Accounts)(nil)
	_ registry.Tokens     = (*Accounts)(nil)
	_ registry.Guard      = (*Accounts)(nil)
)

// New has one signing key and nobody. anonymous is what anybody may: see Grant.
func New(anonymous ...string) *Accounts {
	a := &Accounts{all: map[string]*person{}, grants: map[string][]string{"": anonymous}, jwts: map[string]string{}, logins: map[string]*login{}}
	a.Rekey()
	return a
}

// Rekey puts a new signing key in place of the others.
func (a *Accounts) Rekey() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = []registry.SigningKey{{ID: rand.Text(), Secret: []byte(rand.Text() + rand.Text()), Created: time.Now()}}
}

// Add makes a user, anew if there is one of that name. The rights are as for
// Grant.
func (a *Accounts) Add(name, password string, rights ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all[name] = &person{password: password, Account: registry.Account{Name: name, UID: rand.Text(), Kind: registry.User,
		Email: name + "@example.com", Secret: 1, Created: time.Now()}}
	a.grants[name] = rights
}

// Grant says what a name is granted, in place of what it was; "" is anonymous.
// The rights are as in registry.Grant, of one space each and with at most one
// "*" and that at the end; "!" before one denies it.
func (a *Accounts) Grant(name string, rights ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grants[name] = rights
}

// SetPassword changes a password.
func (a *Accounts) SetPassword(name, password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[name]
	one.password = password
	one.Secret++
}

// Disable disables an account.
func (a *Accounts) Disable(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all[name].Disabled = true
}

// Remove removes an account.
func (a *Accounts) Remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, name)
}

// Issuer makes Exchange take jwt for an account.
func (a *Accounts) Issuer(jwt, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.jwts[jwt] = name
}

// Give makes a token of an account's, whatever Fail says, and gives its secret.
func (a *Accounts) Give(name string, spec registry.TokenSpec) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.newLocked(a.all[name], spec).Secret
}

// Fail makes passwords, the beginnings of logins and new tokens fail; nil mends
// them.
func (a *Accounts) Fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = err
}

// Checks is how many passwords have been checked.
func (a *Accounts) Checks() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checks
}

// newLocked makes a token of one's.
func (a *Accounts) newLocked(one *person, spec registry.TokenSpec) registry.NewToken {
	a.made++
	now, secret := time.Now(), registry.NewTokenText()
	t := &token{secret: secret, Token: registry.Token{ID: fmt.Sprintf("%06dt%s", a.made*37, registry.TokenMark(secret)), Owner: one.Name, UID: one.UID,
		Kind: spec.Kind, Note: spec.Note, Rights: spec.Rights, From: spec.From, Created: now}}
	if t.Kind == "" {
		t.Kind = "token"
	}
	if spec.Lifetime != 0 {
		t.Expires = now.Add(spec.Lifetime)
	}
	a.tokens = append(a.tokens, t)
	return registry.NewToken{Token: t.Token, Secret: secret}
}

func wrong(format string, args ...any) error {
	return registry.Errorf(registry.ErrUnauthenticated, format, args...)
}

// Who says who makes a request: a gate without memory and limits.
func (a *Accounts) Who(r *http.Request) (registry.Principal, error) {
	header := r.Header.Get("Authorization")
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if header == "" || err != nil {
		return registry.Principal{}, err
	}
	if name, password, ok := r.BasicAuth(); ok {
		return a.Password(r.Context(), name, password, ap.Addr())
	}
	scheme, secret, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return registry.Principal{}, wrong("the Authorization header is not understood")
	}
	return a.Token(secret, ap.Addr())
}

// Token implements registry.Identities.
func (a *Accounts) Token(secret string, addr netip.Addr) (registry.Principal, error) {
	if !registry.CheckTokenText(secret) {
		return registry.Principal{}, wrong("the token is malformed: it is not a token of this registry, or was not copied whole")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.tokens, func(t *token) bool { return t.secret == secret })
	if i < 0 {
		return registry.Principal{}, wrong("the token is unknown or has been revoked")
	}
	t := a.tokens[i]
	switch {
	case expired(t):
		return registry.Principal{}, wrong("the token has expired: it was good until %s", t.Expires.Format(time.DateOnly))
	case !usedFrom(t, addr):
		return registry.Principal{}, wrong("the token is not for use from the address %s", addr)
	}
	p := registry.Principal{Name: t.Owner, UID: t.UID, Token: t.ID}
	return p, a.currentLocked(p)
}

func expired(t *token) bool { return !t.Expires.IsZero() && !time.Now().Before(t.Expires) }

// usedFrom reports whether a token may be used from an address.
func usedFrom(t *token, addr netip.Addr) bool {
	return len(t.From) == 0 || slices.ContainsFunc(t.From, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}

// Current implements registry.Identities.
func (a *Accounts) Current(p registry.Principal, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.currentLocked(p)
	if err == nil && p.Token == "" && p.Secret != a.all[p.Name].Secret {
		err = wrong("the password has changed")
	}
	if t := a.byIDLocked(p.Token); t != nil && err == nil && !usedFrom(t, addr) {
		err = wrong("the token is not for use from the address %s", addr)
	}
	return err
}

// currentLocked refuses one whose account or token has ended.
func (a *Accounts) currentLocked(p registry.Principal) error {
	one := a.all[p.Name]
	if one == nil || one.UID != p.UID || one.Disabled {
		return wrong("the account is gone")
	}
	if p.Token != "" && a.byIDLocked(p.Token) == nil {
		return wrong("the token is unknown or has been revoked")
	}
	return nil
}

// byIDLocked is a token that is still good, or nil.
func (a *Accounts) byIDLocked(id string) *token {
	for _, t := range a.tokens {
		if t.ID == id && !expired(t) {
			return t
		}
	}
	return nil
}

// Account implements registry.Identities.
func (a *Accounts) Account(name string) (registry.Account, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.all[name]; one != nil {
		return one.Account, true
	}
	return registry.Account{}, false
}

// Keys implements registry.Identities.
func (a *Accounts) Keys() []registry.SigningKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys
}
