package cachetiers

import (
	"math/bits"
	"sync/atomic"
)

const (
	// sizeClasses are the orders of bySize: up to 256 bytes, 512, 1 KiB, ….
	sizeClasses = 32
	// memoryUses is how many hits of a blob in memory count.
	memoryUses = 7
)

// item is a blob in memory.
type item struct {
	links[item]
	key  string
	data []byte
	hits atomic.Uint32 // what counts of them; a hit holds no lock of the order
}

// touch notes a hit. Of two at once one may be lost.
func (i *item) touch() {
	if n := i.hits.Load(); n < memoryUses {
		i.hits.CompareAndSwap(n, n+1)
	}
}

// spend implements node.
func (i *item) spend() bool {
	for {
		n := i.hits.Load()
		if n == 0 {
			return false
		}
		if i.hits.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// bySize is an order of eviction for hits by objects: the room that a large
// blob takes would hold many small ones, so it must be asked for as much more
// often. Blobs of about one size have an order of their own; of the candidates
// of all of them goes the one whose size, times how long it has gone unused, is
// the largest. It is guarded by its owner's lock.
type bySize struct {
	classes [sizeClasses]probed[item, *item]
	now     uint32 // items that came in so far
}

func classOf(size int64) int {
	return min(bits.Len64(uint64(size-1)>>8), sizeClasses-1)
}

func (o *bySize) push(i *item) {
	o.now++
	i.stamp = o.now
	o.classes[classOf(i.size)].push(i)
}

func (o *bySize) remove(i *item) { o.classes[classOf(i.size)].remove(i) }

// victim is what is to go next; nil if there is nothing.
func (o *bySize) victim() (worst *item) {
	steps, most := maxSteps, uint64(0)
	for c := range o.classes {
		i := o.classes[c].candidate(o.now, &steps)
		if i == nil {
			continue
		}
		if cost := (uint64(o.now-i.stamp) + 1) << c; cost > most {
			worst, most = i, cost
		}
	}
	return worst
}
