package cachetiers

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// A fill of segments that is cut off leaves two files in partial/: the bytes,
// with holes, and a log of which are there. The log is a header,
//
//	0   8  the magic "weirprt1"
//	8   8  the blob's size
//	16  8  the size of a segment
//	24  4  CRC-32C of the above and the digest
//
// and records of 16 bytes, of which a later one about a segment counts:
//
//	0   4  which segment
//	4   4  how many of its bytes, from its beginning, are there
//	8   4  CRC-32C of those bytes
//	12  4  CRC-32C of the record's first 12 bytes and the digest
//
// A record is written after its bytes. That is no promise (nothing is synced),
// so bytes count only once they have been read and their CRC is right.
const (
	partialMagic  = "weirprt1"
	partialHeader = 28
	partialRecord = 16
	// maxPartials is how many fills that were cut off are kept.
	maxPartials = 64
	// partialAge is for how long; what nobody came back for goes.
	partialAge = 24 * time.Hour
	// partWait is for how long a stage waits for the one before it, of the
	// same digest, to let go of the part.
	partWait = 2 * time.Second
)

// segmentStore is a Store in which a blob can be staged in segments. left is
// what an earlier stage noted of them; whether that is right recall tells.
type segmentStore interface {
	registry.Store
	stageSegments(ctx context.Context, expect registry.Descriptor, segment int64) (s segmentStage, left map[int]partial, err error)
}

// segmentStage is a Stage that is written in any order; expect had its digest
// and size. follow is called by one goroutine, the one that commits; the
// others by any, for one segment by one at a time.
type segmentStage interface {
	registry.FileStage
	// recall gives what an earlier stage left of segment k: how many bytes
	// from its beginning, and their CRC-32C.
	recall(k int) (have int64, crc uint32)
	// place stores p at off.
	place(p []byte, off int64) error
	// mark notes what has been placed of segment k, from its beginning.
	mark(k int, have int64, crc uint32)
	// follow takes what is placed before to into the digest.
	follow(to int64) error
	// park leaves what was marked for the next stage of this digest, instead
	// of having Close remove it. Nothing is placed after it; what was placed
	// can be read until Close.
	park()
}

// A part is a fill that was cut off, or one that runs.
type part struct {
	bytes int64 // on the disk when the last stage left it
	at    time.Time
	free  chan struct{} // closed when the stage that has it lets go; nil: nobody has it
}

func (d *Disk) partials() string { return filepath.Join(d.root, "partial") }

func (d *Disk) partPath(dg digest.Digest) string {
	return filepath.Join(d.partials(), strings.Replace(string(dg), ":", "-", 1))
}

// loadParts finds what earlier runs left in partial/ and removes what is too
// old, too much, or makes no sense.
func (d *Disk) loadParts() error {
	if err := makeDir(d.partials()); err != nil {
		return registry.Wrap(registry.ErrNoRoom, err, "make the disk tier's directory")
	}
	files, err := os.ReadDir(d.partials())
	if err != nil {
		return registry.Wrap(registry.ErrNoRoom, err, "read the disk tier")
	}
	d.mu.Lock()
	defer d.unlock()
	for _, file := range files {
		name, isData := strings.CutSuffix(file.Name(), ".data")
		dg := digest.Digest(strings.Replace(name, "-", ":", 1))
		info, err := file.Info()
		_, lerr := os.Lstat(filepath.Join(d.partials(), name+".log"))
		switch {
		case !isData:
			if name, ok := strings.CutSuffix(file.Name(), ".log"); ok {
				if _, err := os.Lstat(filepath.Join(d.partials(), name+".data")); err == nil {
					continue
				}
			}
			d.trash = append(d.trash, filepath.Join(d.partials(), file.Name()))
		case err != nil || lerr != nil || !registry.ValidDigest(dg) || !info.Mode().IsRegular() ||
			d.partPath(dg) != filepath.Join(d.partials(), name):
			d.trash = append(d.trash, filepath.Join(d.partials(), file.Name()))
		default:
			d.parts[dg] = &part{bytes: onDisk(info), at: info.ModTime()}
			d.parked += onDisk(info)
		}
	}
	d.ageLocked(time.Now())
	return nil
}

// onDisk is how much room a file with holes takes.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// ageLocked drops parts that are too old or too many.
func (d *Disk) ageLocked(now time.Time) {
	for {
		dg, oldest := d.oldestPartLocked()
		if oldest == nil || len(d.parts) <= maxPartials && now.Sub(oldest.at) < partialAge {
			return
		}
		d.dropPartLocked(dg)
	}
}

func (d *Disk) oldestPartLocked() (dg digest.Digest, oldest *part) {
	for at, p := range d.parts {
		if p.free == nil && (oldest == nil || p.at.Before(oldest.at)) {
			dg, oldest = at, p
		}
	}
	return dg, oldest
}

// dropPartLocked removes a part that nobody writes.
func (d *Disk) dropPartLocked(dg digest.Digest) {
	d.parked -= d.parts[dg].bytes
	delete(d.parts, dg)
	if d.dead.Load() {
		return // the directory is another's
	}
	// Out of the way at once: the next stage of dg may be waiting for the lock.
	aside := d.nextLocked()
	for _, err := range []error{os.Rename(d.partPath(dg)+".data", aside), os.Remove(d.partPath(dg) + ".log")} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.faults = append(d.faults, fault{err, true})
		}
	}
	d.trash = append(d.trash, aside)
}

// stageSegments implements segmentStore. What an earlier stage of the same
// digest, size and segments left is taken over.
func (d *Disk) stageSegments(ctx context.Context, expect registry.Descriptor, segment int64) (segmentStage, map[int]partial, error) {
	h, err := stageHash(expect)
	if err != nil {
		return nil, nil, err
	}
	s := &diskSegments{diskStage: diskStage{d: d, expect: expect, hash: h}, segment: segment}
	if d.takePart(ctx, expect.Digest) {
		s.part = d.partPath(expect.Digest)
		s.path = s.part + ".data"
	} else {
		// Another stage of this digest goes on: this one does without.
		d.mu.Lock()
		s.path = d.nextLocked()
		d.mu.Unlock()
	}
	if err := s.begin(); err != nil {
		s.abort()
		return nil, nil, err
	}
	return s, s.found, nil
}

// takePart makes dg's part the caller's. If another stage has it, takePart
// waits a little, since that one may be about to end, and reports false if it
// does not.
func (d *Disk) takePart(ctx context.Context, dg digest.Digest) bool {
	ctx, cancel := context.WithTimeout(ctx, partWait)
	defer cancel()
	for {
		busy := d.tryPart(dg)
		if busy == nil {
			return true
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return false
		}
	}
}

// tryPart makes dg's part the caller's, or returns what is closed when the
// stage that has it lets go.
func (d *Disk) tryPart(dg digest.Digest) (busy <-chan struct{}) {
	d.mu.Lock()
	defer d.unlock()
	d.ageLocked(time.Now())
	p := d.parts[dg]
	if p == nil {
		p = new(part)
		d.parts[dg] = p
	}
	if p.free != nil {
		return p.free
	}
	p.free = make(chan struct{})
	d.parked -= p.bytes
	return nil
}

// hasPart reports whether a fill of dg that was cut off is kept.
func (d *Disk) hasPart(dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parts[dg] != nil
}

// leavePart gives dg's part back with so many bytes: none is for good, and a
// negative number leaves it as it was taken.
func (d *Disk) leavePart(dg digest.Digest, bytes int64) {
	d.mu.Lock()
	defer d.unlock()
	p := d.parts[dg]
	close(p.free)
	if p.free = nil; bytes >= 0 {
		p.bytes, p.at = bytes, time.Now()
	}
	if p.bytes == 0 {
		delete(d.parts, dg)
		return
	}
	d.parked += p.bytes
	d.ageLocked(time.Now())
	d.shrinkLocked(max(d.o.Limit-d.inFlight, 0))
}

// diskSegments is a file being written in segments.
type diskSegments struct {
	diskStage
	segment int64
	part    string          // what its files in partial/ begin with; "" if it has none
	found   map[int]partial // what the log said when it was opened

	mu    sync.Mutex
	log   *os.File // guarded by mu; nil: nothing is noted any more
	noted bool     // guarded by mu; something is
}

// partial is what is there of one segment: so many bytes from its beginning,
// and their CRC-32C.
type partial struct {
	have int64
	crc  uint32
}

var _ segmentStage = (*diskSegments)(nil)

func (s *diskSegments) begin() error {
	if err := s.grow(fileSize(s.expect.Size)); err != nil {
		return err
	}
	err := s.create(0)
	if err != nil || s.part == "" {
		return err
	}
	before := int64(0) // what the stage before wrote
	if info, err := s.f.Stat(); err == nil {
		before = min(onDisk(info), s.reserved)
	}
	s.wrote(before)
	if s.log, err = os.OpenFile(s.part+".log", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return s.d.noRoom(err, "begin a file in the disk tier")
	}
	text, err := os.ReadFile(s.part + ".log")
	var ok bool
	if s.found, ok = parsePartial(text, s.expect, s.segment); ok && err == nil {
		s.noted = len(s.found) > 0
		// What is torn goes, so that new records are where they are looked for.
		torn := (len(text) - partialHeader) % partialRecord
		return registry.Wrap(registry.ErrNoRoom, s.log.Truncate(int64(len(text)-torn)), "begin a file in the disk tier")
	}
	// Nothing, or nothing that can be used.
	s.wrote(-before)
	if err = errors.Join(s.log.Truncate(0), s.f.Truncate(0)); err == nil {
		_, err = s.log.Write(partialHead(s.expect, s.segment))
	}
	return s.d.noRoom(err, "begin a file in the disk tier")
}

func partialHead(expect registry.Descriptor, segment int64) []byte {
	b := []byte(partialMagic)
	b = binary.LittleEndian.AppendUint64(b, uint64(expect.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(segment))
	return binary.LittleEndian.AppendUint32(b, tailSum(b, expect.Digest))
}

func appendRecord(b []byte, dg digest.Digest, k int, have int64, crc uint32) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(k))
	b = binary.LittleEndian.AppendUint32(b, uint32(have))
	b = binary.LittleEndian.AppendUint32(b, crc)
	return binary.LittleEndian.AppendUint32(b, tailSum(b[start:], dg))
}

// parsePartial reads a log. ok is false if it is of another blob or other
// segments; records that are torn or make no sense are passed over.
func parsePartial(b []byte, expect registry.Descriptor, segment int64) (found map[int]partial, ok bool) {
	if len(b) < partialHeader || string(b[:partialHeader]) != string(partialHead(expect, segment)) {
		return nil, false
	}
	found = map[int]partial{}
	for b = b[partialHeader:]; len(b) >= partialRecord; b = b[partialRecord:] {
		if binary.LittleEndian.Uint32(b[12:]) != tailSum(b[:12], expect.Digest) {
			continue
		}
		k, have := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
		if have > segment || k*segment+have > expect.Size {
			continue
		}
		found[int(k)] = partial{have: have, crc: binary.LittleEndian.Uint32(b[8:])}
	}
	return found, true
}

// recall implements segmentStage.
func (s *diskSegments) recall(k int) (int64, uint32) {
	p, ok := s.found[k]
	if !ok || p.have == 0 {
		return 0, 0
	}
	crc, buf := uint32(0), make([]byte, chunkBytes)
	for at := int64(0); at < p.have; {
		n, err := s.d.reader(s.f).ReadAt(buf[:min(int64(len(buf)), p.have-at)], int64(k)*s.segment+at)
		if n == 0 && err != nil {
			s.d.fault(err, false)
			return 0, 0
		}
		crc = crc32.Update(crc, castagnoli(), buf[:n])
		at += int64(n)
	}
	if crc != p.crc {
		s.d.o.Log.Warn("a part that was left is damaged, fetched anew", "digest", s.expect.Digest, "segment", k)
		return 0, 0
	}
	return p.have, crc
}

// place implements segmentStage.
func (s *diskSegments) place(p []byte, off int64) error {
	if off+int64(len(p)) > s.expect.Size {
		return registry.Errorf(registry.ErrCorrupt, "%s goes on after its %d bytes", s.expect.Digest, s.expect.Size)
	}
	if err := s.d.write(s.f, s.path, p, off); err != nil {
		return err
	}
	s.wrote(int64(len(p)))
	return nil
}

// mark implements segmentStage. A note that cannot be written costs a fetch.
func (s *diskSegments) mark(k int, have int64, crc uint32) {
	b := appendRecord(nil, s.expect.Digest, k, have, crc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log == nil {
		return
	}
	if _, err := s.log.Write(b); err != nil {
		s.d.fault(err, true)
		s.log.Close()
		s.log = nil
		return
	}
	s.noted = true
}

// follow implements segmentStage: it reads back from the page cache.
func (s *diskSegments) follow(to int64) error {
	buf := make([]byte, min(to-s.n.Load(), fillBuffer))
	for s.n.Load() < to {
		n, err := s.d.reader(s.f).ReadAt(buf[:min(int64(len(buf)), to-s.n.Load())], s.n.Load())
		if n == 0 {
			s.d.fault(err, false)
			return registry.Wrap(registry.ErrNoRoom, err, "read back what was staged of "+string(s.expect.Digest))
		}
		s.hash.Write(buf[:n])
		s.sum(buf[:n])
		s.n.Add(int64(n))
	}
	return nil
}

// ReadAt implements registry.Stage, for what has been placed.
func (s *diskSegments) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// park implements segmentStage. The part is the next stage's at once, however
// long readers keep this one open.
func (s *diskSegments) park() {
	info, err := s.f.Stat()
	if s.part == "" || err != nil || !s.endLog() || onDisk(info) == 0 {
		return
	}
	s.path = "" // stays
	s.unreserve()
	s.d.leavePart(s.expect.Digest, onDisk(info))
	s.part = ""
}

// endLog closes the log, and reports whether there is anything in it.
func (s *diskSegments) endLog() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log != nil {
		s.log.Close()
		s.log = nil
	}
	return s.noted
}

// forget removes the part, whose bytes are a blob now or of no use.
func (s *diskSegments) forget() {
	if s.part == "" {
		return
	}
	s.endLog()
	for _, name := range []string{s.part + ".log", s.part + ".data"} {
		if s.d.dead.Load() {
			break // the directory is another's
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.d.fault(err, true)
		}
	}
	s.path = "" // from now on another stage's
	s.d.leavePart(s.expect.Digest, 0)
	s.part = ""
}

// abort ends a stage that did not begin. What was there of its part stays, if
// it was only room that was missing.
func (s *diskSegments) abort() {
	if s.f != nil {
		s.Close()
		return
	}
	s.unreserve()
	if s.part != "" {
		s.d.leavePart(s.expect.Digest, -1)
	}
}

// Commit implements registry.Stage.
func (s *diskSegments) Commit(ctx context.Context) (registry.Descriptor, error) {
	got, err := s.diskStage.Commit(ctx)
	if err == nil {
		s.forget()
	}
	return got, err
}

// Close implements registry.Stage.
func (s *diskSegments) Close() error {
	if s.closed {
		return nil
	}
	s.forget()
	return s.diskStage.Close()
}
