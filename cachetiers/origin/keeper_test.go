package origin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// shelf is a Source in memory that counts: the upstreams, or the tier in front.
type shelf struct {
	registry.Source
	mu    sync.Mutex
	blobs map[digest.Digest][]byte // guarded by mu
	via   registry.Via
	opens atomic.Int64
}

func newShelf(detail string, blobs ...[]byte) *shelf {
	s := &shelf{blobs: map[digest.Digest][]byte{}, via: registry.Via{Fwd: "miss", Detail: detail}}
	for _, b := range blobs {
		s.add(b)
	}
	return s
}

func (s *shelf) add(b []byte) { s.blobs[digest.FromBytes(b)] = b }

func (s *shelf) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	s.opens.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[w.Digest]
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "no %s", w.Digest)
	}
	offset, length, _ := w.Clip(int64(len(data)))
	d := w.Descriptor
	d.Size = int64(len(data))
	return registry.NewBytesBlob(data, d, offset, length, s.via), nil
}

// events is a Meter that counts events.
type events struct {
	registry.NoMeter
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

func (e *events) Event(what, who string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = map[string]int{}
	}
	e.n[what+", "+who]++
}

func (e *events) count(what string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n[what+", test"]
}

// moody is a bucket that can hang or fail.
type moody struct {
	origin.MemoryBucket
	hang, fail atomic.Bool
	asked      atomic.Int64 // Stats and Gets
	puts       atomic.Int64
	after      time.Duration // Retry-After of failures
}

func (m *moody) mood(ctx context.Context) error {
	if m.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if m.fail.Load() {
		return &registry.Error{Kind: registry.ErrLimited, Text: "moody", After: m.after}
	}
	return nil
}

func (m *moody) Get(ctx context.Context, key string, offset, length int64) (origin.Object, error) {
	m.asked.Add(1)
	if err := m.mood(ctx); err != nil {
		return origin.Object{}, err
	}
	return m.MemoryBucket.Get(ctx, key, offset, length)
}

func (m *moody) Stat(ctx context.Context, key string) (int64, error) {
	m.asked.Add(1)
	if err := m.mood(ctx); err != nil {
		return 0, err
	}
	return m.MemoryBucket.Stat(ctx, key)
}

func (m *moody) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	if err := m.mood(ctx); err != nil {
		return err
	}
	m.puts.Add(1)
	return m.MemoryBucket.Put(ctx, key, content, size)
}

// keeping is a Keeper of a moody bucket, and what is around it.
type keeping struct {
	*origin.Keeper
	bucket       *moody
	store        *origin.Store
	local, up    *shelf
	meter        *events
	name         registry.Name
	fromUpstream registry.Via
}

func newKeeping(t *testing.T, o origin.KeeperOptions) *keeping {
	t.Helper()
	k := &keeping{bucket: new(moody), local: newShelf("disk"), up: newShelf("upstream"), meter: new(events),
		name: registry.Name{Space: "oci", Repo: "docker.io/a"}, fromUpstream: registry.Via{Fwd: "miss", Detail: "upstream"}}
	k.store = newStore(t, k.bucket)
	o.Name, o.Meter = "test", k.meter
	k.Keeper = origin.NewKeeper(k.store, k.up, o)
	k.From(k.local)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		k.Close(ctx)
	})
	return k
}

// land puts data into the local tier and tells the keeper so.
func (k *keeping) land(data []byte) registry.Descriptor {
	k.local.mu.Lock()
	k.local.add(data)
	k.local.mu.Unlock()
	d := conformance.Describe("", data)
	k.Landed(d, k.name, k.fromUpstream)
	return d
}

func (k *keeping) holds(d registry.Descriptor) bool {
	_, err := k.bucket.MemoryBucket.Stat(context.Background(), keyOf(d))
	return err == nil
}

// get reads a whole blob through the keeper and says where it came from.
func (k *keeping) get(d registry.Descriptor) (data []byte, detail string, err error) {
	b, err := k.Open(context.Background(), registry.Want{Descriptor: d, From: k.name, Length: -1})
	if err != nil {
		return nil, "", err
	}
	defer b.Close()
	data, err = io.ReadAll(b)
	return data, b.Via().Detail, err
}

// TestKept: what comes from an upstream is in the store afterwards, once, and
// is read from there.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		data := conformance.Bytes(1, 100_000)
		k.up.add(data)
		d := conformance.Describe("", data)
		if got, from, err := k.get(d); err != nil || from != "upstream" || !bytes.Equal(got, data) {
			t.Fatalf("before: %d bytes from %s, %v", len(got), from, err)
		}
		k.land(data)
		synctest.Wait()
		if !k.holds(d) || k.meter.count("kept") != 1 {
			t.Fatalf("not kept: %v", k.meter.n)
		}
		opens := k.up.opens.Load()
		if got, from, err := k.get(d); err != nil || from != "origin" || !bytes.Equal(got, data) {
			t.Errorf("after: %d bytes from %s, %v", len(got), from, err)
		}
		if k.up.opens.Load() != opens {
			t.Error("the upstream was asked for what is in the store")
		}
		reads := k.local.opens.Load()
		k.land(data)
		synctest.Wait()
		if k.bucket.puts.Load() != 1 || k.local.opens.Load() != reads || k.meter.count("kept already") != 1 {
			t.Errorf("written again: %d puts, %d reads of it, %v", k.bucket.puts.Load(), k.local.opens.Load()-reads, k.meter.n)
		}
		for _, via := range []registry.Via{{Detail: "disk"}, {Fwd: "miss", Detail: "origin"}, {Fwd: "miss", Detail: "shield"}} {
			other := conformance.Bytes(2, 100)
			k.local.add(other)
			k.Landed(conformance.Describe("", other), k.name, via)
			synctest.Wait()
			if k.holds(conformance.Describe("", other)) {
				t.Errorf("what came from %s was kept", via.Detail)
			}
		}
	})
}

// TestKeepChooses: names that are not to be kept are not, and not looked for.
func TestKeepChooses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{Keep: func(n registry.Name) bool { return strings.HasPrefix(n.Repo, "docker.io/") }})
		k.name.Repo = "private.example/a"
		d := k.land(conformance.Bytes(1, 100))
		synctest.Wait()
		if k.holds(d) || k.local.opens.Load() != 0 {
			t.Error("kept what is not to be kept")
		}
		if _, _, err := k.get(d); registry.KindOf(err) != registry.ErrNotFound {
			t.Errorf("open: %v", err)
		}
		if n := k.bucket.asked.Load(); n != 0 {
			t.Errorf("the store was asked %d times for what it never has", n)
		}
		k.name.Repo = "docker.io/a"
		k.Landed(d, k.name, k.fromUpstream)
		synctest.Wait()
		if !k.holds(d) {
			t.Error("not kept by the other name")
		}
	})
}

// TestHangingStore: a store that hangs costs one reader the Keeper's patience
// and others nothing, until it is tried again; and writing delays nobody.
func TestHangingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		data := conformance.Bytes(1, 100)
		k.up.add(data)
		d := conformance.Describe("", data)
		k.bucket.hang.Store(true)
		took := func() time.Duration {
			start := time.Now()
			if got, from, err := k.get(d); err != nil || from != "upstream" || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes from %s, %v", len(got), from, err)
			}
			return time.Since(start)
		}
		if got := took(); got != 2*time.Second {
			t.Errorf("the first reader took %v", got)
		}
		for range 100 {
			k.land(data)
			if got := took(); got != 0 {
				t.Fatalf("a reader behind the first took %v", got)
			}
		}
		pass(5*time.Second + time.Millisecond)
		// One tries it; the others do not wait with him.
		trial := make(chan time.Duration)
		go func() { trial <- took() }()
		synctest.Wait()
		if got := took(); got != 0 {
			t.Errorf("a reader beside the one who tries took %v", got)
		}
		if got := <-trial; got != 2*time.Second {
			t.Errorf("the one who tries took %v", got)
		}
		k.bucket.hang.Store(false)
		pass(5*time.Second + time.Millisecond)
		took()
		// It is well again, and each reader asks it.
		asked := k.bucket.asked.Load()
		took()
		if k.bucket.asked.Load() == asked {
			t.Error("a store that is well again is not asked")
		}
		if got := k.meter.count("origin unavailable"); got != 2 {
			t.Errorf("%d failures were metered", got)
		}
	})
}

// TestTrialLeft: a reader that leaves while it tries the store does not keep
// others from trying.
func TestTrialLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		data := conformance.Bytes(1, 100)
		k.up.add(data)
		d := k.land(data)
		synctest.Wait()
		k.bucket.hang.Store(true)
		k.get(d)
		pass(6 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := k.Open(ctx, registry.Want{Descriptor: d, From: k.name, Length: -1})
		if registry.KindOf(err) != registry.ErrUnavailable {
			t.Errorf("a reader that left: %v", err)
		}
		k.bucket.hang.Store(false)
		if _, from, err := k.get(d); err != nil || from != "origin" {
			t.Errorf("the next one: from %s, %v", from, err)
		}
	})
}

// TestFailingStore: failures are not answers, and Retry-After is heeded.
func TestFailingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		k.bucket.after = 20 * time.Second
		k.bucket.fail.Store(true)
		missing := conformance.Describe("", []byte("nowhere"))
		for range 2 {
			_, _, err := k.get(missing)
			wantKind(t, err, registry.ErrUnavailable, "not upstream, and the store cannot be asked")
		}
		k.bucket.fail.Store(false)
		pass(19 * time.Second)
		k.get(missing)
		if n := k.bucket.asked.Load(); n != 1 {
			t.Errorf("asked %d times within its Retry-After", n)
		}
		pass(2 * time.Second)
		_, _, err := k.get(missing)
		wantKind(t, err, registry.ErrNotFound, "nowhere, as both say")
	})
}

// TestCutInTheMiddle: after a body that broke off, the run is continued from
// the upstream.
func TestCutInTheMiddle(t *testing.T) {
	data := conformance.Bytes(1, 100_000)
	f := &flaky{Bucket: new(origin.MemoryBucket), cut: 30_000, cutWith: io.ErrUnexpectedEOF}
	store := newStore(t, f)
	d, err := commit(store, data)
	if err != nil {
		t.Fatal(err)
	}
	meter := new(events)
	k := origin.NewKeeper(store, newShelf("upstream", data), origin.KeeperOptions{Name: "test", Meter: meter})
	defer k.Close(context.Background())
	for _, writeTo := range []bool{true, false} {
		b, err := k.Open(context.Background(), registry.Want{Descriptor: d, Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if writeTo {
			_, err = b.WriteTo(&got)
			wantKind(t, err, registry.ErrUnavailable, "a body that was cut")
		} else if _, err = got.ReadFrom(struct{ io.Reader }{b}); err != nil || b.Via().Detail != "upstream" {
			t.Errorf("while it rests: %v from %s", err, b.Via().Detail)
		}
		b.Close()
		rest, err := read(k, d, int64(got.Len()), -1)
		if err != nil || !bytes.Equal(append(got.Bytes(), rest...), data) {
			t.Errorf("the rest: %d and %d bytes, %v", got.Len(), len(rest), err)
		}
	}
	if meter.count("origin unavailable") != 1 {
		t.Errorf("events: %v", meter.n)
	}
}

// TestQueueIsBounded: what is too much is dropped and counted, and Landed
// never waits.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{Queue: 10})
		k.bucket.hang.Store(true)
		start := time.Now()
		for i := range 15 {
			k.land(fmt.Appendf(nil, "blob %d", i))
			k.land(fmt.Appendf(nil, "blob %d", i)) // the same again takes no room
		}
		if got := time.Since(start); got != 0 {
			t.Errorf("Landed waited %v", got)
		}
		if k.Waiting() != 10 || k.meter.count("keep dropped") != 10 {
			t.Errorf("%d wait, %d dropped", k.Waiting(), k.meter.count("keep dropped"))
		}
		k.bucket.hang.Store(false)
		pass(5 * time.Minute)
		if k.Waiting() != 0 || k.meter.count("kept") != 10 {
			t.Errorf("afterwards %d wait, %v", k.Waiting(), k.meter.n)
		}
	})
}

// TestOutage: what lands while the bucket is away is written when it is back.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		k.bucket.fail.Store(true)
		var all []registry.Descriptor
		for i := range 20 {
			all = append(all, k.land(conformance.Bytes(uint64(i), 1000)))
		}
		gone := k.land(conformance.Bytes(99, 1000))
		k.local.mu.Lock()
		delete(k.local.blobs, gone.Digest) // evicted meanwhile
		k.local.mu.Unlock()
		pass(time.Hour)
		if n := k.bucket.asked.Load(); n > 140 {
			t.Errorf("a bucket that is away was asked %d times in an hour", n)
		}
		k.bucket.fail.Store(false)
		pass(2 * time.Minute)
		for _, d := range all {
			if !k.holds(d) {
				t.Errorf("%s was not written after the outage", d.Digest)
			}
		}
		if k.Waiting() != 0 || k.meter.count("keep dropped") != 1 {
			t.Errorf("%d wait, %v", k.Waiting(), k.meter.n)
		}
		// A day is too long.
		k.bucket.fail.Store(true)
		k.land(conformance.Bytes(100, 10))
		pass(25 * time.Hour)
		if k.Waiting() != 0 || k.meter.count("keep dropped") != 2 {
			t.Errorf("after a day %d wait, %v", k.Waiting(), k.meter.n)
		}
	})
}

// TestDrain: Close writes what is queued, but not for longer than it may.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		k.From(nil) // nothing is written yet
		var all []registry.Descriptor
		for i := range 20 {
			all = append(all, k.land(conformance.Bytes(uint64(i), 1000)))
		}
		k.From(k.local)
		if err := k.Close(context.Background()); err != nil {
			t.Error(err)
		}
		for _, d := range all {
			if !k.holds(d) {
				t.Errorf("%s was not written before Close returned", d.Digest)
			}
		}
		late := k.land([]byte("late"))
		if k.Waiting() != 0 || k.holds(late) {
			t.Error("kept after Close")
		}
	})
	for _, hang := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			k := newKeeping(t, origin.KeeperOptions{})
			k.bucket.hang.Store(hang)
			k.bucket.fail.Store(!hang)
			for i := range 20 {
				k.land(conformance.Bytes(uint64(i), 1000))
			}
			synctest.Wait()
			ctx, cancel := context.WithTimeout(context.Background(), 7*time.Second)
			defer cancel()
			start := time.Now()
			err := k.Close(ctx)
			if err == nil || !strings.Contains(err.Error(), "20 blobs") {
				t.Errorf("close with a dead bucket: %v", err)
			}
			want := time.Duration(0) // each is tried once, and fails
			if hang {
				want = 7 * time.Second
			}
			if got := time.Since(start); got != want {
				t.Errorf("close took %v, want %v", got, want)
			}
		})
	}
}

// TestDoubt: wrong bytes in the store are passed over once they are known to
// be wrong, and replaced by right ones.
func TestDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		data := conformance.Bytes(1, 1000)
		d := conformance.Describe("", data)
		k.bucket.Spoil(keyOf(d), conformance.Bytes(2, 1000))
		k.up.add(data)
		k.Doubt(registry.Want{Descriptor: d}, registry.Via{Fwd: "miss", Detail: "upstream"}) // not the store's fault
		if _, from, _ := k.get(d); from != "origin" {
			t.Errorf("from %s, want origin", from)
		}
		k.Doubt(registry.Want{Descriptor: d}, registry.Via{Fwd: "miss", Detail: "origin"})
		if got, from, err := k.get(d); from != "upstream" || err != nil || !bytes.Equal(got, data) {
			t.Errorf("from %s, %v", from, err)
		}
		k.land(data)
		synctest.Wait()
		if got, from, err := k.get(d); from != "origin" || err != nil || !bytes.Equal(got, data) {
			t.Errorf("replaced: from %s, %v, right: %v", from, err, bytes.Equal(got, data))
		}
		// One of the wrong size is noticed at once.
		k.bucket.Spoil(keyOf(d), data[1:])
		if got, from, err := k.get(d); from != "upstream" || err != nil || !bytes.Equal(got, data) {
			t.Errorf("wrong size: from %s, %v", from, err)
		}
		k.land(data)
		synctest.Wait()
		if _, from, _ := k.get(d); from != "origin" {
			t.Errorf("replaced again: from %s", from)
		}
		// What is wrong in the store and gone upstream is not "not found".
		k.bucket.Spoil(keyOf(d), data[1:])
		delete(k.up.blobs, d.Digest)
		_, _, err := k.get(d)
		wantKind(t, err, registry.ErrUnavailable, "damaged here, gone there")
		if k.meter.count("origin corrupt") != 1 || k.meter.count("origin size") != 2 {
			t.Errorf("events: %v", k.meter.n)
		}
	})
}

// TestWrongSizeElsewhere: a name that says a wrong size of a blob takes it from
// no other, not even if the upstream has it no more.
func TestWrongSizeElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeping(t, origin.KeeperOptions{})
		data := conformance.Bytes(1, 1000)
		d := k.land(data)
		synctest.Wait()
		delete(k.up.blobs, d.Digest)
		wrong := d
		wrong.Size--
		_, _, err := k.get(wrong)
		wantKind(t, err, registry.ErrUnavailable, "a wrong size")
		if got, from, err := k.get(d); from != "origin" || err != nil || !bytes.Equal(got, data) {
			t.Errorf("the right size: from %s, %v", from, err)
		}
	})
}

// TestNothingBehind: a Keeper alone answers for its store.
func TestNothingBehind(t *testing.T) {
	b := new(moody)
	k := origin.NewKeeper(newStore(t, b), nil, origin.KeeperOptions{})
	defer k.Close(context.Background())
	_, err := read(k, conformance.Describe("", []byte("a")), 0, -1)
	wantKind(t, err, registry.ErrNotFound, "not in the store")
	b.fail.Store(true)
	_, err = read(k, conformance.Describe("", []byte("a")), 0, -1)
	wantKind(t, err, registry.ErrLimited, "a store that fails")
	_, err = read(k, conformance.Describe("", []byte("a")), 0, -1)
	wantKind(t, err, registry.ErrUnavailable, "a store that rests")
}

// pass lets fake time pass; it is for use in a synctest bubble alone.
func pass(d time.Duration) { <-time.After(d) }
