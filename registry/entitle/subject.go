package entitle

import (
	"slices"
	"sync/atomic"
	"unique"

	"github.com/weir-registry/weir/registry"
)

// A subject is whom grants are for: an account, a team or everyone. It is
// persistent, as tries are; nil is one without grants.
type subject struct {
	all     *rule // of "ACTION *"
	spaces  []space
	grants  int
	denials int // how many of its grants are denials
	teams   int // how many teams have its UID: none, if it is no team or one that is gone
}

type space struct {
	name string
	root *node
	list *atomic.Pointer[list] // of root's rules, once somebody has needed it
}

// compact is the list of a space's rules.
func (s *space) compact() *list {
	if l := s.list.Load(); l != nil {
		return l
	}
	l := newList(s.root)
	s.list.Store(l)
	return l
}

// tally adds up what matches c.
func (s *subject) tally(t *tally, c *registry.Call, level int) {
	if s.all != nil {
		t.add(s.all, level)
	}
	for i := range s.spaces {
		if s.spaces[i].name == c.Name.Space {
			s.spaces[i].root.tally(t, c.Name.Repo, level)
			return
		}
	}
}

// clone is a shallow copy. Unlike nodes, subjects are copied for each change.
func (s *subject) clone() *subject {
	if s == nil {
		return &subject{}
	}
	c := *s
	c.spaces = slices.Clone(s.spaces)
	return &c
}

// empty reports whether it need not be kept.
func (s *subject) empty() bool { return s.all == nil && len(s.spaces) == 0 && s.teams == 0 }

func (s *subject) with(e *edit, g *grant) *subject {
	s = s.clone()
	s.grants++
	if g.deny {
		s.denials++
	}
	if g.right.Space == "" {
		s.all = s.all.with(e, g)
		return s
	}
	i := s.find(g.right.Space)
	if i < 0 {
		i = len(s.spaces)
		s.spaces = append(s.spaces, space{name: unique.Make(g.right.Space).Value()})
	}
	s.spaces[i].root = s.spaces[i].root.with(e, g)
	s.spaces[i].list = new(atomic.Pointer[list])
	return s
}

// without is s without g, which it has.
func (s *subject) without(e *edit, g *grant) *subject {
	s = s.clone()
	s.grants--
	if g.deny {
		s.denials--
	}
	if g.right.Space == "" {
		s.all = s.all.without(e, g)
		return s
	}
	i := s.find(g.right.Space)
	if root := s.spaces[i].root.without(e, g); root != nil {
		s.spaces[i].root = root
		s.spaces[i].list = new(atomic.Pointer[list])
	} else {
		s.spaces = slices.Delete(s.spaces, i, i+1)
	}
	return s
}

func (s *subject) find(name string) int {
	return slices.IndexFunc(s.spaces, func(x space) bool { return x.name == name })
}
