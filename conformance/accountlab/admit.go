package accountlab

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// Admit implements registry.Guard, by the rules that grants have. A call about a
// space as a whole is admitted if there is a grant to pull anything in it,
// whatever is denied.
func (a *Accounts) Admit(_ context.Context, c *registry.Call) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.admitLocked(c)
	if err != nil && !c.Whether {
		a.events = append(a.events, c.Who)
	}
	return err
}

// Refused is who has been refused something, once for each time, since it was last
// called: what an audit log would have of it.
func (a *Accounts) Refused() []registry.Principal {
	a.mu.Lock()
	defer a.mu.Unlock()
	events := a.events
	a.events = nil
	return events
}

func (a *Accounts) admitLocked(c *registry.Call) error {
	if c.Who.Node {
		return nil
	}
	if !c.Who.Anonymous() {
		if err := a.currentLocked(c.Who); err != nil {
			return err
		}
	}
	want := fmt.Sprintf("%s %s:%s", c.Action, c.Name.Space, c.Name.Repo)
	covers := covered
	if c.Some {
		covers = coveredSome
	}
	open, shut := a.grantedLocked("", want, covers, c.Some)
	granted, denied := a.grantedLocked(c.Who.Name, want, covers, c.Some)
	switch anyone := open && !shut; {
	case c.Who.Anonymous() && !anyone:
		return wrong("anonymous clients may not %s this", c.Action)
	case !c.Who.Anonymous() && (denied || !granted && !anyone):
		return registry.Errorf(registry.ErrDenied, "%s may not %s this", c.Who.Name, c.Action)
	}
	t := a.byIDLocked(c.Who.Token)
	only := c.Who.Only == nil || slices.Contains(c.Who.Only, registry.Right{Action: c.Action, Space: c.Name.Space, Repo: c.Name.Repo})
	if t != nil && len(t.Rights) > 0 && !covers(t.Rights, want) || !only {
		text := fmt.Sprintf("%s may %s %s, but the token is not for this", c.Who.Name, c.Action, c.Name.Repo)
		return &registry.Error{Kind: registry.ErrDenied, Text: text, Public: text, Err: registry.ErrScope}
	}
	return nil
}

// grantedLocked reports whether name is granted and whether it is denied what
// is wanted. undenied says that denials do not count.
func (a *Accounts) grantedLocked(name, want string, covers func([]string, string) bool, undenied bool) (granted, denied bool) {
	var allow, deny []string
	for _, right := range a.grants[name] {
		if right, not := strings.CutPrefix(right, "!"); not {
			deny = append(deny, right)
		} else {
			allow = append(allow, right)
		}
	}
	return covers(allow, want), !undenied && covers(deny, want)
}

// covered reports whether one of the rights covers what is wanted.
func covered(rights []string, want string) bool {
	return slices.ContainsFunc(rights, func(right string) bool {
		if strings.HasPrefix(right, "push ") && strings.HasPrefix(want, "pull ") {
			right = "pull " + right[5:]
		}
		prefix, star := strings.CutSuffix(right, "*")
		return right == want || star && strings.HasPrefix(want, prefix)
	})
}

// coveredSome is covered for a space as a whole.
func coveredSome(rights []string, want string) bool {
	space, _, _ := strings.Cut(want, ":")
	return slices.ContainsFunc(rights, func(right string) bool {
		return strings.HasPrefix(strings.Replace(right, "push ", "pull ", 1), space+":")
	})
}
