package cachetiers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// A DiskPlace is one directory of a Disks.
type DiskPlace struct {
	// Path is the directory, on a disk of its own. It also tells the disk's
	// share of the blobs, so that it keeps it when the list changes.
	Path string
	// Size is the most bytes that blobs take of it, and its weight when blobs
	// are shared out.
	Size int64
	// Make says to make the directory if it is missing. Otherwise a missing one
	// is a disk that is not mounted, and nothing is written to where its mount
	// point is.
	Make bool
}

// DisksOptions are the settings of a Disks; the zero value is right.
type DisksOptions struct {
	// Disk are the settings of each of them; its Limit is not used.
	Disk DiskOptions
	// Probe is how often each is looked at, and one that failed tried again;
	// 0: 30 s.
	Probe time.Duration
	// Meter is told of events "disk full", "disk read-only", "disk failed" and
	// "disk works again", with the path.
	Meter registry.Meter
}

// A DiskStatus is how one directory of a Disks is.
type DiskStatus struct {
	Path  string    `json:"path"`
	State DiskState `json:"state"`
	Since time.Time `json:"since"`           // of State
	Error string    `json:"error,omitempty"` // what led to State
	Blobs int       `json:"blobs"`
	Bytes int64     `json:"bytes"` // that blobs take
	Limit int64     `json:"limit"` // of Bytes
}

// Disks is a Store over one or several directories, each on a disk of its own.
// A blob is kept on the disk that weighted rendezvous hashing gives its digest
// to, so that a disk which comes or goes moves only its own share.
//
// A disk that fails is passed over: the next in the digest's order takes its
// part, blobs that only it had are not found, and what is being staged on it
// ends in ErrNoRoom; readers of all that go on elsewhere (Tier). One that can
// be read and not written still serves what it holds. Every Probe it is tried,
// and taken back with what it holds when it works. With no disk that works
// nothing is found and every Stage is ErrNoRoom.
type Disks struct {
	o     DisksOptions
	slots []*slot
	seq   atomic.Uint64 // shares out blobs whose digest is not known yet

	stop chan struct{} // closed by Close
	once sync.Once
	wg   sync.WaitGroup // of the watchers
}

var _ segmentStore = (*Disks)(nil)

// slot is one directory and, while it can be read, the Disk in it.
type slot struct {
	DiskPlace
	disk atomic.Pointer[Disk] // nil: failed

	mu    sync.Mutex
	lock  *os.File  // guarded by mu; held while there is a disk
	state DiskState // guarded by mu
	since time.Time // guarded by mu
	err   error     // guarded by mu; what led to state
}

// OpenDisks opens a store over places. One that cannot be opened counts as
// failed, and is logged; the error is ErrInvalid for places that make no sense.
// The caller calls Close.
func OpenDisks(places []DiskPlace, o DisksOptions) (*Disks, error) {
	if o.Probe <= 0 {
		o.Probe = 30 * time.Second
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Disk.Log == nil {
		o.Disk.Log = slog.Default()
	}
	if len(places) == 0 {
		return nil, registry.Errorf(registry.ErrInvalid, "a store over no disks")
	}
	s := &Disks{o: o, stop: make(chan struct{})}
	for _, p := range places {
		if p.Size <= 0 {
			return nil, registry.Errorf(registry.ErrInvalid, "disk %s has no size", p.Path)
		}
		s.slots = append(s.slots, &slot{DiskPlace: p, state: DiskFailed, since: time.Now()})
	}
	for _, at := range s.slots {
		if err := s.open(at); err != nil {
			s.tell(at, DiskFailed, err)
		}
	}
	for _, at := range s.slots {
		s.wg.Go(func() { s.watch(at) })
	}
	return s, nil
}

// Close ends the background work. What is open can be read on.
func (s *Disks) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.wg.Wait()
	var errs []error
	for _, at := range s.slots {
		if d := at.disk.Load(); d != nil {
			errs = append(errs, d.Close())
		}
		at.mu.Lock()
		at.unlockDir()
		at.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Loaded waits until the indexes of all disks are whole, or ctx is done.
func (s *Disks) Loaded(ctx context.Context) error {
	for _, at := range s.slots {
		if d := at.disk.Load(); d != nil {
			select {
			case <-d.Loaded():
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// Bytes is how much committed blobs take on all disks that work.
func (s *Disks) Bytes() (sum int64) {
	for _, at := range s.slots {
		if d := at.disk.Load(); d != nil {
			sum += d.Bytes()
		}
	}
	return sum
}

// Status is how each disk is, in the order they were given.
func (s *Disks) Status() []DiskStatus {
	all := make([]DiskStatus, len(s.slots))
	for i, at := range s.slots {
		at.mu.Lock()
		all[i] = DiskStatus{Path: at.Path, State: at.state, Since: at.since, Limit: at.Size}
		if at.err != nil {
			all[i].Error = at.err.Error()
		}
		at.mu.Unlock()
		if d := at.disk.Load(); d != nil {
			all[i].Blobs, all[i].Bytes = d.Len(), d.Bytes()
		}
	}
	return all
}

// ranked is the slots in the order in which a blob belongs to them. expect.Size
// may be negative; a disk that is too small for the blob comes last.
func (s *Disks) ranked(expect registry.Descriptor) []*slot {
	if len(s.slots) == 1 {
		return s.slots
	}
	key := string(expect.Digest)
	if key == "" {
		key = strconv.FormatUint(s.seq.Add(1), 36)
	}
	ranked := rendezvous(s.slots, key, func(at *slot) (string, float64) { return at.Path, float64(at.Size) })
	slices.SortStableFunc(ranked, func(a, b *slot) int {
		small := func(at *slot) int {
			if expect.Size >= 0 && fileSize(expect.Size) > at.Size {
				return 1
			}
			return 0
		}
		return small(a) - small(b)
	})
	return ranked
}

// Open implements registry.Source.
func (s *Disks) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	for _, at := range s.ranked(w.Descriptor) {
		d := at.disk.Load()
		if d == nil {
			continue
		}
		b, err := d.Open(ctx, w)
		if err == nil || registry.KindOf(err) == registry.ErrInvalid {
			return b, err
		}
	}
	return nil, registry.Errorf(registry.ErrNotFound, "%s is on no disk", w.Digest)
}

// Stage implements registry.Store.
func (s *Disks) Stage(ctx context.Context, expect registry.Descriptor) (registry.Stage, error) {
	return stageOn(s, s.ranked(expect), func(d *Disk) (registry.Stage, error) { return d.Stage(ctx, expect) })
}

// stageSegments implements segmentStore: on the disk that has a part of the
// blob, if there is one.
func (s *Disks) stageSegments(ctx context.Context, expect registry.Descriptor, segment int64) (segmentStage, map[int]partial, error) {
	ranked := s.ranked(expect)
	for i, at := range ranked {
		if d := at.disk.Load(); d != nil && i > 0 && d.hasPart(expect.Digest) {
			ranked = slices.Insert(slices.Delete(slices.Clone(ranked), i, i+1), 0, at)
			break
		}
	}
	var left map[int]partial
	stage, err := stageOn(s, ranked, func(d *Disk) (stage segmentStage, err error) {
		stage, left, err = d.stageSegments(ctx, expect, segment)
		return stage, err
	})
	return stage, left, err
}

// stageOn begins on the first of ranked that takes it.
func stageOn[T any](s *Disks, ranked []*slot, begin func(*Disk) (T, error)) (stage T, err error) {
	err = registry.Errorf(registry.ErrNoRoom, "no disk works")
	for _, at := range ranked {
		d := at.disk.Load()
		if d == nil || at.is(DiskReadOnly) {
			continue
		}
		stage, err = begin(d)
		if err == nil {
			return stage, nil
		}
		if registry.KindOf(err) != registry.ErrNoRoom {
			break
		}
	}
	var none T
	return none, err
}

func (at *slot) is(state DiskState) bool {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.state == state
}

// open opens the Disk in a directory that has failed, or has not been used yet.
func (s *Disks) open(at *slot) error {
	if at.Make {
		if err := os.MkdirAll(at.Path, 0o700); err != nil {
			return err
		}
	}
	if info, err := os.Stat(at.Path); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is no directory", at.Path)
	}
	lock, err := lockDir(at.Path)
	if err != nil {
		return err
	}
	o := s.o.Disk
	o.Limit = at.Size
	o.trouble = func(d *Disk, state DiskState, err error) { s.trouble(at, d, state, err) }
	d, err := newDisk(at.Path, o)
	if err != nil {
		lock.Close()
		return err
	}
	state := DiskWorks
	if err = d.probe(); err != nil {
		if state = stateAfter(fault{err, true}); state == DiskFailed || errors.Is(err, unix.EIO) {
			d.kill()
			lock.Close()
			return err
		}
	}
	at.mu.Lock()
	again := at.err != nil
	at.lock = lock
	at.state, at.since, at.err = state, time.Now(), err
	at.disk.Store(d)
	at.mu.Unlock()
	go d.background()
	switch {
	case state != DiskWorks:
		s.tell(at, state, err)
	case again:
		s.tell(at, DiskWorks, nil)
	}
	return nil
}

// lockDir sees that no other process uses the directory: the lock is on the
// directory itself, which may be read-only. Where there are no locks it does
// without.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another weir", dir)
	}
	return f, nil
}

// unlockDir is called with at.mu held.
func (at *slot) unlockDir() {
	if at.lock != nil {
		at.lock.Close()
		at.lock = nil
	}
}

// trouble is told by d that its directory is not what it was.
func (s *Disks) trouble(at *slot, d *Disk, state DiskState, err error) {
	at.mu.Lock()
	if at.disk.Load() != d || at.state.badness() >= state.badness() {
		at.mu.Unlock()
		return
	}
	at.state, at.since, at.err = state, time.Now(), err
	if state == DiskFailed {
		at.disk.Store(nil)
	}
	at.mu.Unlock()
	s.tell(at, state, err)
	if state != DiskFailed {
		return
	}
	d.kill()
	at.mu.Lock()
	at.unlockDir() // after kill: whoever has the lock has the directory alone
	at.mu.Unlock()
}

// better is called when d, which could not be written, can be.
func (s *Disks) better(at *slot, d *Disk) {
	at.mu.Lock()
	was := at.state
	if at.disk.Load() == d && was != DiskWorks {
		at.state, at.since, at.err = DiskWorks, time.Now(), nil
	}
	at.mu.Unlock()
	if was != DiskWorks {
		s.tell(at, DiskWorks, nil)
	}
}

// tell logs and counts a change, and sets it for a disk that was never opened.
func (s *Disks) tell(at *slot, state DiskState, err error) {
	at.mu.Lock()
	if state == DiskFailed {
		at.err = err
	}
	at.mu.Unlock()
	log := s.o.Disk.Log
	switch state {
	case DiskWorks:
		log.Info("disk works again", "path", at.Path)
		s.o.Meter.Event("disk works again", at.Path)
	default:
		log.Error("disk "+string(state)+"; others take its part, or blobs are passed on uncached", "path", at.Path, "err", err, "retry", s.o.Probe.String())
		s.o.Meter.Event("disk "+string(state), at.Path)
	}
}

// watch looks at one directory until Close.
func (s *Disks) watch(at *slot) {
	tick := time.NewTicker(s.o.Probe)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
		d := at.disk.Load()
		switch {
		case d == nil:
			if err := s.open(at); err != nil {
				at.mu.Lock()
				at.err = err
				at.mu.Unlock()
			}
		case at.is(DiskWorks):
			d.there() // a disk that nobody uses is missed too
		default:
			if err := d.probe(); err == nil {
				s.better(at, d)
			} else {
				d.fault(err, true)
			}
		}
	}
}
