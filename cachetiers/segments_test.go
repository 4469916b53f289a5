package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// segment is the size of one in these tests.
const segment = 256 << 10

// inSegments are the options under which a blob of 1 MiB is large.
func inSegments() cachetiers.Options {
	return cachetiers.Options{Name: "disk", SegmentFrom: 1 << 20, Segment: segment, Streams: 4}
}

// after runs a test in fake time over a disk in a directory of its own.
func after(t *testing.T, test func(t *testing.T, d *cachetiers.Disk)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		defer pass(time.Hour) // until all flights have ended
		test(t, openDisk(t, dir, 1<<30))
	})
}

// gave fails the test if f was not read for exactly want bytes.
func (f *far) gave(t *testing.T, want int64) {
	t.Helper()
	if got := f.bytes.Load(); got != want {
		t.Errorf("far gave %d bytes in %d opens, want %d bytes", got, f.opens.Load(), want)
	}
}

// same reads w whole and compares.
func same(t *testing.T, src registry.Source, w registry.Want, data []byte) {
	t.Helper()
	got, err := readErr(src, w)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("wrong bytes: %d of %d", len(got), len(data))
	}
}

// committed fails the test if data is not in d.
func committed(t *testing.T, d *cachetiers.Disk, data []byte) {
	t.Helper()
	same(t, d, want(data, 0, -1), data)
}

// readFull reads exactly n bytes.
func readFull(t *testing.T, b io.Reader, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(b, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// begin opens w and leaves closing to the caller.
func begin(t *testing.T, src registry.Source, w registry.Want) registry.Blob {
	t.Helper()
	b, err := src.Open(context.Background(), w)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWholeInSegments: each segment is asked for once, so many at a time.
func TestWholeInSegments(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(1, 4<<20+777)
		var now, most atomic.Int64
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(ctx context.Context, at int64) error {
			n := now.Add(1)
			defer now.Add(-1)
			if n > most.Load() {
				most.Store(n)
			}
			return slow(time.Second)(ctx, at)
		}
		begun := time.Now()
		same(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
		if f.opens.Load() != 17 || most.Load() != 4 {
			t.Errorf("%d opens, %d at a time; want 17 and 4", f.opens.Load(), most.Load())
		}
		// One stream would have taken 65 s.
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		committed(t, d, data)
	})
}

// TestColdRange costs the segments it touches, and is no failure.
func TestColdRange(t *testing.T) {
	for name, c := range map[string]struct{ off, n, segments int64 }{
		"within":     {5*segment + 10, 100, 1},
		"across":     {6*segment - 1, 2, 2},
		"one whole":  {3 * segment, segment, 1},
		"to the end": {16*segment - 5, 1000, 2},
		"nothing":    {2 * segment, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			after(t, func(t *testing.T, d *cachetiers.Disk) {
				data := conformance.Bytes(2, 16*segment+segment)
				f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
				var log lines
				o := inSegments()
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
				tier := cachetiers.NewTier(d, f, o)
				same(t, tier, want(data, c.off, c.n), data[c.off:min(c.off+c.n, int64(len(data)))])
				pass(time.Minute)
				f.gave(t, c.segments*segment)
				if log.String() != "" {
					t.Errorf("logged %s", log.String())
				}
				// What it cost is not lost.
				same(t, tier, want(data, 0, -1), data)
				f.gave(t, int64(len(data)))
			})
		})
	}
}

// TestRunIsOver: a fill of which everyone has had what he wanted ends with the
// last of them, and what it has is the next one's.
func TestRunIsOver(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(21, 4<<20)
		o := inSegments()
		o.Linger = time.Hour
		b := begin(t, cachetiers.NewTier(d, &far{data: data}, o), want(data, 0, 10))
		readFull(t, b, 10)
		pass(10 * time.Second)
		b.Close()
		pass(3 * time.Second)
		f := &far{data: data}
		same(t, cachetiers.NewTier(d, f, o), want(data, 0, -1), data)
		f.gave(t, int64(len(data))-segment)
	})
}

// lines is where a logger may write from any goroutine.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

// TestAhead: a fill goes on to its end if a run is asked for by one who will
// want the rest.
func TestAhead(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(7, 4<<20)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
		w := want(data, segment, 100)
		w.Ahead = true
		same(t, cachetiers.NewTier(d, f, inSegments()), w, data[segment:segment+100])
		pass(time.Second)
		f.gave(t, int64(len(data)))
		committed(t, d, data)
	})
}

// TestRunByRun: runs that together are the blob make it one, however long they
// are apart and in whatever order they come.
func TestRunByRun(t *testing.T) {
	for _, pause := range []time.Duration{0, time.Second, time.Minute} {
		t.Run(pause.String(), func(t *testing.T) {
			after(t, func(t *testing.T, d *cachetiers.Disk) {
				data := conformance.Bytes(8, 2<<20+1)
				f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
				tier := cachetiers.NewTier(d, f, inSegments())
				runs := rand.New(rand.NewPCG(1, 2)).Perm(len(data)/100_000 + 1)
				for _, i := range runs {
					off := int64(i) * 100_000
					same(t, tier, want(data, off, 100_000), data[off:min(off+100_000, int64(len(data)))])
					pass(pause)
				}
				pass(time.Minute)
				f.gave(t, int64(len(data)))
				committed(t, d, data)
			})
		})
	}
}

// TestLastBytesVerifiedFirst: who reads to the end gets the last 16 KiB only
// after the digest was checked; who reads a run does not wait.
func TestLastBytesVerifiedFirst(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(9, 2<<20)
		gate := make(chan struct{})
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(_ context.Context, at int64) error {
			if at < segment {
				<-gate // the first segment comes last
			}
			return nil
		}
		tier := cachetiers.NewTier(d, f, inSegments())
		b := begin(t, tier, want(data, segment, -1))
		defer b.Close()
		readFull(t, b, len(data)-segment-holdBack)
		rest := make(chan []byte)
		go func() { got, _ := io.ReadAll(b); rest <- got }()
		synctest.Wait()
		select {
		case got := <-rest:
			t.Fatalf("%d bytes were given before the digest was checked", len(got))
		default:
		}
		same(t, tier, want(data, int64(len(data))-100, 100), data[len(data)-100:])
		close(gate)
		if got := <-rest; !bytes.Equal(got, data[len(data)-holdBack:]) {
			t.Errorf("the last bytes are %d, and wrong", len(got))
		}
	})
}

// TestManyReadersInSegments: readers at random places who may leave early, of a
// far side that breaks off: right bytes, and none from the far side twice.
func TestManyReadersInSegments(t *testing.T) {
	dir := t.TempDir()
	data := conformance.Bytes(10, 3<<20+12_345)
	var broken atomic.Int64
	for seed := range uint64(rounds(t, 12)) {
		synctest.Test(t, func(t *testing.T) {
			d := openDisk(t, filepath.Join(dir, strconv.FormatUint(seed, 10)), 1<<30)
			r := rand.New(rand.NewPCG(seed, 0))
			f := &far{data: data, chunk: 8<<10 + r.IntN(64<<10)}
			f.step = func(ctx context.Context, at int64) error {
				if rand.IntN(60) == 0 {
					broken.Add(1)
					return registry.Errorf(registry.ErrUnavailable, "reset")
				}
				return slow(time.Duration(rand.IntN(2000))*time.Microsecond)(ctx, at)
			}
			tier := cachetiers.NewTier(d, f, inSegments())
			var wg sync.WaitGroup
			for range 64 {
				off := r.Int64N(int64(len(data)))
				n, takes := r.Int64N(int64(len(data))), int64(math.MaxInt64)
				if r.IntN(8) == 0 {
					n = -1
				}
				if r.IntN(3) == 0 {
					takes = r.Int64N(500_000)
				}
				start, viaFile := time.Duration(r.IntN(300))*time.Millisecond, r.IntN(2) == 0
				wg.Go(func() {
					pass(start)
					one(t, tier, data, off, n, takes, viaFile)
				})
			}
			wg.Wait()
			same(t, tier, want(data, 0, -1), data)
			f.gave(t, int64(len(data)))
			committed(t, d, data)
		})
	}
	if broken.Load() == 0 {
		t.Error("nothing broke off: the test tests nothing")
	}
}

// one reads a run, or the first takes bytes of it.
func one(t *testing.T, src registry.Source, data []byte, off, n, takes int64, whole bool) {
	b, err := src.Open(context.Background(), want(data, off, n))
	if err != nil {
		t.Error(err)
		return
	}
	defer b.Close()
	_, length := b.Span()
	var got bytes.Buffer
	if whole && takes == math.MaxInt64 {
		_, err = b.WriteTo(&got)
	} else {
		_, err = io.Copy(&got, io.LimitReader(struct{ io.Reader }{b}, takes))
	}
	if err != nil || !bytes.Equal(got.Bytes(), data[off:off+min(takes, length)]) {
		t.Errorf("%d bytes at %d of %d, %v", got.Len(), off, length, err)
	}
}

// TestWaitedForFirst: who waits at the end is served before the fill would have
// come there.
func TestWaitedForFirst(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(11, 16<<20)
		f := &far{data: data, chunk: segment, step: slow(time.Second)} // 64 segments, 4 a second
		tier := cachetiers.NewTier(d, f, inSegments())
		whole := begin(t, tier, want(data, 0, -1))
		defer whole.Close()
		pass(500 * time.Millisecond)
		start := time.Now()
		same(t, tier, want(data, int64(len(data))-100, 100), data[len(data)-100:])
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if got, err := io.ReadAll(whole); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the other reader: %d bytes, %v", len(got), err)
		}
		f.gave(t, int64(len(data)))
	})
}

// TestSlowReaderInSegments slows nobody.
func TestSlowReaderInSegments(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(12, 4<<20)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
		tier := cachetiers.NewTier(d, f, inSegments())
		lazy := begin(t, tier, want(data, 0, -1))
		defer lazy.Close()
		first := readFull(t, lazy, 10)
		start := time.Now()
		same(t, tier, want(data, 0, -1), data)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
		pass(time.Hour)
		if got, err := io.ReadAll(lazy); err != nil || !bytes.Equal(append(first, got...), data) {
			t.Errorf("the slow reader: %d bytes, %v", len(got), err)
		}
	})
}

// TestTrickle: a far side that gives little at a time is passed on at once, not
// by the segment, also to who has had bytes before.
func TestTrickle(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(13, 1<<20)
		f := &far{data: data, chunk: 1000, step: slow(time.Second)}
		b := begin(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1))
		defer b.Close()
		start := time.Now()
		readFull(t, b, 10_000)
		if took := time.Since(start); took > 10*time.Second+100*time.Millisecond {
			t.Errorf("10,000 bytes took %v", took)
		}
	})
}

// TestOffsets that make no sense.
func TestOffsets(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(16, 2<<20)
		f := &far{data: data}
		tier := cachetiers.NewTier(d, f, inSegments())
		for _, off := range []int64{-1, -3 * segment, math.MinInt64, 2<<20 + 1, math.MaxInt64} {
			for _, n := range []int64{-1, 1, math.MaxInt64} {
				if _, err := readErr(tier, want(data, off, n)); !errors.Is(err, registry.ErrInvalid) {
					t.Errorf("offset %d, length %d: %v", off, n, err)
				}
			}
		}
		same(t, tier, want(data, 2<<20, -1), nil)
		if _, err := readErr(tier, want(data[:1000], -1, -1)); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("a small blob: %v", err)
		}
		pass(time.Minute)
		f.gave(t, 0)
	})
}

// TestTierOverTier, as an edge over a shield: the blob crosses once, the first
// byte does not wait for a segment, and both have the blob in the end.
func TestTierOverTier(t *testing.T) {
	for name, behind := range map[string]int64{"same segments": segment, "larger segments behind": 4 * segment} {
		t.Run(name, func(t *testing.T) {
			dirs := [2]string{t.TempDir(), t.TempDir()}
			synctest.Test(t, func(t *testing.T) {
				edge, shield := openDisk(t, dirs[0], 1<<30), openDisk(t, dirs[1], 1<<30)
				data := conformance.Bytes(17, 8<<20)
				f := &far{data: data, chunk: 16 << 10, step: slow(100 * time.Millisecond)}
				o := inSegments()
				o.Segment = behind
				rear := cachetiers.NewTier(shield, f, o)
				tier := cachetiers.NewTier(edge, rear, inSegments())
				start := time.Now()
				b := begin(t, tier, want(data, 0, -1))
				defer b.Close()
				readFull(t, b, 1)
				if took := time.Since(start); took > 250*time.Millisecond {
					t.Errorf("the first byte took %v, a segment takes 1.6 s", took)
				}
				if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data[1:]) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				f.gave(t, int64(len(data)))
				synctest.Wait()
				committed(t, edge, data)
				committed(t, shield, data)
			})
		})
	}
}

// TestTierOverTierRange: a run costs its segments behind too.
func TestTierOverTierRange(t *testing.T) {
	dirs := [2]string{t.TempDir(), t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		data := conformance.Bytes(18, 4<<20)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Millisecond)}
		rear := cachetiers.NewTier(openDisk(t, dirs[1], 1<<30), f, inSegments())
		tier := cachetiers.NewTier(openDisk(t, dirs[0], 1<<30), rear, inSegments())
		same(t, tier, want(data, 7*segment+1, 10), data[7*segment+1:7*segment+11])
		pass(time.Minute)
		f.gave(t, segment)
	})
}
