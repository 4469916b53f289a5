package gate

import (
	"crypto/hmac"
	"encoding/base64"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/weir-registry/weir/registry"
)

// verify reads a token that one of the keys has signed; whether it is the time
// for it, it does not ask. Errors are ErrUnauthenticated, one for all that is
// wrong with what was not signed here.
func verify(token string, keys []registry.SigningKey) (*claims, error) {
	signed, signature, ok := cutLast(token)
	head, body, ok2 := strings.Cut(signed, ".")
	if !ok || !ok2 || strings.Contains(body, ".") {
		return nil, errShort
	}
	data, ok := decode(head)
	kid, ok2 := strings.CutPrefix(string(data), headBegin)
	kid, ok3 := strings.CutSuffix(kid, headEnd)
	sum, ok4 := decode(signature)
	if !ok || !ok2 || !ok3 || !ok4 {
		return nil, errShort
	}
	for _, k := range keys {
		if k.ID != kid || !plain(kid) || len(k.Secret) == 0 || !hmac.Equal(sum, mac(k, signed)) {
			continue
		}
		if data, ok = decode(body); !ok {
			return nil, errShort
		}
		c, err := parse(data)
		if err != nil {
			return nil, err
		}
		c.key = k
		return c, nil
	}
	return nil, errShort
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// decode decodes base64url without padding, the one way there is to write it:
// the library's decoder passes over line breaks.
func decode(s string) ([]byte, bool) {
	if s == "" || strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return data, err == nil
}

// plain reports whether a key's ID is safe inside the header.
func plain(id string) bool {
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= 64
}

// parse reads claims that were signed: strictly, since what does not look as we
// write it was signed by a version of this program that knows more.
func parse(data []byte) (*claims, error) {
	var c claims
	if err := json.Unmarshal(data, &c, json.RejectUnknownMembers(true)); err != nil {
		return nil, errShort
	}
	life := c.Expires - c.IssuedAt
	if c.Issuer != issuer || c.Audience != audience || c.IssuedAt <= 0 || c.NotBefore != c.IssuedAt || c.Expires <= c.IssuedAt ||
		life > int64(longest/time.Second) || (c.Subject == "") != (c.UID == "") {
		return nil, errShort
	}
	c.who = registry.Principal{Name: c.Subject, UID: c.UID, Token: c.Token, Secret: c.Secret, Only: make([]registry.Right, 0, len(c.Rights))}
	for _, text := range c.Rights {
		action, what, ok := strings.Cut(text, " ")
		space, repo, ok2 := strings.Cut(what, ":")
		if !ok || !ok2 || action == "" || space == "" || repo == "" {
			return nil, errShort
		}
		c.who.Only = append(c.who.Only, registry.Right{Action: registry.Action(action), Space: space, Repo: repo})
	}
	return &c, nil
}

// inTime reports whether it is the time for c. A clock that was set back, or
// that is behind the one of the node that issued it, makes a token one of the
// future: by more than the leeway it does not count, and the client gets
// another.
func (c *claims) inTime(now time.Time) error {
	switch {
	case now.Unix() >= c.Expires:
		return refused("the token has expired")
	case now.Add(leeway).Unix() < c.NotBefore:
		return refused("the token is not good yet: the clocks of the node that issued it and of this one differ")
	}
	return nil
}
