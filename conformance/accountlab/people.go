// Package accountlab is accounts in memory, for tests of what asks for them: it
// says who makes a request, decides what they may do, logs people in and keeps
// their tokens. Nothing in it is hashed, limited or written down.
package accountlab

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// People are accounts, their grants and their tokens. All methods may be called
// at once.
type People struct {
	mu     sync.Mutex
	all    map[string]*person // by name; "" is anonymous
	tokens []*token
	logins map[string]*login
	down   error
	made   int
	keys   []registry.SigningKey
}

type person struct {
	registry.Account
	password    string
	allow, deny []string
}

type token struct {
	registry.Token
	secret string
}

type login struct{ who string }

var (
	_ registry.Guard      = (*People)(nil)
	_ registry.Identities = identities{}
	_ registry.Logins     = (*People)(nil)
	_ registry.Tokens     = (*People)(nil)
)

// New is nobody yet. anonymous is what anybody may: rights as in a registry.Grant,
// of the form "pull npm:PATTERN", where "!" before one denies it.
func New(anonymous ...string) *People {
	p := &People{all: map[string]*person{}, logins: map[string]*login{},
		keys: []registry.SigningKey{{ID: "one", Secret: []byte(strings.Repeat("k", 32))}}}
	p.Add("", "", anonymous...)
	return p
}

// Add makes a user, or gives one another password and other rights.
func (p *People) Add(name, password string, rights ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := &person{Account: registry.Account{Name: name, UID: "uid-" + name, Kind: registry.User, Email: name + "@example.com",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}, password: password}
	for _, right := range rights {
		if right, denied := strings.CutPrefix(right, "!"); denied {
			one.deny = append(one.deny, right)
		} else {
			one.allow = append(one.allow, right)
		}
	}
	p.all[name] = one
}

// Give makes a token of a user's, and gives its secret.
func (p *People) Give(name string, spec registry.TokenSpec) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newLocked(name, spec).secret
}

// Fail makes logins and tokens fail; nil mends them.
func (p *People) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = err
}

func (p *People) newLocked(name string, spec registry.TokenSpec) *token {
	p.made++
	now := time.Now()
	secret := registry.NewTokenText()
	t := &token{secret: secret, Token: registry.Token{ID: fmt.Sprintf("%06dt%s", p.made*37, registry.TokenMark(secret)), Owner: name, UID: "uid-" + name,
		Kind: spec.Kind, Note: spec.Note, Rights: spec.Rights, From: spec.From, Created: now}}
	if t.Kind == "" {
		t.Kind = "token"
	}
	if spec.Lifetime != 0 {
		t.Expires = now.Add(spec.Lifetime)
	}
	p.tokens = append(p.tokens, t)
	return t
}

func wrong(format string, args ...any) error {
	return registry.Errorf(registry.ErrUnauthenticated, format, args...)
}

// Who says who makes a request.
func (p *People) Who(r *http.Request) (registry.Principal, error) {
	header := r.Header.Get("Authorization")
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if header == "" || err != nil {
		return registry.Principal{}, err
	}
	if name, password, ok := r.BasicAuth(); ok && registry.LooksLikeToken(password) {
		return p.named(password, ap.Addr(), name)
	} else if ok {
		return p.Password(r.Context(), name, password, ap.Addr())
	}
	scheme, secret, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return registry.Principal{}, wrong("the Authorization header is not understood")
	}
	return p.identify(secret, ap.Addr())
}

// named is the principal of a token that a user presents as a password.
func (p *People) named(secret string, addr netip.Addr, name string) (registry.Principal, error) {
	who, err := p.identify(secret, addr)
	if err == nil && who.Name != name {
		return registry.Principal{}, wrong("this token is another account's")
	}
	return who, err
}

func (p *People) identify(secret string, addr netip.Addr) (registry.Principal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !registry.CheckTokenText(secret) {
		return registry.Principal{}, wrong("this is not a token of this registry, or it was not copied whole")
	}
	for _, t := range p.tokens {
		switch {
		case t.secret != secret:
		case !t.Expires.IsZero() && !time.Now().Before(t.Expires):
			return registry.Principal{}, wrong("this token expired on %s", t.Expires.Format(time.DateOnly))
		case len(t.From) > 0 && !slices.ContainsFunc(t.From, func(n netip.Prefix) bool { return n.Contains(addr.Unmap()) }):
			return registry.Principal{}, wrong("this token is not for use from %s", addr)
		default:
			return registry.Principal{Name: t.Owner, UID: t.UID, Token: t.ID}, nil
		}
	}
	return registry.Principal{}, wrong("this token is not known, or was revoked")
}

// Current implements registry.Identities.
func (p *People) Current(registry.Principal, netip.Addr) error { return nil }

// Account implements registry.Identities.
func (p *People) Account(name string) (registry.Account, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one := p.all[name]; one != nil && name != "" {
		return one.Account, true
	}
	return registry.Account{}, false
}

// Keys implements registry.Identities.
func (p *People) Keys() []registry.SigningKey { return p.keys }
