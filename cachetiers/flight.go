package cachetiers

import (
	"context"
	"errors"
	"io"
	"slices"
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
	// wakeEnough is for how many bytes a reader is woken that has had some, and
	// wakeDelay how long it waits for them.
	wakeEnough = 128 << 10
	wakeDelay  = 2 * time.Millisecond
	// maxSegmented is the largest blob there is: its segments are counted in
	// memory, and a size is what someone else's manifest says.
	maxSegmented = 1 << 43
)

// A flight is one fill of the near store from the far side, and what its
// readers share.
type flight struct {
	t      *Tier
	digest digest.Digest
	from   registry.Name
	cancel context.CancelFunc

	readers   int         // guarded by t.mu
	landed    bool        // guarded by t.mu
	abandoned bool        // guarded by t.mu
	linger    *time.Timer // guarded by t.mu
	longer    bool        // guarded by t.mu; linger runs for the second time

	mu     sync.Mutex
	ready  bool                // guarded by mu; the far side has answered
	desc   registry.Descriptor // guarded by mu; set when ready
	via    registry.Via        // guarded by mu; set when ready
	stage  registry.Stage      // guarded by mu; set when ready
	n      int64               // guarded by mu; bytes staged
	segs   *segments           // guarded by mu; nil: one stream fills it in order
	wants  []*interest         // guarded by mu; what its readers want, first come first
	waking bool                // guarded by mu; wakeLate will be called
	done   bool                // guarded by mu; committed, or failed with err
	err    error               // guarded by mu
	users  int                 // guarded by mu; who still needs stage: readers and the fill
}

func newFlight(t *Tier, w registry.Want) *flight {
	return &flight{t: t, digest: w.Digest, from: w.From, users: 1}
}

// run fills the near store; it is the flight's only writer.
func (f *flight) run(ctx context.Context, w registry.Want) {
	w.Offset, w.Length = 0, -1
	err := f.fill(ctx, w)
	f.cancel()
	if err != nil && errors.Is(err, context.Canceled) {
		err = registry.Wrap(registry.ErrUnavailable, err, "fill abandoned by its readers")
	}
	if far, ok := f.t.far.(registry.Doubter); ok && registry.KindOf(err) == registry.ErrCorrupt {
		f.mu.Lock()
		via := f.via
		f.mu.Unlock()
		far.Doubt(w, via) // before who tries again asks behind
	}
	abandoned := f.t.land(f) // before the readers learn of it: who comes now looks near again
	var d registry.Descriptor
	var via registry.Via
	kept := false
	f.set(func() {
		f.done, f.err, d, via = true, err, f.desc, f.via
		_, spare := f.stage.(*spareStage)
		kept = !spare
	})
	f.release()
	switch kind := registry.KindOf(err); {
	case err == nil && kept && f.t.o.Landed != nil:
		d.Size = f.staged()
		f.t.o.Landed(d, f.from, via)
	case err == nil || abandoned || errors.Is(err, errUnwanted) || kind == registry.ErrNotFound:
	case kind == registry.ErrNoRoom: // the store has said so itself, once and not for each blob
	default:
		f.t.o.Log.Warn("fill", "tier", f.t.o.Name, "digest", f.digest, "from", f.from.String(), "err", err)
	}
}

// fill chooses how: large blobs of known size in segments, others in one stream.
func (f *flight) fill(ctx context.Context, w registry.Want) error {
	store, ok := f.t.near.(segmentStore)
	if !ok || w.Size < f.t.o.SegmentFrom {
		return f.stream(ctx, w)
	}
	if w.Size > maxSegmented {
		// Whoever says so is wrong, which those who read it will be told.
		return registry.Errorf(registry.ErrNoRoom, "%s is said to have %d bytes", w.Digest, w.Size)
	}
	stage, left, err := store.stageSegments(ctx, w.Descriptor, f.t.o.Segment)
	if err != nil {
		return err
	}
	return f.inSegments(ctx, w, stage, left)
}

// stream fills from one stream, in order.
func (f *flight) stream(ctx context.Context, w registry.Want) error {
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
	if registry.KindOf(err) == registry.ErrNoRoom {
		if spare := f.t.spare(d); spare != nil {
			stage, err = spare, nil
		}
	}
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
	buf := f.t.buffer()
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
	f.wakeLocked()
}

// wakeLocked wakes those readers who have what they wait for. With many readers
// at the place where bytes arrive it is dear to wake all for each few of them:
// who has been given some before waits until there are enough, or a moment.
func (f *flight) wakeLocked() {
	late := false
	for _, in := range f.wants {
		switch {
		case in.needs == nothing || !f.servedLocked(in):
		case f.done || in.needs != aByte || !in.fed || f.enoughLocked(in):
			in.poke()
		default:
			late = true
		}
	}
	if late && !f.waking {
		f.waking = true
		time.AfterFunc(wakeDelay, f.wakeLate)
	}
}

// enoughLocked reports whether it is worth it to wake in.
func (f *flight) enoughLocked(in *interest) bool {
	to := f.visibleLocked(in)
	return to-in.at >= wakeEnough || to >= in.end
}

// wakeLate wakes who has not enough.
func (f *flight) wakeLate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waking = false
	for _, in := range f.wants {
		if in.needs != nothing && f.servedLocked(in) {
			in.poke()
		}
	}
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

// lostRoom is noRoom for a flight that had begun to stage.
func (f *flight) lostRoom() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done && registry.KindOf(f.err) == registry.ErrNoRoom && f.stage != nil
}

// stopLinger is called with t.mu held.
func (f *flight) stopLinger() {
	if f.linger != nil {
		f.linger.Stop()
		f.linger, f.longer = nil, false
	}
}

// use keeps the stage open until release, for a reader that wants in.
func (f *flight) use(in *interest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
	f.wants = append(f.wants, in)
	if f.segs != nil {
		f.segs.startLocked()
	}
}

// leave is called once by each who joined, with what it wanted.
func (f *flight) leave(in *interest) {
	f.t.mu.Lock()
	f.readers--
	if f.readers == 0 {
		f.t.leftLocked(f)
	}
	f.t.mu.Unlock()
	f.mu.Lock()
	if i := slices.Index(f.wants, in); i >= 0 {
		f.wants = slices.Delete(f.wants, i, i+1)
	}
	if f.segs != nil {
		f.segs.turn.poke()
	}
	f.mu.Unlock()
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
