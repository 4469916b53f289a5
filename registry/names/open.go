package names

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/weir-registry/weir/registry"
)

// errDatabase marks a file that is not, or no longer, a sound database.
var errDatabase = errors.New("not a sound database")

// Open opens the database in a file, which it makes if there is none (its
// directory must be there), and reads all of it once, so that damage shows now
// and not under a request. One process at a time can have it open; the error
// for a second one says so.
func Open(path string, o Options) (*Bolt, error) {
	if o.SyncEvery <= 0 {
		o.SyncEvery = defaultSyncEvery
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Hot <= 0 {
		o.Hot = defaultHot
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	db, err := openSound(path, o, namesFile())
	if errors.Is(err, errDatabase) && o.Volatile {
		aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
		if rerr := os.Rename(path, aside); rerr != nil {
			return nil, fmt.Errorf("set a damaged names database aside: %w", rerr)
		}
		o.Log.Warn("the names database is damaged: it was set aside and begun anew, and upstreams will be asked again",
			"file", path, "aside", aside, "err", err)
		db, err = openSound(path, o, namesFile())
	}
	if err != nil {
		return nil, err
	}
	s := &Bolt{db: db, volatile: o.Volatile, log: o.Log, hot: newHot(o.Hot), stop: make(chan struct{})}
	if o.Volatile {
		s.work.Go(func() { s.syncEvery(o.SyncEvery) })
	}
	return s, nil
}

// A kind of file, of the two there are.
type kind struct {
	what string // in messages
	// readThrough reads all there is and finds what is wrong.
	readThrough func(db *bbolt.DB) error
}

func namesFile() kind { return kind{"names database", readThrough} }

// openSound opens path and reads it through; what cannot be read is errDatabase.
func openSound(path string, o Options, k kind) (db *bbolt.DB, err error) {
	// A file that was cut short faults where it is mapped but not there.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var opened *bbolt.DB
	var file *os.File
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w (%s): %v", path, errDatabase, k.what, p)
		}
		if err == nil {
			return
		}
		db = nil
		if opened != nil {
			opened.Close()
		} else if file != nil {
			// Where bbolt panics it leaves the file locked, and a lock lasts
			// as long as the mapping does: closing is not enough.
			syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
			file.Close()
		}
	}()
	// The list of free pages is kept in the file even where that could be
	// spared: bbolt else makes it anew in a goroutine of its own, and where that
	// meets damage its panic is nobody's to recover.
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         o.Timeout,
		FreelistType:    bbolt.FreelistMapType,
		NoSync:          o.Volatile,
		NoGrowSync:      o.Volatile,
		InitialMmapSize: mapSize,
		NoStatistics:    true,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, perm)
			file = f
			return f, err
		},
	})
	var pathError *fs.PathError
	var errno syscall.Errno
	switch {
	case err == nil:
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("the %s %s is in use by another process", k.what, path)
	case errors.As(err, &pathError), errors.As(err, &errno):
		return nil, fmt.Errorf("open the %s: %w", k.what, err)
	default:
		return nil, fmt.Errorf("%s: %w (%s): %w", path, errDatabase, k.what, err)
	}
	opened = db
	db.MaxBatchDelay = batchDelay
	if err := k.readThrough(db); err != nil {
		return nil, fmt.Errorf("%s: %w (%s): %w", path, errDatabase, k.what, err)
	}
	return db, nil
}

// readThrough decodes every binding there is, and finds it by its key too.
func readThrough(db *bbolt.DB) error {
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(space []byte, bucket *bbolt.Bucket) error {
			if bucket == nil {
				return fmt.Errorf("%q is no bucket", space)
			}
			find := bucket.Cursor()
			return bucket.ForEach(func(k, v []byte) error {
				if _, _, err := decode(v); err != nil {
					return fmt.Errorf("%q in %q: %w", k, space, err)
				}
				if found, _ := find.Seek(k); !bytes.Equal(found, k) {
					return fmt.Errorf("%q in %q is out of its place", k, space)
				}
				return nil
			})
		})
	})
}

// Sweep unbinds what nobody answers for any more: bindings that are not
// authoritative and whose Fresh is before the given time. It returns how many.
// It goes in small steps and holds up neither readers nor writers; a binding
// that is made anew meanwhile stays.
func (s *Bolt) Sweep(ctx context.Context, before time.Time) (int, error) {
	spaces, err := s.spaces()
	swept := 0
	for _, space := range spaces {
		for from := []byte{}; from != nil && err == nil; {
			if err = ctx.Err(); err != nil {
				break
			}
			var keys [][]byte
			var n int
			if keys, from, err = s.expired(space, from, before); err == nil && len(keys) > 0 {
				n, err = s.drop(space, keys, before)
				swept += n
			}
		}
	}
	return swept, registry.Wrap(registry.ErrUnavailable, err, "sweep names")
}

func (s *Bolt) spaces() (spaces [][]byte, err error) {
	defer s.guard(&err, "sweep", registry.Name{})
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(space []byte, _ *bbolt.Bucket) error {
			spaces = append(spaces, append([]byte(nil), space...))
			return nil
		})
	})
	return spaces, err
}

// expired looks at sweepBatch bindings from a key on; next is nil at the end.
func (s *Bolt) expired(space, from []byte, before time.Time) (keys [][]byte, next []byte, err error) {
	defer s.guard(&err, "sweep", registry.Name{Space: string(space)})
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(space).Cursor()
		k, v := c.Seek(from)
		for range sweepBatch {
			if k == nil {
				return nil
			}
			if b, _, err := decode(v); err == nil && expired(b, before) || err != nil && s.volatile {
				keys = append(keys, append([]byte(nil), k...))
			}
			k, v = c.Next()
		}
		if k != nil {
			next = append([]byte(nil), k...)
		}
		return nil
	})
	return keys, next, err
}

// drop unbinds those of keys that are still expired.
func (s *Bolt) drop(space []byte, keys [][]byte, before time.Time) (n int, err error) {
	defer s.guard(&err, "sweep", registry.Name{Space: string(space)})
	err = s.update(func(tx *bbolt.Tx) error {
		n = 0
		bucket := tx.Bucket(space)
		for _, k := range keys {
			v := bucket.Get(k)
			if v == nil {
				continue
			}
			if b, _, err := decode(v); err == nil && !expired(b, before) {
				continue
			}
			if err := bucket.Delete(k); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	s.hot.dropAll()
	return n, err
}
