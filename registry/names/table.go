package names

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// A Table keeps bindings in a metadata database, for those that are
// authoritative: what is pushed here. It is as durable as that. A Rev is the
// number of the change in base 36; Bind makes one Put.
//
// A binding is under the key "n/SPACE!REPO!REF", each part escaped.
type Table struct {
	m registry.Metadata
}

var _ registry.Names = (*Table)(nil)

// NewTable is the table in a database, which stays the caller's to close.
func NewTable(m registry.Metadata) *Table { return &Table{m} }

const tablePrefix = "n/"

// tableKey is the key of a name. Its parts are escaped such that "!", which ends
// each but the last, is below all bytes that are left in them, and that the order
// of bytes stays: so keys are in the order of Repo and then Ref, and those of a
// repository begin with the same bytes. What is not printable ASCII, or is a
// blank, "!" or a quote, is escaped; names hardly ever have any.
func tableKey(n registry.Name) string {
	return string(escape(append(repoKey(n.Space, n.Repo), '!'), n.Ref))
}

// spaceKey is what all keys of a space begin with, repoKey those of a repository
// but for a "!".
func spaceKey(space string) []byte { return append(escape([]byte(tablePrefix), space), '!') }

func repoKey(space, repo string) []byte { return escape(spaceKey(space), repo) }

// In an escaped text 0x00 to 0x22 are two bytes that begin with 0x22, and 0x7f to
// 0xff three that begin with 0x7f; the others are themselves.
const (
	escapeLow  = '"'
	escapeHigh = 0x7f
	hexDigits  = "0123456789abcdef"
)

func escape(buf []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c <= escapeLow:
			buf = append(buf, escapeLow, '#'+c)
		case c >= escapeHigh:
			buf = append(buf, escapeHigh, hexDigits[c>>4], hexDigits[c&15])
		default:
			buf = append(buf, c)
		}
	}
	return buf
}

// unescape undoes escape; ok is false for what escape cannot have made.
func unescape(s string) (text string, ok bool) {
	buf := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == escapeLow:
			if i++; i == len(s) || s[i] < '#' || s[i] > '#'+escapeLow {
				return "", false
			}
			buf = append(buf, s[i]-'#')
		case c == escapeHigh:
			if i += 2; i >= len(s) {
				return "", false
			}
			high, low := strings.IndexByte(hexDigits, s[i-1]), strings.IndexByte(hexDigits, s[i])
			if high < 0 || low < 0 || high<<4|low < escapeHigh {
				return "", false
			}
			buf = append(buf, byte(high<<4|low))
		case c < escapeLow || c > escapeHigh:
			return "", false
		default:
			buf = append(buf, c)
		}
	}
	return string(buf), true
}

// parseTableKey undoes tableKey.
func parseTableKey(key string) (n registry.Name, err error) {
	parts := strings.Split(strings.TrimPrefix(key, tablePrefix), "!")
	var ok [3]bool
	if len(parts) == 3 {
		n.Space, ok[0] = unescape(parts[0])
		n.Repo, ok[1] = unescape(parts[1])
		n.Ref, ok[2] = unescape(parts[2])
	}
	if !ok[0] || !ok[1] || !ok[2] || check(n) != nil || tableKey(n) != key {
		return registry.Name{}, fmt.Errorf("the key %.100q in the metadata database is not that of a name", key)
	}
	return n, nil
}

// Lookup implements registry.Names.
func (t *Table) Lookup(ctx context.Context, n registry.Name) (registry.Binding, error) {
	if check(n) != nil {
		return registry.Binding{}, notBound(n)
	}
	r, err := t.m.Get(ctx, tableKey(n))
	switch {
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, registry.ErrInvalid):
		return registry.Binding{}, notBound(n)
	case err != nil:
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "look up "+n.String())
	}
	b, _, err := decode(r.Value)
	if err != nil {
		return registry.Binding{}, registry.Wrap(registry.ErrCorrupt, err, "look up "+n.String())
	}
	b.Rev = strconv.FormatUint(r.Rev, 36)
	return b, nil
}

// Bind implements registry.Names. A name whose key would be longer than
// registry.MaxKey is ErrInvalid. After ErrUnavailable the name may have been
// bound or not.
func (t *Table) Bind(ctx context.Context, n registry.Name, old, new registry.Binding) (registry.Binding, error) {
	if err := checkBind(n, new); err != nil {
		return registry.Binding{}, err
	}
	var rev uint64
	if old.Rev != "" {
		var err error
		if rev, err = strconv.ParseUint(old.Rev, 36, 64); err != nil || rev == 0 {
			return registry.Binding{}, conflict(n) // of another table
		}
	}
	var value []byte
	if !new.Zero() {
		value = encode(nil, new, 0)
	}
	r, err := t.m.Put(ctx, tableKey(n), rev, value)
	switch {
	case errors.Is(err, registry.ErrConflict):
		return registry.Binding{}, conflict(n)
	case err != nil:
		return registry.Binding{}, registry.Wrap(registry.ErrUnavailable, err, "bind "+n.String())
	case value == nil:
		return registry.Binding{}, nil
	}
	new.Rev = strconv.FormatUint(r.Rev, 36)
	return new, nil
}

// List implements registry.Names. With an empty repo, after is a repository:
// the list begins with the one that follows it. It is no snapshot.
func (t *Table) List(ctx context.Context, space, repo, after string) iter.Seq2[registry.Name, error] {
	prefix, from := spaceKey(space), []byte(nil)
	switch {
	case repo != "":
		prefix = append(repoKey(space, repo), '!')
		if after != "" {
			from = []byte(tableKey(registry.Name{Space: space, Repo: repo, Ref: after}))
		}
	case after != "":
		from = append(repoKey(space, after), '!'+1) // behind all of it, before every longer repository
	}
	return func(yield func(registry.Name, error) bool) {
		for r, err := range t.m.List(ctx, string(prefix), string(from)) {
			var n registry.Name
			if err == nil {
				n, err = parseTableKey(r.Key)
			}
			if err != nil {
				yield(registry.Name{}, registry.Wrap(registry.ErrUnavailable, err, "list "+space+" "+repo))
				return
			}
			if !yield(n, nil) {
				return
			}
		}
	}
}
