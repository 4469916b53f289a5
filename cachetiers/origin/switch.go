// Package origin is the far end of the tiers: which upstream bytes come from,
// and the stores that keep them for good.
package origin

import (
	"context"
	"io"

	"github.com/weir-registry/weir/registry"
)

// Switch is an Upstream that asks, for each name, the upstream of its space.
type Switch map[string]registry.Upstream

var _ registry.Upstream = Switch(nil)

// Open implements registry.Source; ErrNotFound for a space nobody serves.
func (s Switch) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	up, err := s.of(w.From)
	if err != nil {
		return nil, err
	}
	return up.Open(ctx, w)
}

// Resolve implements registry.Upstream; ErrNotFound for a space nobody serves.
func (s Switch) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	up, err := s.of(q.Name)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	return up.Resolve(ctx, q)
}

func (s Switch) of(n registry.Name) (registry.Upstream, error) {
	up, ok := s[n.Space]
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "nothing is behind %q", n.Space)
	}
	return up, nil
}
