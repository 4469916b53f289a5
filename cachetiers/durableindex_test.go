package cachetiers

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// durable opens a Durable disk and waits for its index; each operation on files
// is told to op first.
func durable(t *testing.T, root string, op func(op, path string)) *Disk {
	t.Helper()
	d, err := OpenDisk(root, DiskOptions{Durable: true}.Injected(func(name, path string, do func() error) error {
		op(name, path)
		return do()
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	<-d.Loaded()
	return d
}

func putTiny(t *testing.T, d *Disk, i int) {
	t.Helper()
	dg, data := tiny(i)
	s, err := d.Stage(context.Background(), registry.Descriptor{Digest: dg, Size: int64(len(data))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestDurableIndex: a durable store starts from its index. A directory that has
// changed since is synced before what is in it is found; one that has not is
// not; and what the index does not have is found at once, also with the index
// trusted.
func TestDurableIndex(t *testing.T) {
	const n = 300
	root := t.TempDir()
	d := durable(t, root, func(string, string) {})
	for i := range n {
		putTiny(t, d, i)
	}
	settle(t, root, time.Now().Add(-time.Hour))
	d.Close()
	dirs, _ := filepath.Glob(filepath.Join(root, "blobs", "*", "*"))
	var lied, changed int // blobs that come behind the index's back, into directories that there are
	for i := n; changed == 0; i++ {
		dg, _ := tiny(i)
		dir := filepath.Dir(d.path(dg))
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		fillDisk(t, root, i, 1)
		if lied == 0 {
			lied = i
			if err := os.Chtimes(dir, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		} else if dg, _ := tiny(lied); filepath.Dir(d.path(dg)) != dir {
			changed = i
		}
	}
	var mu sync.Mutex
	synced := map[string]bool{}
	d = durable(t, root, func(op, path string) {
		if op == "syncdir" && filepath.Dir(filepath.Dir(path)) == d.blobs() {
			mu.Lock()
			defer mu.Unlock()
			synced[path] = true
		}
	})
	mu.Lock()
	if len(synced) == 0 || len(synced) > 3 || len(dirs) < 100 {
		t.Errorf("%d of %d directories were synced, one or two have changed", len(synced), len(dirs))
	}
	mu.Unlock()
	if d.Len() >= n+2 {
		t.Fatal("the index was not trusted: the test shows nothing")
	}
	for _, i := range []int{lied, changed, 0, n - 1} {
		if !has(t, d, i) {
			t.Errorf("blob %d is not found", i)
		}
	}
	// Verify does what is left of the patrol.
	found, err := d.Verify(context.Background(), 0, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil || len(found.Damaged) > 0 || found.Blobs < n+2 || len(d.trusted) > 0 {
		t.Errorf("%+v, %v; %d directories are left to look at", found, err, len(d.trusted))
	}
}

// TestDurableIndexWhileSyncing: an index that is written while a name is not yet
// durable leaves it out, and does not vouch for its directory.
func TestDurableIndexWhileSyncing(t *testing.T) {
	root := t.TempDir()
	var d *Disk
	renamed, saved := false, false
	d = durable(t, root, func(op, _ string) {
		renamed = renamed || op == "rename"
		if op == "syncdir" && renamed && !saved {
			saved = true
			settle(t, root, time.Now().Add(-time.Hour))
			if err := d.saveIndex(); err != nil {
				t.Error(err)
			}
		}
	})
	putTiny(t, d, 7)
	x := d.readIndex()
	if !saved || x == nil || len(x.blobs) != 0 || len(x.times) != 1 {
		t.Fatalf("saved: %v, %+v", saved, x)
	}
	for f, at := range x.times {
		if at != 0 {
			t.Errorf("directory %v is vouched for", f)
		}
	}
	d.saveIndex()
	if x := d.readIndex(); len(x.blobs) != 1 || len(x.times) != 1 {
		t.Errorf("afterwards: %+v", x)
	}
}

// TestShelfThatKeeps: without a limit nothing is a victim, however much there is,
// and an entry takes no more than 140 bytes of memory, index and all.
func TestShelfThatKeeps(t *testing.T) {
	const n = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newShelf(0)
	for i := range n {
		raw := rawDigest{sum: [64]byte{byte(i), byte(i >> 8), byte(i >> 16)}}
		s.push(newEntry(&raw, math.MaxInt64/n))
	}
	if s.victim() != nil || s.len() != n || s.ghosts != nil {
		t.Errorf("%d of %d, %d ghosts, victim %v", s.len(), n, len(s.ghosts), s.victim())
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapAlloc - before.HeapAlloc) / n
	t.Logf("%d bytes each", each)
	if each > 140 {
		t.Errorf("%d bytes each", each)
	}
	runtime.KeepAlive(s)
}

// TestDurableLimit: a store with a limit is full at it, and gives nothing up.
func TestDurableLimit(t *testing.T) {
	d, err := OpenDisk(t.TempDir(), DiskOptions{Durable: true, Limit: 3 * fileSize(1000)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range 4 {
		data := bytes.Repeat([]byte{byte(i)}, 1000)
		s, err := d.Stage(context.Background(), registry.Descriptor{Digest: digest.FromBytes(data), Size: 1000})
		if i == 3 {
			if registry.KindOf(err) != registry.ErrNoRoom || d.Len() != 3 {
				t.Errorf("beyond the limit: %v, %d blobs", err, d.Len())
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Write(data)
		if _, err := s.Commit(context.Background()); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}
