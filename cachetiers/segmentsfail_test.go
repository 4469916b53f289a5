package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
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

// TestSegmentsBreakOff: each goes on where it was.
func TestSegmentsBreakOff(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(3, 4<<20)
		var chunks atomic.Int64
		f := &far{data: data, chunk: 32 << 10}
		f.step = func(context.Context, int64) error {
			if chunks.Add(1)%5 == 0 {
				return registry.Errorf(registry.ErrUnavailable, "connection reset")
			}
			return nil
		}
		same(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
		if f.opens.Load() < 32 {
			t.Errorf("%d opens: nothing broke off", f.opens.Load())
		}
	})
}

// deaf is a far side that ignores ranges. What it sends before a run that was
// asked for counts too.
type deaf struct{ *far }

func (f deaf) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	off, n, _ := w.Clip(int64(len(f.data)))
	w.Offset, w.Length = 0, -1
	b, err := f.far.Open(ctx, w)
	if err != nil {
		return nil, err
	}
	return &deafBlob{Blob: b, skip: off, left: n}, nil
}

type deafBlob struct {
	registry.Blob
	skip, left int64
}

func (b *deafBlob) Widen() bool {
	b.skip, b.left = 0, math.MaxInt64
	return true
}

func (b *deafBlob) Read(p []byte) (int, error) {
	n, err := io.CopyN(io.Discard, b.Blob, b.skip)
	if b.skip -= n; err != nil {
		return 0, err
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	m, err := b.Blob.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(m)
	return m, err
}

// TestFarIgnoresRange: it is read once, from the beginning.
func TestFarIgnoresRange(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(4, 4<<20)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
		tier := cachetiers.NewTier(d, deaf{f}, inSegments())
		var wg sync.WaitGroup
		for i := range int64(8) {
			off := i * 500_000
			wg.Go(func() { same(t, tier, want(data, off, 1000), data[off:off+1000]) })
		}
		wg.Wait()
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
		if f.opens.Load() != 1 {
			t.Errorf("%d opens", f.opens.Load())
		}
		committed(t, d, data)
	})
}

// TestFarIgnoresRangeAndBreaksOff: what readers have is not written again, and
// it ends one day.
func TestFarIgnoresRangeAndBreaksOff(t *testing.T) {
	breaksAt := func(places ...int64) (*far, []byte) {
		data := conformance.Bytes(5, 4<<20)
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(_ context.Context, at int64) error {
			if at >= places[(f.opens.Load()-1)%int64(len(places))] {
				return registry.Errorf(registry.ErrUnavailable, "reset")
			}
			return nil
		}
		return f, data
	}
	t.Run("once", func(t *testing.T) {
		after(t, func(t *testing.T, d *cachetiers.Disk) {
			f, data := breaksAt(3<<20, math.MaxInt64)
			same(t, cachetiers.NewTier(d, deaf{f}, inSegments()), want(data, 0, -1), data)
			f.gave(t, 7<<20)
			committed(t, d, data)
		})
	})
	t.Run("for ever", func(t *testing.T) {
		after(t, func(t *testing.T, d *cachetiers.Disk) {
			f, data := breaksAt(1<<20, 2<<20) // each second time farther than the time before
			_, err := readErr(cachetiers.NewTier(d, deaf{f}, inSegments()), want(data, 0, -1))
			if !errors.Is(err, registry.ErrUnavailable) || f.opens.Load() > 10 {
				t.Errorf("%v after %d opens", err, f.opens.Load())
			}
		})
	})
}

// TestCorruptInSegments: wrong bytes are nobody's whole blob, whatever the size
// he thought it had, and leave nothing.
func TestCorruptInSegments(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := openDisk(t, dir, 1<<30)
		data := conformance.Bytes(6, 2<<20)
		wrong := bytes.Clone(data)
		wrong[3*segment+5] ^= 1
		f := &far{data: wrong, chunk: 64 << 10, step: slow(time.Millisecond)}
		tier := cachetiers.NewTier(d, f, inSegments())
		whole := want(data, 0, -1)
		unknown, run, long := whole, want(data, 0, int64(len(data))), want(data, 0, math.MaxInt64)
		unknown.Size = -1
		unsized := run
		unsized.Size = -1
		var wg sync.WaitGroup
		for i, w := range []registry.Want{whole, unknown, run, long, unsized} {
			wg.Go(func() {
				pass(time.Duration(i) * time.Microsecond) // the first begins the flight
				got, err := readErr(tier, w)
				if !errors.Is(err, registry.ErrCorrupt) || len(got) > len(data)-holdBack {
					t.Errorf("reader %d: %d wrong bytes of %d, %v", i, len(got), len(data), err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		nothingLeft(t, dir)
		f.data = data
		same(t, tier, whole, data)
	})
}

// nothingLeft fails the test if a fill left files in dir.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	for _, sub := range []string{"partial", "staging"} {
		files, err := os.ReadDir(dir + "/" + sub)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			t.Errorf("%s/%s was left", sub, f.Name())
		}
	}
}

// TestOneSegmentFails: who does not need it does not notice, and what is there
// is not fetched again.
func TestOneSegmentFails(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(14, 4<<20)
		var sick atomic.Bool
		sick.Store(true)
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(ctx context.Context, at int64) error {
			if sick.Load() && at >= 5*segment && at < 6*segment {
				return registry.Errorf(registry.ErrUnavailable, "a bad disk")
			}
			return slow(time.Millisecond)(ctx, at)
		}
		tier := cachetiers.NewTier(d, f, inSegments())
		run := begin(t, tier, want(data, 0, 2*segment))
		defer run.Close()
		first := readFull(t, run, 10)
		start := time.Now()
		got, err := readErr(tier, want(data, 0, -1))
		if !errors.Is(err, registry.ErrUnavailable) || !bytes.Equal(got, data[:len(got)]) || len(got) > 5*segment {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		if got, err := io.ReadAll(run); err != nil || !bytes.Equal(append(first, got...), data[:2*segment]) {
			t.Errorf("a reader of what is there: %d bytes, %v", len(got), err)
		}
		sick.Store(false)
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
	})
}

// TestSizeInSegments: a far side that disagrees about the size is not believed,
// and a size that is nonsense hurts nobody.
func TestSizeInSegments(t *testing.T) {
	data := conformance.Bytes(15, 2<<20)
	for name, c := range map[string]struct {
		size, says int64
		off, n     int64
	}{
		"longer":           {size: 3 << 20, n: -1},
		"shorter":          {size: 2<<20 - 1, n: -1},
		"a run behind it":  {size: 3 << 20, off: 2<<20 + 10, n: 10},
		"far does not say": {size: 3 << 20, says: -1, n: -1},
		"far lies":         {size: 3 << 20, says: 3 << 20, off: 2<<20 + 10, n: 10},
		"nonsense":         {size: math.MaxInt64 - 5, n: -1},
		"large":            {size: 1 << 44, n: -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				d := openDisk(t, dir, 1<<30)
				f := &far{data: data, size: c.says, chunk: 64 << 10}
				w := want(data, c.off, c.n)
				w.Size = c.size
				got, err := readErr(cachetiers.NewTier(d, f, inSegments()), w)
				kind := registry.ErrCorrupt
				if c.says > 0 {
					kind = registry.ErrUnavailable // it is as if it always broke off there
				}
				if !errors.Is(err, kind) || int64(len(got)) >= c.size || len(got) > len(data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if synctest.Wait(); c.says <= 0 {
					nothingLeft(t, dir)
				}
			})
		})
	}
}

// places is a far side with two places of which the first has wrong bytes.
type places struct {
	far
	wrong   []byte
	doubted atomic.Bool
}

func (p *places) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	f := &far{data: p.wrong, chunk: 64 << 10}
	if p.doubted.Load() {
		f = &p.far
	}
	return f.Open(ctx, w)
}

func (p *places) Doubt(registry.Want, registry.Via) { p.doubted.Store(true) }

// TestDoubt: a small blob that was wrong comes from the second place within the
// same Open; of a large one the next reader gets it.
func TestDoubt(t *testing.T) {
	for _, size := range []int{1, 1000, holdBack, 900_000, 3 << 20} {
		after(t, func(t *testing.T, d *cachetiers.Disk) {
			data := conformance.Bytes(19, size)
			p := &places{far: far{data: data, chunk: 64 << 10}, wrong: bytes.Clone(data)}
			p.wrong[size/2] ^= 1
			tier := cachetiers.NewTier(d, p, inSegments())
			if size > holdBack {
				got, err := readErr(tier, want(data, 0, -1))
				if !errors.Is(err, registry.ErrCorrupt) && (err != nil || !bytes.Equal(got, data)) {
					t.Errorf("size %d: %v", size, err)
				}
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { same(t, tier, want(data, 0, -1), data) })
			}
			wg.Wait()
			p.gave(t, int64(size))
		})
	}
	t.Run("both wrong", func(t *testing.T) {
		after(t, func(t *testing.T, d *cachetiers.Disk) {
			data := conformance.Bytes(20, 1000)
			p := &places{far: far{data: data}, wrong: data}
			w := want(data, 0, -1)
			w.Digest = digest.FromString("something else")
			if _, err := readErr(cachetiers.NewTier(d, p, inSegments()), w); !errors.Is(err, registry.ErrCorrupt) {
				t.Errorf("%v", err)
			}
		})
	})
}
