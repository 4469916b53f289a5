package entitle

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// logBytes is how much may follow the snapshot in the file, at least, before
	// the file is written anew; else as much as the snapshot has.
	logBytes = 4 << 20
	// queueBytes is how much may wait to be written; beyond it the file is
	// written anew.
	queueBytes = 8 << 20
	// maxDelta bounds a delta in the file; one that is larger is not appended,
	// but the file written anew.
	maxDelta = 16 << 20
	// markEvery is how often the time of the last confirmation is written, at
	// most; with a short lease more often.
	markEvery = 5 * time.Second
)

// A file keeps the copy for the next start: a snapshot, and after it the deltas
// and marks since. It is written and synced by a goroutine of its own, some
// milliseconds after the copy has changed; what a kill or a power cut takes away
// is then the newest, and the rest an older version that is whole.
type file struct {
	path  string
	every time.Duration // between marks

	mu    sync.Mutex
	queue []registry.Delta
	bytes int  // in the queue
	anew  bool // the queue does not lead on from the file
	wake  chan struct{}

	// By the one goroutine that writes.
	f      *os.File // nil: to be written anew
	base   int64    // how long the snapshot is
	size   int64    // of the file
	marked time.Time
}

// A mark says when the copy was confirmed, and what time it was.
type mark struct {
	Version   uint64    `json:"version"`
	Hash      string    `json:"hash"`
	Confirmed time.Time `json:"confirmed,omitzero"`
	Seen      time.Time `json:"seen"`
}

// openFile begins with what the file has.
func (r *Replica) openFile() error {
	every := markEvery
	if r.o.MaxStaleness > 0 {
		every = max(min(every, r.o.MaxStaleness/4), 50*time.Millisecond)
	}
	r.file = &file{path: r.o.File, every: every, wake: make(chan struct{}, 1)}
	f, err := os.OpenFile(r.o.File, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// That it can be written shows now and not at the first change.
		probe, err := os.OpenFile(r.file.tmp(), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("keep the entitlements: %w", err)
		}
		return probe.Close()
	}
	if err != nil {
		return fmt.Errorf("read the entitlements kept here: %w", err)
	}
	c, m, err := r.file.load(f, r.configured, r.limits)
	if err != nil {
		_ = f.Close()
		if registry.KindOf(err) == nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the entitlements kept here: %w", err)
		}
		aside := r.o.File + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
		if rerr := os.Rename(r.o.File, aside); rerr != nil {
			return fmt.Errorf("set damaged entitlements aside: %w", rerr)
		}
		r.o.Meter.Event("entitlements damaged", "entitle")
		r.o.Log.Error("the entitlements kept here are damaged: they were set aside, and this node has none until it gets them anew",
			"file", r.o.File, "aside", aside, "err", err)
		return nil
	}
	r.report(c)
	r.view.Store(c.commit())
	r.restore(m.Confirmed, m.Seen)
	return nil
}

func (f *file) tmp() string { return f.path + ".new" }

// load reads the file, which it goes on to use if it is whole. What follows the
// snapshot may end within a frame, or in zeros: so a kill and a power cut leave it.
// Anything else that is wrong is an error.
func (f *file) load(file *os.File, configured []grant, l limits) (*change, mark, error) {
	in := &counter{r: bufio.NewReaderSize(file, 1<<20)}
	c, err := readSnapshot(in, configured, l, func(start) error { return nil })
	if err != nil {
		return nil, mark{}, err
	}
	f.base = in.n
	whole := in.n
	var m mark
	for {
		content, err := readFrame(in, maxDelta)
		if err == io.EOF {
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) || registry.KindOf(err) == registry.ErrCorrupt && blank(file, whole) {
			// Appending goes on where the last whole frame ends.
			if err := file.Truncate(whole); err != nil {
				return nil, mark{}, err
			}
			break
		}
		if err == nil {
			err = c.replay(content, &m, l)
		}
		if err != nil {
			return nil, mark{}, err
		}
		whole = in.n
	}
	if _, err := file.Seek(whole, io.SeekStart); err != nil {
		return nil, mark{}, err
	}
	f.f, f.size = file, whole
	return c, m, nil
}

// replay does what a frame behind the snapshot says.
func (c *change) replay(content []byte, m *mark, l limits) error {
	switch content[0] {
	case frameDelta:
		d, err := parseDelta(content)
		if err != nil {
			return err
		}
		// A gap is no reason to ask for more here, but damage.
		if err := c.apply([]registry.Delta{d}, l); err != nil {
			return registry.Errorf(registry.ErrCorrupt, "%v", err)
		}
		return nil
	case frameMark:
		var next mark
		if err := json.Unmarshal(content[1:], &next); err != nil {
			return registry.Errorf(registry.ErrCorrupt, "a mark makes no sense: %v", err)
		}
		if next.Version != c.version || next.Hash != c.hash.String() {
			return registry.Errorf(registry.ErrCorrupt, "there is version %d with the hash %v where it should be %d with %.64s", c.version, c.hash, next.Version, next.Hash)
		}
		if m.Seen.Before(next.Seen) {
			m.Seen = next.Seen
		}
		m.Confirmed = next.Confirmed
		return nil
	}
	return registry.Errorf(registry.ErrCorrupt, "a frame of the unknown kind %q", content[0])
}

// blank reports whether there are only zeros from an offset on: room that the
// file system gave before the power went, and bytes that it did not.
func blank(file *os.File, from int64) bool {
	b := make([]byte, 64<<10)
	for {
		n, err := file.ReadAt(b, from)
		if len(bytes.Trim(b[:n], "\x00")) > 0 {
			return false
		}
		if err != nil {
			return err == io.EOF
		}
		from += int64(n)
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// note has deltas written; nil: all anew. r.mu is held. A nil file takes nothing.
func (f *file) note(deltas []registry.Delta) {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.queue = append(f.queue, deltas...)
	for i := range deltas {
		f.bytes += weight(&deltas[i])
	}
	if f.bytes > queueBytes || deltas == nil {
		f.anew, f.queue, f.bytes = true, nil, 0
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take gives what is to be written, and the view that results.
func (f *file) take(r *Replica) (v *view, deltas []registry.Delta, anew bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	deltas, anew = f.queue, f.anew
	f.queue, f.bytes, f.anew = nil, 0, false
	return r.view.Load(), deltas, anew
}

// run writes until ctx is done.
func (f *file) run(ctx context.Context, r *Replica) {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-tick.C:
		}
		f.save(r, false)
	}
}

// close writes what is left.
func (f *file) close(r *Replica) error {
	if f == nil {
		return nil
	}
	err := f.save(r, true)
	if f.f != nil {
		err = errors.Join(err, f.f.Close())
		f.f = nil
	}
	return err
}

// save brings the file up. If that fails the file is written anew the next time;
// the copy in memory is asked all the same.
func (f *file) save(r *Replica, last bool) error {
	v, deltas, anew := f.take(r)
	if v.database == "" {
		return nil
	}
	due := last || r.o.Now().Sub(f.marked) >= f.every
	if f.f != nil && !anew && len(deltas) == 0 && !due {
		return nil
	}
	var err error
	if f.f == nil || anew || f.size-f.base > max(logBytes, f.base) {
		err = f.rewrite(r, v)
	} else {
		err = f.append(r, v, deltas, due)
	}
	if err == nil {
		return nil
	}
	r.o.Meter.Event("entitlements not kept", "entitle")
	r.o.Log.Error("the entitlements cannot be kept for the next start", "file", f.path, "err", err)
	if f.f != nil {
		_ = f.f.Close()
		f.f = nil
	}
	return fmt.Errorf("keep the entitlements: %w", err)
}

// markNow is the mark for v, in a frame.
func (f *file) markNow(r *Replica, v *view) ([]byte, error) {
	now := r.o.Now()
	m := mark{Version: v.version, Hash: v.hash.String(), Seen: now}
	if l := r.lease.Load(); l != nil {
		// What the clock said may count no longer; how long ago it was does.
		m.Confirmed = now.Add(-min(r.age(now), 1<<62)).Round(0)
	}
	content, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	f.marked = now
	var b bytes.Buffer
	err = writeFrame(&b, append([]byte{frameMark}, content...))
	return b.Bytes(), err
}

func (f *file) append(r *Replica, v *view, deltas []registry.Delta, due bool) error {
	var b bytes.Buffer
	for i := range deltas {
		content := appendDelta(nil, &deltas[i])
		if len(content) > maxDelta {
			return f.rewrite(r, v)
		}
		if err := writeFrame(&b, content); err != nil {
			return err
		}
	}
	if due {
		m, err := f.markNow(r, v)
		if err != nil {
			return err
		}
		b.Write(m)
	}
	if _, err := f.f.Write(b.Bytes()); err != nil {
		return err
	}
	f.size += int64(b.Len())
	return f.f.Sync()
}

// rewrite puts a new file in the place of the old one, which stays until the
// new one is whole on the disk.
func (f *file) rewrite(r *Replica, v *view) error {
	next, err := os.OpenFile(f.tmp(), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	out := &sizer{w: next}
	err = v.write(out)
	base := out.n
	if err == nil {
		var m []byte
		if m, err = f.markNow(r, v); err == nil {
			_, err = out.Write(m)
		}
	}
	if err == nil {
		err = next.Sync()
	}
	if err == nil {
		err = os.Rename(f.tmp(), f.path)
	}
	if err != nil {
		_ = next.Close()
		return err
	}
	if f.f != nil {
		_ = f.f.Close()
	}
	f.f, f.base, f.size = next, base, out.n
	return syncDir(filepath.Dir(f.path))
}

type sizer struct {
	w io.Writer
	n int64
}

func (s *sizer) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.n += int64(n)
	return n, err
}

// syncDir makes a rename last.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
