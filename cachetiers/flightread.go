package cachetiers

import (
	"context"
	"io"
	"os"

	"github.com/weir-registry/weir/registry"
)

// visibleLocked is up to where a reader that is at in.at may have bytes.
func (f *flight) visibleLocked(in *interest) int64 {
	switch {
	case f.done && f.err == nil:
		return f.n
	case f.done:
		return 0
	case f.segs != nil:
		end := f.segs.reachLocked(in.at)
		if in.whole {
			end = min(end, max(f.desc.Size-holdBack, 0))
		}
		return end
	case f.desc.Size >= 0:
		return min(f.n, max(f.desc.Size-holdBack, 0))
	}
	return max(f.n-holdBack, 0)
}

// wait returns when ok says so, the flight is done, or ctx is. It is called
// with f.mu held, as ok is, and returns with it held.
func (f *flight) waitLocked(ctx context.Context, ok func() bool) error {
	for !ok() && !f.done {
		more := f.more
		f.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
		}
		f.mu.Lock()
		if err := ctx.Err(); err != nil && !ok() {
			return &registry.Error{Kind: registry.ErrUnavailable, Text: "wait for " + string(f.digest), After: retryAfter,
				Public: "what is behind did not answer in time", Err: err}
		}
	}
	return nil
}

// wanted is what w wants of a blob, whose size may not be known.
//
// A run that ends before the blob does is no whole blob, so nothing of it waits
// for the digest: formats that are read in pieces have their table of contents
// at the end, and it must not cost all that is before it. Who puts a blob
// together from such runs has its digest to compare.
func wanted(w registry.Want) *interest {
	in := &interest{at: w.Offset, end: w.Offset + w.Length, whole: w.Length < 0, ahead: w.Ahead}
	if in.whole || w.Size >= 0 && in.end > w.Size {
		in.end = w.Size
	}
	if w.Offset == 0 && w.Size >= 0 && in.end == w.Size {
		in.whole = true
	}
	return in
}

// open makes one reader of the flight.
func (f *flight) open(ctx context.Context, w registry.Want, in *interest, joined bool) (registry.Blob, error) {
	wait, cancel := context.WithTimeout(ctx, f.t.o.Patience)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.waitLocked(wait, func() bool { return f.ready }); err != nil {
		return nil, err
	}
	if small := f.ready && f.desc.Size >= 0 && f.desc.Size <= waitWhole; small && w.Length != 0 {
		if err := f.waitLocked(wait, func() bool { return f.visibleLocked(in) > w.Offset }); err != nil {
			return nil, err
		}
	}
	if f.done && f.err != nil {
		return nil, f.err
	}
	size := f.desc.Size
	if f.done {
		size = f.n
	}
	offset, length, ok := w.Clip(size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is past the end of %s", w.Offset, w.Digest)
	}
	r := &reader{f: f, ctx: ctx, w: w, in: in, at: offset, offset: offset, length: length, via: f.via}
	r.desc = f.desc
	r.desc.Size = size
	r.via.Collapsed = joined && !f.via.Hit()
	if staged, ok := f.stage.(registry.FileStage); ok {
		file, err := staged.File()
		if err != nil {
			return nil, registry.Wrap(registry.ErrUnavailable, err, "open the staged bytes of "+string(f.digest))
		}
		r.file = file
	}
	return r, nil
}

// reader is one reader of a flight, at its own offset.
type reader struct {
	f              *flight
	ctx            context.Context // Open's: it governs the blob's whole life
	w              registry.Want
	in             *interest
	desc           registry.Descriptor
	via            registry.Via
	offset, length int64
	at             int64         // where in the blob the next byte is
	file           *os.File      // nil: read the stage
	rest           registry.Blob // what goes on when there was no room to stage
	closed         bool
}

var _ registry.Blob = (*reader)(nil)

// Descriptor implements registry.Blob.
func (r *reader) Descriptor() registry.Descriptor { return r.desc }

// Span implements registry.Blob.
func (r *reader) Span() (int64, int64) { return r.offset, r.length }

// Via implements registry.Blob.
func (r *reader) Via() registry.Via { return r.via }

// Close implements registry.Blob: the reader leaves the flight, which goes on.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.file != nil {
		r.file.Close()
	}
	if r.rest != nil {
		r.rest.Close()
	}
	r.f.leave(r.in)
	return nil
}

// avail waits for bytes at r.at and returns how many there are; 0 is the end.
func (r *reader) avail() (int64, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	end := int64(-1)
	if r.length >= 0 {
		end = r.offset + r.length
	}
	if r.at == end {
		// Only the last bytes of a blob wait for verification, and they were
		// visible, so this run is as right as it can be known to be.
		return 0, nil
	}
	if err := f.waitForLocked(r.ctx, r.in, r.at); err != nil {
		return 0, err
	}
	if f.done && f.err != nil {
		return 0, f.err
	}
	n := f.visibleLocked(r.in) - r.at
	if end >= 0 {
		n = min(n, end-r.at)
	}
	return max(n, 0), nil
}

// waitForLocked waits until the byte at at may be had, and lets the fill know.
func (f *flight) waitForLocked(ctx context.Context, in *interest, at int64) error {
	in.at = at
	if f.visibleLocked(in) > at {
		return nil
	}
	in.waiting = true
	defer func() { in.waiting = false }()
	if f.segs != nil {
		f.segs.startLocked()
	}
	return f.waitLocked(ctx, func() bool { return f.visibleLocked(in) > at })
}

// goOn continues without the flight, if that failed for want of room.
func (r *reader) goOn(err error) error {
	if registry.KindOf(err) != registry.ErrNoRoom {
		return err
	}
	w := r.w
	w.Offset = r.at
	if r.length >= 0 {
		w.Length = r.offset + r.length - r.at
	}
	rest, derr := r.f.t.direct(r.ctx, w)
	if derr != nil {
		return derr
	}
	r.rest = rest
	return nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.rest != nil {
		return r.rest.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.avail()
	if err != nil {
		if err = r.goOn(err); err != nil {
			return 0, err
		}
		return r.rest.Read(p)
	}
	if n == 0 {
		return 0, io.EOF
	}
	m, err := r.f.stage.ReadAt(p[:min(int64(len(p)), n)], r.at)
	r.at += int64(m)
	if m > 0 {
		return m, nil
	}
	return 0, registry.Wrap(registry.ErrUnavailable, err, "read the staged bytes of "+string(r.f.digest))
}

// WriteTo implements io.WriterTo: from a file the kernel copies.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	to, ok := w.(io.ReaderFrom)
	if r.file == nil || !ok {
		return io.Copy(w, readerOnly{r})
	}
	if _, err := r.file.Seek(r.at, io.SeekStart); err != nil {
		return 0, registry.Wrap(registry.ErrUnavailable, err, "seek in the staged bytes of "+string(r.f.digest))
	}
	for {
		n, err := r.avail()
		if err != nil {
			if err = r.goOn(err); err != nil {
				return written, err
			}
			m, err := r.rest.WriteTo(w)
			return written + m, err
		}
		if n == 0 {
			return written, nil
		}
		m, err := to.ReadFrom(&io.LimitedReader{R: r.file, N: n})
		written += m
		r.at += m
		if err != nil {
			return written, err
		}
		if m != n {
			return written, registry.Errorf(registry.ErrUnavailable, "the staged bytes of %s are gone", r.f.digest)
		}
	}
}

type readerOnly struct{ io.Reader }
