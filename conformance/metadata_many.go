package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// manyCount has many goroutines add to one number; compare-and-swap loses none.
func manyCount(t *testing.T, m registry.Metadata) {
	const workers, rounds = 8, 12
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range rounds {
				if err := increment(m, "n"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if got := string(mustGet(t, m, "n").Value); got != strconv.Itoa(workers*rounds) {
		t.Errorf("counted to %s, want %d", got, workers*rounds)
	}
	for i, r := range mustChanges(t, m, 0) {
		if string(r.Value) != strconv.Itoa(i+1) {
			t.Fatalf("change %d says %q", i, r.Value)
		}
	}
}

func increment(m registry.Metadata, key string) error {
	for {
		old, err := m.Get(context.Background(), key)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		n, _ := strconv.Atoi(string(old.Value)) // nothing is 0
		_, err = m.Put(context.Background(), key, old.Rev, []byte(strconv.Itoa(n+1)))
		if !errors.Is(err, registry.ErrConflict) {
			return err
		}
	}
}

// manyMakeOneKey has many put the same key at once; one wins.
func manyMakeOneKey(t *testing.T, m registry.Metadata) {
	won := make(chan registry.Record, 12)
	var group sync.WaitGroup
	for i := range cap(won) {
		group.Go(func() {
			r, err := m.Put(context.Background(), "k", 0, []byte(strconv.Itoa(i)))
			if err == nil {
				won <- r
			} else if !errors.Is(err, registry.ErrConflict) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of %d won", len(won), cap(won))
	}
	winner := <-won
	if got := mustGet(t, m, "k"); !sameRecord(got, winner) {
		t.Errorf("%+v is kept, %+v has won", got, winner)
	}
	wantRecords(t, "changes", mustChanges(t, m, 0), winner)
}

// writers has several goroutines make, replace and remove records under keys
// of their own and of all, and returns what was acknowledged, by rev. Each Put
// must come, by its rev, after all that had returned before it began, and be
// seen by the Get that follows.
func writers(t *testing.T, m registry.Metadata, workers, rounds int) map[uint64]registry.Record {
	var newest atomic.Uint64 // of the acknowledged ones
	var mu sync.Mutex
	done := map[uint64]registry.Record{}
	put := func(key string, rev uint64, value []byte) (registry.Record, error) {
		before := newest.Load()
		r, err := m.Put(context.Background(), key, rev, value)
		if err != nil {
			return r, err
		}
		if r.Rev <= before {
			t.Errorf("a put got rev %d and began after %d was acknowledged", r.Rev, before)
		}
		for seen := newest.Load(); seen < r.Rev && !newest.CompareAndSwap(seen, r.Rev); seen = newest.Load() {
		}
		mu.Lock()
		defer mu.Unlock()
		if _, twice := done[r.Rev]; twice {
			t.Errorf("rev %d was given twice", r.Rev)
		}
		done[r.Rev] = r
		return r, nil
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 7))
			for i := range rounds {
				key := fmt.Sprintf("k/own-%d-%d", w, random.IntN(3))
				if random.IntN(2) == 0 {
					key = fmt.Sprintf("k/all-%d", random.IntN(3))
				}
				old, err := m.Get(context.Background(), key)
				if err != nil && !errors.Is(err, registry.ErrNotFound) {
					t.Error(err)
					return
				}
				value := fmt.Appendf(nil, "%d of %d", i, w)
				if old.Rev != 0 && random.IntN(3) == 0 {
					value = nil
				}
				r, err := put(key, old.Rev, value)
				switch {
				case errors.Is(err, registry.ErrConflict):
					if key[:5] == "k/own" {
						t.Errorf("%s: %v, and nobody else puts it", key, err)
					}
				case err != nil:
					t.Error(err)
					return
				default:
					if got, err := m.Get(context.Background(), key); got.Rev < r.Rev && value != nil && !errors.Is(err, registry.ErrNotFound) {
						t.Errorf("%s: put %d, then got %d, %v", key, r.Rev, got.Rev, err)
					}
				}
			}
		})
	}
	group.Wait()
	return done
}

// manyWriteOneFeed follows the feed from several places while many write: each
// must see every change, once, in order.
func manyWriteOneFeed(t *testing.T, m registry.Metadata) {
	const followers = 3
	stop := make(chan struct{})
	feeds := make([][]registry.Record, followers)
	var group sync.WaitGroup
	for f := range followers {
		group.Go(func() {
			var after uint64
			for last := false; ; {
				woken := m.Woken()
				for r, err := range m.Changes(context.Background(), after) {
					if err != nil {
						t.Error(err)
						return
					}
					if r.Rev <= after {
						t.Errorf("change %d came after %d", r.Rev, after)
						return
					}
					after = r.Rev
					feeds[f] = append(feeds[f], r)
				}
				if last {
					return
				}
				select {
				case <-woken:
				case <-stop:
					last = true
				}
			}
		})
	}
	done := writers(t, m, 6, 14)
	close(stop)
	group.Wait()
	want := sortedByRev(done)
	for f := range followers {
		wantRecords(t, fmt.Sprintf("feed %d", f), feeds[f], want...)
	}
	wantRecords(t, "the whole feed", mustChanges(t, m, 0), want...)
	if n := mustHead(t, m); n != want[len(want)-1].Rev {
		t.Errorf("head is %d, the newest change %d", n, want[len(want)-1].Rev)
	}
	wantTruth(t, m, applied(nil, want))
}

func sortedByRev(done map[uint64]registry.Record) []registry.Record {
	var all []registry.Record
	for _, rev := range slices.Sorted(maps.Keys(done)) {
		all = append(all, done[rev])
	}
	return all
}

// applied is what is there after changes; those older than what is there count
// for nothing.
func applied(to map[string]registry.Record, changes []registry.Record) map[string]registry.Record {
	if to == nil {
		to = map[string]registry.Record{}
	}
	for _, r := range changes {
		if to[r.Key].Rev >= r.Rev {
			continue
		}
		to[r.Key] = r
		if r.Value == nil {
			delete(to, r.Key)
		}
	}
	return to
}

// wantTruth compares what is there, by List and by Get, with what should be.
func wantTruth(t *testing.T, m registry.Metadata, truth map[string]registry.Record) {
	t.Helper()
	var want []registry.Record
	for _, key := range slices.Sorted(maps.Keys(truth)) {
		want = append(want, truth[key])
		if got := mustGet(t, m, key); !sameRecord(got, truth[key]) {
			t.Errorf("%s is at %d, want %d", key, got.Rev, truth[key].Rev)
		}
	}
	wantRecords(t, "list", mustList(t, m, "k/", ""), want...)
}

// snapshotWhileWriting takes snapshots by Head, List and Changes while others
// write; each must end up with what the feed says.
func snapshotWhileWriting(t *testing.T, m registry.Metadata) {
	stop := make(chan struct{})
	type snapshot struct {
		head    uint64
		records map[string]registry.Record
	}
	taken := make(chan snapshot, 1000)
	var group sync.WaitGroup
	group.Go(func() {
		defer close(taken)
		for len(taken) < cap(taken) {
			s := snapshot{records: map[string]registry.Record{}}
			var err error
			if s.head, err = m.Head(context.Background()); err != nil {
				t.Error(err)
				return
			}
			for r, err := range m.List(context.Background(), "", "") {
				if err != nil {
					t.Error(err)
					return
				}
				s.records[r.Key] = r
			}
			select {
			case taken <- s:
			case <-stop:
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	done := writers(t, m, 4, 14)
	close(stop)
	group.Wait()
	all := sortedByRev(done)
	truth := applied(nil, all)
	wantTruth(t, m, truth)
	n := 0
	for s := range taken {
		var since []registry.Record
		for _, r := range all {
			if r.Rev > s.head {
				since = append(since, r)
			}
		}
		if n++; n <= 3 { // what Changes gives is what it should be
			wantRecords(t, fmt.Sprintf("changes after %d", s.head), mustChanges(t, m, s.head), since...)
		}
		got := applied(s.records, since)
		if !maps.EqualFunc(got, truth, sameRecord) {
			t.Errorf("a snapshot taken at %d has become %v, want %v", s.head, got, truth)
		}
	}
	if n == 0 {
		t.Error("no snapshot was taken")
	}
}
