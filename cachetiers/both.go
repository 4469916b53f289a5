package cachetiers

import (
	"context"

	"github.com/weir-registry/weir/registry"
)

// bothStage is a small blob on its way into the store behind and the near one at
// once: whoever asked for it will read it now, and need not fetch it from behind
// first. What counts is the store behind; that the near one fails costs nothing
// but that.
type bothStage struct {
	registry.Stage                // the store behind's
	near           registry.Stage // nil: it has failed
}

// Write implements registry.Stage.
func (s *bothStage) Write(p []byte) (int, error) {
	if s.near != nil {
		if _, err := s.near.Write(p); err != nil {
			s.drop()
		}
	}
	return s.Stage.Write(p)
}

func (s *bothStage) drop() {
	s.near.Close()
	s.near = nil
}

// Commit implements registry.Stage.
func (s *bothStage) Commit(ctx context.Context) (registry.Descriptor, error) {
	d, err := s.Stage.Commit(ctx)
	if err == nil && s.near != nil {
		if _, err := s.near.Commit(ctx); err != nil {
			s.drop()
		}
	}
	return d, err
}

// Close implements registry.Stage.
func (s *bothStage) Close() error {
	if s.near != nil {
		s.near.Close()
	}
	return s.Stage.Close()
}
