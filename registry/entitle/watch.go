package entitle

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// watches are the running calls that may have to be cut, by the UIDs that they
// depend on: of their account and its teams, and "" if what admits them is
// granted to anonymous. So a change looks at the calls that it can concern.
type watches struct {
	mu      sync.Mutex
	by      map[string]map[*watch]struct{}
	all     map[*watch]struct{}
	pending map[string]struct{} // UIDs to be looked at
	whole   bool                // all calls are to be looked at
	wake    chan struct{}       // of one place
}

// A watch is one running call. Its fields but the first three are guarded by
// watches.mu.
type watch struct {
	r       *Replica
	call    *registry.Call
	revoked func(error)
	state   watchState
	deps    []string
	timer   *time.Timer   // for when its admission may expire; nil: there is none
	done    chan struct{} // closed once revoked has returned
}

type watchState int

const (
	armed watchState = iota
	firing
	ended
)

func (w *watches) init() {
	w.by = map[string]map[*watch]struct{}{}
	w.all = map[*watch]struct{}{}
	w.pending = map[string]struct{}{}
	w.wake = make(chan struct{}, 1)
}

// Watch implements registry.Warden. revoked is called within milliseconds of
// the change, or of the moment something expires, that ends c's admission; at
// once if c is not admitted now. It runs in a goroutine of its own, and no lock is
// held.
//
// stop may be called more than once. When it returns revoked either has never
// been called and will not be, or has returned: stop waits for it, unless it is
// called by revoked itself, which it may be. Who calls stop elsewhere must not
// hold what revoked waits for.
func (r *Replica) Watch(c *registry.Call, revoked func(error)) (stop func()) {
	if c.Who.Node {
		return func() {} // always admitted
	}
	w := &watch{r: r, call: c, revoked: revoked, done: make(chan struct{})}
	r.watches.mu.Lock()
	r.watches.all[w] = struct{}{}
	r.watches.mu.Unlock()
	w.check()
	return w.stop
}

// check looks whether the call is still admitted. Any number may run at once.
func (w *watch) check() {
	for {
		v := w.r.view.Load()
		d := w.r.decide(v, w.call)
		if d.outcome != admitted {
			w.fire(w.r.refusal(v, w.call, d.outcome))
			return
		}
		w.depend(v.dependencies(w.call, d), d.until)
		// A version that has come meanwhile may have been looked at by nobody
		// who knew of these dependencies.
		if w.r.view.Load() == v {
			return
		}
	}
}

// dependencies are the UIDs on which it depends that c is admitted.
func (v *view) dependencies(c *registry.Call, d verdict) []string {
	var deps []string
	if a := v.account(c.Who.Name); a != nil && c.Who.Name != "" {
		deps = append(append(deps, a.UID), a.Teams...)
	}
	if d.anyone || c.Some {
		deps = append(deps, "")
	}
	return deps
}

// depend notes what w depends on, and when it is to be looked at again in any case.
func (w *watch) depend(deps []string, until int64) {
	ws := &w.r.watches
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.state != armed {
		return
	}
	ws.forget(w)
	w.deps = deps
	for _, uid := range deps {
		if ws.by[uid] == nil {
			ws.by[uid] = map[*watch]struct{}{}
		}
		ws.by[uid][w] = struct{}{}
	}
	if until == never {
		if w.timer != nil {
			w.timer.Stop()
		}
		return
	}
	// A nap of an hour at most: the wall clock may be set meanwhile.
	nap := min(max(time.Duration(until-w.r.o.Now().UnixNano()), time.Millisecond), time.Hour)
	if w.timer == nil {
		w.timer = time.AfterFunc(nap, w.check)
	} else {
		w.timer.Reset(nap)
	}
}

// forget takes w out of the index. ws.mu is held.
func (ws *watches) forget(w *watch) {
	for _, uid := range w.deps {
		if delete(ws.by[uid], w); len(ws.by[uid]) == 0 {
			delete(ws.by, uid)
		}
	}
	w.deps = nil
}

// end takes w out of everything. ws.mu is held.
func (ws *watches) end(w *watch) {
	ws.forget(w)
	delete(ws.all, w)
	if w.timer != nil {
		w.timer.Stop()
	}
}

// fire cuts the call, once.
func (w *watch) fire(err error) {
	ws := &w.r.watches
	ws.mu.Lock()
	defer ws.mu.Unlock()
	select {
	case <-w.r.done:
		return // closed: nothing is cut any more
	default:
	}
	if w.state != armed {
		return
	}
	w.state = firing
	ws.end(w)
	go w.run(err)
}

// run calls revoked. Its name is what [watch.within] looks for.
func (w *watch) run(err error) {
	defer close(w.done)
	w.revoked(err)
}

func (w *watch) stop() {
	ws := &w.r.watches
	ws.mu.Lock()
	state := w.state
	if state == armed {
		w.state = ended
		ws.end(w)
	}
	ws.mu.Unlock()
	if state == firing && !within() {
		<-w.done
	}
}

// within reports whether it is called by a goroutine that runs a revoked, which
// would wait for itself. It looks at the stack only in the rare case that a stop
// meets a call being cut.
func within() bool {
	var pcs [256]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "/entitle.(*watch).run") {
			return true
		}
		if !more {
			return false
		}
	}
}

// touch has the calls looked at that depend on some UIDs; nil: all. It does not
// wait.
func (ws *watches) touch(uids map[string]struct{}) {
	ws.mu.Lock()
	if uids == nil {
		ws.whole = true
	}
	for uid := range uids {
		if ws.by[uid] != nil {
			ws.pending[uid] = struct{}{}
		}
	}
	idle := !ws.whole && len(ws.pending) == 0
	ws.mu.Unlock()
	if !idle {
		ws.renewed()
	}
}

// renewed wakes run.
func (ws *watches) renewed() {
	select {
	case ws.wake <- struct{}{}:
	default:
	}
}

// take gives the calls that are to be looked at.
func (ws *watches) take() []*watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var list []*watch
	if ws.whole {
		for w := range ws.all {
			list = append(list, w)
		}
	} else {
		for uid := range ws.pending {
			for w := range ws.by[uid] {
				list = append(list, w)
			}
		}
	}
	ws.whole = false
	clear(ws.pending)
	return list
}

// run looks at calls after changes, and at all of them when the copy becomes
// too old.
func (ws *watches) run(ctx context.Context, r *Replica) {
	tick := time.NewTimer(0)
	defer tick.Stop()
	was := r.lapsed(r.o.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-ws.wake:
		case <-tick.C:
		}
		now := r.o.Now()
		is := r.lapsed(now)
		if is && !was {
			r.o.Log.Warn("the entitlements are too old: nobody has confirmed them", "since", r.State().Confirmed, "max_staleness", r.o.MaxStaleness)
			r.o.Meter.Event("entitlements past max_staleness", "entitle")
			ws.touch(nil)
		}
		was = is
		for _, w := range ws.take() {
			w.check()
		}
		if r.o.MaxStaleness > 0 && !r.o.Authority {
			// A second at most: the wall clock counts too, and may be set.
			nap := time.Second
			if left := r.o.MaxStaleness - r.age(now) + 1; left > 0 {
				nap = min(nap, left)
			}
			tick.Reset(nap)
		}
	}
}
