package cachetiers

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// markEvery is how often the progress of a segment is noted for a fill
	// that may be cut off.
	markEvery = 1 << 20
	// followEvery is by how much the digest may be behind what is staged.
	followEvery = 2 << 20
	// runLinger is how long a fill of which all is there that anybody wants
	// waits for the next reader.
	runLinger = 2 * time.Second
)

// errUnwanted is why a fill ended of which everyone has had what he wanted.
var errUnwanted = errors.New("nobody wants the rest")

// segments is a flight that fills in segments: several at a time, those that
// readers wait for first. All of it is guarded by the flight's mu, but for what
// is set when it is made.
type segments struct {
	f     *flight
	ctx   context.Context // the flight's
	w     registry.Want   // for the whole blob
	stage segmentStage
	size  int64
	each  int64
	turn  signal // wakes the filling goroutine

	seg     []segment
	left    int   // segments that are not whole
	workers int   // goroutines that fetch
	ranged  bool  // the far side has given a run; until then one worker asks
	counted bool  // as a fill from behind
	all     bool  // someone wanted all of it
	follow  int64 // up to where the digest is; the filling goroutine's own
	err     error // the first failure
}

// segment is one of them.
type segment struct {
	taken  bool   // a worker is at it, or it is whole
	parked bool   // an earlier fill left all of it, if the disk still has it right
	have   int64  // bytes staged, from its beginning
	crc    uint32 // of those
}

// inSegments fills through stage. It returns when the blob is committed, when
// something failed, or when nobody wants more of it; in the last two cases what
// is staged is left for the next.
func (f *flight) inSegments(ctx context.Context, w registry.Want, stage segmentStage, left map[int]partial) error {
	n := int((w.Size + f.t.o.Segment - 1) / f.t.o.Segment)
	s := &segments{f: f, ctx: ctx, w: w, stage: stage, size: w.Size, each: f.t.o.Segment, turn: newSignal(),
		seg: make([]segment, n), left: n}
	for k := range s.seg {
		s.seg[k].parked = left[k].have == s.full(k)
	}
	f.set(func() {
		f.desc, f.stage, f.segs = w.Descriptor, stage, s
		s.startLocked()
	})
	err := s.run()
	if s.counted { // nobody else is left
		f.t.o.Meter.Fill(-1)
	}
	kind := registry.KindOf(err)
	if err != nil && kind != registry.ErrCorrupt && kind != registry.ErrNotFound {
		s.park()
	}
	return err
}

// park leaves what is staged, to the byte, for the next fill.
func (s *segments) park() {
	for k, g := range s.seg { // no worker is left that could change it
		if g.have > 0 && g.have < s.full(k) {
			s.stage.mark(k, g.have, g.crc)
		}
	}
	s.stage.park()
}

// run takes what is staged into the digest until the end. No worker is left
// when it returns.
func (s *segments) run() error {
	f := s.f
	for {
		to, err := s.wait()
		if err != nil {
			return err
		}
		if err := s.stage.follow(to); err != nil {
			s.stop(err)
			return err
		}
		if s.follow = to; to == s.size {
			_, err := s.stage.Commit(s.ctx)
			return err
		}
		if !s.wantedAgain() && f.t.unwanted(f) {
			return registry.Wrap(registry.ErrUnavailable, errUnwanted, "fill "+string(f.digest))
		}
	}
}

// end is where segment k ends.
func (s *segments) end(k int) int64 { return min(int64(k+1)*s.each, s.size) }

// full is how long it is.
func (s *segments) full(k int) int64 { return s.end(k) - int64(k)*s.each }

// wantedAgain reports whether anybody wants anything or has wanted it lately:
// who reads run by run is between two of them for a moment.
func (s *segments) wantedAgain() bool {
	s.f.mu.Lock()
	wanted := s.workers > 0 || len(s.f.wants) > 0
	s.f.mu.Unlock()
	if wanted {
		return true
	}
	select {
	case <-s.turn:
		return true
	case <-time.After(runLinger):
	case <-s.ctx.Done():
	}
	return false
}

// wait returns up to where the digest can go on, or why the fill has ended.
func (s *segments) wait() (to int64, err error) {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		to = s.reachLocked(s.follow)
		idle := s.workers == 0
		if idle && s.err != nil {
			return 0, s.err
		}
		if idle {
			// All that is wanted is there.
			s.readyLocked(registry.Via{Fwd: "miss", Detail: "partial"})
		}
		switch {
		case idle && s.left == 0:
			return s.size, nil
		case to-s.follow >= followEvery:
			return to, nil
		case idle && len(f.wants) == 0:
			return s.follow, nil
		}
		s.sleepLocked()
	}
}

// sleepLocked waits for something to have changed. Workers end with the
// flight's context, and say so.
func (s *segments) sleepLocked() {
	s.f.mu.Unlock()
	<-s.turn
	s.f.mu.Lock()
}

// stop ends the fill with err and waits for its workers.
func (s *segments) stop(err error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.failLocked(err)
	for s.workers > 0 {
		s.sleepLocked()
	}
}

func (s *segments) failLocked(err error) {
	if s.err == nil {
		s.err = err
	}
	s.f.cancel()
}

// readyLocked lets readers begin.
func (s *segments) readyLocked(via registry.Via) {
	if !s.f.ready {
		s.f.ready, s.f.via = true, via
		s.f.wakeLocked()
	}
}

// unwanted takes a flight that nobody reads, and of which nobody wants more,
// out of the map, and reports whether it was so.
func (t *Tier) unwanted(f *flight) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.mu.Lock()
	_, more := f.segs.pickLocked()
	idle := f.segs.workers == 0 && f.segs.left > 0 && !more
	f.mu.Unlock()
	if !idle || f.readers > 0 {
		return false
	}
	if t.flights[f.digest] == f {
		delete(t.flights, f.digest)
	}
	return true
}

// reachLocked is up to where bytes are staged without a gap from at on.
func (s *segments) reachLocked(at int64) int64 {
	for k := at / s.each; k < int64(len(s.seg)); k++ {
		have := k*s.each + s.seg[k].have
		if at = max(at, have); have < s.end(int(k)) {
			break
		}
	}
	return at
}

// pickLocked is the segment to fetch next: one that a reader waits for, else
// the next of what a reader wants, else any.
func (s *segments) pickLocked() (k int, ok bool) {
	for _, in := range s.f.wants {
		s.all = s.all || in.whole || in.ahead
		if at := int(in.at / s.each); !ok && in.needs == aByte && at < len(s.seg) && !s.seg[at].taken {
			k, ok = at, true
		}
	}
	if ok {
		return k, true
	}
	for _, in := range s.f.wants {
		if k, ok := s.freeLocked(in.at, in.end); ok {
			return k, true
		}
	}
	if s.all || s.hereLocked() {
		return s.freeLocked(0, s.size)
	}
	return 0, false
}

// hereLocked reports whether every segment is whole, if what an earlier fill
// left is right: then reading that back makes it a blob.
func (s *segments) hereLocked() bool {
	for k, g := range s.seg {
		if !g.parked && g.have < s.full(k) {
			return false
		}
	}
	return true
}

// freeLocked is the first segment from at to end that nobody has taken.
func (s *segments) freeLocked(at, end int64) (int, bool) {
	for k := at / s.each; k*s.each < end && k < int64(len(s.seg)); k++ {
		if !s.seg[k].taken {
			return int(k), true
		}
	}
	return 0, false
}

// startLocked sees that as many workers fetch as there are segments wanted.
func (s *segments) startLocked() {
	for s.err == nil && s.ctx.Err() == nil && (s.workers == 0 || s.ranged && s.workers < s.f.t.o.Streams) {
		k, ok := s.pickLocked()
		if !ok {
			return
		}
		s.seg[k].taken = true
		s.workers++
		go s.work(k)
	}
}

// work fetches segment k, and then others.
func (s *segments) work(k int) {
	f := s.f
	for ok := true; ok; {
		err := s.fetch(k)
		f.mu.Lock()
		if err != nil {
			s.seg[k].taken = false
		}
		// Refused where others are at it: there is no room for so many streams.
		spare := err != nil && s.workers > 1 && registry.KindOf(err) == registry.ErrUnavailable && registry.RetryAfter(err) > 0
		if err != nil && !spare {
			s.failLocked(err)
		}
		if k, ok = s.pickLocked(); ok && s.err == nil && !spare {
			s.seg[k].taken = true
		} else {
			ok = false
			s.workers--
		}
		s.turn.poke()
		f.mu.Unlock()
	}
}

// fetch stages segment k: what an earlier fill left of it, and the rest from
// the far side, opened again where it breaks off.
func (s *segments) fetch(k int) error {
	have, crc := s.stage.recall(k)
	s.staged(k, have, crc)
	r := &run{s: s, at: int64(k)*s.each + have, end: s.end(k), marked: int64(k)*s.each + have}
	for try := 0; r.at < r.end; try++ {
		before := r.placed
		err := r.fetch()
		if err == nil {
			continue
		}
		if r.placed > before {
			try = 0
		}
		if try >= retries || s.ctx.Err() != nil || !s.begun() || registry.KindOf(err) != registry.ErrUnavailable {
			return err
		}
		s.f.t.o.Log.Warn("fill broke off, going on where it was", "digest", s.f.digest, "at", r.at, "err", err)
		select {
		case <-time.After(max(100*time.Millisecond<<try, min(registry.RetryAfter(err), retryAfter))):
		case <-s.ctx.Done():
			return err
		}
	}
	return nil
}

// wantsAll reports whether the whole blob will be fetched.
func (s *segments) wantsAll() bool {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	return s.all
}

// begun reports whether the far side has answered this fill: from then on it is
// worth some patience, since readers have got bytes of it.
func (s *segments) begun() bool {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	return s.f.ready
}

// staged notes that segment k has have bytes.
func (s *segments) staged(k int, have int64, crc uint32) {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	g := &s.seg[k]
	if g.have < s.full(k) && have == s.full(k) {
		s.left--
	}
	g.parked = false // it has been looked at
	if have == s.full(k) || have/followEvery > g.have/followEvery {
		s.turn.poke()
	}
	f.n += have - g.have
	g.have, g.crc = have, crc
	f.wakeLocked()
}

// A run is bytes of a blob that one worker fetches: a segment, or all of it
// from a far side that gives no less.
type run struct {
	s       *segments
	at, end int64
	marked  int64 // up to where it has been noted
	placed  int64 // bytes that were not there before
}

// fetch stages what one answer of the far side gives.
func (r *run) fetch() error {
	s := r.s
	w := s.w
	w.Offset, w.Length, w.Ahead = r.at, r.end-r.at, s.wantsAll()
	far, err := s.f.t.far.Open(s.ctx, w)
	if registry.KindOf(err) == registry.ErrInvalid {
		return registry.Errorf(registry.ErrCorrupt, "%s ends before %d of the %d bytes that were announced: %v", s.f.digest, r.at, s.size, err)
	}
	if err != nil {
		return err
	}
	defer far.Close()
	if size := far.Descriptor().Size; size >= 0 && size != s.size {
		return registry.Errorf(registry.ErrCorrupt, "%s has %d bytes where %d were announced", s.f.digest, size, s.size)
	}
	s.answered(r, far)
	buf := s.f.t.buffer()
	defer s.f.t.buffers.Put(buf)
	for r.at < r.end {
		n, err := far.Read((*buf)[:min(int64(len(*buf)), r.end-r.at)])
		if werr := r.place((*buf)[:n]); werr != nil {
			return werr
		}
		switch {
		case r.at == r.end:
		case err == io.EOF:
			return registry.Errorf(registry.ErrUnavailable, "%s ended at %d of %d bytes", s.f.digest, r.at, s.size)
		case err != nil:
			return registry.Wrap(registry.ErrUnavailable, err, "read "+string(s.f.digest))
		}
	}
	return nil
}

// answered learns from the first answer whether the far side gives runs. If it
// gives the whole blob instead, r takes all of it.
func (s *segments) answered(r *run, far registry.Blob) {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.ranged {
		return
	}
	if wide, ok := far.(registry.Widener); ok && !s.whole(r) && wide.Widen() {
		r.at, r.end, r.marked = 0, s.size, 0
		for k := range s.seg {
			s.seg[k].taken = true
		}
	} else {
		s.ranged = true
	}
	if !s.counted && !far.Via().Hit() {
		s.counted = true
		f.t.o.Meter.Fill(1)
	}
	s.readyLocked(far.Via())
	f.via = far.Via()
	s.startLocked()
}

// whole reports whether r is all of the blob already.
func (s *segments) whole(r *run) bool { return r.end-r.at == s.size }

// place stages p at r.at, segment by segment. What is staged already is not
// written again: readers have it, and the digest too.
func (r *run) place(p []byte) error {
	s := r.s
	for len(p) > 0 {
		k := int(r.at / s.each)
		start, have, crc := int64(k)*s.each, s.seg[k].have, s.seg[k].crc // no other worker's now
		part := p[:min(int64(len(p)), s.end(k)-r.at)]
		p = p[len(part):]
		if skip := start + have - r.at; skip > 0 {
			skip = min(skip, int64(len(part)))
			r.at += skip
			part = part[skip:]
		}
		if len(part) == 0 {
			continue
		}
		if err := s.stage.place(part, r.at); err != nil {
			return err
		}
		r.at += int64(len(part))
		r.placed += int64(len(part))
		crc = crc32.Update(crc, castagnoli(), part)
		if r.at == s.end(k) || r.at-max(r.marked, start) >= markEvery {
			s.stage.mark(k, r.at-start, crc)
			r.marked = r.at
		}
		s.staged(k, r.at-start, crc)
	}
	return nil
}
