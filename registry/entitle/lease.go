package entitle

import (
	"math"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A lease is since when the copy counts. The time is kept by two clocks, and the
// one that says more counts: the wall clock goes on while the machine sleeps
// and between two runs, the other cannot be set back.
type lease struct {
	confirmed time.Time
	wall      int64         // of confirmed; longPast if it is not to be believed
	mono      time.Duration // from Replica.base to confirmed
}

const longPast = math.MinInt64 / 2

// age is how long ago the copy was confirmed, by this node's clocks.
func (r *Replica) age(now time.Time) time.Duration {
	l := r.lease.Load()
	if l == nil {
		return math.MaxInt64
	}
	return max(time.Duration(now.UnixNano()-l.wall), now.Sub(r.base)-l.mono, 0)
}

// lapsed reports whether the copy is too old. It allocates nothing.
func (r *Replica) lapsed(now time.Time) bool {
	return !r.o.Authority && r.o.MaxStaleness > 0 && r.age(now) > r.o.MaxStaleness
}

// Stale is how long ago the database's node confirmed the copy, and whether
// that is too long, so that what Past refuses is refused. Without a copy it is 0
// and false.
func (r *Replica) Stale() (by time.Duration, past bool) {
	if r.view.Load().database == "" {
		return 0, false
	}
	now := r.o.Now()
	return r.age(now), r.lapsed(now)
}

// Confirm takes the word of the database's node that at s.Confirmed, by this
// node's clock, the version s.Version with the hash s.Hash was the newest: the
// copy counts from then on. A time in the future is taken for now, an earlier
// one than is known for nothing new. Errors: ErrGone if the copy is of another
// version, or has another hash, so that a snapshot is needed; ErrConflict if it is
// of another database.
func (r *Replica) Confirm(s registry.Standing) error {
	v := r.view.Load()
	switch {
	case v.database == "" || s.Version != v.version:
		return registry.Errorf(registry.ErrGone, "version %d of the entitlements is confirmed, the copy is of %d", s.Version, v.version)
	case s.Database != v.database:
		return registry.Errorf(registry.ErrConflict, "the entitlements of the database %q are confirmed, the copy is of %q", s.Database, v.database)
	case s.Hash != v.hash.String():
		r.o.Meter.Event("entitlements differ", "entitle")
		return registry.Errorf(registry.ErrGone, "version %d of the entitlements has the hash %.64s, the copy %v", s.Version, s.Hash, v.hash)
	}
	r.renew(s.Confirmed)
	return nil
}

// renew sets the lease, if it becomes longer by that.
func (r *Replica) renew(confirmed time.Time) {
	now := r.o.Now()
	since := max(now.Sub(confirmed), 0)
	l := &lease{confirmed: now.Add(-since), wall: now.UnixNano() - int64(since), mono: now.Sub(r.base) - since}
	for {
		old := r.lease.Load()
		if old != nil && old.wall != longPast && old.mono > l.mono {
			return
		}
		if r.lease.CompareAndSwap(old, l) {
			break
		}
	}
	r.watches.renewed()
}

// restore sets the lease to what an earlier run of weir has written: when the
// copy was confirmed, and when weir last looked at the clock. If it is earlier
// than that now the clock was set back, nobody knows how much time has gone by,
// and the copy is taken for too old.
func (r *Replica) restore(confirmed, seen time.Time) {
	if confirmed.IsZero() {
		return
	}
	since := r.base.Sub(confirmed)
	l := &lease{confirmed: confirmed, wall: confirmed.UnixNano(), mono: -since}
	if r.base.Before(seen) || since < 0 {
		r.o.Log.Warn("the clock was set back: the entitlements are taken for too old until they are confirmed",
			"now", r.base, "seen", seen)
		l.wall, l.mono = longPast, longPast
	}
	r.lease.Store(l)
}
