package outbound

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// The loads of the four classes.
var (
	aDoc   = Load{}
	aBlob  = Load{Blob: true, Size: 8 << 20}
	aCheck = Load{Background: true}
	ahead  = Load{Blob: true, Background: true}
)

func TestClasses(t *testing.T) {
	for l, want := range map[Load]class{
		aDoc: small, {Blob: true}: small, {Blob: true, Size: -1}: small, {Blob: true, Size: 1 << 20}: small,
		{Blob: true, Size: 1<<20 + 1}: large, {Size: 1 << 30}: small, aCheck: revalidation, ahead: prefetch,
		{Blob: true, Background: true, Size: 1}: prefetch,
	} {
		if l.class() != want {
			t.Errorf("%+v is of class %d", l, l.class())
		}
	}
	w := registry.Want{Descriptor: registry.Descriptor{Size: 1 << 30}, Length: -1, Background: true, From: registry.Name{Repo: "r"}}
	if l := LoadOf(w, true); l != (Load{Blob: true, Size: 1 << 30, Background: true, Subject: "r"}) {
		t.Errorf("%+v", l)
	}
	if w.Length = 0; LoadOf(w, true).Size != 0 {
		t.Error("a HEAD is large")
	}
}

// granted are those of list that have been given a slot.
func granted(list []*waiter) (got []int) {
	for i, w := range list {
		select {
		case <-w.done:
			if w.err == nil {
				got = append(got, i)
			}
		default:
		}
	}
	return got
}

// TestOrder: with one slot, whose turn it is.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots("up", 1, time.Hour)
		s.room = 100
		list := []*waiter{s.enter(aDoc)} // has the slot
		for _, l := range []Load{ahead, aCheck, aBlob, aDoc, ahead, aCheck, aBlob, aDoc} {
			list = append(list, s.enter(l))
		}
		seen := granted(list)
		for range len(list) - 1 {
			s.free(list[seen[len(seen)-1]].class != small)
			for _, i := range granted(list) {
				if !slices.Contains(seen, i) {
					seen = append(seen, i)
				}
			}
		}
		if want := []int{0, 4, 8, 3, 7, 2, 6, 1, 5}; !slices.Equal(seen, want) {
			t.Errorf("in the order of %v, want %v", seen, want)
		}
	})
}

// free is what slot.release does, for a waiter.
func (s *slots) free(heavy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeLocked(heavy)
}

// TestAging: who has waited for long enough is before those who came since.
func TestAging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, l := range []Load{aBlob, aCheck, ahead} {
			s := newSlots("up", 1, time.Second)
			first := s.enter(aDoc)
			old := s.enter(l)
			<-time.After(time.Duration(i+1)*time.Second - 1)
			before := s.enter(aDoc)
			s.free(false)
			if len(granted([]*waiter{first, before})) != 2 {
				t.Errorf("%+v: a step has not passed", l)
			}
			<-time.After(1)
			since := s.enter(aDoc)
			s.free(false)
			if got := granted([]*waiter{old, since}); !slices.Equal(got, []int{0}) {
				t.Errorf("%+v after its time: %v", l, got)
			}
		}
	})
}

// TestReserve: no number of anything else keeps small answers from a quarter
// of the slots.
func TestReserve(t *testing.T) {
	for total, want := range map[int]int{1: 1, 2: 2, 3: 3, 4: 3, 8: 6, 64: 48} {
		for _, l := range []Load{aBlob, aCheck, ahead} {
			s := newSlots("up", total, time.Hour)
			var list []*waiter
			for range total {
				list = append(list, s.enter(l))
			}
			if got := len(granted(list)); got != want {
				t.Errorf("%d of %d slots for %+v, want %d", got, total, l, want)
			}
			var docs []*waiter
			for range total - want {
				docs = append(docs, s.enter(aDoc))
			}
			if got := len(granted(docs)); got != total-want {
				t.Errorf("%d of the %d slots kept for small answers were free", got, total-want)
			}
		}
	}
}

// TestRefusals: who goes when the queue is full.
func TestRefusals(t *testing.T) {
	sized := func(n int64) Load { return Load{Blob: true, Size: n << 20} }
	s := newSlots("up", 1, time.Hour)
	s.enter(aDoc)
	s.room = 8
	var list []*waiter
	var gone []int
	enter := func(l Load) {
		list = append(list, s.enter(l))
		for i, w := range list {
			if w.err != nil && !slices.Contains(gone, i) {
				gone = append(gone, i)
			}
		}
	}
	for _, l := range []Load{ahead, sized(5), aCheck, sized(9), sized(2), aCheck, sized(9), {Blob: true, Background: true, Size: 7}} {
		enter(l)
	}
	if len(gone) > 0 {
		t.Fatalf("%v are refused while there is room", gone)
	}
	for range 10 {
		enter(aDoc)
	}
	// The prefetches, the larger first; the revalidations, the newest first;
	// the blobs by size; and then who comes.
	if want := []int{7, 0, 5, 2, 6, 3, 1, 4, 16, 17}; !slices.Equal(gone, want) {
		t.Errorf("refused in the order of %v, want %v", gone, want)
	}
	for _, i := range gone {
		err := list[i].err
		if registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) != busyAfter || registry.Public(err) != "too many requests are waiting for up" {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestLeaving: who gives up, or has waited for too long, takes nothing along.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots("up", 1, time.Hour)
		held, err := s.take(t.Context(), aDoc, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := s.take(t.Context(), aDoc, time.Minute); registry.KindOf(err) != registry.ErrUnavailable || time.Since(begun) != time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		cancel(why)
		if _, err := s.take(ctx, aDoc, time.Minute); err != why {
			t.Error(err)
		}
		if w, a := s.counts(); w != 0 || a != 1 {
			t.Errorf("%d wait, %d are open", w, a)
		}
		held.release()
		held.release()
		next, err := s.take(t.Context(), aDoc, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, a := s.counts(); a != 1 {
			t.Errorf("%d open after a slot was released twice", a)
		}
		next.release()
	})
}

// naive is what slots should do, told in the simplest way: everybody in one
// list, looked through each time.
type naive struct {
	total, room, active, heavies int
	waiting                      []*waiter
	open, refused                []*waiter
}

func (m *naive) settle(step time.Duration, now time.Time) {
	for m.active < m.total {
		var turn []*waiter
		for _, w := range m.waiting {
			if w.class == small || m.heavies < m.total-m.total/4 {
				turn = append(turn, w)
			}
		}
		if len(turn) == 0 {
			break
		}
		rank := func(w *waiter) int { return max(int(w.class)-int(now.Sub(w.since)/step), 0) }
		w := slices.MinFunc(turn, func(a, b *waiter) int {
			if d := rank(a) - rank(b); d != 0 {
				return d
			}
			return int(a.nr - b.nr)
		})
		m.active++
		if w.class != small {
			m.heavies++
		}
		m.drop(w)
		m.open = append(m.open, w)
	}
	if len(m.waiting) > m.room {
		w := slices.MaxFunc(m.waiting, func(a, b *waiter) int {
			switch {
			case a.class != b.class:
				return int(a.class - b.class)
			case a.class != small && a.size != b.size:
				return int(a.size - b.size)
			}
			return int(a.nr - b.nr)
		})
		m.drop(w)
		m.refused = append(m.refused, w)
	}
}

func (m *naive) drop(w *waiter) {
	m.waiting = slices.DeleteFunc(m.waiting, func(x *waiter) bool { return x == w })
}

// TestSlotsAgainstModel plays random hands and compares each with the model's.
func TestSlotsAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(300) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := newSlots("up", 1+r.IntN(9), time.Second)
			m := &naive{total: s.total, room: s.room}
			for op := range 150 {
				switch {
				case r.IntN(5) == 0 && len(m.open) > 0: // one is done
					i := r.IntN(len(m.open))
					heavy := m.open[i].class != small
					m.open = slices.Delete(m.open, i, i+1)
					m.active--
					if heavy {
						m.heavies--
					}
					s.free(heavy)
				case r.IntN(6) == 0 && len(m.waiting) > 0: // one gives up
					w := m.waiting[r.IntN(len(m.waiting))]
					if !s.leave(w) {
						t.Fatalf("seed %d, %d: who waits has been decided", seed, op)
					}
					m.drop(w)
				case r.IntN(4) == 0:
					<-time.After(time.Duration(r.IntN(1500)) * time.Millisecond)
					continue
				default:
					w := s.enter(Load{Blob: r.IntN(2) == 0, Background: r.IntN(3) == 0, Size: int64(r.IntN(4)) << 20})
					m.waiting = append(m.waiting, w)
				}
				m.settle(s.step, time.Now())
				compare(t, s, m, seed, op)
			}
		}
	})
}

func compare(t *testing.T, s *slots, m *naive, seed uint64, op int) {
	t.Helper()
	waiting, active := s.counts()
	if waiting != len(m.waiting) || active != m.active || s.heavies != m.heavies || active > s.total || waiting > s.room {
		t.Fatalf("seed %d, %d: %d wait and %d are open, %d of them heavy; want %d, %d, %d",
			seed, op, waiting, active, s.heavies, len(m.waiting), m.active, m.heavies)
	}
	for _, w := range m.waiting {
		if w.at == nil {
			t.Fatalf("seed %d, %d: %d of class %d should wait", seed, op, w.nr, w.class)
		}
	}
	for _, w := range m.refused {
		if w.err == nil {
			t.Fatalf("seed %d, %d: %d of class %d should be refused", seed, op, w.nr, w.class)
		}
	}
	for _, w := range m.open {
		if w.at != nil || w.err != nil {
			t.Fatalf("seed %d, %d: %d of class %d should have a slot", seed, op, w.nr, w.class)
		}
	}
}

// TestSlotsUnderFire: takers that come, wait, give up and hold at random end
// all of them, and leave nothing behind.
func TestSlotsUnderFire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots("up", 5, time.Second)
		var mu sync.Mutex
		open, most, served := 0, 0, 0
		add := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			open += n
			most = max(most, open)
			served += max(n, 0)
		}
		var all sync.WaitGroup
		for i := range 500 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 2))
				<-time.After(time.Duration(r.IntN(20000)) * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(5000))*time.Millisecond)
				defer cancel()
				sl, err := s.take(ctx, Load{Blob: r.IntN(2) == 0, Size: int64(r.IntN(9)) << 20, Background: r.IntN(4) == 0}, 4*time.Second)
				if err != nil {
					return
				}
				add(1)
				<-time.After(time.Duration(r.IntN(500)) * time.Millisecond)
				add(-1)
				sl.release()
			})
		}
		all.Wait()
		if w, a := s.counts(); w != 0 || a != 0 || s.heavies != 0 {
			t.Errorf("%d wait and %d are open, %d heavy, when all have gone", w, a, s.heavies)
		}
		if most != 5 || served < 200 {
			t.Errorf("%d at once, %d in all", most, served)
		}
	})
}
