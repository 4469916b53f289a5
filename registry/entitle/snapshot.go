package entitle

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"github.com/weir-registry/weir/registry"
)

// A view is one version of the entitlements. Nothing in it ever changes.
type view struct {
	database string // "": there is no copy yet, and all is empty
	version  uint64
	records  int
	bytes    int64 // of keys and values
	hash     sum
	all      *btree.BTreeG[*record] // by key; nobody writes to this one
	seed     maphash.Seed
	accounts table[*member]  // by name
	tokens   table[*token]   // by ID
	secrets  table[*token]   // by hash
	subjects table[*subject] // by UID; "" is anonymous
	grants   table[grant]    // by whom they are for, space and literal
	filter   *filter         // of what grants are found by
	keys     []registry.SigningKey
	// serial counts the changes; touched says which one was the last to change
	// where the grants of a slot's subjects are looked for.
	serial  uint64
	touched *[slots]uint64
	anyone  *matcher // of the subject "", nil if there is none
	// configured is what the node's own configuration grants to anonymous.
	configured []grant
}

// newView is empty, with room for so many records.
func newView(configured []grant, records int) *view {
	return &view{
		all: btree.NewBTreeGOptions(func(a, b *record) bool { return a.key < b.key },
			btree.Options{NoLocks: true}),
		seed:       maphash.MakeSeed(),
		filter:     newFilter(records),
		touched:    new([slots]uint64),
		configured: configured,
	}
}

// salt is the hash of a text that is looked up, for this copy.
func (v *view) salt(s string) uint64 { return maphash.String(v.seed, s) }

// tagOf is what a table knows of a hash.
func tagOf(hash uint64) uint32 { return uint32(hash >> 32) }

func (v *view) tag(s string) uint32 { return tagOf(v.salt(s)) }

// key is what a grant is found by, as [view.probe] makes it.
func (v *view) key(g *grant) uint64 {
	p := prefixes{s: g.literal(), state: v.salt(g.space.Value())}
	return fold(p.hash(int(g.length))^v.salt(g.who.uid), fold3)
}

// account finds one by its name; nil if there is none.
func (v *view) account(name string) *member {
	at := v.accounts.at(v.tag(name))
	for a := at.next(); a != nil; a = at.next() {
		if (*a).Name == name {
			return *a
		}
	}
	return nil
}

// token finds one by its ID; nil if there is none.
func (v *view) token(id string) *token {
	at := v.tokens.at(v.tag(id))
	for t := at.next(); t != nil; t = at.next() {
		if (*t).ID == id {
			return *t
		}
	}
	return nil
}

// subject finds one by its UID; nil if there is none.
func (v *view) subject(uid string) *subject {
	at := v.subjects.at(v.tag(uid))
	for s := at.next(); s != nil; s = at.next() {
		if (*s).who.uid == uid {
			return *s
		}
	}
	return nil
}

// each gives the records in the order of their keys, until f says no.
func (v *view) each(f func(*record) bool) {
	v.all.Scan(f)
}

// tokenByHash finds a token. Should two have one hash it is the one whose ID
// comes first, on every node alike.
func (v *view) tokenByHash(hash []byte) *token {
	var found *token
	at := v.secrets.at(v.tag(string(hash)))
	for t := at.next(); t != nil; t = at.next() {
		if bytes.Equal((*t).Hash, hash) && (found == nil || (*t).ID < found.ID) {
			found = *t
		}
	}
	return found
}

// A change makes a view from another one. It is used by one goroutine; a change
// that is dropped without commit has never been.
type change struct {
	view
	edit     *edit
	copied   bool                // touched is the change's own
	affected map[string]struct{} // the UIDs for which anything is different; nil: nobody asks
	unread   []error             // why records have no effect; the first few
	failed   int                 // how many have none
}

func (v *view) change() *change {
	c := &change{view: *v, edit: &edit{}}
	c.serial++
	c.all = v.all.IsoCopy()
	return c
}

// commit gives the view. The change must not be used any more.
func (c *change) commit() *view {
	v := c.view
	if v.anyone == nil || !v.anyone.holds(&v) {
		if v.anyone = nil; v.subject("") != nil {
			v.anyone = v.match("", nil)
		}
	}
	return &v
}

// put replaces what is under a key; an empty value removes it.
func (c *change) put(rec registry.Record) {
	if len(rec.Value) == 0 {
		c.remove(rec.Key)
		return
	}
	c.remove(rec.Key)
	text := rec.Key + string(rec.Value)
	r, err := read(text[:len(rec.Key)], text[len(rec.Key):], rec.Value, rec.Rev)
	c.insert(r, err, digest(rec.Key, rec.Value, rec.Rev))
}

// insert is put for a record that has been read and whose key is new; err is why
// it has no effect.
func (c *change) insert(r *record, err error, hash sum) {
	if err != nil {
		if c.failed++; len(c.unread) < 4 {
			c.unread = append(c.unread, err)
		}
	}
	c.all.Set(r)
	c.records++
	c.bytes += int64(len(r.key) + len(r.value))
	c.hash.add(hash)
	c.effect(r.what, true)
	if _, ok := r.what.(*given); ok {
		r.what = nil
	}
}

func (c *change) remove(key string) {
	r, ok := c.all.Delete(&record{key: key})
	if !ok {
		return
	}
	c.records--
	c.bytes -= int64(len(r.key) + len(r.value))
	c.hash.sub(digest(r.key, []byte(r.value), r.rev))
	what := r.what
	if strings.HasPrefix(r.key, keyGrant) {
		if g, err := readGrant(r.key[len(keyGrant):], []byte(r.value)); err == nil {
			what = g
		}
	}
	c.effect(what, false)
}

// effect brings what checks look at in line with what has come or gone.
func (c *change) effect(what any, come bool) {
	switch w := what.(type) {
	case database:
		if c.database = ""; come {
			c.database = string(w)
		}
	case *member:
		if c.affect(w.UID); come {
			c.accounts = c.accounts.add(c.edit, c.tag(w.Name), w)
		} else {
			c.accounts = c.accounts.remove(c.edit, c.tag(w.Name), is(w))
		}
	case *registry.Team:
		c.regard(w.UID, func(s *subject) bool {
			if come {
				s.teams++
			} else {
				s.teams--
			}
			return true
		})
	case *token:
		if c.affect(w.UID); come {
			c.tokens = c.tokens.add(c.edit, c.tag(w.ID), w)
			c.secrets = c.secrets.add(c.edit, c.tag(string(w.Hash)), w)
		} else {
			c.tokens = c.tokens.remove(c.edit, c.tag(w.ID), is(w))
			c.secrets = c.secrets.remove(c.edit, c.tag(string(w.Hash)), is(w))
		}
	case *given:
		c.regrant(&w.grant, w.pattern, come)
	case *registry.SigningKey:
		c.keys = slices.DeleteFunc(slices.Clone(c.keys), func(k registry.SigningKey) bool { return k.ID == w.ID })
		if come {
			c.keys = append(c.keys, *w)
		}
		slices.SortFunc(c.keys, func(a, b registry.SigningKey) int {
			return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
		})
	}
}

// regrant has a grant of a pattern come or go.
func (c *change) regrant(g *grant, pattern string, come bool) {
	key := c.key(g)
	by := -1
	if come {
		by = 1
		if c.filter.room <= 0 {
			c.refilter()
		}
		c.filter.add(key)
	}
	c.regard(g.who.uid, func(s *subject) bool {
		if g.who = s.who; come {
			c.grants = c.grants.add(c.edit, tagOf(key), *g)
		} else {
			c.grants = c.grants.remove(c.edit, tagOf(key), g.like)
		}
		return s.count(g, pattern, by)
	})
}

// refilter makes a filter with room again, for the grants that there are now.
func (c *change) refilter() {
	n := 0
	c.grants.each(func(grant) { n++ })
	c.filter = newFilter(n)
	c.grants.each(func(g grant) { c.filter.add(c.key(&g)) })
}

// regard changes the subject with a UID; f reports whether its grants are to be
// looked for elsewhere now.
func (c *change) regard(uid string, f func(*subject) bool) {
	c.affect(uid)
	was := c.subject(uid)
	s := was.own(c.edit, uid)
	// When it is gone another one may come, whose grants have another who.
	if f(s) || s.empty() {
		c.touch(uid)
	}
	if was != s || s.empty() {
		if was != nil {
			c.subjects = c.subjects.remove(c.edit, c.tag(uid), is(was))
		}
		if !s.empty() {
			c.subjects = c.subjects.add(c.edit, c.tag(uid), s)
		}
	}
}

func (c *change) touch(uid string) {
	if !c.copied {
		touched := *c.touched
		c.touched, c.copied = &touched, true
	}
	c.touched[c.slot(uid)] = c.serial
}

func (c *change) affect(uid string) {
	if c.affected != nil {
		c.affected[uid] = struct{}{}
	}
}
