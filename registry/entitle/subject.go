package entitle

import (
	"slices"
	"unique"

	"github.com/tidwall/btree"
)

// A subject is whom grants are for: an account, a team or everyone. It is
// persistent, as tables are. Its grants are in the table of all of them; what it
// has is what tells a check where to look.
type subject struct {
	edit    *edit
	who     *who
	spaces  []reach
	grants  int
	denials int // how many of its grants are denials
	teams   int // how many teams have its UID: none, if it is no team or one that is gone
}

// A who is the UID of a subject. A subject and its grants have one and the same,
// so that to compare them costs no look at the text.
type who struct{ uid string }

// A reach is how long the literals of the grants in one space are, the shortest
// first; that of "ACTION *", which is for all spaces, is empty, as is the space. A
// length that no grant has any more stays for as long as the subject does: a check
// then looks for something that is not there, and fewer changes concern it.
type reach struct {
	space   unique.Handle[string]
	lengths []uint16
	// allowed is what the grants that are no denials allow, in order, for who asks
	// what there is.
	allowed *btree.BTreeG[allowed]
}

// An allowed is a pattern, and of how many grants.
type allowed struct {
	pattern string
	grants  int
}

// own is s, or an empty subject, for an edit to change.
func (s *subject) own(e *edit, uid string) *subject {
	switch {
	case s == nil:
		return &subject{edit: e, who: &who{uid}}
	case s.edit == e:
		return s
	}
	c := *s
	c.edit, c.spaces = e, slices.Clone(s.spaces)
	for i := range c.spaces {
		c.spaces[i].lengths = slices.Clone(c.spaces[i].lengths)
		c.spaces[i].allowed = c.spaces[i].allowed.IsoCopy()
	}
	return &c
}

// empty reports whether it need not be kept.
func (s *subject) empty() bool { return s.grants == 0 && s.teams == 0 }

// count adds g, of a pattern, or takes it away, and reports whether there is a length that was
// not there before. s must be the edit's own.
func (s *subject) count(g *grant, pattern string, by int) (other bool) {
	s.grants += by
	if g.deny {
		s.denials += by
	}
	i := slices.IndexFunc(s.spaces, func(x reach) bool { return x.space == g.space })
	if i < 0 {
		i = len(s.spaces)
		less := func(a, b allowed) bool { return a.pattern < b.pattern }
		all := btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
		s.spaces = append(s.spaces, reach{space: g.space, allowed: all})
	}
	if !g.deny {
		s.spaces[i].allow(pattern, by)
	}
	l := &s.spaces[i].lengths
	j, found := slices.BinarySearch(*l, g.length)
	if !found {
		*l = slices.Insert(*l, j, g.length)
	}
	return !found
}

func (r *reach) allow(pattern string, by int) {
	a, _ := r.allowed.Get(allowed{pattern: pattern})
	if a.grants += by; a.grants > 0 {
		r.allowed.Set(allowed{pattern, a.grants})
	} else {
		r.allowed.Delete(allowed{pattern: pattern})
	}
}
