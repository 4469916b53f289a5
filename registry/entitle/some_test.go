package entitle

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// patterns are those of all grants and tokens in a space.
func (m model) patterns(space string) (all []string, muddled bool) {
	add := func(right string) {
		_, what, _ := strings.Cut(right, " ")
		if of, pattern, ok := strings.Cut(what, ":"); ok && of == space {
			all = append(all, pattern)
		}
	}
	for _, right := range m.configured {
		add(right)
	}
	each(m, keyGrant, func(g registry.Grant) {
		add(g.Right)
		muddled = muddled || g.Deny && strings.Count(g.Right, "*") > 1
	})
	each(m, keyToken, func(k registry.Token) {
		for _, right := range k.Rights {
			add(right)
		}
	})
	return append(all, "*"), muddled
}

// some is admit for a space as a whole, found by trying the names that may be it.
func (m model) some(c *registry.Call, now time.Time) error {
	all, _ := m.patterns(c.Name.Space)
	names := []string{""}
	for _, o := range c.Who.Only {
		names = append(names, o.Repo)
	}
	for i, p := range all {
		for _, star := range []string{"", "a", "b/", "\x00"} {
			names = append(names, strings.ReplaceAll(p, "*", star))
		}
		for _, r := range all[:i] {
			names = append(names, strings.ReplaceAll(overlap(p, r), "*", "\x00"), strings.ReplaceAll(overlap(p, r), "*", ""))
		}
	}
	one, first := *c, error(nil)
	one.Some = false
	for i, repo := range names {
		one.Name.Repo = repo
		kind, _ := m.admit(&one, now)
		if kind == nil {
			return nil
		}
		if i == 0 {
			first = kind
		}
	}
	if wider := *c; c.Who.Only != nil || c.Who.Token != "" {
		if wider.Who.Only, wider.Who.Token = nil, ""; m.some(&wider, now) == nil && !errors.Is(first, registry.ErrUnauthenticated) {
			return registry.ErrDenied
		} else if c.Who.Name == "" && m.some(&wider, now) == nil {
			return registry.ErrDenied // for less than anyone may
		}
	}
	return first
}

// TestSome compares what is decided about spaces with the model.
func TestSome(t *testing.T) {
	outcomes := map[string]int{}
	for seed := range uint64(40) {
		w := world{rand.New(rand.NewPCG(seed, 7)), time.Unix(1_800_000_000, 0)}
		configured := []string{"pull oci:ab*"}
		g, err := Parse(configured)
		if err != nil {
			t.Fatal(err)
		}
		r := open(t, Options{Anonymous: g, Now: func() time.Time { return w.now }})
		m := model{base(), configured}
		m.records.load(t, r, 1)
		for i := range 20 {
			var recs []registry.Record
			for range 1 + w.IntN(3) {
				recs = append(recs, w.record(m.records, uint64(2+i)))
			}
			apply(t, r, recs...)
			if _, muddled := m.patterns("npm"); muddled {
				continue // where the answer may be no
			}
			for range 4 {
				c := w.call()
				c.Name, c.Some = registry.Name{Space: "npm", Repo: "-"}, true
				want, got := m.some(c, w.now), admits(r, c)
				if registry.KindOf(got) != want {
					t.Fatalf("seed %d, step %d: %+v: %v, want %v\n%s", seed, i, c, got, want, dump(m.records))
				}
				outcomes[name("%v anonymous %v token %v only %v", want, c.Who.Name == "", c.Who.Token != "", c.Who.Only != nil)]++
			}
		}
	}
	for what, n := range outcomes {
		t.Log(n, what)
	}
	if len(outcomes) < 10 {
		t.Errorf("only %d kinds of outcome", len(outcomes))
	}
}

// TestSomeOf has the cases that matter, and what is said of the refusals.
func TestSomeOf(t *testing.T) {
	for _, c := range []struct {
		name      string
		grants    []string // "!" denies
		anonymous []string
		rights    []string
		kind      error
		scope     bool
	}{
		{name: "all", grants: []string{"pull *"}},
		{name: "a scope", grants: []string{"pull npm:@acme/*"}},
		{name: "one", grants: []string{"push npm:left"}},
		{name: "nothing", kind: registry.ErrDenied},
		{name: "images", grants: []string{"pull oci:*"}, kind: registry.ErrDenied},
		{name: "what anyone may", anonymous: []string{"pull npm:left"}},
		{name: "all that is granted is denied", grants: []string{"pull npm:@acme/a", "pull npm:@acme/b", "!pull npm:@acme/*"}, kind: registry.ErrDenied},
		{name: "some of it", grants: []string{"pull npm:@acme/*", "!pull npm:@acme/b"}},
		{name: "everything is denied", grants: []string{"pull *", "!pull npm:*"}, kind: registry.ErrDenied},
		{name: "a token for it", grants: []string{"pull npm:@acme/*"}, rights: []string{"pull npm:@acme/a"}},
		{name: "a token for more", grants: []string{"pull npm:@acme/a"}, rights: []string{"pull npm:@acme/*"}},
		{name: "a token for both", grants: []string{"pull npm:@acme/*-lib"}, rights: []string{"pull npm:@acme/x*"}},
		{name: "a token for something else", grants: []string{"pull npm:@acme/*"}, rights: []string{"pull npm:left"}, kind: registry.ErrDenied, scope: true},
		{name: "a token for images", grants: []string{"pull npm:@acme/*"}, rights: []string{"pull oci:*"}, kind: registry.ErrDenied, scope: true},
		{name: "a token of one who may nothing", rights: []string{"pull npm:*"}, kind: registry.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := base()
			m.put(2, keyAccount+"ann", account("ann", "U1"))
			_, tok := tokenOf("k", "ann", "U1")
			tok.Rights = c.rights
			m.put(3, keyToken+"k", tok)
			for i, right := range append(c.grants, c.anonymous...) {
				to, uid := "user:ann", "U1"
				if i >= len(c.grants) {
					to, uid = "anonymous", ""
				}
				g := granting(name("g%d", i), to, uid, strings.TrimPrefix(right, "!"))
				g.Deny = right[0] == '!'
				m.put(uint64(4+i), keyGrant+g.ID, g)
			}
			r := open(t, Options{})
			m.load(t, r, 99)
			call := named("ann", "U1", "pull", "npm", "-")
			call.Some, call.Who.Token = true, "k"
			err := admits(r, call)
			if registry.KindOf(err) != c.kind || errors.Is(err, registry.ErrScope) != c.scope {
				t.Fatal(err)
			}
			if err != nil && !c.scope && registry.Public(err) != `"ann" may not pull anything of npm here` {
				t.Error(registry.Public(err))
			}
		})
	}
}

// TestSomeIsQuick: nobody makes a node look through all that is granted.
func TestSomeIsQuick(t *testing.T) {
	const many = 20_000
	m := base()
	m.put(2, keyAccount+"ann", account("ann", "U1"))
	_, tok := tokenOf("k", "ann", "U1")
	tok.Rights = []string{"pull npm:zzz", "pull npm:@other/*"}
	m.put(3, keyToken+"k", tok)
	for i := range many {
		m.put(uint64(4+i), keyGrant+name("g%d", i), granting(name("g%d", i), "user:ann", "U1", name("pull npm:@acme/p%d", i)))
	}
	deny := granting("deny", "user:ann", "U1", "pull npm:@acme/*")
	deny.Deny = true
	r := open(t, Options{})
	m.load(t, r, many+10)
	call := named("ann", "U1", "pull", "npm", "-")
	call.Some = true
	most := func(what string, n float64) {
		t.Helper()
		if got := testing.AllocsPerRun(10, func() { _ = admits(r, call) }); got > n {
			t.Errorf("%s: %v allocations", what, got)
		}
	}
	most("granted", 100)
	call.Who.Token = "k"
	most("a token for something else", 200)
	call.Who.Token = ""
	apply(t, r, m.put(many+11, keyGrant+"deny", deny))
	most("all of it denied", 200)
	if err := admits(r, call); registry.KindOf(err) != registry.ErrDenied {
		t.Error(err)
	}
}
