package origin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// TestBuckets holds every kind of bucket to what Bucket and Store promise.
func TestBuckets(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Run("Store", func(t *testing.T) {
				conformance.TestStore(t, func(t *testing.T) registry.Store { return newStore(t, p.open(t)) })
			})
			for _, c := range []struct {
				name string
				run  func(*testing.T, place)
			}{
				{"Objects", objects},
				{"LargeObject", largeObject},
				{"WrongSizeIsReplaced", wrongSizeIsReplaced},
				{"Drop", drop},
				{"NotDone", notDone},
				{"DoneAndNotTold", doneAndNotTold},
				{"CutBodies", cutBodies},
				{"AtOnce", atOnce},
			} {
				t.Run(c.name, func(t *testing.T) { c.run(t, p) })
			}
		})
	}
}

func objects(t *testing.T, p place) {
	ctx, b := context.Background(), p.open(t)
	data := conformance.Bytes(1, 100_000)
	const key = "some/key"
	if _, err := b.Stat(ctx, key); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("stat of nothing: %v", err)
	}
	if _, err := b.Get(ctx, key, 0, -1); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("get of nothing: %v", err)
	}
	if err := b.Delete(ctx, key); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
	for _, size := range []int64{0, 1, 70_000, 70_000, 100_000} { // a smaller one is replaced
		if err := b.Put(ctx, key, bytes.NewReader(data), size); err != nil {
			t.Fatalf("put %d bytes: %v", size, err)
		}
		if got, err := b.Stat(ctx, key); err != nil || got != size {
			t.Errorf("stat: %d, %v; want %d", got, err, size)
		}
	}
	for _, r := range []struct{ offset, length, want int64 }{{0, -1, 100_000}, {0, 10, 10}, {99_990, 100, 10}, {50_000, -1, 50_000}, {1, 1, 1}} {
		o, err := b.Get(ctx, key, r.offset, r.length)
		if err != nil {
			t.Errorf("get %+v: %v", r, err)
			continue
		}
		got, err := io.ReadAll(o.Body)
		o.Body.Close()
		if err != nil || o.Size != 100_000 || !bytes.Equal(got, data[r.offset:r.offset+r.want]) {
			t.Errorf("get %+v: %d bytes of %d, %v", r, len(got), o.Size, err)
		}
	}
	if _, err := b.Get(ctx, key, 200_000, -1); registry.KindOf(err) != registry.ErrInvalid {
		t.Errorf("get behind the end: %v", err)
	}
	for range 2 {
		if err := b.Delete(ctx, key); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := b.Stat(ctx, key); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("stat after delete: %v", err)
	}
}

// largeObject is put in several parts or chunks.
func largeObject(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	data := conformance.Bytes(2, 11<<20+12345)
	d, err := commit(store, data)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := read(store, d, 5<<20-10, 20); err != nil || !bytes.Equal(got, data[5<<20-10:5<<20+10]) {
		t.Errorf("across two parts: %v", err)
	}
}

func wrongSizeIsReplaced(t *testing.T, p place) {
	b := p.open(t)
	store := newStore(t, b)
	data := conformance.Bytes(3, 10_000)
	for _, n := range []int{0, 9_999} {
		d := conformance.Describe("", data)
		p.spoil(t, b, keyOf(d), data[:n])
		for _, length := range []int64{-1, 10, 0} {
			_, err := read(store, d, 0, length)
			wantKind(t, err, registry.ErrCorrupt, "read an object that is too short")
		}
		if _, err := commit(store, data); err != nil {
			t.Fatalf("commit over an object of %d bytes: %v", n, err)
		}
		if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
			t.Errorf("after it was replaced: %d bytes, %v", len(got), err)
		}
	}
}

// drop: what is of the right size and wrong is there until it is dropped.
func drop(t *testing.T, p place) {
	b := p.open(t)
	store := newStore(t, b)
	data := conformance.Bytes(4, 10_000)
	d := conformance.Describe("", data)
	p.spoil(t, b, keyOf(d), conformance.Bytes(5, 10_000))
	if err := store.Drop(context.Background(), d.Digest); err != nil {
		t.Fatal(err)
	}
	if err := store.Drop(context.Background(), d.Digest); err != nil {
		t.Errorf("drop what is not there: %v", err)
	}
	if _, err := read(store, d, 0, -1); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("after it was dropped: %v", err)
	}
	if _, err := commit(store, data); err != nil {
		t.Fatal(err)
	}
	if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("written anew: %d bytes, %v", len(got), err)
	}
}

// errInjected is a failure whose kind is not known, such as a connection that
// broke.
var errInjected = errors.New("injected")

// A flaky bucket fails before it does something, or after.
type flaky struct {
	origin.Bucket
	mu            sync.Mutex
	before, after map[string]int // guarded by mu; how often, by operation
	done          []string       // guarded by mu; what was done, or tried
	cut           int64          // bodies end after so many bytes; 0: they do not
	cutWith       error          // with this
}

func (f *flaky) fail(m map[string]int, op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m[op] == 0 {
		return nil
	}
	m[op]--
	return errInjected
}

func (f *flaky) note(op string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, op)
}

func (f *flaky) ops() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.done, " ")
}

func (f *flaky) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	f.note("put")
	if err := f.fail(f.before, "put"); err != nil {
		return err
	}
	if err := f.Bucket.Put(ctx, key, content, size); err != nil {
		return err
	}
	return f.fail(f.after, "put")
}

func (f *flaky) Stat(ctx context.Context, key string) (int64, error) {
	f.note("stat")
	if err := f.fail(f.before, "stat"); err != nil {
		return 0, err
	}
	return f.Bucket.Stat(ctx, key)
}

func (f *flaky) Get(ctx context.Context, key string, offset, length int64) (origin.Object, error) {
	f.note("get")
	if err := f.fail(f.before, "get"); err != nil {
		return origin.Object{}, err
	}
	o, err := f.Bucket.Get(ctx, key, offset, length)
	if err == nil && f.cut > 0 {
		o.Body = &cutBody{o.Body, f.cut, f.cutWith}
	}
	return o, err
}

type cutBody struct {
	io.ReadCloser
	left int64
	err  error
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.err
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

func notDone(t *testing.T, p place) {
	f := &flaky{Bucket: p.open(t), before: map[string]int{"put": 1}}
	store := newStore(t, f)
	data := conformance.Bytes(6, 10_000)
	d := conformance.Describe("", data)
	_, err := commit(store, data)
	wantKind(t, err, registry.ErrUnavailable, "a put that did not happen")
	_, err = read(store, d, 0, -1)
	wantKind(t, err, registry.ErrNotFound, "read what was not put")
	if _, err := commit(store, data); err != nil {
		t.Errorf("again: %v", err)
	}
	if got := f.ops(); got != "stat put stat get stat put" {
		t.Errorf("operations: %s", got)
	}
	f.before = map[string]int{"get": 1, "stat": 2}
	_, err = read(store, d, 0, -1)
	wantKind(t, err, registry.ErrUnavailable, "a get that did not happen")
	_, err = read(store, d, 0, 0)
	wantKind(t, err, registry.ErrUnavailable, "a stat that did not happen")
	_, err = commit(store, data)
	wantKind(t, err, registry.ErrUnavailable, "commit with a stat that did not happen")
	if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}

func doneAndNotTold(t *testing.T, p place) {
	f := &flaky{Bucket: p.open(t), after: map[string]int{"put": 1}, before: map[string]int{}}
	store := newStore(t, f)
	data := conformance.Bytes(7, 10_000)
	if _, err := commit(store, data); err != nil {
		t.Errorf("a put that happened, as a look shows: %v", err)
	}
	if _, err := commit(store, data); err != nil {
		t.Errorf("again: %v", err)
	}
	if got := f.ops(); got != "stat put stat stat" {
		t.Errorf("operations: %s", got)
	}
	// And nobody can look: then it counts as not done, until the next try.
	data = data[1:]
	f.after["put"] = 1
	blind := &blindAfterPut{flaky: f}
	_, err := commit(newStore(t, blind), data)
	wantKind(t, err, registry.ErrUnavailable, "a put that happened, with no way to see it")
	d, err := commit(store, data)
	if err != nil {
		t.Errorf("again: %v", err)
	}
	if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
	if got := strings.Count(f.ops(), "put"); got != 2 {
		t.Errorf("put %d times: %s", got, f.ops())
	}
}

// blindAfterPut fails every Stat after the first Put.
type blindAfterPut struct {
	*flaky
	blind bool
}

func (b *blindAfterPut) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	b.blind = true
	return b.flaky.Put(ctx, key, content, size)
}

func (b *blindAfterPut) Stat(ctx context.Context, key string) (int64, error) {
	if b.blind {
		return 0, errInjected
	}
	return b.flaky.Stat(ctx, key)
}

// cutBodies: a body that ends early is never taken for whole, however it ends.
func cutBodies(t *testing.T, p place) {
	bucket := p.open(t)
	data := conformance.Bytes(8, 50_000)
	d, err := commit(newStore(t, bucket), data)
	if err != nil {
		t.Fatal(err)
	}
	for _, with := range []error{io.EOF, io.ErrUnexpectedEOF, errInjected} {
		for _, size := range []int64{d.Size, -1} {
			store := newStore(t, &flaky{Bucket: bucket, cut: 20_000, cutWith: with})
			w := d
			w.Size = size
			got, err := read(store, w, 10_000, -1)
			wantKind(t, err, registry.ErrUnavailable, "a body cut with "+with.Error())
			if !bytes.Equal(got, data[10_000:30_000]) {
				t.Errorf("gave %d bytes before it was cut", len(got))
			}
			blob, err := store.Open(context.Background(), registry.Want{Descriptor: w, Length: -1})
			if err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			_, err = blob.WriteTo(&buf)
			wantKind(t, err, registry.ErrUnavailable, "WriteTo of a body cut with "+with.Error())
			blob.Close()
		}
	}
}

// atOnce: many commits of one blob, some of which fail, and readers that find
// it whole or not at all.
func atOnce(t *testing.T, p place) {
	f := &flaky{Bucket: p.open(t), before: map[string]int{"put": 2}, after: map[string]int{"put": 2}}
	store := newStore(t, f)
	data := conformance.Bytes(9, 200_000)
	d := conformance.Describe("", data)
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			for try := 0; ; try++ {
				if _, err := commit(store, data); err == nil {
					break
				} else if try > 5 {
					t.Errorf("commit: %v", err)
					return
				}
			}
			if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
				t.Errorf("after a commit: %d bytes, %v", len(got), err)
			}
		})
		group.Go(func() {
			got, err := read(store, d, 0, -1)
			if err == nil && !bytes.Equal(got, data) || err != nil && registry.KindOf(err) != registry.ErrNotFound {
				t.Errorf("meanwhile: %d bytes, %v", len(got), err)
			}
		})
	}
	group.Wait()
}
