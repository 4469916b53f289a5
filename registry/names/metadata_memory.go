package names

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// DefaultKeep is how many changes a metadata database keeps if nothing is said.
const DefaultKeep = 100_000

// MemoryMetadata is a metadata database in memory. Its zero value is empty and
// ready; it must not be copied. Nothing of it outlives the process.
type MemoryMetadata struct {
	// Keep is how many changes are kept at least, and twice as many at most;
	// 0: DefaultKeep. It is set before the first use.
	Keep int

	mu      sync.RWMutex
	records map[string]registry.Record // guarded by mu, as all below
	keys    []string                   // of records, in order
	log     []registry.Record          // the newest changes, oldest first, without gaps
	seq     uint64                     // of the newest change
	woken   chan struct{}
}

var _ registry.Metadata = (*MemoryMetadata)(nil)

// Get implements registry.Metadata.
func (m *MemoryMetadata) Get(_ context.Context, key string) (registry.Record, error) {
	if err := registry.CheckKey(key); err != nil {
		return registry.Record{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	r, ok := m.records[key]
	if !ok {
		return registry.Record{}, nothing(key)
	}
	return ownRecord(r), nil
}

// Put implements registry.Metadata.
func (m *MemoryMetadata) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	if err := registry.CheckPut(key, value); err != nil {
		return registry.Record{}, err
	}
	if err := ctx.Err(); err != nil {
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "put "+key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.records[key]
	switch {
	case old.Rev != rev:
		return registry.Record{}, changed(key)
	case rev == 0 && value == nil:
		return registry.Record{Key: key}, nil
	}
	m.seq++
	r := registry.Record{Key: key, Value: bytes.Clone(value), Rev: m.seq}
	m.keep(r, rev != 0)
	if m.woken != nil {
		close(m.woken)
		m.woken = nil
	}
	return ownRecord(r), nil
}

// keep puts r, whose key is there already or not, in its places.
func (m *MemoryMetadata) keep(r registry.Record, there bool) {
	if m.records == nil {
		m.records = map[string]registry.Record{}
	}
	at, _ := slices.BinarySearch(m.keys, r.Key)
	switch {
	case r.Value == nil:
		delete(m.records, r.Key)
		m.keys = slices.Delete(m.keys, at, at+1)
	case there:
		m.records[r.Key] = r
	default:
		m.records[r.Key] = r
		m.keys = slices.Insert(m.keys, at, r.Key)
	}
	keep := m.Keep
	if keep <= 0 {
		keep = DefaultKeep
	}
	if m.log = append(m.log, r); len(m.log) >= 2*keep {
		m.log = slices.Clone(m.log[len(m.log)-keep:])
	}
}

// List implements registry.Metadata. It holds nothing between its steps.
func (m *MemoryMetadata) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		for after := after; ; {
			r, ok := m.next(prefix, after)
			if err := ctx.Err(); err != nil {
				yield(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "list "+prefix))
				return
			}
			if !ok || !yield(r, nil) {
				return
			}
			after = r.Key
		}
	}
}

// next is the first record after a key whose own begins with prefix.
func (m *MemoryMetadata) next(prefix, after string) (registry.Record, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	at := sort.Search(len(m.keys), func(i int) bool { return m.keys[i] >= prefix && m.keys[i] > after })
	if at == len(m.keys) || !strings.HasPrefix(m.keys[at], prefix) {
		return registry.Record{}, false
	}
	return ownRecord(m.records[m.keys[at]]), true
}

// Head implements registry.Metadata.
func (m *MemoryMetadata) Head(context.Context) (uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.seq, nil
}

// Changes implements registry.Metadata.
func (m *MemoryMetadata) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		for after := after; ; {
			if err := ctx.Err(); err != nil {
				yield(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "read the changes"))
				return
			}
			r, ok, err := m.change(after)
			if err != nil {
				yield(registry.Record{}, err)
				return
			}
			if !ok || !yield(r, nil) {
				return
			}
			after = r.Rev
		}
	}
}

// change is the one after a number.
func (m *MemoryMetadata) change(after uint64) (registry.Record, bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if after >= m.seq {
		return registry.Record{}, false, nil
	}
	missing := m.seq - uint64(len(m.log)) // up to here they are not kept
	if after < missing {
		return registry.Record{}, false, gone(after, missing)
	}
	return ownRecord(m.log[after-missing]), true, nil
}

// Woken implements registry.Metadata.
func (m *MemoryMetadata) Woken() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.woken == nil {
		m.woken = make(chan struct{})
	}
	return m.woken
}

// ownRecord is r with a value that is the caller's.
func ownRecord(r registry.Record) registry.Record {
	r.Value = bytes.Clone(r.Value)
	return r
}

func nothing(key string) error {
	return &registry.Error{Kind: registry.ErrNotFound, Text: fmt.Sprintf("there is nothing under %q", key)}
}

func changed(key string) error {
	return &registry.Error{Kind: registry.ErrConflict, Text: fmt.Sprintf("%q was changed in the meantime", key)}
}

func gone(after, missing uint64) error {
	return &registry.Error{Kind: registry.ErrGone, Text: fmt.Sprintf("the changes after %d are asked for, and those up to %d are no longer kept", after, missing)}
}
