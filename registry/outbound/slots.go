package outbound

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// smallBytes is the largest blob that counts as small.
	smallBytes = 1 << 20
	// queueFactor is how many requests may wait for each slot there is.
	queueFactor = 4
	// reserved is the share of the slots, one in so many, that is for small
	// answers that someone waits for, and for nothing else.
	reserved = 4
	// busyAfter is when one that was refused for want of a slot may try again.
	busyAfter = 2 * time.Second
)

// A Load says what a request asks of an upstream, for the order in which
// requests are sent, and refused, when there are more than may be open at
// once. The zero value is a document that someone waits for.
type Load struct {
	// Blob reports that the request is for bytes found by their digest, not
	// for a document found by its name. An upstream that limits how often it
	// may be asked for the one may well have the other to give.
	Blob bool
	// Size is the whole blob's, in bytes, also where a part of it is asked
	// for; 0 or negative: not known, which counts as small.
	Size int64
	// Background reports that no client waits for the answer: a document is
	// asked for because the one at hand is getting old, a blob before anyone
	// wants it.
	Background bool
	// Subject is the repository or package that it is about, so that what is
	// wrong with one is not taken for what is wrong with all; "": the address.
	Subject string
}

// LoadOf is the Load of a request for w, of which blob says whether it is one.
func LoadOf(w registry.Want, blob bool) Load {
	l := Load{Blob: blob, Size: w.Size, Background: w.Background, Subject: w.From.Repo}
	if w.Length == 0 {
		l.Size = 0 // a HEAD is as small as any
	}
	return l
}

// A class is where a Load stands in the queue: the lower first.
type class int

const (
	small        class = iota // documents and small blobs that someone waits for
	large                     // blobs that someone waits for
	revalidation              // documents that nobody waits for
	prefetch                  // blobs that nobody waits for
	classes
)

func (l Load) class() class {
	switch {
	case l.Background && l.Blob:
		return prefetch
	case l.Background:
		return revalidation
	case l.Blob && l.Size > smallBytes:
		return large
	}
	return small
}

// slots bound how many requests are open at an upstream at once, each from
// before it is sent to the end of its answer's body, and put the others in
// order: by class, and first come, first served within one. Who has waited for
// a step of time stands one class higher, so that nobody waits for ever. A
// part of the slots is for the small alone, so that no number of large blobs
// can keep a manifest waiting.
//
// The queue is bounded too. When it is full, one of the lowest class in it is
// refused, the largest of that class, and among equals the last to come: under
// overload prefetches go first, then revalidations, then the largest blobs.
type slots struct {
	name  string // of the upstream, for errors
	total int
	heavy int           // how many may be of another class than small
	room  int           // how many may wait
	step  time.Duration // of waiting, worth a class

	mu      sync.Mutex
	active  int                // guarded by mu
	heavies int                // guarded by mu; those of active that are not small
	waiting int                // guarded by mu; the length of the queues
	queues  [classes]list.List // guarded by mu; of *waiter, oldest first
	arrived int64              // guarded by mu; numbers the waiters
}

// waiter is one request that has no slot yet.
type waiter struct {
	class class
	size  int64
	since time.Time
	nr    int64         // in the order of arrival
	at    *list.Element // guarded by slots.mu; nil: decided
	err   error         // guarded by slots.mu; why it is refused
	done  chan struct{} // closed when it is decided
}

// newSlots are total slots. step is how long a class is waited for.
func newSlots(name string, total int, step time.Duration) *slots {
	return &slots{name: name, total: total, heavy: total - total/reserved, room: total * queueFactor, step: step}
}

// A slot is held until it is released, which may be done more than once.
type slot struct {
	s     *slots
	heavy bool
	once  sync.Once
}

func (sl *slot) release() {
	sl.once.Do(func() {
		sl.s.mu.Lock()
		defer sl.s.mu.Unlock()
		sl.s.freeLocked(sl.heavy)
	})
}

// take waits for a slot for l, but not longer than limit, nor than ctx allows.
// Errors: ErrUnavailable if there are too many, or ctx's cause.
func (s *slots) take(ctx context.Context, l Load, limit time.Duration) (*slot, error) {
	w := s.enter(l)
	select {
	case <-w.done: // the usual case costs no timer
	default:
		timer := time.NewTimer(limit)
		defer timer.Stop()
		var why error
		select {
		case <-w.done:
		case <-timer.C:
			why = s.busy("no slot became free in time")
		case <-ctx.Done():
			why = context.Cause(ctx)
		}
		if why != nil && s.leave(w) {
			return nil, why
		}
	}
	if w.err != nil {
		return nil, w.err
	}
	return &slot{s: s, heavy: w.class != small}, nil
}

// enter puts a waiter for l in the queue, where it may be decided at once.
func (s *slots) enter(l Load) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived++
	w := &waiter{class: l.class(), size: max(l.Size, 0), since: time.Now(), nr: s.arrived, done: make(chan struct{})}
	w.at = s.queues[w.class].PushBack(w)
	s.waiting++
	s.dispatchLocked()
	if s.waiting > s.room {
		s.refuseLocked()
	}
	return w
}

// leave takes w out of the queue and reports true, or false if it has been
// decided by now: then it has a slot, or an error.
func (s *slots) leave(w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.at == nil {
		return false
	}
	s.outLocked(w) // who stands behind w has no more right to a slot than w had
	return true
}

// outLocked takes w out of its queue, decided.
func (s *slots) outLocked(w *waiter) {
	s.queues[w.class].Remove(w.at)
	w.at = nil
	s.waiting--
	close(w.done)
}

func (s *slots) freeLocked(heavy bool) {
	s.active--
	if heavy {
		s.heavies--
	}
	s.dispatchLocked()
}

// dispatchLocked gives what slots are free to those whose turn it is.
func (s *slots) dispatchLocked() {
	for s.active < s.total {
		w := s.nextLocked()
		if w == nil {
			return
		}
		s.active++
		if w.class != small {
			s.heavies++
		}
		s.outLocked(w)
	}
}

// nextLocked is whose turn it is, nil if nobody may have a slot. Only the
// oldest of each class can be: the others of it stand no higher.
func (s *slots) nextLocked() *waiter {
	now := time.Now()
	var best *waiter
	var bestRank class
	for c := range s.queues {
		front := s.queues[c].Front()
		if front == nil || class(c) != small && s.heavies >= s.heavy {
			continue
		}
		w := front.Value.(*waiter)
		rank := max(w.class-class(now.Sub(w.since)/s.step), small)
		if best == nil || rank < bestRank || rank == bestRank && w.nr < best.nr {
			best, bestRank = w, rank
		}
	}
	return best
}

// refuseLocked makes room in the queue.
func (s *slots) refuseLocked() {
	for c := classes - 1; c >= 0; c-- {
		var worst *waiter
		for e := s.queues[c].Front(); e != nil; e = e.Next() {
			if w := e.Value.(*waiter); worst == nil || c != small && w.size > worst.size || c == small || w.size == worst.size {
				worst = w
			}
		}
		if worst != nil {
			worst.err = s.busy("the queue is full")
			s.outLocked(worst)
			return
		}
	}
}

// busy is what one is told for whom there is no slot.
func (s *slots) busy(why string) error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: s.name + " is not asked: " + why,
		Public: "too many requests are waiting for " + s.name, After: busyAfter}
}

// counts are how many wait and how many have a slot.
func (s *slots) counts() (waiting, active int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting, s.active
}
