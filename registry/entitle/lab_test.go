package entitle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// open opens a replica that logs nowhere and is closed with the test.
func open(t testing.TB, o Options) *Replica {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// records are what is in a database, in a form that tests change.
type records map[string]registry.Record

func (m records) put(rev uint64, key string, what any) registry.Record {
	rec := registry.Record{Key: key, Rev: rev}
	if what == nil {
		delete(m, key)
		return rec
	}
	value, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	rec.Value = value
	m[key] = rec
	return rec
}

// base is a database with a name.
func base() records {
	m := records{}
	m.put(1, keyDatabase, "db")
	return m
}

// snapshot is the records as WriteSnapshot would write them.
func (m records) snapshot(version uint64) []byte {
	c := newView(nil, 0).change()
	for _, rec := range m {
		c.put(rec)
	}
	c.version = version
	var b bytes.Buffer
	if err := c.commit().write(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// load makes r a copy of the records.
func (m records) load(t testing.TB, r *Replica, version uint64) {
	t.Helper()
	if err := r.ReadSnapshot(bytes.NewReader(m.snapshot(version))); err != nil {
		t.Fatal(err)
	}
}

func account(name, uid string, teams ...string) registry.Account {
	return registry.Account{Name: name, UID: uid, Kind: registry.User, Teams: teams}
}

func granting(id, to, uid, right string) registry.Grant {
	return registry.Grant{ID: id, To: to, UID: uid, Right: right}
}

// secretOf is a token's secret, and the token.
func tokenOf(id, owner, uid string) (string, registry.Token) {
	secret := registry.NewTokenText()
	hash := registry.HashToken(secret)
	return secret, registry.Token{ID: id, Owner: owner, UID: uid, Hash: hash[:], Kind: "token"}
}

func named(name, uid, action, space, repo string) *registry.Call {
	return &registry.Call{Who: registry.Principal{Name: name, UID: uid}, Action: registry.Action(action), Name: registry.Name{Space: space, Repo: repo}}
}

func admits(r *Replica, c *registry.Call) error { return r.Admit(context.Background(), c) }

// step is the delta from the copy's version that these records make.
func step(r *Replica, recs ...registry.Record) registry.Delta {
	v := r.State().Version
	next := v + 1
	for i := range recs {
		next = max(next, recs[i].Rev)
	}
	return registry.Delta{Prev: v, Version: next, Records: recs}
}

func apply(t testing.TB, r *Replica, recs ...registry.Record) {
	t.Helper()
	if err := r.Apply([]registry.Delta{step(r, recs...)}); err != nil {
		t.Fatal(err)
	}
}

// confirm renews r's lease as of now.
func confirm(t testing.TB, r *Replica, at time.Time) {
	t.Helper()
	s := r.State()
	s.Confirmed = at
	if err := r.Confirm(s); err != nil {
		t.Fatal(err)
	}
}

func name(format string, args ...any) string { return fmt.Sprintf(format, args...) }
