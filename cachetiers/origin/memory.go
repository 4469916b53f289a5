package origin

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// MemoryBucket is a Bucket in memory, for tests; its zero value is empty. It
// holds who uses it to what a Store promises: a blob's key is given only bytes
// of that digest (ErrCorrupt), and an object never changes (ErrConflict).
type MemoryBucket struct {
	mu      sync.Mutex
	objects map[string][]byte // guarded by mu; the slices are never written
}

var _ Bucket = (*MemoryBucket)(nil)

// Get implements Bucket.
func (b *MemoryBucket) Get(_ context.Context, key string, offset, length int64) (Object, error) {
	data, err := b.find(key)
	if err != nil {
		return Object{}, err
	}
	size := int64(len(data))
	if offset > size || offset == size && size > 0 {
		return Object{}, registry.Errorf(registry.ErrInvalid, "%s has no byte %d", key, offset)
	}
	if length < 0 || length > size-offset {
		length = size - offset
	}
	return Object{Size: size, Body: io.NopCloser(bytes.NewReader(data[offset : offset+length]))}, nil
}

// Stat implements Bucket.
func (b *MemoryBucket) Stat(_ context.Context, key string) (int64, error) {
	data, err := b.find(key)
	return int64(len(data)), err
}

// Put implements Bucket.
func (b *MemoryBucket) Put(_ context.Context, key string, content io.ReaderAt, size int64) error {
	data, err := io.ReadAll(io.NewSectionReader(content, 0, size))
	if err != nil || int64(len(data)) != size {
		return registry.Errorf(registry.ErrUnavailable, "put %s: %d of %d bytes, %v", key, len(data), size, err)
	}
	if err := keyFits(key, data); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if had, ok := b.objects[key]; ok && len(had) == len(data) && !bytes.Equal(had, data) {
		return registry.Errorf(registry.ErrConflict, "%s is there with other bytes", key)
	}
	if b.objects == nil {
		b.objects = make(map[string][]byte)
	}
	b.objects[key] = data
	return nil
}

// Delete implements Bucket.
func (b *MemoryBucket) Delete(_ context.Context, key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, key)
	return nil
}

// String implements Bucket.
func (b *MemoryBucket) String() string { return "memory:" }

// Spoil puts data under a key without looking at it, as somebody might who has
// the bucket's keys, or a disk that rots.
func (b *MemoryBucket) Spoil(key string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.objects == nil {
		b.objects = make(map[string][]byte)
	}
	b.objects[key] = bytes.Clone(data)
}

func (b *MemoryBucket) find(key string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.objects[key]
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "no object %s", key)
	}
	return data, nil
}

// keyFits compares data with the digest in a blob's key.
func keyFits(key string, data []byte) error {
	part := strings.Split(key, "/") // blobs, algorithm, ab, abcd…
	if len(part) != 4 || part[0] != "blobs" {
		return nil
	}
	h, err := registry.NewHash(digest.Digest(part[1] + ":" + part[3]))
	if err != nil {
		return err
	}
	h.Write(data)
	if got := registry.Sum(digest.Algorithm(part[1]), h); got.Encoded() != part[3] {
		return registry.Errorf(registry.ErrCorrupt, "%s is given bytes of digest %s", key, got)
	}
	return nil
}
