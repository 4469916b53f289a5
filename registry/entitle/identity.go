package entitle

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Token implements registry.Identities. A text whose checksum is wrong is
// refused before anything is looked up. ErrUnavailable if there is no copy of
// the entitlements yet.
func (r *Replica) Token(secret string, addr netip.Addr) (registry.Principal, error) {
	if !registry.CheckTokenText(secret) {
		return registry.Principal{}, registry.Errorf(registry.ErrUnauthenticated, "this is no token of weir: it was not copied whole, or a character of it is wrong")
	}
	v := r.view.Load()
	if v.database == "" {
		return registry.Principal{}, r.unidentified(&registry.Principal{}, unready)
	}
	hash := registry.HashToken(secret)
	tok := v.tokenByHash(hash[:])
	if tok == nil {
		return registry.Principal{}, r.unidentified(&registry.Principal{}, void)
	}
	p := registry.Principal{Name: tok.Owner, UID: tok.UID, Token: tok.ID}
	now := r.o.Now()
	if _, _, bad := v.identify(&p, now.UnixNano()); bad != admitted {
		return registry.Principal{}, r.unidentified(&p, bad)
	}
	if !from(tok.From, addr) {
		return registry.Principal{}, misplaced(tok.ID, addr)
	}
	r.uses.note(tok.ID, now)
	return p, nil
}

// misplaced is the error for a token that is not used from where it may be.
func misplaced(id string, addr netip.Addr) error {
	e := registry.Errorf(registry.ErrUnauthenticated, "the token %q may not be used from %v", id, addr)
	e.Public = "this token may not be used from the address that you come from, " + addr.Unmap().String()
	return e
}

// from reports whether an address is in one of the networks; no networks are
// all. An IPv4 address is the same however it is written.
func from(networks []netip.Prefix, addr netip.Addr) bool {
	if len(networks) == 0 {
		return true
	}
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		return p.Contains(addr)
	})
}

// Current implements registry.Identities. ErrUnavailable if there is no copy of
// the entitlements yet.
func (r *Replica) Current(p registry.Principal, addr netip.Addr) error {
	if p.Node || p.Name == "" {
		return nil
	}
	v := r.view.Load()
	if v.database == "" {
		return r.unidentified(&p, unready)
	}
	_, tok, bad := v.identify(&p, r.o.Now().UnixNano())
	switch {
	case bad != admitted:
		return r.unidentified(&p, bad)
	case tok != nil && !from(tok.From, addr):
		return misplaced(tok.ID, addr)
	}
	return nil
}

// Account implements registry.Identities.
func (r *Replica) Account(name string) (registry.Account, bool) {
	a := r.view.Load().account(name)
	if a == nil {
		return registry.Account{}, false
	}
	c := a.Account
	c.Teams = slices.Clone(a.Teams)
	return c, true
}

// Keys implements registry.Identities, the newest first. They must not be
// changed.
func (r *Replica) Keys() []registry.SigningKey { return r.view.Load().keys }

// maxUses bounds how many tokens' uses are remembered until they are reported.
const maxUses = 64 << 10

// uses are the tokens that have been used since the last report.
type uses struct {
	mu   sync.Mutex
	when map[string]time.Time
}

func (u *uses) note(id string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.when == nil {
		u.when = map[string]time.Time{}
	}
	if _, known := u.when[id]; known || len(u.when) < maxUses {
		u.when[id] = now
	}
}

// Uses are the tokens used since it was last called, by ID, and when each was
// last. At most 65536 are remembered; more than that within one report are
// left out.
func (r *Replica) Uses() map[string]time.Time {
	r.uses.mu.Lock()
	defer r.uses.mu.Unlock()
	when := r.uses.when
	r.uses.when = nil
	return when
}
