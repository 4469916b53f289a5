package cachetiers

import (
	"bytes"
	"context"
	"hash"
	"hash/maphash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

const (
	defaultMemory = 64 << 20
	// overhead is what a blob in memory costs beside its bytes.
	overhead = 256
)

// Memory is a Store of small blobs in memory, bounded by their bytes. What goes
// when it is full is chosen for hits by number, not by bytes: small blobs stay,
// and a large one must be asked for often to push out many. A blob is kept
// whenever it is committed and has not more bytes than the limit. Its zero
// value holds 64 MiB. Nothing in it is durable.
//
// Staged bytes are in memory too: put a Tier's Keep before it so that only
// small blobs are.
type Memory struct {
	// Limit is the most bytes it holds, 256 a blob for its upkeep included; 0:
	// 64 MiB. Set it before the first use.
	Limit int64

	once   sync.Once
	seed   maphash.Seed
	shards [memoryShards]memoryShard

	mu    sync.Mutex // taken before a shard's
	order bySize     // guarded by mu
	bytes atomic.Int64
}

var _ registry.Store = (*Memory)(nil)

// memoryShards is a power of two.
const memoryShards = 64

type memoryShard struct {
	mu    sync.RWMutex
	items map[string]*item // by digest; guarded by mu
	_     [32]byte         // a cache line for each
}

// NewMemory is a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{Limit: limit} }

func (m *Memory) shard(key string) *memoryShard {
	m.once.Do(func() {
		m.seed = maphash.MakeSeed()
		for i := range m.shards {
			m.shards[i].items = make(map[string]*item)
		}
	})
	return &m.shards[maphash.String(m.seed, key)%memoryShards]
}

// Bytes is how much it holds now.
func (m *Memory) Bytes() int64 { return m.bytes.Load() }

// get is the blob of a digest, which is a hit.
func (m *Memory) get(dg digest.Digest) (data []byte, ok bool) {
	s := m.shard(string(dg))
	s.mu.RLock()
	i := s.items[string(dg)]
	s.mu.RUnlock()
	if i == nil {
		return nil, false
	}
	i.touch()
	return i.data, true
}

// put keeps a blob, whose bytes nobody may change any more.
func (m *Memory) put(dg digest.Digest, data []byte) {
	i := &item{links: links[item]{size: int64(len(data)) + overhead}, key: string(dg), data: data}
	if i.size > m.limit() {
		return
	}
	s := m.shard(i.key)
	m.mu.Lock()
	defer m.mu.Unlock()
	s.mu.RLock()
	old := s.items[i.key]
	s.mu.RUnlock()
	if old != nil {
		m.removeLocked(old)
	}
	for m.bytes.Load()+i.size > m.limit() {
		m.removeLocked(m.order.victim())
	}
	m.order.push(i)
	m.bytes.Add(i.size)
	s.mu.Lock()
	s.items[i.key] = i
	s.mu.Unlock()
}

func (m *Memory) removeLocked(i *item) {
	m.order.remove(i)
	m.bytes.Add(-i.size)
	s := m.shard(i.key)
	s.mu.Lock()
	delete(s.items, i.key)
	s.mu.Unlock()
}

// Open implements registry.Source.
func (m *Memory) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	data, ok := m.get(w.Digest)
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "%s is not in memory", w.Digest)
	}
	d := w.Descriptor
	d.Size = int64(len(data))
	offset, length, ok := w.Clip(d.Size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is past the end of %s", w.Offset, w.Digest)
	}
	return registry.NewBytesBlob(data, d, offset, length, registry.Via{Detail: "memory"}), nil
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
		data := s.data
		if cap(data) > len(data)+len(data)/8 { // it grew, its size was not known
			data = bytes.Clone(data)
		}
		s.m.put(d.Digest, data)
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
