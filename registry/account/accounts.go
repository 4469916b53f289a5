package account

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/weir-registry/weir/registry"
)

const (
	accountPrefix  = "e/account/"
	passwordPrefix = "s/password/"
	// uidLength is the letters of a UID: 80 random bits.
	uidLength = 16
)

// AddUser makes a person. password may be empty: then none is right until one
// is set. Errors: ErrInvalid, ErrConflict if there is an account of that name,
// robots included. The account may have been made although setting its password
// failed; the error says so.
func (a *Authority) AddUser(ctx context.Context, by Actor, name, email, password string) (registry.Account, uint64, error) {
	if password != "" {
		if err := checkPassword(password); err != nil {
			return registry.Account{}, 0, err
		}
	}
	acc, version, err := a.add(ctx, by, registry.Account{Name: name, Kind: registry.User, Email: email})
	if err == nil && password != "" {
		if err = a.writePassword(ctx, acc, password); err != nil {
			err = registry.Wrap(registry.ErrUnavailable, err, "user "+name+" is made, but has no password yet")
		}
	}
	return acc, version, err
}

// AddRobot makes a machine, which has tokens and no password. Errors are
// AddUser's.
func (a *Authority) AddRobot(ctx context.Context, by Actor, name string) (registry.Account, uint64, error) {
	return a.add(ctx, by, registry.Account{Name: name, Kind: registry.Robot})
}

func (a *Authority) add(ctx context.Context, by Actor, acc registry.Account) (registry.Account, uint64, error) {
	if err := checkName(acc.Kind, acc.Name); err != nil {
		return acc, 0, err
	}
	if slices.Contains(reserved, acc.Name) {
		return acc, 0, registry.Errorf(registry.ErrInvalid, "%q has another meaning and cannot be a name", acc.Name)
	}
	if err := checkEmail(acc.Email); err != nil {
		return acc, 0, err
	}
	acc.UID, acc.Secret, acc.Created = randomID(uidLength), randomNumber(), a.now()
	e := event(by, acc.Kind+" add", acc.Kind+":"+acc.Name)
	var err error
	if e.Version, err = create(ctx, a.store, accountPrefix+acc.Name, acc); errors.Is(err, errExists) {
		err = registry.Errorf(registry.ErrConflict, "there is an account called %q already", acc.Name)
	}
	err = a.done(ctx, e, err)
	return acc, e.Version, err
}

// ListAccounts lists users or robots by name; kind "": both.
func (a *Authority) ListAccounts(ctx context.Context, kind string) ([]registry.Account, error) {
	all, err := list[registry.Account](ctx, a.store, accountPrefix)
	return slices.DeleteFunc(all, func(acc registry.Account) bool { return kind != "" && acc.Kind != kind }), err
}

// ShowAccount is the account with a name. ErrNotFound if there is none, or one
// of another kind than is asked for ("": either).
func (a *Authority) ShowAccount(ctx context.Context, kind, name string) (registry.Account, error) {
	if !validName(name) {
		return registry.Account{}, noAccount(kind, name)
	}
	acc, _, ok, err := read[registry.Account](ctx, a.store, accountPrefix+name)
	switch {
	case err != nil:
		return acc, err
	case !ok:
		return registry.Account{}, noAccount(kind, name)
	case kind != "" && acc.Kind != kind:
		return registry.Account{}, registry.Errorf(registry.ErrNotFound, "there is no %s called %.100q, but a %s", kind, name, acc.Kind)
	}
	return acc, nil
}

func noAccount(kind, name string) error {
	if kind == "" {
		kind = "account"
	}
	return registry.Errorf(registry.ErrNotFound, "there is no %s called %.100q", kind, name)
}

// RemoveAccount removes an account, and then its password, tokens and grants,
// which are void from the moment that it is gone. Errors: ErrNotFound;
// ErrConflict if nobody could administer any more.
func (a *Authority) RemoveAccount(ctx context.Context, by Actor, kind, name string) (version uint64, err error) {
	acc, err := a.ShowAccount(ctx, kind, name)
	if err != nil {
		return 0, err
	}
	if err := a.notLast(ctx, name); err != nil {
		return 0, err
	}
	e := event(by, acc.Kind+" remove", acc.Kind+":"+name)
	rec, err := a.store.change(ctx, accountPrefix+name, func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, nil
		}
		// Another account of that name was not meant.
		now, err := decode[registry.Account](registry.Record{Key: accountPrefix + name, Value: old})
		if err == nil && now.UID != acc.UID {
			return old, nil
		}
		return nil, err
	})
	e.Version = rec.Rev
	if err = a.done(ctx, e, err); err != nil {
		return e.Version, err
	}
	// What is left works no more; what cannot be removed now the sweep will.
	if err := a.removeBelongings(ctx, acc); err != nil {
		a.o.Log.Warn("what belonged to a removed account will be removed later", "account", name, "err", err)
	}
	return e.Version, nil
}

func (a *Authority) removeBelongings(ctx context.Context, acc registry.Account) error {
	err := a.removeAll(ctx, tokenPrefix+acc.UID, grantPrefix+acc.UID)
	_, perr := a.store.change(ctx, passwordPrefix+acc.Name, func(old []byte) ([]byte, error) {
		p, err := decode[password](registry.Record{Key: passwordPrefix + acc.Name, Value: old})
		if old != nil && err == nil && p.UID != acc.UID {
			return old, nil // of a new account of that name
		}
		return nil, nil
	})
	return errors.Join(err, perr)
}

// removeAll removes all that is under some prefixes.
func (a *Authority) removeAll(ctx context.Context, prefixes ...string) error {
	var keys []string // first, so that nothing is changed while it is listed
	for _, prefix := range prefixes {
		for rec, err := range a.store.List(ctx, prefix, "") {
			if err != nil {
				return registry.Wrap(registry.ErrUnavailable, err, "list "+prefix)
			}
			keys = append(keys, rec.Key)
		}
	}
	for _, key := range keys {
		if _, err := a.store.remove(ctx, key); err != nil {
			return err
		}
		if id, ok := strings.CutPrefix(key, tokenPrefix); ok {
			a.forget(ctx, id)
		}
	}
	return nil
}

// Disable makes an account that can do nothing until it is enabled. Errors:
// ErrNotFound; ErrConflict if nobody could administer any more.
func (a *Authority) Disable(ctx context.Context, by Actor, name string) (uint64, error) {
	return a.setDisabled(ctx, by, name, true)
}

// Enable takes Disable back.
func (a *Authority) Enable(ctx context.Context, by Actor, name string) (uint64, error) {
	return a.setDisabled(ctx, by, name, false)
}

func (a *Authority) setDisabled(ctx context.Context, by Actor, name string, disabled bool) (uint64, error) {
	what := "enable"
	if disabled {
		what = "disable"
		if err := a.notLast(ctx, name); err != nil {
			return 0, err
		}
	}
	_, version, err := a.edit(ctx, by, what, name, "", func(acc *registry.Account) error {
		acc.Disabled = disabled
		return nil
	})
	return version, err
}

// edit changes an account.
func (a *Authority) edit(ctx context.Context, by Actor, what, name, detail string, edit func(*registry.Account) error) (registry.Account, uint64, error) {
	if !validName(name) {
		return registry.Account{}, 0, noAccount("", name)
	}
	acc, version, err := update(ctx, a.store, accountPrefix+name, edit)
	if errors.Is(err, errAbsent) {
		err = noAccount("", name)
	}
	kind := acc.Kind
	if kind == "" {
		kind = "account"
	}
	e := event(by, kind+" "+what, kind+":"+name)
	e.Detail, e.Version = detail, version
	return acc, version, a.done(ctx, e, err)
}
