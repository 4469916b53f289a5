package entitle

import (
	"cmp"
	"hash/maphash"
	"slices"

	"github.com/hashicorp/go-memdb"

	"github.com/weir-registry/weir/registry"
)

// The memdb has one table of all records. An index more costs as much memory as
// all the rest of a grant, so what a check looks for is not in further indexes
// but in the tables of a view; only tokens are found in it, by their hash.
const (
	recordTable = "record"
	byKey       = "id"
	byHash      = "hash"
)

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		recordTable: {Name: recordTable, Indexes: map[string]*memdb.IndexSchema{
			byKey:  {Name: byKey, Unique: true, Indexer: keyIndex{}},
			byHash: {Name: byHash, AllowMissing: true, Indexer: hashIndex{}},
		}},
	}}
}

type keyIndex struct{}

func (keyIndex) FromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

func (keyIndex) FromObject(o any) (bool, []byte, error) { return true, []byte(o.(*record).key), nil }

// hashIndex is not unique: should two tokens have one hash, the one whose key
// comes first is found, on every node alike.
type hashIndex struct{}

func (hashIndex) FromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

func (hashIndex) FromObject(o any) (bool, []byte, error) {
	if t, ok := o.(*record).what.(*token); ok {
		return true, t.Hash, nil
	}
	return false, nil, nil
}

// A view is one version of the entitlements. Nothing in it ever changes.
type view struct {
	database string // "": there is no copy yet, and all is empty
	version  uint64
	records  int
	bytes    int64 // of keys and values
	hash     sum
	db       *memdb.MemDB // nobody writes to this one but the change that makes the next view
	accounts table[*member]
	subjects table[*subject] // by UID; "" is anonymous
	tokens   table[*token]   // by ID
	keys     []registry.SigningKey
	// serial counts the changes; touched says which one was the last to touch the
	// subjects of a slot, so that what was made of them is known to hold still.
	serial  uint64
	touched *[slots]uint64
	anyone  *subject // the subject "", nil if there is none
	// configured is what the node's own configuration grants to anonymous.
	configured *subject
}

func newView(configured *subject) *view {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(err) // the schema is a constant
	}
	seed := maphash.MakeSeed()
	return &view{
		// A snapshot of a memdb can be written to, and wakes nobody who watches.
		db:         db.Snapshot(),
		accounts:   table[*member]{seed: seed},
		subjects:   table[*subject]{seed: seed},
		tokens:     table[*token]{seed: seed},
		touched:    new([slots]uint64),
		configured: configured,
	}
}

// each gives the records in the order of their keys, until f says no.
func (v *view) each(f func(*record) bool) {
	it, err := v.db.Txn(false).Get(recordTable, byKey)
	if err != nil {
		panic(err) // there is such a table and such an index
	}
	for o := it.Next(); o != nil; o = it.Next() {
		if !f(o.(*record)) {
			return
		}
	}
}

// tokenByHash finds a token.
func (v *view) tokenByHash(hash []byte) *token {
	o, err := v.db.Txn(false).First(recordTable, byHash, hash)
	if err != nil || o == nil {
		return nil
	}
	return o.(*record).what.(*token)
}

// A change makes a view from another one. It is used by one goroutine; a change
// that is dropped without commit has never been.
type change struct {
	view
	edit     *edit
	txn      *memdb.Txn
	copied   bool                // touched is the change's own
	affected map[string]struct{} // the UIDs for which anything is different; nil: nobody asks
	unread   []error             // why records have no effect; the first few
	failed   int                 // how many have none
}

func (v *view) change() *change {
	c := &change{view: *v, edit: &edit{}}
	c.serial++
	c.db = v.db.Snapshot()
	c.txn = c.db.Txn(true)
	return c
}

// commit gives the view. The change must not be used any more.
func (c *change) commit() *view {
	c.txn.Commit()
	v := c.view
	v.anyone, _ = v.subjects.get("")
	return &v
}

func (c *change) drop() { c.txn.Abort() }

// put replaces what is under a key; an empty value removes it.
func (c *change) put(rec registry.Record) {
	if len(rec.Value) == 0 {
		c.remove(rec.Key)
		return
	}
	c.remove(rec.Key)
	r, err := read(rec.Key, rec.Value, rec.Rev)
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
	if err := c.txn.Insert(recordTable, r); err != nil {
		panic(err) // the indexers never fail
	}
	c.records++
	c.bytes += int64(len(r.key) + len(r.value))
	c.hash.add(hash)
	c.effect(r, true)
}

func (c *change) remove(key string) {
	o, err := c.txn.First(recordTable, byKey, key)
	if err != nil || o == nil {
		return
	}
	r := o.(*record)
	if err := c.txn.Delete(recordTable, r); err != nil {
		panic(err) // it has just been found
	}
	c.records--
	c.bytes -= int64(len(r.key) + len(r.value))
	c.hash.sub(digest(r.key, r.value, r.rev))
	c.effect(r, false)
}

// effect brings what checks look at in line with a record that has come or gone.
func (c *change) effect(r *record, come bool) {
	switch w := r.what.(type) {
	case database:
		if c.database = ""; come {
			c.database = string(w)
		}
	case *member:
		if c.affect(w.UID); come {
			c.accounts = c.accounts.set(c.edit, w.Name, w)
		} else {
			c.accounts = c.accounts.remove(c.edit, w.Name)
		}
	case *registry.Team:
		c.regard(w.UID, func(s *subject) *subject {
			if s = s.clone(); come {
				s.teams++
			} else {
				s.teams--
			}
			return s
		})
	case *token:
		if c.affect(w.UID); come {
			c.tokens = c.tokens.set(c.edit, w.ID, w)
		} else {
			c.tokens = c.tokens.remove(c.edit, w.ID)
		}
	case *grant:
		c.regard(w.uid, func(s *subject) *subject {
			if come {
				return s.with(c.edit, w)
			}
			return s.without(c.edit, w)
		})
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

// regard changes the subject with a UID.
func (c *change) regard(uid string, f func(*subject) *subject) {
	c.affect(uid)
	if !c.copied {
		touched := *c.touched
		c.touched, c.copied = &touched, true
	}
	c.touched[c.slot(uid)] = c.serial
	s, _ := c.subjects.get(uid)
	if s = f(s); s.empty() {
		c.subjects = c.subjects.remove(c.edit, uid)
	} else {
		c.subjects = c.subjects.set(c.edit, uid, s)
	}
}

func (c *change) affect(uid string) {
	if c.affected != nil {
		c.affected[uid] = struct{}{}
	}
}
