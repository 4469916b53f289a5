package npm

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry/reply"
)

const (
	// maxBases is how many addresses of its own a node keeps views for. Which
	// host a client calls is the client's to say, so without a bound it could
	// fill the store with views; beyond it a view is made for the one answer
	// and not kept.
	maxBases = 64
	// baseIdle is how long an address must not have been called for another to
	// take its place: names that somebody made up go, and those in use stay.
	baseIdle = 10 * time.Minute
)

// bases are the addresses that clients have called this node by. The zero
// value has none.
type bases struct {
	mu   sync.Mutex
	used map[string]time.Time // when last; guarded by mu
}

// keeps reports whether a view for base, about to be made, is kept.
func (b *bases) keeps(base string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.used[base]; !ok && len(b.used) >= maxBases && !b.dropIdleLocked(now) {
		return false
	}
	if b.used == nil {
		b.used = map[string]time.Time{}
	}
	b.used[base] = now
	return true
}

// dropIdleLocked makes room by dropping the base that was used longest ago,
// if that is long enough.
func (b *bases) dropIdleLocked(now time.Time) bool {
	oldest, at := "", now
	for base, t := range b.used {
		if t.Before(at) {
			oldest, at = base, t
		}
	}
	if now.Sub(at) < baseIdle {
		return false
	}
	delete(b.used, oldest)
	return true
}

// base is the registry's address as the client of r calls it, without a
// trailing slash.
func (h *handler) base(r *http.Request) (string, error) {
	base, err := reply.Base(r, h.o.PublicURL)
	if err != nil {
		return "", err
	}
	return base + h.o.Prefix, nil
}

// shortHash names a base in a view's key.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
