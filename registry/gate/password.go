package gate

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"net/netip"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// rememberFor is for how long a right password is not checked again.
	rememberFor = 10 * time.Minute
	// knownFor is for how long an address from which a login succeeded is known.
	knownFor = 30 * 24 * time.Hour
	// checkFor is how long a check may take, whoever waits for it.
	checkFor = 10 * time.Second
	// maxName and maxPassword bound what is checked at all, in bytes.
	maxName     = 64
	maxPassword = 1024
)

// remembered is a right password.
type remembered struct {
	who   registry.Principal
	until time.Time
}

// counts reports whether it is to be believed still; if the clock was set back
// since, it is not.
func (m remembered) counts(now time.Time) bool {
	left := m.until.Sub(now)
	return left > 0 && left <= rememberFor
}

// Password is whose name and password these are; the password may be an opaque
// token. Errors are those of [Gate.Who].
func (g *Gate) Password(r *http.Request, name, password string) (registry.Principal, error) {
	if g == nil {
		return registry.Principal{}, nil
	}
	if registry.LooksLikeToken(password) {
		return g.tokenOf(r, name, password)
	}
	a, known := g.c.Identities.Account(name)
	key := g.digest(name, password, a)
	now := g.c.Now()
	if m, ok := g.remembered.get(key); ok && known && !a.Disabled && m.counts(now) {
		if err := g.c.Identities.Current(m.who, Addr(r)); err != nil {
			return registry.Principal{}, err
		}
		return m.who, nil
	}
	if g.c.Logins == nil {
		return registry.Principal{}, refused("this registry takes tokens only")
	}
	if name == "" || len(name) > maxName || password == "" || len(password) > maxPassword {
		return g.attempt(Addr(r), "", func() (registry.Principal, error) {
			return registry.Principal{}, refused("wrong name or password") // nobody can have these
		})
	}
	return g.check(r, key, name, password)
}

// tokenOf is the principal of an opaque token that came as a password.
func (g *Gate) tokenOf(r *http.Request, name, token string) (registry.Principal, error) {
	p, err := g.Token(r, token)
	if err != nil {
		return registry.Principal{}, err
	}
	switch name {
	case p.Name, "token", "_token", "weir":
		return p, nil
	}
	return registry.Principal{}, g.wrongToken(
		refused(`the token is not that user's: give its owner's name, or "token", as the user`))
}

// digest is what a password is remembered by. It changes with the account.
func (g *Gate) digest(name, password string, a registry.Account) [32]byte {
	h := hmac.New(sha256.New, g.key[:])
	var n [8]byte
	for _, s := range []string{name, password, a.UID} {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	binary.BigEndian.PutUint64(n[:], uint64(a.Secret))
	h.Write(n[:])
	var key [32]byte
	h.Sum(key[:0])
	return key
}

// check has a password checked, the same one for all who present it at once.
// key is that of before the check: if the account changes meanwhile, what is
// remembered is never found, and neither is it while the account is not known
// here.
func (g *Gate) check(r *http.Request, key [32]byte, name, password string) (registry.Principal, error) {
	from := Addr(r)
	flight := from.String() + " " + string(key[:])
	done := g.checks.DoChan(flight, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), checkFor)
		defer cancel()
		p, err := g.attempt(from, name, func() (registry.Principal, error) {
			return g.c.Logins.Password(ctx, name, password, from)
		})
		if err == nil {
			g.remembered.put(key, remembered{p, g.c.Now().Add(rememberFor)})
		}
		return p, err
	})
	select {
	case res := <-done:
		p, _ := res.Val.(registry.Principal)
		return p, res.Err
	case <-r.Context().Done():
		return registry.Principal{}, registry.Wrap(registry.ErrUnavailable, context.Cause(r.Context()), "wait for a password to be checked")
	}
}

// A place is where an account's logins come from.
type place struct {
	name string
	from netip.Prefix
}

// attempt makes an attempt at name's account from an address, or says
// ErrLimited without making it. name "" is none in particular.
func (g *Gate) attempt(from netip.Addr, name string, do func() (registry.Principal, error)) (registry.Principal, error) {
	here := place{name, registry.Network(from)}
	now := g.c.Now()
	byAddr, after := g.passwords.begin(here.from, now)
	if byAddr == nil {
		g.c.Meter.Event("login limited", "address")
		return registry.Principal{}, limited("too many failed logins from this address", after)
	}
	endName := func(bool) {}
	if name != "" {
		if endName, after = g.beginName(here, now); endName == nil {
			g.passwords.end(byAddr, now, false)
			g.c.Meter.Event("login limited", "account")
			return registry.Principal{}, limited("too many failed logins to this account", after)
		}
	}
	p, err := do()
	wrong := registry.KindOf(err) == registry.ErrUnauthenticated
	g.passwords.end(byAddr, g.c.Now(), wrong)
	endName(wrong)
	if wrong {
		g.c.Meter.Event("login refused", "password")
	}
	if err != nil {
		return registry.Principal{}, err
	}
	if name != "" {
		g.succeeded.put(here, g.c.Now())
	}
	return p, nil
}

// beginName begins an attempt at an account, or returns nil and how long to wait.
// From where a login has succeeded of late there is a budget of its own, so that
// who guesses elsewhere keeps nobody out of his own account.
func (g *Gate) beginName(p place, now time.Time) (end func(failed bool), after time.Duration) {
	if last, ok := g.succeeded.get(p); ok && now.Sub(last) < knownFor {
		f, after := g.known.begin(p, now)
		if f == nil {
			return nil, after
		}
		return func(failed bool) { g.known.end(f, g.c.Now(), failed) }, 0
	}
	f, after := g.accounts.begin(p.name, now)
	if f == nil {
		return nil, after
	}
	return func(failed bool) { g.accounts.end(f, g.c.Now(), failed) }, 0
}

// Exchange turns a JWT of a configured issuer into a token, as registry.Logins
// does. Wrong ones are told so, however many: they cannot be guessed.
func (g *Gate) Exchange(r *http.Request, jwt string) (registry.NewToken, error) {
	if g == nil || g.c.Logins == nil {
		return registry.NewToken{}, refused("this registry exchanges no tokens")
	}
	t, err := g.c.Logins.Exchange(r.Context(), jwt, Addr(r))
	if registry.KindOf(err) == registry.ErrUnauthenticated {
		g.c.Meter.Event("login refused", "jwt")
	}
	return t, err
}
