package cachetiers

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// DiskOptions are a Disk's settings; the zero value is right but for Limit.
type DiskOptions struct {
	// Limit is the most bytes that committed blobs take, checksums included.
	// Fills in flight come on top, together at most Limit again.
	Limit int64
	// Reserve is how many bytes of the file system are left free; 0: 64 MiB.
	// On a small one it is no more than a sixteenth.
	Reserve int64
	// Reverify is after how long bytes that were checked are checked again
	// when they are read; 0: 15 minutes. What is read for the first time since
	// the start, or has been changed by someone else, is always checked.
	Reverify time.Duration
	Log      *slog.Logger
}

// Disk is a Store of blobs in a directory, one file each: the bytes, then a
// CRC-32C for each 256 KiB of them, so that a flipped bit, a truncated or a
// missing file is noticed without hashing whole blobs: what is read first is
// checked first. A damaged blob is dropped and then not found.
//
// Files are renamed into place when their digest has been verified, and not
// synced: after a power cut a file may be short or empty, which the checks
// notice. It is a cache; nothing in it is the only copy. What is there when it
// is opened is served again.
type Disk struct {
	root string
	o    DiskOptions

	mu       sync.Mutex
	entries  *shelf                  // guarded by mu
	used     int64                   // guarded by mu; bytes of committed files
	inFlight int64                   // guarded by mu; bytes reserved by stages
	parts    map[digest.Digest]*part // guarded by mu; fills of segments, cut off or running
	parked   int64                   // guarded by mu; bytes of those that were cut off
	seq      uint64                  // guarded by mu; names for staged files
	trash    []string                // guarded by mu; files to remove once it is not held
	gone     map[digest.Digest]bool  // guarded by mu; removed since loading began, nil once it is over
	whole    bool                    // guarded by mu; the index has all there is, and may be saved

	loaded chan struct{} // closed when the index is whole
	stop   chan struct{} // closed by Close
	ended  chan struct{} // closed when the background work has ended
	once   sync.Once
}

var _ registry.Store = (*Disk)(nil)

// OpenDisk opens the store in directory root, which it makes if need be. The
// caller sees to it that no other process uses it, and calls Close. Files left
// over from fills that were cut off are removed.
//
// The store works at once, however many blobs an earlier run left: until the
// index of them is whole, a blob that is not in it is looked for on the disk.
func OpenDisk(root string, o DiskOptions) (*Disk, error) {
	if o.Limit <= 0 {
		return nil, registry.Errorf(registry.ErrInvalid, "a disk tier needs a limit")
	}
	if o.Reserve <= 0 {
		o.Reserve = 64 << 20
	}
	if o.Reverify <= 0 {
		o.Reverify = 15 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Disk{root: root, o: o, entries: newShelf(o.Limit), parts: make(map[digest.Digest]*part), gone: make(map[digest.Digest]bool),
		loaded: make(chan struct{}), stop: make(chan struct{}), ended: make(chan struct{})}
	if err := os.RemoveAll(d.staging()); err != nil {
		return nil, registry.Wrap(registry.ErrNoRoom, err, "clear the disk tier's unfinished files")
	}
	for _, dir := range []string{d.staging(), d.blobs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, registry.Wrap(registry.ErrNoRoom, err, "make the disk tier's directory")
		}
	}
	if err := d.loadParts(); err != nil {
		return nil, err
	}
	go d.background()
	return d, nil
}

func (d *Disk) staging() string { return filepath.Join(d.root, "staging") }
func (d *Disk) blobs() string   { return filepath.Join(d.root, "blobs") }

// path is where a blob is: blobs/sha256/ab/abcdef….
func (d *Disk) path(dg digest.Digest) string {
	alg, hexes, _ := strings.Cut(string(dg), ":")
	return filepath.Join(d.blobs(), alg, hexes[:2], hexes)
}

// Loaded is closed when the index is whole: then Bytes and Len are right, and
// the limit holds for what an earlier run left too.
func (d *Disk) Loaded() <-chan struct{} { return d.loaded }

// Close ends the background work and writes the index for the next run. What is
// open can be read on, and what is committed later is found by the next run.
func (d *Disk) Close() error {
	d.once.Do(func() {
		close(d.stop)
		<-d.ended
		d.mu.Lock()
		whole := d.whole
		d.mu.Unlock()
		if !whole {
			return
		}
		if err := d.saveIndex(); err != nil {
			d.o.Log.Warn("write the disk tier's index, the next start takes longer", "err", err)
		}
	})
	return nil
}

// Bytes is how much committed blobs take.
func (d *Disk) Bytes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// Len is how many blobs there are.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries.len()
}

// Open implements registry.Source.
func (d *Disk) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	d.mu.Lock()
	e := d.entries.get(w.Digest)
	if e == nil && d.gone != nil {
		e = d.lateLocked(w.Digest)
	}
	if e != nil {
		d.entries.touch(e)
	}
	d.mu.Unlock()
	if e == nil {
		return nil, registry.Errorf(registry.ErrNotFound, "%s is not on disk", w.Digest)
	}
	b, err := d.openEntry(e, w)
	if errors.Is(err, registry.ErrCorrupt) {
		if d.drop(e) { // else it was evicted just now
			d.o.Log.Warn("damaged blob dropped", "digest", w.Digest, "err", err)
		}
		return nil, registry.Wrap(registry.ErrNotFound, &registry.Error{Kind: registry.ErrNotFound, Err: err}, "open "+string(w.Digest))
	}
	return b, err
}

// unlock unlocks d.mu and then removes what was evicted: removing a large file
// takes a while, and everyone who opens a blob needs the lock.
func (d *Disk) unlock() {
	trash := d.trash
	d.trash = nil
	d.mu.Unlock()
	for _, path := range trash {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.o.Log.Error("remove a blob from the disk tier", "path", path, "err", err)
		}
	}
}

// nextLocked is a path in the staging directory that is nobody's.
func (d *Disk) nextLocked() string {
	d.seq++
	return filepath.Join(d.staging(), strconv.FormatUint(d.seq, 36))
}

// drop removes a blob that is damaged or gone, and reports whether it was there.
func (d *Disk) drop(e *entry) bool {
	d.mu.Lock()
	defer d.unlock()
	if d.entries.slot(e) != e {
		return false
	}
	d.removeLocked(e)
	return true
}

// removeLocked takes e out of the index, and its file out of its place, which
// may be another's as soon as the lock is free. Readers that have it open read
// on.
func (d *Disk) removeLocked(e *entry) {
	dg := e.digest()
	d.entries.remove(e)
	d.used -= e.size
	if d.gone != nil {
		d.gone[dg] = true
	}
	path, aside := d.path(dg), d.nextLocked()
	switch err := os.Rename(path, aside); {
	case err == nil:
		d.trash = append(d.trash, aside)
	case !errors.Is(err, fs.ErrNotExist):
		d.o.Log.Error("take a blob out of the disk tier", "digest", dg, "err", err)
	}
}

// shrinkLocked evicts until committed blobs, and fills that were cut off, take
// at most limit bytes; those go first.
func (d *Disk) shrinkLocked(limit int64) {
	for d.used+d.parked > limit {
		if dg, p := d.oldestPartLocked(); p != nil {
			d.dropPartLocked(dg)
			continue
		}
		e := d.entries.victim()
		if e == nil {
			return
		}
		d.removeLocked(e)
	}
}

// reserve makes room for n more bytes of a stage that has reserved had so far.
func (d *Disk) reserve(n, had int64) error {
	d.mu.Lock()
	defer d.unlock()
	if d.inFlight+n > d.o.Limit && d.inFlight > had {
		return registry.Errorf(registry.ErrNoRoom, "fills in flight take the disk tier's limit of %d bytes already", d.o.Limit)
	}
	// Fills in flight are room that committed blobs give up beforehand, so that
	// the limit holds when they are committed. A blob over the limit will not be
	// kept, and nothing makes way for it.
	if had+n <= d.o.Limit {
		d.shrinkLocked(max(d.o.Limit-d.inFlight-n, 0))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		d.inFlight += n
		return nil // what statfs cannot tell, the write will
	}
	// A file system full of other people's files is no reason to give up what
	// is here.
	free := int64(st.Bavail)*st.Bsize - min(d.o.Reserve, int64(st.Blocks)*st.Bsize/16)
	if free+d.used+d.parked < n {
		return registry.Errorf(registry.ErrNoRoom, "the file system of the disk tier is full")
	}
	for free < n {
		if dg, p := d.oldestPartLocked(); p != nil {
			free += p.bytes
			d.dropPartLocked(dg)
			continue
		}
		e := d.entries.victim()
		d.removeLocked(e)
		free += e.size
	}
	d.inFlight += n
	return nil
}

func (d *Disk) unreserve(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight -= n
}

// admit puts a verified file in its place.
func (d *Disk) admit(staged string, e *entry, reserved int64) error {
	dg := e.digest()
	path := d.path(dg)
	d.mu.Lock()
	defer d.unlock()
	d.inFlight -= reserved
	if old := d.entries.slot(e); old != nil {
		d.removeLocked(old)
	}
	if e.size > d.o.Limit {
		return os.Remove(staged) // passed through; those who read it read on
	}
	d.shrinkLocked(d.o.Limit - e.size)
	err := os.Rename(staged, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.Rename(staged, path)
		}
	}
	if err != nil {
		return registry.Wrap(registry.ErrNoRoom, err, "put "+string(dg)+" in its place")
	}
	d.entries.push(e)
	d.used += e.size
	return nil
}
