package entitle

import (
	"slices"
	"strings"
)

// An edit is one change of persistent maps and tries, told apart by its address.
// A node that the running edit has made itself is changed in place; every other
// one is copied first, because a version that others read may have it.
type edit struct{ _ byte }

// A rule is what is granted and denied by the same pattern to the same account
// or team.
type rule struct {
	edit *edit
	// allow and deny say, for each level of action, until when; 0 is not at all.
	// They are the sums of grants: an allowance for push is one for pull too, and
	// a denial of pulling one for all.
	allow, deny [3]int64
	grants      []*grant
	rest        pattern // what is behind the literal prefix, for general rules
}

// sum adds g to what the rule says.
func (r *rule) sum(g *grant) {
	if g.deny {
		for l := int(g.level); l < len(r.deny); l++ {
			r.deny[l] = max(r.deny[l], g.until)
		}
		return
	}
	for l := 0; l <= int(g.level); l++ {
		r.allow[l] = max(r.allow[l], g.until)
	}
}

func (r *rule) with(e *edit, g *grant) *rule {
	switch {
	case r == nil:
		r = &rule{edit: e}
	case r.edit != e:
		c := *r
		c.edit, c.grants = e, slices.Clone(r.grants)
		r = &c
	}
	r.grants = append(r.grants, g)
	r.sum(g)
	return r
}

// without is nil if nothing is left.
func (r *rule) without(e *edit, g *grant) *rule {
	if r == nil {
		return nil
	}
	c := &rule{edit: e, rest: r.rest}
	for _, other := range r.grants {
		if other != g {
			c.grants = append(c.grants, other)
			c.sum(other)
		}
	}
	if len(c.grants) == 0 {
		return nil
	}
	return c
}

// A tally is until when something is allowed and denied.
type tally struct{ allow, deny int64 }

func (t *tally) add(r *rule, level int) {
	t.allow = max(t.allow, r.allow[level])
	t.deny = max(t.deny, r.deny[level])
}

// A node of a trie over the literal beginnings of patterns. Nodes with nothing
// filed at them and a single child do not exist, but for the root.
type node struct {
	// What every check looks at comes first, so that it is close together.
	label  string // the bytes between the parent and this node; never empty but for the root
	heads  string // the first bytes of the children's labels, in their order
	kids   []*node
	prefix *rule   // of the pattern that goes on with "*" alone
	more   []*rule // of patterns that go on with "*" and other things, one for each grant
	exact  *rule   // of the pattern that ends here
	edit   *edit
}

// tally adds up what matches s. It costs len(s), and one comparison for each
// general pattern whose literal beginning s has.
func (n *node) tally(t *tally, s string, level int) {
	for {
		if n.prefix != nil {
			t.add(n.prefix, level)
		}
		for _, r := range n.more {
			if r.rest.matches(s) {
				t.add(r, level)
			}
		}
		if s == "" {
			if n.exact != nil {
				t.add(n.exact, level)
			}
			return
		}
		i := strings.IndexByte(n.heads, s[0])
		if i < 0 {
			return
		}
		n = n.kids[i]
		if !strings.HasPrefix(s, n.label) {
			return
		}
		s = s[len(n.label):]
	}
}

func (n *node) own(e *edit) *node {
	if n.edit == e {
		return n
	}
	c := *n
	c.edit, c.kids, c.more = e, slices.Clone(n.kids), slices.Clone(n.more)
	return &c
}

// with is the trie with g filed in it; a nil trie is an empty one.
func (n *node) with(e *edit, g *grant) *node {
	if n == nil {
		n = &node{edit: e}
	}
	root := n.own(e)
	literal, rest, star := strings.Cut(g.right.Pattern, "*")
	at := root.grow(e, literal)
	switch {
	case !star:
		at.exact = at.exact.with(e, g)
	case strings.Trim(rest, "*") == "":
		at.prefix = at.prefix.with(e, g)
	default:
		r := (*rule)(nil).with(e, g)
		r.rest = compile("*" + rest)
		at.more = append(at.more, r)
	}
	return root
}

// grow gives the node below n that is reached by s, all nodes on the way to it
// owned by e, as n is.
func (n *node) grow(e *edit, s string) *node {
	for s != "" {
		i := strings.IndexByte(n.heads, s[0])
		if i < 0 {
			leaf := &node{edit: e, label: s}
			n.heads += s[:1]
			n.kids = append(n.kids, leaf)
			return leaf
		}
		kid := n.kids[i].own(e)
		p := common(kid.label, s)
		if p < len(kid.label) {
			mid := &node{edit: e, label: kid.label[:p], heads: kid.label[p : p+1], kids: []*node{kid}}
			kid.label = kid.label[p:]
			kid = mid
		}
		n.kids[i] = kid
		n, s = kid, s[p:]
	}
	return n
}

func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// without is the trie without g, which is in it; nil if nothing is left.
func (n *node) without(e *edit, g *grant) *node {
	literal, rest, star := strings.Cut(g.right.Pattern, "*")
	return n.prune(e, literal, func(at *node) {
		switch {
		case !star:
			at.exact = at.exact.without(e, g)
		case strings.Trim(rest, "*") == "":
			at.prefix = at.prefix.without(e, g)
		default:
			at.more = slices.DeleteFunc(at.more, func(r *rule) bool { return r.grants[0] == g })
		}
	})
}

// prune has take change the node that s leads to, and removes what has become
// of no use on the way there.
func (n *node) prune(e *edit, s string, take func(*node)) *node {
	n = n.own(e)
	if s == "" {
		take(n)
	} else if i := strings.IndexByte(n.heads, s[0]); i >= 0 && strings.HasPrefix(s, n.kids[i].label) {
		kid := n.kids[i].prune(e, s[len(n.kids[i].label):], take)
		if kid != nil {
			n.kids[i] = kid
		} else {
			n.heads = n.heads[:i] + n.heads[i+1:]
			n.kids = slices.Delete(n.kids, i, i+1)
		}
	}
	switch {
	case n.exact != nil || n.prefix != nil || len(n.more) > 0:
		return n
	case len(n.kids) == 0:
		return nil
	case len(n.kids) == 1 && n.label != "":
		kid := n.kids[0].own(e)
		kid.label = n.label + kid.label
		return kid
	}
	return n
}
