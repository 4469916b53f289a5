package cachetiers

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// A blob's file is its bytes, then the table: a CRC-32C, little-endian, for
// each chunk of 256 KiB, the last one shorter; then the footer:
//
//	0   8  the blob's size
//	8   4  the size of a chunk
//	12  4  CRC-32C of the table, the footer's first 12 bytes and the digest
//	16  8  the magic "weirblb1"
//
// The digest is in the last checksum so that a file under another blob's name
// is noticed.
//
// The table is behind the bytes so that a file is written in one pass and a
// run of the blob is a run of the file, which the kernel can send.
const (
	chunkBytes  = 256 << 10
	footerBytes = 24
	magic       = "weirblb1"
	// aheadBytes is how much is checked before it is sent, while a blob is
	// read that has not been checked lately: what was checked is still in the
	// page cache when the kernel sends it.
	aheadBytes = 16 * chunkBytes
)

// table is the read-only polynomial table of CRC-32C, which the CPU computes.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func chunksOf(size int64) int64 { return (size + chunkBytes - 1) / chunkBytes }

// fileSize is how long the file of a blob of size bytes is.
func fileSize(size int64) int64 { return size + 4*chunksOf(size) + footerBytes }

// blobSize is the reverse; ok is false if no blob's file is that long.
func blobSize(file int64) (size int64, ok bool) {
	n := file - footerBytes
	if n < 0 {
		return 0, false
	}
	chunks := (n + chunkBytes + 3) / (chunkBytes + 4)
	size = n - 4*chunks
	return size, size >= 0 && fileSize(size) == file
}

// appendTail appends table and footer for the blob dg of size bytes.
func appendTail(b []byte, dg digest.Digest, sums []uint32, size int64) []byte {
	start := len(b)
	for _, s := range sums {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, chunkBytes)
	b = binary.LittleEndian.AppendUint32(b, tailSum(b[start:], dg))
	return append(b, magic...)
}

func tailSum(b []byte, dg digest.Digest) uint32 {
	return crc32.Update(crc32.Checksum(b, castagnoli()), castagnoli(), []byte(dg))
}

// parseTail reads what appendTail wrote for the blob dg of size bytes.
func parseTail(b []byte, dg digest.Digest, size int64) ([]uint32, error) {
	n := 4 * chunksOf(size)
	if int64(len(b)) != n+footerBytes || string(b[n+16:]) != magic {
		return nil, registry.Errorf(registry.ErrCorrupt, "the file has no footer")
	}
	if binary.LittleEndian.Uint64(b[n:]) != uint64(size) || binary.LittleEndian.Uint32(b[n+8:]) != chunkBytes ||
		binary.LittleEndian.Uint32(b[n+12:]) != tailSum(b[:n+12], dg) {
		return nil, registry.Errorf(registry.ErrCorrupt, "the footer is damaged")
	}
	sums := make([]uint32, n/4)
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return sums, nil
}

// checked is what is known of a file since the start. It is replaced, never
// changed, so that the many files that were read once cost 40 bytes each.
type checked struct {
	state   uint64    // the hash of the fileState that this is true of
	at      time.Time // when the first of its chunks was checked
	pending *pending  // nil: all of it has been
}

// pending is which chunks of a file have been checked so far.
type pending struct {
	sums []uint32 // what each must have

	mu   sync.Mutex
	good []uint64 // guarded by mu; a bit a chunk
	left int64    // guarded by mu; chunks that are not good yet
}

// fileState changes whenever someone writes to a file, or puts another in its
// place: even who sets the modification time back cannot set ctime back.
type fileState struct {
	ino   uint64
	size  int64
	mtime int64
	ctime int64
}

func stateOf(info fs.FileInfo) fileState {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{size: info.Size(), mtime: info.ModTime().UnixNano()}
	}
	return fileState{ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}
}

// state is the hash of a file's state.
func (d *Disk) state(info fs.FileInfo) uint64 {
	return maphash.Comparable(d.entries.seed, stateOf(info))
}

// openEntry opens a run of e's blob; ErrCorrupt if it is damaged.
func (d *Disk) openEntry(e *entry, w registry.Want) (registry.Blob, error) {
	var f *os.File
	path := d.path(w.Digest)
	err := d.do("open", path, func() (err error) {
		f, err = os.Open(path)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.there(); err != nil {
			return nil, registry.Wrap(registry.ErrUnavailable, err, "open "+string(w.Digest))
		}
		return nil, registry.Errorf(registry.ErrCorrupt, "the file is missing")
	}
	if errors.Is(err, fs.ErrPermission) {
		// Left by a weir that ran as another user: the file is no use, the disk is.
		return nil, registry.Wrap(registry.ErrCorrupt, err, "open "+string(w.Digest))
	}
	if err != nil {
		d.fault(err, false)
		return nil, registry.Wrap(registry.ErrUnavailable, err, "open "+string(w.Digest))
	}
	b, err := d.openFile(f, e, w)
	if err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

func (d *Disk) openFile(f *os.File, e *entry, w registry.Want) (*diskBlob, error) {
	info, err := f.Stat()
	if err != nil {
		d.fault(err, false)
		return nil, registry.Wrap(registry.ErrUnavailable, err, "stat "+string(w.Digest))
	}
	size, ok := blobSize(info.Size())
	if !ok || info.Size() != e.size {
		return nil, registry.Errorf(registry.ErrCorrupt, "the file has %d bytes instead of %d", info.Size(), e.size)
	}
	offset, length, ok := w.Clip(size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is past the end of %s", w.Offset, w.Digest)
	}
	b := &diskBlob{d: d, e: e, f: f, desc: w.Descriptor, size: size, offset: offset, length: length, at: offset}
	b.desc.Size = size
	if b.known, err = d.known(d.reader(f), e, d.state(info), size, w.Digest); err != nil {
		return nil, err
	}
	// A small blob is checked before anything of it is given away.
	if b.known.pending != nil && length <= aheadBytes {
		if err := b.check(offset, length); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// known is what is known of e's file, which is f. What was found out too long
// ago, or of another state of the file, is forgotten.
func (d *Disk) known(f io.ReaderAt, e *entry, state uint64, size int64, dg digest.Digest) (*checked, error) {
	c := e.checked.Load()
	if c != nil && c.state == state && time.Since(c.at) <= d.o.Reverify {
		return c, nil
	}
	tail := make([]byte, e.size-size)
	if _, err := f.ReadAt(tail, size); err != nil {
		return nil, registry.Wrap(registry.ErrCorrupt, err, "read the file's footer")
	}
	sums, err := parseTail(tail, dg, size)
	if err != nil {
		return nil, err
	}
	next := &checked{state: state, at: time.Now()}
	if len(sums) > 0 {
		next.pending = &pending{sums: sums, good: make([]uint64, (len(sums)+63)/64), left: int64(len(sums))}
	}
	if e.checked.CompareAndSwap(c, next) {
		return next, nil
	}
	// Someone else has begun too. If it was of another state, next is still
	// true of f, which is open.
	if c = e.checked.Load(); c.state == state {
		return c, nil
	}
	return next, nil
}

// sum is what chunk i must have; known reports that it has been checked.
func (p *pending) sum(i int64) (sum uint32, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sums[i], p.good[i/64]&(1<<(i%64)) != 0
}

// mark notes that chunk i is good, and reports whether all are.
func (p *pending) mark(i int64) (all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bit := uint64(1) << (i % 64); p.good[i/64]&bit == 0 {
		p.good[i/64] |= bit
		p.left--
	}
	return p.left == 0
}

// diskBlob is an open run of a file.
type diskBlob struct {
	d              *Disk
	e              *entry
	f              *os.File
	desc           registry.Descriptor
	size           int64
	offset, length int64
	at             int64 // where the next byte is
	sure           int64 // up to where the run has been checked, at least
	known          *checked
	closed         bool
}

var _ registry.Blob = (*diskBlob)(nil)

// Descriptor implements registry.Blob.
func (b *diskBlob) Descriptor() registry.Descriptor { return b.desc }

// Span implements registry.Blob.
func (b *diskBlob) Span() (int64, int64) { return b.offset, b.length }

// Via implements registry.Blob.
func (b *diskBlob) Via() registry.Via {
	if b.d.o.Durable {
		return registry.Via{Detail: "origin"}
	}
	return registry.Via{Detail: "disk"}
}

// Close implements registry.Blob.
func (b *diskBlob) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	return b.f.Close()
}

// check verifies the chunks that hold n bytes from off on.
func (b *diskBlob) check(off, n int64) error {
	var buf []byte
	p := b.known.pending
	for i := off / chunkBytes; i*chunkBytes < off+n; i++ {
		want, known := p.sum(i)
		if known {
			continue
		}
		if buf == nil {
			buf = make([]byte, min(chunkBytes, b.size))
		}
		chunk := buf[:min(chunkBytes, b.size-i*chunkBytes)]
		if _, err := b.d.reader(b.f).ReadAt(chunk, i*chunkBytes); err != nil {
			return b.damaged(registry.Wrap(registry.ErrCorrupt, err, "read a chunk of "+string(b.desc.Digest)))
		}
		if crc32.Checksum(chunk, castagnoli()) != want {
			return b.damaged(registry.Errorf(registry.ErrCorrupt, "chunk %d of %s is damaged", i, b.desc.Digest))
		}
		if p.mark(i) {
			// The sums have done their work. They are needed again when the file is
			// read after it has changed, or after a while.
			b.e.checked.CompareAndSwap(b.known, &checked{state: b.known.state, at: b.known.at})
		}
	}
	b.sure = max(b.sure, off+n)
	return nil
}

// damaged sees that the next reader gets the blob from elsewhere.
func (b *diskBlob) damaged(err error) error {
	b.d.lose(b.e, err)
	return err
}

// ready makes sure of some bytes at b.at and returns how many.
func (b *diskBlob) ready() (int64, error) {
	rest := b.offset + b.length - b.at
	if rest <= 0 || b.known.pending == nil {
		return max(rest, 0), nil
	}
	if b.sure <= b.at {
		if err := b.check(b.at, min(rest, aheadBytes)); err != nil {
			return 0, err
		}
	}
	return min(b.sure-b.at, rest), nil
}

// Read implements io.Reader.
func (b *diskBlob) Read(p []byte) (int, error) {
	n, err := b.ready()
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	m, err := b.d.reader(b.f).ReadAt(p[:min(int64(len(p)), n)], b.at)
	b.at += int64(m)
	if m > 0 {
		return m, nil
	}
	return 0, b.damaged(registry.Wrap(registry.ErrCorrupt, err, "read "+string(b.desc.Digest)))
}

// WriteTo implements io.WriterTo: the kernel copies from file to socket.
func (b *diskBlob) WriteTo(w io.Writer) (written int64, err error) {
	to, ok := w.(io.ReaderFrom)
	if !ok {
		return io.Copy(w, readerOnly{b})
	}
	if _, err := b.f.Seek(b.at, io.SeekStart); err != nil {
		return 0, registry.Wrap(registry.ErrUnavailable, err, "seek in "+string(b.desc.Digest))
	}
	for {
		n, err := b.ready()
		if err != nil || n == 0 {
			return written, err
		}
		m, err := to.ReadFrom(&io.LimitedReader{R: b.f, N: n})
		written += m
		b.at += m
		if unreadable(err) {
			return written, b.damaged(registry.Wrap(registry.ErrCorrupt, err, "read "+string(b.desc.Digest)))
		}
		if err != nil {
			return written, err
		}
		if m != n {
			return written, b.damaged(registry.Errorf(registry.ErrCorrupt, "%s ended early", b.desc.Digest))
		}
	}
}
