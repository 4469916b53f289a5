package entitle

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// crowd is a view of n grants, spread over accounts and teams: each account is
// in five teams, and a fifth of the grants is to teams. It has a token of each
// account's, for "pull *".
func crowd(n, accounts int) *view {
	c := newView(nil, 0).change()
	m := records{}
	put := func(rev uint64, key string, what any) { c.put(m.put(rev, key, what)); delete(m, key) }
	put(1, keyDatabase, "db")
	teams := max(accounts/10, 5)
	for i := range teams {
		put(2, keyTeam+name("t%d", i), registry.Team{Name: name("t%d", i), UID: name("team-uid-%08d", i)})
	}
	for i := range accounts {
		a := account(name("u%d", i), name("account-uid-%08d", i))
		for j := range 5 {
			a.Teams = append(a.Teams, name("team-uid-%08d", (i+j)%teams))
		}
		put(3, keyAccount+a.Name, a)
		_, tok := tokenOf(name("k%d", i), a.Name, a.UID)
		tok.Rights = []string{"pull *"}
		put(3, keyToken+tok.ID, tok)
	}
	for i := range n {
		g := granting(name("g%09d", i), "user:x", name("account-uid-%08d", i%accounts), name("pull oci:docker.io/acme-%d/app-%d/*", i%1000, i))
		if i%5 == 4 {
			g.UID = name("team-uid-%08d", i/5%teams)
		}
		if i%100 == 7 {
			g.Right, g.Deny = name("push oci:docker.io/acme-%d/app-%d/denied", i%1000, i), true
		}
		put(uint64(4+i), keyGrant+g.ID, g)
	}
	c.version = uint64(n + 10)
	return c.commit()
}

// hermit is a view in which one account has n grants.
func hermit(n int) *view {
	c := newView(nil, 0).change()
	m := records{}
	put := func(rev uint64, key string, what any) { c.put(m.put(rev, key, what)); delete(m, key) }
	put(1, keyDatabase, "db")
	put(2, keyAccount+"u0", account("u0", "account-uid-00000000"))
	for i := range n {
		right := name("pull oci:docker.io/acme-%d/app-%d/*", i%1000, i)
		put(uint64(4+i), keyGrant+name("g%09d", i), granting(name("g%09d", i), "user:u0", "account-uid-00000000", right))
	}
	c.version = uint64(n + 10)
	return c.commit()
}

// adopt makes v r's copy.
func adopt(r *Replica, v *view) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.install(v, nil, nil)
}

// benchGrants is the size that is to be shown. WEIR_GRANTS makes it another.
const benchGrants = 1_000_000

func grants(b *testing.B) int {
	if n, err := strconv.Atoi(os.Getenv("WEIR_GRANTS")); err == nil {
		return n
	}
	return benchGrants
}

// A stopwatch is of the processor time of one goroutine, which tells on a machine
// where others work too.
func cpu() time.Duration {
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// whole is the processor time of the process.
func whole() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// timed runs f n times and gives its processor time.
func timed(n int, f func(i int)) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := cpu()
	for i := range n {
		f(i)
	}
	return (cpu() - began) / time.Duration(n)
}

func BenchmarkAdmit(b *testing.B) {
	n := grants(b)
	r := open(b, Options{MaxStaleness: time.Hour})
	adopt(r, crowd(n, 10_000))
	confirm(b, r, time.Now())
	benchAdmit(b, r, n, 10_000)
	b.Run("WithDeltas", func(b *testing.B) {
		stop := make(chan struct{})
		done := make(chan int)
		go func() { done <- deltas(r, n, stop) }()
		began := time.Now()
		benchAdmit(b, r, n, 10_000)
		close(stop)
		b.Logf("%.0f deltas a second meanwhile", float64(<-done)/time.Since(began).Seconds())
	})
	b.Run("Delta", func(b *testing.B) {
		b.ReportAllocs()
		took := timed(b.N, func(i int) { grantMore(r, n, i) })
		b.ReportMetric(float64(took), "cpu-ns/op")
	})
	b.Run("Hermit", func(b *testing.B) {
		adopt(r, hermit(n))
		confirm(b, r, time.Now())
		benchAdmit(b, r, n, 1)
	})
}

// grantMore applies a delta of one grant.
func grantMore(r *Replica, n, i int) {
	g := granting(name("d%d", i%1000), "user:x", name("account-uid-%08d", i%10_000), name("pull oci:docker.io/new-%d/*", i))
	rec := records{}.put(r.State().Version+1, keyGrant+g.ID, g)
	if err := r.Apply([]registry.Delta{step(r, rec)}); err != nil {
		panic(err)
	}
}

// deltas applies some 10,000 a second until it is stopped, and counts them.
func deltas(r *Replica, n int, stop chan struct{}) int {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began, i := time.Now(), 0; ; {
		select {
		case <-stop:
			return i
		case <-tick.C:
			for ; i < int(time.Since(began)/(100*time.Microsecond)); i++ {
				grantMore(r, n, i)
			}
		}
	}
}

// calls are of so many of all accounts in turn, in no order: to what any of its
// own grants is about, the same with a token, to what nothing is granted for, and
// to what is denied.
func calls(n, accounts, turns int) (hit, token, miss, deny []registry.Call) {
	rnd := rand.New(rand.NewPCG(uint64(turns), 1))
	list := rnd.Perm(accounts)[:min(turns, accounts)]
	for i := range max(4096, turns) {
		a := list[i%len(list)]
		g := a + accounts*rnd.IntN(n/accounts)
		if accounts > 1 && g%5 == 4 { // it is a team's, of which the account is one
			g--
			a--
		}
		repo := name("docker.io/acme-%d/app-%d/image/name", g%1000, g)
		if d := g/100*100 + 7; accounts > 100 { // what all accounts of this number have are denials
			x := d % accounts
			deny = append(deny, *named(name("u%d", x), name("account-uid-%08d", x), "push", "oci", name("docker.io/acme-%d/app-%d/denied", d%1000, d)))
		}
		if accounts > 1 && g%100 == 7 {
			repo = name("docker.io/acme-%d/app-%d/image/name", (g-1)%1000, g-1)
			a--
		}
		c := named(name("u%d", a), name("account-uid-%08d", a), "pull", "oci", repo)
		hit = append(hit, *c)
		c.Name.Repo = name("docker.io/acme-%d/nobody-%d/has/this", g%1000, g)
		miss = append(miss, *c)
		c.Name.Repo = repo
		c.Who.Token = name("k%d", a)
		token = append(token, *c)
	}
	return hit, token, miss, deny
}

// pulls has each call come sixteen times in a row: a pull of an image asks for a
// manifest or two and some blobs, and each of these is admitted twice.
func pulls(list []registry.Call) []registry.Call {
	var out []registry.Call
	for i := range list {
		for range 16 {
			out = append(out, list[i])
		}
	}
	return out
}

func benchAdmit(b *testing.B, r *Replica, n, accounts int) {
	for _, turns := range []int{64, 4096, 10_000} {
		if turns > max(accounts, 64) {
			continue
		}
		hit, token, miss, deny := calls(n, accounts, turns)
		of := name("of %d", min(turns, accounts))
		benchCalls(b, "Hit "+of, r, hit, true)
		benchCalls(b, "Pull "+of, r, pulls(hit), true)
		if accounts > 1 {
			benchCalls(b, "Token "+of, r, token, true)
			benchCalls(b, "Deny "+of, r, deny, false)
		}
		benchCalls(b, "Miss "+of, r, miss, false)
	}
}

// arrived is a call as it is when a request has just been read: what the client sent
// is in the processor's caches, whatever is known about it need not be.
func arrived(c *registry.Call) registry.Call {
	out := *c
	for _, s := range []*string{&out.Name.Space, &out.Name.Repo, &out.Who.Name, &out.Who.UID, &out.Who.Token} {
		*s = strings.Clone(*s)
	}
	return out
}

// together is how many calls are timed together: few enough to be in the caches, and
// many enough for the clock.
const together = 64

// benchCalls makes the calls again and again, each batch of them as if it had just
// arrived. Besides the mean it gives the time of the fastest tenth of the batches,
// which is what it takes when nobody else uses up the caches, and of the middle one.
func benchCalls(b *testing.B, what string, r *Replica, list []registry.Call, want bool) {
	b.Run(what, func(b *testing.B) {
		admit := func(c *registry.Call) {
			if err := r.Admit(context.Background(), c); (err == nil) != want {
				b.Fatal(err, c)
			}
		}
		for i := range list { // make the matchers
			admit(&list[i])
		}
		at, hot := 0, make([]registry.Call, together)
		arrive := func() {
			for i := range hot {
				hot[i] = arrived(&list[at%len(list)])
				at++
			}
		}
		var rounds []time.Duration
		var all time.Duration
		for b.Loop() {
			arrive()
			began := time.Now()
			for i := range hot {
				admit(&hot[i])
			}
			took := time.Since(began)
			all += took
			rounds = append(rounds, took/together)
		}
		slices.Sort(rounds)
		arrive()
		i := 0
		b.ReportMetric(testing.AllocsPerRun(together-1, func() { admit(&hot[i%together]); i++ }), "allocs/check")
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(all/time.Duration(len(rounds)))/together, "mean-ns")
		b.ReportMetric(float64(rounds[len(rounds)/10]), "best-ns")
		b.ReportMetric(float64(rounds[len(rounds)/2]), "median-ns")
	})
}

func BenchmarkLoad(b *testing.B) {
	n := grants(b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	v := crowd(n, 10_000)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
	var snapshot bytes.Buffer
	if err := v.write(&snapshot); err != nil {
		b.Fatal(err)
	}
	runtime.KeepAlive(v)
	v = nil
	file := filepath.Join(b.TempDir(), "entitlements")
	kept := open(b, Options{File: file})
	if err := kept.ReadSnapshot(bytes.NewReader(snapshot.Bytes())); err != nil {
		b.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		b.Fatal(err)
	}
	kept = nil
	load := func(what string, f func(b *testing.B) *Replica) {
		b.Run(what, func(b *testing.B) {
			b.SetBytes(int64(snapshot.Len()))
			var took time.Duration
			for b.Loop() {
				began := whole()
				if r := f(b); r.State().Records < n {
					b.Fatal(r.State())
				}
				took += whole() - began
			}
			b.ReportMetric(took.Seconds()/float64(b.N), "cpu-s/op")
			b.ReportMetric(each, "B/grant")
		})
	}
	load("Snapshot", func(b *testing.B) *Replica {
		r := open(b, Options{})
		if err := r.ReadSnapshot(bytes.NewReader(snapshot.Bytes())); err != nil {
			b.Fatal(err)
		}
		return r
	})
	load("File", func(b *testing.B) *Replica { return open(b, Options{File: file}) })
}

// TestBounds checks what the benchmarks show at a smaller size, with slack for a
// machine that is busy: that the cost of a check does not depend on how many
// grants there are, that it allocates nothing, and what a delta and a grant cost.
func TestBounds(t *testing.T) {
	const n, accounts = 20_000, 1000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r := open(t, Options{MaxStaleness: time.Hour})
	adopt(r, crowd(n, accounts))
	confirm(t, r, time.Now())
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := int64(after.HeapAlloc-before.HeapAlloc) / n; each > 1200 {
		t.Errorf("%d bytes of memory for each grant", each)
	}
	hit, token, _, _ := calls(n, accounts, accounts)
	for what, list := range map[string][]registry.Call{"hit": hit, "token": token} {
		for i := range list { // make the matchers
			_ = r.Admit(context.Background(), &list[i])
		}
		i := 0
		if allocs := testing.AllocsPerRun(2000, func() {
			if err := r.Admit(context.Background(), &list[i%len(list)]); err != nil {
				t.Fatal(err)
			}
			i++
		}); allocs != 0 {
			t.Errorf("%s: %v allocations", what, allocs)
		}
		took := timed(50_000, func(i int) { _ = r.Admit(context.Background(), &list[i%len(list)]) })
		if t.Log(what, took); took > 5*time.Microsecond*conformance.RaceSlower {
			t.Errorf("%s: a check takes %v", what, took)
		}
	}
	took := timed(3000, func(i int) { grantMore(r, n, i) })
	if t.Log("delta", took); took > 500*time.Microsecond*conformance.RaceSlower {
		t.Errorf("a delta takes %v", took)
	}
	adopt(r, hermit(n))
	confirm(t, r, time.Now())
	one, _, miss, _ := calls(n, 1, 1)
	took = timed(50_000, func(i int) { _ = r.Admit(context.Background(), &one[i%len(one)]) })
	if t.Log("hermit", took); took > 5*time.Microsecond*conformance.RaceSlower {
		t.Errorf("one account with all grants: a check takes %v", took)
	}
	if allocs := testing.AllocsPerRun(100, func() { _ = r.Admit(context.Background(), &miss[0]) }); allocs > 2 {
		t.Errorf("a refusal: %v allocations", allocs)
	}
}
