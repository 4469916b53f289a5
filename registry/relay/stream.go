package relay

import (
	"bufio"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// pace is the least time between two writes to a follower: changes that
	// come faster travel together.
	pace = time.Millisecond
	// snapshotTime is how long a snapshot may take.
	snapshotTime = 10 * time.Minute
)

// A stream is one follower's.
type stream struct {
	h    *Handler
	r    *http.Request
	w    http.ResponseWriter
	rc   *http.ResponseController
	node string
	done chan struct{} // closed by end
	// asked is when it was last asked whether the follower may still be connected.
	asked time.Time

	// What the follower has been sent.
	database string
	version  uint64
	hash     string // of version, as the follower says; "": sent by this stream
	have     bool   // false: it needs a snapshot

	mu    sync.Mutex
	ended bool // guarded by mu
}

// stream answers with frames until the follower, this node or the time is
// through with it.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, node string) {
	at, err := parseWhere(r.URL.RawQuery)
	if err != nil {
		refuse(w, err)
		return
	}
	own := h.c.Source.State()
	switch {
	case !own.Whole():
		refuse(w, &registry.Error{Kind: registry.ErrUnavailable, Text: "a node asked for entitlements", Public: "this node has no entitlements itself yet", After: time.Second})
		return
	case at.state.Whole() && at.state.Database != own.Database:
		refuse(w, registry.Errorf(registry.ErrConflict, "this node's entitlements are those of database %s", own.Database))
		return
	}
	s := &stream{h: h, r: r, w: w, rc: http.NewResponseController(w), node: node, done: make(chan struct{}),
		database: own.Database, version: at.state.Version, hash: at.state.Hash, have: at.state.Whole() && !at.fresh}
	if !at.probe {
		if err := h.enter(s); err != nil {
			refuse(w, err)
			return
		}
		defer h.leave(s)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if s.send(s.state(helloFrame, own)) == nil && !at.probe {
		s.run()
	}
}

// enter makes room for a stream. Of too many of one node the oldest ends: the
// node has lost it, most likely.
func (h *Handler) enter(s *stream) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return registry.Errorf(registry.ErrUnavailable, "this node is about to stop")
	case len(h.streams) >= h.c.Followers:
		h.c.Meter.Event("followers left out", s.node)
		return &registry.Error{Kind: registry.ErrUnavailable, Text: "too many nodes follow this one", Public: "too many nodes follow this one", After: time.Second}
	}
	if of := h.byNode[s.node]; len(of) >= streamsPerNode {
		of[0].end()
		h.byNode[s.node] = of[1:]
	}
	h.byNode[s.node] = append(h.byNode[s.node], s)
	h.streams[s] = struct{}{}
	return nil
}

func (h *Handler) leave(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, s)
	of := slices.DeleteFunc(slices.Clone(h.byNode[s.node]), func(other *stream) bool { return other == s })
	if h.byNode[s.node] = of; len(of) == 0 {
		delete(h.byNode, s.node)
	}
}

// end ends the stream: what waits ends at once, a write that is under way soon.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.done)
		_ = s.rc.SetWriteDeadline(time.Now().Add(endTime))
	}
}

// send writes frames, at once.
func (s *stream) send(frames ...[]byte) error {
	s.mu.Lock()
	if !s.ended {
		_ = s.rc.SetWriteDeadline(time.Now().Add(writeTime))
	}
	s.mu.Unlock()
	for _, b := range frames {
		if _, err := s.w.Write(b); err != nil {
			return err
		}
	}
	return s.rc.Flush()
}

// state is a frame that says how a copy is.
func (s *stream) state(kind byte, is registry.Standing) []byte {
	text, err := json.Marshal(stateOf(is, s.h.c.Now()))
	if err != nil {
		panic(err) // strings and numbers
	}
	return appendFrame(nil, kind, text)
}

// run sends what there is, waits for more, and so on.
func (s *stream) run() {
	life := time.NewTimer(streamLife - time.Duration(rand.Int64N(int64(streamLife/6)))) // not all at once
	defer life.Stop()
	tick := time.NewTimer(beat)
	defer tick.Stop()
	for {
		changed := s.h.c.Source.Changed()
		more, err := s.step()
		if err != nil {
			// Cut off: whoever reads must not take this for an end.
			panic(http.ErrAbortHandler)
		}
		sent := time.Now()
		if more {
			changed = closed()
		}
		tick.Reset(beat)
		select {
		case <-changed:
			if !more && !s.rest(pace-time.Since(sent)) {
				return
			}
		case <-tick.C:
		case <-life.C:
			_ = s.send(appendFrame(nil, byeFrame, nil)) // who is gone needs none
			return
		case <-s.done:
			return
		case <-s.r.Context().Done():
			return
		}
		if s.over() {
			return
		}
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// over reports whether the stream has to end, whatever there is to send.
func (s *stream) over() bool {
	select {
	case <-s.done:
		return true
	default:
	}
	if s.h.c.Still == nil || time.Since(s.asked) < beat {
		return false
	}
	s.asked = time.Now()
	return !s.h.c.Still(s.r)
}

// rest waits so that changes which follow one another closely travel together.
func (s *stream) rest(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.done:
		return false
	}
}

// step sends what the follower lacks, or part of it, and a confirmation if it
// has all. more reports whether there is more to be sent now.
func (s *stream) step() (more bool, err error) {
	own := s.h.c.Source.State()
	if own.Database != s.database {
		return false, registry.Errorf(registry.ErrGone, "this node follows another database now")
	}
	switch {
	case s.version > own.Version:
		// It followed a node that is ahead of this one, or the database has
		// lost something. It can tell which. A snapshot that is older it would
		// not take.
		return false, s.send(s.state(helloFrame, own))
	case !s.have:
		return s.snapshot(own.Version)
	case s.version == own.Version && s.hash != "" && s.hash != own.Hash:
		s.have = false // it has something else under this version
		return true, nil
	case s.version == own.Version:
		s.hash = ""
		return false, s.send(s.state(confirmFrame, own))
	}
	batch, to, ok := s.h.deltas(s.database, s.version, own.Version)
	if !ok {
		s.have = false
		return true, nil
	}
	s.version, s.hash = to, ""
	if to == own.Version {
		return false, s.send(batch, s.state(confirmFrame, own))
	}
	return true, s.send(batch)
}

// snapshot sends a snapshot, which is of the given version or a later one. What
// the follower then has twice it passes over.
func (s *stream) snapshot(version uint64) (more bool, err error) {
	select {
	case s.h.snapshots <- struct{}{}:
		defer func() { <-s.h.snapshots }()
	default:
		// Its turn will come; the follower hears until then that this node lives.
		return false, s.send(s.state(helloFrame, s.h.c.Source.State()))
	}
	begun := time.Now()
	p := &pieceWriter{send: func(b []byte) error {
		if s.over() || time.Since(begun) > snapshotTime {
			return registry.Errorf(registry.ErrUnavailable, "the snapshot was cut off")
		}
		return s.send(b)
	}}
	buffered := bufio.NewWriterSize(p, maxPiece)
	if err := s.h.c.Source.WriteSnapshot(buffered); err != nil {
		return false, err
	}
	if err := buffered.Flush(); err != nil {
		return false, err
	}
	if err := p.end(); err != nil {
		return false, err
	}
	s.version, s.hash, s.have = version, "", true
	return true, nil
}

// shared is the frames of changes that were made last. Followers that are up to
// date need the same.
type shared struct {
	mu       sync.Mutex
	database string // guarded by mu
	from, to uint64 // guarded by mu
	frames   []byte // guarded by mu; its bytes are never changed
}

// deltas is a frame of the changes from one version to another, or the first of
// them, and which version they lead to. false: they are not to be had.
func (h *Handler) deltas(database string, from, until uint64) (frame []byte, to uint64, ok bool) {
	h.shared.mu.Lock()
	defer h.shared.mu.Unlock()
	if h.shared.database == database && h.shared.from == from && h.shared.to <= until {
		return h.shared.frames, h.shared.to, true
	}
	ds, ok := h.c.Source.Deltas(from)
	if !ok || len(ds) == 0 || ds[0].Prev != from {
		return nil, 0, false
	}
	size, n := 0, 0
	for n < len(ds) && ds[n].Version <= until && (n == 0 || size+deltaSize(ds[n]) <= manyDeltas) {
		size += deltaSize(ds[n])
		n++
	}
	if n == 0 {
		return nil, 0, false
	}
	text, err := json.Marshal(ds[:n])
	if err != nil || len(text) > maxDeltas {
		return nil, 0, false
	}
	h.shared.database, h.shared.from, h.shared.to = database, from, ds[n-1].Version
	h.shared.frames = appendFrame(make([]byte, 0, len(text)+frameHead), deltaFrame, text)
	return h.shared.frames, h.shared.to, true
}

// deltaSize is about how long a change is as text.
func deltaSize(d registry.Delta) int {
	size := 64
	for _, r := range d.Records {
		size += 64 + len(r.Key) + len(r.Value)*4/3
	}
	return size
}
