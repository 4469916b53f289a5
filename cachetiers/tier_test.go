package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// far is a far side that counts, and gives its bytes at a pace: a chunk, then
// whatever step does (waits, fails).
type far struct {
	data  []byte
	chunk int
	step  func(ctx context.Context, at int64) error
	opens atomic.Int64
	bytes atomic.Int64
	open  func(w registry.Want) error // nil: no failure
	size  int64                       // what Descriptor says; 0: len(data)
}

func (f *far) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	f.opens.Add(1)
	if f.open != nil {
		if err := f.open(w); err != nil {
			return nil, err
		}
	}
	d := w.Descriptor
	if d.Size = f.size; d.Size == 0 {
		d.Size = int64(len(f.data))
	}
	off, n, ok := w.Clip(int64(len(f.data)))
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "past the end")
	}
	b := registry.NewBytesBlob(f.data, d, off, n, registry.Via{Fwd: "miss", Detail: "upstream"})
	return &farBlob{Blob: b, f: f, ctx: ctx, at: off}, nil
}

type farBlob struct {
	registry.Blob
	f   *far
	ctx context.Context
	at  int64
}

func (b *farBlob) Read(p []byte) (int, error) {
	if b.f.step != nil {
		if err := b.f.step(b.ctx, b.at); err != nil {
			return 0, err
		}
	}
	if b.f.chunk > 0 && len(p) > b.f.chunk {
		p = p[:b.f.chunk]
	}
	n, err := b.Blob.Read(p)
	b.at += int64(n)
	b.f.bytes.Add(int64(n))
	return n, err
}

func (b *farBlob) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

// slow waits d before each chunk, and no longer than its context.
func slow(d time.Duration) func(context.Context, int64) error {
	return func(ctx context.Context, _ int64) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func want(data []byte, off, n int64) registry.Want {
	return registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))},
		From: registry.Name{Space: "oci", Repo: "r", Ref: "d"}, Offset: off, Length: n}
}

func read(t *testing.T, src registry.Source, w registry.Want) []byte {
	t.Helper()
	got, err := readErr(src, w)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func readErr(src registry.Source, w registry.Want) ([]byte, error) {
	b, err := src.Open(context.Background(), w)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

// pass lets fake time pass; it is for use in a synctest bubble alone.
func pass(d time.Duration) { <-time.After(d) }

// each runs a test over the stores that a Tier may have near.
func each(t *testing.T, test func(t *testing.T, near func(t *testing.T) registry.Store)) {
	t.Run("memory", func(t *testing.T) {
		test(t, func(*testing.T) registry.Store { return new(cachetiers.Memory) })
	})
	t.Run("disk", func(t *testing.T) {
		test(t, func(t *testing.T) registry.Store { return openDisk(t, t.TempDir(), 1<<30) })
	})
}

func TestManyReadersOneFill(t *testing.T) {
	each(t, func(t *testing.T, near func(*testing.T) registry.Store) {
		dir := near(t)
		synctest.Test(t, func(t *testing.T) {
			data := conformance.Bytes(1, 3<<20)
			f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
			tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					pass(time.Duration(i) * time.Millisecond)
					off := int64(i) * 40_000
					got, err := readErr(tier, want(data, off, -1))
					if err != nil || !bytes.Equal(got, data[off:]) {
						t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
					}
				})
			}
			wg.Wait()
			if f.opens.Load() != 1 || f.bytes.Load() != int64(len(data)) {
				t.Errorf("far was opened %d times and gave %d bytes, want 1 and %d", f.opens.Load(), f.bytes.Load(), len(data))
			}
		})
	})
}

// TestFedWhileItArrives: a reader has the first bytes long before the last
// have come.
func TestFedWhileItArrives(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(2, 4<<20)
		tier := cachetiers.NewTier(dir, &far{data: data, chunk: 64 << 10, step: slow(time.Second)}, cachetiers.Options{})
		start := time.Now()
		b, err := tier.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, err := b.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the first byte took %v of 64 s", took)
		}
		if via := b.Via(); via.Fwd != "miss" || via.Detail != "upstream" {
			t.Errorf("via %v", via)
		}
		pass(2 * time.Minute) // until it has landed
	})
}

func TestFirstReaderLeaves(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(3, 2<<20)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Second)}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		first, err := tier.Open(ctx, want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			got, err := readErr(tier, want(data, 0, -1))
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("wrong bytes")
			}
			done <- err
		}()
		pass(3 * time.Second)
		cancel()
		first.Close()
		if err := <-done; err != nil {
			t.Errorf("the second reader: %v", err)
		}
		if f.opens.Load() != 1 {
			t.Errorf("far was opened %d times", f.opens.Load())
		}
	})
}

// TestClientComesBack: hanging up and trying again within the linger time costs
// the far side nothing.
func TestClientComesBack(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(4, 36<<20)
		f := &far{data: data, chunk: 1 << 20, step: slow(time.Second)}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		b, err := tier.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Second)
		b.Close()
		pass(10 * time.Second)
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if f.opens.Load() != 1 || f.bytes.Load() != int64(len(data)) {
			t.Errorf("far was opened %d times and gave %d bytes", f.opens.Load(), f.bytes.Load())
		}
	})
}

// TestAbandoned: a flight that nobody waits for ends, and who comes then is not
// given its failure.
func TestAbandoned(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(5, 40<<20)
		f := &far{data: data, chunk: 1 << 20, step: slow(time.Second)}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{Linger: 5 * time.Second})
		b, err := tier.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		pass(6 * time.Second)
		got := f.bytes.Load()
		pass(time.Minute)
		if now := f.bytes.Load(); now > got+1<<20 {
			t.Errorf("an abandoned flight went on from %d to %d bytes", got, now)
		}
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if f.opens.Load() != 2 {
			t.Errorf("far was opened %d times, want 2", f.opens.Load())
		}
	})
}

// TestMoreThanHalf: what is nearly there is finished for the next reader.
func TestMoreThanHalf(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(6, 8<<20)
		f := &far{data: data, chunk: 1 << 20, step: slow(10 * time.Second)}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{Linger: time.Second})
		b, err := tier.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		pass(2 * time.Minute)
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) || f.opens.Load() != 1 {
			t.Errorf("far was opened %d times", f.opens.Load())
		}
	})
}

func TestOrphansAreBounded(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		ended := atomic.Int64{}
		src := sourceFunc(func(ctx context.Context, w registry.Want) (registry.Blob, error) {
			f := &far{data: make([]byte, w.Size), chunk: 1, step: func(ctx context.Context, _ int64) error {
				<-ctx.Done()
				ended.Add(1)
				return ctx.Err()
			}}
			return f.Open(ctx, w)
		})
		tier := cachetiers.NewTier(dir, src, cachetiers.Options{Orphans: 4, Linger: time.Hour})
		for i := range 10 {
			w := want(conformance.Bytes(uint64(i), 10), 0, -1)
			w.Size = 40 << 20
			b, err := tier.Open(context.Background(), w)
			if err != nil {
				t.Fatal(err)
			}
			b.Close()
		}
		synctest.Wait()
		if ended.Load() != 6 {
			t.Errorf("%d of 10 flights without readers ended at once, want 6", ended.Load())
		}
		pass(2 * time.Hour)
		synctest.Wait()
		if ended.Load() != 10 {
			t.Errorf("%d of 10 flights ended in the end", ended.Load())
		}
	})
}

type sourceFunc func(ctx context.Context, w registry.Want) (registry.Blob, error)

func (f sourceFunc) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	return f(ctx, w)
}

// TestCorruptFar: nobody gets a whole wrong blob, nothing is kept, and the next
// reader gets the right one.
func TestCorruptFar(t *testing.T) {
	for _, size := range []int{0, 1, 1000, holdBack, holdBack + 1, 3 << 20} {
		each(t, func(t *testing.T, near func(*testing.T) registry.Store) {
			right := conformance.Bytes(7, size)
			wrong := append(bytes.Clone(right), 'x')
			if size > 0 {
				wrong = bytes.Clone(right)
				wrong[0] ^= 1
			}
			f := &far{data: wrong, chunk: 64 << 10}
			tier := cachetiers.NewTier(near(t), f, cachetiers.Options{})
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					got, err := readErr(tier, want(right, 0, -1))
					if !errors.Is(err, registry.ErrCorrupt) {
						t.Errorf("size %d: error %v, want ErrCorrupt", size, err)
					}
					if len(got) >= size && size > 0 {
						t.Errorf("a reader was given %d of %d wrong bytes", len(got), size)
					}
				})
			}
			wg.Wait()
			f.data = right
			if got := read(t, tier, want(right, 0, -1)); !bytes.Equal(got, right) {
				t.Error("the next reader did not get the right bytes")
			}
		})
	}
}

const holdBack = 16 << 10

// TestFarBreaksOff: the fill goes on where it was.
func TestFarBreaksOff(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(8, 4<<20)
		var next int64 = 1 << 20
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(_ context.Context, at int64) error {
			if at >= next {
				next += 1 << 20
				return registry.Errorf(registry.ErrUnavailable, "connection reset")
			}
			return nil
		}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if f.bytes.Load() != int64(len(data)) || f.opens.Load() < 4 {
			t.Errorf("far gave %d of %d bytes in %d opens", f.bytes.Load(), len(data), f.opens.Load())
		}
	})
}

// TestFarEndsEarly: a far side that always ends early fails its readers within
// seconds, and truthfully.
func TestFarEndsEarly(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(9, 2<<20)
		f := &far{data: data[:1<<20], size: int64(len(data))}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		start := time.Now()
		got, err := readErr(tier, want(data, 0, -1))
		if !errors.Is(err, registry.ErrUnavailable) || len(got) >= len(data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestFailureOfAnotherName: a flight begun through another repository may fail
// for that repository's reasons.
func TestFailureOfAnotherName(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(10, 1000)
		f := &far{data: data}
		f.open = func(w registry.Want) error {
			if w.From.Repo == "private" {
				pass(time.Second)
				return registry.Errorf(registry.ErrDenied, "not yours")
			}
			return nil
		}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		private := want(data, 0, -1)
		private.From.Repo = "private"
		done := make(chan error)
		go func() { _, err := readErr(tier, private); done <- err }()
		synctest.Wait()
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if err := <-done; !errors.Is(err, registry.ErrDenied) {
			t.Errorf("the first reader got %v", err)
		}
	})
}

// TestNoRoom: without room near, readers get their bytes, verified, from the
// far side; also when the room runs out in the middle.
func TestNoRoom(t *testing.T) {
	data := conformance.Bytes(11, 5<<20)
	wrong := bytes.Clone(data)
	wrong[100] ^= 1
	for name, limit := range map[string]int64{"at the start": 1 << 20, "in the middle": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			unknown := func(data []byte) *far { return &far{data: data, size: -1, chunk: 64 << 10} }
			f := unknown(data)
			if name == "at the start" {
				f.size = 0
			}
			tier := cachetiers.NewTier(cachetiers.NewMemory(limit), f, cachetiers.Options{Spare: -1})
			w := want(data, 0, -1)
			if got := read(t, tier, w); !bytes.Equal(got, data) {
				t.Error("wrong bytes")
			}
			if got := read(t, tier, want(data, 1000, 2000)); !bytes.Equal(got, data[1000:3000]) {
				t.Error("wrong range")
			}
			f.data = wrong
			got, err := readErr(tier, w)
			if !errors.Is(err, registry.ErrCorrupt) || len(got) >= len(data) {
				t.Errorf("corrupt far, no room: %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestFarHangs: a reader is told within its patience, and the next one finds
// the blob when the far side has come round.
func TestFarHangs(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(14, 1000)
		f := &far{data: data, open: func(registry.Want) error { pass(35 * time.Second); return nil }}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{Linger: time.Minute})
		start := time.Now()
		_, err := readErr(tier, want(data, 0, -1))
		if !errors.Is(err, registry.ErrUnavailable) || registry.RetryAfter(err) == 0 {
			t.Errorf("%v, after %v", err, registry.RetryAfter(err))
		}
		if took := time.Since(start); took > 21*time.Second {
			t.Errorf("it took %v", took)
		}
		pass(registry.RetryAfter(err))
		if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) || f.opens.Load() != 1 {
			t.Errorf("%d bytes, %d opens", len(got), f.opens.Load())
		}
	})
}

// TestNoRoomSizeUnknown: a run of a blob whose size nobody knows may be all of
// it, and is verified like all of it.
func TestNoRoomSizeUnknown(t *testing.T) {
	right, wrong := conformance.Bytes(15, 100_000), conformance.Bytes(16, 100_000)
	tier := cachetiers.NewTier(cachetiers.NewMemory(1000), &far{data: wrong}, cachetiers.Options{})
	for _, length := range []int64{-1, 100_000} {
		w := want(right, 0, length)
		w.Size = -1
		if got, err := readErr(tier, w); !errors.Is(err, registry.ErrCorrupt) || len(got) >= len(right) {
			t.Errorf("length %d: %d wrong bytes with %v", length, len(got), err)
		}
	}
}

// TestBreaksOffAtTheEnd: a far side that does not say how long a blob is, and
// loses its connection after the last byte, has given all of it.
func TestBreaksOffAtTheEnd(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(17, 300_000)
		f := &far{data: data, size: -1}
		f.step = func(_ context.Context, at int64) error {
			if at == int64(len(data)) {
				return registry.Errorf(registry.ErrUnavailable, "reset")
			}
			return nil
		}
		f.open = func(w registry.Want) error {
			if w.Offset == int64(len(data)) {
				return registry.Errorf(registry.ErrInvalid, "range not satisfiable")
			}
			return nil
		}
		w := want(data, 0, -1)
		w.Size = -1
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		if got := read(t, tier, w); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
	})
}

// TestTricklingOrphan: a flight that nobody reads does not go on for ever
// because it is more than half done.
func TestTricklingOrphan(t *testing.T) {
	dir := openDisk(t, t.TempDir(), 1<<30)
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(18, 1<<20)
		var ended atomic.Bool
		f := &far{data: data, chunk: 1, step: func(ctx context.Context, at int64) error {
			err := slow(14*time.Second)(ctx, at)
			ended.Store(err != nil)
			return err
		}}
		tier := cachetiers.NewTier(dir, f, cachetiers.Options{})
		b, err := tier.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		pass(5 * time.Minute)
		if ended.Load() {
			t.Error("it ended at once")
		}
		pass(time.Hour)
		if !ended.Load() {
			t.Error("it goes on")
		}
	})
}

func TestDescriptorAloneFillsNothing(t *testing.T) {
	data := conformance.Bytes(12, 1<<20)
	f := &far{data: data}
	tier := cachetiers.NewTier(new(cachetiers.Memory), f, cachetiers.Options{})
	b, err := tier.Open(context.Background(), want(data, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if b.Descriptor().Size != int64(len(data)) || f.bytes.Load() != 0 {
		t.Errorf("size %d, %d bytes read", b.Descriptor().Size, f.bytes.Load())
	}
}

// TestNested: memory in front of disk in front of far; what was read is found
// nearer the next time.
func TestNested(t *testing.T) {
	data := conformance.Bytes(13, 100_000)
	f := &far{data: data}
	dir := t.TempDir()
	build := func() registry.Store {
		disk := cachetiers.NewTier(openDisk(t, dir, 1<<30), f, cachetiers.Options{Name: "disk"})
		return cachetiers.NewTier(new(cachetiers.Memory), disk, cachetiers.Options{Name: "memory"})
	}
	store := build()
	for _, wantVia := range []string{"weir; fwd=miss; detail=upstream", "weir; hit; detail=memory"} {
		b, err := store.Open(context.Background(), want(data, 0, -1))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if got := b.Via().String(); got != wantVia {
			t.Errorf("via %q, want %q", got, wantVia)
		}
		b.Close()
	}
	store = build() // a restart
	b, err := store.Open(context.Background(), want(data, 0, -1))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := b.Via().String(); got != "weir; hit; detail=disk" {
		t.Errorf("after a restart: via %q", got)
	}
	if f.opens.Load() != 1 {
		t.Errorf("far was opened %d times", f.opens.Load())
	}
}

// TestRandomReaders compares many concurrent random reads, through fills that
// break off and readers that leave, with the truth.
func TestRandomReaders(t *testing.T) {
	blobs := make([][]byte, 6)
	for i := range blobs {
		blobs[i] = conformance.Bytes(uint64(100+i), 1<<(12+2*i)+i)
	}
	var breaks atomic.Int64
	src := sourceFunc(func(ctx context.Context, w registry.Want) (registry.Blob, error) {
		for _, data := range blobs {
			if digest.FromBytes(data) == w.Digest {
				f := &far{data: data, chunk: 50_000, step: func(context.Context, int64) error {
					if rand.IntN(100) == 0 {
						breaks.Add(1)
						return registry.Errorf(registry.ErrUnavailable, "reset")
					}
					return nil
				}}
				return f.Open(ctx, w)
			}
		}
		return nil, registry.Errorf(registry.ErrNotFound, "what?")
	})
	// Room for about half of them: flights, hits and evictions interleave.
	tier := cachetiers.NewTier(openDisk(t, t.TempDir(), 3<<20), src, cachetiers.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 30 {
				data := blobs[rand.IntN(len(blobs))]
				off := rand.Int64N(int64(len(data)))
				n := rand.Int64N(int64(len(data)))
				if rand.IntN(2) == 0 {
					off, n = 0, -1
				}
				b, err := tier.Open(context.Background(), want(data, off, n))
				if err != nil {
					if !errors.Is(err, registry.ErrUnavailable) {
						t.Error(err)
					}
					continue
				}
				var got bytes.Buffer
				if rand.IntN(4) == 0 {
					_, err = io.CopyN(&got, b, 100)
					if err == io.EOF {
						err = nil
					}
				} else {
					_, err = b.WriteTo(&got)
				}
				b.Close()
				end := int64(len(data))
				if n >= 0 {
					end = min(end, off+n)
				}
				if !strings.HasPrefix(string(data[off:end]), got.String()) {
					t.Errorf("wrong bytes at %d", off)
				}
				if err != nil && !errors.Is(err, registry.ErrUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if breaks.Load() == 0 {
		t.Error("nothing broke off: the test tests nothing")
	}
}

// TestStageWithoutRoomBehind: a document that the disk has no room for can
// still be served.
func TestStageWithoutRoomBehind(t *testing.T) {
	full := cachetiers.NewMemory(1000)
	tier := cachetiers.NewTier(new(cachetiers.Memory), cachetiers.NewTier(full, nothing{}, cachetiers.Options{}), cachetiers.Options{})
	w := store(t, tier, conformance.Bytes(1, 2000))
	if got := read(t, tier, w); !bytes.Equal(got, conformance.Bytes(1, 2000)) {
		t.Error("wrong bytes")
	}
}
