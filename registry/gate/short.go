package gate

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/weir-registry/weir/registry"
)

// A short-lived token is a compact JWS with the claims of a JWT (RFC 7519),
// made and read here alone. It is read by 60 lines of our own and not by a
// library for JOSE: all that is for others to choose there (algorithms, key
// lookup by header, other serialisations) is what goes wrong with JWTs, and
// here none of it is to be had. The header has to be, byte for byte, the one
// that we write, and nothing else is parsed before the MAC is right.
const (
	headBegin = `{"alg":"HS256","kid":"`
	headEnd   = `","typ":"JWT"}`
	issuer    = "weir"
	audience  = "weir"
	// maxShort is the longest such token, in bytes: it has to fit.
	maxShort = maxAuthorization - len("Bearer ")
	// maxRemembered is the longest that is remembered once it was verified, so
	// that those that are, some 32,768 which anybody may have been issued, take
	// no more than about 60 MB. A longer one is verified each time.
	maxRemembered = 1 << 10
	// leeway is how far the clock of the node that made a token may be ahead.
	leeway = 30 * time.Second
	// longest bounds a lifetime that another node may have configured.
	longest = time.Hour
)

// claims are what a short-lived token says.
type claims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"` // "": anonymous
	UID      string `json:"uid"`
	Token    string `json:"tid"` // the ID of the opaque token it was issued for
	// Secret is the account's, so that a new password ends what the old one got.
	Secret    int64    `json:"sec"`
	Rights    []string `json:"rights"` // "pull oci:docker.io/library/alpine"
	IssuedAt  int64    `json:"iat"`    // Unix time
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
	ID        string   `json:"jti"`

	key registry.SigningKey // that it was signed with
	who registry.Principal
}

// errShort is all that is said of a token that was not signed here as it is.
var errShort = registry.Errorf(registry.ErrUnauthenticated, "the token is none of this registry's, or has been changed")

// Issue makes a short-lived token for p, good for these rights alone as far as
// p is granted them when it is used; an empty list makes one that says who p is
// and is good for nothing else. It ends when p's token or account does, or its
// password changes. Errors: ErrUnavailable while no node has keys to sign with;
// ErrDenied for a principal that is known by such a token itself, which must not
// live on by it; ErrTooLarge for more rights than fit.
func (g *Gate) Issue(p registry.Principal, rights []registry.Right) (token string, expires time.Time, err error) {
	if g == nil {
		return "", time.Time{}, noKeys()
	}
	keys := g.c.Identities.Keys()
	switch {
	case len(keys) == 0 || !plain(keys[0].ID) || len(keys[0].Secret) == 0:
		return "", time.Time{}, noKeys()
	case p.Only != nil || p.Node:
		return "", time.Time{}, registry.Errorf(registry.ErrDenied, "a short-lived token gets no other")
	}
	now := g.c.Now()
	expires = now.Add(min(g.c.Lifetime, longest)).Truncate(time.Second)
	c := claims{Issuer: issuer, Audience: audience, Subject: p.Name, UID: p.UID, Token: p.Token, Secret: p.Secret, Rights: []string{},
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: expires.Unix(), ID: rand.Text()}
	for _, r := range rights {
		c.Rights = append(c.Rights, string(r.Action)+" "+r.Space+":"+r.Repo)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", time.Time{}, registry.Wrap(registry.ErrInvalid, err, "write a short-lived token")
	}
	if token = sign(keys[0], body); len(token) > maxShort {
		return "", time.Time{}, registry.Errorf(registry.ErrTooLarge, "%d repositories are too many for one token", len(rights))
	}
	return token, expires, nil
}

func noKeys() error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "there are no keys for short-lived tokens",
		Public: "this node knows no accounts yet: try again in a moment", After: 2 * time.Second}
}

// sign makes the token of a body.
func sign(k registry.SigningKey, body []byte) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(headBegin+k.ID+headEnd)) + "." + enc.EncodeToString(body)
	return text + "." + enc.EncodeToString(mac(k, text))
}

func mac(k registry.SigningKey, text string) []byte {
	h := hmac.New(sha256.New, k.Secret)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// short is the principal of a short-lived token. ours reports that it is no
// guess: it was signed with one of the keys, whether it is still good or not, or
// there are none to tell.
func (g *Gate) short(token string, from netip.Addr) (p registry.Principal, ours bool, err error) {
	keys := g.c.Identities.Keys()
	if len(keys) == 0 {
		return registry.Principal{}, true, noKeys()
	}
	hash := sha256.Sum256([]byte(token))
	c, known := g.verified.get(hash)
	if !known || !slices.ContainsFunc(keys, c.by) {
		if c, err = verify(token, keys); err != nil {
			return registry.Principal{}, false, err
		}
		if len(token) <= maxRemembered {
			g.verified.put(hash, c)
		}
	}
	if err := g.still(c, from); err != nil {
		return registry.Principal{}, true, err
	}
	return c.who, true, nil
}

// still reports whether what a token says still holds, for who comes from an
// address: what was issued for a token is used from where that may be used.
func (g *Gate) still(c *claims, from netip.Addr) error {
	if err := c.inTime(g.c.Now()); err != nil {
		return err
	}
	if c.who.Anonymous() {
		return nil
	}
	return g.c.Identities.Current(c.who, from)
}

// by reports whether c was signed with k.
func (c *claims) by(k registry.SigningKey) bool {
	return c.key.ID == k.ID && hmac.Equal(c.key.Secret, k.Secret)
}
