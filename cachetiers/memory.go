package cachetiers

import (
	"context"
	"hash"
	"io"
	"sync"

	"github.com/maypok86/otter/v2"
	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

const (
	defaultMemory = 64 << 20
	// overhead is what a blob in memory costs beside its bytes.
	overhead = 256
)

// Memory is a Store of small blobs in memory, bounded by their bytes; what goes
// when it is full is W-TinyLFU's choice (Einziger et al., ACM TOS 2017), as
// otter implements it. Its zero value holds 64 MiB. Nothing in it is durable.
//
// Staged bytes are in memory too: put a Tier's Keep before it so that only
// small blobs are.
type Memory struct {
	// Limit is the most bytes it holds; 0: 64 MiB. Set it before the first use.
	Limit int64

	once  sync.Once
	cache *otter.Cache[digest.Digest, memoryEntry]
}

var _ registry.Store = (*Memory)(nil)

type memoryEntry struct {
	data []byte
}

// NewMemory is a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{Limit: limit} }

func (m *Memory) setup() *otter.Cache[digest.Digest, memoryEntry] {
	m.once.Do(func() {
		limit := m.Limit
		if limit <= 0 {
			limit = defaultMemory
		}
		m.cache = otter.Must(&otter.Options[digest.Digest, memoryEntry]{
			MaximumWeight: uint64(limit),
			Weigher: func(_ digest.Digest, e memoryEntry) uint32 {
				return uint32(min(int64(len(e.data))+overhead, 1<<32-1))
			},
		})
	})
	return m.cache
}

// Bytes is how much it holds now.
func (m *Memory) Bytes() int64 { return int64(m.setup().WeightedSize()) }

// Open implements registry.Source.
func (m *Memory) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	e, ok := m.setup().GetIfPresent(w.Digest)
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "%s is not in memory", w.Digest)
	}
	d := w.Descriptor
	d.Size = int64(len(e.data))
	offset, length, ok := w.Clip(d.Size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is past the end of %s", w.Offset, w.Digest)
	}
	return registry.NewBytesBlob(e.data, d, offset, length, registry.Via{Detail: "memory"}), nil
}

// Stage implements registry.Store.
func (m *Memory) Stage(_ context.Context, expect registry.Descriptor) (registry.Stage, error) {
	s := &memoryStage{m: m, expect: expect}
	var err error
	if s.hash, err = stageHash(expect); err != nil {
		return nil, err
	}
	if expect.Size > m.limit() {
		return nil, registry.Errorf(registry.ErrNoRoom, "%d bytes are more than the memory tier holds", expect.Size)
	}
	if expect.Size > 0 {
		s.data = make([]byte, 0, expect.Size)
	}
	return s, nil
}

func (m *Memory) limit() int64 {
	if m.Limit > 0 {
		return m.Limit
	}
	return defaultMemory
}

// stageHash is the hash by which what is expected is verified.
func stageHash(expect registry.Descriptor) (hash.Hash, error) {
	if expect.Digest == "" {
		return digest.SHA256.Hash(), nil
	}
	return registry.NewHash(expect.Digest)
}

// verify checks what was staged against what was expected of it.
func verify(expect registry.Descriptor, h hash.Hash, size int64) (registry.Descriptor, error) {
	got := registry.Descriptor{Digest: registry.Sum(registry.AlgorithmOf(expect.Digest), h), Size: size, MediaType: expect.MediaType}
	if expect.Digest != "" && got.Digest != expect.Digest {
		return registry.Descriptor{}, registry.Errorf(registry.ErrCorrupt, "content for %s has digest %s", expect.Digest, got.Digest)
	}
	if expect.Size >= 0 && size != expect.Size {
		return registry.Descriptor{}, registry.Errorf(registry.ErrCorrupt, "content for %s has %d bytes where %d were announced", got.Digest, size, expect.Size)
	}
	return got, nil
}

type memoryStage struct {
	m      *Memory
	expect registry.Descriptor
	hash   hash.Hash

	mu     sync.RWMutex
	data   []byte // guarded by mu
	closed bool   // guarded by mu
}

// Write implements registry.Stage.
func (s *memoryStage) Write(p []byte) (int, error) {
	s.hash.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(len(s.data)+len(p)) > s.m.limit() {
		return 0, registry.Errorf(registry.ErrNoRoom, "a blob outgrew the memory tier")
	}
	s.data = append(s.data, p...)
	return len(p), nil
}

// ReadAt implements registry.Stage.
func (s *memoryStage) ReadAt(p []byte, off int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if off >= int64(len(s.data)) {
		return 0, io.EOF
	}
	n := copy(p, s.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Commit implements registry.Stage.
func (s *memoryStage) Commit(context.Context) (registry.Descriptor, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return registry.Descriptor{}, registry.Errorf(registry.ErrInvalid, "commit of a closed stage")
	}
	d, err := verify(s.expect, s.hash, int64(len(s.data)))
	if err == nil {
		s.m.setup().Set(d.Digest, memoryEntry{data: s.data})
	}
	return d, err
}

// Close implements registry.Stage.
func (s *memoryStage) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}
