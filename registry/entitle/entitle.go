// Package entitle decides who may do what.
//
// For now there is one principal, the anonymous one, and its grants come from
// the configuration: texts of the form
//
//	pull oci:docker.io/library/*
//	pull npm:@acme/*
//
// an action, a space, and a pattern that a name's repository is compared with
// as a whole. A "*" in a pattern is any run of bytes, slashes included and
// perhaps empty; every other byte is itself, upper and lower case apart. What
// nothing grants is refused.
//
// The package knows principals and patterns, and neither protocols nor digests
// nor status codes.
package entitle

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// Grants are what is granted to the anonymous principal. They do not change;
// any number of goroutines may use them. The zero value grants nothing.
type Grants struct {
	list []grant
}

type grant struct {
	action  registry.Action
	space   string
	pattern pattern
}

var _ registry.Guard = (*Grants)(nil)

var actions = []registry.Action{registry.Pull}

// Parse reads grants. The error names the first that makes no sense, and why.
func Parse(grants []string) (*Grants, error) {
	g := &Grants{}
	for _, text := range grants {
		one, err := parse(text)
		if err != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "grant %q: %v", text, err)
		}
		g.list = append(g.list, one)
	}
	return g, nil
}

func parse(text string) (grant, error) {
	action, what, ok := strings.Cut(text, " ")
	space, repos, colon := strings.Cut(what, ":")
	switch {
	case !ok || !colon || space == "" || repos == "":
		return grant{}, fmt.Errorf(`it is not of the form "pull oci:docker.io/library/*"`)
	case !slices.Contains(actions, registry.Action(action)):
		return grant{}, fmt.Errorf("there is no action %q, only %q", action, actions)
	case strings.ContainsFunc(what, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return grant{}, fmt.Errorf("there is a blank in %q", what)
	}
	return grant{action: registry.Action(action), space: space, pattern: compile(repos)}, nil
}

// Spaces lists the spaces the grants are about, each once, so that a caller
// who knows which there are can find a misspelt one.
func (g *Grants) Spaces() []string {
	var spaces []string
	for _, one := range g.list {
		if !slices.Contains(spaces, one.space) {
			spaces = append(spaces, one.space)
		}
	}
	return spaces
}

// Admit implements registry.Guard. To admit costs no allocation.
func (g *Grants) Admit(_ context.Context, c *registry.Call) error {
	if c.Who.Node {
		return nil // what its own clients may do, it has decided
	}
	if c.Who.Name != "" {
		return registry.Errorf(registry.ErrDenied, "%q is granted nothing", c.Who.Name)
	}
	for i := range g.list {
		one := &g.list[i]
		if one.action == c.Action && one.space == c.Name.Space && one.pattern.matches(c.Name.Repo) {
			return nil
		}
	}
	return &registry.Error{Kind: registry.ErrUnauthenticated,
		Text:   fmt.Sprintf("no grant lets anonymous clients %s %s:%.200s", c.Action, c.Name.Space, c.Name.Repo),
		Public: fmt.Sprintf("anonymous clients may not %s this", c.Action)}
}

// A pattern is a text with "*" in it, cut at them: the first part begins a
// match, the last ends it, and the others follow one another between them.
type pattern struct {
	parts []string // one: no "*", the whole must be equal
}

func compile(text string) pattern { return pattern{strings.Split(text, "*")} }

// matches reports whether all of s is an instance of the pattern. To take the
// first place where a middle part is found is enough: a match that takes it
// later leaves less for the rest. So it costs no more than len(s) for each
// part, whatever the pattern.
func (p pattern) matches(s string) bool {
	first, last := p.parts[0], p.parts[len(p.parts)-1]
	if len(p.parts) == 1 {
		return s == first
	}
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, part := range p.parts[1 : len(p.parts)-1] {
		at := strings.Index(s, part)
		if at < 0 {
			return false
		}
		s = s[at+len(part):]
	}
	return true
}
