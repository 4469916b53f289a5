package cachetiers

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// DiskOptions are a Disk's settings; the zero value is right but for Limit.
type DiskOptions struct {
	// Limit is the most bytes that committed blobs take, checksums included.
	// Fills in flight come on top, together at most Limit again. With Durable
	// it may be 0, for no limit but the file system's.
	Limit int64
	// Durable makes it a store that may hold the only copy; see Disk.
	Durable bool
	// Reserve is how many bytes of the file system are left free; 0: 64 MiB.
	// On a small one it is no more than a sixteenth.
	Reserve int64
	// Reverify is after how long bytes that were checked are checked again
	// when they are read; 0: 15 minutes. What is read for the first time since
	// the start, or has been changed by someone else, is always checked.
	Reverify time.Duration
	Log      *slog.Logger

	// trouble is told when the directory fails its user; nil: the log is. It is
	// called without locks held.
	trouble func(d *Disk, state DiskState, err error)
	// inject does an operation on files in a test's way; nil: as it is.
	inject func(op, path string, do func() error) error
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
//
// A Durable one may hold the only copy. Commit returns after file and directory
// are synced, and only then is the blob found. Nothing is evicted: without room
// a Stage is ErrNoRoom. A damaged blob is set aside, in damaged/, and then not
// found; one that the disk could not read is ErrUnavailable for half a minute.
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
	faults   []fault                 // guarded by mu; to be told of once it is not held
	gone     map[digest.Digest]bool  // guarded by mu; removed since loading began; nil once it is over, unless Durable
	whole    bool                    // guarded by mu; the index has all there is, and may be saved
	trusted  []fan                   // guarded by mu; directories that loading did not read, and nobody has since
	retry    map[*entry]time.Time    // guarded by mu; of a Durable one, what could not be read is let be until then

	owed atomic.Int64 // of what is reserved, what has not been written yet
	dead atomic.Bool  // set under mu; another Disk has the directory, or nobody
	told atomic.Int64 // when the log was last told of trouble, in Unix seconds

	dirs dirsSynced

	loaded chan struct{} // closed when the index is whole
	stop   chan struct{} // closed by Close
	ended  chan struct{} // closed when the background work has ended
	once   sync.Once
}

var _ registry.Store = (*Disk)(nil)

// OpenDisk opens the store in directory root, which it makes if need be. The
// caller sees to it that no other process uses it, and calls Close. What fills
// in one stream left over is removed; what fills in segments left is kept for
// the next of the same blob (partial.go).
//
// The store works at once, however many blobs an earlier run left: until the
// index of them is whole, a blob that is not in it is looked for on the disk.
func OpenDisk(root string, o DiskOptions) (*Disk, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, registry.Wrap(registry.ErrNoRoom, err, "make the disk tier's directory")
	}
	d, err := newDisk(root, o)
	if err == nil {
		go d.background()
	}
	return d, err
}

// newDisk is OpenDisk in a directory that there is, but for the index, which
// background makes and keeps.
func newDisk(root string, o DiskOptions) (*Disk, error) {
	if o.Durable && o.Limit == 0 {
		o.Limit = math.MaxInt64 / 4
	}
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
	keeps := o.Limit
	if o.Durable {
		keeps = 0
	}
	d := &Disk{root: root, o: o, entries: newShelf(keeps), parts: make(map[digest.Digest]*part), gone: make(map[digest.Digest]bool),
		loaded: make(chan struct{}), stop: make(chan struct{}), ended: make(chan struct{})}
	// What was kept can be served from a file system that is read-only.
	if err := os.RemoveAll(d.staging()); err != nil && !errors.Is(err, unix.EROFS) {
		return nil, registry.Wrap(registry.ErrNoRoom, err, "clear the disk tier's unfinished files")
	}
	for _, dir := range []string{d.staging(), d.blobs()} {
		if err := makeDir(dir); err != nil {
			return nil, registry.Wrap(registry.ErrNoRoom, err, "make the disk tier's directory")
		}
	}
	if err := d.loadParts(); err != nil {
		return nil, err
	}
	return d, d.makeStore()
}

func (d *Disk) staging() string { return filepath.Join(d.root, "staging") }
func (d *Disk) blobs() string   { return filepath.Join(d.root, "blobs") }

// path is where a blob is: blobs/sha256/ab/abcdef….
func (d *Disk) path(dg digest.Digest) string {
	alg, hexes, _ := strings.Cut(string(dg), ":")
	return filepath.Join(d.blobs(), alg, hexes[:2], hexes)
}

// makeDir makes one directory, if need be. What it is in must be there: the root
// may have gone with its disk, and must not come up where that was mounted.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// makeFan makes the directory of a blob.
func (d *Disk) makeFan(dir string) error {
	for _, dir := range []string{d.blobs(), filepath.Dir(dir), dir} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// Loaded is closed when the index is whole: then Bytes and Len are right, and
// the limit holds for what an earlier run left too.
func (d *Disk) Loaded() <-chan struct{} { return d.loaded }

// Close ends the background work and writes the index for the next run. What is
// open can be read on, and what is committed later is found by the next run.
func (d *Disk) Close() error {
	d.once.Do(func() { close(d.stop) })
	<-d.ended
	d.mu.Lock()
	whole := d.whole && !d.dead.Load()
	d.whole = false // from now on the directory may be another's
	d.mu.Unlock()
	if !whole {
		return nil
	}
	if err := d.saveIndex(); err != nil {
		d.o.Log.Warn("write the disk tier's index, the next start takes longer", "path", d.root, "err", err)
	}
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
	if e == nil && d.gone != nil && !d.dead.Load() {
		e = d.lateLocked(w.Digest)
	}
	var wait time.Time
	if e != nil {
		d.entries.touch(e)
		if wait = d.retry[e]; !wait.IsZero() && time.Now().After(wait) {
			delete(d.retry, e)
			wait = time.Time{}
		}
	}
	if d.dead.Load() || e != nil && e.pending {
		e = nil
	}
	d.mu.Unlock()
	if e == nil {
		return nil, registry.Errorf(registry.ErrNotFound, "%s is not on disk", w.Digest)
	}
	if !wait.IsZero() && time.Now().Before(wait) {
		return nil, registry.Errorf(registry.ErrUnavailable, "%s could not be read a moment ago", w.Digest)
	}
	b, err := d.openEntry(e, w)
	if errors.Is(err, registry.ErrCorrupt) {
		return nil, d.lose(e, err)
	}
	return b, err
}

// unlock unlocks d.mu and then removes what was evicted: removing a large file
// takes a while, and everyone who opens a blob needs the lock.
func (d *Disk) unlock() {
	trash, faults := d.trash, d.faults
	d.trash, d.faults = nil, nil
	d.mu.Unlock()
	for _, path := range trash {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, fault{err, true})
		}
	}
	for _, f := range faults {
		d.fault(f.err, f.writing)
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
	delete(d.retry, e)
	d.used -= e.size
	if d.gone != nil {
		d.gone[dg] = true
	}
	if d.dead.Load() {
		return // the directory is another's
	}
	path, aside := d.path(dg), d.nextLocked()
	if d.o.Durable {
		aside = d.asidePath(dg)
	}
	switch err := os.Rename(path, aside); {
	case err == nil && !d.o.Durable:
		d.trash = append(d.trash, aside)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		d.faults = append(d.faults, fault{err, true})
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
	for try := 1; ; try++ {
		// What had to go is gone once the lock is free, but others may have been
		// quicker to use its room, and who reads an evicted file keeps its room.
		if done, err := d.tryReserve(n, had, try == reserveTries); done || err != nil {
			return err
		}
	}
}

const (
	// reserveTries is how often room is looked for.
	reserveTries = 4
	// blockSlack is what a file takes beside its bytes, at most: its last block
	// and what the file system notes of it.
	blockSlack = 16 << 10
)

// tryReserve reports whether there was room; if not, it has made some.
func (d *Disk) tryReserve(n, had int64, last bool) (done bool, err error) {
	d.mu.Lock()
	defer d.unlock()
	if d.dead.Load() {
		return false, registry.Errorf(registry.ErrNoRoom, "the disk has failed")
	}
	if d.o.Durable && n > d.o.Limit-d.used-d.inFlight {
		return false, registry.Errorf(registry.ErrNoRoom, "what is kept takes the store's limit of %d bytes already", d.o.Limit)
	}
	if d.inFlight+n > d.o.Limit && d.inFlight > had {
		return false, registry.Errorf(registry.ErrNoRoom, "fills in flight take the disk tier's limit of %d bytes already", d.o.Limit)
	}
	// Fills in flight are room that committed blobs give up beforehand, so that
	// the limit holds when they are committed. A blob over the limit will not be
	// kept, and nothing makes way for it.
	if had+n <= d.o.Limit {
		d.shrinkLocked(max(d.o.Limit-d.inFlight-n, 0))
	}
	// What others have reserved and not yet written is not free. It is looked at
	// first: what is written in between then counts twice and not never.
	owed := d.owed.Load()
	free, err := d.free()
	if err != nil {
		return false, registry.Wrap(registry.ErrNoRoom, err, "ask for the room on the disk")
	}
	free -= owed
	need := n + blockSlack
	if free >= need {
		d.inFlight += n
		d.owed.Add(need)
		return true, nil
	}
	// A file system full of other people's files is no reason to give up what
	// is here.
	mine := d.parked
	if !d.o.Durable {
		mine += d.used
	}
	if free+mine < need || last {
		err := registry.Errorf(registry.ErrNoRoom, "the file system of the disk tier is full")
		if free+mine < reserveStep {
			d.faults = append(d.faults, fault{unix.ENOSPC, true})
		}
		return false, err
	}
	if len(d.trash) == 0 { // else see first what removing that gives
		d.makeRoomLocked(need - free)
	}
	return false, nil
}

// free is how much of the file system may still be used.
func (d *Disk) free() (int64, error) {
	var st unix.Statfs_t
	if err := d.do("statfs", d.root, func() error { return unix.Statfs(d.root, &st) }); err != nil {
		err = gone{err}
		d.faults = append(d.faults, fault{err, false})
		return 0, err
	}
	return int64(st.Bavail)*st.Bsize - min(d.o.Reserve, int64(st.Blocks)*st.Bsize/16), nil
}

// makeRoomLocked evicts n bytes.
func (d *Disk) makeRoomLocked(n int64) {
	for n > 0 {
		if dg, p := d.oldestPartLocked(); p != nil {
			n -= p.bytes
			d.dropPartLocked(dg)
			continue
		}
		e := d.entries.victim()
		if e == nil {
			return
		}
		d.removeLocked(e)
		n -= e.size
	}
}

func (d *Disk) unreserve(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight -= n
}

// admit puts a verified file in its place.
func (d *Disk) admit(staged string, e *entry, reserved int64) error {
	if d.o.Durable {
		return d.admitDurable(staged, e, reserved)
	}
	dg := e.digest()
	path := d.path(dg)
	d.mu.Lock()
	defer d.unlock()
	d.inFlight -= reserved
	if d.dead.Load() {
		return registry.Errorf(registry.ErrNoRoom, "the disk has failed")
	}
	if old := d.entries.slot(e); old != nil {
		d.removeLocked(old)
	}
	if e.size > d.o.Limit {
		return os.Remove(staged) // passed through; those who read it read on
	}
	d.shrinkLocked(d.o.Limit - e.size)
	rename := func() error { return os.Rename(staged, path) }
	err := d.do("rename", path, rename)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.makeFan(filepath.Dir(path)); err == nil {
			err = d.do("rename", path, rename)
		}
	}
	if err != nil {
		// It may have happened nevertheless, and would be on nobody's account.
		os.Remove(path)
		d.faults = append(d.faults, fault{err, true})
		return registry.Wrap(registry.ErrNoRoom, err, "put "+string(dg)+" in its place")
	}
	d.entries.push(e)
	d.used += e.size
	return nil
}
