package cachetiers

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// What a Durable store does so that what it has acknowledged survives a power
// cut, in this order: the file's bytes are synced; the directory it goes to is
// made and the directories above that one are synced; the file is renamed; its
// directory is synced; the blob is found. Whatever of this fails, or is said to
// have failed, the blob is not acknowledged; what then is in its place all the
// same is a whole file.

// dirsSynced are the directories that are known to be there after a power cut.
// One that merely exists is not: whoever made it may not have come to sync it.
type dirsSynced struct {
	mu   sync.Mutex
	done map[string]bool // guarded by mu
	old  map[string]bool // guarded by mu; with all that was in them at the start
}

func (d *Disk) aside() string { return filepath.Join(d.root, "damaged") }

// makeStore makes the directories of a Durable store, and sees that they stay.
func (d *Disk) makeStore() error {
	if !d.o.Durable {
		return nil
	}
	err := makeDir(d.aside())
	for _, dir := range []string{d.root, filepath.Dir(d.root)} {
		if err == nil {
			err = d.syncDir(dir)
		}
	}
	return registry.Wrap(registry.ErrNoRoom, err, "make the store's directory")
}

// settled makes the names that an earlier process gave in dir as durable as they
// look, and reports whether they are: killed between a rename and a sync, it left
// what is found and may yet be lost. What the index has of a directory that has
// not changed since was durable when it was noted.
func (d *Disk) settled(dir string) bool {
	if !d.o.Durable {
		return true
	}
	d.dirs.mu.Lock()
	defer d.dirs.mu.Unlock()
	if d.dirs.old[dir] {
		return true
	}
	err := d.makeDirLocked(dir)
	if err == nil {
		err = d.syncDir(dir)
	}
	if err != nil {
		d.o.Log.Error("sync a directory of the store", "path", dir, "err", err)
		return false
	}
	if d.dirs.old == nil {
		d.dirs.old = map[string]bool{}
	}
	d.dirs.old[dir] = true
	return true
}

// syncDir makes what was renamed and made in dir durable.
func (d *Disk) syncDir(dir string) error {
	return d.do("syncdir", dir, func() error {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// makeDurable makes dir, below blobs/, and sees that it stays.
func (d *Disk) makeDurable(dir string) error {
	d.dirs.mu.Lock()
	defer d.dirs.mu.Unlock()
	return d.makeDirLocked(dir)
}

func (d *Disk) makeDirLocked(dir string) error {
	if d.dirs.done[dir] {
		return nil
	}
	err := d.do("mkdir", dir, func() error { return d.makeFan(dir) })
	for at := dir; err == nil && at != d.blobs(); {
		at = filepath.Dir(at)
		err = d.syncDir(at)
	}
	if err != nil {
		return err
	}
	if d.dirs.done == nil {
		d.dirs.done = map[string]bool{}
	}
	d.dirs.done[dir] = true
	return nil
}

// admitDurable puts a verified and synced file in its place for good. One that
// is there already is replaced, so that there is no moment without.
func (d *Disk) admitDurable(staged string, e *entry, reserved int64) error {
	dg := e.digest()
	path := d.path(dg)
	made := d.makeDurable(filepath.Dir(path))
	d.mu.Lock()
	d.inFlight -= reserved
	old, err := d.entries.slot(e), made
	if old == nil {
		old = d.lateLocked(dg) // an earlier run may have acknowledged it
	}
	if err == nil {
		err = d.do("rename", path, func() error { return os.Rename(staged, path) })
	}
	if err == nil {
		e.pending = old == nil || old.pending
		if old != nil {
			d.entries.remove(old)
			delete(d.retry, old)
			d.used -= old.size
		}
		d.entries.push(e)
		d.used += e.size
	} else if old == nil {
		d.gone[dg] = true // it may have happened nevertheless
	}
	d.unlock()
	if err != nil {
		return d.noRoom(err, "put "+string(dg)+" in its place")
	}
	err = d.syncDir(filepath.Dir(path))
	d.mu.Lock()
	now := d.entries.slot(e)
	switch {
	case now == nil:
	case err == nil:
		// If it is not e it has been renamed over e since, and is synced too:
		// whichever of them a power cut leaves, the name leads to the blob.
		now.pending = false
	case now == e && e.pending:
		d.entries.remove(e)
		d.used -= e.size
		d.gone[dg] = true // not to be found by loading or looking either
	}
	d.unlock()
	return d.noRoom(err, "sync the directory of "+string(dg))
}
