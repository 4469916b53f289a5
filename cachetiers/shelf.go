package cachetiers

import (
	"encoding/hex"
	"hash/maphash"
	"iter"
	"math/bits"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

const (
	// smallBlob is the largest blob that counts as small on a disk. Requests
	// are for small ones, bytes are in large ones; each has an order of its own.
	smallBlob = 1 << 20
	// smallShare is the part of a disk that small blobs keep, whatever comes in
	// large ones: one in so many bytes. All packuments and tarballs that anyone
	// asks for are less than the layers of a few dozen images.
	smallShare = 10
	// diskUses is how many hits of a blob count, that is how often the hand
	// passes over it.
	diskUses = 3
)

// shelf is what a disk has and in which order it goes: the index, and the
// policy of eviction. It knows no files, so that a workload can be replayed on
// it, and is guarded by its owner's lock.
//
// The policy is S3-FIFO's (Yang et al., SOSP 2023) with SIEVE for its main
// queue, once for small blobs and once for large ones. A new blob enters a
// short first-in-first-out queue, its probation. What is hit there comes into
// the main order, the rest goes, and is remembered for a while by its hash
// alone: if it comes back it goes to the main order at once. So a scan of blobs
// that are read once passes through a tenth of the disk. Small blobs are not
// evicted while they take less than their share; beyond it the two orders give
// up what has gone unused longest.
//
// With a limit of 0 it is an index alone: nothing is ever a victim.
type shelf struct {
	limit  int64
	seed   maphash.Seed
	byHash map[uint64]*entry
	orders [2]probed[entry, *entry] // small, large
	now    uint32                   // blobs that came in so far
	ghosts []uint32                 // of blobs that left probation unused: the upper half of a hash, at its lower half
}

// entry is one committed file. A million of them take 80 MB, and 32 MB more if
// their digests are longer than SHA-256.
type entry struct {
	links[entry]                         // uses, queue, stamp and pending (in its place, but not yet for sure) are guarded by Disk.mu; kind is the digest's algorithm
	head         [32]byte                // of the digest
	tail         *[32]byte               // of a digest that is longer
	checked      atomic.Pointer[checked] // nil: not read since the start
}

// The algorithms of digests, as an entry's kind.
const (
	kindSHA256 uint8 = iota
	kindSHA384
	kindSHA512
	kindSHA1
	kinds
)

// algorithm gives a kind's name and the bytes of its digests.
func algorithm(kind uint8) (name string, bytes int) {
	switch kind {
	case kindSHA256:
		return "sha256", 32
	case kindSHA384:
		return "sha384", 48
	case kindSHA512:
		return "sha512", 64
	case kindSHA1:
		return "sha1", 20
	}
	return "", 0
}

// rawDigest is a digest in binary; what its algorithm leaves is zero.
type rawDigest struct {
	sum  [64]byte
	kind uint8
}

// rawOf is dg in binary; ok is false if it is not valid.
func rawOf(dg digest.Digest) (raw rawDigest, ok bool) {
	alg, hexes, _ := strings.Cut(string(dg), ":")
	for kind := range kinds {
		if name, _ := algorithm(kind); name == alg {
			return rawOfHex(kind, hexes)
		}
	}
	return raw, false
}

// rawOfHex is the digest of that kind with those hexadecimal digits.
func rawOfHex(kind uint8, hexes string) (raw rawDigest, ok bool) {
	_, n := algorithm(kind)
	if len(hexes) != 2*n {
		return raw, false
	}
	raw.kind = kind
	for i := range n {
		high, low := nibble(hexes[2*i]), nibble(hexes[2*i+1])
		if high > 15 || low > 15 {
			return rawDigest{}, false
		}
		raw.sum[i] = high<<4 | low
	}
	return raw, true
}

// nibble is the value of a digit; 16 if c is none. Capitals are none.
func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 16
}

func newEntry(raw *rawDigest, size int64) *entry {
	e := &entry{links: links[entry]{size: size, kind: raw.kind}, head: [32]byte(raw.sum[:32])}
	if _, n := algorithm(raw.kind); n > len(e.head) {
		tail := [32]byte(raw.sum[32:])
		e.tail = &tail
	}
	return e
}

// raw is e's digest in binary.
func (e *entry) raw() (raw rawDigest) {
	raw.kind = e.kind
	copy(raw.sum[:], e.head[:])
	if e.tail != nil {
		copy(raw.sum[32:], e.tail[:])
	}
	return raw
}

// digest is e's digest, put together anew.
func (e *entry) digest() digest.Digest {
	raw := e.raw()
	return raw.digest()
}

// digest is the digest as it is written.
func (raw *rawDigest) digest() digest.Digest {
	name, n := algorithm(raw.kind)
	return digest.Digest(name + ":" + hex.EncodeToString(raw.sum[:n]))
}

// spend implements node.
func (e *entry) spend() bool {
	if e.uses == 0 {
		return false
	}
	e.uses--
	return true
}

func newShelf(limit int64) *shelf {
	s := &shelf{limit: limit, seed: maphash.MakeSeed(), byHash: make(map[uint64]*entry)}
	if limit > 0 {
		s.ghosts = make([]uint32, 1<<10)
	}
	return s
}

func (s *shelf) hash(raw *rawDigest) uint64 { return maphash.Comparable(s.seed, *raw) }

// get is dg's entry, or nil.
func (s *shelf) get(dg digest.Digest) *entry {
	raw, ok := rawOf(dg)
	if !ok {
		return nil
	}
	return s.find(&raw)
}

func (s *shelf) find(raw *rawDigest) *entry {
	if e := s.byHash[s.hash(raw)]; e != nil && e.raw() == *raw {
		return e
	}
	return nil
}

// slot is the entry in e's place: one of the same digest, or, which will not
// happen in anyone's lifetime, one whose digest has the same 64-bit hash.
func (s *shelf) slot(e *entry) *entry {
	raw := e.raw()
	return s.byHash[s.hash(&raw)]
}

func (s *shelf) len() int { return len(s.byHash) }

// all gives the entries in no order. The owner may let go of its lock between
// two of them: then what comes or goes meanwhile may be missing or not.
func (s *shelf) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, e := range s.byHash {
			if !yield(e) {
				return
			}
		}
	}
}

// touch notes a hit.
func (s *shelf) touch(e *entry) { e.uses = min(e.uses+1, diskUses) }

func (s *shelf) order(e *entry) *probed[entry, *entry] {
	if e.size <= smallBlob {
		return &s.orders[0]
	}
	return &s.orders[1]
}

// push takes in a new entry; its slot must be free.
func (s *shelf) push(e *entry) {
	raw := e.raw()
	h := s.hash(&raw)
	s.now++
	e.stamp, e.queue = s.now, inTrial
	if s.limit == 0 {
		e.queue = inMain
	} else if g := s.ghost(h); *g == uint32(h>>32) {
		*g, e.queue = 0, inMain
	}
	s.order(e).push(e)
	s.byHash[h] = e
}

// pushOld takes in an entry of an earlier run, which has a stamp and a queue,
// behind all others in that; its slot must be free.
func (s *shelf) pushOld(e *entry) {
	raw := e.raw()
	s.order(e).pushOld(e)
	s.byHash[s.hash(&raw)] = e
}

// remove takes e out; it need not be a victim.
func (s *shelf) remove(e *entry) {
	raw := e.raw()
	delete(s.byHash, s.hash(&raw))
	s.order(e).remove(e)
}

// victim is the blob to evict next, which the caller then removes; nil if there
// is none.
func (s *shelf) victim() *entry {
	if s.limit == 0 {
		return nil
	}
	steps := maxSteps
	small, large := s.orders[0].candidate(s.now, &steps), s.orders[1].candidate(s.now, &steps)
	e := small
	switch kept := s.orders[0].bytes(); {
	case small == nil:
		e = large
	case large == nil:
	case kept <= s.limit/smallShare, s.now-large.stamp > s.now-small.stamp:
		e = large
	}
	if e != nil && e.queue == inTrial {
		raw := e.raw()
		h := s.hash(&raw)
		*s.ghost(h) = uint32(h >> 32)
	}
	return e
}

// ghost is where a hash is remembered. The table grows with the index and
// forgets everything then; in it a newer ghost takes an older one's place.
func (s *shelf) ghost(h uint64) *uint32 {
	if len(s.byHash) > len(s.ghosts) {
		s.ghosts = make([]uint32, 1<<bits.Len(uint(len(s.byHash))))
	}
	return &s.ghosts[h&uint64(len(s.ghosts)-1)]
}
