package entitle

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/weir-registry/weir/registry"
)

// A member is an account, and what its and its teams' grants were found to be.
type member struct {
	registry.Account
	matcher atomic.Pointer[matcher]
}

// slots is how many counters tell which subjects have changed. A change copies
// them; and if two UIDs share one, a change of one has the matchers of the
// other's members made again for nothing.
const slots = 1024

// A matcher has all that a check of one account's grants looks at, so that it
// need not find each team. It is made when it is first needed, and holds for
// every version in which the account's and its teams' grants are the same.
type matcher struct {
	slots   []uint16
	touched []uint64 // for each slot, what it was when the matcher was made
	all     []*rule
	spaces  []roots
}

// roots are the rules of one space: those of small subjects in lists, of large
// ones, whose lists would take too long to make after each change, in tries.
type roots struct {
	space   string
	lists   []*list
	lengths lengths // of all the lists
	nodes   []*node
}

// listMost is how many grants a subject may have to be small.
const listMost = 2048

func (v *view) slot(uid string) uint16 { return uint16(maphash.String(v.subjects.seed, uid) % slots) }

// compiled is the matcher of an account of v. It allocates only if it has to
// make one.
func (v *view) compiled(a *member) *matcher {
	if m := a.matcher.Load(); m != nil && m.holds(v) {
		return m
	}
	m := &matcher{}
	m.add(v, a.UID, false)
	for _, uid := range a.Teams {
		m.add(v, uid, true)
	}
	a.matcher.Store(m)
	return m
}

// holds reports whether nothing that the matcher was made of is different in v,
// be v earlier or later than the version it was made for.
func (m *matcher) holds(v *view) bool {
	for i, slot := range m.slots {
		if v.touched[slot] != m.touched[i] {
			return false
		}
	}
	return true
}

// add takes what is granted to a subject, which counts as a team only if there
// is one.
func (m *matcher) add(v *view, uid string, team bool) {
	slot := v.slot(uid)
	m.slots, m.touched = append(m.slots, slot), append(m.touched, v.touched[slot])
	s, ok := v.subjects.get(uid)
	if !ok || team && s.teams == 0 {
		return
	}
	if s.all != nil {
		m.all = append(m.all, s.all)
	}
	for _, sp := range s.spaces {
		i := 0
		for i < len(m.spaces) && m.spaces[i].space != sp.name {
			i++
		}
		if i == len(m.spaces) {
			m.spaces = append(m.spaces, roots{space: sp.name})
		}
		if at := &m.spaces[i]; s.grants <= listMost {
			l := sp.compact()
			at.lists = append(at.lists, l)
			at.lengths.join(&l.lengths)
		} else {
			at.nodes = append(at.nodes, sp.root)
		}
	}
}

// tally adds up what matches c.
func (m *matcher) tally(t *tally, c *registry.Call, level int) {
	for _, r := range m.all {
		t.add(r, level)
	}
	for i := range m.spaces {
		if m.spaces[i].space != c.Name.Space {
			continue
		}
		m.spaces[i].tally(t, c.Name.Repo, level)
	}
}

func (r *roots) tally(t *tally, s string, level int) {
	for _, n := range r.nodes {
		n.tally(t, s, level)
	}
	if len(r.lists) == 0 {
		return
	}
	h := uint32(fnvBasis)
	for i := 0; i <= len(s) && i <= r.lengths.longest; i++ {
		if r.lengths.has(i) {
			for _, l := range r.lists {
				if l.lengths.has(i) {
					l.probe(t, h, s, i, level)
				}
			}
		}
		if i < len(s) {
			h = (h ^ uint32(s[i])) * fnvPrime
		}
	}
}
