package entitle

import (
	"bytes"
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// crowd is a view of n grants, spread over accounts and teams: each account is
// in five teams, and a fifth of the grants is to teams. It has a token of each
// account's, for "pull *".
func crowd(n, accounts int) *view {
	c := newView(nil).change()
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
	c := newView(nil).change()
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

const benchGrants = 1_000_000

func BenchmarkAdmit(b *testing.B) {
	r := open(b, Options{MaxStaleness: time.Hour})
	adopt(r, crowd(benchGrants, 10_000))
	confirm(b, r, time.Now())
	benchAdmit(b, r, 10_000)
	b.Run("WithDeltas", func(b *testing.B) {
		var stop, applied atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; stop.Load() == 0; i++ {
				g := granting(name("d%d", i%1000), "user:x", name("account-uid-%08d", i%10_000), name("pull oci:docker.io/new-%d/*", i))
				rec := records{}.put(uint64(benchGrants+100+i), keyGrant+g.ID, g)
				if err := r.Apply([]registry.Delta{step(r, rec)}); err != nil {
					panic(err)
				}
				applied.Add(1)
			}
		}()
		began := time.Now()
		benchAdmit(b, r, 10_000)
		b.Logf("%.0f deltas a second meanwhile", float64(applied.Load())/time.Since(began).Seconds())
		stop.Store(1)
		<-done
	})
	b.Run("Hermit", func(b *testing.B) {
		adopt(r, hermit(benchGrants))
		confirm(b, r, time.Now())
		benchAdmit(b, r, 1)
	})
}

// benchAdmit times what comes of calls of all accounts in turn.
func benchAdmit(b *testing.B, r *Replica, accounts int) {
	calls := make([]registry.Call, 4096)
	all := func(change func(i, g int, c *registry.Call)) {
		for i := range calls {
			g := i * 7919 % accounts // the grant that is g's own
			c := named(name("u%d", g), name("account-uid-%08d", g), "pull", "oci", name("docker.io/acme-%d/app-%d/image/name", g%1000, g))
			change(i, g, c)
			calls[i] = *c
		}
	}
	run := func(what string, want error) {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := r.Admit(context.Background(), &calls[i%len(calls)]); registry.KindOf(err) != want {
					b.Fatal(err, calls[i%len(calls)])
				}
			}
		})
	}
	own := func(_, g int, c *registry.Call) {
		for g%5 == 4 || g%100 == 7 { // is a team's, or a denial
			g += accounts
		}
	}
	_ = own
	all(func(_, g int, c *registry.Call) {
		if accounts > 1 && (g%5 == 4 || g%100 == 7) {
			g--
			c.Who.Name, c.Who.UID, c.Name.Repo = name("u%d", g), name("account-uid-%08d", g), name("docker.io/acme-%d/app-%d/image/name", g%1000, g)
		}
	})
	run("Hit", nil)
	for i := range calls {
		if accounts > 1 {
			calls[i].Who.Token = "k" + calls[i].Who.Name[1:]
		}
	}
	run("Token", nil)
	all(func(_, g int, c *registry.Call) { c.Name.Repo = "docker.io/nobody/has/this" })
	run("Miss", registry.ErrDenied)
}

func BenchmarkLoad(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	v := crowd(benchGrants, 10_000)
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Logf("%d bytes of memory for each grant", (after.HeapAlloc-before.HeapAlloc)/benchGrants)
	var snapshot bytes.Buffer
	if err := v.write(&snapshot); err != nil {
		b.Fatal(err)
	}
	runtime.KeepAlive(v)
	v = nil
	b.SetBytes(int64(snapshot.Len()))
	b.ResetTimer()
	for b.Loop() {
		r := open(b, Options{})
		if err := r.ReadSnapshot(bytes.NewReader(snapshot.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
