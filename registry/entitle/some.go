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
	mine := []*subject{s.v.subject("")}
	if who.Name != "" {
		a, tok, bad := s.v.identify(who, s.now)
		if bad != admitted {
			return
		}
		for _, uid := range append([]string{a.UID}, a.Teams...) {
			if sub := s.v.subject(uid); sub != nil && (uid == a.UID || sub.teams > 0) {
				mine = append(mine, sub)
			}
		}
		if tok != nil && tok.rights != nil {
			for i := range tok.rights {
				if g := &tok.rights[i]; g.in(s.call.Name.Space) && s.within(g.pattern(), mine) {
					return
				}
			}
			return
		}
	}
	s.within("*", mine)
}

// within looks for a name that a right and a grant to one of some subjects, or
// of the configuration, have in common, and reports whether there is one.
func (s *search) within(right string, mine []*subject) bool {
	take := func(granted string) bool { return s.decide(overlap(granted, right)).outcome == admitted }
	skip := func(literal string) bool { return s.decide(literal+"*").outcome == denied }
	for i := range s.v.configured {
		if g := &s.v.configured[i]; g.in(s.call.Name.Space) && take(g.pattern()) {
			return true
		}
	}
	for _, sub := range mine {
		if sub != nil && sub.each(s.call.Name.Space, right, take, skip) {
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
// can have a name in common with another pattern, until it says that it is enough,
// which each reports. skip says of a literal beginning that what goes on from it is
// of no interest.
func (s *subject) each(space, other string, take, skip func(string) bool) bool {
	literal, _, _ := strings.Cut(other, "*")
	for i := range s.spaces {
		switch sp := &s.spaces[i]; sp.space.Value() {
		case "":
			if sp.allowed.Len() > 0 && take("*") {
				return true
			}
		case space:
			if sp.each("", literal, take, skip) {
				return true
			}
		}
	}
	return false
}

// each is the subject's, for the patterns that begin with at, where rest is what is
// left of the other pattern's literal. It walks the patterns as if they were a trie:
// from what all of them begin with to each way to go on.
func (r *reach) each(at, rest string, take, skip func(string) bool) bool {
	var first, last string
	r.allowed.Ascend(allowed{pattern: at}, func(a allowed) bool { first = a.pattern; return false })
	r.allowed.Descend(allowed{pattern: at + beyond}, func(a allowed) bool { last = a.pattern; return false })
	if first == "" || !strings.HasPrefix(first, at) {
		return false
	}
	all, _, _ := strings.Cut(first[:common(first, last)], "*")
	p := common(all[len(at):], rest)
	if p < len(all)-len(at) && p < len(rest) {
		return false
	}
	rest = rest[p:]
	enough := false
	next := all // where to go on, after what goes on nowhere
	r.allowed.Ascend(allowed{pattern: all}, func(a allowed) bool {
		if a.pattern != all && !strings.HasPrefix(a.pattern, all+"*") {
			return false
		}
		enough = take(a.pattern)
		return !enough
	})
	if enough || last == all || all != "" && skip(all) {
		return enough
	}
	for {
		kid := ""
		r.allowed.Ascend(allowed{pattern: next}, func(a allowed) bool {
			kid = a.pattern
			return kid == all
		})
		if len(kid) <= len(all) || !strings.HasPrefix(kid, all) {
			return false
		}
		kid = kid[:len(all)+1]
		b := kid[len(all):]
		if b != "*" && (rest == "" || rest[:1] == b) && r.each(kid, rest[min(1, len(rest)):], take, skip) {
			return true
		}
		next = kid + beyond
	}
}

// beyond is behind everything that a pattern, being UTF-8, can go on with.
const beyond = "\xff"

func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
