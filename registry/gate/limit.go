package gate

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/weir-registry/weir/registry"
)

// limits count failures by something, K: burst at once, and one more for each
// every. Its maps are bounded: see recent.
type limits[K comparable] struct {
	burst int
	every time.Duration

	mu   sync.Mutex
	seen recent[K, *failing] // guarded by mu, as are the failings
}

// failing is what has failed of late, and what is being tried.
type failing struct {
	limiter *rate.Limiter
	trying  int
}

// begin begins an attempt, or says how long to wait before the next: then it
// returns nil. Whoever began one ends it.
func (l *limits[K]) begin(key K, now time.Time) (*failing, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.seen.get(key)
	if !ok {
		f = &failing{limiter: rate.NewLimiter(rate.Every(l.every), l.burst)}
		l.seen.put(key, f)
	}
	left := f.limiter.TokensAt(now)
	if left-float64(f.trying) < 1 {
		// What is running may turn out right, so that is not waited for.
		return nil, time.Duration(max(0, 1-left) * float64(l.every))
	}
	f.trying++
	return f, 0
}

// end ends an attempt.
func (l *limits[K]) end(f *failing, now time.Time, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.trying--
	if failed {
		f.limiter.AllowN(now, 1)
	}
}

// limited is an ErrLimited that says for how long.
func limited(why string, after time.Duration) error {
	after = max(time.Second, after.Round(time.Second))
	text := fmt.Sprintf("%s: try again in %v", why, after)
	return &registry.Error{Kind: registry.ErrLimited, Text: text, Public: text, After: after}
}
