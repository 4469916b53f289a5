package cachetiers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// tiny is the i-th of many small blobs; they are of all algorithms.
func tiny(i int) (digest.Digest, []byte) {
	data := []byte("blob " + strconv.Itoa(i))
	alg := digest.SHA256
	if i%100 < 4 {
		alg = []digest.Algorithm{digest.SHA512, registry.SHA1, digest.SHA384, digest.SHA256}[i%100]
	}
	return sumOf(alg, data), data
}

func sumOf(alg digest.Algorithm, data []byte) digest.Digest {
	_, n := algorithm(map[digest.Algorithm]uint8{digest.SHA256: kindSHA256, digest.SHA384: kindSHA384, digest.SHA512: kindSHA512, registry.SHA1: kindSHA1}[alg])
	h, err := registry.NewHash(digest.Digest(string(alg) + ":" + string(bytes.Repeat([]byte("0"), 2*n))))
	if err != nil {
		panic(err)
	}
	h.Write(data)
	return registry.Sum(alg, h)
}

// fillDisk writes n tiny blobs' files, as a Disk would.
func fillDisk(t testing.TB, root string, from, n int) {
	t.Helper()
	d := &Disk{root: root}
	var wg sync.WaitGroup
	work := make(chan int)
	for range 8 {
		wg.Go(func() {
			for first := range work {
				for i := first; i < min(first+1000, from+n); i++ {
					dg, data := tiny(i)
					file := appendTail(data, dg, []uint32{crc32.Checksum(data, castagnoli())}, int64(len(data)))
					err := os.WriteFile(d.path(dg), file, 0o600)
					if errors.Is(err, os.ErrNotExist) {
						if err = os.MkdirAll(filepath.Dir(d.path(dg)), 0o700); err == nil {
							err = os.WriteFile(d.path(dg), file, 0o600)
						}
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for i := from; i < from+n; i += 1000 {
		work <- i
	}
	close(work)
	wg.Wait()
}

// settle sets the directories' times back to one at which they count as settled.
func settle(t testing.TB, root string, at time.Time) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// quiet opens a disk whose log is kept.
func quiet(t testing.TB, root string, limit int64) (*Disk, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	d, err := OpenDisk(root, DiskOptions{Limit: limit, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, log
}

// patrolAll looks at all directories as if none had been looked at.
func patrolAll(d *Disk) {
	d.mu.Lock()
	d.trusted = d.fans()
	d.mu.Unlock()
	d.patrol(time.Microsecond)
}

// has reads a tiny blob from d and compares it.
func has(t testing.TB, d *Disk, i int) bool {
	t.Helper()
	dg, data := tiny(i)
	b, err := d.Open(context.Background(), registry.Want{Descriptor: registry.Descriptor{Digest: dg, Size: -1}, Length: -1})
	if errors.Is(err, registry.ErrNotFound) {
		return false
	}
	if err != nil {
		t.Fatalf("blob %d: %v", i, err)
	}
	defer b.Close()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("blob %d is %q, %v", i, got, err)
	}
	return true
}

// agrees fails unless d's index is what is on the disk.
func agrees(t testing.TB, d *Disk, want int) {
	t.Helper()
	if d.Len() != want {
		t.Errorf("%d blobs in the index, want %d", d.Len(), want)
	}
	var total int64
	for _, f := range d.fans() {
		for _, raw := range d.names(f) {
			info, err := os.Lstat(d.path(raw.digest()))
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size()
		}
	}
	if d.Bytes() != total {
		t.Errorf("the index says %d bytes, the disk %d", d.Bytes(), total)
	}
}

// indexedDir fills a directory with n blobs, makes its index and closes it.
func indexedDir(t testing.TB, n int) string {
	t.Helper()
	root := t.TempDir()
	fillDisk(t, root, 0, n)
	settle(t, root, time.Now().Add(-time.Hour))
	d, _ := quiet(t, root, 1<<40)
	<-d.Loaded()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestIndexIsLoaded: after a clean stop no directory is read, and the order, the
// uses and the queues are as they were.
func TestIndexIsLoaded(t *testing.T) {
	const n = 2000
	root := t.TempDir()
	fillDisk(t, root, 0, n)
	settle(t, root, time.Now().Add(-time.Hour))
	d, _ := quiet(t, root, 1<<40)
	<-d.Loaded()
	for i := range 100 {
		has(t, d, i)
	}
	d.mu.Lock()
	for range 50 { // some reach the main order
		e := d.entries.victim()
		d.removeLocked(e)
	}
	d.unlock()
	settle(t, root, time.Now().Add(-time.Hour))
	before := placesOf(d)
	d.Close()
	began := time.Now()
	next, log := quiet(t, root, 1<<40)
	if !has(t, next, 1) {
		t.Error("a blob is missing at once after the start")
	}
	first := time.Since(began)
	<-next.Loaded()
	t.Logf("%d blobs: first answer after %v, whole after %v", n, first, time.Since(began))
	if !bytes.Contains(log.Bytes(), []byte(`"directories read"=0`)) {
		t.Errorf("directories were read after a clean stop: %s", log)
	}
	agrees(t, next, n-50)
	after := placesOf(next)
	one, _ := tiny(1) // was read, and so came early
	delete(after, one)
	inOrder := slices.SortedFunc(maps.Keys(after), func(a, b digest.Digest) int { return cmp.Compare(after[b].stamp, after[a].stamp) })
	newest := before[inOrder[0]].stamp
	for _, dg := range inOrder {
		was, is := before[dg], after[dg]
		if was.queue != is.queue || was.uses != is.uses || was.stamp > newest {
			t.Fatalf("%s was at %+v and is at %+v", dg, was, is)
		}
		newest = was.stamp
	}
}

// place is where in an order a blob is.
type place struct {
	queue, uses uint8
	stamp       uint32
}

func placesOf(d *Disk) map[digest.Digest]place {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[digest.Digest]place{}
	for e := range d.entries.all() {
		all[e.digest()] = place{e.queue, e.uses, e.stamp}
	}
	return all
}

// TestIndexIsStale: whatever happened behind its back since the index was
// written, what is there is served and counted, and what is not is not.
func TestIndexIsStale(t *testing.T) {
	const n = 300
	remove := func(t *testing.T, root string, is ...int) {
		for _, i := range is {
			dg, _ := tiny(i)
			if err := os.Remove((&Disk{root: root}).path(dg)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, change := range map[string]func(t *testing.T, root string){
		"files were added":   func(t *testing.T, root string) { fillDisk(t, root, n, 500) },
		"files were removed": func(t *testing.T, root string) { remove(t, root, 3, 77, 234) },
		"both": func(t *testing.T, root string) {
			remove(t, root, 3, 77, 234)
			fillDisk(t, root, n, 1)
		},
		"all was removed": func(t *testing.T, root string) {
			if err := os.RemoveAll(filepath.Join(root, "blobs")); err != nil {
				t.Fatal(err)
			}
		},
		"a directory was removed": func(t *testing.T, root string) {
			if err := os.RemoveAll(filepath.Join(root, "blobs", "sha256", "ab")); err != nil {
				t.Fatal(err)
			}
		},
		"files that are none": func(t *testing.T, root string) {
			for _, name := range []string{"x", "sha256/x", "sha256/ab/x", "md5/ab"} {
				path := filepath.Join(root, "blobs", name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := indexedDir(t, n)
			change(t, root)
			d, _ := quiet(t, root, 1<<40)
			<-d.Loaded()
			there := 0
			for _, f := range d.fans() {
				there += len(d.names(f))
			}
			agrees(t, d, there) // before a file that is missing is noticed
			there = 0
			for i := range n + 500 {
				dg, _ := tiny(i)
				_, err := os.Lstat(d.path(dg))
				if has(t, d, i) != (err == nil) {
					t.Fatalf("blob %d: %v, but served otherwise", i, err)
				}
				if err == nil {
					there++
				}
			}
			agrees(t, d, there)
		})
	}
}

// TestIndexLies: an index that is wrong although the directories' times are
// right costs nothing but the fetch of what it promised.
func TestIndexLies(t *testing.T) {
	const n = 1500
	root := indexedDir(t, n)
	gone, _ := tiny(5)
	short, _ := tiny(6)
	if err := errors.Join(os.Remove((&Disk{root: root}).path(gone)), os.Truncate((&Disk{root: root}).path(short), 3)); err != nil {
		t.Fatal(err)
	}
	var added []int // to directories that there are
	for i := n; len(added) < 90; i++ {
		dg, _ := tiny(i)
		if _, err := os.Stat(filepath.Dir((&Disk{root: root}).path(dg))); err == nil {
			fillDisk(t, root, i, 1)
			added = append(added, i)
		}
	}
	x, err := parseFile(filepath.Join(root, "index"))
	if err != nil {
		t.Fatal(err)
	}
	for f, at := range x.times {
		dir := (&Disk{root: root}).fanPath(f)
		if err := os.Chtimes(dir, time.Unix(0, at), time.Unix(0, at)); err != nil {
			t.Fatal(err)
		}
	}
	d, log := quiet(t, root, 1<<40)
	<-d.Loaded()
	if d.Len() != n || !bytes.Contains(log.Bytes(), []byte(`"directories read"=0`)) {
		t.Fatalf("the lie was not believed: %d blobs, %s", d.Len(), log)
	}
	if has(t, d, 5) || has(t, d, 6) {
		t.Error("a blob that is damaged or gone was served")
	}
	for _, i := range added[:9] {
		if has(t, d, i) {
			t.Fatal("found before the patrol: the test shows nothing")
		}
	}
	patrolAll(d)
	for i := range n {
		if i == 5 || i == 6 {
			continue
		}
		if i < len(added) && !has(t, d, added[i]) || !has(t, d, i) {
			t.Fatalf("blob %d was lost", i)
		}
	}
	agrees(t, d, n+90-2)
}

// TestIndexWithinATick: a file may come into a directory in the tick of the
// clock in which the index noted its time; it is found all the same.
func TestIndexWithinATick(t *testing.T) {
	const n = 50
	root := t.TempDir()
	d, _ := quiet(t, root, 1<<40)
	<-d.Loaded()
	fillDisk(t, root, 0, n)
	patrolAll(d)
	late := n
	for ; ; late++ {
		dg, _ := tiny(late)
		if _, err := os.Stat(filepath.Dir(d.path(dg))); err == nil {
			break
		}
	}
	dg, _ := tiny(late)
	dir := filepath.Dir(d.path(dg))
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	fillDisk(t, root, late, 1)
	if err := os.Chtimes(dir, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	next, _ := quiet(t, root, 1<<40)
	<-next.Loaded()
	if !has(t, next, late) {
		t.Error("a file that came at the last moment was lost")
	}
}

func parseFile(path string) (*indexed, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseIndex(bytes.NewReader(b), int64(len(b)))
}

// TestIndexDamaged: an index with any bit wrong, cut anywhere, of another
// version or of another directory is not used, and nothing is lost.
func TestIndexDamaged(t *testing.T) {
	const n = 200
	root := indexedDir(t, n)
	path := filepath.Join(root, "index")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := func(b []byte) {
		t.Helper()
		if _, err := parseIndex(bytes.NewReader(b), int64(len(b))); !errors.Is(err, registry.ErrCorrupt) {
			t.Fatalf("a damaged index was read: %v", err)
		}
	}
	short := smallIndex(t, 20)
	for i := range 8 * len(short) {
		b := bytes.Clone(short)
		b[i/8] ^= 1 << (i % 8)
		bad(b)
	}
	for n := range short {
		bad(short[:n])
	}
	bad(append(bytes.Clone(short), 0))

	other := indexedDir(t, n)
	version := bytes.Clone(good)
	version[7] = '2'
	binary.LittleEndian.PutUint32(version[len(version)-4:], crc32.Checksum(version[:len(version)-4], castagnoli()))
	for name, harm := range map[string]func() error{
		"cut":                func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		"a flipped bit":      func() error { return os.WriteFile(path, flipped(good), 0o600) },
		"another version":    func() error { return os.WriteFile(path, version, 0o600) },
		"another directory":  func() error { return os.Rename(filepath.Join(other, "index"), path) },
		"empty":              func() error { return os.WriteFile(path, nil, 0o600) },
		"a directory itself": func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		d, log := quiet(t, root, 1<<40)
		<-d.Loaded()
		if !bytes.Contains(log.Bytes(), []byte("cannot be used")) {
			t.Errorf("%s: nothing in the log: %s", name, log)
		}
		agrees(t, d, n)
		for i := range n {
			if !has(t, d, i) {
				t.Fatalf("%s: blob %d was lost", name, i)
			}
		}
		os.RemoveAll(path)
		d.Close()
		if _, err := parseFile(path); err != nil {
			t.Errorf("%s: no new index: %v", name, err)
		}
	}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[rand.IntN(len(b))] ^= 0x40
	return b
}

// TestIndexWhileBlobsComeAndGo writes the index again and again while blobs
// come and are evicted, and opens the directory from each, as after a kill.
func TestIndexWhileBlobsComeAndGo(t *testing.T) {
	root := t.TempDir()
	d, _ := quiet(t, root, 20_000) // some 350 of them
	<-d.Loaded()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			dg, data := tiny(i)
			s, err := d.Stage(context.Background(), registry.Descriptor{Digest: dg, Size: int64(len(data))})
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = s.Write(data)
			if _, err := s.Commit(context.Background()); err != nil {
				t.Error(err)
			}
			s.Close()
			has(t, d, i-rand.IntN(min(i, 100)+1))
		}
	})
	for range 30 {
		if err := d.saveIndex(); err != nil {
			t.Error(err)
		}
		if x := d.readIndex(); x == nil {
			t.Error("the index just written cannot be read")
		}
	}
	close(stop)
	wg.Wait()
	n := d.Len()
	next, _ := quiet(t, root, 20_000)
	<-next.Loaded()
	agrees(t, next, n)
}

// smallIndex is an index file of n blobs.
func smallIndex(t testing.TB, n int) []byte {
	t.Helper()
	var blobs []noted
	for i := range n {
		dg, _ := tiny(i)
		raw, _ := rawOf(dg)
		blobs = append(blobs, noted{newEntry(&raw, fileSize(int64(i))), 0, uint8(i%4) | uint8(i%2)*flagMain})
	}
	var b bytes.Buffer
	if err := writeIndex(&b, 7, map[fan]int64{{0, 1}: 5, {1, 255}: 1 << 60}, blobs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzIndex: nothing but what writeIndex wrote is read, and it is what it wrote.
func FuzzIndex(f *testing.F) {
	for _, n := range []int{0, 1, 7} {
		b := smallIndex(f, n)
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = binary.LittleEndian.AppendUint32(b[:len(b):len(b)], crc32.Checksum(b, castagnoli()))
		x, err := parseIndex(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		var blobs []noted
		for _, e := range x.blobs {
			flags := e.uses
			if e.queue == inMain {
				flags |= flagMain
			}
			blobs = append(blobs, noted{e: e, flags: flags})
		}
		var again bytes.Buffer
		if err := writeIndex(&again, x.inode, x.times, blobs); err != nil {
			t.Fatal(err)
		}
		// The directories have no order.
		if dirs := indexHeader + len(x.times)*indexDir; !bytes.Equal(again.Bytes()[:indexHeader], b[:indexHeader]) ||
			!bytes.Equal(again.Bytes()[dirs:again.Len()-4], b[dirs:len(b)-4]) {
			t.Errorf("%x was read as %x", b, again.Bytes())
		}
	})
}

// processorTime is what this process has spent.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMillion: restarts with a million blobs. It makes a million files, so it
// is for WEIR_SOAK.
func TestMillion(t *testing.T) {
	n := 20_000
	if os.Getenv("WEIR_SOAK") != "" {
		n = 1_000_000
	}
	root := t.TempDir()
	began := time.Now()
	fillDisk(t, root, 0, n)
	settle(t, root, time.Now().Add(-time.Hour))
	t.Logf("%d files made in %v", n, time.Since(began))
	restart := func(how string) {
		t.Helper()
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began, spent := time.Now(), processorTime()
		d, _ := quiet(t, root, 1<<40)
		if !has(t, d, n/2) {
			t.Errorf("%s: a blob was not served at once", how)
		}
		first := time.Since(began)
		slowest, asked := time.Duration(0), 0
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for whole := false; !whole; asked++ {
			select {
			case <-d.Loaded():
				whole = true
			case <-tick.C:
				at := time.Now()
				has(t, d, rand.IntN(n))
				slowest = max(slowest, time.Since(at))
			}
		}
		took, cpu := time.Since(began), processorTime()-spent
		runtime.GC()
		runtime.ReadMemStats(&after)
		began = time.Now()
		if d.Len() != n {
			t.Errorf("%s: %d of %d blobs", how, d.Len(), n)
		}
		heap := float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
		d.Close()
		t.Logf("%-20s first answer %v, whole %v (%v of processor time), %.0f bytes an entry; slowest of %d answers meanwhile %v; closed in %v",
			how, first.Round(10*time.Microsecond), took.Round(time.Millisecond), cpu.Round(time.Millisecond), heap, asked, slowest.Round(10*time.Microsecond), time.Since(began).Round(time.Millisecond))
		most := 10 * time.Second
		if strings.HasPrefix(how, "no index") {
			most *= 3 // every inode is read
		}
		// How long it takes is the machine's load to say.
		if first > 2*time.Second || cpu > most {
			t.Errorf("%s: that is too long", how)
		}
		if heap > 200 {
			t.Errorf("%s: that is too much memory", how)
		}
	}
	restart("no index")
	restart("after a clean stop")
	settle(t, root, time.Now().Add(-time.Minute))
	restart("all directories changed")
	if os.Getenv("WEIR_SOAK") == "" {
		return
	}
	// What is cold without disturbing others' page cache: directory entries and
	// inodes. It needs root; without it the figures are those of a warm cache.
	forget := func() {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Log("not cold:", err)
		}
	}
	forget()
	restart("clean stop, cold")
	settle(t, root, time.Now().Add(-time.Hour))
	forget()
	restart("changed, cold")
	if err := os.Remove(filepath.Join(root, "index")); err != nil {
		t.Fatal(err)
	}
	forget()
	restart("no index, cold")
}
