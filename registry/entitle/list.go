package entitle

import "math/bits"

// A list is the rules of a trie by the hash of their literal beginnings, in an
// open-addressed table, with the lengths that these have. A trie is a walk from
// one place in memory to the next, each of which must come before the next is
// known; where to look in a list is known from the name alone, and it is small.
// It does not change.
type list struct {
	lengths lengths
	hashes  []uint32 // 0: free
	index   []uint16 // for each hash, which of filed
	filed   []filed
}

type filed struct {
	literal string
	rule    *rule
	kind    uint8
}

const (
	filedExact = iota
	filedPrefix
	filedMore
)

// lengths are a set of lengths of literals.
type lengths struct {
	set     [maxRight/64 + 1]uint64
	longest int
}

func (l *lengths) has(n int) bool { return l.set[n>>6]>>(n&63)&1 != 0 }

func (l *lengths) join(o *lengths) {
	for i := range l.set {
		l.set[i] |= o.set[i]
	}
	l.longest = max(l.longest, o.longest)
}

// FNV-1a, in 32 bits. Who makes many literals fall together makes a check look
// at that many hashes more; listMost bounds it.
const (
	fnvBasis = 2166136261
	fnvPrime = 16777619
)

func hashOf(s string) uint32 {
	h := uint32(fnvBasis)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * fnvPrime
	}
	return h
}

// newList is of all rules below root.
func newList(root *node) *list {
	l := &list{}
	root.file(l, 0)
	n := 1 << bits.Len(uint(2*len(l.filed)))
	l.hashes, l.index = make([]uint32, n), make([]uint16, n)
	for i := range l.filed {
		literal := l.filed[i].literal
		l.lengths.set[len(literal)>>6] |= 1 << (len(literal) & 63)
		l.lengths.longest = max(l.lengths.longest, len(literal))
		h := hashOf(literal) | 1
		at := l.place(h)
		for l.hashes[at] != 0 {
			at = l.next(at)
		}
		l.hashes[at], l.index[at] = h, uint16(i)
	}
	return l
}

// file files all rules of a trie, the root's label ending after n bytes of their
// literals.
func (n *node) file(l *list, length int) {
	file := func(r *rule, kind uint8) {
		if r != nil {
			l.filed = append(l.filed, filed{r.grants[0].right.Pattern[:length], r, kind})
		}
	}
	file(n.exact, filedExact)
	file(n.prefix, filedPrefix)
	for _, r := range n.more {
		file(r, filedMore)
	}
	for _, kid := range n.kids {
		kid.file(l, length+len(kid.label))
	}
}

// place is where to begin looking for a hash, next where to go on.
func (l *list) place(h uint32) int { return int((h^h>>15)*0x9e3779b1>>7) & (len(l.hashes) - 1) }

func (l *list) next(at int) int { return (at + 1) & (len(l.hashes) - 1) }

// probe adds up the rules whose literal is the first n bytes of s, which have
// the hash h.
func (l *list) probe(t *tally, h uint32, s string, n, level int) {
	h |= 1
	for at := l.place(h); l.hashes[at] != 0; at = l.next(at) {
		if l.hashes[at] != h {
			continue
		}
		f := &l.filed[l.index[at]]
		if f.literal != s[:n] {
			continue
		}
		switch f.kind {
		case filedExact:
			if n < len(s) {
				continue
			}
		case filedMore:
			if !f.rule.rest.matches(s[n:]) {
				continue
			}
		}
		t.add(f.rule, level)
	}
}
