package names

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/weir-registry/weir/registry"
)

// Options say how a database is kept. The zero value is durable.
type Options struct {
	// Volatile is for bindings that can be had again from an upstream: a
	// binding is then not waited for until it is on the disk (it survives the
	// end of the process at once, a power cut after SyncEvery), and a database
	// that turns out damaged is set aside and begun anew. Otherwise a binding
	// that Bind has returned survives everything, and damage is an error.
	Volatile bool
	// SyncEvery is after what time at most a volatile database is written
	// out; 0: 5 s.
	SyncEvery time.Duration
	// Timeout is how long Open waits for a process that has the database
	// open; 0: 1 s.
	Timeout time.Duration
	// Hot is how many bindings are held in memory, decoded, at about half a
	// kilobyte each; 0: 16384.
	Hot int
	Log *slog.Logger // nil: slog.Default()
}

const (
	defaultSyncEvery = 5 * time.Second
	defaultTimeout   = time.Second
	defaultHot       = 16384
	// mapSize is address space, not memory: as long as the database fits, a
	// Bind that makes it grow need not wait for the readers.
	mapSize = 256 << 20
	// batchDelay is how long a durable Bind waits for others to share its
	// fsync, which takes longer than that.
	batchDelay = 500 * time.Microsecond
	// A walk reads listBatch names, and a sweep sweepBatch bindings, before it
	// lets go of the database: bbolt frees no page that an open reader might
	// see, and its one writer holds up the others.
	listBatch  = 512
	sweepBatch = 1024
)

// Bolt is a table in a file. Open makes it; Close must be called. A bucket per
// space has keys of Repo, a zero byte and Ref.
type Bolt struct {
	db       *bbolt.DB
	volatile bool
	log      *slog.Logger
	hot      *hot

	dirty atomic.Bool // something was bound since the last sync
	stop  chan struct{}
	work  sync.WaitGroup
	once  sync.Once
	err   error // of Close
}

var _ registry.ManyNames = (*Bolt)(nil)

// Lookup implements registry.Names. It waits for no writer. Beside the contract's errors there is ErrCorrupt for
// a binding that is damaged in a database that is not volatile; in one that is
// it counts as not bound.
func (s *Bolt) Lookup(_ context.Context, n registry.Name) (b registry.Binding, err error) {
	if err := check(n); err != nil {
		return registry.Binding{}, notBound(n)
	}
	shard := s.hot.shard(n)
	b, generation, ok := shard.get(n)
	if ok {
		return b, nil
	}
	defer s.guard(&err, "look up", n)
	tx, err := s.db.Begin(false)
	if err != nil {
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "look up "+n.String())
	}
	defer tx.Rollback()
	bucket := tx.Bucket([]byte(n.Space))
	if bucket == nil {
		return registry.Binding{}, notBound(n)
	}
	b, found, err := s.get(bucket, n)
	switch {
	case err != nil:
		return registry.Binding{}, err
	case !found:
		return registry.Binding{}, notBound(n)
	}
	shard.keep(n, b, generation, s.hot.limit)
	return b, nil
}

// get reads n's binding; found is false if there is none.
func (s *Bolt) get(bucket *bbolt.Bucket, n registry.Name) (b registry.Binding, found bool, err error) {
	var buf [128]byte
	v := bucket.Get(appendKey(buf[:0], n))
	if v == nil {
		return registry.Binding{}, false, nil
	}
	b, _, err = decode(v)
	switch {
	case err == nil:
		return b, true, nil
	case s.volatile:
		s.log.Warn("a damaged binding counts as unbound", "name", n.String())
		return registry.Binding{}, false, nil
	}
	return registry.Binding{}, false, registry.Wrap(registry.ErrCorrupt, err, "look up "+n.String())
}

// Bind implements registry.Names.
func (s *Bolt) Bind(ctx context.Context, n registry.Name, old, new registry.Binding) (kept registry.Binding, err error) {
	if err := checkBind(n, new); err != nil {
		return registry.Binding{}, err
	}
	if err := ctx.Err(); err != nil {
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "bind "+n.String())
	}
	defer s.hot.shard(n).drop(n)
	defer s.guard(&err, "bind", n)
	// A conflict is no reason to roll back: in a batch it would make the
	// others be done again.
	var verdict error
	err = s.update(func(tx *bbolt.Tx) (err error) {
		kept, verdict, err = s.bind(tx, registry.Change{Name: n, Old: old, New: new})
		return err
	})
	switch {
	case err != nil:
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "bind "+n.String())
	case verdict != nil:
		return registry.Binding{}, verdict
	}
	return kept, nil
}

// BindAll implements registry.ManyNames: one transaction.
func (s *Bolt) BindAll(ctx context.Context, changes []registry.Change) (err error) {
	for _, c := range changes {
		if err := checkBind(c.Name, c.New); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "bind names")
	}
	defer func() {
		for _, c := range changes {
			s.hot.shard(c.Name).drop(c.Name)
		}
	}()
	defer s.guard(&err, "bind names of", registry.Name{})
	var verdict error // that is no conflict
	err = s.update(func(tx *bbolt.Tx) error {
		verdict = nil
		for _, c := range changes {
			_, v, err := s.bind(tx, c)
			if err != nil {
				return err
			}
			if v != nil && !errors.Is(v, registry.ErrConflict) {
				verdict = v
			}
		}
		return nil
	})
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "bind names")
	}
	return verdict
}

// bind makes one change in tx. verdict is what is wrong with the change, err
// with the transaction.
func (s *Bolt) bind(tx *bbolt.Tx, c registry.Change) (kept registry.Binding, verdict, err error) {
	bucket, err := tx.CreateBucketIfNotExists([]byte(c.Name.Space))
	if err != nil {
		return registry.Binding{}, nil, err
	}
	is, _, err := s.get(bucket, c.Name)
	if err != nil {
		return registry.Binding{}, err, nil
	}
	if is.Rev != c.Old.Rev {
		return registry.Binding{}, conflict(c.Name), nil
	}
	key := appendKey(nil, c.Name)
	if c.New.Zero() {
		return registry.Binding{}, nil, bucket.Delete(key)
	}
	rev, err := bucket.NextSequence()
	if err != nil {
		return registry.Binding{}, nil, err
	}
	kept = c.New
	kept.Rev = strconv.FormatUint(rev, 36)
	return kept, nil, bucket.Put(key, encode(nil, c.New, rev))
}

// update runs fn in a transaction, perhaps more than once.
func (s *Bolt) update(fn func(tx *bbolt.Tx) error) error {
	if !s.volatile {
		return s.db.Batch(fn)
	}
	defer s.dirty.Store(true)
	return s.db.Update(fn)
}

// guard turns a panic into an error: bbolt panics where a page is not what it
// should be, and a damaged table must not take the node down with it.
func (s *Bolt) guard(err *error, doing string, n registry.Name) {
	if p := recover(); p != nil {
		s.log.Error("the names database is damaged; it is looked over when weir starts", "panic", p, "file", s.db.Path())
		*err = &registry.Error{Kind: registry.ErrUnavailable,
			Text: fmt.Sprintf("%s %v: the names database is damaged: %v", doing, n, p), Public: "the names database is damaged"}
	}
}

func appendKey(buf []byte, n registry.Name) []byte {
	buf = append(buf, n.Repo...)
	buf = append(buf, 0)
	return append(buf, n.Ref...)
}

// List implements registry.Names. With an empty repo, after is a repository:
// the list begins with the one that follows it. A walk holds nothing between
// its steps; it gives every name that is bound throughout, and may give those
// that are bound meanwhile.
func (s *Bolt) List(ctx context.Context, space, repo, after string) iter.Seq2[registry.Name, error] {
	var from, prefix []byte
	if repo != "" {
		prefix = appendKey(nil, registry.Name{Repo: repo})
		from = prefix
		if after != "" {
			from = appendKey(nil, registry.Name{Repo: repo, Ref: after + "\x00"})
		}
	} else if after != "" {
		from = append([]byte(after), 1) // past after\x00…, before every longer name
	}
	return func(yield func(registry.Name, error) bool) {
		for from := from; ; {
			found, more, err := s.page(ctx, space, from, prefix)
			if err != nil {
				yield(registry.Name{}, err)
				return
			}
			for _, n := range found {
				if err := ctx.Err(); err != nil {
					yield(registry.Name{}, registry.Wrap(registry.ErrUnavailable, err, "list "+space+" "+repo))
					return
				}
				if !yield(n, nil) {
					return
				}
			}
			if !more {
				return
			}
			from = append(appendKey(nil, found[len(found)-1]), 0)
		}
	}
}

// page reads the next listBatch names from a key on that begin with prefix.
func (s *Bolt) page(ctx context.Context, space string, from, prefix []byte) (found []registry.Name, more bool, err error) {
	defer s.guard(&err, "list", registry.Name{Space: space})
	if err := ctx.Err(); err != nil {
		return nil, false, registry.Wrap(registry.ErrUnavailable, err, "list "+space)
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(space))
		if bucket == nil {
			return nil
		}
		c := bucket.Cursor()
		for k, _ := c.Seek(from); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			if len(found) == listBatch {
				more = true
				return nil
			}
			repo, ref, _ := bytes.Cut(k, []byte{0})
			found = append(found, registry.Name{Space: space, Repo: string(repo), Ref: string(ref)})
		}
		return nil
	})
	if err != nil {
		return nil, false, registry.Wrap(registry.ErrUnavailable, err, "list "+space)
	}
	return found, more, nil
}

// Close writes out what is not on the disk yet and lets go of the file. It may
// be called twice; nothing else may be called after it.
func (s *Bolt) Close() error {
	s.once.Do(func() {
		close(s.stop)
		s.work.Wait()
		if s.volatile {
			s.err = s.sync()
		}
		if err := s.db.Close(); s.err == nil {
			s.err = err
		}
	})
	return s.err
}

func (s *Bolt) sync() error {
	if !s.dirty.Swap(false) {
		return nil
	}
	if err := s.db.Sync(); err != nil {
		s.dirty.Store(true)
		return fmt.Errorf("write out %s: %w", s.db.Path(), err)
	}
	return nil
}

// syncEvery writes a volatile database out now and then until Close.
func (s *Bolt) syncEvery(d time.Duration) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			if err := s.sync(); err != nil {
				s.log.Error("names database", "err", err)
			}
		}
	}
}
