package cachetiers

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weir-registry/weir/registry"
)

// The index file spares the next run the looking at every file. It is written
// when the disk is closed, and now and then; the directories are the truth and
// it is only a memory of them. All numbers are little-endian:
//
//	0   8  the magic "weiridx1"
//	8   8  the inode of blobs/, so that a copied index is not taken for this disk's
//	16  4  how many directories
//	20  4  how many blobs
//
// For each directory: 1 byte of algorithm, 1 that its name says in hex, and 8
// of its modification time in nanoseconds, as it was before its blobs were
// noted. For each blob, what is to be evicted last first: 1 byte of algorithm,
// 1 of flags (the hits that count; 0x80: not on probation), 8 of the file's
// size, then the digest. At the end a CRC-32C of all this.
//
// A directory that has the same time as in the index has the same files. That
// holds because a time younger than settled when it was noted is noted as zero:
// within a clock tick a directory can change without its time changing.
//
// An index that is wrong nevertheless does no harm: a file that is not there
// is noticed when it is opened, one that is not in the index by the patrol
// that follows the loading.
const (
	indexMagic  = "weiridx1"
	indexHeader = 24
	indexDir    = 10
	indexBlob   = 10 // and the digest
	settled     = 2 * time.Second
	flagMain    = 0x80
	// saveEvery is how often the index is written while the disk changes.
	saveEvery = 10 * time.Minute
	// lockedFor is how many entries are taken in or noted under one lock.
	lockedFor = 2000
)

// fan is a directory of blobs: the algorithm and the first byte of a digest.
type fan struct{ kind, first uint8 }

func (d *Disk) fanPath(f fan) string {
	name, _ := algorithm(f.kind)
	return filepath.Join(d.blobs(), name, hexByte(f.first))
}

func hexByte(b byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[b>>4], digits[b&15]})
}

// fanOf is what the directory of that name under that algorithm's is.
func fanOf(alg, name string) (f fan, ok bool) {
	first, err := strconv.ParseUint(name, 16, 8)
	if err != nil || hexByte(byte(first)) != name {
		return f, false
	}
	for f.kind = range kinds {
		if known, _ := algorithm(f.kind); known == alg {
			f.first = byte(first)
			return f, true
		}
	}
	return f, false
}

// indexed is what an index file says.
type indexed struct {
	inode uint64
	times map[fan]int64 // of directories, when it was written
	blobs []*entry      // the one to be evicted last first
}

func (d *Disk) indexPath() string { return filepath.Join(d.root, "index") }

// inodeOf tells a directory from its copies; 0: not known.
func inodeOf(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// readIndex reads this disk's index; nil if there is none that can be used.
func (d *Disk) readIndex() *indexed {
	f, err := os.Open(d.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var x *indexed
	if err == nil {
		defer f.Close()
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil {
			x, err = parseIndex(f, info.Size())
		}
	}
	if err == nil && (x.inode == 0 || x.inode != inodeOf(d.blobs())) {
		err = registry.Errorf(registry.ErrInvalid, "it is another directory's")
	}
	if err != nil {
		d.o.Log.Warn("the disk tier's index cannot be used, every file is looked at", "err", err)
		return nil
	}
	return x
}

// parseIndex reads an index file of size bytes. Nothing of one that is damaged
// is used.
func parseIndex(file io.Reader, size int64) (*indexed, error) {
	damaged := registry.Errorf(registry.ErrCorrupt, "the index is damaged")
	sum := crc32.New(castagnoli())
	in := bufio.NewReaderSize(io.TeeReader(io.LimitReader(file, max(size-4, 0)), sum), 1<<18)
	head := make([]byte, indexHeader)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:8]) != indexMagic {
		return nil, registry.Errorf(registry.ErrCorrupt, "the index is damaged or of another version")
	}
	x := &indexed{inode: binary.LittleEndian.Uint64(head[8:]), times: map[fan]int64{}}
	dirs, blobs := int64(binary.LittleEndian.Uint32(head[16:])), int64(binary.LittleEndian.Uint32(head[20:]))
	// What is to come is at least so long: the numbers are no one's to believe.
	if dirs*indexDir+blobs*(indexBlob+20) > size {
		return nil, damaged
	}
	var b [indexBlob + 64]byte
	for range dirs {
		if _, err := io.ReadFull(in, b[:indexDir]); err != nil || b[0] >= kinds {
			return nil, damaged
		}
		x.times[fan{b[0], b[1]}] = int64(binary.LittleEndian.Uint64(b[2:]))
	}
	if int64(len(x.times)) != dirs {
		return nil, damaged
	}
	x.blobs = make([]*entry, 0, blobs)
	for range blobs {
		if _, err := io.ReadFull(in, b[:indexBlob]); err != nil || b[0] >= kinds {
			return nil, damaged
		}
		raw := rawDigest{kind: b[0]}
		_, n := algorithm(raw.kind)
		if _, err := io.ReadFull(in, raw.sum[:n]); err != nil {
			return nil, damaged
		}
		bytes := int64(binary.LittleEndian.Uint64(b[2:]))
		e := newEntry(&raw, bytes)
		if e.uses = b[1] &^ flagMain; b[1]&flagMain != 0 {
			e.queue = inMain
		}
		if _, ok := blobSize(bytes); !ok || e.uses > diskUses {
			return nil, damaged
		}
		x.blobs = append(x.blobs, e)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, damaged
	}
	if _, err := io.ReadFull(file, b[:4]); err != nil || binary.LittleEndian.Uint32(b[:]) != sum.Sum32() {
		return nil, damaged
	}
	return x, nil
}

// noted is what of an entry the index says, as it was at one moment.
type noted struct {
	e     *entry
	stamp uint32
	flags uint8
}

// writeIndex writes an index file.
func writeIndex(w io.Writer, inode uint64, times map[fan]int64, blobs []noted) error {
	sum := crc32.New(castagnoli())
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<18)
	b := append(make([]byte, 0, indexBlob+64), indexMagic...)
	b = binary.LittleEndian.AppendUint64(b, inode)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(times)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(blobs)))
	_, err := out.Write(b)
	for f, at := range times {
		b = binary.LittleEndian.AppendUint64(append(b[:0], f.kind, f.first), uint64(at))
		if err == nil {
			_, err = out.Write(b)
		}
	}
	for _, n := range blobs {
		raw := n.e.raw()
		_, long := algorithm(raw.kind)
		b = binary.LittleEndian.AppendUint64(append(b[:0], raw.kind, n.flags), uint64(n.e.size))
		if err == nil {
			_, err = out.Write(append(b, raw.sum[:long]...))
		}
	}
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		_, err = w.Write(binary.LittleEndian.AppendUint32(b[:0], sum.Sum32()))
	}
	return err
}

// saveIndex writes the index file beside the old one and puts it in its place.
// The index must be whole.
func (d *Disk) saveIndex() error {
	// The directories' times come first: what changes after them makes them
	// differ, and what changed before them is in the entries.
	times := d.fanTimes(time.Now())
	d.mu.Lock()
	path := d.nextLocked()
	blobs := make([]noted, 0, d.entries.len())
	for e := range d.entries.all() {
		if e.pending { // it may never be, or be in a moment: its directory is to be read
			times[fan{e.kind, e.head[0]}] = 0
			continue
		}
		flags := e.uses
		if e.queue == inMain {
			flags |= flagMain
		}
		if blobs = append(blobs, noted{e, e.stamp, flags}); len(blobs)%lockedFor == 0 {
			d.mu.Unlock() // readers wait for it
			d.mu.Lock()
		}
	}
	now := d.entries.now
	d.mu.Unlock()
	// The order by stamps is the order in which the hands will come by: what
	// they have just passed over goes last.
	slices.SortFunc(blobs, func(a, b noted) int { return cmp.Compare(now-a.stamp, now-b.stamp) })
	var f *os.File
	err := d.ifMine(func() (err error) {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = errors.Join(writeIndex(f, inodeOf(d.blobs()), times, blobs), f.Close())
	return d.ifMine(func() error {
		if err == nil {
			err = os.Rename(path, d.indexPath())
		}
		if err != nil {
			os.Remove(path)
		}
		return err
	})
}

// ifMine does f unless the directory is another's now.
func (d *Disk) ifMine(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead.Load() {
		return registry.Errorf(registry.ErrNoRoom, "the disk has failed")
	}
	return f()
}

// fanTimes are the modification times of the directories there are.
func (d *Disk) fanTimes(now time.Time) map[fan]int64 {
	times := map[fan]int64{}
	for _, f := range d.fans() {
		if info, err := os.Stat(d.fanPath(f)); err == nil {
			times[f] = 0
			if at := info.ModTime(); now.Sub(at) > settled {
				times[f] = at.UnixNano()
			}
		}
	}
	return times
}

// fans are the directories there are.
func (d *Disk) fans() (all []fan) {
	algorithms, err := os.ReadDir(d.blobs())
	if err != nil {
		d.unread(gone{err})
	}
	for _, alg := range algorithms {
		dirs, err := os.ReadDir(filepath.Join(d.blobs(), alg.Name()))
		if err != nil && !errors.Is(err, syscall.ENOTDIR) {
			d.unread(err)
		}
		for _, dir := range dirs {
			if f, ok := fanOf(alg.Name(), dir.Name()); ok {
				all = append(all, f)
			} else {
				d.o.Log.Warn("a file that is not a blob is in the disk tier", "path", strings.Join([]string{d.blobs(), alg.Name(), dir.Name()}, "/"))
			}
		}
	}
	return all
}

// keepIndex writes the index now and then, if it has changed, until Close.
func (d *Disk) keepIndex() {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for saved := ^uint32(0); ; {
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
		d.mu.Lock()
		now := d.entries.now
		d.mu.Unlock()
		if now == saved {
			continue
		}
		saved = now
		if err := d.saveIndex(); err != nil {
			d.fault(err, true)
			d.o.Log.Warn("write the disk tier's index", "path", d.root, "err", err)
		}
	}
}
