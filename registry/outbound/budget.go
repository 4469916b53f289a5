package outbound

import "sync"

const (
	// retryShare is how many first tries pay for one retry.
	retryShare = 10
	// retryFloat is how many retries may be made on credit: after a quiet
	// time, or when the first connections of a day turn out to be dead.
	retryFloat = 10
)

// A budget bounds the retries at an upstream to a share of the requests: when
// every connection breaks, trying everything twice would double the load on
// what is failing under it. Its zero value has all its credit.
type budget struct {
	mu    sync.Mutex
	spent int // guarded by mu; in parts of a retry, retryShare each
}

// earn counts one first try.
func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent = max(b.spent-1, 0)
}

// spend reports whether a retry may be made, and counts it.
func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent+retryShare > retryFloat*retryShare {
		return false
	}
	b.spent += retryShare
	return true
}
