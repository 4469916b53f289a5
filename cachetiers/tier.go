package cachetiers

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// Options are a Tier's settings; the zero value is right.
type Options struct {
	// Name is the near store's, for metrics: "memory", "disk".
	Name string
	// Keep reports whether what w wants is to be kept near; what is not goes
	// straight through. nil: everything is.
	Keep func(w registry.Want) bool
	// Patience is for how long Open waits for the far side to answer; 0: 20 s.
	// The flight goes on, so that the next try may find it.
	Patience time.Duration
	// Linger is for how long a flight that no one reads any more goes on, so
	// that a client that tries again finds it; 0: 30 s. One that is half done
	// goes on to its end.
	Linger time.Duration
	// Orphans is how many flights may go on with no reader; 0: 32. Beyond it
	// a flight ends with its last reader.
	Orphans int
	// SegmentFrom is from what size on a blob is fetched in segments, if the
	// near store can stage it so; 0: 64 MiB.
	SegmentFrom int64
	// Segment is how large a segment is, in bytes, rounded up to a multiple of
	// 256 KiB, at most 1 GiB; 0: 8 MiB.
	Segment int64
	// Streams is how many segments of a blob are fetched at once; 0: 8.
	Streams int
	// Spare is how much memory fills may take, all together, that the near store
	// has no room for, so that their readers share one all the same; one of more
	// than half of it, or of unknown size, takes none. 0: 64 MiB; negative: none.
	Spare int64
	// Landed is called after a blob has been filled and verified, with the name
	// it was asked for by and where it came from. It must not wait. nil: nobody
	// is told.
	Landed func(d registry.Descriptor, from registry.Name, via registry.Via)
	Meter  registry.Meter
	Log    *slog.Logger
}

// A Tier is a near Store in front of a far Source, and is itself both, which
// is how tiers nest. Blobs staged in a Tier go to the store farthest back.
type Tier struct {
	near registry.Store
	far  registry.Source
	o    Options

	buffers sync.Pool    // of *[]byte, fillBuffer long, for flights
	spares  atomic.Int64 // bytes of the spare stages

	mu      sync.Mutex
	flights map[digest.Digest]*flight // guarded by mu; those that may be joined
	orphans int                       // guarded by mu; flights without readers
}

var _ registry.Store = (*Tier)(nil)

// NewTier puts near in front of far.
func NewTier(near registry.Store, far registry.Source, o Options) *Tier {
	if o.Patience <= 0 {
		o.Patience = 20 * time.Second
	}
	if o.Linger <= 0 {
		o.Linger = 30 * time.Second
	}
	if o.Orphans <= 0 {
		o.Orphans = 32
	}
	if o.SegmentFrom <= 0 {
		o.SegmentFrom = 64 << 20
	}
	if o.Segment <= 0 {
		o.Segment = 8 << 20
	}
	o.Segment = min((o.Segment+chunkBytes-1)/chunkBytes*chunkBytes, 1<<30)
	if o.Streams <= 0 {
		o.Streams = 8
	}
	if o.Spare == 0 {
		o.Spare = 64 << 20
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Tier{near: near, far: far, o: o, flights: make(map[digest.Digest]*flight)}
}

// buffer is one of fillBuffer bytes, to be given back to t.buffers.
func (t *Tier) buffer() *[]byte {
	if buf, ok := t.buffers.Get().(*[]byte); ok {
		return buf
	}
	b := make([]byte, fillBuffer)
	return &b
}

// Stage implements registry.Store: new blobs go to the store farthest back, and
// come near when they are read, or at once if Keep says that they may. If there
// is no room in that store they stay near.
func (t *Tier) Stage(ctx context.Context, expect registry.Descriptor) (registry.Stage, error) {
	if far, ok := t.far.(registry.Store); ok {
		s, err := far.Stage(ctx, expect)
		if err == nil && expect.Size >= 0 && t.o.Keep != nil && t.o.Keep(registry.Want{Descriptor: expect, Length: -1}) {
			if near, err := t.near.Stage(ctx, expect); err == nil {
				return &bothStage{s, near}, nil
			}
		}
		if registry.KindOf(err) != registry.ErrNoRoom {
			return s, err
		}
		t.o.Log.Warn("no room behind, kept near", "tier", t.o.Name, "err", err)
	}
	return t.near.Stage(ctx, expect)
}

// Open implements registry.Source. A blob that turns out damaged in the near
// store while it is read is continued from the far side.
func (t *Tier) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	b, err := t.open(ctx, w, false)
	if _, ok := t.far.(registry.Doubter); ok && ctx.Err() == nil && registry.KindOf(err) == registry.ErrCorrupt {
		// The far side knows that it was wrong, and may know better now.
		return t.open(ctx, w, false)
	}
	return b, err
}

// open is Open, again for one whose flight ended for want of room.
func (t *Tier) open(ctx context.Context, w registry.Want, again bool) (registry.Blob, error) {
	if w.Offset < 0 {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is before the beginning of %s", w.Offset, w.Digest)
	}
	if b, err := t.hit(ctx, w); b != nil || err != nil {
		return b, err
	}
	if t.o.Keep != nil && !t.o.Keep(w) {
		return t.far.Open(ctx, w)
	}
	in := newInterest(w)
	f, b, joined := t.join(ctx, w, in)
	if b != nil {
		return b, nil
	}
	if w.Length == 0 && f == nil {
		return t.far.Open(ctx, w)
	}
	b, err := f.open(ctx, w, in, joined, again)
	if err == nil {
		return b, nil
	}
	f.leave(in)
	// What failed after it had begun may have room elsewhere, and those who wait
	// for it meet there; but only once, lest a disk that takes a beginning and
	// nothing more makes it begin for ever.
	if ctx.Err() == nil && !again && f.lostRoom() {
		return t.open(ctx, w, true)
	}
	// A flight begun through another name may fail for reasons that are not
	// this reader's: another upstream, other credentials. And one that found
	// no room to stage in says nothing about the blob.
	if ctx.Err() == nil && (f.noRoom() || registry.KindOf(err) == registry.ErrNoRoom || joined && f.from != w.From) {
		return t.direct(ctx, w)
	}
	return nil, err
}

// hit opens w in the near store: nil and nil for a miss.
func (t *Tier) hit(ctx context.Context, w registry.Want) (registry.Blob, error) {
	b, err := t.near.Open(ctx, w)
	switch registry.KindOf(err) {
	case nil:
		if err == nil {
			t.o.Meter.TierHit(t.o.Name)
			return &healing{Blob: b, t: t, ctx: ctx, w: w}, nil
		}
	case registry.ErrNotFound:
		return nil, nil
	case registry.ErrInvalid:
		return nil, err
	}
	t.o.Log.Warn("near store", "tier", t.o.Name, "digest", w.Digest, "err", err)
	return nil, nil
}

// join finds the flight for w or begins one; or it finds the blob, if a flight
// landed since the miss. For a Want of nothing but the descriptor no flight is
// begun.
func (t *Tier) join(ctx context.Context, w registry.Want, in *interest) (f *flight, b registry.Blob, joined bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, joined = t.flights[w.Digest]
	if !joined {
		// A flight leaves the map only after its commit, so that one of the
		// two has it. The lock makes the look-up of misses one at a time.
		if b, _ := t.hit(ctx, w); b != nil {
			return nil, b, false
		}
		if w.Length == 0 {
			return nil, nil, false
		}
		f = newFlight(t, w)
		t.flights[w.Digest] = f
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f.cancel = cancel
		defer func() { go f.run(ctx, w) }()
	}
	if f.readers == 0 && joined {
		t.orphans--
		f.stopLinger()
	}
	f.readers++
	f.use(in)
	if joined {
		t.o.Meter.Collapsed()
	}
	return f, nil, joined
}

// leftLocked is called with t.mu held when f's last reader is gone.
func (t *Tier) leftLocked(f *flight) {
	if f.landed {
		return
	}
	t.orphans++
	if t.orphans > t.o.Orphans {
		t.abandonLocked(f)
		return
	}
	f.linger = time.AfterFunc(t.o.Linger, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case f.readers > 0 || f.landed:
		case f.halfDone() && !f.longer:
			// Soon done, but not for ever: an upstream may trickle.
			f.longer = true
			f.linger.Reset(longLinger)
		default:
			t.abandonLocked(f)
		}
	})
}

// abandonLocked takes f out of the map before it is cancelled: who comes after
// that begins anew instead of joining a flight that is about to fail.
func (t *Tier) abandonLocked(f *flight) {
	if t.flights[f.digest] == f {
		delete(t.flights, f.digest)
	}
	f.abandoned = true
	f.cancel()
}

// land takes f out of the map; it has been committed, or has failed, and land
// reports whether that is because it was abandoned.
func (t *Tier) land(f *flight) (abandoned bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flights[f.digest] == f {
		delete(t.flights, f.digest)
	}
	f.landed = true
	f.stopLinger()
	if f.readers == 0 {
		t.orphans--
	}
	return f.abandoned
}

// healing continues a blob from the far side when the near store finds it
// damaged; the near store has dropped it by then.
type healing struct {
	registry.Blob
	t    *Tier
	ctx  context.Context // Open's: it governs the blob's whole life
	w    registry.Want
	read int64
}

// heal reports whether b has been reopened behind what was read.
func (b *healing) heal(err error) bool {
	if registry.KindOf(err) != registry.ErrCorrupt || b.t == nil {
		return false
	}
	w := b.w
	w.Offset += b.read
	if w.Length >= 0 {
		w.Length -= b.read
	}
	if w.Length == 0 {
		return false
	}
	b.t.o.Log.Warn("damaged blob, fetched anew", "tier", b.t.o.Name, "digest", w.Digest, "err", err)
	next, err := b.t.Open(b.ctx, w)
	if err != nil {
		return false
	}
	b.Blob.Close()
	// Keep what was said of the run as it was opened; one repair is enough.
	b.Blob, b.t = &spanned{Blob: next, of: b.Blob}, nil
	return true
}

// Read implements io.Reader.
func (b *healing) Read(p []byte) (int, error) {
	n, err := b.Blob.Read(p)
	b.read += int64(n)
	if n == 0 && err != nil && err != io.EOF && b.heal(err) {
		return b.Read(p)
	}
	if n > 0 && registry.KindOf(err) == registry.ErrCorrupt {
		err = nil // told again by the next Read
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (b *healing) WriteTo(w io.Writer) (int64, error) {
	n, err := b.Blob.WriteTo(w)
	b.read += n
	if err != nil && b.heal(err) {
		m, err := b.Blob.WriteTo(w)
		return n + m, err
	}
	return n, err
}

// spanned is a blob that answers for another's place.
type spanned struct {
	registry.Blob
	of registry.Blob
}

// Span implements registry.Blob.
func (b *spanned) Span() (int64, int64) { return b.of.Span() }

// Via implements registry.Blob.
func (b *spanned) Via() registry.Via { return b.of.Via() }
