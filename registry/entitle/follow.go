package entitle

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// pollEvery is how soon a change is seen that nobody wakes Follow for.
	pollEvery = 250 * time.Millisecond
	// idleEvery is how often the version goes on though only other keys changed,
	// so that all copies of one state come to have one version.
	idleEvery = time.Second
	// retryFirst and retryMost bound the wait after a failure.
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
	// askLimit is how long the database may take for one question, and
	// listLimit for all its records.
	askLimit  = 10 * time.Second
	listLimit = 2 * time.Minute
	// deltaRecords is how many changes go into one delta.
	deltaRecords = 512
)

// Follow keeps the copy up with the database until ctx is done: it reads all
// entitlements, then what changes, as soon as the database wakes it and every
// 250 ms in any case. It does the retries, at most a second apart, for as long as
// it takes; a database that no longer has the changes is read whole again. Until
// the database has a name (the key "e/database") there is no copy.
//
// The error is ctx's.
func (r *Replica) Follow(ctx context.Context, db registry.Metadata) error {
	f := follower{r: r, db: db}
	wait := time.Duration(0)
	failing := false
	for ctx.Err() == nil {
		woken := db.Woken() // before looking, so that no change is missed
		err := f.step(ctx)
		switch {
		case err == nil:
			if failing {
				r.o.Log.Info("the metadata database answers again")
			}
			failing, wait = false, pollEvery
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			if !failing {
				r.o.Meter.Event("metadata database failing", "entitle")
				r.o.Log.Warn("the metadata database cannot be followed", "err", err)
				failing, wait = true, retryFirst
			} else {
				wait = min(2*wait, retryMost)
			}
			woken = nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-woken:
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// A follower reads one database.
type follower struct {
	r      *Replica
	db     registry.Metadata
	listed bool
	idle   time.Time // when the version last went on for other keys alone
}

// step brings the copy up once.
func (f *follower) step(ctx context.Context) error {
	began := f.r.o.Now()
	if !f.listed {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	err := f.changes(ctx, began)
	if registry.KindOf(err) == registry.ErrGone {
		f.listed = false // and read all at the next step, after a moment
	}
	if err == nil && f.r.State().Whole() {
		f.r.renew(began)
	}
	return err
}

// list reads everything: the records as they are, and then the changes since
// before that, up to the newest of what was listed. So the result is exactly
// what the database had at one sequence number.
func (f *follower) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	head, err := f.db.Head(ctx)
	if err != nil {
		return err
	}
	have := map[string]registry.Record{}
	newest := head
	for rec, err := range f.db.List(ctx, keyPrefix, "") {
		if err != nil {
			return err
		}
		if f.takes(&rec) {
			have[rec.Key] = rec
			newest = max(newest, rec.Rev)
		}
	}
	version := head
	for {
		for rec, err := range f.db.Changes(ctx, version) {
			if err != nil {
				return err
			}
			version = max(version, rec.Rev)
			if f.takes(&rec) && rec.Rev > have[rec.Key].Rev {
				have[rec.Key] = rec
			}
		}
		if version >= newest {
			break
		}
		// What another node is just writing was listed, and is no change yet.
		if err := pause(ctx, retryFirst); err != nil {
			return err
		}
	}
	maps.DeleteFunc(have, func(_ string, rec registry.Record) bool { return len(rec.Value) == 0 })
	if _, ok := have[keyDatabase]; !ok {
		return nil // who makes it has yet to name it
	}
	if err := f.r.become(have, version); err != nil {
		return err
	}
	f.listed = true
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// takes reports whether a record is one of the entitlements, in a form that
// every copy can take.
func (f *follower) takes(rec *registry.Record) bool {
	if len(rec.Key) < len(keyPrefix) || rec.Key[:len(keyPrefix)] != keyPrefix {
		return false
	}
	if err := checkRecord(rec); err != nil {
		f.r.o.Log.Warn("an entitlement record is left out", "err", err)
		return false
	}
	return true
}

// changes applies what has changed since the version at hand.
func (f *follower) changes(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	d := registry.Delta{Prev: f.r.State().Version}
	d.Version = d.Prev
	apply := func() error {
		if len(d.Records) == 0 && now.Sub(f.idle) < idleEvery || d.Version == d.Prev {
			return nil
		}
		if len(d.Records) == 0 {
			f.idle = now
		}
		if err := f.r.Apply([]registry.Delta{d}); err != nil {
			f.listed = false // it led somewhere else: look what is there
			return err
		}
		d = registry.Delta{Prev: d.Version, Version: d.Version}
		return nil
	}
	for rec, err := range f.db.Changes(ctx, d.Prev) {
		if err != nil {
			// What came before is right all the same.
			if aerr := apply(); aerr != nil {
				return aerr
			}
			return err
		}
		if rec.Rev <= d.Version {
			continue // given twice
		}
		d.Version = rec.Rev
		if !f.takes(&rec) {
			continue
		}
		if d.Records = append(d.Records, rec); len(d.Records) >= deltaRecords {
			if err := apply(); err != nil {
				return err
			}
		}
	}
	return apply()
}

// become makes the copy be just these records, by a delta if there is a copy of
// the same database that is older, so that copies of that one can follow.
func (r *Replica) become(have map[string]registry.Record, version uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.view.Load()
	c := newView(r.configured, len(have)).change()
	for _, key := range slices.Sorted(maps.Keys(have)) {
		c.put(have[key])
	}
	c.version = version
	if err := r.limits.check(c.records, c.bytes); err != nil || c.database == "" {
		return registry.Wrap(registry.ErrUnavailable, err, "read the metadata database")
	}
	r.report(c)
	if v.database != "" && v.database != c.database {
		r.o.Log.Warn("the metadata database is another one than that of the entitlements kept here", "was", v.database, "is", c.database)
	}
	if v.database != c.database || version < v.version {
		r.install(c.commit(), nil, nil)
		return nil
	}
	next := c.commit()
	if version == v.version {
		if next.hash != v.hash {
			r.install(next, nil, nil)
		}
		return nil
	}
	r.install(next, nil, []registry.Delta{difference(v, next)})
	return nil
}

// difference is the delta from one view to a later one.
func difference(old, next *view) registry.Delta {
	d := registry.Delta{Prev: old.version, Version: next.version}
	was := map[string]*record{}
	old.each(func(r *record) bool { was[r.key] = r; return true })
	next.each(func(r *record) bool {
		if o := was[r.key]; o == nil || o.rev != r.rev || o.value != r.value {
			d.Records = append(d.Records, registry.Record{Key: r.key, Value: []byte(r.value), Rev: r.rev})
		}
		delete(was, r.key)
		return true
	})
	for key := range was {
		d.Records = append(d.Records, registry.Record{Key: key, Rev: next.version})
	}
	return d
}
