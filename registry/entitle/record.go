package entitle

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/weir-registry/weir/registry"
)

// Where the metadata database has what.
const (
	keyPrefix   = "e/"
	keyDatabase = "e/database"
	keyAccount  = "e/account/"
	keyTeam     = "e/team/"
	keyToken    = "e/token/"
	keyGrant    = "e/grant/"
	keySigning  = "e/key/"
)

// A record is what the copy has under a key. Records of a kind that this version
// of weir does not know, and those that make no sense, are kept and passed on
// like all others, so that copies are the same everywhere; they have no effect.
type record struct {
	key   string
	value []byte
	rev   uint64
	what  any // *member, *registry.Team, *token, *grant, *registry.SigningKey, database, or nil
}

type database string

// A grant is one, read.
type grant struct {
	right Right
	uid   string // whom it is for; "" is anonymous
	until int64
	level int8
	deny  bool
}

// A token is one, read.
type token struct {
	registry.Token
	until  int64
	rights *subject // nil: all that its owner may
}

// never is an until that does not come.
const never = math.MaxInt64

// until is a time that something expires at, in nanoseconds since 1970.
func until(t time.Time) int64 {
	switch {
	case t.IsZero() || t.Year() > 2261:
		return never
	case t.Year() < 1971:
		return 1
	}
	return t.UnixNano()
}

// checkRecord reports what is wrong with the form of a record that came from
// outside; its meaning is not looked at.
func checkRecord(rec *registry.Record) error {
	switch {
	case !strings.HasPrefix(rec.Key, keyPrefix) || len(rec.Key) > registry.MaxKey || !utf8.ValidString(rec.Key) || strings.Contains(rec.Key, "\x00"):
		return registry.Errorf(registry.ErrCorrupt, "there is a record with the key %.80q", rec.Key)
	case len(rec.Value) > registry.MaxValue:
		return registry.Errorf(registry.ErrCorrupt, "the record %.80q has %d bytes", rec.Key, len(rec.Value))
	case rec.Rev == 0:
		return registry.Errorf(registry.ErrCorrupt, "the record %.80q has no revision", rec.Key)
	}
	return nil
}

// read makes a record. The error says why it has no effect; the record is
// usable all the same.
func read(key string, value []byte, rev uint64) (*record, error) {
	r := &record{key: key, value: value, rev: rev}
	var err error
	switch {
	case key == keyDatabase:
		var id string
		if err = json.Unmarshal(value, &id); err == nil && id == "" {
			err = fmt.Errorf("it is empty")
		}
		r.what = database(id)
	case strings.HasPrefix(key, keyAccount):
		a := &member{}
		err = decode(value, &a.Account)
		if err == nil && (a.Name != key[len(keyAccount):] || a.Name == "" || a.UID == "") {
			err = fmt.Errorf("it is of %q with the UID %q", a.Name, a.UID)
		}
		r.what = a
	case strings.HasPrefix(key, keyTeam):
		t := &registry.Team{}
		err = decode(value, t)
		if err == nil && (t.Name != key[len(keyTeam):] || t.Name == "" || t.UID == "") {
			err = fmt.Errorf("it is of %q with the UID %q", t.Name, t.UID)
		}
		r.what = t
	case strings.HasPrefix(key, keyToken):
		r.what, err = readToken(key[len(keyToken):], value)
	case strings.HasPrefix(key, keyGrant):
		r.what, err = readGrant(key[len(keyGrant):], value)
	case strings.HasPrefix(key, keySigning):
		k := &registry.SigningKey{}
		err = decode(value, k)
		if err == nil && (k.ID != key[len(keySigning):] || k.ID == "" || len(k.Secret) != 32) {
			err = fmt.Errorf("its ID is %q, and its secret has %d bytes", k.ID, len(k.Secret))
		}
		r.what = k
	default:
		err = fmt.Errorf("this version of weir knows no such kind")
	}
	if err != nil {
		r.what = nil
		return r, fmt.Errorf("the record %.200q: %w", key, err)
	}
	return r, nil
}

// decode reads one JSON object, strictly but for members that it does not know.
func decode(value []byte, into any) error {
	if !bytes.HasPrefix(value, []byte("{")) {
		return fmt.Errorf("it is no JSON object")
	}
	return json.Unmarshal(value, into)
}

func readToken(id string, value []byte) (*token, error) {
	t := &token{}
	if err := decode(value, &t.Token); err != nil {
		return nil, err
	}
	if t.ID != id || id == "" || t.Owner == "" || t.UID == "" || len(t.Hash) != 32 {
		return nil, fmt.Errorf("its ID is %q, its owner %q with the UID %q, and its hash has %d bytes", t.ID, t.Owner, t.UID, len(t.Hash))
	}
	t.until = until(t.Expires)
	for i, p := range t.From {
		if !p.IsValid() {
			return nil, fmt.Errorf("network %d makes no sense", i)
		}
	}
	if t.Rights == nil {
		return t, nil
	}
	e := &edit{}
	for _, text := range t.Rights {
		right, err := ParseRight(text)
		if err != nil {
			return nil, err
		}
		t.rights = t.rights.with(e, &grant{right: right, until: never, level: int8(level(right.Action))})
	}
	if t.rights == nil { // an empty list, which nobody writes, is for nothing
		t.rights = &subject{}
	}
	return t, nil
}

func readGrant(id string, value []byte) (*grant, error) {
	var g registry.Grant
	if err := decode(value, &g); err != nil {
		return nil, err
	}
	// A grant whose UID was lost must not become one for everyone.
	if g.ID != id || id == "" || (g.UID == "") != (g.To == "anonymous") {
		return nil, fmt.Errorf("its ID is %q, and it is to %q with the UID %q", g.ID, g.To, g.UID)
	}
	right, err := ParseRight(g.Right)
	if err != nil {
		return nil, err
	}
	return &grant{right: right, uid: g.UID, until: until(g.Expires), level: int8(level(right.Action)), deny: g.Deny}, nil
}
