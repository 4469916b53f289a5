package account

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	grantPrefix = "e/grant/"
	// anonymousUID begins the IDs of grants to everyone. It is no UID: it has
	// fewer letters.
	anonymousUID = "anonymous"
	// grantLetters are what an ID has of the right that is granted.
	grantLetters = 8
)

// A GrantSpec is a grant or a prohibition that is asked for.
type GrantSpec struct {
	// To is "user:alice", "robot:ci", "team:core", "anonymous", or a name alone
	// where that says enough.
	To string `json:"to"`
	// Right is as in registry.Grant.
	Right string `json:"right"`
	// Deny makes it a prohibition.
	Deny bool `json:"deny,omitempty"`
	// Lifetime is from now on; 0: no end.
	Lifetime time.Duration `json:"lifetime,omitempty"`
}

// Grant grants a right, or with Deny forbids it. To do it again is to set its
// end anew: the ID of a grant follows from whom it is to, what it grants and
// whether it forbids. Errors: ErrInvalid, ErrNotFound if there is nobody of
// that name.
func (a *Authority) Grant(ctx context.Context, by Actor, spec GrantSpec) (registry.Grant, uint64, error) {
	g := registry.Grant{Right: spec.Right, Deny: spec.Deny, Created: a.now(), By: by.Who.Name}
	if _, err := parseRight(spec.Right); err != nil {
		return g, 0, err
	}
	if spec.Lifetime < 0 {
		return g, 0, registry.Errorf(registry.ErrInvalid, "a grant cannot end before it begins")
	}
	if spec.Lifetime > 0 {
		g.Expires = a.o.Now().Add(spec.Lifetime).UTC().Truncate(time.Second)
	}
	var err error
	if g.To, g.UID, err = a.grantee(ctx, spec.To); err != nil {
		return g, 0, err
	}
	g.ID = grantID(g)
	e := event(by, "grant add", g.To)
	e.Detail = g.Right
	if g.Deny {
		e.What = "grant deny"
	}
	rec, err := a.store.change(ctx, grantPrefix+g.ID, func(old []byte) ([]byte, error) {
		if old != nil {
			have, err := decode[registry.Grant](registry.Record{Key: grantPrefix + g.ID, Value: old})
			switch {
			case err != nil:
				return nil, err
			case have.Right != g.Right || have.Deny != g.Deny:
				return nil, registry.Errorf(registry.ErrConflict, "%q and %q have the same ID; say it in other words", have.Right, g.Right)
			case have.Expires.Equal(g.Expires):
				g = have
				return old, nil
			}
		}
		return encode(g)
	})
	e.Version = rec.Rev
	return g, e.Version, a.done(ctx, e, err)
}

// grantID is the ID of a grant: the UID, and a digest of the rest.
func grantID(g registry.Grant) string {
	what := "allow " + g.Right
	if g.Deny {
		what = "deny " + g.Right
	}
	sum := sha256.Sum256([]byte(what))
	id := []byte(g.UID)
	if g.UID == "" {
		id = []byte(anonymousUID)
	}
	for _, b := range sum[:grantLetters] {
		id = append(id, letters[b%32])
	}
	return string(id)
}

// grantee finds who is meant: "user:alice", or a name that is just one's.
func (a *Authority) grantee(ctx context.Context, to string) (full, uid string, err error) {
	if to == "anonymous" {
		return to, "", nil
	}
	kind, name, ok := strings.Cut(to, ":")
	if !ok {
		kind, name = "", to
	}
	if !slices.Contains([]string{"", registry.User, registry.Robot, "team"}, kind) {
		return "", "", registry.Errorf(registry.ErrInvalid, `%.100q is nobody: it is "user:NAME", "robot:NAME", "team:NAME" or "anonymous"`, to)
	}
	acc, aerr := registry.Account{}, error(nil)
	team, terr := registry.Team{}, error(nil)
	if kind != "team" {
		acc, aerr = a.ShowAccount(ctx, kind, name)
	}
	if kind == "team" || kind == "" {
		team, terr = a.team(ctx, name)
	}
	for _, err := range []error{aerr, terr} {
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return "", "", err
		}
	}
	switch {
	case acc.UID != "" && team.UID != "":
		return "", "", registry.Errorf(registry.ErrInvalid, `there are both a %s and a team called %q: say "%s:%s" or "team:%s"`, acc.Kind, name, acc.Kind, name, name)
	case acc.UID != "":
		return acc.Kind + ":" + name, acc.UID, nil
	case team.UID != "":
		return "team:" + name, team.UID, nil
	case kind == "":
		return "", "", registry.Errorf(registry.ErrNotFound, "there is no user, robot or team called %.100q", name)
	}
	return "", "", registry.Errorf(registry.ErrNotFound, "there is no %s called %.100q", kind, name)
}

// RevokeGrant removes a grant, whose former content it returns. ErrNotFound if
// there is none of that ID.
func (a *Authority) RevokeGrant(ctx context.Context, by Actor, id string) (registry.Grant, uint64, error) {
	g, err := a.ShowGrant(ctx, id)
	if err != nil {
		return g, 0, err
	}
	e := event(by, "grant revoke", g.To)
	e.Detail = g.Right
	e.Version, err = a.store.remove(ctx, grantPrefix+id)
	return g, e.Version, a.done(ctx, e, err)
}

// ShowGrant is one grant. ErrNotFound if there is none of that ID.
func (a *Authority) ShowGrant(ctx context.Context, id string) (registry.Grant, error) {
	if validID(id) {
		g, _, ok, err := read[registry.Grant](ctx, a.store, grantPrefix+id)
		if ok || err != nil {
			return g, err
		}
	}
	return registry.Grant{}, registry.Errorf(registry.ErrNotFound, "there is no grant %.100q", id)
}

// ListGrants lists what is granted and forbidden to one ("user:alice"), or with
// "" to all, by who it is to and then by age. Those of an account's teams are
// not among its own. Errors: ErrNotFound, ErrInvalid.
func (a *Authority) ListGrants(ctx context.Context, to string) ([]registry.Grant, error) {
	prefix := grantPrefix
	if to != "" {
		_, uid, err := a.grantee(ctx, to)
		if err != nil {
			return nil, err
		}
		if uid == "" {
			uid = anonymousUID
		}
		prefix += uid
	}
	all, err := list[registry.Grant](ctx, a.store, prefix)
	slices.SortStableFunc(all, func(x, y registry.Grant) int {
		if c := strings.Compare(x.To, y.To); c != 0 {
			return c
		}
		return x.Created.Compare(y.Created)
	})
	return all, err
}
