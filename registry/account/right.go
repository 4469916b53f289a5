package account

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/weir-registry/weir/registry"
)

// A right is the text of one, taken apart.
type right struct {
	action  registry.Action
	space   string // "": every repository of every space
	pattern string
}

// ranks are the actions, each of which includes those below it.
var ranks = map[registry.Action]int{registry.Pull: 1, registry.Push: 2, registry.Admin: 3}

// parseRight reads "ACTION PROTOCOL:PATTERN" or "ACTION *".
func parseRight(text string) (right, error) {
	bad := func(why string) (right, error) {
		return right{}, registry.Errorf(registry.ErrInvalid, "%.100q is not a right: %s", text, why)
	}
	action, what, ok := strings.Cut(text, " ")
	r := right{action: registry.Action(action)}
	switch {
	case len(text) > maxRight:
		return bad("it is too long")
	case !ok:
		return bad(`it is not of the form "pull oci:docker.io/library/*"`)
	case ranks[r.action] == 0:
		return bad("there is no such action, only pull, push and admin")
	case !utf8.ValidString(what) || strings.ContainsFunc(what, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }):
		return bad("there is a blank in it")
	case what == "*":
		return r, nil
	}
	r.space, r.pattern, ok = strings.Cut(what, ":")
	switch {
	case !ok || r.space == "" || r.pattern == "":
		return bad(`it is not of the form "pull oci:docker.io/library/*"`)
	case strings.ContainsFunc(r.space, func(c rune) bool { return c < 'a' || c > 'z' }):
		return bad("protocols are called oci and npm")
	}
	return r, nil
}

// covers reports whether all that inner allows is allowed by r. It may say no
// where a closer look would say yes, never the other way round: only a pattern
// that ends in its one "*" covers others than itself.
func (r right) covers(inner right) bool {
	if ranks[r.action] < ranks[inner.action] {
		return false
	}
	if r.space == "" {
		return true
	}
	if r.space != inner.space {
		return false
	}
	start, open := strings.CutSuffix(r.pattern, "*")
	if !open || strings.Contains(start, "*") {
		return r.pattern == inner.pattern
	}
	return strings.HasPrefix(inner.pattern, start)
}

// parseRights reads the rights of a token.
func parseRights(texts []string) ([]right, error) {
	if len(texts) > maxRights {
		return nil, registry.Errorf(registry.ErrInvalid, "a token can have %d rights, not %d", maxRights, len(texts))
	}
	var all []right
	for _, text := range texts {
		r, err := parseRight(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
