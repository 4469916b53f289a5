package cachetiers

import (
	"context"
	"io"
	"math"
	"os"

	"github.com/weir-registry/weir/registry"
)

// A need is what a reader waits for.
type need int

const (
	nothing  need = iota
	anAnswer      // of the far side, or of the disk
	aByte         // the one at interest.at
)

// A signal wakes one goroutine, which then looks for itself what is new.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) poke() {
	select {
	case s <- struct{}{}:
	default: // it will look
	}
}

// An interest is what one reader wants of a flight. All of it is guarded by
// the flight's mu, once the reader has joined.
type interest struct {
	signal
	at, end int64 // the next byte it wants, and behind the last
	whole   bool  // the blob to its end: what is given last is verified first
	ahead   bool  // the rest will be wanted too
	needs   need
	fed     bool // it has been given bytes
}

func newInterest(w registry.Want) *interest {
	in := &interest{signal: newSignal(), ahead: w.Ahead}
	in.wants(w, w.Size)
	return in
}

// wants says what w wants of a blob of size bytes (negative: not known).
//
// A run that ends before the blob does is no whole blob, so nothing of it waits
// for the digest: formats that are read in pieces have their table of contents
// at the end, and it must not cost all that is before it. Who puts a blob
// together from such runs has its digest to compare.
func (in *interest) wants(w registry.Want, size int64) {
	offset, length, ok := w.Clip(size)
	if !ok {
		in.at, in.end, in.whole = 0, 0, false // it will be told
		return
	}
	in.at, in.end = offset, offset+length
	if length < 0 || in.end < offset {
		in.end = math.MaxInt64
	}
	in.whole = length != 0 && (w.Length < 0 || offset == 0 && length == size)
}

// visibleLocked is up to where a reader that is at in.at may have bytes.
func (f *flight) visibleLocked(in *interest) int64 {
	switch {
	case f.done && f.err == nil:
		return f.n
	case f.done && (f.segs == nil || in.whole || registry.KindOf(f.err) != registry.ErrUnavailable):
		return 0
	case f.segs != nil:
		// What is there of a run is as good as before if a fill breaks off.
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

// servedLocked reports whether in has what it needs, or never will.
func (f *flight) servedLocked(in *interest) bool {
	switch {
	case f.done || in.needs == nothing:
		return true
	case in.needs == anAnswer:
		return f.ready
	}
	return f.visibleLocked(in) > in.at
}

// waitLocked returns when in has what it needs, the flight is done, or ctx is.
// It is called with f.mu held, and returns with it held.
func (f *flight) waitLocked(ctx context.Context, in *interest, needs need) error {
	in.needs = needs
	defer func() { in.needs = nothing }()
	if f.servedLocked(in) {
		return nil
	}
	if f.segs != nil {
		f.segs.startLocked() // it may be the one to be served first now
	}
	for !f.servedLocked(in) {
		f.mu.Unlock()
		select {
		case <-in.signal:
		case <-ctx.Done():
		}
		f.mu.Lock()
		if err := ctx.Err(); err != nil && !f.servedLocked(in) {
			return &registry.Error{Kind: registry.ErrUnavailable, Text: "wait for " + string(f.digest), After: retryAfter,
				Public: "what is behind did not answer in time", Err: err}
		}
	}
	return nil
}

// open makes one reader of the flight.
func (f *flight) open(ctx context.Context, w registry.Want, in *interest, joined, again bool) (registry.Blob, error) {
	wait, cancel := context.WithTimeout(ctx, f.t.o.Patience)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.waitLocked(wait, in, anAnswer); err != nil {
		return nil, err
	}
	if f.ready {
		in.wants(w, f.desc.Size) // which may be known only now
	}
	if small := f.ready && f.desc.Size >= 0 && f.desc.Size <= waitWhole; small && w.Length != 0 && (in.at < in.end || f.segs == nil) {
		if err := f.waitLocked(wait, in, aByte); err != nil {
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
	r := &reader{f: f, ctx: ctx, w: w, in: in, at: offset, offset: offset, length: length, via: f.via, again: again}
	r.desc = f.desc
	r.desc.Size = size
	r.via.Collapsed = joined && !f.via.Hit()
	if staged, ok := f.stage.(registry.FileStage); ok {
		file, err := staged.File()
		if err != nil {
			return nil, registry.Wrap(registry.ErrNoRoom, err, "open the staged bytes of "+string(f.digest))
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
	again          bool          // another flight has failed it before
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
	r.in.at = r.at
	if err := f.waitLocked(r.ctx, r.in, aByte); err != nil {
		return 0, err
	}
	n := f.visibleLocked(r.in) - r.at
	if n <= 0 && f.done {
		return 0, f.err
	}
	if end >= 0 {
		n = min(n, end-r.at)
	}
	r.in.fed = true
	return n, nil
}

// goOn continues without the flight, if that failed for want of room: by
// another one, where all who read this one meet again, or the second time
// without. What ended with the blob still does, and waits for its digest.
func (r *reader) goOn(err error) error {
	if registry.KindOf(err) != registry.ErrNoRoom {
		return err
	}
	w := r.w
	w.Offset = r.at
	if w.Length = -1; !r.in.whole && r.length >= 0 {
		w.Length = r.offset + r.length - r.at
	}
	rest, err := registry.Blob(nil), error(nil)
	if r.again {
		rest, err = r.f.t.direct(r.ctx, w)
	} else {
		rest, err = r.f.t.open(r.ctx, w, true)
	}
	if err == nil {
		r.rest = rest
	}
	return err
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
	if err := r.goOn(r.lost(err)); err != nil {
		return 0, err
	}
	return r.rest.Read(p)
}

// lost is that staged bytes cannot be read back: the disk they are on is no
// more use than one without room.
func (r *reader) lost(err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return &registry.Error{Kind: registry.ErrNoRoom, Text: "read the staged bytes of " + string(r.f.digest), Err: err}
}

// goOnTo is goOn for a WriteTo that has written so much.
func (r *reader) goOnTo(w io.Writer, written int64, err error) (int64, error) {
	if err := r.goOn(err); err != nil {
		return written, err
	}
	m, err := r.rest.WriteTo(w)
	return written + m, err
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
	run := io.LimitedReader{R: r.file}
	for {
		n, err := r.avail()
		if err != nil {
			return r.goOnTo(w, written, err)
		}
		if n == 0 {
			return written, nil
		}
		run.N = n
		m, err := to.ReadFrom(&run)
		written += m
		r.at += m
		if unreadable(err) || err == nil && m != n {
			return r.goOnTo(w, written, r.lost(err))
		}
		if err != nil {
			return written, err
		}
	}
}

type readerOnly struct{ io.Reader }
