package cachetiers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// blobFile is where dir keeps w's blob.
func blobFile(dir string, w registry.Want) string {
	hex := w.Digest.Encoded()
	return filepath.Join(dir, "blobs", string(w.Digest.Algorithm()), hex[:2], hex)
}

// TestVerify finds damage of every kind, and nothing else, and what is damaged
// is not found afterwards. It has more than one buffer to read of one blob.
func TestVerify(t *testing.T) {
	dirs := map[string]string{"disk": t.TempDir(), "tmpfs": tmpfs(t, "size=64m")}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			d := openDisk(t, dir, 1<<30)
			var wants []registry.Want
			for i, size := range []int{0, 1, 1000, 256 << 10, 300_000, 1 << 20, 3<<20 + 5, 700_000, 800_000, 4096 - 28, 50_000} {
				wants = append(wants, store(t, d, conformance.Bytes(uint64(100+i), size)))
			}
			var last cachetiers.Scrub
			found, err := d.Verify(context.Background(), 0, func(s cachetiers.Scrub) { last = s })
			if err != nil || len(found.Damaged) > 0 || found.Blobs != len(wants) || found.Bytes != d.Bytes() || last.Blobs != found.Blobs {
				t.Fatalf("sound: %+v, %v; told last of %+v", found, err, last)
			}
			flip(10)(t, blobFile(dir, wants[2]))
			flip(2<<20)(t, blobFile(dir, wants[6]))
			flip(700_000+2)(t, blobFile(dir, wants[7]))
			cut(100)(t, blobFile(dir, wants[8]))
			check(t, os.Remove(blobFile(dir, wants[10])))
			// Other bytes with checksums that fit: only the digest tells.
			check(t, os.WriteFile(blobFile(dir, wants[4]), cachetiers.FileOf(wants[4].Digest, conformance.Bytes(999, 300_000)), 0o600))
			harmed := []digest.Digest{wants[4].Digest, wants[2].Digest, wants[6].Digest, wants[7].Digest, wants[8].Digest, wants[10].Digest}
			found, err = d.Verify(context.Background(), 0, nil)
			slices.Sort(harmed)
			slices.Sort(found.Damaged)
			if err != nil || !slices.Equal(found.Damaged, harmed) || found.Blobs != len(wants) {
				t.Errorf("damaged: %+v, %v; want %v", found, err, harmed)
			}
			for _, w := range wants {
				_, err := readErr(d, w)
				if slices.Contains(harmed, w.Digest) != errors.Is(err, registry.ErrNotFound) {
					t.Errorf("%s afterwards: %v", w.Digest, err)
				}
			}
			if found, err = d.Verify(context.Background(), 0, nil); err != nil || len(found.Damaged) != 0 || found.Of != len(wants)-len(harmed) {
				t.Errorf("once more: %+v, %v", found, err)
			}
		})
	}
}

// TestVerifyKeepsItsPace: a rate holds, and ctx ends the waiting.
func TestVerifyKeepsItsPace(t *testing.T) {
	d := openDisk(t, t.TempDir(), 1<<30)
	for i := range 4 {
		store(t, d, conformance.Bytes(uint64(i), 500_000))
	}
	begun := time.Now()
	if _, err := d.Verify(context.Background(), 10_000_000, nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 190*time.Millisecond {
		t.Errorf("2 MB at 10 MB a second took %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	found, err := d.Verify(ctx, 1, func(cachetiers.Scrub) { cancel() })
	if !errors.Is(err, context.Canceled) || len(found.Damaged) != 0 || d.Len() != 4 {
		t.Errorf("cut off: %+v, %v, %d blobs left", found, err, d.Len())
	}
}

// TestVerifyOnAFailingDisk: a disk that gives errors is not one full of damaged
// blobs, and the other disks are verified.
func TestVerifyOnAFailingDisk(t *testing.T) {
	base := t.TempDir()
	var f faults
	s := someDisks(t, base, []string{"a", "b"}, cachetiers.DisksOptions{Probe: time.Hour, Disk: cachetiers.DiskOptions{}.Injected(f.inject)})
	for i := range 40 {
		store(t, s, conformance.Bytes(uint64(i), 20_000))
	}
	before := s.Status()
	f.set(faultRule{filepath.Join(base, "a"), "read", unix.EIO, false})
	found, err := s.Verify(context.Background(), 0, nil)
	if !errors.Is(err, registry.ErrUnavailable) || len(found.Damaged) > 1 || found.Blobs != before[1].Blobs {
		t.Errorf("%v, %v; want the %d blobs of the other disk", found, err, before[1].Blobs)
	}
	if got := s.Status(); got[0].State != cachetiers.DiskFailed || got[1].State != cachetiers.DiskWorks || got[1].Blobs != before[1].Blobs {
		t.Errorf("%+v", got)
	}
}
