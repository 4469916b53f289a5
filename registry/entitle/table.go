package entitle

// An edit is one change of persistent tables and subjects, told apart by its
// address. What the running edit has made itself is changed in place; everything
// else is copied first, because a version that others read may have it.
type edit struct{ _ byte }

// A table is a persistent multimap from tags, which are hashes of what makes an
// entry found, to entries. Whoever looks something up compares the entries of its
// tag, so a table has no keys of its own. What add and remove return shares with
// the table before all that is the same; a table that others read does not change.
// The zero value is empty.
//
// It is a shallow tree of branches, which are small enough to stay in the
// processor's caches, with leaves whose tags are side by side in one line of
// memory: to find that there is no entry costs one access to memory proper, as a
// rule, and to find one two. Leaves that have become empty stay.
type table[V any] struct {
	root kid[V]
}

// A kid is a branch or a leaf; the zero kid is neither.
type kid[V any] struct {
	branch *branch[V]
	leaf   *leaf[V]
}

const (
	placeBits = 6 // of the tag, for each level of branches
	places    = 1 << placeBits
	// bottom is how many bits of the tag tell leaves apart.
	bottom = 30
	// leafMost makes what comes before the entries of a leaf one line of 64 bytes,
	// and a leaf of grants just fit in 1 KiB.
	leafMost = 11
)

type branch[V any] struct {
	edit *edit
	kids [places]kid[V] // a leaf may be in several places
}

// A leaf has the entries whose tags agree in the lowest depth bits.
type leaf[V any] struct {
	edit  *edit
	depth int32
	n     int32
	tags  [leafMost]uint32
	vals  [leafMost]V
	more  *leaf[V] // what there was no room for; only at the bottom
}

// A cursor goes over the entries of one tag.
type cursor[V any] struct {
	leaf *leaf[V]
	tag  uint32
	i    int
}

func (t *table[V]) at(tag uint32) cursor[V] {
	k := t.root
	for rest := tag; k.branch != nil; rest >>= placeBits {
		k = k.branch.kids[rest&(places-1)]
	}
	return cursor[V]{leaf: k.leaf, tag: tag}
}

// next gives nil after the last entry. What it gives must not be changed.
func (c *cursor[V]) next() *V {
	for c.leaf != nil {
		for c.i < int(c.leaf.n) {
			i := c.i
			c.i++
			if c.leaf.tags[i] == c.tag {
				return &c.leaf.vals[i]
			}
		}
		c.leaf, c.i = c.leaf.more, 0
	}
	return nil
}

// each gives all entries, in no order.
func (t *table[V]) each(f func(V)) { t.root.each(0, f) }

func (k kid[V]) each(depth int32, f func(V)) {
	for l := k.leaf; l != nil; l = l.more {
		for _, v := range l.vals[:l.n] {
			f(v)
		}
	}
	if k.branch == nil {
		return
	}
	for i, below := range k.branch.kids {
		// A leaf in several places is in the first of them with the bits that tell
		// the others apart being 0.
		if below.leaf == nil || i>>(below.leaf.depth-depth) == 0 {
			below.each(depth+placeBits, f)
		}
	}
}

// add makes one more entry.
func (t table[V]) add(e *edit, tag uint32, v V) table[V] {
	t.root = t.root.add(e, tag, v, 0)
	return t
}

// add is k, which is behind the lowest depth bits of its tags, with an entry more.
func (k kid[V]) add(e *edit, tag uint32, v V, depth int32) kid[V] {
	if k.branch == nil {
		l := k.leaf
		switch {
		case l == nil:
			l = &leaf[V]{edit: e, depth: depth}
		case l.n < leafMost:
			l = l.own(e)
		case depth >= bottom:
			l = &leaf[V]{edit: e, depth: depth, more: l}
		default:
			b := &branch[V]{edit: e}
			b.point(0, depth, l)
			return kid[V]{branch: b}.add(e, tag, v, depth)
		}
		l.put(tag, v)
		return kid[V]{leaf: l}
	}
	b := k.branch.own(e)
	i := tag >> depth & (places - 1)
	for b.kids[i].leaf != nil && b.kids[i].leaf.n == leafMost && b.kids[i].leaf.depth < depth+placeBits {
		b.split(e, i, depth)
	}
	if l := b.kids[i].leaf; l != nil && l.depth < depth+placeBits {
		l = l.own(e)
		l.put(tag, v)
		b.point(i, depth, l)
	} else {
		b.kids[i] = b.kids[i].add(e, tag, v, depth+placeBits)
	}
	return kid[V]{branch: b}
}

func (l *leaf[V]) put(tag uint32, v V) {
	l.tags[l.n], l.vals[l.n] = tag, v
	l.n++
}

// point puts a leaf in all places that it has: place i and those that agree with
// it in the bits that the leaf's entries agree in.
func (b *branch[V]) point(i uint32, depth int32, l *leaf[V]) {
	step := uint32(1) << (l.depth - depth)
	for i &= step - 1; i < places; i += step {
		b.kids[i] = kid[V]{leaf: l}
	}
}

// split makes two leaves of the one at place i, which has more places than that.
func (b *branch[V]) split(e *edit, i uint32, depth int32) {
	old := b.kids[i].leaf
	var halves [2]*leaf[V]
	for h := range halves {
		halves[h] = &leaf[V]{edit: e, depth: old.depth + 1}
	}
	for j, tag := range old.tags {
		halves[tag>>old.depth&1].put(tag, old.vals[j])
	}
	bit := uint32(1) << (old.depth - depth)
	b.point(i&^bit, depth, halves[0])
	b.point(i|bit, depth, halves[1])
}

func (b *branch[V]) own(e *edit) *branch[V] {
	if b.edit == e {
		return b
	}
	c := *b
	c.edit = e
	return &c
}

func (l *leaf[V]) own(e *edit) *leaf[V] {
	if l.edit == e {
		return l
	}
	c := *l
	c.edit = e
	return &c
}

// remove takes away one entry of a tag that is the one meant, which there must be.
func (t table[V]) remove(e *edit, tag uint32, meant func(*V) bool) table[V] {
	t.root = t.root.remove(e, tag, meant, 0)
	return t
}

func (k kid[V]) remove(e *edit, tag uint32, meant func(*V) bool, depth int32) kid[V] {
	if k.branch == nil {
		return kid[V]{leaf: k.leaf.remove(e, tag, meant)}
	}
	b := k.branch.own(e)
	i := tag >> depth & (places - 1)
	if l := b.kids[i].leaf; l != nil && l.depth < depth+placeBits {
		b.point(i, depth, l.remove(e, tag, meant))
	} else {
		b.kids[i] = b.kids[i].remove(e, tag, meant, depth+placeBits)
	}
	return kid[V]{branch: b}
}

func (l *leaf[V]) remove(e *edit, tag uint32, meant func(*V) bool) *leaf[V] {
	l = l.own(e)
	for i := range l.n {
		if l.tags[i] != tag || !meant(&l.vals[i]) {
			continue
		}
		var none V
		l.n--
		l.tags[i], l.vals[i] = l.tags[l.n], l.vals[l.n]
		l.vals[l.n] = none
		if l.n == 0 && l.more != nil {
			return l.more
		}
		return l
	}
	if l.more = l.more.remove(e, tag, meant); l.more.n == 0 {
		l.more = nil
	}
	return l
}

// is is what is meant by a pointer.
func is[V any](v *V) func(**V) bool { return func(x **V) bool { return *x == v } }
