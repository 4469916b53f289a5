package conformance

import (
	"context"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// Warden is a registry.Warden for tests: it admits every call until it is told
// otherwise. Its zero value works.
type Warden struct {
	mu      sync.Mutex
	rules   []rule                // guarded by mu
	watches map[*watched]struct{} // guarded by mu
}

var _ registry.Warden = (*Warden)(nil)

type rule struct {
	match func(c *registry.Call) bool
	err   error
}

type watched struct {
	c       *registry.Call
	revoked func(error)
	told    bool          // guarded by Warden.mu
	done    chan struct{} // closed once revoked has returned; only if told
}

// Admit implements registry.Guard.
func (w *Warden) Admit(_ context.Context, c *registry.Call) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.admitLocked(c)
}

func (w *Warden) admitLocked(c *registry.Call) error {
	for _, r := range w.rules {
		if r.match(c) {
			return r.err
		}
	}
	return nil
}

// Watch implements registry.Warden.
func (w *Warden) Watch(c *registry.Call, revoked func(error)) (stop func()) {
	x := &watched{c: c, revoked: revoked, done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watches == nil {
		w.watches = make(map[*watched]struct{})
	}
	w.watches[x] = struct{}{}
	w.tellLocked(x)
	return func() {
		w.mu.Lock()
		delete(w.watches, x)
		told := x.told
		w.mu.Unlock()
		if told {
			<-x.done
		}
	}
}

func (w *Warden) tellLocked(x *watched) {
	err := w.admitLocked(x.c)
	if err == nil || x.told {
		return
	}
	x.told = true
	go func() {
		defer close(x.done)
		x.revoked(err)
	}()
}

// Revoke has the calls that match refused with err from now on, and those that
// have been admitted and are watched be told so.
func (w *Warden) Revoke(err error, match func(c *registry.Call) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules = append(w.rules, rule{match, err})
	for x := range w.watches {
		w.tellLocked(x)
	}
}

// Watching is how many calls are watched.
func (w *Warden) Watching() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.watches)
}
