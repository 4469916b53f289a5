package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

func openDurable(t *testing.T, dir string, o cachetiers.DiskOptions) *cachetiers.Disk {
	t.Helper()
	o.Durable = true
	d, err := cachetiers.OpenDisk(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDurableIsAStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T) registry.Store { return openDurable(t, t.TempDir(), cachetiers.DiskOptions{}) })
}

func TestDurableSaysOrigin(t *testing.T) {
	d := openDurable(t, t.TempDir(), cachetiers.DiskOptions{})
	w := store(t, d, conformance.Bytes(1, 1000))
	b, err := d.Open(context.Background(), w)
	check(t, err)
	defer b.Close()
	if got := b.Via(); got != (registry.Via{Detail: "origin"}) {
		t.Errorf("via %+v", got)
	}
}

// put is store for a test that expects failures.
func put(s registry.Store, data []byte) error {
	stage, err := s.Stage(context.Background(), want(data, 0, -1).Descriptor)
	if err != nil {
		return err
	}
	defer stage.Close()
	if _, err := stage.Write(data); err != nil {
		return err
	}
	_, err = stage.Commit(context.Background())
	return err
}

// journal notes the operations on files, in order.
type journal struct {
	mu  sync.Mutex
	ops []string // guarded by mu
}

func (j *journal) inject(op, path string, do func() error) error {
	j.mu.Lock()
	j.ops = append(j.ops, op+" "+filepath.Base(path))
	j.mu.Unlock()
	return do()
}

// TestDurableOrder: what a power cut at any point leaves is decided by the
// order of operations: bytes are synced before the name is given, and the name
// before it is acknowledged; directories that were made are synced upwards.
func TestDurableOrder(t *testing.T) {
	var j journal
	d := openDurable(t, t.TempDir(), cachetiers.DiskOptions{}.Injected(j.inject))
	<-d.Loaded()
	data := conformance.Bytes(1, 300_000)
	hex := want(data, 0, -1).Digest.Encoded()
	j.ops = nil
	check(t, put(d, data))
	j.mu.Lock()
	got := slices.DeleteFunc(j.ops, func(op string) bool { return strings.HasPrefix(op, "statfs") })
	want := []string{"create 1", "write 1", "write 1", "sync 1", "mkdir " + hex[:2], "syncdir sha256", "syncdir blobs", "rename " + hex, "syncdir " + hex[:2]}
	if !slices.Equal(got, want) {
		t.Errorf("operations\n %q, want\n %q", got, want)
	}
	j.ops = nil
	j.mu.Unlock()
	check(t, put(d, data)) // again: its directory is durable already
	got = slices.DeleteFunc(j.ops, func(op string) bool { return strings.HasPrefix(op, "statfs") })
	if want := []string{"create 2", "write 2", "write 2", "sync 2", "rename " + hex, "syncdir " + hex[:2]}; !slices.Equal(got, want) {
		t.Errorf("the second time\n %q, want\n %q", got, want)
	}
}

// TestDurableFailures fails each operation of a commit in both ways: it did not
// happen, and it happened and we were told that it did not. What is not
// acknowledged is not found, what was acknowledged before stays, nothing is
// left over, and the next try works; also over a restart.
func TestDurableFailures(t *testing.T) {
	old, data := conformance.Bytes(1, 5000), conformance.Bytes(2, 700_000)
	for _, op := range []string{"create", "write", "sync", "mkdir", "rename", "syncdir"} {
		for _, did := range []bool{false, true} {
			for _, again := range []bool{false, true} { // the blob is there already
				t.Run(fmt.Sprintf("%s/happened=%v/again=%v", op, did, again), func(t *testing.T) {
					dir := t.TempDir()
					var f faults
					d := openDurable(t, dir, cachetiers.DiskOptions{}.Injected(f.inject))
					<-d.Loaded()
					store(t, d, old)
					if again {
						store(t, d, data)
						if op == "mkdir" {
							return // there is none the second time
						}
					}
					f.set(faultRule{dir, op, unix.EIO, did})
					if err := put(d, data); registry.KindOf(err) != registry.ErrNoRoom || f.count() == 0 {
						t.Fatalf("put: %v, %d failures", err, f.count())
					}
					f.set()
					if left, _ := files(t, filepath.Join(dir, "staging")); len(left) > 0 {
						t.Errorf("left over: %q", left)
					}
					got, err := readErr(d, want(data, 0, -1))
					if again && (err != nil || !bytes.Equal(got, data)) {
						t.Errorf("what was acknowledged before: %v", err)
					}
					if !again && !errors.Is(err, registry.ErrNotFound) {
						t.Errorf("what was not acknowledged: %v", err)
					}
					// After a restart it may be there, but then whole.
					check(t, d.Close())
					r := openDurable(t, dir, cachetiers.DiskOptions{})
					if got, err := readErr(r, want(data, 0, -1)); err == nil && !bytes.Equal(got, data) || err != nil && again {
						t.Errorf("after a restart: %v", err)
					}
					store(t, r, data)
					for _, data := range [][]byte{old, data} {
						if !bytes.Equal(read(t, r, want(data, 0, -1)), data) {
							t.Error("wrong bytes in the end")
						}
					}
					if paths, _ := files(t, filepath.Join(dir, "blobs")); len(paths) != 2 {
						t.Errorf("there are %q in the end", paths)
					}
				})
			}
		}
	}
}

// TestDurableIsFoundWhenItIs: until its name is synced nobody finds a blob, for
// who finds it may rely on it; and not at all if that fails.
func TestDurableIsFoundWhenItIs(t *testing.T) {
	data := conformance.Bytes(3, 10_000)
	w := want(data, 0, -1)
	for _, fails := range []error{nil, unix.EIO} {
		var d *cachetiers.Disk
		renamed, asked := false, false
		d = openDurable(t, t.TempDir(), cachetiers.DiskOptions{}.Injected(func(op, path string, do func() error) error {
			renamed = renamed || op == "rename"
			err := do()
			if op != "syncdir" || !renamed {
				return err
			}
			asked = true
			if _, err := readErr(d, w); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("found before its name was synced: %v", err)
			}
			return fails
		}))
		<-d.Loaded()
		if err := put(d, data); !asked || (err == nil) != (fails == nil) {
			t.Errorf("put: %v, asked meanwhile: %v", err, asked)
		}
		if _, err := readErr(d, w); (err == nil) != (fails == nil) {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// TestDurableKeepsTheOnlyCopy: a damaged blob is set aside and not found; one
// that cannot be read stays where it is, and is found when it can be.
func TestDurableKeepsTheOnlyCopy(t *testing.T) {
	dir := t.TempDir()
	var f faults
	d := openDurable(t, dir, cachetiers.DiskOptions{Reverify: 1}.Injected(f.inject))
	damaged, unread := conformance.Bytes(1, 5<<20), conformance.Bytes(2, 6<<20)
	w, u := store(t, d, damaged), store(t, d, unread)
	flip(3<<20)(t, blobFile(dir, w))
	if _, err := readErr(d, w); !errors.Is(err, registry.ErrCorrupt) {
		t.Errorf("read of a damaged blob: %v", err)
	}
	if _, err := readErr(d, w); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("afterwards: %v", err)
	}
	if aside, n := files(t, filepath.Join(dir, "damaged")); len(aside) != 1 || n < int64(len(damaged)) {
		t.Errorf("set aside: %q", aside)
	}
	f.set(faultRule{dir, "read", unix.EIO, false})
	for range 2 {
		if _, err := readErr(d, u); err == nil || errors.Is(err, registry.ErrNotFound) {
			t.Errorf("read of an unreadable blob: %v", err)
		}
	}
	f.set()
	r := openDurable(t, dir, cachetiers.DiskOptions{})
	if !bytes.Equal(read(t, r, u), unread) {
		t.Error("wrong bytes")
	}
	// A tier over it heals both, whatever is wrong.
	f.set(faultRule{dir, "read", unix.EIO, false})
	lib := &library{blobs: map[digest.Digest][]byte{w.Digest: damaged, u.Digest: unread}}
	tier := cachetiers.NewTier(d, lib, cachetiers.Options{Name: "origin"})
	for _, w := range []registry.Want{w, u} {
		if got := read(t, tier, w); !bytes.Equal(got, lib.blobs[w.Digest]) {
			t.Error("wrong bytes")
		}
	}
	if lib.opens.Load() == 0 {
		t.Error("nothing was asked behind")
	}
}

// TestDurableFull: without room nothing is evicted, and what is there stays.
func TestDurableFull(t *testing.T) {
	d := openDurable(t, tmpfs(t, "size=16m"), cachetiers.DiskOptions{})
	var wants []registry.Want
	for i := 0; ; i++ {
		data := conformance.Bytes(uint64(i), 1<<20)
		err := put(d, data)
		if err != nil {
			if registry.KindOf(err) != registry.ErrNoRoom || i < 10 {
				t.Fatalf("after %d: %v", i, err)
			}
			break
		}
		wants = append(wants, want(data, 0, -1))
	}
	for i, w := range wants {
		if !bytes.Equal(read(t, d, w), conformance.Bytes(uint64(i), 1<<20)) {
			t.Errorf("blob %d is wrong", i)
		}
	}
}
