package entitle

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// A table is a persistent map from strings: a trie over five bits of the key's
// hash at a time. What set and remove return shares with the table before all
// that is the same; a table that others read does not change. The zero value,
// with a seed, is empty.
type table[V any] struct {
	seed maphash.Seed
	root *bucket[V]
}

type bucket[V any] struct {
	edit *edit
	// data and deep say which of the 32 places have an entry, or another bucket;
	// entries and deeper have those, in the order of the places. At the bottom,
	// where the hash is used up, data is not used: entries is a plain list.
	data, deep uint32
	entries    []entry[V]
	deeper     []*bucket[V]
}

type entry[V any] struct {
	key string
	val V
}

const (
	places = 5  // bits of the hash for each level
	bottom = 60 // the shift at which they are used up
)

// get allocates nothing.
func (t table[V]) get(key string) (val V, ok bool) {
	b := t.root
	if b == nil {
		return val, false
	}
	h := maphash.String(t.seed, key)
	for shift := 0; shift < bottom; shift += places {
		bit := uint32(1) << (h >> shift & 31)
		if b.deep&bit != 0 {
			b = b.deeper[bits.OnesCount32(b.deep&(bit-1))]
			continue
		}
		if b.data&bit != 0 {
			if e := &b.entries[bits.OnesCount32(b.data&(bit-1))]; e.key == key {
				return e.val, true
			}
		}
		return val, false
	}
	for i := range b.entries {
		if e := &b.entries[i]; e.key == key {
			return e.val, true
		}
	}
	return val, false
}

func (t table[V]) set(e *edit, key string, val V) table[V] {
	root := t.root
	if root == nil {
		root = &bucket[V]{edit: e}
	}
	t.root = root.set(e, t.seed, entry[V]{key, val}, maphash.String(t.seed, key), 0)
	return t
}

func (t table[V]) remove(e *edit, key string) table[V] {
	if t.root != nil {
		t.root = t.root.remove(e, key, maphash.String(t.seed, key), 0)
	}
	return t
}

func (b *bucket[V]) own(e *edit) *bucket[V] {
	if b.edit == e {
		return b
	}
	return &bucket[V]{e, b.data, b.deep, slices.Clone(b.entries), slices.Clone(b.deeper)}
}

func (b *bucket[V]) set(e *edit, seed maphash.Seed, x entry[V], h uint64, shift int) *bucket[V] {
	b = b.own(e)
	if shift >= bottom {
		for i := range b.entries {
			if b.entries[i].key == x.key {
				b.entries[i] = x
				return b
			}
		}
		b.entries = append(b.entries, x)
		return b
	}
	bit := uint32(1) << (h >> shift & 31)
	i, d := bits.OnesCount32(b.data&(bit-1)), bits.OnesCount32(b.deep&(bit-1))
	switch {
	case b.deep&bit != 0:
		b.deeper[d] = b.deeper[d].set(e, seed, x, h, shift+places)
	case b.data&bit == 0:
		b.data |= bit
		b.entries = slices.Insert(b.entries, i, x)
	case b.entries[i].key == x.key:
		b.entries[i] = x
	default: // two in one place: both go one level down
		other := b.entries[i]
		below := &bucket[V]{edit: e}
		below = below.set(e, seed, other, maphash.String(seed, other.key), shift+places)
		below = below.set(e, seed, x, h, shift+places)
		b.data &^= bit
		b.entries = slices.Delete(b.entries, i, i+1)
		b.deep |= bit
		b.deeper = slices.Insert(b.deeper, d, below)
	}
	return b
}

// remove is nil if nothing is left.
func (b *bucket[V]) remove(e *edit, key string, h uint64, shift int) *bucket[V] {
	b = b.own(e)
	bit := uint32(1) << (h >> shift & 31)
	i, d := bits.OnesCount32(b.data&(bit-1)), bits.OnesCount32(b.deep&(bit-1))
	switch {
	case shift >= bottom:
		b.entries = slices.DeleteFunc(b.entries, func(x entry[V]) bool { return x.key == key })
	case b.deep&bit != 0:
		if below := b.deeper[d].remove(e, key, h, shift+places); below != nil {
			b.deeper[d] = below
		} else {
			b.deep &^= bit
			b.deeper = slices.Delete(b.deeper, d, d+1)
		}
	case b.data&bit != 0 && b.entries[i].key == key:
		b.data &^= bit
		b.entries = slices.Delete(b.entries, i, i+1)
	}
	if len(b.entries) == 0 && len(b.deeper) == 0 {
		return nil
	}
	return b
}
