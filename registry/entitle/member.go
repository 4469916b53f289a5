package entitle

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
	"unique"

	"github.com/weir-registry/weir/registry"
)

// A member is an account, and where its and its teams' grants were found to be.
type member struct {
	registry.Account
	matcher atomic.Pointer[matcher]
}

// slots is how many counters tell which subjects are to be looked for elsewhere
// than before. A change of that copies them; and if two UIDs share one, a change
// of one has the matchers of the other's members made again for nothing.
const slots = 1024

// A matcher says where a check finds an account's grants: which subjects these
// are to, and how long their literals are. It is made when it is first needed,
// and holds for every version in which that is the same: a grant more or less
// mostly changes nothing about it. It is one piece of memory for an account in up
// to seven teams.
type matcher struct {
	subjects []ref
	spaces   []span
	dead     []stamp // of the teams that there are not

	firstSubjects [8]ref
	firstSpaces   [2]span
	firstLengths  [16]uint16
}

// A ref is a subject as a matcher has it.
type ref struct {
	who  *who
	salt uint64
	stamp
}

// A stamp is what a slot was when the matcher was made.
type stamp struct {
	touched uint64
	slot    uint64
}

// A span is how long the literals in one space are.
type span struct {
	space   unique.Handle[string]
	name    string // of the space
	lengths []uint16
}

func (v *view) slot(uid string) uint64 { return maphash.String(v.seed, uid) % slots }

// compiled is the matcher of an account of v. It allocates only if it has to
// make one.
func (v *view) compiled(a *member) *matcher {
	m := a.matcher.Load()
	if m == nil || !m.holds(v) {
		m = v.match(a.UID, a.Teams)
		a.matcher.Store(m)
	}
	return m
}

// holds reports whether nothing that the matcher was made of is different in v,
// be v earlier or later than the version it was made for.
func (m *matcher) holds(v *view) bool {
	for i := range m.subjects {
		if s := &m.subjects[i].stamp; v.touched[s.slot%slots] != s.touched {
			return false
		}
	}
	for _, s := range m.dead {
		if v.touched[s.slot%slots] != s.touched {
			return false
		}
	}
	return true
}

// match makes the matcher for a UID and its teams', which count only if there
// are such teams.
func (v *view) match(uid string, teams []string) *matcher {
	m := &matcher{}
	m.subjects, m.spaces = m.firstSubjects[:0], m.firstSpaces[:0]
	m.add(v, uid, false)
	for _, uid := range teams {
		m.add(v, uid, true)
	}
	near := m.firstLengths[:0]
	for i := range m.spaces {
		if l := &m.spaces[i].lengths; len(*l) <= cap(near)-len(near) {
			n := len(near)
			near = append(near, *l...)
			*l = near[n:len(near):len(near)]
		}
	}
	return m
}

func (m *matcher) add(v *view, uid string, team bool) {
	s := v.subject(uid)
	stamp := stamp{v.touched[v.slot(uid)], v.slot(uid)}
	if s == nil || team && s.teams == 0 {
		m.dead = append(m.dead, stamp)
		return
	}
	if slices.ContainsFunc(m.subjects, func(r ref) bool { return r.who == s.who }) {
		return
	}
	m.subjects = append(m.subjects, ref{s.who, v.salt(uid), stamp})
	for _, sp := range s.spaces {
		i := slices.IndexFunc(m.spaces, func(x span) bool { return x.space == sp.space })
		if i < 0 {
			i = len(m.spaces)
			m.spaces = append(m.spaces, span{space: sp.space, name: sp.space.Value()})
		}
		at := &m.spaces[i]
		for _, l := range sp.lengths {
			if j, found := slices.BinarySearch(at.lengths, l); !found {
				at.lengths = slices.Insert(at.lengths, j, l)
			}
		}
	}
}

// tally adds up what is granted to the matcher's subjects and matches c.
func (v *view) tally(t *tally, m *matcher, c *registry.Call, level int8) {
	for i := range m.spaces {
		switch sp := &m.spaces[i]; sp.name {
		case "":
			v.probe(t, m, sp, "", level)
		case c.Name.Space:
			v.probe(t, m, sp, c.Name.Repo, level)
		}
	}
}

func (v *view) probe(t *tally, m *matcher, sp *span, repo string, level int8) {
	p := prefixes{s: repo, state: v.salt(sp.name)}
	for _, n := range sp.lengths {
		n := int(n)
		if n > len(repo) {
			return
		}
		h := p.hash(n)
		for i := range m.subjects {
			r := &m.subjects[i]
			key := fold(h^r.salt, fold3)
			if !v.filter.has(key) {
				continue
			}
			at := v.grants.at(tagOf(key))
			for g := at.next(); g != nil; g = at.next() {
				if g.who == r.who && g.space == sp.space && g.matches(repo) {
					t.add(g, level)
				}
			}
		}
	}
}

// A tally is until when something is allowed and denied.
type tally struct{ allow, deny int64 }

// add adds a grant that matches. An allowance for push is one for pull too, and
// a denial of pulling one for all.
func (t *tally) add(g *grant, level int8) {
	switch {
	case g.deny && g.level <= level:
		t.deny = max(t.deny, g.until)
	case !g.deny && g.level >= level:
		t.allow = max(t.allow, g.until)
	}
}
