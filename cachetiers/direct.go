package cachetiers

import (
	"context"
	"hash"
	"io"

	"github.com/weir-registry/weir/registry"
)

// direct opens w at the far side without staging it: for when the near store
// has no room. Readers are not collapsed. A run that reaches the end of the
// blob is read and hashed from its beginning, and its last bytes are given only
// if the digest is right.
func (t *Tier) direct(ctx context.Context, w registry.Want) (registry.Blob, error) {
	whole := w
	whole.Offset, whole.Length = 0, -1
	// Of a blob whose size is not known any run may be the whole of it.
	if w.Length == 0 || w.Length > 0 && w.Size >= 0 && w.Length < w.Size-w.Offset {
		return t.far.Open(ctx, w)
	}
	h, err := registry.NewHash(w.Digest)
	if err != nil {
		return nil, err
	}
	far, err := t.far.Open(ctx, whole)
	if err != nil {
		return nil, err
	}
	d := far.Descriptor()
	offset, length, ok := w.Clip(d.Size)
	if !ok || w.Size >= 0 && d.Size >= 0 && d.Size != w.Size {
		far.Close()
		return nil, registry.Errorf(registry.ErrCorrupt, "%s has %d bytes where %d were announced", w.Digest, d.Size, w.Size)
	}
	return &direct{Blob: far, h: h, w: w, skip: offset, offset: offset, length: length}, nil
}

// direct hashes a far blob as it is read and keeps the last bytes back.
type direct struct {
	registry.Blob
	h              hash.Hash
	w              registry.Want
	skip           int64 // bytes still to be read and not given
	offset, length int64
	held           []byte // read, hashed, not given: at least holdBack until the end
	ended          bool   // held has been verified
	err            error
}

// Span implements registry.Blob.
func (b *direct) Span() (int64, int64) { return b.offset, b.length }

// WriteTo implements io.WriterTo.
func (b *direct) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(writerOnly{w}, readerOnly{b}, make([]byte, 64<<10))
}

type writerOnly struct{ io.Writer }

// Read implements io.Reader.
func (b *direct) Read(p []byte) (int, error) {
	for b.err == nil && !b.ended && len(b.held) <= holdBack {
		b.more()
	}
	free := len(b.held)
	if !b.ended {
		free -= holdBack
	}
	if free <= 0 {
		if b.err != nil {
			return 0, b.err
		}
		return 0, io.EOF
	}
	n := copy(p, b.held[:free])
	b.held = b.held[:copy(b.held, b.held[n:])]
	return n, nil
}

// more reads on, and at the end verifies.
func (b *direct) more() {
	if b.held == nil {
		b.held = make([]byte, 0, 64<<10+holdBack)
	}
	at := len(b.held)
	n, err := b.Blob.Read(b.held[at : at+64<<10])
	b.h.Write(b.held[at : at+n])
	b.held = b.held[:at+n]
	if b.skip > 0 {
		drop := min(b.skip, int64(len(b.held)))
		b.skip -= drop
		b.held = b.held[:copy(b.held, b.held[drop:])]
	}
	switch {
	case err == nil:
	case err != io.EOF:
		b.err = err
	case registry.Sum(registry.AlgorithmOf(b.w.Digest), b.h) != b.w.Digest:
		b.err = registry.Errorf(registry.ErrCorrupt, "what was sent for %s has another digest", b.w.Digest)
	default:
		b.ended = true
	}
}
