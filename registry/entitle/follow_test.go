package entitle

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A fakeDB is a Metadata in memory that can be made to misbehave.
type fakeDB struct {
	mu      sync.Mutex
	now     map[string]registry.Record
	log     []registry.Record
	rev     uint64
	gone    uint64 // changes up to here are no longer kept
	hold    uint64 // changes from here on are not given yet; 0: all are
	woken   chan struct{}
	deaf    bool               // changes wake nobody
	repeats bool               // changes are given twice
	fail    func(string) error // before each answer and each record
	lists   int
}

var _ registry.Metadata = (*fakeDB)(nil)

func newDatabase() *fakeDB {
	db := &fakeDB{now: map[string]registry.Record{}, woken: make(chan struct{})}
	db.set(keyDatabase, "db")
	return db
}

// set writes what as JSON; nil removes.
func (db *fakeDB) set(key string, what any) uint64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.rev += 2 // there may be gaps
	rec := registry.Record{Key: key, Rev: db.rev}
	if what != nil {
		rec.Value, _ = json.Marshal(what)
		db.now[key] = rec
	} else {
		delete(db.now, key)
	}
	db.log = append(db.log, rec)
	if !db.deaf {
		close(db.woken)
		db.woken = make(chan struct{})
	}
	return db.rev
}

// with changes how it behaves.
func (db *fakeDB) with(f func()) {
	db.mu.Lock()
	defer db.mu.Unlock()
	f()
}

func (db *fakeDB) failing(what string) error {
	db.mu.Lock()
	f := db.fail
	db.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(what)
}

func (db *fakeDB) Get(context.Context, string) (registry.Record, error) {
	panic("nobody gets")
}

func (db *fakeDB) Put(context.Context, string, uint64, []byte) (registry.Record, error) {
	panic("nobody puts")
}

func (db *fakeDB) List(_ context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	db.with(func() { db.lists++ })
	return func(yield func(registry.Record, error) bool) {
		db.mu.Lock()
		keys := slices.Sorted(maps.Keys(db.now))
		db.mu.Unlock()
		for _, key := range keys {
			if err := db.failing("list"); err != nil {
				yield(registry.Record{}, err)
				return
			}
			db.mu.Lock()
			rec, ok := db.now[key]
			db.mu.Unlock()
			if ok && strings.HasPrefix(key, prefix) && key > after && !yield(rec, nil) {
				return
			}
		}
	}
}

func (db *fakeDB) Head(context.Context) (uint64, error) {
	if err := db.failing("head"); err != nil {
		return 0, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.hold > 0 {
		return db.hold - 1, nil
	}
	return db.rev, nil
}

func (db *fakeDB) Changes(_ context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		db.mu.Lock()
		log, gone, hold, repeats := slices.Clone(db.log), db.gone, db.hold, db.repeats
		db.mu.Unlock()
		if after < gone {
			yield(registry.Record{}, registry.Errorf(registry.ErrGone, "changes after %d are not kept", after))
			return
		}
		for i, rec := range log {
			if rec.Rev <= after || hold > 0 && rec.Rev >= hold {
				continue
			}
			if err := db.failing("changes"); err != nil {
				yield(registry.Record{}, err)
				return
			}
			if !yield(rec, nil) || repeats && (!yield(rec, nil) || !yield(log[i/2], nil)) {
				return
			}
		}
		if err := db.failing("end"); err != nil {
			yield(registry.Record{}, err)
		}
	}
}

func (db *fakeDB) Woken() <-chan struct{} {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.woken
}

// follow has a replica follow db until the test ends.
func follow(t *testing.T, db registry.Metadata, o Options) *Replica {
	o.Authority = true
	r := open(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := r.Follow(ctx, db); err != context.Canceled {
			t.Errorf("Follow: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
	return r
}

// holds compares the copy with what the database has.
func holds(t *testing.T, r *Replica, db *fakeDB, why string) {
	t.Helper()
	synctest.Wait()
	want := records{}
	db.with(func() {
		for key, rec := range db.now {
			if strings.HasPrefix(key, keyPrefix) {
				want[key] = rec
			}
		}
	})
	fresh := open(t, Options{})
	want.load(t, fresh, 1)
	if s := r.State(); s.Hash != fresh.State().Hash || s.Records != len(want) {
		t.Fatalf("%s: %d records, want %d; or others", why, s.Records, len(want))
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newDatabase()
		db.set(keyAccount+"ann", account("ann", "UA"))
		rev := db.set("s/password/ann", "secret")
		r := follow(t, db, Options{MaxStaleness: time.Second})
		holds(t, r, db, "at first")
		if s := r.State(); s.Version != rev || s.Database != "db" {
			t.Errorf("%+v", s)
		}
		rev = db.set(keyGrant+"a", granting("a", "user:ann", "UA", "pull oci:*"))
		holds(t, r, db, "woken")
		d, ok := r.Deltas(rev - 2)
		if !ok || len(d) != 1 || d[0].Version != rev || len(d[0].Records) != 1 {
			t.Errorf("%+v %v", d, ok)
		}
		if err := admits(r, named("ann", "UA", "pull", "oci", "x")); err != nil {
			t.Error(err)
		}
		db.with(func() { db.deaf = true })
		db.set(keyGrant+"b", granting("b", "user:ann", "UA", "nonsense"))
		rev = db.set(keyGrant+"a", nil)
		time.Sleep(pollEvery)
		holds(t, r, db, "not woken")
		if r.State().Version != rev || admits(r, named("ann", "UA", "pull", "oci", "x")) == nil {
			t.Error("removed, and still admitted")
		}
		rev = db.set("n/name", "no entitlement")
		time.Sleep(idleEvery + pollEvery)
		holds(t, r, db, "other keys")
		if r.State().Version != rev {
			t.Errorf("version %d, want %d", r.State().Version, rev)
		}
		if by, past := r.Stale(); past || by > pollEvery {
			t.Errorf("confirmed %v ago, past %v", by, past)
		}
		other := follow(t, db, Options{})
		synctest.Wait()
		if a, b := r.State(), other.State(); a.Version != b.Version || a.Hash != b.Hash {
			t.Errorf("%+v and %+v of one database", a, b)
		}
		if db.lists != 2 {
			t.Errorf("%d lists", db.lists)
		}
	})
}

// TestFollowFails has the database down, then back: no more than a second
// later the copy is up again, and meanwhile the old one counts.
func TestFollowFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := func(string) error { return registry.Errorf(registry.ErrUnavailable, "down") }
		db := newDatabase()
		db.with(func() { db.fail = down })
		r := follow(t, db, Options{MaxStaleness: time.Minute})
		time.Sleep(time.Hour)
		if err := admits(r, named("", "", "pull", "oci", "x")); registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) != afterUnready {
			t.Errorf("before the first copy: %v", err)
		}
		db.with(func() { db.fail = nil })
		db.set(keyGrant+"n", granting("n", "anonymous", "", "pull oci:*"))
		time.Sleep(retryMost)
		holds(t, r, db, "up")
		confirmed := r.State().Confirmed
		db.with(func() { db.fail = down })
		time.Sleep(time.Hour)
		if err := admits(r, named("", "", "pull", "oci", "x")); err != nil {
			t.Errorf("the database's node is never stale: %v", err)
		}
		if c := r.State().Confirmed; c.Sub(confirmed) > pollEvery {
			t.Errorf("confirmed at %v by a database that is down", c)
		}
		db.with(func() { db.fail = nil })
		db.set(keyGrant+"n", nil)
		time.Sleep(retryMost)
		holds(t, r, db, "up again")
	})
}

// TestFollowGone has changes that are no longer kept; copies of the copy can
// follow all the same.
func TestFollowGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newDatabase()
		r := follow(t, db, Options{})
		for i := range 20 {
			db.set(keyGrant+name("g%d", i), granting(name("g%d", i), "anonymous", "", "pull oci:a"))
		}
		holds(t, r, db, "at first")
		copied := open(t, Options{})
		feed(t, copied, r)
		db.with(func() { db.fail = func(string) error { return registry.Errorf(registry.ErrUnavailable, "down") } })
		time.Sleep(time.Second)
		for i := range 10 {
			db.set(keyGrant+name("g%d", i*3), nil)
		}
		db.set(keyGrant+"x", granting("x", "anonymous", "", "pull oci:b"))
		db.with(func() { db.fail, db.gone = nil, db.rev-4 })
		time.Sleep(2 * retryMost)
		holds(t, r, db, "gone")
		d, ok := r.Deltas(copied.State().Version)
		if !ok {
			t.Fatal("copies need a snapshot")
		}
		if err := copied.Apply(d); err != nil || copied.State().Hash != r.State().Hash {
			t.Errorf("%v: %+v, want %+v", err, copied.State(), r.State())
		}
	})
}

// feed makes one replica a copy of another by a snapshot.
func feed(t *testing.T, to, from *Replica) {
	t.Helper()
	c := newView(nil, 0).change()
	v := from.view.Load()
	v.each(func(r *record) bool {
		c.put(registry.Record{Key: r.key, Value: []byte(r.value), Rev: r.rev})
		return true
	})
	c.version = v.version
	adopt(to, c.commit())
}

// TestFollowLate has records listed whose changes are not given yet.
func TestFollowLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newDatabase()
		held := db.set(keyGrant+"a", granting("a", "anonymous", "", "pull oci:a"))
		db.with(func() { db.hold = held })
		r := follow(t, db, Options{})
		time.Sleep(10 * time.Second)
		if r.State().Whole() {
			t.Errorf("%+v: what it has is of no version", r.State())
		}
		db.with(func() { db.hold = 0 })
		time.Sleep(retryMost)
		holds(t, r, db, "no longer held")
		if r.State().Version != held {
			t.Errorf("%+v", r.State())
		}
	})
}

func TestFollowNameless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newDatabase()
		db.set(keyDatabase, nil)
		r := follow(t, db, Options{})
		time.Sleep(time.Minute)
		if r.State().Whole() {
			t.Error("a copy of no database")
		}
		db.set(keyDatabase, "db")
		time.Sleep(retryMost)
		holds(t, r, db, "named")
	})
}

// TestFollowKept goes on from a file, also with another database.
func TestFollowKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{File: t.TempDir() + "/entitlements", Authority: true}
		db := newDatabase()
		db.set(keyGrant+"a", granting("a", "anonymous", "", "pull oci:a"))
		r := open(t, o)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_ = r.Follow(ctx, db)
		cancel()
		version := r.State().Version
		r = reopened(t, r)
		if err := admits(r, named("", "", "pull", "oci", "a")); err != nil {
			t.Error("from the file: ", err)
		}
		db.set(keyGrant+"a", nil)
		db.set(keyGrant+"b", granting("b", "anonymous", "", "pull oci:b"))
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		_ = r.Follow(ctx, db)
		cancel()
		holds(t, r, db, "after a restart")
		if d, ok := r.Deltas(version); !ok || len(d) != 1 || len(d[0].Records) != 2 {
			t.Errorf("%+v %v", d, ok)
		}
		other := newDatabase()
		other.set(keyDatabase, "other")
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		_ = r.Follow(ctx, other)
		cancel()
		holds(t, r, other, "another database")
	})
}

// TestFollowChaos has changes while everything fails now and then.
func TestFollowChaos(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			var mu sync.Mutex
			db := newDatabase()
			db.repeats = seed%2 == 0
			db.fail = func(what string) error {
				mu.Lock()
				defer mu.Unlock()
				switch rnd.IntN(12) {
				case 0:
					return registry.Errorf(registry.ErrUnavailable, "%s failed", what)
				case 1:
					return context.DeadlineExceeded
				}
				return nil
			}
			r := follow(t, db, Options{})
			last := uint64(0)
			for range 100 {
				mu.Lock()
				n, what, nap := rnd.IntN(8), rnd.IntN(5), rnd.IntN(100)
				mu.Unlock()
				g := granting(name("g%d", n), "anonymous", "", "pull oci:a")
				switch what {
				case 0:
					db.set(keyGrant+g.ID, nil)
				case 1:
					db.set("n/x", n)
				case 2:
					db.with(func() { db.gone = db.rev * 3 / 4 })
				default:
					db.set(keyGrant+g.ID, g)
				}
				time.Sleep(time.Duration(nap) * time.Millisecond)
				v := r.State().Version
				if v < last {
					t.Fatalf("version %d after %d", v, last)
				}
				last = v
			}
			db.with(func() { db.fail = nil })
			time.Sleep(5 * time.Second)
			holds(t, r, db, name("seed %d", seed))
		})
	}
}
