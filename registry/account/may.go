package account

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/entitle"
)

// A Checked is whether somebody may do something, and why.
type Checked struct {
	// Who is "user:alice", "robot:ci" or "anonymous".
	Who string `json:"who"`
	// Token is the ID of the token by which it is done, if that was asked.
	Token   string `json:"token,omitempty"`
	Right   string `json:"right"`
	Allowed bool   `json:"allowed"`
	// Why is why not. Ungranted: a grant to a user or robot would help.
	Why       string `json:"why,omitempty"`
	Ungranted bool   `json:"ungranted,omitempty"`
	// Grants decide it: those that allow it, or those that forbid it. None, and
	// Allowed: it is the configuration of the node that lets everyone.
	Grants []registry.Grant `json:"grants"`
}

// check answers whether somebody may do something. It is for one repository, for
// of those that a pattern matches one may be allowed and another not.
func (h *admin) check(_ http.ResponseWriter, c *caller) (any, error) {
	q := c.URL.Query()
	want, err := parseRight(q.Get("right"))
	if err != nil {
		return nil, err
	}
	if want.Space == "" && want.Action != registry.Admin || strings.Contains(want.Pattern, "*") {
		return nil, registry.Errorf(registry.ErrInvalid, "%q is many repositories, of which some may be allowed and some not: name one, without \"*\"", want)
	}
	p, out, uids, err := h.asked(c.Context(), q.Get("who"))
	if err != nil {
		return nil, err
	}
	out.Right = want.String()
	err = h.o.Decide.Admit(c.Context(), &registry.Call{Who: p, Action: want.Action, Name: registry.Name{Space: want.Space, Repo: want.Pattern}})
	var refused *registry.Error
	lacks := false
	switch kind := registry.KindOf(err); {
	case err == nil:
		out.Allowed = true
	case kind != registry.ErrDenied && kind != registry.ErrUnauthenticated || !errors.As(err, &refused):
		return nil, err
	default:
		// A named one that is not known any more lacks more than a grant, and
		// that everyone may is not proposed.
		out.Why, lacks = refused.Text, kind == registry.ErrDenied
	}
	if out.Grants, err = h.a.deciding(c.Context(), uids, want, out.Allowed); err != nil || out.Allowed || len(out.Grants) > 0 {
		return answer(out, err)
	}
	// Nothing forbids it. If nothing allows it either, that is why.
	allows, err := h.a.deciding(c.Context(), uids, want, true)
	out.Ungranted = lacks && len(allows) == 0
	return answer(out, err)
}

// asked is who is meant by "alice", "robot:ci", "token:ID" or "anonymous", and
// the UIDs whose grants are looked at, those of everyone last.
func (h *admin) asked(ctx context.Context, who string) (p registry.Principal, out Checked, uids []string, err error) {
	if id, ok := strings.CutPrefix(who, "token:"); ok {
		if id, err = h.a.tokenID(ctx, id); err != nil {
			return p, out, nil, err
		}
		t, err := h.a.ShowToken(ctx, id)
		if err != nil {
			return p, out, nil, err
		}
		who, out.Token, p.Token = t.Owner, t.ID, t.ID
	}
	if out.Who, p.UID, err = h.a.grantee(ctx, who); err != nil {
		return p, out, nil, err
	}
	kind, name, named := strings.Cut(out.Who, ":")
	switch {
	case kind == "team":
		return p, out, nil, registry.Errorf(registry.ErrInvalid, "a team does nothing itself: ask about one of its members")
	case named:
		acc, err := h.a.ShowAccount(ctx, kind, name)
		if err != nil {
			return p, out, nil, err
		}
		if p.Token == "" {
			p.Secret = acc.Secret // as if the password had been given just now
		}
		p.Name, uids = name, append([]string{acc.UID}, acc.Teams...)
	}
	return p, out, append(uids, ""), nil
}

// deciding are the grants that allow something, or those that forbid it: of the
// account and its teams if there are any, else of everyone.
func (a *Authority) deciding(ctx context.Context, uids []string, want entitle.Right, allowed bool) ([]registry.Grant, error) {
	decide := []registry.Grant{}
	for _, uid := range uids {
		if uid == "" && len(decide) > 0 {
			break
		}
		prefix := grantPrefix + uid
		if uid == "" {
			prefix = grantPrefix + anonymousUID
		}
		all, err := list[registry.Grant](ctx, a.store, prefix)
		if err != nil {
			return nil, err
		}
		for _, g := range all {
			r, err := entitle.ParseRight(g.Right)
			if err == nil && g.UID == uid && g.Deny == !allowed && a.counts(g) && touches(r, g.Deny, want) {
				decide = append(decide, g)
			}
		}
	}
	return decide, nil
}

// touches reports whether a grant of r, or a denial of it, is about want. Who is
// denied an action is denied those that include it.
func touches(r entitle.Right, deny bool, want entitle.Right) bool {
	if !deny {
		return r.Includes(want)
	}
	least := want
	least.Action = r.Action
	return want.Includes(least) && r.Includes(least)
}
