package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// someDisks is a Disks over directories of base, which are made, with 64 MiB
// each.
func someDisks(t *testing.T, base string, names []string, o cachetiers.DisksOptions) *cachetiers.Disks {
	t.Helper()
	var places []cachetiers.DiskPlace
	for _, n := range names {
		places = append(places, cachetiers.DiskPlace{Path: filepath.Join(base, n), Size: 64 << 20, Make: true})
	}
	return openDisks(t, places, o)
}

func openDisks(t *testing.T, places []cachetiers.DiskPlace, o cachetiers.DisksOptions) *cachetiers.Disks {
	t.Helper()
	s, err := cachetiers.OpenDisks(places, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestDisksAreAStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T) registry.Store {
		return someDisks(t, t.TempDir(), []string{"a", "b", "c"}, cachetiers.DisksOptions{})
	})
}

// TestRendezvous: shares follow the weights, and a disk that comes or goes
// moves only its own.
func TestRendezvous(t *testing.T) {
	weights := map[string]float64{"a": 1, "b": 1, "c": 2, "d": 4}
	const keys = 20_000
	first := func(names []string, key int) string {
		return cachetiers.Rendezvous(names, weights, "sha256:"+strconv.Itoa(key))[0]
	}
	three, four := []string{"a", "b", "c"}, []string{"d", "c", "a", "b"}
	shares := map[string]float64{}
	for key := range keys {
		shares[first(three, key)]++
		was, is := first(three, key), first(four, key)
		if was != is && is != "d" {
			t.Fatalf("key %d moved from %s to %s when d came", key, was, is)
		}
		ranked := cachetiers.Rendezvous(four, weights, "sha256:"+strconv.Itoa(key))
		if ranked[0] == "d" && ranked[1] != was {
			t.Fatalf("key %d is the next disk's, %s, when d fails, and was %s's before it came", key, ranked[1], was)
		}
	}
	for name, want := range map[string]float64{"a": .25, "b": .25, "c": .5} {
		if got := shares[name] / keys; math.Abs(got-want) > .02 {
			t.Errorf("%s has %.3f of the keys, want %.2f", name, got, want)
		}
	}
}

func state(s *cachetiers.Disks, i int) string { return string(s.Status()[i].State) }

func wantState(t *testing.T, s *cachetiers.Disks, i int, want cachetiers.DiskState) {
	t.Helper()
	eventually(t, "disk "+strconv.Itoa(i), func() error {
		if got := s.Status()[i]; got.State != want {
			return fmt.Errorf("%s (%s), want %s", got.State, got.Error, want)
		}
		return nil
	})
}

// TestOneDiskFails breaks one of three disks in every way while clients pull:
// none of them notices, the failure is told of once, and the disk is taken back.
func TestOneDiskFails(t *testing.T) {
	var sizes []int
	for i := range 60 {
		sizes = append(sizes, 1+i*i*600) // up to 2 MB, above which there are segments
	}
	for _, c := range []struct {
		name         string
		rules        func(dir string) []faultRule
		break_, mend func(dir string) error
		state        cachetiers.DiskState
	}{
		{name: "reads fail", state: cachetiers.DiskFailed,
			rules: func(dir string) []faultRule {
				return []faultRule{{dir, "read open create write probe", unix.EIO, false}}
			}},
		{name: "writes fail", state: cachetiers.DiskReadOnly,
			rules: func(dir string) []faultRule { return []faultRule{{dir, "write probe", unix.EIO, false}} }},
		{name: "read-only", state: cachetiers.DiskReadOnly,
			rules: func(dir string) []faultRule {
				return []faultRule{{dir, "create write rename probe", unix.EROFS, false}}
			}},
		{name: "renames are told to fail and happen", state: cachetiers.DiskReadOnly,
			rules: func(dir string) []faultRule { return []faultRule{{dir, "rename probe", unix.EIO, true}} }},
		{name: "stat fails", state: cachetiers.DiskFailed,
			rules: func(dir string) []faultRule { return []faultRule{{dir, "statfs", unix.EIO, false}} }},
		{name: "full of other files", state: cachetiers.DiskFull,
			rules: func(dir string) []faultRule { return []faultRule{{dir, "write probe", unix.ENOSPC, false}} }},
		{name: "directory missing", state: cachetiers.DiskFailed,
			break_: func(dir string) error { return os.Rename(dir, dir+".away") },
			mend:   func(dir string) error { return os.Rename(dir+".away", dir) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			var f faults
			var log logged
			seen := &events{}
			var places []cachetiers.DiskPlace
			for _, n := range []string{"a", "b", "c"} {
				check(t, os.Mkdir(filepath.Join(base, n), 0o700))
				// Too small for their share of the library, so that there is always
				// something to fetch, to evict and to write.
				places = append(places, cachetiers.DiskPlace{Path: filepath.Join(base, n), Size: 10 << 20})
			}
			lib := newLibrary(1, sizes...)
			s := openDisks(t, places, cachetiers.DisksOptions{Probe: 20 * time.Millisecond, Meter: seen,
				Disk: cachetiers.DiskOptions{Reverify: time.Nanosecond, Log: log.log()}.Injected(f.inject)})
			tier := cachetiers.NewTier(s, lib, cachetiers.Options{Name: "disk", Log: log.log(), SegmentFrom: 1 << 20, Segment: 256 << 10, Streams: 3})
			requests, stop := lib.load(t, tier, 6)
			more := func(n int64) {
				until := requests() + n
				eventually(t, "requests go on", func() error {
					if requests() < until {
						return errors.New("too few")
					}
					return nil
				})
			}
			more(60)
			dir := filepath.Join(base, "b")
			if c.break_ != nil {
				check(t, c.break_(dir))
			} else {
				f.set(c.rules(dir)...)
			}
			wantState(t, s, 1, c.state)
			more(60)
			if c.state != cachetiers.DiskFull && state(s, 1) != string(c.state) {
				t.Errorf("the disk is %s while it is broken", state(s, 1))
			}
			f.set()
			if c.mend != nil {
				check(t, c.mend(dir))
			}
			wantState(t, s, 1, cachetiers.DiskWorks)
			before := s.Status()[1]
			more(60)
			all, failed := stop()
			told := log.lines("level=ERROR", `msg="disk `+string(c.state), "path="+dir)
			t.Logf("%d requests, %d failed; %d opens behind; told of it %d times; then %+v", all, failed, lib.opens.Load(), len(told), before)
			if n := seen.count("disk "+string(c.state), dir); n == 0 || c.state != cachetiers.DiskFull && (n > 1 || len(told) != 1) {
				t.Errorf("%d events and these lines tell of it: %q", n, told)
			}
			if n := seen.count("disk works again", dir); n == 0 {
				t.Error("no event tells that it works again")
			}
			if state(s, 0) != "ok" || state(s, 2) != "ok" {
				t.Errorf("the others are %s and %s", state(s, 0), state(s, 2))
			}
		})
	}
}

// TestDiskFailsInMidFill: those who read a fill whose disk fails meet again in
// one on another disk, and none of them notices.
func TestDiskFailsInMidFill(t *testing.T) {
	for _, c := range []struct {
		name string
		size int // from 1 MiB on in segments
		ops  string
	}{{"stream, writes", 900 << 10, "write"}, {"stream, reads", 900 << 10, "read write"},
		{"segments, writes", 5 << 20, "write"}, {"stream, commit", 900 << 10, "rename"}, {"segments, commit", 5 << 20, "rename"}} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			var f faults
			lib := newLibrary(2, c.size)
			arrived, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			lib.gate = func(_ context.Context, _ registry.Want, at int64) {
				if at >= int64(c.size)/2 {
					once.Do(func() { close(arrived) })
					<-goOn
				}
			}
			s := someDisks(t, base, []string{"a", "b"}, cachetiers.DisksOptions{Probe: time.Hour, Disk: cachetiers.DiskOptions{}.Injected(f.inject)})
			tier := cachetiers.NewTier(s, lib, cachetiers.Options{Name: "disk", SegmentFrom: 1 << 20, Segment: 256 << 10})
			const readers = 12
			errs := make(chan error, readers)
			for range readers {
				go func() {
					got, err := readErr(tier, lib.wants[0])
					if err == nil && !bytes.Equal(got, lib.blobs[lib.wants[0].Digest]) {
						err = errors.New("wrong bytes")
					}
					errs <- err
				}()
			}
			<-arrived
			staged, _ := filepath.Glob(filepath.Join(base, "*", "*", "*"))
			dir := ""
			for _, path := range staged {
				if where := filepath.Base(filepath.Dir(path)); where == "staging" || where == "partial" {
					dir = filepath.Dir(filepath.Dir(path))
				}
			}
			f.set(faultRule{dir, c.ops, unix.EIO, false})
			close(goOn)
			for range readers {
				check(t, <-errs)
			}
			if f.count() == 0 {
				t.Error("the failure did not happen")
			}
			if max := int64(2*c.size + c.size/4); lib.bytes.Load() > max {
				t.Errorf("%d bytes were read behind for %d readers of %d; the fill begun again is at most twice that", lib.bytes.Load(), readers, c.size)
			}
			// What was pulled is kept on the other disk.
			opens := lib.opens.Load()
			read(t, tier, lib.wants[0])
			if lib.opens.Load() != opens {
				t.Error("it was not kept")
			}
		})
	}
}

// TestStartWithoutADisk: one disk is not there, one is a file; the node starts,
// and takes the first when it comes.
func TestStartWithoutADisk(t *testing.T) {
	base := t.TempDir()
	a, b, c := filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")
	check(t, os.Mkdir(a, 0o700))
	check(t, os.WriteFile(c, nil, 0o600))
	lib := newLibrary(3, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 70_000, 80_000)
	seen := &events{}
	s := openDisks(t, []cachetiers.DiskPlace{{Path: a, Size: 1 << 20}, {Path: b, Size: 1 << 20}, {Path: c, Size: 1 << 20, Make: true}},
		cachetiers.DisksOptions{Probe: 10 * time.Millisecond, Meter: seen})
	if state(s, 0) != "ok" || state(s, 1) != "failed" || state(s, 2) != "failed" || seen.count("disk failed", b) != 1 {
		t.Fatalf("%+v", s.Status())
	}
	tier := cachetiers.NewTier(s, lib, cachetiers.Options{Name: "disk"})
	for _, w := range lib.wants {
		read(t, tier, w)
	}
	if got := s.Status()[0].Blobs; got != len(lib.wants) {
		t.Errorf("the disk that works has %d blobs of %d", got, len(lib.wants))
	}
	if _, err := os.Stat(b); !errors.Is(err, os.ErrNotExist) {
		t.Error("the missing directory, which may be a mount point's, was made")
	}
	check(t, os.Mkdir(b, 0o700))
	wantState(t, s, 1, cachetiers.DiskWorks)
	opens := lib.opens.Load()
	for _, w := range lib.wants {
		read(t, tier, w)
	}
	if lib.opens.Load() != opens {
		t.Error("blobs that another disk keeps were fetched again")
	}
}

// TestOneWeirADisk: a directory that another has is let be.
func TestOneWeirADisk(t *testing.T) {
	base := t.TempDir()
	first := someDisks(t, base, []string{"a"}, cachetiers.DisksOptions{})
	second := someDisks(t, base, []string{"a"}, cachetiers.DisksOptions{Probe: 10 * time.Millisecond})
	if got := second.Status()[0]; got.State != cachetiers.DiskFailed || !strings.Contains(got.Error, "in use by another") {
		t.Errorf("%+v", got)
	}
	check(t, first.Close())
	wantState(t, second, 0, cachetiers.DiskWorks)
}

// tmpfs mounts a file system of its own for the test; it needs root.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("weir-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount a tmpfs, as root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestReadOnlyFileSystem: a node with one disk, whose file system turns
// read-only, goes on: what it holds is served from there and the rest passed
// on, and the log is told once. It also starts like that.
func TestReadOnlyFileSystem(t *testing.T) {
	dir := tmpfs(t, "size=64m")
	var log logged
	open := func() *cachetiers.Disks {
		return openDisks(t, []cachetiers.DiskPlace{{Path: dir, Size: 32 << 20}},
			cachetiers.DisksOptions{Probe: 10 * time.Millisecond, Disk: cachetiers.DiskOptions{Log: log.log()}})
	}
	remount := func(flags uintptr) { check(t, unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=64m")) }
	lib := newLibrary(4, 100_000, 200_000, 1_500_000, 400_000, 500_000, 2_000_000)
	s := open()
	tier := cachetiers.NewTier(s, lib, cachetiers.Options{Name: "disk", Log: log.log(), SegmentFrom: 1 << 20, Segment: 256 << 10})
	pull := func(wants []registry.Want, opens bool) {
		t.Helper()
		before := lib.opens.Load()
		for _, w := range wants {
			if !bytes.Equal(read(t, tier, w), lib.blobs[w.Digest]) {
				t.Error("wrong bytes")
			}
		}
		if (lib.opens.Load() > before) != opens {
			t.Errorf("opens behind: %d, want some: %v", lib.opens.Load()-before, opens)
		}
	}
	pull(lib.wants[:3], true)
	remount(unix.MS_RDONLY)
	pull(lib.wants[:3], false)
	for range 5 {
		pull(lib.wants[3:], true)
	}
	wantState(t, s, 0, cachetiers.DiskReadOnly)
	if n := log.lines("level=ERROR"); len(n) != 1 || len(log.lines("level=WARN")) != 0 {
		t.Errorf("the log was told by %q and %q", n, log.lines("level=WARN"))
	}
	check(t, s.Close())
	s = open() // a restart
	tier = cachetiers.NewTier(s, lib, cachetiers.Options{Name: "disk", Log: log.log(), SegmentFrom: 1 << 20, Segment: 256 << 10})
	wantState(t, s, 0, cachetiers.DiskReadOnly)
	pull(lib.wants[:3], false)
	pull(lib.wants[3:], true)
	remount(0)
	wantState(t, s, 0, cachetiers.DiskWorks)
	pull(lib.wants[3:], true)
	pull(lib.wants, false)
}
