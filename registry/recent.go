package registry

import (
	"sync"
	"time"
)

// recentLimit bounds how many failures are remembered.
const recentLimit = 16384

// recent remembers failures for a while: that a name does not exist, that its
// upstream would not answer. Its zero value works.
type recent struct {
	mu sync.Mutex
	m  map[Name]failure // guarded by mu
}

type failure struct {
	err   error
	until time.Time
}

// get is the failure that counts for n at now, or nil.
func (r *recent) get(n Name, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.m[n]
	if !ok || !now.Before(f.until) {
		return nil
	}
	return f.err
}

func (r *recent) put(n Name, err error, until, now time.Time) {
	if !until.After(now) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = make(map[Name]failure)
	}
	if len(r.m) >= recentLimit {
		r.dropLocked(now)
	}
	r.m[n] = failure{err, until}
}

// dropLocked makes room: what has expired goes, and if that is not a quarter,
// any quarter.
func (r *recent) dropLocked(now time.Time) {
	for n, f := range r.m {
		if !now.Before(f.until) {
			delete(r.m, n)
		}
	}
	for n := range r.m {
		if len(r.m) <= recentLimit*3/4 {
			return
		}
		delete(r.m, n)
	}
}

func (r *recent) forget(n Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, n)
}
