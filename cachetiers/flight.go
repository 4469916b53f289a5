package cachetiers

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

const (
	// holdBack is how many bytes at a blob's end wait for the digest to be
	// checked: all that it takes is one, a few let small documents fail with a
	// status instead of a broken connection.
	holdBack = 16 << 10
	// waitWhole is up to what size Open waits for bytes, so that a failure can
	// still be answered with a status.
	waitWhole = 1 << 20
	// fillBuffer is how much is read from the far side at once.
	fillBuffer = 256 << 10
	// retries is how often a far side that breaks off is reopened where it
	// was, without progress in between.
	retries = 4
	// retryAfter is what a reader is told whose patience was too short.
	retryAfter = 5 * time.Second
	// longLinger is for how long a flight that is more than half done goes on
	// without readers.
	longLinger = 10 * time.Minute
	// finishBytes: with less than this to go, a flight without readers ends.
	finishBytes = 16 << 20
)

// A flight is one fill of the near store from the far side, and what its
// readers share.
type flight struct {
	t      *Tier
	digest digest.Digest
	from   registry.Name
	cancel context.CancelFunc

	readers int         // guarded by t.mu
	landed  bool        // guarded by t.mu
	linger  *time.Timer // guarded by t.mu
	longer  bool        // guarded by t.mu; linger runs for the second time

	mu    sync.Mutex
	more  chan struct{}       // guarded by mu; closed and replaced when anything below changes
	ready bool                // guarded by mu; the far side has answered
	desc  registry.Descriptor // guarded by mu; set when ready
	via   registry.Via        // guarded by mu; set when ready
	stage registry.Stage      // guarded by mu; set when ready
	n     int64               // guarded by mu; bytes staged
	done  bool                // guarded by mu; committed, or failed with err
	err   error               // guarded by mu
	users int                 // guarded by mu; who still needs stage: readers and the fill
}

func newFlight(t *Tier, w registry.Want) *flight {
	return &flight{t: t, digest: w.Digest, from: w.From, more: make(chan struct{}), users: 1}
}

// run fills the near store; it is the flight's only writer.
func (f *flight) run(ctx context.Context, w registry.Want) {
	w.Offset, w.Length = 0, -1
	err := f.fill(ctx, w)
	abandoned := ctx.Err() != nil
	f.cancel()
	if err != nil && errors.Is(err, context.Canceled) {
		err = registry.Wrap(registry.ErrUnavailable, err, "fill abandoned by its readers")
	}
	f.t.land(f) // before the readers learn of it: who comes now looks near again
	f.set(func() { f.done, f.err = true, err })
	f.release()
	if err != nil && !abandoned && registry.KindOf(err) != registry.ErrNotFound {
		f.t.o.Log.Warn("fill", "tier", f.t.o.Name, "digest", f.digest, "from", f.from.String(), "err", err)
	}
}

func (f *flight) fill(ctx context.Context, w registry.Want) error {
	far, err := f.t.far.Open(ctx, w)
	if err != nil {
		return err
	}
	defer func() { far.Close() }()
	d := far.Descriptor()
	if d.Size < 0 {
		d.Size = w.Size
	}
	if w.Size >= 0 && d.Size != w.Size {
		return registry.Errorf(registry.ErrCorrupt, "%s has %d bytes where %d were announced", w.Digest, d.Size, w.Size)
	}
	d.Digest = w.Digest
	if w.MediaType != "" {
		d.MediaType = w.MediaType
	}
	stage, err := f.t.near.Stage(ctx, d)
	if err != nil {
		return err
	}
	via := far.Via()
	if !via.Hit() {
		f.t.o.Meter.Fill(1)
		defer f.t.o.Meter.Fill(-1)
	}
	f.set(func() { f.ready, f.desc, f.via, f.stage = true, d, via, stage })
	for try := 0; ; try++ {
		n, err := f.copy(far, stage, d.Size)
		if err == nil {
			_, err = stage.Commit(ctx)
			return err
		}
		if n > 0 {
			try = 0
		}
		if try >= retries || ctx.Err() != nil || registry.KindOf(err) != registry.ErrUnavailable {
			return err
		}
		far, err = f.reopen(ctx, w, far, try, err)
		if registry.KindOf(err) == registry.ErrInvalid && d.Size < 0 {
			// There is nothing after what is staged: it broke off at its very
			// end. Whether that is so the digest will tell.
			_, err = stage.Commit(ctx)
			return err
		}
		if err != nil {
			return err
		}
	}
}

// reopen opens the far side again where it broke off with cause.
func (f *flight) reopen(ctx context.Context, w registry.Want, far registry.Blob, try int, cause error) (registry.Blob, error) {
	f.t.o.Log.Warn("fill broke off, going on where it was", "digest", f.digest, "at", f.staged(), "err", cause)
	select {
	case <-time.After(100 * time.Millisecond << try):
	case <-ctx.Done():
		return far, cause
	}
	w.Offset = f.staged()
	next, err := f.t.far.Open(ctx, w)
	if err != nil {
		return far, err
	}
	far.Close()
	return next, nil
}

// copy stages what far gives; how many bytes it staged tells whether there was
// progress.
func (f *flight) copy(far registry.Blob, stage registry.Stage, size int64) (staged int64, err error) {
	buf, _ := f.t.buffers.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, fillBuffer)
		buf = &b
	}
	defer f.t.buffers.Put(buf)
	for {
		n, err := far.Read(*buf)
		if n > 0 {
			if _, werr := stage.Write((*buf)[:n]); werr != nil {
				return staged, werr
			}
			staged += int64(n)
			f.set(func() { f.n += int64(n) })
			if total := f.staged(); size >= 0 && total > size {
				return staged, registry.Errorf(registry.ErrCorrupt, "%s goes on after its %d bytes", f.digest, size)
			}
		}
		switch {
		case err == nil:
		case err != io.EOF:
			return staged, registry.Wrap(registry.ErrUnavailable, err, "read "+string(f.digest))
		case size >= 0 && f.staged() < size:
			return staged, registry.Errorf(registry.ErrUnavailable, "%s ended after %d of %d bytes", f.digest, f.staged(), size)
		default:
			return staged, nil
		}
	}
}

// set changes what readers wait for and wakes them.
func (f *flight) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.more)
	f.more = make(chan struct{})
}

func (f *flight) staged() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *flight) halfDone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.desc.Size >= 0 && (f.n*2 >= f.desc.Size || f.desc.Size-f.n < finishBytes)
}

func (f *flight) noRoom() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done && registry.KindOf(f.err) == registry.ErrNoRoom
}

// stopLinger is called with t.mu held.
func (f *flight) stopLinger() {
	if f.linger != nil {
		f.linger.Stop()
		f.linger, f.longer = nil, false
	}
}

// use keeps the stage open until release.
func (f *flight) use() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
}

// leave is called once by each who joined.
func (f *flight) leave() {
	f.t.mu.Lock()
	f.readers--
	if f.readers == 0 {
		f.t.leftLocked(f)
	}
	f.t.mu.Unlock()
	f.release()
}

// release gives up one use of the stage; the last one closes it.
func (f *flight) release() {
	f.mu.Lock()
	f.users--
	last := f.users == 0
	stage := f.stage
	f.mu.Unlock()
	if last && stage != nil {
		stage.Close()
	}
}

// visibleLocked is how many bytes readers may have.
func (f *flight) visibleLocked() int64 {
	switch {
	case f.done && f.err == nil:
		return f.n
	case f.done:
		return 0
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

// open makes one reader of the flight.
func (f *flight) open(ctx context.Context, w registry.Want, joined bool) (registry.Blob, error) {
	wait, cancel := context.WithTimeout(ctx, f.t.o.Patience)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.waitLocked(wait, func() bool { return f.ready }); err != nil {
		return nil, err
	}
	if small := f.ready && f.desc.Size >= 0 && f.desc.Size <= waitWhole; small && w.Length != 0 {
		if err := f.waitLocked(wait, func() bool { return f.visibleLocked() > w.Offset }); err != nil {
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
	r := &reader{f: f, ctx: ctx, w: w, at: offset, offset: offset, length: length, via: f.via}
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
	r.f.leave()
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
	if err := f.waitLocked(r.ctx, func() bool { return f.visibleLocked() > r.at }); err != nil {
		return 0, err
	}
	if f.done && f.err != nil {
		return 0, f.err
	}
	n := f.visibleLocked() - r.at
	if end >= 0 {
		n = min(n, end-r.at)
	}
	return max(n, 0), nil
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
