package entitle

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// TestTrie files random grants in tries and takes them out again, and compares
// every version, the old ones too, with a plain list.
func TestTrie(t *testing.T) {
	w := world{Rand: rand.New(rand.NewPCG(7, 7))}
	type version struct {
		s    *subject
		list []*grant
	}
	var now version
	var all []version
	for i := range 2000 {
		e := &edit{}
		for range 1 + w.IntN(3) {
			now.list = slices.Clone(now.list)
			if n := len(now.list); n > 0 && w.IntN(40) < n {
				k := w.IntN(n)
				now.s = now.s.without(e, now.list[k])
				now.list = slices.Delete(now.list, k, k+1)
			} else {
				right, err := ParseRight(w.right())
				if err != nil {
					t.Fatal(err)
				}
				g := &grant{right: right, until: int64(1 + w.IntN(9)), level: int8(level(right.Action)), deny: w.IntN(3) == 0}
				now.s, now.list = now.s.with(e, g), append(now.list, g)
			}
		}
		all = append(all, now)
		if i%300 == 299 { // empty it
			e := &edit{}
			for _, g := range now.list {
				now.s = now.s.without(e, g)
			}
			if now.list = nil; !now.s.empty() || now.s.denials != 0 {
				t.Fatalf("something is left: %+v", now.s)
			}
		}
		for _, v := range []version{now, all[w.IntN(len(all))], all[w.IntN(len(all))]} {
			if v.s == nil {
				continue
			}
			for _, sp := range v.s.spaces {
				checkShape(t, sp.root, true)
			}
			c := w.call()
			for l, a := range []registry.Action{registry.Pull, registry.Push, registry.Admin} {
				c.Action = a
				var got, want tally
				v.s.tally(&got, c, l)
				for _, g := range v.list {
					if g.deny && forbids(g.right.String(), c) {
						want.deny = max(want.deny, g.until)
					}
					if !g.deny && lets(g.right.String(), c) {
						want.allow = max(want.allow, g.until)
					}
				}
				if got != want {
					t.Fatalf("step %d: %s %v: %+v, want %+v", i, a, c.Name, got, want)
				}
				var listed tally
				if v.s.all != nil {
					listed.add(v.s.all, l)
				}
				for i := range v.s.spaces {
					if sp := &v.s.spaces[i]; sp.name == c.Name.Space {
						one := roots{lists: []*list{sp.compact()}, lengths: sp.compact().lengths}
						one.tally(&listed, c.Name.Repo, l)
					}
				}
				if listed != want {
					t.Fatalf("step %d: %s %v: %+v in lists, want %+v", i, a, c.Name, listed, want)
				}
			}
		}
	}
}

// checkShape checks that there is no node that need not be.
func checkShape(t *testing.T, n *node, root bool) {
	idle := n.exact == nil && n.prefix == nil && len(n.more) == 0
	if idle && (len(n.kids) == 0 || len(n.kids) == 1 && !root) || n.label == "" != root || len(n.heads) != len(n.kids) {
		t.Fatalf("a node of no use: %+v", n)
	}
	for i, kid := range n.kids {
		if kid.label[0] != n.heads[i] {
			t.Fatalf("a child that is not found: %+v", n)
		}
		checkShape(t, kid, false)
	}
}

// TestTable compares tables, the old ones too, with maps.
func TestTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	type version struct {
		table table[int]
		want  map[string]int
	}
	now := version{table[int]{seed: maphash.MakeSeed()}, map[string]int{}}
	var all []version
	for i := range 400 {
		e := &edit{}
		next := version{now.table, map[string]int{}}
		for k, v := range now.want {
			next.want[k] = v
		}
		for range rnd.IntN(60) {
			key := name("%d", rnd.IntN(3000))
			if i/50%2 == 1 && rnd.IntN(8) > 0 {
				next.table = next.table.remove(e, key)
				delete(next.want, key)
			} else {
				next.table = next.table.set(e, key, i)
				next.want[key] = i
			}
		}
		now = next
		all = append(all, now)
		for _, v := range []version{now, all[rnd.IntN(len(all))]} {
			for range 200 {
				key := name("%d", rnd.IntN(3000))
				got, ok := v.table.get(key)
				want, wok := v.want[key]
				if got != want || ok != wok {
					t.Fatalf("step %d: %s: %d %v, want %d %v", i, key, got, ok, want, wok)
				}
			}
		}
	}
	e := &edit{}
	for k := range now.want {
		now.table = now.table.remove(e, k)
	}
	if now.table.root != nil {
		t.Error("something is left of an empty table")
	}
}

// TestTableBottom puts keys with one hash into a table.
func TestTableBottom(t *testing.T) {
	e, seed := &edit{}, maphash.MakeSeed()
	b := &bucket[int]{edit: e}
	for i, key := range []string{"a", "b", "c", "b"} {
		b = b.set(e, seed, entry[int]{key, i}, 0, bottom)
	}
	if len(b.entries) != 3 || b.entries[1].val != 3 {
		t.Errorf("%+v", b.entries)
	}
	for _, key := range []string{"b", "x", "a"} {
		b = b.remove(e, key, 0, bottom)
	}
	if len(b.entries) != 1 || b.entries[0].key != "c" {
		t.Errorf("%+v", b.entries)
	}
	if b.remove(e, "c", 0, bottom) != nil {
		t.Error("something is left")
	}
}
