package cachetiers

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// A DiskState says what a directory is good for.
type DiskState string

// The states there are, from good to bad.
const (
	// DiskWorks: it can be read and written.
	DiskWorks DiskState = "ok"
	// DiskFull: its file system is full of what is not weir's. What it holds is
	// served.
	DiskFull DiskState = "full"
	// DiskReadOnly: it cannot be written. What it holds is served.
	DiskReadOnly DiskState = "read-only"
	// DiskFailed: it is not there, or cannot be read. It is not used.
	DiskFailed DiskState = "failed"
)

// badness puts states in order.
func (s DiskState) badness() int {
	switch s {
	case DiskFull:
		return 1
	case DiskReadOnly:
		return 2
	case DiskFailed:
		return 3
	}
	return 0
}

// A fault is an operation on files that failed.
type fault struct {
	err     error
	writing bool
}

// gone is the failure of something that is always there, so that even "no such
// file" means that the directory has failed.
type gone struct{ error }

func (g gone) Unwrap() error { return g.error }

// stateAfter is what a directory is good for after a fault in it. Faults that
// are the process's own (too many files, no memory), or one file's, say nothing.
func stateAfter(f fault) DiskState {
	is := func(errs ...error) bool {
		for _, err := range errs {
			if errors.Is(f.err, err) {
				return true
			}
		}
		return false
	}
	switch {
	case f.err == nil:
		return DiskWorks
	case errors.As(f.err, new(gone)), is(unix.ENODEV, unix.ENXIO, unix.ESTALE, unix.ENOTCONN, unix.ESHUTDOWN, unix.EUCLEAN):
		return DiskFailed
	case is(unix.EIO) && !f.writing:
		return DiskFailed
	case !f.writing:
		return DiskWorks
	case is(unix.ENOSPC, unix.EDQUOT):
		return DiskFull
	case is(unix.EIO, unix.EROFS, unix.EACCES, unix.EPERM):
		return DiskReadOnly
	case is(fs.ErrNotExist, unix.ENOTDIR):
		return DiskFailed // the directories it makes files in have gone
	}
	return DiskWorks
}

// unreadable reports whether err is of a disk that cannot be read.
func unreadable(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && stateAfter(fault{err, false}) == DiskFailed
}

// unread is told that a directory of blobs could not be read.
func (d *Disk) unread(err error) {
	if d.fault(err, false); stateAfter(fault{err, false}) == DiskWorks && !errors.Is(err, fs.ErrNotExist) {
		d.o.Log.Error("read the disk tier", "path", d.root, "err", err)
	}
}

// fault is told of every operation on files that failed, and passes on what it
// says of the directory. It is called without locks held.
func (d *Disk) fault(err error, writing bool) {
	state := stateAfter(fault{err, writing})
	if state == DiskWorks || d.dead.Load() {
		return
	}
	if d.o.trouble != nil {
		d.o.trouble(d, state, err)
		return
	}
	// Once a minute: everyone who asks for a blob may meet it.
	now, told := time.Now().Unix(), d.told.Load()
	if now-told >= 60 && d.told.CompareAndSwap(told, now) {
		d.o.Log.Error("the directory of a disk tier", "path", d.root, "state", state, "err", err)
	}
}

// noRoom is a failure to write: a disk that fails is no reason for readers to
// go without. It is nil for nil.
func (d *Disk) noRoom(err error, doing string) error {
	d.fault(err, true)
	return registry.Wrap(registry.ErrNoRoom, err, doing)
}

// there reports what is wrong with the directory when a file is missing in it;
// nil if that is all.
func (d *Disk) there() error {
	err := d.do("stat", d.blobs(), func() error {
		_, err := os.Lstat(d.blobs())
		return err
	})
	if err != nil {
		d.fault(gone{err}, false)
	}
	return err
}

// do does an operation on files.
func (d *Disk) do(op, path string, f func() error) error {
	if d.o.inject != nil {
		return d.o.inject(op, path, f)
	}
	return f()
}

// write writes p to the staged file f at off; ErrNoRoom if it cannot.
func (d *Disk) write(f *os.File, path string, p []byte, off int64) error {
	if d.dead.Load() {
		return registry.Errorf(registry.ErrNoRoom, "the disk has failed")
	}
	err := d.do("write", path, func() error {
		_, err := f.WriteAt(p, off)
		return err
	})
	return d.noRoom(err, "write to the disk tier")
}

// reader reads f.
func (d *Disk) reader(f *os.File) io.ReaderAt {
	if d.o.inject == nil {
		return f
	}
	return injectedReader{d, f}
}

type injectedReader struct {
	d *Disk
	f *os.File
}

// ReadAt implements io.ReaderAt.
func (r injectedReader) ReadAt(p []byte, off int64) (n int, err error) {
	err = r.d.do("read", r.f.Name(), func() (err error) {
		n, err = r.f.ReadAt(p, off)
		return err
	})
	if err != nil && err != io.EOF {
		n = 0
	}
	return n, err
}

// readAgain is after how long a blob is tried again that may be the only copy
// and could not be read.
const readAgain = 30 * time.Second

// lose is told that e cannot be given for err, an ErrCorrupt, and returns what
// Open says instead. What is damaged is dropped. What the disk cannot read is
// too, unless it may be the only copy: that stays for the next try.
func (d *Disk) lose(e *entry, err error) error {
	if unreadable(err) {
		defer d.fault(err, false) // after the drop, which a failed disk refuses
		if d.o.Durable {
			d.mu.Lock()
			if d.retry == nil {
				d.retry = map[*entry]time.Time{}
			}
			if d.entries.slot(e) == e {
				d.retry[e] = time.Now().Add(readAgain)
			}
			d.mu.Unlock()
			return &registry.Error{Kind: registry.ErrUnavailable, Text: "open " + string(e.digest()), Err: err}
		}
	}
	if d.drop(e) { // else it was evicted just now
		d.o.Log.Warn("damaged blob dropped", "path", d.root, "digest", e.digest(), "err", err)
	}
	return &registry.Error{Kind: registry.ErrNotFound, Text: "open " + string(e.digest()), Err: err}
}

// asidePath is where a damaged blob of a Durable store is kept.
func (d *Disk) asidePath(dg digest.Digest) string {
	return filepath.Join(d.aside(), filepath.Base(d.partPath(dg)))
}

// kill ends the use of a directory that has failed, which another Disk may open
// once it works again: from now on nothing is found here, nothing new is taken,
// and the directory is left alone. What is open reads on as far as it can.
func (d *Disk) kill() {
	d.mu.Lock()
	d.dead.Store(true)
	d.mu.Unlock()
	d.once.Do(func() { close(d.stop) })
}

// probe finds out whether the directory can be written and read, and has room.
func (d *Disk) probe() error {
	d.mu.Lock()
	path := d.nextLocked()
	d.mu.Unlock()
	data := []byte("weir looks whether this disk works\n")
	err := d.do("probe", path, func() error { return tryFile(path, data) })
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.unlock()
	free, err := d.free()
	if free += d.parked; !d.o.Durable {
		free += d.used
	}
	if err == nil && free < reserveStep {
		err = unix.ENOSPC
	}
	return err
}

// tryFile writes a file through to the disk, reads it back and removes it.
func tryFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(path)
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	back := make([]byte, len(data))
	if err == nil {
		_, err = f.ReadAt(back, 0)
	}
	if err == nil && !bytes.Equal(back, data) {
		err = unix.EIO
	}
	return err
}
