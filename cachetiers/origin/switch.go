// Package origin is the far end of the tiers: which upstream bytes come from,
// and the stores that keep them for good.
package origin

import (
	"context"

	"github.com/weir-registry/weir/registry"
)

// Switch is a Source that asks, for each Want, the source of the space its
// name is in.
type Switch map[string]registry.Source

var _ registry.Source = Switch(nil)

// Open implements registry.Source; ErrNotFound for a space nobody serves.
func (s Switch) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	src, ok := s[w.From.Space]
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "nothing is behind %q", w.From.Space)
	}
	return src.Open(ctx, w)
}
