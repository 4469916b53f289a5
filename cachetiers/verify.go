package cachetiers

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// A Scrub is how far a Verify is, and in the end what it found.
type Scrub struct {
	Blobs, Of      int   // blobs read, and how many there are to read
	Bytes, OfBytes int64 // likewise, of their files
	// Damaged are the blobs that were not what they should be. They are not
	// found any more.
	Damaged []digest.Digest
}

const (
	// scrubBuffer is how much is read at once.
	scrubBuffer = 4 * chunkBytes
	// reportEvery is after how many bytes progress is told.
	reportEvery = 16 << 20
)

// Verify reads every blob that is kept, from the disk and not from the page
// cache, at most rate bytes a second (0: as fast as the disk lets it, behind
// all others who use it), and compares it with its checksums and its digest.
// What is damaged is dropped, or set aside by a Durable store. Blobs are read
// in the order of their digests, from a random one on, so that a Verify which
// is always cut off gets to all of them too. report is told of progress, by one
// goroutine; nil: nobody is. The error is ctx's, or ErrUnavailable if the disk
// failed; what was found until then is returned with it.
func (d *Disk) Verify(ctx context.Context, rate int64, report func(Scrub)) (Scrub, error) {
	return scrubAll(ctx, []*Disk{d}, rate, report)
}

// Verify is Disk.Verify over all disks that work, one after the other. A disk
// that fails meanwhile is ErrUnavailable, after the others have been read.
func (s *Disks) Verify(ctx context.Context, rate int64, report func(Scrub)) (Scrub, error) {
	var disks []*Disk
	for _, at := range s.slots {
		if d := at.disk.Load(); d != nil {
			disks = append(disks, d)
		}
	}
	return scrubAll(ctx, disks, rate, report)
}

// scrub is a Verify that runs.
type scrub struct {
	d      *Disk // the one that is read
	ctx    context.Context
	report func(Scrub)
	so     Scrub
	told   int64 // Bytes when report was last told

	rate  int64
	begun time.Time
	buf   []byte // page by page, so that the disk can be read past the page cache
}

func scrubAll(ctx context.Context, disks []*Disk, rate int64, report func(Scrub)) (Scrub, error) {
	if report == nil {
		report = func(Scrub) {}
	}
	s := &scrub{ctx: ctx, report: report, rate: rate, begun: time.Now()}
	failed := make(chan error, 1)
	go func() {
		// The priority is the thread's, so the thread ends with the goroutine.
		runtime.LockOSThread()
		idle()
		failed <- s.run(disks)
	}()
	err := <-failed
	return s.so, err
}

// idle gives the thread the disk only when nobody else wants it (ioprio_set:
// this thread, class idle). A scheduler that does not know of it ignores it.
func idle() {
	const thisThread, classIdle = 1, 3 << 13
	unix.Syscall(unix.SYS_IOPRIO_SET, thisThread, 0, classIdle)
}

func (s *scrub) run(disks []*Disk) (err error) {
	if s.buf, err = unix.Mmap(-1, 0, scrubBuffer, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "memory to verify with")
	}
	defer unix.Munmap(s.buf)
	work := make([][]*entry, len(disks))
	for i, d := range disks {
		select {
		case <-d.loaded:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		// What is left of the patrol is done now, so that all is read.
		for s.ctx.Err() == nil && d.lookNext() {
		}
		work[i] = d.snapshot()
		s.so.Of += len(work[i])
		for _, e := range work[i] {
			s.so.OfBytes += e.size
		}
	}
	s.report(s.so)
	var errs []error
	for i, d := range disks {
		s.d = d
		if err := s.disk(work[i]); err != nil {
			errs = append(errs, err)
		}
		if s.ctx.Err() != nil {
			break
		}
	}
	s.report(s.so)
	return errors.Join(errs...)
}

// snapshot is what there is now, in an order that begins anywhere.
func (d *Disk) snapshot() []*entry {
	d.mu.Lock()
	all := make([]*entry, 0, d.entries.len())
	for e := range d.entries.all() {
		if !e.pending {
			all = append(all, e)
		}
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b *entry) int {
		x, y := a.raw(), b.raw()
		return cmp.Or(cmp.Compare(x.kind, y.kind), bytes.Compare(x.sum[:], y.sum[:]))
	})
	if len(all) > 0 {
		at := rand.IntN(len(all))
		all = append(slices.Clone(all[at:]), all[:at]...)
	}
	return all
}

// disk reads the entries of s.d.
func (s *scrub) disk(entries []*entry) error {
	for _, e := range entries {
		before := s.so.Bytes
		err := s.blob(e)
		switch {
		case s.ctx.Err() != nil:
			return s.ctx.Err()
		case errors.Is(err, registry.ErrCorrupt):
			if s.d.holds(e) { // else it has been evicted
				s.d.lose(e, err)
				s.so.Damaged = append(s.so.Damaged, e.digest())
			}
		}
		if s.d.dead.Load() || err != nil && !errors.Is(err, registry.ErrCorrupt) {
			if err == nil {
				err = errors.New("the disk has failed")
			}
			return &registry.Error{Kind: registry.ErrUnavailable, Text: "verify " + s.d.root, Err: err}
		}
		s.so.Blobs++
		s.so.Bytes = before + e.size
		if err != nil || s.so.Bytes-s.told >= reportEvery {
			s.tell()
		}
	}
	return nil
}

func (s *scrub) tell() {
	s.told = s.so.Bytes
	so := s.so
	so.Damaged = slices.Clone(so.Damaged)
	s.report(so)
}

// holds reports whether e is still what its digest stands for.
func (d *Disk) holds(e *entry) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries.slot(e) == e
}

// blob reads e; ErrCorrupt if it is not as it should be.
func (s *scrub) blob(e *entry) error {
	dg := e.digest()
	f, err := s.open(e)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.d.there(); err != nil {
			return registry.Wrap(registry.ErrUnavailable, err, "open "+string(dg))
		}
	}
	if err != nil {
		return broken(err, "open "+string(dg))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return broken(err, "stat "+string(dg))
	}
	size, ok := blobSize(info.Size())
	if !ok || info.Size() != e.size {
		return registry.Errorf(registry.ErrCorrupt, "the file has %d bytes instead of %d", info.Size(), e.size)
	}
	h, err := registry.NewHash(dg)
	if err != nil {
		return err
	}
	c := &contents{size: size, hash: h}
	if err := s.read(f, e, c); err != nil {
		return err
	}
	return c.verify(dg)
}

// broken is ErrCorrupt if err is the file's or the disk's fault, and not this
// process's, which may have too many files open.
func broken(err error, doing string) error {
	if unreadable(err) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return registry.Wrap(registry.ErrCorrupt, err, doing)
	}
	return registry.Wrap(registry.ErrUnavailable, err, doing)
}

// open opens e's file past the page cache, where the file system can do that:
// what is in the cache is not what is on the disk, and belongs to readers.
func (s *scrub) open(e *entry) (f *os.File, err error) {
	path := s.d.path(e.digest())
	err = s.d.do("open", path, func() (err error) {
		if f, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); errors.Is(err, unix.EINVAL) {
			f, err = os.Open(path)
		}
		return err
	})
	return f, err
}

// read reads all of f into c.
func (s *scrub) read(f *os.File, e *entry, c *contents) error {
	for at := int64(0); at < e.size; {
		n, err := s.d.reader(f).ReadAt(s.buf, at)
		if errors.Is(err, unix.EINVAL) && n == 0 { // a file system that only says so now
			plain, err := os.Open(f.Name())
			if err != nil {
				return broken(err, "open "+string(e.digest()))
			}
			defer plain.Close()
			f = plain
			continue
		}
		if err != nil && err != io.EOF {
			return broken(err, "read "+string(e.digest()))
		}
		c.add(s.buf[:n])
		at += int64(n)
		if s.so.Bytes += int64(n); s.so.Bytes-s.told >= reportEvery {
			s.tell()
		}
		if err := s.pace(); err != nil {
			return err
		}
		if n == 0 {
			return registry.Errorf(registry.ErrCorrupt, "%s ended early", e.digest())
		}
	}
	return nil
}

// pace waits until so many bytes may have been read.
func (s *scrub) pace() error {
	if s.rate <= 0 {
		return s.ctx.Err()
	}
	due := s.begun.Add(time.Duration(float64(s.so.Bytes) / float64(s.rate) * float64(time.Second)))
	wait := time.NewTimer(time.Until(due))
	defer wait.Stop()
	select {
	case <-wait.C:
		return s.ctx.Err()
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// contents takes a file apart: bytes into digest and checksums, then the tail.
type contents struct {
	size int64
	n    int64
	hash hash.Hash
	sums []uint32
	crc  uint32
	tail []byte
}

func (c *contents) add(p []byte) {
	for len(p) > 0 && c.n < c.size {
		part := p[:min(int64(len(p)), chunkBytes-c.n%chunkBytes, c.size-c.n)]
		c.hash.Write(part)
		c.crc = crc32.Update(c.crc, castagnoli(), part)
		p = p[len(part):]
		if c.n += int64(len(part)); c.n%chunkBytes == 0 || c.n == c.size {
			c.sums = append(c.sums, c.crc)
			c.crc = 0
		}
	}
	c.tail = append(c.tail, p...)
}

// verify compares what was added with the file's tail and the blob's digest.
func (c *contents) verify(dg digest.Digest) error {
	sums, err := parseTail(c.tail, dg, c.size)
	if err != nil {
		return err
	}
	for i := range sums {
		if sums[i] != c.sums[i] {
			return registry.Errorf(registry.ErrCorrupt, "chunk %d of %s is damaged", i, dg)
		}
	}
	if got := registry.Sum(registry.AlgorithmOf(dg), c.hash); got != dg {
		return registry.Errorf(registry.ErrCorrupt, "%s has the digest %s", dg, got)
	}
	return nil
}
