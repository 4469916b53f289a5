package entitle

import (
	"context"
	"fmt"
	"slices"

	"github.com/weir-registry/weir/registry"
)

// Grants are what the configuration grants to the anonymous principal. They do
// not change; any number of goroutines may use them. The zero value grants
// nothing. They are a Guard by themselves, which admits nobody else.
type Grants struct {
	list []granted
}

type granted struct {
	Right
	pattern pattern
}

var _ registry.Guard = (*Grants)(nil)

// Parse reads grants of the form "pull oci:docker.io/library/*". The error
// names the first that makes no sense, and why.
func Parse(grants []string) (*Grants, error) {
	g := &Grants{}
	for _, text := range grants {
		r, err := parse(text, string(registry.Pull))
		if err != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "grant %q: %v", text, err)
		}
		g.list = append(g.list, granted{r, compile(r.Pattern)})
	}
	return g, nil
}

// Spaces lists the spaces the grants are about, each once, so that a caller
// who knows which there are can find a misspelt one.
func (g *Grants) Spaces() []string {
	var spaces []string
	for _, one := range g.list {
		if !slices.Contains(spaces, one.Space) {
			spaces = append(spaces, one.Space)
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
		if one.Action == c.Action && one.Space == c.Name.Space && (c.Some || one.pattern.matches(c.Name.Repo)) {
			return nil
		}
	}
	return &registry.Error{Kind: registry.ErrUnauthenticated,
		Text:   fmt.Sprintf("no grant lets anonymous clients %s %s:%.200s", c.Action, c.Name.Space, c.Name.Repo),
		Public: fmt.Sprintf("anonymous clients may not %s this", c.Action)}
}
