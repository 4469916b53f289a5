package account

import (
	"context"
	"errors"
	"slices"

	"github.com/weir-registry/weir/registry"
)

const teamPrefix = "e/team/"

// AddTeam makes a team without members. ErrConflict if there is one of that
// name.
func (a *Authority) AddTeam(ctx context.Context, by Actor, name string) (registry.Team, uint64, error) {
	if err := checkName("team", name); err != nil {
		return registry.Team{}, 0, err
	}
	team := registry.Team{Name: name, UID: randomID(uidLength), Created: a.now()}
	e := event(by, "team add", "team:"+name)
	var err error
	if e.Version, err = create(ctx, a.store, teamPrefix+name, team); errors.Is(err, errExists) {
		err = registry.Errorf(registry.ErrConflict, "there is a team called %q already", name)
	}
	return team, e.Version, a.done(ctx, e, err)
}

// ListTeams lists the teams by name.
func (a *Authority) ListTeams(ctx context.Context) ([]registry.Team, error) {
	return list[registry.Team](ctx, a.store, teamPrefix)
}

// ShowTeam is a team and the names of its members. ErrNotFound if there is none.
func (a *Authority) ShowTeam(ctx context.Context, name string) (team registry.Team, members []string, err error) {
	if team, err = a.team(ctx, name); err != nil {
		return team, nil, err
	}
	all, err := a.ListAccounts(ctx, "")
	members = []string{}
	for _, acc := range all {
		if slices.Contains(acc.Teams, team.UID) {
			members = append(members, acc.Name)
		}
	}
	return team, members, err
}

// TeamNames are the names of teams by their UIDs.
func (a *Authority) TeamNames(ctx context.Context) (map[string]string, error) {
	all, err := a.ListTeams(ctx)
	names := map[string]string{}
	for _, t := range all {
		names[t.UID] = t.Name
	}
	return names, err
}

func (a *Authority) team(ctx context.Context, name string) (registry.Team, error) {
	if validName(name) {
		team, _, ok, err := read[registry.Team](ctx, a.store, teamPrefix+name)
		if ok || err != nil {
			return team, err
		}
	}
	return registry.Team{}, registry.Errorf(registry.ErrNotFound, "there is no team called %.100q", name)
}

// RemoveTeam removes a team, and then its grants and its members' being in it,
// which mean nothing from the moment that it is gone. ErrNotFound if there is
// none.
func (a *Authority) RemoveTeam(ctx context.Context, by Actor, name string) (uint64, error) {
	team, err := a.team(ctx, name)
	if err != nil {
		return 0, err
	}
	e := event(by, "team remove", "team:"+name)
	rec, err := a.store.change(ctx, teamPrefix+name, func(old []byte) ([]byte, error) {
		now, err := decode[registry.Team](registry.Record{Key: teamPrefix + name, Value: old})
		if old != nil && err == nil && now.UID != team.UID {
			return old, nil
		}
		return nil, nil
	})
	e.Version = rec.Rev
	if err = a.done(ctx, e, err); err != nil {
		return e.Version, err
	}
	err = a.removeAll(ctx, grantPrefix+team.UID)
	all, lerr := a.ListAccounts(ctx, "")
	for _, acc := range all {
		if slices.Contains(acc.Teams, team.UID) {
			_, _, uerr := update(ctx, a.store, accountPrefix+acc.Name, func(acc *registry.Account) error {
				acc.Teams = slices.DeleteFunc(acc.Teams, func(uid string) bool { return uid == team.UID })
				return nil
			})
			err = errors.Join(err, uerr)
		}
	}
	if err = errors.Join(err, lerr); err != nil {
		a.o.Log.Warn("not all that belonged to a removed team could be removed; it means nothing any more", "team", name, "err", err)
	}
	return e.Version, nil
}

// AddMember puts an account into a team. Errors: ErrNotFound, and ErrInvalid if
// it is in too many.
func (a *Authority) AddMember(ctx context.Context, by Actor, team, name string) (uint64, error) {
	t, err := a.team(ctx, team)
	if err != nil {
		return 0, err
	}
	_, version, err := a.edit(ctx, by, "join", name, "team:"+team, func(acc *registry.Account) error {
		if slices.Contains(acc.Teams, t.UID) {
			return nil
		}
		if len(acc.Teams) >= maxTeams {
			return registry.Errorf(registry.ErrInvalid, "%q is in %d teams, which is the most", name, len(acc.Teams))
		}
		acc.Teams = append(acc.Teams, t.UID)
		return nil
	})
	return version, err
}

// RemoveMember takes an account out of a team; that it is not in it is no
// error. ErrNotFound if one of them is not there.
func (a *Authority) RemoveMember(ctx context.Context, by Actor, team, name string) (uint64, error) {
	t, err := a.team(ctx, team)
	if err != nil {
		return 0, err
	}
	_, version, err := a.edit(ctx, by, "leave", name, "team:"+team, func(acc *registry.Account) error {
		acc.Teams = slices.DeleteFunc(acc.Teams, func(uid string) bool { return uid == t.UID })
		return nil
	})
	return version, err
}
