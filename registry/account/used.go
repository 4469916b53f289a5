package account

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	usedPrefix = "s/used/"
	// usedEvery is how often the last use of one token is written down at most.
	usedEvery = 5 * time.Minute
	// maxPending bounds the uses that wait to be written; what is beyond is
	// forgotten, for it is told again.
	maxPending = 100_000
	// usedBatch is how many are written in one round, so that a database that
	// charges by the write is not flooded after a restart.
	usedBatch = 1000
)

// uses are when tokens were used: what has been told and what has been written.
// The zero value is ready.
type uses struct {
	mu      sync.Mutex
	pending map[string]time.Time // not written yet; guarded by mu
	written map[string]time.Time // so far as is known; guarded by mu
}

// Used takes note of when tokens were used, by their IDs. It waits for nothing:
// they are written later, to the minute and not more often than every five, and
// until then are known to this node alone.
func (a *Authority) Used(tokens map[string]time.Time) {
	now := a.o.Now()
	a.used.mu.Lock()
	defer a.used.mu.Unlock()
	if a.used.pending == nil {
		a.used.pending, a.used.written = map[string]time.Time{}, map[string]time.Time{}
	}
	for id, at := range tokens {
		if !validID(id) || at.IsZero() {
			continue
		}
		if at.After(now) { // another node's clock
			at = now
		}
		if at = at.UTC().Truncate(time.Minute); !at.After(a.used.pending[id]) || !at.After(a.used.written[id]) {
			continue
		}
		if _, ok := a.used.pending[id]; ok || len(a.used.pending) < maxPending {
			a.used.pending[id] = at
		}
	}
}

// due takes the uses that are to be written now.
func (u *uses) due(now time.Time) map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	batch := map[string]time.Time{}
	for id, at := range u.pending {
		if len(batch) == usedBatch {
			break
		}
		if now.Sub(u.written[id]) >= usedEvery {
			batch[id] = at
		}
	}
	return batch
}

// wrote notes what has been written.
func (u *uses) wrote(id string, at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.written) >= maxPending {
		clear(u.written) // some are written once more than need be
	}
	u.written[id] = at
	if !u.pending[id].After(at) {
		delete(u.pending, id)
	}
}

// writeUsed writes the uses that are due.
func (a *Authority) writeUsed(ctx context.Context) error {
	for id, at := range a.used.due(a.o.Now()) {
		if _, _, ok, err := read[registry.Token](ctx, a.store, tokenPrefix+id); err != nil {
			return err
		} else if !ok { // revoked, or never there
			a.used.drop(id)
			continue
		}
		_, err := a.store.change(ctx, usedPrefix+id, func(old []byte) ([]byte, error) {
			var have time.Time
			if json.Unmarshal(old, &have) == nil && !at.After(have) {
				return old, nil // another node has written a later one
			}
			return encode(at)
		})
		if err != nil {
			return err
		}
		a.used.wrote(id, at)
	}
	return nil
}

func (u *uses) drop(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.pending, id)
	delete(u.written, id)
}

// forget drops what is known of a revoked token's use. What cannot be removed
// now the sweep will.
func (a *Authority) forget(ctx context.Context, id string) {
	a.used.drop(id)
	_, _ = a.store.remove(ctx, usedPrefix+id)
}

// lastUsed is when a token was last used, as far as this node knows.
func (a *Authority) lastUsed(ctx context.Context, id string) (time.Time, error) {
	at, _, _, err := read[time.Time](ctx, a.store, usedPrefix+id)
	a.used.mu.Lock()
	defer a.used.mu.Unlock()
	if p := a.used.pending[id]; p.After(at) {
		at = p
	}
	return at, err
}

// allUsed is lastUsed for the tokens whose IDs begin with a UID.
func (a *Authority) allUsed(ctx context.Context, uid string) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	for rec, err := range a.store.List(ctx, usedPrefix+uid, "") {
		if err != nil {
			return nil, registry.Wrap(registry.ErrUnavailable, err, "list "+usedPrefix)
		}
		if all[strings.TrimPrefix(rec.Key, usedPrefix)], err = decode[time.Time](rec); err != nil {
			return nil, err
		}
	}
	a.used.mu.Lock()
	defer a.used.mu.Unlock()
	for id, at := range maps.All(a.used.pending) {
		if strings.HasPrefix(id, uid) && at.After(all[id]) {
			all[id] = at
		}
	}
	return all, nil
}
