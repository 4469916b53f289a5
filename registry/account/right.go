package account

import (
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/entitle"
)

// parseRight reads "ACTION PROTOCOL:PATTERN" or "ACTION *", of bounded length.
func parseRight(text string) (entitle.Right, error) {
	if err := checkText("right", text, maxRight); err != nil {
		return entitle.Right{}, err
	}
	return entitle.ParseRight(text)
}

// parseRights reads the rights of a token.
func parseRights(texts []string) ([]entitle.Right, error) {
	if len(texts) > maxRights {
		return nil, registry.Errorf(registry.ErrInvalid, "a token can have %d rights, not %d", maxRights, len(texts))
	}
	var all []entitle.Right
	for _, text := range texts {
		r, err := parseRight(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// within reports whether each of some rights is included in one of others. No
// rights at all are not: they stand for everything.
func within(outer, inner []entitle.Right) bool {
	for _, r := range inner {
		if !entitle.Within(r, outer) {
			return false
		}
	}
	return len(inner) > 0
}
