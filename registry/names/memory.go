package names

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Memory is a table in memory. Its zero value is empty and ready; it must not
// be copied. Nothing of it outlives the process.
type Memory struct {
	mu       sync.RWMutex
	bindings map[registry.Name]registry.Binding // guarded by mu
	rev      uint64                             // the last one given; guarded by mu
}

var _ registry.Names = (*Memory)(nil)

// Lookup implements registry.Names.
func (m *Memory) Lookup(_ context.Context, n registry.Name) (registry.Binding, error) {
	m.mu.RLock()
	b, ok := m.bindings[n]
	m.mu.RUnlock()
	if !ok {
		return registry.Binding{}, notBound(n)
	}
	return b, nil
}

// Bind implements registry.Names.
func (m *Memory) Bind(ctx context.Context, n registry.Name, old, new registry.Binding) (registry.Binding, error) {
	if err := checkBind(n, new); err != nil {
		return registry.Binding{}, err
	}
	if err := ctx.Err(); err != nil {
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "bind "+n.String())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bindings[n].Rev != old.Rev {
		return registry.Binding{}, conflict(n)
	}
	if new.Zero() {
		delete(m.bindings, n)
		return registry.Binding{}, nil
	}
	m.rev++
	new.Rev = strconv.FormatUint(m.rev, 36)
	if m.bindings == nil {
		m.bindings = map[registry.Name]registry.Binding{}
	}
	m.bindings[n] = new
	return new, nil
}

// List implements registry.Names. With an empty repo, after is a repository:
// the list begins with the one that follows it. It gives what was bound when
// it began.
func (m *Memory) List(ctx context.Context, space, repo, after string) iter.Seq2[registry.Name, error] {
	return func(yield func(registry.Name, error) bool) {
		for _, n := range m.sorted(space, repo, after) {
			if err := ctx.Err(); err != nil {
				yield(registry.Name{}, registry.Wrap(registry.ErrUnavailable, err, "list "+space+" "+repo))
				return
			}
			if !yield(n, nil) {
				return
			}
		}
	}
}

func (m *Memory) sorted(space, repo, after string) []registry.Name {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []registry.Name
	for n := range m.bindings {
		if n.Space != space || repo != "" && n.Repo != repo {
			continue
		}
		if at := n.Ref; after != "" {
			if repo == "" {
				at = n.Repo
			}
			if at <= after {
				continue
			}
		}
		found = append(found, n)
	}
	slices.SortFunc(found, func(a, b registry.Name) int {
		return cmp.Or(cmp.Compare(a.Repo, b.Repo), cmp.Compare(a.Ref, b.Ref))
	})
	return found
}

// Sweep unbinds what nobody answers for any more: bindings that are not
// authoritative and whose Fresh is before the given time. It returns how many.
func (m *Memory) Sweep(_ context.Context, before time.Time) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	swept := 0
	for n, b := range m.bindings {
		if expired(b, before) {
			delete(m.bindings, n)
			swept++
		}
	}
	return swept, nil
}

func expired(b registry.Binding, before time.Time) bool {
	return !b.Fresh.IsZero() && b.Fresh.Before(before)
}
