package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// A Reopener is a Metadata under test that can be opened once more. Reopen
// returns it as another process would find it: a file is closed and opened
// again, a database gets one more client. The first is not used afterwards.
type Reopener interface {
	Reopen(t *testing.T) registry.Metadata
}

// TestMetadata checks what registry.Metadata promises. fresh returns an empty
// implementation for each case and closes it by t.Cleanup; one that outlives
// its process is a [Reopener] too. What is no longer kept is for
// [TestMetadataTrimmed]. The cases of the feed are in metadata_feed.go, those of
// many at once in metadata_many.go.
func TestMetadata(t *testing.T, fresh func(t *testing.T) registry.Metadata) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, m registry.Metadata)
	}{
		{"GetNothing", getNothing},
		{"PutThenGet", putThenGet},
		{"PutReplaces", putReplaces},
		{"PutConflicts", putConflicts},
		{"RemoveThenNothing", removeThenNothing},
		{"RemoveNothing", removeNothing},
		{"RemoveConflicts", removeConflicts},
		{"RevisionsNeverComeBack", metadataRevisions},
		{"LimitsAtTheLimit", metadataLimits},
		{"InvalidIsInvalid", metadataInvalid},
		{"KeysDoNotMix", keysDoNotMix},
		{"ValuesAreCopies", valuesAreCopies},
		{"ListInOrder", metadataList},
		{"ListPrefix", metadataListPrefix},
		{"ListAfter", metadataListAfter},
		{"ListStopsEarly", metadataListStops},
		{"ListLarge", metadataListLarge},
		{"ListWhilePutting", metadataListWhilePutting},
		{"HeadIsTheNewest", headIsTheNewest},
		{"ChangesInOrder", changesInOrder},
		{"ChangesAfter", changesAfter},
		{"ChangesOfRemovals", changesOfRemovals},
		{"ChangesStopEarly", changesStopEarly},
		{"ConflictsAreNoChanges", conflictsAreNoChanges},
		{"Woken", metadataWoken},
		{"CancelledContext", metadataCancelled},
		{"Reopened", metadataReopened},
		{"ManyCountOneNumber", manyCount},
		{"ManyMakeOneKey", manyMakeOneKey},
		{"ManyWriteOneFeed", manyWriteOneFeed},
		{"SnapshotWhileWriting", snapshotWhileWriting},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
}

func putRecord(t *testing.T, m registry.Metadata, key string, rev uint64, value string) registry.Record {
	t.Helper()
	r, err := m.Put(context.Background(), key, rev, []byte(value))
	if err != nil {
		t.Fatalf("put %.40q at %d: %v", key, rev, err)
	}
	if r.Key != key || string(r.Value) != value || r.Rev == 0 || r.Rev == rev {
		t.Fatalf("put %.40q at %d returned %.40q, %d bytes, rev %d", key, rev, r.Key, len(r.Value), r.Rev)
	}
	return r
}

func removeRecord(t *testing.T, m registry.Metadata, key string, rev uint64) registry.Record {
	t.Helper()
	r, err := m.Put(context.Background(), key, rev, nil)
	if err != nil {
		t.Fatalf("remove %.40q at %d: %v", key, rev, err)
	}
	if r.Key != key || r.Value != nil || r.Rev <= rev {
		t.Fatalf("remove %.40q at %d returned %+v", key, rev, r)
	}
	return r
}

func mustGet(t *testing.T, m registry.Metadata, key string) registry.Record {
	t.Helper()
	r, err := m.Get(context.Background(), key)
	if err != nil {
		t.Fatalf("get %.40q: %v", key, err)
	}
	return r
}

func mustHead(t *testing.T, m registry.Metadata) uint64 {
	t.Helper()
	n, err := m.Head(context.Background())
	if err != nil {
		t.Fatalf("head: %v", err)
	}
	return n
}

func mustList(t *testing.T, m registry.Metadata, prefix, after string) []registry.Record {
	t.Helper()
	var got []registry.Record
	for r, err := range m.List(context.Background(), prefix, after) {
		if err != nil {
			t.Fatalf("list %q after %q: %v", prefix, after, err)
		}
		got = append(got, r)
	}
	return got
}

func mustChanges(t *testing.T, m registry.Metadata, after uint64) []registry.Record {
	t.Helper()
	var got []registry.Record
	for r, err := range m.Changes(context.Background(), after) {
		if err != nil {
			t.Fatalf("changes after %d: %v", after, err)
		}
		got = append(got, r)
	}
	return got
}

func sameRecord(a, b registry.Record) bool {
	return a.Key == b.Key && a.Rev == b.Rev && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
}

func wantRecords(t *testing.T, what string, got []registry.Record, want ...registry.Record) {
	t.Helper()
	if !slices.EqualFunc(got, want, sameRecord) {
		t.Errorf("%s: got %s, want %s", what, brief(got), brief(want))
	}
}

// brief is records without their values.
func brief(rs []registry.Record) string {
	var b strings.Builder
	for _, r := range rs {
		fmt.Fprintf(&b, " %.20q@%d(%d)", r.Key, r.Rev, len(r.Value))
	}
	return "[" + b.String() + " ]"
}

func wantNothing(t *testing.T, m registry.Metadata, key string) {
	t.Helper()
	r, err := m.Get(context.Background(), key)
	wantKind(t, err, registry.ErrNotFound, fmt.Sprintf("get %.40q", key))
	if r.Key != "" || r.Value != nil || r.Rev != 0 {
		t.Errorf("nothing came with %+v", r)
	}
}

func getNothing(t *testing.T, m registry.Metadata) {
	wantNothing(t, m, "e/account/anna")
	if n := mustHead(t, m); n != 0 {
		t.Errorf("the head of an empty database is %d", n)
	}
	wantRecords(t, "list of an empty database", mustList(t, m, "", ""))
	wantRecords(t, "changes of an empty database", mustChanges(t, m, 0))
}

func putThenGet(t *testing.T, m registry.Metadata) {
	for _, value := range []string{"{}", "\x00", "\x00\xff\xfe binary \n", strings.Repeat("ü", 999)} {
		r := putRecord(t, m, fmt.Sprintf("e/%d", len(value)), 0, value)
		if got := mustGet(t, m, r.Key); !sameRecord(got, r) {
			t.Errorf("put %+v, got %+v", r, got)
		}
	}
}

func putReplaces(t *testing.T, m registry.Metadata) {
	r := putRecord(t, m, "k", 0, "first")
	for i := range 5 {
		next := putRecord(t, m, "k", r.Rev, fmt.Sprint(i))
		if next.Rev <= r.Rev {
			t.Errorf("rev %d came after %d", next.Rev, r.Rev)
		}
		if got := mustGet(t, m, "k"); !sameRecord(got, next) {
			t.Errorf("put %+v, got %+v", next, got)
		}
		r = next
	}
	same := putRecord(t, m, "k", r.Rev, string(r.Value)) // is a change too
	if same.Rev <= r.Rev {
		t.Errorf("the same value got rev %d after %d", same.Rev, r.Rev)
	}
}

func putConflicts(t *testing.T, m registry.Metadata) {
	ctx := context.Background()
	first := putRecord(t, m, "k", 0, "first")
	second := putRecord(t, m, "k", first.Rev, "second")
	for _, rev := range []uint64{0, first.Rev, second.Rev + 1, second.Rev + 1000, 1 << 62} {
		_, err := m.Put(ctx, "k", rev, []byte("x"))
		wantKind(t, err, registry.ErrConflict, fmt.Sprintf("put at %d what is at %d", rev, second.Rev))
	}
	_, err := m.Put(ctx, "other", second.Rev, []byte("x"))
	wantKind(t, err, registry.ErrConflict, "put at a rev what is not there")
	if got := mustGet(t, m, "k"); !sameRecord(got, second) {
		t.Errorf("conflicts left %+v", got)
	}
	wantNothing(t, m, "other")
}

func removeThenNothing(t *testing.T, m registry.Metadata) {
	r := putRecord(t, m, "k", 0, "v")
	gone := removeRecord(t, m, "k", r.Rev)
	wantNothing(t, m, "k")
	wantRecords(t, "list after the removal", mustList(t, m, "", ""))
	again := putRecord(t, m, "k", 0, "v2")
	if again.Rev <= gone.Rev {
		t.Errorf("rev %d came after the removal's %d", again.Rev, gone.Rev)
	}
	if got := mustGet(t, m, "k"); !sameRecord(got, again) {
		t.Errorf("put after a removal: %+v, got %+v", again, got)
	}
}

func removeNothing(t *testing.T, m registry.Metadata) {
	for range 2 {
		r, err := m.Put(context.Background(), "k", 0, nil)
		if err != nil || r.Rev != 0 || r.Value != nil {
			t.Errorf("remove nothing: %+v, %v", r, err)
		}
	}
	if n := mustHead(t, m); n != 0 {
		t.Errorf("nothing was removed, and the head is %d", n)
	}
}

func removeConflicts(t *testing.T, m registry.Metadata) {
	first := putRecord(t, m, "k", 0, "first")
	second := putRecord(t, m, "k", first.Rev, "second")
	for _, rev := range []uint64{0, first.Rev, second.Rev + 1} {
		_, err := m.Put(context.Background(), "k", rev, nil)
		wantKind(t, err, registry.ErrConflict, fmt.Sprintf("remove at %d what is at %d", rev, second.Rev))
	}
	gone := removeRecord(t, m, "k", second.Rev)
	for _, rev := range []uint64{second.Rev, gone.Rev} {
		_, err := m.Put(context.Background(), "k", rev, nil)
		wantKind(t, err, registry.ErrConflict, "remove what is removed")
		_, err = m.Put(context.Background(), "k", rev, []byte("x"))
		wantKind(t, err, registry.ErrConflict, "put at the rev of what is removed")
	}
}

func metadataRevisions(t *testing.T, m registry.Metadata) {
	var last uint64
	for i := range 4 {
		a := putRecord(t, m, fmt.Sprintf("a%d", i%2), 0, "v")
		b := removeRecord(t, m, a.Key, a.Rev)
		if a.Rev <= last || b.Rev <= a.Rev {
			t.Errorf("revs %d, %d after %d", a.Rev, b.Rev, last)
		}
		last = b.Rev
	}
}

func metadataLimits(t *testing.T, m registry.Metadata) {
	noise := make([]byte, registry.MaxValue)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	long := strings.Repeat("é", registry.MaxKey/2)
	r := putRecord(t, m, long, 0, string(noise))
	if got := mustGet(t, m, long); !sameRecord(got, r) {
		t.Error("the longest key and value came back otherwise")
	}
	wantRecords(t, "list of the longest", mustList(t, m, long[:4], ""), r)
	wantRecords(t, "list after the longest", mustList(t, m, "", long))
	wantRecords(t, "changes of the longest", mustChanges(t, m, 0), r)
	for i := range noise {
		noise[i] = 0xff // the most JSON or base64 can make of it
	}
	r = putRecord(t, m, long, r.Rev, string(noise))
	if got := mustGet(t, m, long); !sameRecord(got, r) {
		t.Error("the longest value of other bytes came back otherwise")
	}
	removeRecord(t, m, long, r.Rev)
	putRecord(t, m, "k", 0, "\x00")
}

func metadataInvalid(t *testing.T, m registry.Metadata) {
	ctx := context.Background()
	for _, key := range []string{"", strings.Repeat("k", registry.MaxKey+1), "a\x00b", "\x00", "a\xff", "\xc3", "\xed\xa0\x80"} {
		for _, value := range [][]byte{[]byte("v"), nil} {
			_, err := m.Put(ctx, key, 0, value)
			wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("put %.40q", key))
		}
		_, err := m.Get(ctx, key)
		wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("get %.40q", key))
	}
	for _, value := range [][]byte{{}, make([]byte, registry.MaxValue+1)} {
		_, err := m.Put(ctx, "k", 0, value)
		wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("put %d bytes", len(value)))
	}
	wantNothing(t, m, "k")
	if n := mustHead(t, m); n != 0 {
		t.Errorf("nothing valid was put, and the head is %d", n)
	}
}

func keysDoNotMix(t *testing.T, m registry.Metadata) {
	keys := []string{"a", "A", "a ", " a", "a/", "a/b", "a//b", "ab", "é", "e\u0301", "#", "%00", "\x01", "\u007f", "\uffff", "\U0010ffff", "../a", "a\n"}
	for _, key := range keys {
		putRecord(t, m, key, 0, "value of "+key)
	}
	for _, key := range keys {
		if got := mustGet(t, m, key); string(got.Value) != "value of "+key || got.Key != key {
			t.Errorf("%q has %q", key, got.Value)
		}
	}
}

func valuesAreCopies(t *testing.T, m registry.Metadata) {
	ctx := context.Background()
	value := []byte("value")
	if _, err := m.Put(ctx, "k", 0, value); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X'
	look := func(what string, v []byte) {
		if string(v) != "value" {
			t.Errorf("%s: %q", what, v)
		}
		v[0] = 'X' // it is ours
	}
	for range 2 {
		look("get", mustGet(t, m, "k").Value)
		look("list", mustList(t, m, "", "")[0].Value)
		look("changes", mustChanges(t, m, 0)[0].Value)
	}
}

func metadataList(t *testing.T, m registry.Metadata) {
	keys := []string{"b", "a", "a0", "B", "a/b", "a.", "é", "z", "\u00ff", "\uffff", "\U0001f600", "~"}
	for _, key := range keys {
		putRecord(t, m, key, 0, "v"+key)
	}
	slices.Sort(keys) // by bytes
	var want []registry.Record
	for _, key := range keys {
		want = append(want, mustGet(t, m, key))
	}
	wantRecords(t, "list", mustList(t, m, "", ""), want...)
}

func metadataListPrefix(t *testing.T, m registry.Metadata) {
	kept := map[string]registry.Record{}
	for _, key := range []string{"e/a", "e/b", "e/", "e", "e0", "f/a", "e/\u00ff", "e/\U0010ffff", "e/\U0010ffffa", "E/a", "d/z"} {
		kept[key] = putRecord(t, m, key, 0, key)
	}
	wantRecords(t, "prefix e/", mustList(t, m, "e/", ""),
		kept["e/"], kept["e/a"], kept["e/b"], kept["e/\u00ff"], kept["e/\U0010ffff"], kept["e/\U0010ffffa"])
	wantRecords(t, "prefix of the last", mustList(t, m, "e/\U0010ffff", ""), kept["e/\U0010ffff"], kept["e/\U0010ffffa"])
	wantRecords(t, "prefix e/a", mustList(t, m, "e/a", ""), kept["e/a"])
	wantRecords(t, "prefix of nothing", mustList(t, m, "g", ""))
	wantRecords(t, "prefix longer than a key", mustList(t, m, strings.Repeat("e", registry.MaxKey+1), ""))
}

func metadataListAfter(t *testing.T, m registry.Metadata) {
	kept := map[string]registry.Record{}
	for _, key := range []string{"d", "e/a", "e/a!", "e/b", "e/c", "f"} {
		kept[key] = putRecord(t, m, key, 0, key)
	}
	wantRecords(t, "after e/a", mustList(t, m, "e/", "e/a"), kept["e/a!"], kept["e/b"], kept["e/c"])
	wantRecords(t, "after what is not there", mustList(t, m, "e/", "e/aa"), kept["e/b"], kept["e/c"])
	wantRecords(t, "after the last", mustList(t, m, "e/", "e/c"))
	wantRecords(t, "after what is behind the prefix", mustList(t, m, "e/", "f"))
	wantRecords(t, "after what is before the prefix", mustList(t, m, "e/", "a"), kept["e/a"], kept["e/a!"], kept["e/b"], kept["e/c"])
	wantRecords(t, "after without a prefix", mustList(t, m, "", "e/b"), kept["e/c"], kept["f"])
	wantRecords(t, "after a long key", mustList(t, m, "", "e/b"+strings.Repeat("z", registry.MaxKey)), kept["e/c"], kept["f"])
}

func metadataListStops(t *testing.T, m registry.Metadata) {
	for i := range 10 {
		putRecord(t, m, fmt.Sprint(i), 0, "v")
	}
	for range m.List(context.Background(), "", "") {
		break
	}
	putRecord(t, m, "later", 0, "v") // nothing is held
}

// metadataListLarge has more in a list and in the feed than a database gives
// in one answer.
func metadataListLarge(t *testing.T, m registry.Metadata) {
	var want []registry.Record
	for i := range 12 {
		want = append(want, putRecord(t, m, fmt.Sprintf("k%02d", i), 0, strings.Repeat(string(rune('a'+i)), 200<<10)))
	}
	wantRecords(t, "list", mustList(t, m, "k", ""), want...)
	wantRecords(t, "the end of the list", mustList(t, m, "k", "k05"), want[6:]...)
	wantRecords(t, "changes", mustChanges(t, m, 0), want...)
}

// metadataListWhilePutting puts within the loops: a walk must hold nothing that
// a Put needs, and give every record once that is there throughout.
func metadataListWhilePutting(t *testing.T, m registry.Metadata) {
	const many = 100
	for i := range many {
		putRecord(t, m, fmt.Sprintf("k%04d", i), 0, "v")
	}
	seen := 0
	for r, err := range m.List(context.Background(), "k", "") {
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("k%04d", seen); r.Key != want {
			t.Fatalf("listed %q, want %q", r.Key, want)
		}
		if seen++; seen%20 == 0 {
			putRecord(t, m, "added-"+r.Key, 0, "v")
		}
	}
	if seen != many {
		t.Errorf("listed %d, want %d", seen, many)
	}
	seen = 0
	for r, err := range m.Changes(context.Background(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen <= many && seen%20 == 0 {
			putRecord(t, m, "changed-"+r.Key, 0, "v")
		}
	}
	if seen < many+many/20 {
		t.Errorf("%d changes, want at least %d", seen, many+many/20)
	}
}

func metadataCancelled(t *testing.T, m registry.Metadata) {
	r := putRecord(t, m, "k", 0, "v")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := m.Put(ctx, "k2", 0, []byte("v"))
	wantKind(t, err, registry.ErrUnavailable, "put with a context that is done")
	if got, err := m.Get(ctx, "k"); err != nil {
		wantKind(t, err, registry.ErrUnavailable, "get with a context that is done")
	} else if !sameRecord(got, r) {
		t.Errorf("get with a context that is done: %+v", got)
	}
	if n, err := m.Head(ctx); err != nil {
		wantKind(t, err, registry.ErrUnavailable, "head with a context that is done")
	} else if n < r.Rev {
		t.Errorf("head with a context that is done: %d", n)
	}
	for what, seq := range map[string]func(func(registry.Record, error) bool){"list": m.List(ctx, "", ""), "changes": m.Changes(ctx, 0)} {
		steps := 0
		for _, err := range seq {
			if steps++; err == nil {
				t.Errorf("%s goes on with a context that is done", what)
			} else {
				wantKind(t, err, registry.ErrUnavailable, what+" with a context that is done")
			}
		}
		if steps != 1 {
			t.Errorf("%s with a context that is done yields %d times", what, steps)
		}
	}
	// What was not done at once is not done later either.
	if _, err := m.Get(context.Background(), "k2"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a put whose context was done beforehand: %v", err)
	}
}

// metadataReopened looks for everything in a Metadata opened once more; what
// is no Reopener forgets.
func metadataReopened(t *testing.T, m registry.Metadata) {
	re, ok := m.(Reopener)
	if !ok {
		return
	}
	a := putRecord(t, m, "a", 0, "1")
	b := putRecord(t, m, "b", 0, "2")
	b2 := putRecord(t, m, "b", b.Rev, "3")
	c := putRecord(t, m, "c", 0, "4")
	gone := removeRecord(t, m, "c", c.Rev)
	m = re.Reopen(t)
	if n := mustHead(t, m); n != gone.Rev {
		t.Errorf("head is %d, was %d", n, gone.Rev)
	}
	wantRecords(t, "list", mustList(t, m, "", ""), a, b2)
	wantRecords(t, "changes", mustChanges(t, m, 0), a, b, b2, c, gone)
	wantNothing(t, m, "c")
	_, err := m.Put(context.Background(), "b", b.Rev, []byte("x"))
	wantKind(t, err, registry.ErrConflict, "put at an old rev")
	if again := putRecord(t, m, "c", 0, "5"); again.Rev <= gone.Rev {
		t.Errorf("rev %d came after %d", again.Rev, gone.Rev)
	}
}
