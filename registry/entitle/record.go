package entitle

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
	"unique"

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
	value string // what what has of texts is in it
	rev   uint64
	// what is a *member, *registry.Team, *token, *given, *registry.SigningKey,
	// database, or nil. Grants, which are many, are taken out of it and read again
	// when they go.
	what any
}

type database string

// A grant is one, read. It has all that a check that finds it looks at, as a rule,
// and is in the table itself, so that a check need not look elsewhere.
type grant struct {
	who    *who
	until  int64
	space  unique.Handle[string] // of "" is every one
	rare   *rare                 // nil: as a rule
	length uint16                // of the literal: the pattern up to its first "*"
	level  int8
	deny   bool
	open   bool               // the pattern goes on with "*"
	head   [literalUsual]byte // the literal, if it is not longer
}

// A given is a grant with its pattern, "" for "ACTION *".
type given struct {
	grant
	pattern string
}

// literalUsual makes a grant 80 bytes.
const literalUsual = 43

// A rare is what most grants do not have.
type rare struct {
	literal string   // if it is longer than usual
	rest    *pattern // what the pattern goes on with, if it is not "*" alone
}

func newGrant(r Right) grant {
	literal, rest, star := strings.Cut(r.Pattern, "*")
	g := grant{space: unique.Make(r.Space), until: never, level: level(r.Action), length: uint16(len(literal)), open: star || r.Space == ""}
	if copy(g.head[:], literal) < len(literal) {
		g.head = [literalUsual]byte{}
		g.rare = &rare{literal: literal}
	}
	if strings.Trim(rest, "*") != "" {
		if g.rare == nil {
			g.rare = &rare{}
		}
		p := compile("*" + rest)
		g.rare.rest = &p
	}
	return g
}

func (g *grant) literal() string {
	if g.length > literalUsual {
		return g.rare.literal
	}
	return string(g.head[:g.length])
}

// pattern is that of the right, "*" for "ACTION *".
func (g *grant) pattern() string {
	switch {
	case !g.open:
		return g.literal()
	case g.rare != nil && g.rare.rest != nil:
		return g.literal() + strings.Join(g.rare.rest.parts, "*")
	}
	return g.literal() + "*"
}

// in reports whether it is about repositories of a space.
func (g *grant) in(space string) bool { return g.space.Value() == "" || g.space.Value() == space }

// matches reports whether a repository of the grant's space is one that it is
// about.
func (g *grant) matches(repo string) bool {
	n := int(g.length)
	switch {
	case len(repo) < n || !g.open && len(repo) > n:
		return false
	case n <= literalUsual && string(g.head[:n]) != repo[:n]:
		return false
	case g.rare == nil:
		return true
	}
	return (n <= literalUsual || g.rare.literal == repo[:n]) && (g.rare.rest == nil || g.rare.rest.matches(repo[n:]))
}

// like reports whether two grants are of one effect.
func (g *grant) like(o *grant) bool {
	a, b := *g, *o
	a.rare, b.rare = nil, nil
	if a != b || (g.rare == nil) != (o.rare == nil) {
		return false
	}
	return g.rare == nil || g.rare.literal == o.rare.literal && (g.rare.rest == nil) == (o.rare.rest == nil) &&
		(g.rare.rest == nil || slices.Equal(g.rare.rest.parts, o.rare.rest.parts))
}

// alias is s as a part of a text that is kept anyway, if it is one.
func alias(s, in string) string {
	if i := strings.Index(in, s); i >= 0 {
		return in[i : i+len(s)]
	}
	return s
}

// A token is one, read.
type token struct {
	registry.Token
	until  int64
	rights []grant // nil: all that its owner may
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

// read makes a record; raw is the value again. The error says why it has no
// effect; the record is usable all the same.
func read(key, value string, raw []byte, rev uint64) (*record, error) {
	r := &record{key: key, value: value, rev: rev}
	var err error
	switch {
	case key == keyDatabase:
		var id string
		if err = json.Unmarshal(raw, &id); err == nil && id == "" {
			err = fmt.Errorf("it is empty")
		}
		r.what = database(id)
	case strings.HasPrefix(key, keyAccount):
		a := &member{}
		err = decode(raw, &a.Account)
		if err == nil && (a.Name != key[len(keyAccount):] || a.Name == "" || a.UID == "") {
			err = fmt.Errorf("it is of %q with the UID %q", a.Name, a.UID)
		}
		a.Name, a.UID = alias(a.Name, key), alias(a.UID, value)
		r.what = a
	case strings.HasPrefix(key, keyTeam):
		t := &registry.Team{}
		err = decode(raw, t)
		if err == nil && (t.Name != key[len(keyTeam):] || t.Name == "" || t.UID == "") {
			err = fmt.Errorf("it is of %q with the UID %q", t.Name, t.UID)
		}
		r.what = t
	case strings.HasPrefix(key, keyToken):
		r.what, err = readToken(key[len(keyToken):], raw)
	case strings.HasPrefix(key, keyGrant):
		g, bad := readGrant(key[len(keyGrant):], raw)
		if err = bad; err == nil {
			g.pattern = alias(g.pattern, value)
		}
		r.what = g
	case strings.HasPrefix(key, keySigning):
		k := &registry.SigningKey{}
		err = decode(raw, k)
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
	t.rights = []grant{} // an empty list, which nobody writes, is for nothing
	for _, text := range t.Rights {
		right, err := ParseRight(text)
		if err != nil {
			return nil, err
		}
		t.rights = append(t.rights, newGrant(right))
	}
	return t, nil
}

func readGrant(id string, raw []byte) (*given, error) {
	var g registry.Grant
	if err := decode(raw, &g); err != nil {
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
	is := newGrant(right)
	is.who, is.until, is.deny = &who{g.UID}, until(g.Expires), g.Deny
	return &given{is, right.Pattern}, nil
}
