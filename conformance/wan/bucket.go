package wan

import (
	"sync"
	"time"
)

// burst is how long a line that was idle may be faster than its rate.
const burst = 5 * time.Millisecond

// A bucket says when bytes are out on a line of some rate. Its zero value is a
// line that was idle.
type bucket struct {
	mu   sync.Mutex
	free time.Time // when what was taken is out; guarded by mu
}

// take puts n bytes on the line and returns when the last of them is out. A
// rate of 0 is no limit.
func (b *bucket) take(now time.Time, n int, rate int64) time.Time {
	if rate <= 0 {
		return now
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if early := now.Add(-burst); b.free.Before(early) {
		b.free = early
	}
	b.free = b.free.Add(time.Duration(int64(n) * int64(time.Second) / rate))
	return later(b.free, now)
}

// piece is how much to read at once for a line of these rates: eight
// milliseconds' worth, so that its readers take turns. Smaller ones would be
// more even, and cost a wake-up of all who wait for each.
func piece(rates ...int64) int {
	n := int64(pieceMost)
	for _, r := range rates {
		if r > 0 {
			n = min(n, max(r/125, pieceLeast))
		}
	}
	return int(n)
}

const (
	pieceMost  = 64 << 10
	pieceLeast = 1500
)

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
