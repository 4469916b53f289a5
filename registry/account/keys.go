package account

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/weir-registry/weir/registry"
)

const (
	keyPrefix = "e/key/"
	// keysKept is how many signing keys there are: the one in use, and two for
	// tokens of before and for nodes that have not heard of it.
	keysKept = 3
	keySize  = 32 // bytes of a signing key
)

// rotateKeys sees that there is a key of today and drops the oldest ones. A
// key is called by its day, so of several nodes that do it at once one makes
// it, and the others find it. A node whose clock is behind makes none.
func (a *Authority) rotateKeys(ctx context.Context) error {
	now := a.o.Now().UTC()
	today := now.Format("20060102")
	keys, err := list[registry.SigningKey](ctx, a.store, keyPrefix)
	if err != nil {
		return err
	}
	// The list is in the order of IDs, which is that of days.
	if len(keys) == 0 || keys[len(keys)-1].ID < today {
		key := a.newKey(today)
		switch _, err := create(ctx, a.store, keyPrefix+today, key); {
		case errors.Is(err, errExists):
		case err != nil:
			return err
		default:
			a.o.Log.Info("made the signing key of the day", "key", today)
		}
		keys = append(keys, key)
	}
	for len(keys) > keysKept {
		if _, err := a.store.remove(ctx, keyPrefix+keys[0].ID); err != nil {
			return err
		}
		clear(keys[0].Secret)
		keys = keys[1:]
	}
	return nil
}

// newKey is a signing key with an ID.
func (a *Authority) newKey(id string) registry.SigningKey {
	key := registry.SigningKey{ID: id, Secret: make([]byte, keySize), Created: a.now()}
	_, _ = rand.Read(key.Secret) // crypto/rand.Read never fails
	return key
}

// Rekey makes a new signing key and drops those that there were before, so that
// a node that has been cut off and knows them makes no short-lived tokens any
// more. All that are under way end with them: clients get others.
func (a *Authority) Rekey(ctx context.Context, by Actor) (uint64, error) {
	e := event(by, "keys renew", "keys")
	old, err := list[registry.SigningKey](ctx, a.store, keyPrefix)
	if err == nil {
		// Between today's and tomorrow's.
		key := a.newKey(a.o.Now().UTC().Format("20060102") + "-" + randomID(uidLength))
		e.Version, err = create(ctx, a.store, keyPrefix+key.ID, key)
	}
	for _, key := range old {
		if err == nil {
			e.Version, err = a.store.remove(ctx, keyPrefix+key.ID)
		}
	}
	return e.Version, a.done(ctx, e, err)
}
