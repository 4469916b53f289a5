package cachetiers

import (
	"bytes"
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// loaders is how many directories are read at once: what it takes is system
// calls, and waiting for the disk.
const loaders = 8

// patrolEvery is how often the patrol reads a directory.
const patrolEvery = 100 * time.Millisecond

// A found is a file that an earlier run left and the index did not know.
type found struct {
	raw  rawDigest
	size int64
	at   time.Time
}

// background makes the index whole and keeps it, until Close.
func (d *Disk) background() {
	defer close(d.ended)
	d.load()
	close(d.loaded)
	d.patrol(patrolEvery)
	d.keepIndex()
}

// load makes the index of what an earlier run left, without reading any of it:
// from the index file, and from those directories that have changed since. The
// others are trusted, and the patrol's.
func (d *Disk) load() {
	begun := time.Now()
	x := d.readIndex()
	if x == nil {
		x = &indexed{}
	}
	isTrusted, trusted, changed := map[fan]bool{}, []fan(nil), []fan(nil)
	for _, f := range d.fans() {
		info, err := os.Stat(d.fanPath(f))
		if at := x.times[f]; err == nil && at != 0 && at == info.ModTime().UnixNano() {
			isTrusted[f] = true
			trusted = append(trusted, f)
		} else {
			changed = append(changed, f)
		}
	}
	known := make(map[fan][]*entry, len(changed)) // of x, in the directories that are read
	for _, e := range x.blobs {
		if f := (fan{e.kind, e.head[0]}); !isTrusted[f] {
			known[f] = append(known[f], e)
		}
	}
	fresh := d.walk(changed, known)
	// The oldest go first, as they would have without a restart.
	slices.SortFunc(fresh, func(a, b found) int {
		return cmp.Or(b.at.Compare(a.at), bytes.Compare(a.raw.sum[:], b.raw.sum[:]))
	})
	all := make([]*entry, 0, len(fresh)+len(x.blobs))
	for _, f := range fresh {
		all = append(all, newEntry(&f.raw, f.size))
	}
	for _, e := range x.blobs {
		if e.stamp != 0 || isTrusted[fan{e.kind, e.head[0]}] {
			all = append(all, e)
		}
	}
	d.takeIn(all, trusted)
	if len(all) > 0 {
		d.o.Log.Info("disk tier is warm", "blobs", len(all), "indexed", len(x.blobs), "directories read", len(changed),
			"took", time.Since(begun).String())
	}
}

// takeIn puts what an earlier run left behind what there is already, the first
// to go last, and then the index is whole, if it is right about trusted.
func (d *Disk) takeIn(all []*entry, trusted []fan) {
	d.mu.Lock()
	defer d.unlock()
	d.entries.now += uint32(len(all))
	for i, e := range all {
		if i%lockedFor == lockedFor-1 {
			d.mu.Unlock() // readers wait for it
			d.mu.Lock()
		}
		if d.entries.slot(e) == nil && (len(d.gone) == 0 || !d.gone[e.digest()]) {
			e.stamp = uint32(len(all) - i)
			d.entries.pushOld(e)
			d.used += e.size
		}
	}
	if !d.o.Durable { // the only copy is worth a look for each that is not found
		d.gone = nil
	}
	d.trusted = trusted
	select {
	case <-d.stop: // perhaps before all was found
	default:
		d.whole = true
	}
	d.shrinkLocked(max(d.o.Limit-d.inFlight, 0))
}

// walk finds the files in directories, several directories at a time, until
// Close. Of those that are known it sets the stamps.
func (d *Disk) walk(fans []fan, known map[fan][]*entry) (fresh []found) {
	dirs := make(chan fan)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range loaders {
		wg.Go(func() {
			for f := range dirs {
				some := d.read(f, known[f])
				mu.Lock()
				fresh = append(fresh, some...)
				mu.Unlock()
			}
		})
	}
	defer wg.Wait()
	defer close(dirs)
	for _, f := range fans {
		select {
		case dirs <- f:
		case <-d.stop:
			return
		}
	}
	return
}

// read finds the files of one directory.
func (d *Disk) read(f fan, known []*entry) (fresh []found) {
	at := make(map[rawDigest]*entry, len(known))
	for _, e := range known {
		at[e.raw()] = e
	}
	names := d.names(f)
	if len(names) > 0 && !d.settled(d.fanPath(f)) {
		return nil
	}
	for _, raw := range names {
		if e := at[raw]; e != nil {
			e.stamp = 1
			continue
		}
		if info, err := os.Lstat(d.path(raw.digest())); err == nil && info.Mode().IsRegular() { // else it has gone since
			fresh = append(fresh, found{raw, info.Size(), info.ModTime()})
		}
	}
	return fresh
}

// names are the blobs that have files in a directory.
func (d *Disk) names(f fan) (all []rawDigest) {
	dir, err := os.Open(d.fanPath(f))
	if err != nil {
		d.unread(err)
		return nil
	}
	defer dir.Close()
	files, err := dir.ReadDir(-1)
	if err != nil {
		d.unread(err)
	}
	all = make([]rawDigest, 0, len(files))
	for _, file := range files {
		raw, ok := rawOfHex(f.kind, file.Name())
		if !ok || raw.sum[0] != f.first || !file.Type().IsRegular() {
			d.o.Log.Warn("a file that is not a blob is in the disk tier", "path", filepath.Join(d.fanPath(f), file.Name()))
			continue
		}
		all = append(all, raw)
	}
	return all
}

// patrol reads the directories that loading trusted, one at a time, until
// Close: what the index did not know comes into it. It finds something only
// if someone restored files with their old times, or the clock was set. A
// Verify does not wait for it, and takes what is left of it away.
func (d *Disk) patrol(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-d.stop:
			return
		}
		if !d.lookNext() {
			return
		}
	}
}

// lookNext reads one of the directories that loading trusted; false if none is
// left.
func (d *Disk) lookNext() bool {
	d.mu.Lock()
	if len(d.trusted) == 0 || d.dead.Load() {
		d.mu.Unlock()
		return false
	}
	f := d.trusted[0]
	d.trusted = d.trusted[1:]
	d.mu.Unlock()
	for some := range slices.Chunk(d.names(f), lockedFor) {
		d.mu.Lock()
		for _, raw := range some {
			if !d.dead.Load() && d.entries.find(&raw) == nil {
				d.lateLocked(raw.digest())
			}
		}
		d.shrinkLocked(max(d.o.Limit-d.inFlight, 0))
		d.unlock()
	}
	return true
}

// lateLocked looks for a blob that the index may not have yet.
func (d *Disk) lateLocked(dg digest.Digest) *entry {
	if !registry.ValidDigest(dg) || d.gone[dg] {
		return nil
	}
	info, err := os.Lstat(d.path(dg))
	if err != nil || info.Mode().Type() != fs.FileMode(0) || !d.settled(filepath.Dir(d.path(dg))) {
		return nil
	}
	raw, _ := rawOf(dg)
	e := newEntry(&raw, info.Size())
	if d.entries.slot(e) != nil {
		return nil
	}
	d.entries.push(e)
	d.used += e.size
	return e
}
