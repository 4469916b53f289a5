package entitle

import "sync/atomic"

// A filter has a hash of each pair of a subject and a literal that something is
// granted under, so that a check looks for grants where there are some, and
// hardly elsewhere: it has about two bytes for each pair, and much of it stays in
// the processor's caches, as the table of grants does not. It says yes for less than
// one in twenty of the pairs that are not there.
//
// It is the one thing that versions share which changes: bits are set, while
// checks go on, and never taken back. So it has whatever any version has, and
// perhaps more.
type filter struct {
	words []atomic.Uint64
	room  int // for how many pairs more; only for changes
}

// perWord is how many pairs there are to each word, at most.
const perWord = 8

// newFilter has room for n pairs and as many again.
func newFilter(n int) *filter {
	size := 64
	for size*perWord < 2*n {
		size *= 2
	}
	return &filter{words: make([]atomic.Uint64, size), room: size * perWord}
}

// bitsOf is what a hash sets in its word, of which the bits from 18 on choose
// which it is.
func bitsOf(h uint64) uint64 { return 1<<(h&63) | 1<<(h>>6&63) | 1<<(h>>12&63) }

func (f *filter) has(h uint64) bool {
	b := bitsOf(h)
	return f.words[h>>18&uint64(len(f.words)-1)].Load()&b == b
}

func (f *filter) add(h uint64) {
	b := bitsOf(h)
	if f.words[h>>18&uint64(len(f.words)-1)].Or(b)&b != b {
		f.room--
	}
}
