package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// store puts data into s as a blob of its own.
func store(t *testing.T, s registry.Store, data []byte) registry.Want {
	t.Helper()
	w := want(data, 0, -1)
	stage, err := s.Stage(context.Background(), w.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	if _, err := stage.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	return w
}

// files are the regular files under dir, and their bytes together.
func files(t *testing.T, dir string) (paths []string, total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			paths, total = append(paths, path), total+info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return paths, total
}

func TestDiskIsWarmAfterRestart(t *testing.T) {
	dir := t.TempDir()
	var wants []registry.Want
	d := openDisk(t, dir, 1<<30)
	for i := range 50 {
		wants = append(wants, store(t, d, conformance.Bytes(uint64(i), i*10_000)))
	}
	left := filepath.Join(dir, "staging", "left-by-a-crash")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	used := d.Bytes()
	d = openDisk(t, dir, 1<<30)
	<-d.Loaded()
	if d.Len() != 50 || d.Bytes() != used {
		t.Errorf("%d blobs and %d bytes after a restart, want 50 and %d", d.Len(), d.Bytes(), used)
	}
	for i, w := range wants {
		if got := read(t, d, w); !bytes.Equal(got, conformance.Bytes(uint64(i), i*10_000)) {
			t.Errorf("blob %d is wrong", i)
		}
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an unfinished file was left")
	}
}

// TestDamage changes a file in every way a disk does, while the node runs and
// while it does not: nothing wrong is given whole, the damage is found, and a
// tier heals it without its reader noticing.
func TestDamage(t *testing.T) {
	data := conformance.Bytes(1, 9<<20+123)
	damage := map[string]func(t *testing.T, path string){
		"a bit at the start":        flip(0),
		"a bit in the middle":       flip(5 << 20),
		"the last bit":              flip(int64(len(data)) - 1),
		"a bit of the checksums":    flip(int64(len(data)) + 5),
		"a bit of the footer":       flip(int64(len(data)) + 4*37 + 3),
		"cut short":                 cut(4 << 20),
		"cut to where a chunk ends": cut(256 << 10),
		"empty":                     cut(0),
		"missing":                   func(t *testing.T, path string) { check(t, os.Remove(path)) },
		"another blob's file": func(t *testing.T, path string) {
			other := t.TempDir()
			store(t, openDisk(t, other, 1<<30), conformance.Bytes(2, len(data)))
			paths, _ := files(t, other)
			b, err := os.ReadFile(paths[0])
			check(t, err)
			check(t, os.WriteFile(path, b, 0o600))
		},
	}
	for name, harm := range damage {
		for _, restart := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " over a restart"}[restart], func(t *testing.T) {
				dir := t.TempDir()
				d := openDisk(t, dir, 1<<30)
				w := store(t, d, data)
				paths, _ := files(t, dir)
				harm(t, paths[0])
				if restart {
					d = openDisk(t, dir, 1<<30)
				}
				got, err := readErr(d, w)
				if err == nil || len(got) == len(data) {
					t.Fatalf("read %d of %d damaged bytes with %v", len(got), len(data), err)
				}
				if !bytes.HasPrefix(data, got) {
					t.Error("wrong bytes were given away")
				}
				if _, err := d.Open(context.Background(), w); !errors.Is(err, registry.ErrNotFound) {
					t.Errorf("opened again: %v, want ErrNotFound", err)
				}

				store(t, d, data)
				harm(t, paths[0])
				f := &far{data: data}
				tier := cachetiers.NewTier(d, f, cachetiers.Options{})
				if got := read(t, tier, w); !bytes.Equal(got, data) {
					t.Errorf("healed wrong: %d bytes", len(got))
				}
				if got := read(t, d, w); !bytes.Equal(got, data) || f.opens.Load() != 1 {
					t.Errorf("not healed on disk, %d opens", f.opens.Load())
				}
			})
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func flip(at int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		check(t, err)
		defer f.Close()
		var b [1]byte
		_, err = f.ReadAt(b[:], at)
		check(t, err)
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], at)
		check(t, err)
		info, err := f.Stat()
		check(t, err)
		check(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	}
}

func cut(to int64) func(*testing.T, string) {
	return func(t *testing.T, path string) { check(t, os.Truncate(path, to)) }
}

// TestRandomFlips flips one bit in each of many files.
func TestRandomFlips(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, 1<<30)
	f := &far{}
	tier := cachetiers.NewTier(d, f, cachetiers.Options{})
	for i := range 200 {
		data := conformance.Bytes(uint64(i), 1+rand.IntN(1<<20))
		w := store(t, d, data)
		paths, size := files(t, dir)
		flip(rand.Int64N(size))(t, paths[0])
		f.data = data
		if got := read(t, tier, w); !bytes.Equal(got, data) {
			t.Fatalf("flip %d: wrong bytes", i)
		}
		if f.opens.Swap(0) != 1 {
			t.Fatalf("flip %d was not noticed", i)
		}
		check(t, os.RemoveAll(filepath.Join(dir, "blobs")))
		if _, err := d.Open(context.Background(), w); err == nil {
			t.Fatal("a missing file was opened")
		}
	}
}

// TestDiskLimit pulls far more through a disk than it holds, from several
// readers at once.
func TestDiskLimit(t *testing.T) {
	const limit = 8 << 20
	dir := t.TempDir()
	d := openDisk(t, dir, limit)
	hot := conformance.Bytes(1, 100_000)
	f := sourceFunc(func(ctx context.Context, w registry.Want) (registry.Blob, error) {
		return registry.NewBytesBlob(hot, w.Descriptor, 0, -1, registry.Via{}), nil
	})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 60 {
				data := conformance.Bytes(uint64(1000*g+i), 100_000+i*1000)
				src := sourceFunc(func(_ context.Context, w registry.Want) (registry.Blob, error) {
					return registry.NewBytesBlob(data, w.Descriptor, 0, -1, registry.Via{}), nil
				})
				tier := cachetiers.NewTier(d, src, cachetiers.Options{})
				if got, err := readErr(tier, want(data, 0, -1)); err != nil || !bytes.Equal(got, data) {
					t.Errorf("blob: %d bytes, %v", len(got), err)
				}
				if _, err := readErr(cachetiers.NewTier(d, f, cachetiers.Options{}), want(hot, 0, -1)); err != nil {
					t.Error(err)
				}
				if used := d.Bytes(); used > limit {
					t.Errorf("committed blobs take %d bytes, over %d", used, limit)
				}
				// Walking is not done at one moment: what comes and goes
				// meanwhile counts twice, like the fills in flight.
				if _, total := files(t, dir); total > limit+8*200_000 {
					t.Errorf("all files take %d bytes", total)
				}
			}
		})
	}
	wg.Wait()
	if _, total := files(t, filepath.Join(dir, "blobs")); total != d.Bytes() {
		t.Errorf("the index says %d bytes, the disk %d", d.Bytes(), total)
	}
	if _, err := d.Open(context.Background(), want(hot, 0, -1)); err != nil {
		t.Errorf("what was read all the time was evicted: %v", err)
	}
}

// TestBiggerThanTheDisk: a blob over the limit reaches its readers, collapsed,
// and evicts nothing.
func TestBiggerThanTheDisk(t *testing.T) {
	d := openDisk(t, t.TempDir(), 4<<20)
	small := store(t, d, conformance.Bytes(1, 1<<20))
	data := conformance.Bytes(2, 10<<20)
	f := &far{data: data}
	tier := cachetiers.NewTier(d, f, cachetiers.Options{})
	if got := read(t, tier, want(data, 0, -1)); !bytes.Equal(got, data) {
		t.Error("wrong bytes")
	}
	if _, err := d.Open(context.Background(), small); err != nil {
		t.Errorf("a blob that fits made way: %v", err)
	}
}

// TestDiskServesWhileItLoads: a blob that the index does not have yet is
// found, counted once, and one that was dropped meanwhile stays dropped.
func TestDiskServesWhileItLoads(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, 1<<30)
	var wants []registry.Want
	for i := range 400 {
		wants = append(wants, store(t, d, conformance.Bytes(uint64(i), 100)))
	}
	used := d.Bytes()
	for range 20 {
		d = openDisk(t, dir, 1<<30)
		for i, w := range wants {
			if got, err := readErr(d, w); err != nil || !bytes.Equal(got, conformance.Bytes(uint64(i), 100)) {
				t.Fatalf("blob %d: %v", i, err)
			}
		}
		<-d.Loaded()
		if d.Bytes() != used || d.Len() != 400 {
			t.Fatalf("%d blobs, %d bytes, want 400 and %d", d.Len(), d.Bytes(), used)
		}
	}
	d = openDisk(t, dir, used/2)
	<-d.Loaded()
	if d.Bytes() > used/2 {
		t.Errorf("%d bytes under a limit that is now %d", d.Bytes(), used/2)
	}
	if _, total := files(t, filepath.Join(dir, "blobs")); total != d.Bytes() {
		t.Errorf("the index says %d bytes, the disk %d", d.Bytes(), total)
	}
}

func TestDiskReaderOutlivesEviction(t *testing.T) {
	d := openDisk(t, t.TempDir(), 4<<20)
	data := conformance.Bytes(1, 3<<20)
	w := store(t, d, data)
	b, err := d.Open(context.Background(), w)
	check(t, err)
	defer b.Close()
	store(t, d, conformance.Bytes(2, 3<<20))
	if _, err := d.Open(context.Background(), w); !errors.Is(err, registry.ErrNotFound) {
		t.Fatalf("it was not evicted: %v", err)
	}
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestOpenDiskWhereNoDirectoryCanBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	if _, err := cachetiers.OpenDisk(filepath.Join(file, "cache"), cachetiers.DiskOptions{Limit: 1}); err == nil {
		t.Error("a disk tier was opened below a file")
	}
}

func BenchmarkDiskOpen(b *testing.B) {
	d, err := cachetiers.OpenDisk(b.TempDir(), cachetiers.DiskOptions{Limit: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	data := conformance.Bytes(1, 100_000)
	stage, err := d.Stage(context.Background(), registry.Descriptor{Size: -1})
	if err != nil {
		b.Fatal(err)
	}
	_, _ = stage.Write(data)
	if _, err := stage.Commit(context.Background()); err != nil {
		b.Fatal(err)
	}
	w := registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromBytes(data), Size: -1}, Length: -1}
	b.ReportAllocs()
	for b.Loop() {
		blob, err := d.Open(context.Background(), w)
		if err != nil {
			b.Fatal(err)
		}
		blob.Close()
	}
}
