package cachetiers

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// loaders is how many directories are read at once: what it takes is system
// calls, and waiting for the disk.
const loaders = 8

// A found is a file that an earlier run left.
type found struct {
	digest digest.Digest
	size   int64
	at     time.Time
}

// load makes the index of what an earlier run left, without reading any of it.
func (d *Disk) load() {
	defer close(d.loaded)
	begun := time.Now()
	all := d.walk()
	// The oldest go first, as they would have without a restart.
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(b.at.Compare(a.at), strings.Compare(string(a.digest), string(b.digest)))
	})
	d.mu.Lock()
	defer d.unlock()
	for _, f := range all {
		raw, _ := rawOf(f.digest)
		e := newEntry(&raw, f.size)
		if d.entries.slot(e) == nil && !d.gone[f.digest] {
			d.entries.pushOld(e)
			d.used += f.size
		}
	}
	d.gone = nil
	d.shrinkLocked(max(d.o.Limit-d.inFlight, 0))
	if len(all) > 0 {
		d.o.Log.Info("disk tier is warm", "blobs", d.entries.len(), "bytes", d.used, "took", time.Since(begun).String())
	}
}

// walk finds the files, several directories at a time, until Close.
func (d *Disk) walk() (all []found) {
	dirs := make(chan [2]string) // algorithm, directory
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range loaders {
		wg.Go(func() {
			for dir := range dirs {
				some := d.read(dir[0], dir[1])
				mu.Lock()
				all = append(all, some...)
				mu.Unlock()
			}
		})
	}
	defer wg.Wait()
	defer close(dirs)
	algorithms, err := os.ReadDir(d.blobs())
	if err != nil {
		d.o.Log.Error("read the disk tier", "err", err)
	}
	for _, alg := range algorithms {
		fans, err := os.ReadDir(filepath.Join(d.blobs(), alg.Name()))
		if err != nil {
			d.o.Log.Error("read the disk tier", "err", err)
		}
		for _, fan := range fans {
			select {
			case dirs <- [2]string{alg.Name(), filepath.Join(d.blobs(), alg.Name(), fan.Name())}:
			case <-d.stop:
				return
			}
		}
	}
	return
}

// read finds the files of one directory.
func (d *Disk) read(alg, dir string) (some []found) {
	files, err := os.ReadDir(dir)
	if err != nil {
		d.o.Log.Error("read the disk tier", "err", err)
	}
	for _, file := range files {
		dg := digest.Digest(alg + ":" + file.Name())
		if !file.Type().IsRegular() || !registry.ValidDigest(dg) || d.path(dg) != filepath.Join(dir, file.Name()) {
			d.o.Log.Warn("a file that is not a blob is in the disk tier", "path", filepath.Join(dir, file.Name()))
			continue
		}
		if info, err := file.Info(); err == nil { // else it has gone since
			some = append(some, found{dg, info.Size(), info.ModTime()})
		}
	}
	return some
}

// lateLocked looks for a blob that the index may not have yet.
func (d *Disk) lateLocked(dg digest.Digest) *entry {
	if !registry.ValidDigest(dg) || d.gone[dg] {
		return nil
	}
	info, err := os.Lstat(d.path(dg))
	if err != nil || info.Mode().Type() != fs.FileMode(0) {
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
