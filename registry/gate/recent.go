package gate

import "sync"

// recentMost is how many entries one generation of a recent has at most.
const recentMost = 16384

// recent remembers what was put or got of late, in two generations: what is
// used is moved to the young one, and when that is full it becomes the old one
// and the old one is forgotten. So at most two times recentMost are kept, and
// no less than the last recentMost that were used. Its zero value works.
type recent[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]V // guarded by mu
}

func (r *recent[K, V]) get(key K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.young[key]
	if !ok {
		if v, ok = r.old[key]; ok {
			r.putLocked(key, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(key K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.putLocked(key, v)
}

func (r *recent[K, V]) putLocked(key K, v V) {
	if _, ok := r.young[key]; !ok && len(r.young) >= recentMost {
		r.old, r.young = r.young, nil
	}
	if r.young == nil {
		r.young = map[K]V{}
	}
	r.young[key] = v
}
