package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// noDisk is a store with no disk that works.
func noDisk(t *testing.T) registry.Store {
	return openDisks(t, []cachetiers.DiskPlace{{Path: filepath.Join(t.TempDir(), "none"), Size: 1 << 30}}, cachetiers.DisksOptions{Probe: time.Hour})
}

// TestCollapsedWithoutADisk: many who want a blob that nothing can be kept of
// share one fill, also of what is wrong; nothing is taken for kept.
func TestCollapsedWithoutADisk(t *testing.T) {
	right := conformance.Bytes(21, 9<<20)
	wrong := bytes.Clone(right)
	wrong[5<<20] ^= 1
	for _, data := range [][]byte{right, wrong} {
		goOn := make(chan struct{})
		f := &far{data: data, chunk: 1 << 20, step: func(ctx context.Context, at int64) error {
			if at > 4<<20 {
				<-goOn
			}
			return nil
		}}
		landed := 0
		tier := cachetiers.NewTier(noDisk(t), f, cachetiers.Options{Landed: func(registry.Descriptor, registry.Name, registry.Via) { landed++ }})
		w := want(right, 0, -1)
		const readers = 20
		errs := make(chan error, readers)
		for range readers {
			b, err := tier.Open(context.Background(), w)
			check(t, err)
			go func() {
				defer b.Close()
				var got bytes.Buffer
				_, err := b.WriteTo(&got)
				if err == nil && !bytes.Equal(got.Bytes(), right) {
					err = errors.New("a wrong blob came whole")
				}
				errs <- err
			}()
		}
		close(goOn)
		for range readers {
			if err := <-errs; (err == nil) != (&data[0] == &right[0]) || err != nil && !errors.Is(err, registry.ErrCorrupt) {
				t.Errorf("reader: %v", err)
			}
		}
		if n := f.opens.Load(); n != 1 {
			t.Errorf("%d opens behind for %d readers", n, readers)
		}
		if landed != 0 {
			t.Error("a blob was said to be kept")
		}
		if _, err := readErr(tier, w); f.opens.Load() != 2 {
			t.Errorf("the next reader: %v, %d opens behind", err, f.opens.Load())
		}
	}
}

// TestSpareIsBounded: what does not fit in the memory that is to spare is
// passed on, and memory comes back.
func TestSpareIsBounded(t *testing.T) {
	hold := make(chan struct{})
	blobs := newLibrary(23, 5<<20, 5<<20, 5<<20, 7<<20)
	blobs.gate = func(context.Context, registry.Want, int64) { <-hold }
	tier := cachetiers.NewTier(noDisk(t), blobs, cachetiers.Options{Linger: time.Millisecond, Spare: 12 << 20})
	done := make(chan error)
	for _, w := range blobs.wants {
		for range 2 {
			go func() {
				got, err := readErr(tier, w)
				if err == nil && !bytes.Equal(got, blobs.blobs[w.Digest]) {
					err = errors.New("wrong bytes")
				}
				done <- err
			}()
		}
	}
	// Two blobs are collapsed. The third, and the one that is too large, are each
	// asked for by each reader, and once or twice to find that there is no room.
	eventually(t, "opens", func() error {
		if n := blobs.opens.Load(); n < 2+3+3 {
			return errors.New("too few")
		}
		return nil
	})
	close(hold)
	for range 2 * len(blobs.wants) {
		check(t, <-done)
	}
	if n := blobs.opens.Load(); n > 2+4+4 {
		t.Errorf("%d opens behind", n)
	}
}
