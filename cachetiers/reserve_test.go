package cachetiers_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/cachetiers"
)

// lowest is the least that a file system had free after an operation of ours.
type lowest struct {
	dir string
	mu  sync.Mutex
	low int64 // guarded by mu
	ops int   // guarded by mu
	err error // guarded by mu; the first that an operation met
}

func (l *lowest) inject(_, _ string, do func() error) error {
	err := do()
	l.mu.Lock()
	defer l.mu.Unlock()
	var st unix.Statfs_t
	if serr := unix.Statfs(l.dir, &st); serr != nil {
		return serr
	}
	if free := int64(st.Bavail) * st.Bsize; l.ops == 0 || free < l.low {
		l.low = free
	}
	l.ops++
	if errors.Is(err, unix.ENOSPC) && l.err == nil {
		l.err = err
	}
	return err
}

// TestReserve: fills at the same time, streams and segments, on a file system
// smaller than the limit and partly taken by others, never take what is to be
// left free, never meet its end, and fail nobody.
func TestReserve(t *testing.T) {
	for _, c := range []struct {
		name    string
		durable bool
	}{{"cache", false}, {"durable", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := tmpfs(t, "size=32m")
			const reserve = 2 << 20 // a sixteenth of it
			check(t, os.WriteFile(filepath.Join(dir, "another's"), make([]byte, 9<<20), 0o600))
			var sizes []int
			for i := range 60 {
				sizes = append(sizes, 1000+i*i*800) // up to 2.8 MB, 55 MB together
			}
			lib := newLibrary(6, sizes...)
			l, quiet := &lowest{dir: dir}, slog.New(slog.DiscardHandler)
			d, err := cachetiers.OpenDisk(filepath.Join(dir, "weir"), cachetiers.DiskOptions{Limit: 1 << 30, Durable: c.durable, Log: quiet}.Injected(l.inject))
			check(t, err)
			t.Cleanup(func() { d.Close() })
			tier := cachetiers.NewTier(d, lib, cachetiers.Options{Name: "disk", Log: quiet, SegmentFrom: 1 << 20, Segment: 256 << 10, Streams: 3})
			requests, stop := lib.load(t, tier, 10)
			eventually(t, "requests", func() error {
				if requests() < 300 {
					return errors.New("too few")
				}
				return nil
			})
			all, failed := stop()
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Logf("%d requests, %d failed, %d opens behind; after %d operations never less than %d bytes free, %d are reserved", all, failed, lib.opens.Load(), l.ops, l.low, int64(reserve))
			if l.low < reserve || l.err != nil {
				t.Errorf("%d bytes were left free, %d are to be; and %v", l.low, int64(reserve), l.err)
			}
			if l.low > 4*reserve {
				t.Errorf("never less than %d bytes were free: this was no test at the limit", l.low)
			}
		})
	}
}
