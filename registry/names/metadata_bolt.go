package names

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/weir-registry/weir/registry"
)

// MetadataOptions say how a metadata database in a file is kept. The zero value
// is right.
type MetadataOptions struct {
	// Keep is how many changes are kept; 0: DefaultKeep. Who asks for older ones
	// gets ErrGone.
	Keep int
	// Timeout is how long OpenMetadata waits for a process that has the database
	// open; 0: 1 s.
	Timeout time.Duration
	Log     *slog.Logger // nil: slog.Default()
}

const (
	// pageRecords and pageBytes bound what a walk reads before it lets go of
	// the database.
	pageRecords = 256
	pageBytes   = 1 << 20
	// trimAtOnce is how many old changes one Put removes at most. One is
	// enough, unless fewer are to be kept than before.
	trimAtOnce = 16
)

// BoltMetadata is a metadata database in a file. OpenMetadata makes it; Close
// must be called. A Put is one transaction: the record, the entry in the log of
// changes and the number of the newest change are written together, and are on
// the disk when it returns. Puts at the same time share the wait for the disk.
type BoltMetadata struct {
	db   *bbolt.DB
	keep uint64
	log  *slog.Logger

	mu    sync.Mutex
	woken chan struct{} // guarded by mu

	once sync.Once
	err  error // of Close
}

var _ registry.Metadata = (*BoltMetadata)(nil)

// allocate is by how much the file grows at once, in bytes: a sixteenth of what
// bbolt takes, for a database that is mostly small.
const allocate = 1 << 20

// OpenMetadata opens the metadata database in a file, which it makes if there
// is none (its directory must be there), and reads all of it once. Damage is an
// error that names the file: there is no other copy of what is in it, so it is
// neither repaired nor begun anew. One process at a time can have it open.
func OpenMetadata(path string, o MetadataOptions) (*BoltMetadata, error) {
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	db, err := openSound(path, Options{Timeout: o.Timeout}, kind{"metadata database", readMetadata})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocate
	return &BoltMetadata{db: db, keep: uint64(o.Keep), log: o.Log, woken: make(chan struct{})}, nil
}

// Get implements registry.Metadata.
func (m *BoltMetadata) Get(_ context.Context, key string) (r registry.Record, err error) {
	if err := registry.CheckKey(key); err != nil {
		return registry.Record{}, err
	}
	err = m.do("get "+key, func() error {
		return m.db.View(func(tx *bbolt.Tx) (err error) {
			r, err = getRecord(tx, key)
			return err
		})
	})
	switch {
	case err != nil:
		return registry.Record{}, err
	case r.Rev == 0:
		return registry.Record{}, nothing(key)
	}
	r.Key = key
	return r, nil
}

// Put implements registry.Metadata.
func (m *BoltMetadata) Put(ctx context.Context, key string, rev uint64, value []byte) (r registry.Record, err error) {
	if err := registry.CheckPut(key, value); err != nil {
		return registry.Record{}, err
	}
	if err := ctx.Err(); err != nil {
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "put "+key)
	}
	// A conflict is no reason to roll back: in a batch it would make the others
	// be done again.
	var conflict bool
	err = m.do("put "+key, func() error {
		return m.db.Batch(func(tx *bbolt.Tx) (err error) {
			r, conflict, err = m.put(tx, registry.Record{Key: key, Value: value, Rev: rev})
			return err
		})
	})
	switch {
	case err != nil:
		return registry.Record{}, err
	case conflict:
		return registry.Record{}, changed(key)
	case r.Rev != 0:
		m.wake()
	}
	return r, nil
}

// put makes one change in tx: r with the rev that is expected.
func (m *BoltMetadata) put(tx *bbolt.Tx, r registry.Record) (kept registry.Record, conflict bool, err error) {
	old, err := getRecord(tx, r.Key)
	switch {
	case err != nil:
		return kept, false, err
	case old.Rev != r.Rev:
		return kept, true, nil
	case old.Rev == 0 && r.Value == nil:
		return registry.Record{Key: r.Key}, false, nil
	}
	head, err := getHead(tx)
	if err != nil {
		return kept, false, err
	}
	kept = ownRecord(registry.Record{Key: r.Key, Value: r.Value, Rev: head + 1})
	records := tx.Bucket([]byte(recordsBucket))
	if kept.Value == nil {
		err = records.Delete([]byte(kept.Key))
	} else {
		err = records.Put([]byte(kept.Key), encodeRecord(kept))
	}
	if err != nil {
		return kept, false, err
	}
	log := tx.Bucket([]byte(logBucket))
	log.FillPercent = 0.9 // it grows at its end alone
	if err := log.Put(seqKey(kept.Rev), encodeChange(kept)); err != nil {
		return kept, false, err
	}
	if err := m.trim(log, kept.Rev); err != nil {
		return kept, false, err
	}
	return kept, false, putHead(tx, kept.Rev)
}

// trim removes the oldest changes if there are more than are to be kept.
func (m *BoltMetadata) trim(log *bbolt.Bucket, head uint64) error {
	if head <= m.keep {
		return nil
	}
	c := log.Cursor()
	for range trimAtOnce {
		k, _ := c.First()
		if seq, ok := keySeq(k); !ok || seq > head-m.keep {
			return nil
		}
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// List implements registry.Metadata. It holds nothing between its steps.
func (m *BoltMetadata) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return pages(ctx, "list "+prefix, func(last *registry.Record) (page []registry.Record, more bool, err error) {
		after, from := after, prefix
		if last != nil {
			after = last.Key
		}
		if after >= prefix && after != "" {
			from = after + "\x00" // no key has one: the first after it
		}
		err = m.do("list "+prefix, func() error {
			return m.db.View(func(tx *bbolt.Tx) error {
				page, more, err = readPage(tx.Bucket([]byte(recordsBucket)), []byte(from), []byte(prefix), decodeRecord)
				return err
			})
		})
		return page, more, err
	})
}

// Head implements registry.Metadata.
func (m *BoltMetadata) Head(context.Context) (n uint64, err error) {
	err = m.do("read the head", func() error {
		return m.db.View(func(tx *bbolt.Tx) (err error) {
			n, err = getHead(tx)
			return err
		})
	})
	return n, err
}

// Changes implements registry.Metadata.
func (m *BoltMetadata) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return pages(ctx, "read the changes", func(last *registry.Record) (page []registry.Record, more bool, err error) {
		after := after
		if last != nil {
			after = last.Rev
		}
		err = m.do("read the changes", func() error {
			return m.db.View(func(tx *bbolt.Tx) error {
				page, more, err = readChanges(tx, after)
				return err
			})
		})
		return page, more, err
	})
}

// readChanges reads the next changes after a number, or finds that they are gone.
func readChanges(tx *bbolt.Tx, after uint64) ([]registry.Record, bool, error) {
	head, err := getHead(tx)
	if err != nil || after >= head {
		return nil, false, err
	}
	log := tx.Bucket([]byte(logBucket))
	page, more, err := readPage(log, seqKey(after+1), nil, decodeChange)
	if err != nil {
		return nil, false, err
	}
	if len(page) == 0 || page[0].Rev != after+1 {
		first, _ := log.Cursor().First()
		seq, _ := keySeq(first)
		return nil, false, gone(after, max(seq, 1)-1)
	}
	return page, more, nil
}

// Woken implements registry.Metadata.
func (m *BoltMetadata) Woken() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.woken
}

func (m *BoltMetadata) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.woken)
	m.woken = make(chan struct{})
}

// Close lets go of the file; everything is in it already. It may be called
// twice, and nothing else after it.
func (m *BoltMetadata) Close() error {
	m.once.Do(func() { m.err = m.db.Close() })
	return m.err
}

// do gives the error of fn a kind, and turns a panic into one: bbolt panics
// where a page is not what it should be.
func (m *BoltMetadata) do(doing string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			m.log.Error("the metadata database is damaged; it is looked over when weir starts", "panic", p, "file", m.db.Path())
			err = &registry.Error{Kind: registry.ErrUnavailable,
				Text: fmt.Sprintf("%s: the metadata database is damaged: %v", doing, p), Public: "the metadata database is damaged"}
		}
	}()
	err = fn()
	if errors.Is(err, errDamaged) {
		m.log.Error("the metadata database is damaged", "err", err, "file", m.db.Path())
	}
	return registry.Wrap(registry.ErrUnavailable, err, doing)
}

// pages walks what read gives, page by page; read gets the last record of the
// page before, nil at first.
func pages(ctx context.Context, doing string, read func(last *registry.Record) ([]registry.Record, bool, error)) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		var last *registry.Record
		for more := true; more; {
			err := registry.Wrap(registry.ErrUnavailable, ctx.Err(), doing)
			var page []registry.Record
			if err == nil {
				page, more, err = read(last)
			}
			if err != nil {
				yield(registry.Record{}, err)
				return
			}
			for _, r := range page {
				if err := ctx.Err(); err != nil {
					yield(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, doing))
					return
				}
				if !yield(r, nil) {
					return
				}
			}
			if len(page) > 0 {
				last = &registry.Record{Key: page[len(page)-1].Key, Rev: page[len(page)-1].Rev}
			}
		}
	}
}

// readPage reads the next entries from a key on that begin with prefix.
func readPage(bucket *bbolt.Bucket, from, prefix []byte, decode func(k, v []byte) (registry.Record, error)) (page []registry.Record, more bool, err error) {
	c := bucket.Cursor()
	size := 0
	for k, v := c.Seek(from); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(page) == pageRecords || size >= pageBytes {
			return page, true, nil
		}
		r, err := decode(k, v)
		if err != nil {
			return nil, false, err
		}
		page = append(page, r)
		size += len(v)
	}
	return page, false, nil
}
