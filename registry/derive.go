package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"
)

// Derive finds a binding that follows from the document c is bound to (a
// tarball's entry in its packument, a view of it), made by find once per
// document and kept under ref in the document's repository. c has been
// resolved. If the document is in no tier any more it is asked for again, and
// c.Binding is then the new one. c is admitted to what was found, with the
// document's binding.
//
// find is given the whole document and returns the binding; its errors are
// passed on and nothing is kept.
func (s *Service) Derive(ctx context.Context, c *Call, ref string,
	find func(ctx context.Context, doc Blob) (Binding, error)) (Binding, Via, error) {
	s.setup()
	n := Name{Space: c.Name.Space, Repo: c.Name.Repo, Ref: ref}
	if b, err := s.Names.Lookup(ctx, n); err == nil && b.Validator == string(c.Binding.Digest) {
		return b, Via{}, s.Guard.Admit(ctx, c)
	}
	leader := false
	call := *c
	answer := s.derives.DoChan(n.String()+"\x00"+string(c.Binding.Digest), func() (any, error) {
		leader = true
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
		defer cancel()
		s.work.begin()
		defer s.work.end()
		b, err := s.derive(ctx, &call, n, find)
		return derived{b, call.Binding}, err
	})
	select {
	case r := <-answer:
		if !leader {
			s.Meter.Collapsed()
		}
		if r.Err != nil {
			return Binding{}, Via{Collapsed: !leader}, r.Err
		}
		d := r.Val.(derived)
		c.Binding = d.doc
		return d.b, Via{Collapsed: !leader}, s.Guard.Admit(ctx, c)
	case <-ctx.Done():
		return Binding{}, Via{}, Wrap(ErrUnavailable, ctx.Err(), "derive "+n.String())
	}
}

type derived struct{ b, doc Binding }

func (s *Service) derive(ctx context.Context, c *Call, n Name, find func(context.Context, Blob) (Binding, error)) (Binding, error) {
	weight := min(max(c.Binding.Size, 1), s.DeriveBytes)
	if err := s.heavy.Acquire(ctx, weight); err != nil {
		return Binding{}, Wrap(ErrUnavailable, err, "derive "+n.String())
	}
	defer s.heavy.Release(weight)
	// What is derived is not one call's: whose call it is that has it made does
	// not matter, and if that is revoked the others go on. Each is admitted to it.
	doc, err := s.fetchFor(ctx, c, Whole(c.Name, c.Binding))
	if KindOf(err) == ErrNotFound {
		if _, err = s.again(ctx, c); err == nil {
			doc, err = s.fetchFor(ctx, c, Whole(c.Name, c.Binding))
		}
	}
	if err != nil {
		return Binding{}, err
	}
	defer doc.Close()
	b, err := find(ctx, doc)
	if err != nil {
		return Binding{}, err
	}
	_, p, err := s.space(n)
	if err != nil {
		return Binding{}, err
	}
	b.Validator = string(c.Binding.Digest)
	b.Checked = time.Now()
	// Derived bindings count as long as their document does; Fresh only keeps
	// them from looking authoritative and tells a sweep when to drop them.
	b.Fresh = b.Checked.Add(p.Fresh)
	return s.bind(ctx, n, b)
}

// viewRef begins the Ref of what is derived and kept as bytes.
const viewRef = "view/"

// View gives a derived form of the document c is bound to, made by write once
// per document and kept like any blob. key says which view; it must say all
// that the bytes depend on beside the document. write returns the view's media
// type.
func (s *Service) View(ctx context.Context, c *Call, key string,
	write func(ctx context.Context, doc Blob, w io.Writer) (mediaType string, err error)) (Binding, Blob, Via, error) {
	find := func(ctx context.Context, doc Blob) (Binding, error) {
		stage, err := s.Blobs.Stage(ctx, Descriptor{Size: -1})
		if err != nil {
			return Binding{}, err
		}
		defer stage.Close()
		mediaType, err := write(ctx, doc, stage)
		if err != nil {
			return Binding{}, err
		}
		d, err := stage.Commit(ctx)
		d.MediaType = mediaType
		return Binding{Descriptor: d}, err
	}
	ref := viewRef + key
	n := Name{Space: c.Name.Space, Repo: c.Name.Repo, Ref: ref}
	for try := 0; ; try++ {
		b, via, err := s.Derive(ctx, c, ref, find)
		if err != nil {
			return Binding{}, nil, via, err
		}
		blob, err := s.Blobs.Open(ctx, Whole(n, b))
		if err == nil {
			return b, s.Hold(c, blob), via.Over(blob.Via()), nil
		}
		if KindOf(err) != ErrNotFound || try > 0 {
			return Binding{}, nil, via, err
		}
		// The view was evicted, or found damaged: unbind it and make it anew.
		if _, err := s.Names.Bind(ctx, n, b, Binding{}); err != nil && !errors.Is(err, ErrConflict) {
			return Binding{}, nil, via, Wrap(ErrUnavailable, err, "unbind "+n.String())
		}
	}
}

// NewBytesBlob is a Blob of bytes in memory, which it does not change: the run
// of length bytes (negative: to the end) from offset on, which must be within.
func NewBytesBlob(data []byte, d Descriptor, offset, length int64, via Via) Blob {
	if length < 0 || length > int64(len(data))-offset {
		length = int64(len(data)) - offset
	}
	b := &bytesBlob{d: d, offset: offset, length: length, via: via}
	b.Reset(data[offset : offset+length])
	return b
}

type bytesBlob struct {
	bytes.Reader
	d              Descriptor
	offset, length int64
	via            Via
}

func (b *bytesBlob) Close() error           { return nil }
func (b *bytesBlob) Descriptor() Descriptor { return b.d }
func (b *bytesBlob) Span() (int64, int64)   { return b.offset, b.length }
func (b *bytesBlob) Via() Via               { return b.via }
