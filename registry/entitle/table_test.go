package entitle

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// TestGrants has random grants come and go, and compares every version, the old
// ones too, with a plain list, for two accounts, one of them with a team.
func TestGrants(t *testing.T) {
	w := world{Rand: rand.New(rand.NewPCG(7, 7))}
	type version struct {
		v    *view
		list []*grant
	}
	now := version{v: newView(nil, 0)}
	var all []version
	filters := map[*filter]bool{}
	texts := map[*grant]string{} // their patterns
	// The matchers stay, through versions forth and back.
	a, b := &member{Account: account("a", "A", "T", "dead", "T")}, &member{Account: account("b", "B")}
	for i := range 2000 {
		c := now.v.change()
		if i == 0 {
			c.effect(&registry.Team{Name: "t", UID: "T"}, true)
		}
		for range 1 + w.IntN(3) {
			now.list = slices.Clone(now.list)
			if n := len(now.list); n > 0 && w.IntN(80) < n {
				k := w.IntN(n)
				c.regrant(now.list[k], texts[now.list[k]], false)
				now.list = slices.Delete(now.list, k, k+1)
			} else {
				right, err := ParseRight(w.right())
				if err != nil {
					t.Fatal(err)
				}
				one := newGrant(right)
				g := &one
				g.who, g.until, g.deny = &who{w.one("A", "B", "T", "dead")}, int64(1+w.IntN(9)), w.IntN(3) == 0
				c.regrant(g, right.Pattern, true)
				now.list, texts[g] = append(now.list, g), right.Pattern
			}
		}
		if i%300 == 299 { // empty it
			for _, g := range now.list {
				c.regrant(g, texts[g], false)
			}
			now.list = nil
			if s := c.subject("T"); c.subject("A") != nil || s == nil || s.grants+s.denials > 0 {
				t.Fatalf("something is left: %+v", s)
			}
			c.grants.each(func(g grant) { t.Fatalf("%+v is left", g) })
		}
		now.v = c.commit()
		filters[now.v.filter] = true
		all = append(all, now)
		for _, v := range []version{now, all[w.IntN(len(all))], now, all[w.IntN(len(all))]} {
			q := w.call()
			for l, action := range []registry.Action{registry.Pull, registry.Push, registry.Admin} {
				q.Action = action
				for m, uids := range map[*member][]string{a: {"A", "T"}, b: {"B"}} {
					var got, want tally
					v.v.tally(&got, v.v.compiled(m), q, int8(l))
					for _, g := range v.list {
						if slices.Contains(uids, g.who.uid) && (g.space.Value() == "" || g.space.Value() == q.Name.Space && naive(texts[g], q.Name.Repo)) {
							want.add(g, int8(l))
						}
					}
					if got != want {
						t.Fatalf("step %d: %s %v for %v: %+v, want %+v", i, action, q.Name, uids, got, want)
					}
				}
			}
		}
	}
	if len(filters) < 2 {
		t.Error("the filter never was full")
	}
}

// TestTable compares tables, the old ones too, with plain lists: with tags that
// are all different, and with such as agree in all the bits that tell leaves apart.
func TestTable(t *testing.T) {
	for what, tagOf := range map[string]func(i int) uint32{
		"spread": func(i int) uint32 { return uint32(i) * 0x9e3779b1 },
		"few":    func(i int) uint32 { return uint32(i % 7 * 0x10001) },
		"one":    func(i int) uint32 { return uint32(i) % 3 << bottom },
	} {
		rnd := rand.New(rand.NewPCG(3, 3))
		type version struct {
			table table[int]
			want  map[uint32][]int
		}
		now := version{want: map[uint32][]int{}}
		var all []version
		for i := range 200 {
			e := &edit{}
			next := version{now.table, map[uint32][]int{}}
			for tag, vals := range now.want {
				next.want[tag] = slices.Clone(vals)
			}
			for range rnd.IntN(60) {
				val := 1 + rnd.IntN(1000)
				tag := tagOf(val)
				if have := slices.Index(next.want[tag], val); have < 0 {
					next.table = next.table.add(e, tag, val)
					next.want[tag] = append(next.want[tag], val)
				} else if i/25%2 == 1 || rnd.IntN(8) == 0 {
					next.table = next.table.remove(e, tag, func(v *int) bool { return *v == val })
					next.want[tag] = slices.Delete(next.want[tag], have, have+1)
				}
			}
			now = next
			all = append(all, now)
			for _, v := range []version{now, all[rnd.IntN(len(all))]} {
				for range 20 {
					tag := tagOf(rnd.IntN(1000))
					if got, want := found(v.table, tag), slices.Sorted(slices.Values(v.want[tag])); !slices.Equal(got, want) {
						t.Fatalf("%s, step %d: %d: %d, want %d", what, i, tag, got, want)
					}
				}
				var each, want []int
				v.table.each(func(val int) { each = append(each, val) })
				for _, vals := range v.want {
					want = append(want, vals...)
				}
				slices.Sort(each)
				if slices.Sort(want); !slices.Equal(each, want) {
					t.Fatalf("%s, step %d: it has %d, want %d", what, i, each, want)
				}
			}
		}
		e := &edit{}
		for tag, vals := range now.want {
			for _, val := range vals {
				now.table = now.table.remove(e, tag, func(v *int) bool { return *v == val })
			}
		}
		now.table.each(func(val int) { t.Errorf("%s: %d is left", what, val) })
	}
}

func found(t table[int], tag uint32) []int {
	var vals []int
	at := t.at(tag)
	for v := at.next(); v != nil; v = at.next() {
		vals = append(vals, *v)
	}
	slices.Sort(vals)
	return vals
}

// TestPrefixes compares the hashes of beginnings with those of whole texts.
func TestPrefixes(t *testing.T) {
	s := "docker.io/a\x00/app"
	seen := map[uint64]int{}
	for first := range len(s) + 1 {
		p := prefixes{s: s, state: 1}
		p.hash(first)
		for n := first; n <= len(s); n++ {
			h := p.hash(n)
			alone := prefixes{s: s[:n], state: 1}
			if want := alone.hash(n); h != want {
				t.Errorf("%d after %d: %x, want %x", n, first, h, want)
			}
			if other, ok := seen[h]; ok && other != n {
				t.Errorf("the first %d and %d bytes have one hash", n, other)
			}
			seen[h] = n
		}
	}
}
