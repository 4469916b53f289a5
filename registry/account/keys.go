package account

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

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
		key := registry.SigningKey{ID: today, Secret: make([]byte, keySize), Created: now.Truncate(time.Second)}
		_, _ = rand.Read(key.Secret) // crypto/rand.Read never fails
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
