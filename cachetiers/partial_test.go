package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// parts are the files in dir that fills left, by how their names end.
func parts(t *testing.T, dir, ext string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "partial", "*"+ext))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// abandon makes a fill of data that ends in the middle because nobody reads it.
// It returns how many bytes it fetched.
func abandon(t *testing.T, d *cachetiers.Disk, data []byte) int64 {
	t.Helper()
	f := &far{data: data, chunk: 100_000, step: slow(time.Second)}
	o := inSegments()
	o.Linger = time.Second
	b := begin(t, cachetiers.NewTier(d, f, o), want(data, 0, -1))
	pass(7 * time.Second)
	b.Close()
	pass(5 * time.Second)
	got := f.bytes.Load()
	if got < 2*segment || got > int64(len(data))/2 {
		t.Fatalf("%d bytes were fetched before it was abandoned", got)
	}
	return got
}

// large is a blob of which so much is left in the middle, more than
// finishBytes, that its flight is given up.
const large = 24 << 20

// cutOff makes a fill of data that fails after some chunks more, in the middle
// of segments. It returns how many bytes it fetched.
func cutOff(t *testing.T, d *cachetiers.Disk, data []byte) int64 {
	t.Helper()
	var chunks atomic.Int64
	f := &far{data: data, chunk: 60_000}
	f.step = func(ctx context.Context, at int64) error {
		if chunks.Add(1) > 26 {
			return registry.Errorf(registry.ErrLimited, "enough for today")
		}
		return slow(time.Millisecond)(ctx, at)
	}
	_, err := readErr(cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1))
	if got := f.bytes.Load(); !errors.Is(err, registry.ErrLimited) || got < 2*segment || got > int64(len(data))/2 {
		t.Fatalf("%d bytes were fetched before it was cut off with %v", got, err)
	}
	synctest.Wait()
	return f.bytes.Load()
}

// TestAbandonedInSegments: what was fetched, to the byte, is not fetched again,
// by the next flight or after a restart.
func TestAbandonedInSegments(t *testing.T) {
	for _, restart := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			data := conformance.Bytes(30, large)
			d := openDisk(t, dir, 1<<30)
			got := abandon(t, d, data)
			if restart {
				d = openDisk(t, dir, 1<<30)
			}
			f := &far{data: data, chunk: 64 << 10}
			same(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1), data)
			f.gave(t, int64(len(data))-got)
			synctest.Wait()
			committed(t, d, data)
			nothingLeft(t, dir)
		})
	}
}

// TestOrphansInSegments: beyond the bound a flight ends with its last reader,
// and leaves what it has.
func TestOrphansInSegments(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data, other := conformance.Bytes(31, large), conformance.Bytes(32, large)
		f := &far{data: data, chunk: 64 << 10, step: slow(time.Second)}
		dg := want(data, 0, 0).Digest
		src := sourceFunc(func(ctx context.Context, w registry.Want) (registry.Blob, error) {
			if w.Digest != dg {
				return (&far{data: other, chunk: 64 << 10, step: slow(time.Second)}).Open(ctx, w)
			}
			return f.Open(ctx, w)
		})
		o := inSegments()
		o.Orphans, o.Linger = 1, time.Minute
		tier := cachetiers.NewTier(d, src, o)
		begin(t, tier, want(other, 0, -1)).Close()
		b := begin(t, tier, want(data, 0, -1))
		pass(10 * time.Second)
		b.Close()
		synctest.Wait()
		got := f.bytes.Load()
		pass(10 * time.Second)
		f.gave(t, got)
		synctest.Wait()
		f.step = nil
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
	})
}

// killed is what a process that is killed now leaves of dir.
func killed(t *testing.T, dir string) string {
	t.Helper()
	left := t.TempDir()
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return left
}

// TestKilledInSegments: after a kill at any moment at most what had not been
// noted is fetched again: the segments that were being fetched.
func TestKilledInSegments(t *testing.T) {
	for i := range rounds(t, 8) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			data := conformance.Bytes(33, 4<<20+99)
			f := &far{data: data, chunk: 10_000, step: slow(time.Millisecond)}
			b := begin(t, cachetiers.NewTier(openDisk(t, dir, 1<<30), f, inSegments()), want(data, 0, -1))
			pass(time.Duration(i*13)*time.Millisecond + 500*time.Microsecond) // between two chunks
			left, got := killed(t, dir), f.bytes.Load()
			again := &far{data: data, chunk: 64 << 10}
			d := openDisk(t, left, 1<<30)
			same(t, cachetiers.NewTier(d, again, inSegments()), want(data, 0, -1), data)
			if sum := again.bytes.Load() + got; sum < int64(len(data)) || sum > int64(len(data))+4*segment {
				t.Errorf("killed after %d bytes, fetched %d", got, again.bytes.Load())
			}
			synctest.Wait()
			committed(t, d, data)
			nothingLeft(t, left)
			io.Copy(io.Discard, b)
			b.Close()
		})
	}
}

// TestDamagedParts: whatever has become of what a fill left, readers get the
// right bytes, and the next fill can be cut off too.
func TestDamagedParts(t *testing.T) {
	const size = 5 << 20
	data := conformance.Bytes(35, size)
	edit := func(name string, change func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			files := parts(t, dir, name)
			if len(files) != 1 {
				t.Fatalf("parts %v", files)
			}
			text, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[0], change(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	for name, c := range map[string]struct {
		harm  func(t *testing.T, dir string)
		again int64 // bytes that are fetched again, at most; the rest must not be
	}{
		"nothing":             {func(*testing.T, string) {}, 0},
		"a flipped bit":       {edit(".data", flip(segment+1000)), segment},
		"shorter data":        {edit(".data", func(b []byte) []byte { return b[:segment+1000] }), size},
		"no data":             {edit(".data", func([]byte) []byte { return nil }), size},
		"a torn log":          {edit(".log", func(b []byte) []byte { return b[:len(b)-7] }), segment},
		"a log with a tail":   {edit(".log", func(b []byte) []byte { return append(b, "abcdef"...) }), 0},
		"a flipped record":    {edit(".log", flip(28+4)), segment},
		"no log to speak of":  {edit(".log", func(b []byte) []byte { return b[:20] }), size},
		"an empty log":        {edit(".log", func([]byte) []byte { return nil }), size},
		"another version":     {edit(".log", flip(7)), size},
		"zeroes for a log":    {edit(".log", func(b []byte) []byte { return make([]byte, len(b)) }), size},
		"zeroes in the log":   {edit(".log", func(b []byte) []byte { return append(b, make([]byte, 160)...) }), 0},
		"the log is gone":     {func(t *testing.T, dir string) { os.Remove(parts(t, dir, ".log")[0]) }, size},
		"the data are gone":   {func(t *testing.T, dir string) { os.Remove(parts(t, dir, ".data")[0]) }, size},
		"the log is anothers": {func(t *testing.T, dir string) { exchange(t, dir) }, size},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				got := cutOff(t, openDisk(t, dir, 1<<30), data)
				c.harm(t, dir)
				got += cutOff(t, openDisk(t, dir, 1<<30), data)
				d := openDisk(t, dir, 1<<30)
				f := &far{data: data, chunk: 64 << 10}
				same(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, -1), data)
				sum := f.bytes.Load() + got
				if lost := sum - int64(len(data)); lost > c.again || c.again > 0 && lost == 0 {
					t.Errorf("%d bytes were fetched again, want at most %d", lost, c.again)
				}
				synctest.Wait()
				committed(t, d, data)
				nothingLeft(t, dir)
			})
		})
	}
}

// exchange gives the parts in dir another's log.
func exchange(t *testing.T, dir string) {
	t.Helper()
	other := t.TempDir()
	cutOff(t, openDisk(t, other, 1<<30), conformance.Bytes(36, 5<<20))
	text, err := os.ReadFile(parts(t, other, ".log")[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(parts(t, dir, ".log")[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOtherSegments: what was left in segments of another size is of no use,
// and no harm.
func TestOtherSegments(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(37, 5<<20)
		cutOff(t, d, data)
		f := &far{data: data, chunk: 64 << 10}
		o := inSegments()
		o.Segment = 3*segment + 1 // is rounded up
		same(t, cachetiers.NewTier(d, f, o), want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
		if n := int64(len(data)+4*segment-1) / (4 * segment); f.opens.Load() != n {
			t.Errorf("%d opens, want %d", f.opens.Load(), n)
		}
	})
}

// TestNextWhileTheOldCloses: a flight that is asked for while the one before it
// is still ending takes over what that one has.
func TestNextWhileTheOldCloses(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(38, large)
		var stubborn, fast atomic.Bool
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(ctx context.Context, at int64) error {
			switch {
			case fast.Load():
				return nil
			case stubborn.Load():
				pass(time.Second) // before it looks at its context
				return ctx.Err()
			}
			return slow(time.Second)(ctx, at)
		}
		o := inSegments()
		o.Linger = time.Second
		tier := cachetiers.NewTier(d, f, o)
		b := begin(t, tier, want(data, 0, -1))
		pass(10*time.Second + time.Millisecond)
		stubborn.Store(true)
		b.Close()
		pass(time.Second + 500*time.Millisecond)
		fast.Store(true)
		before := f.opens.Load()
		b = begin(t, tier, want(data, 0, -1))
		defer b.Close()
		if f.opens.Load() == before {
			t.Error("the old flight was joined")
		}
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		f.gave(t, int64(len(data)))
	})
}

// TestReaderKeepsAFailedFlight: one who does not notice that a flight has
// failed does not keep what it fetched from the next.
func TestReaderKeepsAFailedFlight(t *testing.T) {
	after(t, func(t *testing.T, d *cachetiers.Disk) {
		data := conformance.Bytes(39, 4<<20)
		var sick atomic.Bool
		f := &far{data: data, chunk: 64 << 10}
		f.step = func(ctx context.Context, at int64) error {
			if sick.Load() {
				return registry.Errorf(registry.ErrUnavailable, "down")
			}
			return slow(time.Second)(ctx, at)
		}
		tier := cachetiers.NewTier(d, f, inSegments())
		b := begin(t, tier, want(data, 0, -1))
		defer b.Close()
		pass(6 * time.Second)
		sick.Store(true)
		pass(time.Minute)
		sick.Store(false)
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, int64(len(data)))
		if _, err := io.ReadAll(b); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("the old reader: %v", err)
		}
		committed(t, d, data)
	})
}

// TestPartsAreBounded in number.
func TestPartsAreBounded(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := openDisk(t, dir, 1<<30)
		var first []byte
		for i := range uint64(70) {
			data := conformance.Bytes(100+i, 1<<20)
			if i == 0 {
				first = data
			}
			f := &far{data: data, chunk: 64 << 10}
			same(t, cachetiers.NewTier(d, f, inSegments()), want(data, 0, 10), data[:10])
			pass(3 * time.Second)
		}
		if n := len(parts(t, dir, ".data")); n != 64 || len(parts(t, dir, ".log")) != n {
			t.Errorf("%d parts and %d logs, want 64", n, len(parts(t, dir, ".log")))
		}
		f := &far{data: first}
		same(t, cachetiers.NewTier(openDisk(t, dir, 1<<30), f, inSegments()), want(first, 0, -1), first)
		f.gave(t, int64(len(first))) // the oldest has gone
	})
}

// TestPartsGrowOld: after a day what nobody came back for is removed.
func TestPartsGrowOld(t *testing.T) {
	for _, age := range []time.Duration{23 * time.Hour, 25 * time.Hour} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			data := conformance.Bytes(40, 1<<20)
			f := &far{data: data, chunk: 64 << 10}
			tier := cachetiers.NewTier(openDisk(t, dir, 1<<30), f, inSegments())
			same(t, tier, want(data, 0, 10), data[:10])
			pass(time.Minute)
			then := time.Now().Add(-age)
			if err := os.Chtimes(parts(t, dir, ".data")[0], then, then); err != nil {
				t.Fatal(err)
			}
			openDisk(t, dir, 1<<30)
			if left := len(parts(t, dir, "")); (left == 0) != (age > 24*time.Hour) {
				t.Errorf("after %v there are %d files", age, left)
			}
		})
	}
	after(t, func(t *testing.T, d *cachetiers.Disk) { // without a restart
		data := conformance.Bytes(41, 1<<20)
		f := &far{data: data, chunk: 64 << 10}
		tier := cachetiers.NewTier(d, f, inSegments())
		same(t, tier, want(data, 0, 10), data[:10])
		pass(25 * time.Hour)
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, int64(len(data))+segment)
	})
}

// TestPartsCount against the disk's limit, and go before blobs do.
func TestPartsCount(t *testing.T) {
	const limit = 4 << 20
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := openDisk(t, dir, limit)
		blob := conformance.Bytes(42, 1<<20-1) // not in segments
		same(t, cachetiers.NewTier(d, &far{data: blob}, inSegments()), want(blob, 0, -1), blob)
		for i := range uint64(5) {
			data := conformance.Bytes(200+i, 1<<20)
			tier := cachetiers.NewTier(d, &far{data: data, chunk: 64 << 10}, inSegments())
			same(t, tier, want(data, 0, 3*segment), data[:3*segment])
			pass(3 * time.Second)
		}
		var sum int64
		files := parts(t, dir, ".data")
		for _, name := range files {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			sum += info.Size()
		}
		if len(files) < 3 || sum+d.Bytes() > limit {
			t.Errorf("%d parts of %d bytes beside %d of blobs, the limit is %d", len(files), sum, d.Bytes(), limit)
		}
		committed(t, d, blob)
		next := conformance.Bytes(43, 5<<19)
		same(t, cachetiers.NewTier(d, &far{data: next}, inSegments()), want(next, 0, -1), next)
		committed(t, d, blob)
		committed(t, d, next)
		if n := len(parts(t, dir, ".data")); n > 1 {
			t.Errorf("%d parts are left beside full blobs", n)
		}
	})
}

// TestStrayFiles in the directory of parts go when it is opened.
func TestStrayFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "partial"), 0o700); err != nil {
		t.Fatal(err)
	}
	hexes := strings.Repeat("ab", 32)
	for _, name := range []string{"x", "x.data", "x.log", "sha256-" + hexes + ".log", "sha256:" + hexes + ".data", "sha256:" + hexes + ".log",
		"sha256-abc.data", "sha256-abc.log", "sha512-" + hexes + ".data"} {
		if err := os.WriteFile(filepath.Join(dir, "partial", name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openDisk(t, dir, 1<<30)
	openDisk(t, dir, 1<<30) // a log without its data goes the second time
	if left := parts(t, dir, ""); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestNoRoomForParts: that there is no room now does not lose what was fetched.
func TestNoRoomForParts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		data, other := conformance.Bytes(44, 5<<20), conformance.Bytes(45, 2<<20)
		d := openDisk(t, dir, 6<<20)
		got := cutOff(t, d, data)
		busy := begin(t, cachetiers.NewTier(d, &far{data: other, chunk: 64 << 10, step: slow(time.Second)}, cachetiers.Options{}), want(other, 0, -1))
		f := &far{data: data, chunk: 64 << 10}
		tier := cachetiers.NewTier(d, f, inSegments())
		same(t, tier, want(data, 10, 10), data[10:20]) // straight from the far side
		f.gave(t, 10)
		if _, err := io.ReadAll(busy); err != nil {
			t.Fatal(err)
		}
		busy.Close()
		synctest.Wait()
		same(t, tier, want(data, 0, -1), data)
		f.gave(t, 10+int64(len(data))-got)
	})
}

// TestNoDescriptorsLeak: fills that end in all kinds of ways leave no file open.
func TestNoDescriptorsLeak(t *testing.T) {
	open := func() int {
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	dir := t.TempDir()
	before := open()
	synctest.Test(t, func(t *testing.T) {
		d := openDisk(t, dir, 1<<30)
		data := conformance.Bytes(46, 9<<20)
		for range 3 {
			cutOff(t, d, data)
		}
		wrong := bytes.Clone(data)
		wrong[0] ^= 1
		readErr(cachetiers.NewTier(d, &far{data: wrong}, inSegments()), want(data, 0, -1))
		same(t, cachetiers.NewTier(d, &far{data: data}, inSegments()), want(data, 0, -1), data)
		small := conformance.Bytes(47, 2<<20)
		same(t, cachetiers.NewTier(d, &far{data: small}, inSegments()), want(small, 5, 10), small[5:15])
		pass(time.Hour)
	})
	if now := open(); now > before {
		t.Errorf("%d files are open, before it were %d", now, before)
	}
}
