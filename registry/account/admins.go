package account

import (
	"context"
	"slices"

	"github.com/weir-registry/weir/registry"
)

// administrators are the names of the accounts that may administer: enabled, and
// granted "admin *" by themselves or by a team. That something denies it is not
// looked at.
func (a *Authority) administrators(ctx context.Context) ([]string, error) {
	grants, err := list[registry.Grant](ctx, a.store, grantPrefix)
	if err != nil {
		return nil, err
	}
	granted := map[string]bool{}
	for _, g := range grants {
		if g.Right == adminRight && !g.Deny && a.counts(g) {
			granted[g.UID] = true
		}
	}
	accounts, err := a.ListAccounts(ctx, "")
	if err != nil {
		return nil, err
	}
	teams, err := a.TeamNames(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, acc := range accounts {
		byTeam := slices.ContainsFunc(acc.Teams, func(uid string) bool { return granted[uid] && teams[uid] != "" })
		if !acc.Disabled && (granted[acc.UID] || byTeam) {
			names = append(names, acc.Name)
		}
	}
	return names, nil
}

// counts reports whether a grant has not expired.
func (a *Authority) counts(g registry.Grant) bool {
	return g.Expires.IsZero() || a.o.Now().Before(g.Expires)
}

// notLast is ErrConflict if an account is the only one that may administer. Of
// two that are taken away at the same moment it may miss one; EnsureAdmin is the
// way back.
func (a *Authority) notLast(ctx context.Context, name string) error {
	all, err := a.administrators(ctx)
	if err == nil && len(all) == 1 && all[0] == name {
		err = registry.Errorf(registry.ErrConflict, "%s is the only one who may administer: grant %q to somebody else first", name, adminRight)
	}
	return err
}
