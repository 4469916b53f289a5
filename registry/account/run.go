package account

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// usedRound is how often uses of tokens are written.
	usedRound = 5 * time.Second
	// keysRound is how often it is seen whether a new signing key is due.
	keysRound = 10 * time.Minute
	// sweepRound is how often what has expired or belongs to nobody is removed,
	// and moreRound how soon again after a sweep that had to leave some.
	sweepRound = 15 * time.Minute
	moreRound  = time.Minute
	// sweepMost is how many records one sweep removes.
	sweepMost = 1000
	// expiredKept is how long tokens and grants stay to be seen after their end;
	// those of exchanges go at once.
	expiredKept = 30 * 24 * time.Hour
)

// Run does what is to be done in the background until ctx is done: it makes the
// day's signing key, writes when tokens were used, and removes what has expired
// or belongs to nobody any more. What fails is logged and tried again.
func (a *Authority) Run(ctx context.Context) {
	keys, used, sweep := time.NewTicker(keysRound), time.NewTicker(usedRound), time.NewTimer(moreRound)
	defer keys.Stop()
	defer used.Stop()
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-keys.C:
			err = registry.Wrap(registry.ErrUnavailable, a.rotateKeys(ctx), "make the signing key of the day")
		case <-used.C:
			err = registry.Wrap(registry.ErrUnavailable, a.writeUsed(ctx), "write when tokens were used")
		case <-sweep.C:
			var more bool
			more, err = a.sweep(ctx)
			sweep.Reset(sweepRound)
			if more {
				sweep.Reset(moreRound)
			}
		}
		if err != nil && ctx.Err() == nil {
			a.o.Log.Warn("accounts: it will be tried again", "err", err)
		}
	}
}

// sweep removes what has expired and what belongs to nobody. more reports that
// it has left some for the next.
func (a *Authority) sweep(ctx context.Context) (more bool, err error) {
	left := sweepMost
	var errs []error
	for _, part := range []func(context.Context, *int) error{a.sweepTokens, a.sweepGrants, a.sweepPasswords, a.sweepLogins, a.sweepUsed} {
		errs = append(errs, registry.Wrap(registry.ErrUnavailable, part(ctx, &left), "sweep"))
	}
	return left == 0, errors.Join(errs...)
}

// owners are the UIDs of all accounts and teams. It is read after what they own
// has been listed, so that whose owner is not in it has none: accounts come
// before what is theirs.
func (a *Authority) owners(ctx context.Context) (map[string]bool, error) {
	uids := map[string]bool{"": true}
	accounts, err := a.ListAccounts(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, acc := range accounts {
		uids[acc.UID] = true
	}
	teams, err := a.ListTeams(ctx)
	for _, t := range teams {
		uids[t.UID] = true
	}
	return uids, err
}

// take removes records until none may be any more.
func (a *Authority) take(ctx context.Context, left *int, keys []string) error {
	for _, key := range keys {
		if *left == 0 {
			return nil
		}
		if _, err := a.store.remove(ctx, key); err != nil {
			return err
		}
		*left--
	}
	return nil
}

// over reports whether an end is longer past than keep.
func over(end, now time.Time, keep time.Duration) bool {
	return !end.IsZero() && now.Sub(end) > keep
}

func (a *Authority) sweepTokens(ctx context.Context, left *int) error {
	all, err := list[registry.Token](ctx, a.store, tokenPrefix)
	if err != nil {
		return err
	}
	owners, err := a.owners(ctx)
	if err != nil {
		return err
	}
	now, live, keys := a.o.Now(), map[string]int{}, []string(nil)
	for _, t := range all {
		keep := expiredKept
		if t.Kind == exchange {
			keep = 0
		}
		if !owners[t.UID] || over(t.Expires, now, keep) {
			keys = append(keys, tokenPrefix+t.ID)
		} else if t.Kind == exchange {
			live[t.UID]++
		}
	}
	a.mu.Lock()
	a.exchanges = live
	a.mu.Unlock()
	return a.take(ctx, left, keys)
}

func (a *Authority) sweepGrants(ctx context.Context, left *int) error {
	all, err := list[registry.Grant](ctx, a.store, grantPrefix)
	if err != nil {
		return err
	}
	owners, err := a.owners(ctx)
	if err != nil {
		return err
	}
	var keys []string
	for _, g := range all {
		if !owners[g.UID] || over(g.Expires, a.o.Now(), expiredKept) {
			keys = append(keys, grantPrefix+g.ID)
		}
	}
	return a.take(ctx, left, keys)
}

// sweepPasswords removes those of accounts that are gone. One is written after
// its account, so whose account is not listed then has none.
func (a *Authority) sweepPasswords(ctx context.Context, left *int) error {
	kept := map[string]password{}
	for rec, err := range a.store.List(ctx, passwordPrefix, "") {
		if err != nil {
			return err
		}
		if kept[rec.Key], err = decode[password](rec); err != nil {
			return err
		}
	}
	owners, err := a.owners(ctx)
	if err != nil {
		return err
	}
	for key, p := range kept {
		if owners[p.UID] || *left == 0 {
			continue
		}
		if _, err := a.store.change(ctx, key, func(old []byte) ([]byte, error) {
			if now, err := decode[password](registry.Record{Key: key, Value: old}); err == nil && now.UID != p.UID {
				return old, nil // of a new account of that name
			}
			return nil, nil
		}); err != nil {
			return err
		}
		*left--
	}
	return nil
}

func (a *Authority) sweepLogins(ctx context.Context, left *int) error {
	var keys []string
	for rec, err := range a.store.List(ctx, loginPrefix, "") {
		if err != nil {
			return err
		}
		if l, err := decode[login](rec); err != nil || l.Claimed != "" || over(l.Expires, a.o.Now(), 0) {
			keys = append(keys, rec.Key)
		}
	}
	return a.take(ctx, left, keys)
}

// sweepUsed removes the uses of tokens that are gone.
func (a *Authority) sweepUsed(ctx context.Context, left *int) error {
	var keys []string
	for rec, err := range a.store.List(ctx, usedPrefix, "") {
		if err != nil {
			return err
		}
		keys = append(keys, rec.Key)
	}
	there := map[string]bool{}
	for rec, err := range a.store.List(ctx, tokenPrefix, "") {
		if err != nil {
			return err
		}
		there[strings.TrimPrefix(rec.Key, tokenPrefix)] = true
	}
	var gone []string
	for _, key := range keys {
		if !there[strings.TrimPrefix(key, usedPrefix)] {
			gone = append(gone, key)
		}
	}
	return a.take(ctx, left, gone)
}
