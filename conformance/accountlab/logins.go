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

// Admit implements registry.Guard. A call about a space as a whole is admitted if
// there is a grant to pull anything in it, whatever is denied.
func (p *People) Admit(_ context.Context, c *registry.Call) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, anybody := p.all[c.Who.Name], p.all[""]
	want, matches, denies := string(c.Action)+" "+c.Name.Space+":"+c.Name.Repo, matches, matches
	if c.Some {
		matches, denies = some, func([]string, string) bool { return false }
	}
	open := matches(anybody.allow, want) && !denies(anybody.deny, want)
	if c.Who.Anonymous() {
		if open {
			return nil
		}
		return wrong("anonymous clients may not %s this", c.Action)
	}
	if one == nil || denies(one.deny, want) || !open && !matches(one.allow, want) {
		return registry.Errorf(registry.ErrDenied, "%s may not %s this", c.Who.Name, c.Action)
	}
	for _, t := range p.tokens {
		if t.ID == c.Who.Token && len(t.Rights) > 0 && !matches(t.Rights, want) {
			return &registry.Error{Kind: registry.ErrDenied, Text: "out of scope", Public: "the token is not for this", Err: registry.ErrScope}
		}
	}
	return nil
}

// matches reports whether one of rights covers what is wanted.
func matches(rights []string, want string) bool {
	return slices.ContainsFunc(rights, func(right string) bool {
		if strings.HasPrefix(right, "push ") && strings.HasPrefix(want, "pull ") {
			right = "pull " + right[5:]
		}
		head, star := strings.CutSuffix(right, "*")
		return right == want || star && strings.HasPrefix(want, head)
	})
}

// some is matches for a space as a whole.
func some(rights []string, want string) bool {
	space, _, _ := strings.Cut(want, ":")
	return slices.ContainsFunc(rights, func(right string) bool {
		return strings.HasPrefix(strings.Replace(right, "push ", "pull ", 1), space+":")
	})
}

// identities are People whose Token is the contract's.
type identities struct{ *People }

// Token implements registry.Identities.
func (i identities) Token(secret string, addr netip.Addr) (registry.Principal, error) {
	return i.identify(secret, addr)
}

// Identities are p as the contract has them.
func (p *People) Identities() registry.Identities { return identities{p} }

// Password implements registry.Logins. A token of the same name does too, as it
// does with the real ones.
func (p *People) Password(_ context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	if registry.LooksLikeToken(password) {
		return p.named(password, from, name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down != nil {
		return registry.Principal{}, p.down
	}
	one := p.all[name]
	if one == nil || name == "" || one.password != password {
		return registry.Principal{}, wrong("wrong name or password")
	}
	return registry.Principal{Name: name, UID: one.UID}, nil
}

// Exchange implements registry.Logins: the JWT "jwt NAME" is good for NAME.
func (p *People) Exchange(_ context.Context, jwt string, _ netip.Addr) (registry.NewToken, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, ok := strings.CutPrefix(jwt, "jwt.")
	if p.all[name] == nil || !ok {
		return registry.NewToken{}, wrong("no rule takes this token")
	}
	t := p.newLocked(name, registry.TokenSpec{Kind: "exchange", Lifetime: time.Minute})
	return registry.NewToken{Token: t.Token, Secret: t.secret}, nil
}

// Begin implements registry.Logins.
func (p *People) Begin(context.Context, netip.Addr) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down != nil {
		return "", p.down
	}
	p.made++
	id := fmt.Sprintf("%08d%s", p.made, strings.Repeat("x", 24))
	p.logins[id] = &login{}
	return id, nil
}

// Approve implements registry.Logins.
func (p *People) Approve(_ context.Context, id string, who registry.Principal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.logins[id]
	if l == nil {
		return registry.Errorf(registry.ErrNotFound, "no such login")
	}
	l.who = who.Name
	return nil
}

// Claim implements registry.Logins.
func (p *People) Claim(_ context.Context, id string, _ netip.Addr) (registry.NewToken, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.logins[id]
	if l == nil {
		return registry.NewToken{}, registry.Errorf(registry.ErrNotFound, "no such login")
	}
	if l.who == "" {
		return registry.NewToken{}, registry.Errorf(registry.ErrConflict, "not approved yet")
	}
	delete(p.logins, id)
	t := p.newLocked(l.who, registry.TokenSpec{Kind: "session", Lifetime: time.Hour})
	return registry.NewToken{Token: t.Token, Secret: t.secret}, nil
}

// CreateToken implements registry.Tokens.
func (p *People) CreateToken(_ context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down != nil {
		return registry.NewToken{}, p.down
	}
	for _, t := range p.tokens {
		if t.ID != by.Token || len(t.Rights) == 0 {
			continue
		}
		if len(spec.Rights) == 0 || slices.ContainsFunc(spec.Rights, func(r string) bool { return !matches(t.Rights, r) }) {
			return registry.NewToken{}, registry.Errorf(registry.ErrDenied, "a token makes none that is wider than itself")
		}
	}
	t := p.newLocked(by.Name, spec)
	return registry.NewToken{Token: t.Token, Secret: t.secret}, nil
}

// RevokeToken implements registry.Tokens.
func (p *People) RevokeToken(_ context.Context, by registry.Principal, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, t := range p.tokens {
		if t.ID == id && t.UID == by.UID {
			p.tokens = slices.Delete(p.tokens, i, i+1)
			return nil
		}
	}
	return registry.Errorf(registry.ErrNotFound, "no such token")
}

// ListTokens implements registry.Tokens.
func (p *People) ListTokens(_ context.Context, by registry.Principal) ([]registry.Token, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []registry.Token
	for _, t := range p.tokens {
		if t.UID == by.UID {
			list = append(list, t.Token)
		}
	}
	return list, nil
}
