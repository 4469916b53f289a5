package oci

import (
	"strings"

	"github.com/weir-registry/weir/registry"
)

// What is read of the scopes that a client asks a token for.
const (
	maxScopes  = 64
	maxScope   = 600 // bytes of one: a repository of 255, a host and some actions
	maxActions = 8
)

// A scope is what a client wants a token for: some actions on a repository, as
// the client calls it.
type scope struct {
	text    string // as the client wrote it
	repo    string // a path's repository, or with an upstream's name in front
	actions []registry.Action
}

// parseScopes reads the scopes of a request for a token, each field of which
// may have several, divided by blanks (distribution's token specification):
//
//	repository:NAME:ACTION,ACTION
//	repository(CLASS):NAME:ACTION
//	registry:catalog:*
//
// Those that weir has no rights for, and those that make no sense, stand for
// nothing: a scope only ever asks, and what it asks for is decided elsewhere.
// Too many or too long ones are ErrInvalid.
func parseScopes(fields []string) ([]scope, error) {
	var out []scope
	n := 0
	for _, f := range fields {
		for text := range strings.SplitSeq(f, " ") {
			if text == "" {
				continue
			}
			if n++; n > maxScopes || len(text) > maxScope {
				return nil, registry.Errorf(registry.ErrInvalid, "more than %d scopes, or one of more than %d bytes", maxScopes, maxScope)
			}
			if s, ok := parseScope(text); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// parseScope reads one scope. The name may have a colon in it, as a host may:
// the type ends at the first and the actions begin after the last. Whether the
// name is one is for [Upstreams.named] to say.
func parseScope(text string) (scope, bool) {
	kind, rest, ok := strings.Cut(text, ":")
	i := strings.LastIndexByte(rest, ':')
	if !ok || i <= 0 || !repositoryType(kind) {
		return scope{}, false
	}
	s := scope{text: text, repo: rest[:i]}
	list := strings.Split(rest[i+1:], ",")
	if len(list) > maxActions {
		return scope{}, false
	}
	for _, a := range list {
		switch a {
		case "pull":
			s.add(registry.Pull)
		case "push":
			s.add(registry.Push)
		case "*": // all that there is to be asked for
			s.add(registry.Pull)
			s.add(registry.Push)
		}
	}
	return s, len(s.actions) > 0
}

func (s *scope) add(a registry.Action) {
	for _, have := range s.actions {
		if have == a {
			return
		}
	}
	s.actions = append(s.actions, a)
}

// repositoryType reports whether a scope's type is a repository's, of whatever
// class: "repository" or "repository(plugin)".
func repositoryType(s string) bool {
	rest, ok := strings.CutPrefix(s, "repository")
	if !ok || rest == "" {
		return ok
	}
	class, ok := strings.CutPrefix(rest, "(")
	class, ok2 := strings.CutSuffix(class, ")")
	if !ok || !ok2 || class == "" {
		return false
	}
	for i := 0; i < len(class); i++ {
		if !alnum(class[i]) {
			return false
		}
	}
	return true
}

// named is the registry.Name's Repo that a scope's repository means: the same
// as in a path, where the name of an upstream may be in front.
func (u *Upstreams) named(repo string) (string, bool) {
	rest := repo
	if first, after, ok := strings.Cut(repo, "/"); ok && u.remotes[canonical(first)] != nil {
		rest = after // an upstream's name may have what a repository's may not: a port
	}
	if !validRepo(rest) {
		return "", false
	}
	name, err := u.choose("", repo)
	return name, err == nil
}
