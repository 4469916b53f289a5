package entitle

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Options say how a Replica is to be. The zero value is one in memory alone,
// whose copy counts however old it is.
type Options struct {
	// File is where the copy is kept for the next start; "": nowhere. Its
	// directory must be there, and nobody else may use the file.
	File string
	// Anonymous is what this node's own configuration grants to anonymous; nil:
	// nothing.
	Anonymous *Grants
	// Authority reports that this node has the database, so that its copy is
	// never too old.
	Authority bool
	// MaxStaleness is for how long the copy counts after the database's node
	// has confirmed it; 0: for ever.
	MaxStaleness time.Duration
	Past         Past
	Meter        registry.Meter   // nil: nothing is counted
	Log          *slog.Logger     // nil: slog.Default()
	Now          func() time.Time // nil: time.Now
}

// Past says which calls go on with a copy that is past MaxStaleness: those of
// anonymous clients, whatever they want, and of named ones those that pull,
// push and administer. What does not go on is refused with ErrUnavailable.
type Past struct{ Anonymous, Pull, Push, Admin bool }

// A Replica is this node's copy of the entitlements. All its methods may be
// called at once, but only one at a time should feed it (Follow, or ReadSnapshot,
// Apply and Confirm).
type Replica struct {
	o          Options
	limits     limits
	base       time.Time // when it was opened; times since then do not follow a clock that is set
	configured []grant

	view    atomic.Pointer[view]
	lease   atomic.Pointer[lease]
	uses    uses
	watches watches
	file    *file // nil: none

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each new version
	ring    ring

	stop context.CancelFunc
	work sync.WaitGroup
	done chan struct{} // closed by Close
}

var (
	_ registry.Warden     = (*Replica)(nil)
	_ registry.Identities = (*Replica)(nil)
)

// Open begins with the copy in the file, if there is one. A file that is
// damaged is set aside, logged, and not believed in any part: the node then has
// no copy until it gets one. The caller closes the Replica. Errors are about
// the file: that it cannot be read or written.
func Open(o Options) (*Replica, error) {
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Replica{o: o, limits: defaultLimits, base: o.Now(), stop: stop, changed: make(chan struct{}), done: make(chan struct{})}
	if o.Anonymous != nil {
		for _, one := range o.Anonymous.list {
			r.configured = append(r.configured, newGrant(one.Right))
		}
	}
	r.view.Store(newView(r.configured, 0))
	r.watches.init()
	if o.File != "" {
		if err := r.openFile(); err != nil {
			stop()
			return nil, err
		}
		r.work.Go(func() { r.file.run(ctx, r) })
	}
	r.work.Go(func() { r.watches.run(ctx, r) })
	return r, nil
}

// Close writes to the file what is not there yet, and ends all waiting. No
// running call is cut any more; the copy can still be asked.
func (r *Replica) Close() error {
	r.mu.Lock()
	select {
	case <-r.done:
	default:
		close(r.done)
	}
	r.mu.Unlock()
	r.stop()
	r.work.Wait()
	return r.file.close(r)
}

// State is how the copy is now. On the database's node Confirmed is when the
// database was last read.
func (r *Replica) State() registry.Standing {
	v := r.view.Load()
	s := registry.Standing{Database: v.database, Version: v.version, Records: v.records}
	if s.Whole() {
		s.Hash = v.hash.String()
	}
	if l := r.lease.Load(); l != nil {
		s.Confirmed = l.confirmed
	}
	return s
}

// Changed is closed at the next new version. Who waits for a version takes the
// channel first and then looks at State.
func (r *Replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Wait waits until the copy is of a version or a later one. The error is
// ErrUnavailable when ctx is done first, or the Replica closed.
func (r *Replica) Wait(ctx context.Context, version uint64) error {
	for {
		changed := r.Changed()
		if s := r.State(); s.Whole() && s.Version >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for a version of the entitlements")
		case <-r.done:
			return registry.Errorf(registry.ErrUnavailable, "this node is being stopped")
		}
	}
}

// Deltas are the steps from a version to the newest, none if there is no newer
// one. It reports false if they are no longer known, or never were: then a
// snapshot is needed. The deltas must not be changed.
func (r *Replica) Deltas(after uint64) ([]registry.Delta, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.view.Load()
	if v.database == "" {
		return nil, false
	}
	if after == v.version {
		return nil, true
	}
	return r.ring.after(after)
}

// Apply goes from one version to a later one, by deltas that follow one
// another: all of them or, with an error, none. Running calls that are no longer
// admitted are cut. The deltas must not be changed afterwards.
//
// Errors: ErrGone if the first is not for the version at hand, or one not for
// what the one before it gives: a snapshot is needed. ErrConflict if they lead
// to another database. ErrCorrupt if they make no sense. Whether the result is
// what the database's node has, Confirm finds out.
func (r *Replica) Apply(deltas []registry.Delta) error {
	if len(deltas) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.view.Load()
	if v.database == "" {
		return registry.Errorf(registry.ErrGone, "there is no copy to apply deltas to")
	}
	c := v.change()
	c.affected = map[string]struct{}{}
	if err := c.apply(deltas, r.limits); err != nil {
		return err
	}
	if c.database != v.database {
		return registry.Errorf(registry.ErrConflict, "the deltas lead from the database %q to %q", v.database, c.database)
	}
	r.report(c)
	r.install(c.commit(), c.affected, deltas)
	return nil
}

// apply puts the records of deltas.
func (c *change) apply(deltas []registry.Delta, l limits) error {
	for i := range deltas {
		d := &deltas[i]
		if d.Prev != c.version {
			return registry.Errorf(registry.ErrGone, "a delta is for version %d, the copy is of %d", d.Prev, c.version)
		}
		if d.Version <= d.Prev {
			return registry.Errorf(registry.ErrCorrupt, "a delta leads from version %d to %d", d.Prev, d.Version)
		}
		for j := range d.Records {
			if err := checkRecord(&d.Records[j]); err != nil {
				return err
			}
			c.put(d.Records[j])
		}
		c.version = d.Version
	}
	return l.check(c.records, c.bytes)
}

// install makes v what is asked from now on. r.mu is held. affected are the
// UIDs whose running calls are to be looked at again; nil: all. deltas lead to v
// from the view before; nil: it is another beginning.
func (r *Replica) install(v *view, affected map[string]struct{}, deltas []registry.Delta) {
	r.view.Store(v)
	if deltas == nil {
		r.ring = ring{}
	}
	for _, d := range deltas {
		r.ring.push(d)
	}
	close(r.changed)
	r.changed = make(chan struct{})
	r.watches.touch(affected)
	r.file.note(deltas)
}

// report logs which records have no effect.
func (r *Replica) report(c *change) {
	if c.failed == 0 {
		return
	}
	r.o.Meter.Event("entitlement record unreadable", "entitle")
	for _, err := range c.unread {
		r.o.Log.Warn("an entitlement record has no effect", "err", err)
	}
	if more := c.failed - len(c.unread); more > 0 {
		r.o.Log.Warn("more entitlement records have no effect", "count", more)
	}
}

// FullyOpen reports whether anonymous clients may pull everything in a space,
// now and whoever they are: then nothing in it is a secret. It may say no
// although they may, as soon as there is any denial for anonymous.
func (r *Replica) FullyOpen(space string) bool {
	v := r.view.Load()
	now := r.o.Now()
	if v.database == "" || !r.o.Past.Anonymous && r.lapsed(now) {
		return false
	}
	if s := v.subject(""); s != nil && s.denials > 0 {
		return false
	}
	var t tally
	all := newGrant(Right{Space: space, Pattern: "*"})
	count := func(g *grant) {
		if g.length == 0 && g.open && g.rare == nil && (g.space == all.space || g.space.Value() == "") {
			t.add(g, 0)
		}
	}
	for i := range v.configured {
		count(&v.configured[i])
	}
	for _, g := range []grant{all, newGrant(Right{})} {
		g.who = &who{}
		at := v.grants.at(tagOf(v.key(&g)))
		for have := at.next(); have != nil; have = at.next() {
			if have.who.uid == "" {
				count(have)
			}
		}
	}
	return now.UnixNano() < t.allow
}

// What the ring of deltas holds at most.
const (
	ringDeltas = 4096
	ringBytes  = 8 << 20
)

// A ring is the newest deltas, each for what the one before it gives.
type ring struct {
	list  []registry.Delta
	bytes int
}

func weight(d *registry.Delta) int {
	n := 64
	for i := range d.Records {
		n += 64 + len(d.Records[i].Key) + len(d.Records[i].Value)
	}
	return n
}

func (g *ring) push(d registry.Delta) {
	g.list = append(g.list, d)
	g.bytes += weight(&d)
	drop := 0
	for len(g.list)-drop > ringDeltas || g.bytes > ringBytes && drop < len(g.list) {
		g.bytes -= weight(&g.list[drop])
		g.list[drop] = registry.Delta{}
		drop++
	}
	g.list = g.list[drop:]
}

func (g *ring) after(version uint64) ([]registry.Delta, bool) {
	i, found := slices.BinarySearchFunc(g.list, version, func(d registry.Delta, v uint64) int {
		switch {
		case d.Prev < v:
			return -1
		case d.Prev > v:
			return 1
		}
		return 0
	})
	if !found {
		return nil, false
	}
	return slices.Clone(g.list[i:]), true
}
