package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// A history is what became of puts, each of which has a value of its own.
type history struct {
	mu     sync.Mutex
	done   map[string]registry.Record // by value, what was acknowledged
	failed map[string]bool            // by value, what certainly did not happen
	doubts atomic.Int64               // how often nobody knows
	newest atomic.Uint64              // rev that was acknowledged
}

// TestMetadataUnreliable has many write through nodes of one empty database that
// fail now and then, and compares what they were told with what sound, which
// does not fail, says in the end: what was acknowledged has happened once, what
// was in conflict has not, and what is in doubt at most once; and the
// order is that of the acknowledgements. The nodes must not all fail for good.
func TestMetadataUnreliable(t *testing.T, nodes []registry.Metadata, sound registry.Metadata, rounds int) {
	t.Helper()
	h := history{done: map[string]registry.Record{}, failed: map[string]bool{}}
	var group sync.WaitGroup
	for w, m := range nodes {
		for half := range 2 {
			group.Go(func() { h.write(t, m, uint64(2*w+half), rounds) })
		}
	}
	group.Wait()
	t.Logf("%d acknowledged, %d in conflict, %d in doubt", len(h.done), len(h.failed), h.doubts.Load())
	h.check(t, sound)
}

// write makes changes, and removes every fourth time.
func (h *history) write(t *testing.T, m registry.Metadata, writer uint64, rounds int) {
	ctx := context.Background()
	random := rand.New(rand.NewPCG(writer, 7))
	for i := range rounds {
		key := fmt.Sprintf("k/%d", random.IntN(4))
		old, err := m.Get(ctx, key)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			continue // it failed
		}
		if old.Rev != 0 && random.IntN(4) == 0 {
			_, _ = m.Put(ctx, key, old.Rev, nil) // the feed says what became of it
			continue
		}
		value, before := fmt.Sprintf("%d of %d", i, writer), h.newest.Load()
		r, err := m.Put(ctx, key, old.Rev, []byte(value))
		h.note(t, value, r, err)
		if err == nil && r.Rev <= before {
			t.Errorf("%d came after %d", r.Rev, before)
		}
	}
}

func (h *history) note(t *testing.T, value string, r registry.Record, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.done[value] = r
		h.newest.Store(max(h.newest.Load(), r.Rev))
	case errors.Is(err, registry.ErrConflict):
		h.failed[value] = true
	case errors.Is(err, registry.ErrUnavailable):
		h.doubts.Add(1)
	default:
		t.Error(err)
	}
}

// check compares the history with the feed, and the feed with the records.
func (h *history) check(t *testing.T, m registry.Metadata) {
	feed := mustChanges(t, m, 0)
	revs := map[string]uint64{} // of each key
	seen := map[string]bool{}
	for _, r := range feed {
		value := string(r.Value)
		if r.Value == nil {
			if revs[r.Key] == 0 {
				t.Errorf("%s was removed at %d, and was not there", r.Key, r.Rev)
			}
			revs[r.Key] = 0
			continue
		}
		revs[r.Key] = r.Rev
		if seen[value] {
			t.Errorf("%s happened twice", value)
		}
		seen[value] = true
		if h.failed[value] {
			t.Errorf("%s was said to be in conflict, and happened", value)
		}
		if done, ok := h.done[value]; ok && !sameRecord(done, r) {
			t.Errorf("%s was acknowledged at %d and is at %d", value, done.Rev, r.Rev)
		}
	}
	var lost []string
	for value := range h.done {
		if !seen[value] {
			lost = append(lost, value)
		}
	}
	if len(lost) > 0 {
		t.Errorf("acknowledged and lost: %s", strings.Join(lost, ", "))
	}
	wantTruth(t, m, applied(nil, feed))
}
