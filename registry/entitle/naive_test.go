package entitle

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// model is the rules in the fewest words, over the records as they are.
type model struct {
	records    records
	configured []string
}

func each[T any](m model, prefix string, f func(T)) {
	for key, rec := range m.records {
		if strings.HasPrefix(key, prefix) {
			var v T
			if err := json.Unmarshal(rec.Value, &v); err != nil {
				panic(err)
			}
			f(v)
		}
	}
}

var order = map[registry.Action]int{registry.Pull: 1, registry.Push: 2, registry.Admin: 3}

// about reports whether a right's repositories have c's.
func about(right string, c *registry.Call) bool {
	_, what, _ := strings.Cut(right, " ")
	space, pattern, _ := strings.Cut(what, ":")
	return what == "*" || space == c.Name.Space && naive(pattern, c.Name.Repo)
}

func action(right string) int {
	a, _, _ := strings.Cut(right, " ")
	return order[registry.Action(a)]
}

func lets(right string, c *registry.Call) bool {
	return about(right, c) && action(right) >= order[c.Action]
}

func forbids(right string, c *registry.Call) bool {
	return about(right, c) && action(right) <= order[c.Action]
}

func alive(expires, now time.Time) bool { return expires.IsZero() || now.Before(expires) }

// tell is whether the grants to some UIDs let c happen, and forbid it.
func (m model) tell(uids map[string]bool, c *registry.Call, now time.Time) (let, forbidden bool) {
	each(m, keyGrant, func(g registry.Grant) {
		if uids[g.UID] && alive(g.Expires, now) {
			let = let || !g.Deny && lets(g.Right, c)
			forbidden = forbidden || g.Deny && forbids(g.Right, c)
		}
	})
	return let, forbidden
}

// admit gives the kind of the refusal, and whether it is for the token's scope.
func (m model) admit(c *registry.Call, now time.Time) (kind error, scope bool) {
	if c.Who.Node {
		return nil, false
	}
	anyone, not := m.tell(map[string]bool{"": true}, c, now)
	for _, right := range m.configured {
		anyone = anyone || lets(right, c)
	}
	anyone = anyone && !not
	p := c.Who
	if p.Name == "" {
		if !anyone {
			return registry.ErrUnauthenticated, false
		}
		return m.within(nil, c)
	}
	var a registry.Account
	each(m, keyAccount, func(x registry.Account) {
		if x.Name == p.Name {
			a = x
		}
	})
	if a.UID == "" || a.UID != p.UID || a.Disabled {
		return registry.ErrUnauthenticated, false
	}
	var rights []string
	if p.Token != "" {
		found := false
		each(m, keyToken, func(k registry.Token) {
			if k.ID == p.Token && k.UID == a.UID && k.Owner == a.Name && alive(k.Expires, now) {
				rights, found = k.Rights, true
			}
		})
		if !found {
			return registry.ErrUnauthenticated, false
		}
	}
	uids := map[string]bool{a.UID: true}
	each(m, keyTeam, func(t registry.Team) {
		for _, uid := range a.Teams {
			uids[uid] = uids[uid] || uid == t.UID
		}
	})
	let, forbidden := m.tell(uids, c, now)
	if forbidden || !let && !anyone {
		return registry.ErrDenied, false
	}
	return m.within(rights, c)
}

func (m model) within(rights []string, c *registry.Call) (error, bool) {
	ok := rights == nil
	for _, right := range rights {
		ok = ok || lets(right, c)
	}
	if ok && c.Who.Only != nil {
		ok = false
		for _, o := range c.Who.Only {
			ok = ok || order[o.Action] >= order[c.Action] && o.Space == c.Name.Space && o.Repo == c.Name.Repo
		}
	}
	if !ok {
		return registry.ErrDenied, true
	}
	return nil, false
}

// A world makes random things that often have to do with each other.
type world struct {
	*rand.Rand
	now time.Time
}

func (w world) one(of ...string) string { return of[w.IntN(len(of))] }

func (w world) account() (name, uid string) {
	i := w.one("1", "2", "3")
	return "u" + i, "U" + i + w.one("", "", "", "b")
}

func (w world) team() string { return w.one("T1", "T2", "T3") }

func (w world) repo() string {
	s := ""
	if w.IntN(8) == 0 { // literals of about the length that is usual at most
		s = strings.Repeat("a", literalUsual-2)
	}
	for range w.IntN(5) {
		s += w.one("a", "b", "/", "ab")
	}
	return s
}

func (w world) right() string {
	what := "*"
	if w.IntN(6) > 0 {
		what = w.one("oci", "npm") + ":" + w.repo() + w.one("*", "*", "a", "b", "*a", "a*b", "*a*", "**")
	}
	return w.one("pull", "push", "admin") + " " + what
}

func (w world) expiry() time.Time {
	if w.IntN(2) == 0 {
		return time.Time{}
	}
	return w.now.Add(time.Duration(w.IntN(5)-2) * time.Second)
}

// record makes a random one, or removes one.
func (w world) record(m records, rev uint64) registry.Record {
	n := w.one("1", "2", "3", "4", "5", "6", "7", "8", "9")
	name, uid := w.account()
	key, what := "", any(nil)
	switch w.IntN(8) {
	case 0:
		a := account(name, uid)
		for range w.IntN(3) {
			a.Teams = append(a.Teams, w.team())
		}
		a.Disabled = w.IntN(8) == 0
		key, what = keyAccount+name, a
	case 1:
		t := w.one("1", "2", "3", "4")
		key, what = keyTeam+"t"+t, registry.Team{Name: "t" + t, UID: w.team()}
	case 2:
		_, k := tokenOf("k"+n, name, uid)
		for range w.IntN(3) {
			k.Rights = append(k.Rights, w.right())
		}
		k.Expires = w.expiry()
		key, what = keyToken+k.ID, k
	default:
		g := granting("g"+n, "user:x", w.one(uid, w.team(), ""), w.right())
		if g.UID == "" {
			g.To = "anonymous"
		}
		g.Deny, g.Expires = w.IntN(4) == 0, w.expiry()
		key, what = keyGrant+g.ID, g
	}
	if w.IntN(4) == 0 {
		what = nil
	}
	return m.put(rev, key, what)
}

func (w world) call() *registry.Call {
	c := named("", "", w.one("pull", "push", "admin"), w.one("oci", "npm"), w.repo())
	if w.IntN(20) == 0 {
		c.Name = registry.Name{}
	}
	if w.IntN(4) > 0 {
		c.Who.Name, c.Who.UID = w.account()
		if w.IntN(3) == 0 {
			c.Who.Token = "k" + w.one("1", "2", "3", "4", "5", "6", "7", "8", "9")
		}
	}
	if w.IntN(8) == 0 {
		c.Who.Only = []registry.Right{}
		for range w.IntN(3) {
			o := registry.Right{Action: registry.Action(w.one("pull", "push", "admin")), Space: c.Name.Space, Repo: c.Name.Repo}
			if w.IntN(2) == 0 {
				o.Repo = w.repo()
			}
			c.Who.Only = append(c.Who.Only, o)
		}
	}
	return c
}

// TestDecisions compares what is decided with the model, while random deltas
// change everything and time goes by.
func TestDecisions(t *testing.T) {
	outcomes := map[string]int{}
	for seed := range uint64(60) {
		w := world{rand.New(rand.NewPCG(seed, 2)), time.Unix(1_800_000_000, 0)}
		now := w.now
		var clock atomic.Int64 // now, for who watches meanwhile
		clock.Store(now.UnixNano())
		configured := []string{"pull oci:ab*", "pull npm:a"}
		g, err := Parse(configured)
		if err != nil {
			t.Fatal(err)
		}
		r := open(t, Options{Anonymous: g, Now: func() time.Time { return time.Unix(0, clock.Load()) }})
		m := model{base(), configured}
		m.records.load(t, r, 1)
		for i := range 60 {
			w.now = now
			clock.Store(now.UnixNano())
			var recs []registry.Record
			for range 1 + w.IntN(3) {
				recs = append(recs, w.record(m.records, uint64(2+i)))
			}
			apply(t, r, recs...)
			if i%20 == 19 { // a copy that has come in steps is one that was made whole
				fresh := open(t, Options{Anonymous: g, Now: r.o.Now})
				m.records.load(t, fresh, r.State().Version)
				if a, b := r.State(), fresh.State(); a != b {
					t.Fatalf("seed %d, step %d: %+v in steps, %+v whole", seed, i, a, b)
				}
				r = fresh
			}
			now = now.Add(time.Duration(w.IntN(2)) * time.Second / 2)
			clock.Store(now.UnixNano())
			for range 30 {
				c := w.call()
				kind, scope := m.admit(c, now)
				got := admits(r, c)
				if registry.KindOf(got) != kind || errors.Is(got, registry.ErrScope) != scope {
					t.Fatalf("seed %d, step %d: %+v: %v, want %v, scope %v\n%s", seed, i, c, got, kind, scope, dump(m.records))
				}
				outcomes[name("%v %v anonymous %v token %v", kind, scope, c.Who.Name == "", c.Who.Token != "")]++
			}
		}
	}
	for what, n := range outcomes {
		t.Log(n, what)
		if n < 20 {
			t.Errorf("%s: only %d times", what, n)
		}
	}
}

func dump(m records) string {
	s := ""
	for _, rec := range m {
		s += name("%s %s\n", rec.Key, rec.Value)
	}
	return s
}

// TestTokenAddresses compares networks with the plain meaning.
func TestTokenAddresses(t *testing.T) {
	r := open(t, Options{})
	m := base()
	m.put(2, keyAccount+"ann", account("ann", "U1"))
	secrets := map[string]string{}
	for _, networks := range []string{"", "10.0.0.0/8", "::ffff:10.0.0.0/104", "10.1.2.3/32 fd00::/8", "::/0", "0.0.0.0/0"} {
		secret, tok := tokenOf(name("k%d", len(secrets)), "ann", "U1")
		for _, p := range strings.Fields(networks) {
			tok.From = append(tok.From, netip.MustParsePrefix(p))
		}
		secrets[networks] = secret
		m.put(3, keyToken+tok.ID, tok)
	}
	m.load(t, r, 3)
	for addr, want := range map[string][]string{
		"10.9.9.9":         {"", "10.0.0.0/8", "::ffff:10.0.0.0/104", "0.0.0.0/0"},
		"::ffff:10.9.9.9":  {"", "10.0.0.0/8", "::ffff:10.0.0.0/104", "0.0.0.0/0"},
		"10.1.2.3":         {"", "10.0.0.0/8", "::ffff:10.0.0.0/104", "10.1.2.3/32 fd00::/8", "0.0.0.0/0"},
		"::ffff:10.1.2.3":  {"", "10.0.0.0/8", "::ffff:10.0.0.0/104", "10.1.2.3/32 fd00::/8", "0.0.0.0/0"},
		"11.0.0.1":         {"", "0.0.0.0/0"},
		"fd12::1":          {"", "10.1.2.3/32 fd00::/8", "::/0"},
		"fd12::1%eth0":     {"", "10.1.2.3/32 fd00::/8", "::/0"},
		"2001:db8::a00:99": {"", "::/0"},
	} {
		for networks, secret := range secrets {
			p, err := r.Token(secret, netip.MustParseAddr(addr))
			ok := false
			for _, one := range want {
				ok = ok || one == networks
			}
			if ok != (err == nil) {
				t.Errorf("%s from %q: %v, want %v", addr, networks, err, ok)
			}
			if err == nil && (p.Name != "ann" || p.UID != "U1" || p.Token == "") {
				t.Errorf("%+v", p)
			}
			if err != nil && registry.KindOf(err) != registry.ErrUnauthenticated {
				t.Error(err)
			}
		}
	}
}

// TestCallAddresses makes calls from where a token may be used and from elsewhere,
// by a principal that has been identified before.
func TestCallAddresses(t *testing.T) {
	r := open(t, Options{})
	m := base()
	m.put(2, keyAccount+"ann", account("ann", "U1"))
	m.put(2, keyGrant+"g", granting("g", "user:ann", "U1", "pull oci:*"))
	_, bound := tokenOf("bound", "ann", "U1")
	bound.From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	m.put(2, keyToken+bound.ID, bound)
	_, free := tokenOf("free", "ann", "U1")
	m.put(2, keyToken+free.ID, free)
	m.load(t, r, 2)
	for _, c := range []struct {
		token, addr string
		want        bool
	}{
		{"bound", "10.1.2.3", true}, {"bound", "::ffff:10.1.2.3", true}, {"bound", "11.1.2.3", false}, {"bound", "fd00::1", false},
		{"bound", "", true}, // who asks for a client does not always know
		{"free", "11.1.2.3", true}, {"free", "", true}, {"", "11.1.2.3", true},
	} {
		q := named("ann", "U1", "pull", "oci", "a")
		q.Who.Token = c.token
		q.Who.Only = []registry.Right{{Action: registry.Pull, Space: "oci", Repo: "a"}}
		if c.addr != "" {
			q.Addr = netip.MustParseAddr(c.addr)
		}
		err := admits(r, q)
		if c.want != (err == nil) {
			t.Errorf("the token %q from %q: %v", c.token, c.addr, err)
		}
		if err != nil && (registry.KindOf(err) != registry.ErrUnauthenticated || !strings.Contains(registry.Public(err), "address")) {
			t.Errorf("the token %q from %q: %v, for the client %q", c.token, c.addr, err, registry.Public(err))
		}
	}
}
