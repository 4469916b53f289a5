package cachetiers

import (
	"context"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

// reserveStep is by how much a stage of unknown size reserves room.
const reserveStep = 4 << 20

// Stage implements registry.Store.
func (d *Disk) Stage(_ context.Context, expect registry.Descriptor) (registry.Stage, error) {
	h, err := stageHash(expect)
	if err != nil {
		return nil, err
	}
	s := &diskStage{d: d, expect: expect, hash: h}
	first := int64(reserveStep)
	if expect.Size >= 0 {
		first = fileSize(expect.Size)
	}
	if err := s.grow(first); err != nil {
		return nil, err
	}
	d.mu.Lock()
	s.path = d.nextLocked()
	d.mu.Unlock()
	if err := s.create(os.O_EXCL); err != nil {
		s.unreserve()
		return nil, err
	}
	return s, nil
}

// diskStage is a file being written.
type diskStage struct {
	d        *Disk
	expect   registry.Descriptor
	hash     hash.Hash
	f        *os.File
	path     string // "" once it is committed or removed
	reserved int64
	owes     atomic.Int64 // of it and the slack of a file, what has not been written yet
	n        atomic.Int64 // bytes written; readers must not see the table behind them
	sums     []uint32     // of full chunks
	crc      uint32       // of the chunk that is not full yet
	closed   bool
}

var _ registry.FileStage = (*diskStage)(nil)

func (s *diskStage) grow(n int64) error {
	if err := s.d.reserve(n, s.reserved); err != nil {
		return err
	}
	s.reserved += n
	s.owes.Add(n + blockSlack)
	return nil
}

// create opens the file that is written.
func (s *diskStage) create(flag int) error {
	err := s.d.do("create", s.path, func() (err error) {
		s.f, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|flag, 0o600)
		return err
	})
	if err == nil {
		return nil
	}
	if s.f != nil { // made, and we were told otherwise
		s.f.Close()
		os.Remove(s.path)
		s.f = nil
	}
	return s.d.noRoom(err, "begin a file in the disk tier")
}

// wrote notes that n reserved bytes are on the disk.
func (s *diskStage) wrote(n int64) {
	s.owes.Add(-n)
	s.d.owed.Add(-n)
}

// unreserve gives up what is reserved.
func (s *diskStage) unreserve() {
	s.d.owed.Add(-s.owes.Swap(0))
	s.d.unreserve(s.reserved)
	s.reserved = 0
}

// Write implements registry.Stage.
func (s *diskStage) Write(p []byte) (int, error) {
	if need := fileSize(s.n.Load() + int64(len(p))); need > s.reserved {
		if err := s.grow(max(need-s.reserved, reserveStep)); err != nil {
			return 0, err
		}
	}
	if err := s.d.write(s.f, s.path, p, s.n.Load()); err != nil {
		return 0, err
	}
	s.wrote(int64(len(p)))
	s.hash.Write(p)
	s.sum(p)
	s.n.Add(int64(len(p)))
	return len(p), nil
}

// sum adds p to the checksums of its chunks.
func (s *diskStage) sum(p []byte) {
	at := s.n.Load() % chunkBytes
	for len(p) > 0 {
		part := p[:min(int64(len(p)), chunkBytes-at)]
		s.crc = crc32.Update(s.crc, castagnoli(), part)
		p = p[len(part):]
		if at += int64(len(part)); at == chunkBytes {
			s.sums = append(s.sums, s.crc)
			s.crc, at = 0, 0
		}
	}
}

// ReadAt implements registry.Stage.
func (s *diskStage) ReadAt(p []byte, off int64) (int, error) {
	rest := s.n.Load() - off
	if rest >= int64(len(p)) {
		return s.f.ReadAt(p, off)
	}
	n, err := s.f.ReadAt(p[:max(rest, 0)], off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// File implements registry.FileStage. The name in /proc still leads to the
// file after it was renamed, evicted or removed.
func (s *diskStage) File() (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(s.f.Fd())))
}

// Commit implements registry.Stage.
func (s *diskStage) Commit(context.Context) (registry.Descriptor, error) {
	got, err := verify(s.expect, s.hash, s.n.Load())
	if err != nil {
		return registry.Descriptor{}, err
	}
	sums := s.sums
	if s.n.Load()%chunkBytes != 0 {
		sums = append(sums, s.crc)
	}
	if err := s.d.write(s.f, s.path, appendTail(nil, got.Digest, sums, s.n.Load()), s.n.Load()); err != nil {
		return registry.Descriptor{}, err
	}
	if s.d.o.Durable {
		if err := s.d.do("sync", s.path, s.f.Sync); err != nil {
			return registry.Descriptor{}, s.d.noRoom(err, "sync "+string(got.Digest))
		}
	}
	raw, _ := rawOf(got.Digest) // valid: it was just made
	e := newEntry(&raw, fileSize(got.Size))
	err = s.d.admit(s.path, e, s.reserved)
	s.d.owed.Add(-s.owes.Swap(0))
	s.reserved = 0
	if err != nil {
		return registry.Descriptor{}, err
	}
	s.path = ""
	// The state is taken after the rename, which changes ctime.
	if info, err := s.f.Stat(); err == nil {
		e.checked.Store(&checked{state: s.d.state(info), at: time.Now()})
	}
	return got, nil
}

// Close implements registry.Stage.
func (s *diskStage) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if s.path != "" && !s.d.dead.Load() {
		os.Remove(s.path)
	}
	err := s.f.Close()
	s.unreserve() // not sooner: until it is closed its bytes take room
	return err
}
