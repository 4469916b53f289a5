package entitle

import (
	"strings"

	"github.com/weir-registry/weir/registry"
)

// some decides a call about a space as a whole: whether there can be a
// repository in it with which the call would be admitted.
//
// It looks for one. What a pattern matches is stood for by an instance of it,
// with a byte in each "*"'s place that no pattern contains: what else matches the
// instance matches all that the pattern does, and a denial that does not leaves
// something over. So each instance is decided as any name is. The answer can be
// no although there is a repository only where denials and patterns with more than
// one "*" meet, and yes although there is none only where several denials
// together cover what none of them does alone.
func (v *view) some(c *registry.Call, now int64) verdict {
	s := &search{v: v, call: *c, now: now, found: verdict{outcome: ungranted}}
	s.call.Some = false
	if d := s.decide("*"); d.outcome < denied {
		return d // admitted to everything, or nobody to admit
	}
	if c.Who.Only != nil {
		for _, o := range c.Who.Only {
			if o.Space == c.Name.Space && s.decide(o.Repo).outcome == admitted {
				break
			}
		}
	} else {
		s.rights()
	}
	if d := s.found; d.outcome == admitted || c.Who.Only == nil && c.Who.Token == "" {
		return d
	}
	// Would it be admitted if it were not for the token?
	wider := *c
	wider.Who.Only, wider.Who.Token = nil, ""
	switch {
	case v.some(&wider, now).outcome != admitted:
		return verdict{outcome: ungranted}
	case c.Who.Only != nil:
		return verdict{outcome: bounded}
	}
	return verdict{outcome: narrowed}
}

// A search is for a name with which a call is admitted.
type search struct {
	v     *view
	call  registry.Call
	now   int64
	found verdict
}

// decide decides the call for an instance of a pattern, and notes an admission.
func (s *search) decide(pattern string) verdict {
	s.call.Name.Repo = strings.ReplaceAll(pattern, "*", "\x00")
	d := s.v.decide(&s.call, s.now)
	if d.outcome == admitted {
		s.found = d
	}
	return d
}

// rights looks within each of the token's rights, or everywhere if it has none.
func (s *search) rights() {
	who := &s.call.Who
	var mine []*subject
	if who.Name != "" {
		a, tok, bad := s.v.identify(who, s.now)
		if bad != admitted {
			return
		}
		for _, uid := range append([]string{a.UID}, a.Teams...) {
			if sub, ok := s.v.subjects.get(uid); ok && (uid == a.UID || sub.teams > 0) {
				mine = append(mine, sub)
			}
		}
		mine = append(mine, s.v.anyone, s.v.configured)
		if tok != nil && tok.rights != nil {
			tok.rights.each(s.call.Name.Space, "*", func(right string) bool { return s.within(right, mine) }, nil)
			return
		}
	} else {
		mine = append(mine, s.v.anyone, s.v.configured)
	}
	s.within("*", mine)
}

// within looks for a name that a right and a grant to one of some subjects have
// in common, and reports whether there is one.
func (s *search) within(right string, mine []*subject) bool {
	for _, sub := range mine {
		if sub == nil {
			continue
		}
		sub.each(s.call.Name.Space, right,
			func(granted string) bool { return s.decide(overlap(granted, right)).outcome == admitted },
			func(literal string) bool { return s.decide(literal+"*").outcome == denied })
		if s.found.outcome == admitted {
			return true
		}
	}
	return false
}

// overlap is a pattern of what two patterns both match, if there is such a thing.
func overlap(a, b string) string {
	p, r := strings.Split(a, "*"), strings.Split(b, "*")
	switch {
	case len(p) == 1:
		return a
	case len(r) == 1:
		return b
	}
	longer := func(x, y string) string {
		if len(x) > len(y) {
			return x
		}
		return y
	}
	lastP, lastR := len(p)-1, len(r)-1
	parts := append([]string{longer(p[0], r[0])}, p[1:lastP]...)
	parts = append(append(parts, r[1:lastR]...), longer(p[lastP], r[lastR]))
	return strings.Join(parts, "*")
}

// each calls take with the patterns of what is allowed in a space, of those that
// can have a name in common with another pattern, until it says that it is enough.
// skip says of a literal beginning that what goes on from it is of no interest;
// nil: all is.
func (s *subject) each(space, other string, take, skip func(string) bool) {
	if s.all != nil && s.all.allow[0] > 0 && take("*") {
		return
	}
	if i := s.find(space); i >= 0 {
		literal, _, _ := strings.Cut(other, "*")
		s.spaces[i].root.each("", literal, take, skip)
	}
}

// each is the subject's, for the trie that begins with the literal at and goes on
// with n; rest is what is left of the other pattern's literal. It reports whether it is
// enough.
func (n *node) each(at, rest string, take, skip func(string) bool) bool {
	for _, r := range append([]*rule{n.exact, n.prefix}, n.more...) {
		if r != nil && r.allow[0] > 0 && take(r.grants[0].right.Pattern) {
			return true
		}
	}
	if len(n.kids) == 0 || skip != nil && at != "" && skip(at) {
		return false
	}
	for _, kid := range n.kids {
		p := common(kid.label, rest)
		if p < len(kid.label) && p < len(rest) {
			continue
		}
		if kid.each(at+kid.label, rest[p:], take, skip) {
			return true
		}
	}
	return false
}
