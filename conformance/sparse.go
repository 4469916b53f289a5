package conformance

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// Sparse is a Store that has blobs of any size that take no room, beside what the
// Store that it is in front of has. What they hash to is not their digest.
type Sparse struct {
	registry.Store
	path  string
	size  int64
	blobs map[digest.Digest]bool
}

// NewSparse puts blobs of size bytes in front of behind.
func NewSparse(t *testing.T, behind registry.Store, size int64, blobs ...digest.Digest) *Sparse {
	t.Helper()
	s := &Sparse{Store: behind, path: filepath.Join(t.TempDir(), "sparse"), size: size, blobs: map[digest.Digest]bool{}}
	for _, d := range blobs {
		s.blobs[d] = true
	}
	if err := os.WriteFile(s.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path, size); err != nil {
		t.Fatal(err)
	}
	return s
}

// Open implements registry.Source.
func (s *Sparse) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	if !s.blobs[w.Digest] {
		return s.Store.Open(ctx, w)
	}
	offset, length, ok := w.Clip(s.size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "past the end")
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	d := w.Descriptor
	d.Size = s.size
	return &sparse{LimitedReader: io.LimitedReader{R: f, N: length}, f: f, d: d, offset: offset, length: length}, nil
}

type sparse struct {
	io.LimitedReader
	f              *os.File
	d              registry.Descriptor
	offset, length int64
}

func (b *sparse) WriteTo(w io.Writer) (int64, error) {
	if rf, ok := w.(io.ReaderFrom); ok {
		return rf.ReadFrom(&b.LimitedReader)
	}
	return io.Copy(w, struct{ io.Reader }{b})
}

func (b *sparse) Close() error                    { return b.f.Close() }
func (b *sparse) Descriptor() registry.Descriptor { return b.d }
func (b *sparse) Span() (int64, int64)            { return b.offset, b.length }
func (b *sparse) Via() registry.Via               { return registry.Via{Detail: "sparse"} }
