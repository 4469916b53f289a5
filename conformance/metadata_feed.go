package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

func headIsTheNewest(t *testing.T, m registry.Metadata) {
	r := putRecord(t, m, "a", 0, "v")
	if n := mustHead(t, m); n != r.Rev {
		t.Errorf("head is %d after %d", n, r.Rev)
	}
	r = putRecord(t, m, "b", 0, "v")
	r = removeRecord(t, m, "b", r.Rev)
	if n := mustHead(t, m); n != r.Rev {
		t.Errorf("head is %d after the removal %d", n, r.Rev)
	}
}

func changesInOrder(t *testing.T, m registry.Metadata) {
	var want []registry.Record
	a := putRecord(t, m, "z", 0, "1")
	b := putRecord(t, m, "a", 0, "2")
	a2 := putRecord(t, m, "z", a.Rev, "3")
	want = append(want, a, b, a2, putRecord(t, m, "b", 0, "4"))
	wantRecords(t, "changes", mustChanges(t, m, 0), want...) // each as it was then
	wantRecords(t, "changes again", mustChanges(t, m, 0), want...)
	if n := mustHead(t, m); n != want[3].Rev {
		t.Errorf("head is %d, the last change %d", n, want[3].Rev)
	}
}

func changesAfter(t *testing.T, m registry.Metadata) {
	var all []registry.Record
	for i := range 6 {
		all = append(all, putRecord(t, m, fmt.Sprint(i), 0, "v"))
	}
	for i, r := range all {
		wantRecords(t, fmt.Sprintf("changes after %d", r.Rev), mustChanges(t, m, r.Rev), all[i+1:]...)
		wantRecords(t, fmt.Sprintf("changes after %d", r.Rev-1), mustChanges(t, m, r.Rev-1), all[i:]...)
	}
	wantRecords(t, "changes after the head", mustChanges(t, m, mustHead(t, m)))
}

func changesOfRemovals(t *testing.T, m registry.Metadata) {
	a := putRecord(t, m, "a", 0, "1")
	gone := removeRecord(t, m, "a", a.Rev)
	again := putRecord(t, m, "a", 0, "2")
	last := removeRecord(t, m, "a", again.Rev)
	wantRecords(t, "changes", mustChanges(t, m, 0), a, gone, again, last)
}

func changesStopEarly(t *testing.T, m registry.Metadata) {
	for i := range 10 {
		putRecord(t, m, fmt.Sprint(i), 0, "v")
	}
	for range m.Changes(context.Background(), 0) {
		break
	}
	putRecord(t, m, "later", 0, "v")
}

func conflictsAreNoChanges(t *testing.T, m registry.Metadata) {
	r := putRecord(t, m, "k", 0, "v")
	for range 3 {
		_, err := m.Put(context.Background(), "k", 0, []byte("x"))
		wantKind(t, err, registry.ErrConflict, "put again")
	}
	wantRecords(t, "changes", mustChanges(t, m, 0), r)
	if n := mustHead(t, m); n != r.Rev {
		t.Errorf("head is %d, want %d", n, r.Rev)
	}
}

func metadataWoken(t *testing.T, m registry.Metadata) {
	var rev uint64
	for i := range 3 {
		woken := m.Woken()
		rev = putRecord(t, m, "k", rev, fmt.Sprint(i)).Rev
		limit := time.NewTimer(10 * time.Second)
		select {
		case <-woken:
		case <-limit.C:
			t.Fatal("a change has woken nobody")
		}
		limit.Stop()
	}
}

// TestMetadataTrimmed checks an empty Metadata that keeps at least keep of its
// changes and at most a few times as many, whichever they are.
func TestMetadataTrimmed(t *testing.T, m registry.Metadata, keep int) {
	t.Helper()
	var all []registry.Record
	truth := map[string]registry.Record{}
	for i := range 6 * keep {
		key := fmt.Sprintf("k%02d", i%7)
		r := putRecord(t, m, key, truth[key].Rev, fmt.Sprint(i))
		truth[key] = r
		all = append(all, r)
	}
	for r, err := range m.Changes(context.Background(), 0) {
		if !errors.Is(err, registry.ErrGone) {
			t.Errorf("changes from the beginning on: %+v, %v; want ErrGone", r, err)
		}
		break
	}
	first := len(all) - keep
	wantRecords(t, "the newest changes", mustChanges(t, m, all[first-1].Rev), all[first:]...)
	// Wherever it begins, the answer is all that follows or ErrGone.
	for i, r := range all {
		var got []registry.Record
		var gone error
		for r, err := range m.Changes(context.Background(), r.Rev) {
			if gone = err; err != nil {
				break
			}
			got = append(got, r)
		}
		if gone == nil {
			wantRecords(t, fmt.Sprintf("changes after %d", r.Rev), got, all[i+1:]...)
			break
		}
		wantKind(t, gone, registry.ErrGone, fmt.Sprintf("changes after %d", r.Rev))
		if len(got) > 0 {
			t.Errorf("changes after %d: %d and then %v", r.Rev, len(got), gone)
		}
	}
	keys := slices.Sorted(maps.Keys(truth))
	var want []registry.Record
	for _, key := range keys {
		want = append(want, truth[key])
	}
	wantRecords(t, "list", mustList(t, m, "", ""), want...)
	if n := mustHead(t, m); n != all[len(all)-1].Rev {
		t.Errorf("head is %d, want %d", n, all[len(all)-1].Rev)
	}
}
