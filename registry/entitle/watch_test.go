package entitle

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// people is a database with two accounts, a team and a token.
func people() records {
	m := base()
	m.put(2, keyAccount+"ann", account("ann", "UA", "T1"))
	m.put(2, keyAccount+"bob", account("bob", "UB"))
	m.put(2, keyTeam+"core", registry.Team{Name: "core", UID: "T1"})
	m.put(2, keyGrant+"a", granting("a", "user:ann", "UA", "pull oci:ann/*"))
	m.put(2, keyGrant+"b", granting("b", "user:bob", "UB", "pull oci:bob/*"))
	m.put(2, keyGrant+"t", granting("t", "team:core", "T1", "push oci:team/*"))
	m.put(2, keyGrant+"n", granting("n", "anonymous", "", "pull oci:open/*"))
	_, tok := tokenOf("k", "ann", "UA")
	m.put(2, keyToken+"k", tok)
	return m
}

// cuts is what has been told of running calls.
type cuts chan error

func (c cuts) revoked(err error) { c <- err }

func (c cuts) none(t *testing.T, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Fatalf("%s: cut: %v", why, err)
	default:
	}
}

func (c cuts) one(t *testing.T, kind error, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		if registry.KindOf(err) != kind {
			t.Fatalf("%s: %v, want %v", why, err, kind)
		}
	default:
		t.Fatalf("%s: not cut", why)
	}
}

// TestWatchCuts makes every change that ends an admission, and one beside it
// that does not.
func TestWatchCuts(t *testing.T) {
	ann := func(repo string) *registry.Call { return named("ann", "UA", "pull", "oci", repo) }
	byToken := ann("ann/x")
	byToken.Who.Token = "k"
	deny := granting("d", "user:x", "", "pull oci:*")
	deny.Deny = true
	to := func(g registry.Grant, to, uid string) registry.Grant { g.To, g.UID = to, uid; return g }
	disabled := account("ann", "UA", "T1")
	disabled.Disabled = true
	for _, c := range []struct {
		why  string
		call *registry.Call
		not  func(m records) registry.Record // changes nothing for call
		end  func(m records) registry.Record
		kind error
	}{
		{"grant removed", ann("ann/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"b", nil) },
			func(m records) registry.Record { return m.put(6, keyGrant+"a", nil) }, registry.ErrDenied},
		{"team's grant removed", ann("team/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"a", nil) },
			func(m records) registry.Record { return m.put(6, keyGrant+"t", nil) }, registry.ErrDenied},
		{"team left", ann("team/x"),
			func(m records) registry.Record { return m.put(5, keyAccount+"ann", account("ann", "UA", "T2", "T1")) },
			func(m records) registry.Record { return m.put(6, keyAccount+"ann", account("ann", "UA", "T2")) }, registry.ErrDenied},
		{"team removed", ann("team/x"),
			func(m records) registry.Record {
				return m.put(5, keyTeam+"else", registry.Team{Name: "else", UID: "T9"})
			},
			func(m records) registry.Record { return m.put(6, keyTeam+"core", nil) }, registry.ErrDenied},
		{"denied", ann("ann/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"d", to(deny, "anonymous", "")) },
			func(m records) registry.Record { return m.put(6, keyGrant+"d", to(deny, "user:ann", "UA")) }, registry.ErrDenied},
		{"team denied", ann("ann/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"d", to(deny, "user:bob", "UB")) },
			func(m records) registry.Record { return m.put(6, keyGrant+"d", to(deny, "team:core", "T1")) }, registry.ErrDenied},
		{"account removed", ann("ann/x"),
			func(m records) registry.Record { return m.put(5, keyAccount+"bob", nil) },
			func(m records) registry.Record { return m.put(6, keyAccount+"ann", nil) }, registry.ErrUnauthenticated},
		{"account made anew", ann("ann/x"),
			func(m records) registry.Record { return m.put(5, keyToken+"k", nil) },
			func(m records) registry.Record { return m.put(6, keyAccount+"ann", account("ann", "UA2", "T1")) }, registry.ErrUnauthenticated},
		{"account disabled", ann("open/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"a", nil) },
			func(m records) registry.Record { return m.put(6, keyAccount+"ann", disabled) }, registry.ErrUnauthenticated},
		{"token revoked", byToken,
			func(m records) registry.Record { return m.put(5, keyGrant+"t", nil) },
			func(m records) registry.Record { return m.put(6, keyToken+"k", nil) }, registry.ErrUnauthenticated},
		{"named by anonymous's grant", ann("open/x"),
			func(m records) registry.Record { return m.put(5, keyGrant+"a", nil) },
			func(m records) registry.Record { return m.put(6, keyGrant+"n", nil) }, registry.ErrDenied},
		{"anonymous", named("", "", "pull", "oci", "open/x"),
			func(m records) registry.Record { return m.put(5, keyAccount+"ann", nil) },
			func(m records) registry.Record { return m.put(6, keyGrant+"d", to(deny, "anonymous", "")) }, registry.ErrUnauthenticated},
	} {
		t.Run(c.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, m, told := open(t, Options{}), people(), make(cuts, 9)
				m.load(t, r, 4)
				stop := r.Watch(c.call, told.revoked)
				defer stop()
				apply(t, r, c.not(m))
				told.none(t, "something else")
				apply(t, r, c.end(m))
				told.one(t, c.kind, c.why)
				apply(t, r, m.put(7, keyGrant+"a", nil))
				told.none(t, "once is enough")
				if len(r.watches.all)+len(r.watches.by) != 0 {
					t.Error("something is left in the index")
				}
			})
		})
	}
}

// TestWatchSnapshot cuts by a snapshot, and at once what is not admitted.
func TestWatchSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m, told := open(t, Options{}), people(), make(cuts, 9)
		defer r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), told.revoked)()
		told.one(t, registry.ErrUnavailable, "no copy yet")
		m.load(t, r, 4)
		defer r.Watch(named("bob", "UB", "pull", "oci", "bob/x"), told.revoked)()
		stopped := r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), told.revoked)
		m.put(5, keyGrant+"a", nil)
		stopped()
		m.load(t, r, 5)
		told.none(t, "stopped")
		m.put(6, keyGrant+"b", nil)
		m.load(t, r, 6)
		told.one(t, registry.ErrDenied, "snapshot without the grant")
		stopped()
	})
}

// TestExpiry counts at the moment of a check, and cuts running calls at it.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m, told := open(t, Options{}), people(), make(cuts, 9)
		g := granting("a", "user:ann", "UA", "pull oci:ann/*")
		g.Expires = time.Now().Add(time.Minute)
		m.put(3, keyGrant+"a", g)
		secret, tok := tokenOf("k", "ann", "UA")
		tok.Expires = time.Now().Add(30 * time.Second)
		m.put(3, keyToken+"k", tok)
		d := granting("d", "user:bob", "UB", "pull oci:bob/*")
		d.Deny, d.Expires = true, time.Now().Add(time.Minute)
		m.put(3, keyGrant+"d", d)
		m.load(t, r, 4)
		c, bob := named("ann", "UA", "pull", "oci", "ann/x"), named("bob", "UB", "pull", "oci", "bob/x")
		byToken := *c
		byToken.Who.Token = "k"
		defer r.Watch(c, told.revoked)()
		time.Sleep(29 * time.Second)
		if _, err := r.Token(secret, byToken.Addr); err != nil || r.Current(byToken.Who, byToken.Addr) != nil {
			t.Fatal(err)
		}
		stop := r.Watch(&byToken, told.revoked)
		time.Sleep(time.Second - time.Nanosecond)
		told.none(t, "token before its end")
		time.Sleep(time.Millisecond)
		told.one(t, registry.ErrUnauthenticated, "token after its end")
		stop()
		if _, err := r.Token(secret, byToken.Addr); registry.KindOf(err) != registry.ErrUnauthenticated || registry.KindOf(r.Current(byToken.Who, byToken.Addr)) != registry.ErrUnauthenticated {
			t.Error(err)
		}
		time.Sleep(29 * time.Second)
		told.none(t, "grant before its end")
		if err := admits(r, c); err != nil {
			t.Error(err)
		}
		if err := admits(r, bob); registry.KindOf(err) != registry.ErrDenied {
			t.Error("denied: ", err)
		}
		time.Sleep(time.Second)
		told.one(t, registry.ErrDenied, "grant after its end")
		if err := admits(r, c); registry.KindOf(err) != registry.ErrDenied {
			t.Error(err)
		}
		if err := admits(r, bob); err != nil {
			t.Error("the denial has expired: ", err)
		}
	})
}

// TestExpiryMovesOn has a grant with another one behind it, and one that is
// made longer while a call runs.
func TestExpiryMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m, told := open(t, Options{}), people(), make(cuts, 9)
		g := granting("a", "user:ann", "UA", "pull oci:ann/*")
		g.Expires = time.Now().Add(time.Minute)
		m.put(3, keyGrant+"a", g)
		anyone := granting("n", "anonymous", "", "pull oci:*")
		anyone.Expires = time.Now().Add(2 * time.Minute)
		m.put(3, keyGrant+"n", anyone)
		m.load(t, r, 4)
		defer r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), told.revoked)()
		time.Sleep(90 * time.Second)
		told.none(t, "granted to anyone")
		anyone.Expires = time.Now().Add(2 * time.Hour)
		apply(t, r, m.put(5, keyGrant+"n", anyone))
		time.Sleep(2*time.Hour - time.Millisecond)
		told.none(t, "made longer")
		time.Sleep(2 * time.Millisecond)
		told.one(t, registry.ErrDenied, "the end of it")
	})
}

// TestStop says what holds when a stop meets a call being cut.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := open(t, Options{}), people()
		m.load(t, r, 4)
		var stop func()
		within := make(chan struct{})
		stop = r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), func(error) { stop(); close(within) })
		goOn, running := make(chan struct{}), make(chan struct{})
		var done atomic.Bool
		other := r.Watch(named("ann", "UA", "pull", "oci", "ann/y"), func(error) {
			close(running)
			<-goOn
			done.Store(true)
		})
		apply(t, r, m.put(5, keyGrant+"a", nil))
		<-within // no deadlock
		<-running
		time.AfterFunc(time.Second, func() { close(goOn) })
		if other(); !done.Load() {
			t.Error("stop returned while revoked was running")
		}
		other()
	})
}

// TestWatchRace has calls begin and end while grants come and go: a call whose
// grant is gone in the end has been cut, one whose grant was always there has not.
func TestWatchRace(t *testing.T) {
	r, m := open(t, Options{}), people()
	m.load(t, r, 4)
	const calls = 300
	var firm, wrong atomic.Int64
	var work sync.WaitGroup
	over := make(chan struct{})
	for range 3 {
		work.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				stop := r.Watch(named("bob", "UB", "pull", "oci", "bob/x"), func(error) { wrong.Add(1) })
				if admits(r, named("bob", "UB", "pull", "oci", "bob/x")) != nil {
					wrong.Add(1)
				}
				firm.Add(1)
				stop()
			}
		})
	}
	told := make(chan int, 2*calls)
	var watching sync.WaitGroup
	for i := range calls {
		watching.Go(func() {
			for range rand.IntN(1000) {
				runtime.Gosched()
			}
			r.Watch(named("ann", "UA", "pull", "oci", name("ann/%d", i)), func(error) { told <- i })
		})
	}
	a := granting("a", "user:ann", "UA", "pull oci:ann/*")
	for i := range uint64(200) {
		if i%2 == 0 {
			apply(t, r, m.put(5+i, keyGrant+"x", a))
		} else {
			apply(t, r, m.put(5+i, keyGrant+"x", nil))
		}
	}
	watching.Wait()
	apply(t, r, m.put(1000, keyGrant+"a", nil), m.put(1000, keyGrant+"x", nil))
	seen := map[int]bool{}
	for range calls {
		select {
		case i := <-told:
			if seen[i] {
				t.Fatal("told twice")
			}
			seen[i] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("%d of %d calls were cut", len(seen), calls)
		}
	}
	close(over)
	work.Wait()
	if wrong.Load() > 0 || firm.Load() == 0 {
		t.Errorf("%d of %d calls of another account were cut or refused", wrong.Load(), firm.Load())
	}
}

// TestWatchMeanwhile has a change come between the decision about a call and its
// place in the index, where nobody who looks for the calls of the change finds it.
func TestWatchMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *Replica
		var between func()
		r = open(t, Options{Now: func() time.Time {
			if f := between; f != nil {
				between = nil
				f()
			}
			return time.Now()
		}})
		m, told := people(), make(cuts, 9)
		m.load(t, r, 4)
		synctest.Wait()
		between = func() { apply(t, r, m.put(5, keyGrant+"a", nil)) }
		defer r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), told.revoked)()
		told.one(t, registry.ErrDenied, "removed meanwhile")
	})
}

// TestWatchOnlyAffected checks that a change looks at no call that it cannot
// concern.
func TestWatchOnlyAffected(t *testing.T) {
	r, m := open(t, Options{}), people()
	m.load(t, r, 4)
	for i := range 1000 {
		defer r.Watch(named("bob", "UB", "pull", "oci", name("bob/%d", i)), func(error) { t.Error("cut") })()
	}
	defer r.Watch(named("ann", "UA", "pull", "oci", "ann/x"), func(error) {})()
	r.stop() // nobody takes them but this test
	r.work.Wait()
	r.watches.take()
	apply(t, r, m.put(5, keyGrant+"a", nil))
	if n := len(r.watches.take()); n != 1 {
		t.Errorf("%d calls were to be looked at", n)
	}
}

// TestLease lets the time go by without a word.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		past := Past{Anonymous: true, Push: true}
		r, m, told := open(t, Options{MaxStaleness: time.Minute, Past: past}), people(), make(cuts, 9)
		m.load(t, r, 4)
		pull, push := named("ann", "UA", "pull", "oci", "ann/x"), named("ann", "UA", "push", "oci", "team/x")
		admin, anyone := named("ann", "UA", "admin", "oci", "ann/x"), named("", "", "pull", "oci", "open/x")
		if by, late := r.Stale(); !late || by < time.Hour || registry.KindOf(admits(r, pull)) != registry.ErrUnavailable {
			t.Errorf("never confirmed: %v %v", by, late)
		}
		confirm(t, r, time.Now().Add(-10*time.Second))
		defer r.Watch(pull, told.revoked)()
		defer r.Watch(push, told.revoked)()
		defer r.Watch(anyone, told.revoked)()
		time.Sleep(50 * time.Second)
		told.none(t, "just within the lease")
		if by, late := r.Stale(); by != time.Minute || late {
			t.Errorf("%v %v", by, late)
		}
		if err := admits(r, pull); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
		told.one(t, registry.ErrUnavailable, "past the lease")
		told.none(t, "pushes and anonymous go on")
		for call, want := range map[*registry.Call]error{pull: registry.ErrUnavailable, push: nil, admin: registry.ErrUnavailable, anyone: nil} {
			err := admits(r, call)
			if registry.KindOf(err) != want || err != nil && registry.RetryAfter(err) != afterStale {
				t.Errorf("%s %v: %v", call.Action, call.Who, err)
			}
		}
		confirm(t, r, time.Now().Add(time.Hour)) // in the future: now
		time.Sleep(59 * time.Second)
		if err := admits(r, pull); err != nil {
			t.Error(err)
		}
		confirm(t, r, time.Now().Add(-59*time.Second)) // older than what is known
		time.Sleep(2 * time.Second)
		if _, late := r.Stale(); !late {
			t.Error("a time in the future counted")
		}
	})
}

func TestConfirmRefuses(t *testing.T) {
	r, m := open(t, Options{}), people()
	if err := r.Confirm(registry.Standing{}); registry.KindOf(err) != registry.ErrGone {
		t.Error(err)
	}
	m.load(t, r, 4)
	for _, c := range []struct {
		change func(*registry.Standing)
		kind   error
	}{
		{func(s *registry.Standing) { s.Version++ }, registry.ErrGone},
		{func(s *registry.Standing) { s.Version-- }, registry.ErrGone},
		{func(s *registry.Standing) { s.Hash = s.Hash[:63] + "x" }, registry.ErrGone},
		{func(s *registry.Standing) { s.Database = "other" }, registry.ErrConflict},
	} {
		s := r.State()
		s.Confirmed = time.Now()
		c.change(&s)
		if err := r.Confirm(s); registry.KindOf(err) != c.kind || !r.State().Confirmed.IsZero() {
			t.Errorf("%+v: %v", s, err)
		}
	}
	confirm(t, r, time.Now())
	if r.State().Confirmed.IsZero() {
		t.Error("not confirmed")
	}
}

// TestClockSetBack runs with a wall clock that jumps.
func TestClockSetBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var ahead time.Duration
	r := open(t, Options{MaxStaleness: time.Minute, Now: func() time.Time { return now.Add(ahead) }})
	people().load(t, r, 4)
	confirm(t, r, now)
	r.stop() // this test changes what the others look at
	r.work.Wait()
	ahead = 2 * time.Minute
	if _, past := r.Stale(); !past {
		t.Error("the wall clock does not count")
	}
	// What the clock without a wall says counts though the wall clock is earlier.
	l := *r.lease.Load()
	l.mono -= time.Hour
	r.lease.Store(&l)
	ahead = -time.Hour
	r.base = now.Add(-time.Hour)
	if by, past := r.Stale(); !past || by < time.Hour {
		t.Errorf("%v %v", by, past)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := open(t, Options{}), people()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Wait(ctx, 0); registry.KindOf(err) != registry.ErrUnavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		done := make(chan error, 3)
		for _, v := range []uint64{3, 5, 6} {
			go func() { done <- r.Wait(t.Context(), v) }()
		}
		m.load(t, r, 4)
		synctest.Wait()
		if len(done) != 1 {
			t.Errorf("%d waits are over", len(done))
		}
		apply(t, r, m.put(5, keyGrant+"a", nil))
		synctest.Wait()
		if len(done) != 2 {
			t.Errorf("%d waits are over", len(done))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := <-done; registry.KindOf(err) != registry.ErrUnavailable {
			t.Error(err)
		}
	})
}

func TestDeltas(t *testing.T) {
	r, m := open(t, Options{}), people()
	if _, ok := r.Deltas(0); ok {
		t.Error("deltas of nothing")
	}
	m.load(t, r, 10)
	if d, ok := r.Deltas(10); !ok || len(d) != 0 {
		t.Error(d, ok)
	}
	other := open(t, Options{})
	if err := other.ReadSnapshot(bytes.NewReader(m.snapshot(10))); err != nil {
		t.Fatal(err)
	}
	const n = ringDeltas + 100
	for i := range uint64(n) {
		apply(t, r, m.put(20+10*i, keyGrant+name("g%d", i%50), granting(name("g%d", i%50), "user:ann", "UA", name("pull oci:%d", i))))
	}
	for _, after := range []uint64{10, 20, 20 + 10*98, 20 + 10*99 + 1, 20 + 10*n} {
		if _, ok := r.Deltas(after); ok {
			t.Errorf("deltas after %d", after)
		}
	}
	if d, ok := r.Deltas(20 + 10*99); !ok || len(d) != ringDeltas {
		t.Error(len(d), ok)
	}
	m.load(t, other, 20+10*4000)
	if d, ok := r.Deltas(20 + 10*4000); !ok || len(d) != 195 {
		t.Error(len(d), ok)
	}
	big := make([]registry.Record, 40)
	for i := range big {
		big[i] = m.put(1e6, "e/unknown/"+name("%d", i), bytes.Repeat([]byte("x"), 180_000))
	}
	apply(t, r, big...)
	if len(r.ring.list) != 0 || r.ring.bytes != 0 {
		t.Errorf("%d deltas of %d bytes", len(r.ring.list), r.ring.bytes)
	}
}

// Who is known by a password is nobody once it is another, and what he is being
// sent is cut; his tokens go on.
func TestAnOldPasswordIsNobodys(t *testing.T) {
	r := open(t, Options{})
	alice := account("alice", "u1")
	alice.Secret = 7
	secret, tok := tokenOf("t1", "alice", "u1")
	m := records{}
	m.put(1, keyDatabase, "db")
	m.put(2, keyAccount+"alice", alice)
	m.put(3, keyGrant+"g1", granting("g1", "user:alice", "u1", "pull npm:*"))
	m.put(4, keyToken+"t1", tok)
	m.load(t, r, 4)
	byPassword := named("alice", "u1", "pull", "npm", "a")
	if err := admits(r, byPassword); registry.KindOf(err) != registry.ErrUnauthenticated {
		t.Errorf("by another password: %v", err)
	}
	byPassword.Who.Secret = 7
	if err := admits(r, byPassword); err != nil {
		t.Fatal(err)
	}
	cut := make(chan error, 1)
	defer r.Watch(byPassword, func(err error) { cut <- err })()
	alice.Secret = 8
	m.put(5, keyAccount+"alice", alice)
	apply(t, r, m[keyAccount+"alice"])
	if err := <-cut; registry.KindOf(err) != registry.ErrUnauthenticated {
		t.Errorf("cut with %v", err)
	}
	if err := r.Current(byPassword.Who, netip.Addr{}); registry.KindOf(err) != registry.ErrUnauthenticated {
		t.Errorf("it is %v", err)
	}
	p, err := r.Token(secret, netip.Addr{})
	if err == nil {
		err = admits(r, &registry.Call{Who: p, Action: registry.Pull, Name: byPassword.Name})
	}
	if err != nil {
		t.Errorf("by a token: %v", err)
	}
}

// What a token made known elsewhere is not current where the token is not for.
func TestCurrentIsFromTheTokensNetworks(t *testing.T) {
	r := open(t, Options{})
	_, tok := tokenOf("t1", "alice", "u1")
	tok.From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	m := base()
	m.put(2, keyAccount+"alice", account("alice", "u1"))
	m.put(3, keyToken+"t1", tok)
	m.load(t, r, 3)
	p := registry.Principal{Name: "alice", UID: "u1", Token: "t1"}
	for addr, good := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "192.0.2.1": false, "::1": false} {
		if err := r.Current(p, netip.MustParseAddr(addr)); (err == nil) != good {
			t.Errorf("from %s: %v", addr, err)
		}
	}
	if err := r.Current(p, netip.Addr{}); err == nil {
		t.Error("from nowhere it is good")
	}
}

// A token that was made on the word of a node in front does what its owner may
// with repositories, and does not administer weir.
func TestATokenOnANodesWordAdministersNothing(t *testing.T) {
	r := open(t, Options{})
	_, own := tokenOf("t1", "alice", "u1")
	_, said := tokenOf("t2", "alice", "u1")
	said.Via = "edge1"
	m := base()
	m.put(2, keyAccount+"alice", account("alice", "u1"))
	m.put(3, keyGrant+"g1", granting("g1", "user:alice", "u1", "admin *"))
	m.put(4, keyToken+"t1", own)
	m.put(5, keyToken+"t2", said)
	m.load(t, r, 5)
	administer := named("alice", "u1", "admin", "", "")
	administer.Who.Token = "t1"
	if err := admits(r, administer); err != nil {
		t.Error(err)
	}
	administer.Who.Token = "t2"
	if err := admits(r, administer); registry.KindOf(err) != registry.ErrDenied || !errors.Is(err, registry.ErrScope) {
		t.Errorf("it administers: %v", err)
	}
	push := named("alice", "u1", "push", "oci", "acme/app")
	push.Who.Token = "t2"
	if err := admits(r, push); err != nil {
		t.Error(err)
	}
}
