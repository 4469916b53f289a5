package relay

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// boardLimit bounds the nodes that a Board remembers.
	boardLimit = 4096
	// forgotten is after how long a node that is not heard of is forgotten, and
	// missing after how long nobody waits for it.
	forgotten = 10 * time.Minute
	missing   = 10 * time.Second
)

// A Board is how the copies of the nodes in front are, as they have told. It
// remembers at most 4096 nodes, each for ten minutes after it was last heard of.
//
// A node that reports itself is known by its certificate. What it says of nodes
// in front of it is kept under its own name, as the first of their Via, and
// never mixed with what those, or others, say: a node that lies about others
// spoils what it says itself, and nothing else. If there is no room, the one
// that says most of others loses some of that.
//
// All may be called at once.
type Board struct {
	now func() time.Time

	mu      sync.Mutex
	nodes   map[string]*entry // guarded by mu; by keyOf
	count   map[string]int    // guarded by mu; how many there are by reporter
	changes uint64            // guarded by mu; grows with each change of a copy
	changed chan struct{}     // guarded by mu; closed at the next one
	swept   time.Time         // guarded by mu; when the silent were last forgotten
}

// entry is what a Board knows of one node on one way.
type entry struct {
	registry.NodeStanding
	seq uint64 // the change that made it what it is
}

// reporter is the node that has told, "" if that was the node itself.
func (e *entry) reporter() string {
	if len(e.Via) == 0 {
		return ""
	}
	return e.Via[0]
}

// NewBoard makes an empty Board. now is what time it is; nil: time.Now.
func NewBoard(now func() time.Time) *Board {
	if now == nil {
		now = time.Now
	}
	return &Board{now: now, nodes: map[string]*entry{}, count: map[string]int{}, changed: make(chan struct{})}
}

// keyOf is a node and the way to it. No name has a zero byte in it.
func keyOf(node string, via []string) string {
	return strings.Join(append(slices.Clone(via), node), "\x00")
}

// take notes what a node reports. It returns how many nodes there was no room
// for.
func (b *Board) take(node string, r report, now time.Time) (left int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepLocked()
	if r.Gone {
		b.dropLocked(func(e *entry) bool { return e.reporter() == node || e.reporter() == "" && e.Node == node })
		return 0
	}
	own := registry.NodeStanding{Node: node, Standing: r.Self.standing(now), Heard: now}
	if !b.putLocked(own) {
		return 1 + len(r.Front)
	}
	told := make(map[string]bool, len(r.Front))
	for _, f := range r.Front {
		// A node is not in front of itself, and none is that is of another
		// database.
		if f.Node == node || slices.Contains(f.Via, node) || len(f.Via) == maxVia ||
			f.Database != "" && f.Database != own.Database {
			continue
		}
		s := registry.NodeStanding{Node: f.Node, Via: append([]string{node}, f.Via...), Standing: f.standing(now), Heard: f.Heard.time(now)}
		if now.Sub(s.Heard) > forgotten {
			continue
		}
		if told[keyOf(s.Node, s.Via)] = true; !b.putLocked(s) {
			left++
		}
	}
	if r.All && b.count[node] > len(told) {
		b.dropLocked(func(e *entry) bool { return e.reporter() == node && !told[keyOf(e.Node, e.Via)] })
	}
	return left
}

// putLocked notes how one node is. It reports whether there was room.
func (b *Board) putLocked(s registry.NodeStanding) bool {
	key := keyOf(s.Node, s.Via)
	e := b.nodes[key]
	if e == nil {
		if len(b.nodes) >= boardLimit && !b.roomLocked(s) {
			return false
		}
		e = &entry{NodeStanding: s}
		b.nodes[key] = e
		b.count[e.reporter()]++
	} else if s.Heard.Before(e.Heard) {
		s.Heard = e.Heard // ages are rounded up
	}
	if e.seq == 0 || e.Version != s.Version || e.Hash != s.Hash || e.Database != s.Database {
		b.turnLocked()
		e.seq = b.changes
	}
	e.NodeStanding = s
	return true
}

// turnLocked wakes those who wait for a change.
func (b *Board) turnLocked() {
	b.changes++
	close(b.changed)
	b.changed = make(chan struct{})
}

// roomLocked makes room for s. It takes it from the node that says most of
// others, of those in front of it the one that was last heard of longest ago.
func (b *Board) roomLocked(s registry.NodeStanding) bool {
	most := ""
	for by, n := range b.count {
		if by != "" && (most == "" || n > b.count[most]) {
			most = by
		}
	}
	if most == "" || len(s.Via) > 0 && b.count[s.Via[0]]+1 >= b.count[most] {
		return false // it would say most itself
	}
	var oldest *entry
	for _, e := range b.nodes {
		if e.reporter() == most && (oldest == nil || e.Heard.Before(oldest.Heard)) {
			oldest = e
		}
	}
	b.deleteLocked(keyOf(oldest.Node, oldest.Via), oldest)
	return true
}

func (b *Board) deleteLocked(key string, e *entry) {
	delete(b.nodes, key)
	by := e.reporter()
	if b.count[by]--; b.count[by] == 0 {
		delete(b.count, by)
	}
}

// sweepLocked forgets nodes that are not heard of any more. It looks at all of
// them, and therefore not each time.
func (b *Board) sweepLocked() {
	now := b.now()
	if now.Sub(b.swept) < time.Second {
		return
	}
	b.swept = now
	b.dropLocked(func(e *entry) bool { return now.Sub(e.Heard) > forgotten })
}

func (b *Board) dropLocked(which func(*entry) bool) {
	dropped := false
	for key, e := range b.nodes {
		if which(e) {
			b.deleteLocked(key, e)
			dropped = true
		}
	}
	if dropped {
		b.turnLocked()
	}
}

// List is how the nodes in front are, in the order of their names and ways.
func (b *Board) List() []registry.NodeStanding {
	list, _, _ := b.since(0)
	return list
}

// since are the nodes whose copies have changed after a change, and which
// change was the last. next is closed at the next one.
func (b *Board) since(change uint64) (list []registry.NodeStanding, last uint64, next <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepLocked()
	for _, e := range b.nodes {
		if e.seq > change {
			list = append(list, e.NodeStanding)
		}
	}
	slices.SortFunc(list, func(x, y registry.NodeStanding) int {
		if c := strings.Compare(x.Node, y.Node); c != 0 {
			return c
		}
		return slices.Compare(x.Via, y.Via)
	})
	return list, b.changes, b.changed
}

// Wait waits until every node in front that it knows of when it is called has a
// version, or has not been heard of for ten seconds. It calls reached, from this
// goroutine, once for each node that has the version, as it gets it; nodes that
// have it already too. It returns those that have not, and ctx's error if that
// is why it did not wait for them.
//
// What a node says of those in front of it counts for what it says alone: a node
// that is known on two ways is waited for on both. But one that has been silent
// on one way for longer than reports are apart, and has the version on another
// that it was heard of on since, has only moved: the node in between has died, or
// it has started again. It is waited for on that way no more.
func (b *Board) Wait(ctx context.Context, version uint64, reached func(registry.NodeStanding)) (without []registry.NodeStanding, err error) {
	open := map[string]bool{} // waited for: true, has it: false
	list, _, next := b.since(0)
	for _, s := range list {
		open[keyOf(s.Node, s.Via)] = true
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	has := func(s registry.NodeStanding) {
		key := keyOf(s.Node, s.Via)
		if waits, known := open[key]; waits || !known {
			open[key] = false
			reached(s)
		}
	}
	for {
		without = without[:0]
		hope := false
		now := b.now()
		newest := newestOf(list, version)
		for _, s := range list {
			key := keyOf(s.Node, s.Via)
			moved, elsewhere := newest[s.Node]
			switch {
			case !open[key]:
			case s.Whole() && s.Version >= version:
				has(s)
			case elsewhere && moved.Heard.After(s.Heard.Add(reportEvery)):
				open[key] = false
				has(moved)
			default:
				without = append(without, s)
				hope = hope || now.Sub(s.Heard) < missing
			}
		}
		if !hope {
			return without, nil
		}
		select {
		case <-next:
		case <-tick.C:
		case <-ctx.Done():
			return without, registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for nodes in front")
		}
		list, _, next = b.since(0)
	}
}

// newestOf is, for each node that has a version on some way, the way that it was
// last heard of on.
func newestOf(list []registry.NodeStanding, version uint64) map[string]registry.NodeStanding {
	newest := map[string]registry.NodeStanding{}
	for _, s := range list {
		if was, ok := newest[s.Node]; s.Whole() && s.Version >= version && (!ok || s.Heard.After(was.Heard)) {
			newest[s.Node] = s
		}
	}
	return newest
}
