package cachetiers

import (
	"context"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/weir-registry/weir/registry"
)

// spareStage is a Stage for a flight that has no room near: its readers share
// one fill, and nothing is kept. It has the size that was announced.
type spareStage struct {
	expect registry.Descriptor
	hash   hash.Hash
	data   []byte // written before n says so, and never moved
	n      atomic.Int64
	free   func()
	once   sync.Once
}

var _ registry.Stage = (*spareStage)(nil)

// spare begins a stage in memory, or returns nil if d is too large, of unknown
// size, or too many others have one.
func (t *Tier) spare(d registry.Descriptor) registry.Stage {
	if d.Size < 0 || d.Size > t.o.Spare/2 {
		return nil
	}
	h, err := stageHash(d)
	if err != nil {
		return nil
	}
	if t.spares.Add(d.Size) > t.o.Spare {
		t.spares.Add(-d.Size)
		return nil
	}
	return &spareStage{expect: d, hash: h, data: make([]byte, d.Size), free: func() { t.spares.Add(-d.Size) }}
}

// Write implements registry.Stage.
func (s *spareStage) Write(p []byte) (int, error) {
	at := s.n.Load()
	if at+int64(len(p)) > int64(len(s.data)) {
		return 0, registry.Errorf(registry.ErrCorrupt, "%s goes on after its %d bytes", s.expect.Digest, s.expect.Size)
	}
	s.hash.Write(p)
	copy(s.data[at:], p)
	s.n.Add(int64(len(p)))
	return len(p), nil
}

// ReadAt implements registry.Stage.
func (s *spareStage) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, s.data[min(off, s.n.Load()):s.n.Load()])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Commit implements registry.Stage but for keeping the blob: it verifies it.
func (s *spareStage) Commit(context.Context) (registry.Descriptor, error) {
	return verify(s.expect, s.hash, s.n.Load())
}

// Close implements registry.Stage.
func (s *spareStage) Close() error {
	s.once.Do(s.free)
	return nil
}
