package names

import (
	"hash/maphash"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// hotShards keeps readers on several cores from one lock; a power of two.
const hotShards = 16

// hot holds bindings that were looked up lately, decoded, so that the names
// everybody asks for cost a map access. What it holds is never newer than the
// database and, once a Bind has returned, never older:
//
//	a reader notes its shard's generation, reads the database, and keeps what
//	it read only if the generation is still the same;
//	a writer commits, and then adds one to the generation and drops the name.
//
// A writer only drops, for two of them may get here in another order than the
// one they were committed in.
type hot struct {
	limit  int // entries per shard
	seed   maphash.Seed
	shards [hotShards]hotShard
}

type hotShard struct {
	mu         sync.RWMutex
	generation uint64                             // guarded by mu
	bindings   map[registry.Name]registry.Binding // guarded by mu
}

func newHot(entries int) *hot {
	return &hot{limit: max(entries/hotShards, 1), seed: maphash.MakeSeed()}
}

func (h *hot) shard(n registry.Name) *hotShard {
	return &h.shards[maphash.Comparable(h.seed, n)%hotShards]
}

// get returns n's binding, or the generation to give to keep.
func (s *hotShard) get(n registry.Name) (b registry.Binding, generation uint64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, ok = s.bindings[n]
	return b, s.generation, ok
}

func (s *hotShard) keep(n registry.Name, b registry.Binding, generation uint64, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation != generation {
		return
	}
	if s.bindings == nil {
		s.bindings = map[registry.Name]registry.Binding{}
	}
	for other := range s.bindings { // any one makes room: it is read again at the price of a look
		if len(s.bindings) < limit {
			break
		}
		delete(s.bindings, other)
	}
	s.bindings[n] = b
}

func (s *hotShard) drop(n registry.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	delete(s.bindings, n)
}

// dropAll forgets everything, after a change of many names.
func (h *hot) dropAll() {
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		s.generation++
		clear(s.bindings)
		s.mu.Unlock()
	}
}
