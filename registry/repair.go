package registry

import (
	"context"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Repair fetches blobs from behind that a tier has found damaged and dropped:
// those among damaged that a name here stands for, through that name. It
// returns the ones that are whole again. No client has asked, so nobody is
// admitted, and nothing is given away. The error is that of looking through
// the names; a blob that cannot be had is in the log, and comes when it is
// asked for.
func (s *Service) Repair(ctx context.Context, damaged []digest.Digest) (repaired []digest.Digest, err error) {
	s.setup()
	missing := make(map[digest.Digest]bool, len(damaged))
	for _, d := range damaged {
		missing[d] = true
	}
	for _, space := range slices.Sorted(maps.Keys(s.Spaces)) {
		for n, err := range s.Names.List(ctx, space, "", "") {
			if err != nil {
				return repaired, Wrap(ErrUnavailable, err, "look through the names of "+space)
			}
			if len(missing) == 0 {
				return repaired, nil
			}
			b, err := s.Names.Lookup(ctx, n)
			if err != nil || !missing[b.Digest] {
				continue // gone since it was listed, or sound
			}
			w := Whole(n, b)
			w.Background = true
			if err := s.fetch(ctx, w); err != nil {
				s.Log.Warn("repair", "name", n.String(), "digest", b.Digest, "err", err)
				continue // another name may lead to it
			}
			delete(missing, b.Digest)
			repaired = append(repaired, b.Digest)
		}
	}
	return repaired, nil
}

// fetch reads a blob for the sake of the tiers it comes through.
func (s *Service) fetch(ctx context.Context, w Want) error {
	b, err := s.Blobs.Open(ctx, w)
	if err != nil {
		return err
	}
	defer b.Close()
	_, err = io.Copy(io.Discard, struct{ io.Reader }{b})
	return err
}
