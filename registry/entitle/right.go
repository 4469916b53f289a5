package entitle

import (
	"fmt"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// maxRight bounds a right's text, in bytes.
const maxRight = 1 << 10

// A Right is an action on all repositories of one protocol that a pattern
// matches, or on everything. It is comparable; the zero value is invalid.
type Right struct {
	Action registry.Action
	// Space and Pattern are empty for "ACTION *": every repository of every
	// protocol, and for admin weir itself too.
	Space, Pattern string
}

// ParseRight reads "ACTION PROTOCOL:PATTERN" or "ACTION *", where ACTION is
// pull, push or admin. Whether there is such a protocol it does not know. The
// error is ErrInvalid and says what is wrong with the text.
func ParseRight(text string) (Right, error) {
	if len(text) > maxRight {
		return Right{}, registry.Errorf(registry.ErrInvalid, "right %.40q…: it is longer than %d bytes", text, maxRight)
	}
	if action, what, ok := strings.Cut(text, " "); ok && what == "*" {
		if level(registry.Action(action)) < 0 {
			return Right{}, registry.Errorf(registry.ErrInvalid, "right %q: %v", text, noAction(action, actions))
		}
		return Right{Action: registry.Action(action)}, nil
	}
	r, err := parse(text, actions)
	if err != nil {
		return Right{}, registry.Errorf(registry.ErrInvalid, "right %q: %v", text, err)
	}
	return r, nil
}

// actions are those of a right, the least first.
const actions = "pull push admin"

func noAction(action, known string) error {
	if level(registry.Action(action)) >= 0 {
		return fmt.Errorf("%q cannot be granted here, only %q", action, strings.Fields(known))
	}
	return fmt.Errorf("there is no action %q, only %q", action, strings.Fields(known))
}

// parse reads "ACTION PROTOCOL:PATTERN" with one of the known actions.
func parse(text, known string) (Right, error) {
	action, what, ok := strings.Cut(text, " ")
	space, repos, colon := strings.Cut(what, ":")
	switch {
	case !ok || !colon || space == "" || repos == "" || strings.Contains(space, "*"):
		return Right{}, fmt.Errorf(`it is not of the form "pull oci:docker.io/library/*"`)
	case action == "" || !strings.Contains(" "+known+" ", " "+action+" "):
		return Right{}, noAction(action, known)
	case strings.ContainsFunc(what, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return Right{}, fmt.Errorf("there is a blank in %q", what)
	}
	return Right{Action: registry.Action(action), Space: space, Pattern: repos}, nil
}

// String is the text that ParseRight reads.
func (r Right) String() string {
	if r.Space == "" {
		return string(r.Action) + " *"
	}
	return string(r.Action) + " " + r.Space + ":" + r.Pattern
}

// Includes reports whether whoever has r may do all that o lets one do. The
// answer is exact, patterns included: "pull oci:a*" includes "pull oci:ab*c".
func (r Right) Includes(o Right) bool {
	if level(r.Action) < level(o.Action) || level(o.Action) < 0 {
		return false
	}
	if r.Space == "" {
		return true
	}
	// One byte that no pattern contains stands for whatever a "*" of o may be:
	// only a "*" of r matches it. If r matches the text with it, it does so with
	// anything else in its place; if not, the text itself is what r lacks.
	return r.Space == o.Space && compile(r.Pattern).matches(strings.ReplaceAll(o.Pattern, "*", "\x00"))
}

// Within reports whether one right of a set includes r. It may say no when
// only several of them together do: "pull *" is not within "pull oci:*" and
// "pull npm:*", though there may be no third protocol.
func Within(r Right, set []Right) bool {
	for _, one := range set {
		if one.Includes(r) {
			return true
		}
	}
	return false
}

// level orders the actions: what includes another is higher. -1: no action.
func level(a registry.Action) int8 {
	switch a {
	case registry.Pull:
		return 0
	case registry.Push:
		return 1
	case registry.Admin:
		return 2
	}
	return -1
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
