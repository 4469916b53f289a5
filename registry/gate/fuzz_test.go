package gate

import (
	stdjson "encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// FuzzShort presents anything as a short-lived token: nothing but what was
// issued, to the byte, is one.
func FuzzShort(f *testing.F) {
	g, a := newGate()
	var issued []string
	acc, _ := a.Account("alice")
	for _, p := range []registry.Principal{{}, {Name: "alice", UID: acc.UID, Secret: acc.Secret}} {
		short, _, err := g.Issue(p, []registry.Right{{Action: registry.Pull, Space: "oci", Repo: "docker.io/a"}})
		if err != nil {
			f.Fatal(err)
		}
		issued = append(issued, short)
		f.Add(short)
		f.Add(short + "=")
		f.Add(strings.Replace(short, ".", "..", 1))
		f.Add(short[:len(short)-1] + "A")
	}
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := verify(token, a.Keys())
		if (err == nil) != slices.Contains(issued, token) {
			t.Fatalf("%q: %+v %v", token, c, err)
		}
	})
}

// FuzzClaims signs anything: what is taken says, read by another parser, the
// same, and lasts no longer than a token may.
func FuzzClaims(f *testing.F) {
	f.Add(`{"iss":"weir","aud":"weir","sub":"alice","uid":"u","tid":"","sec":1,"rights":["pull oci:a"],"iat":1,"nbf":1,"exp":300,"jti":"x"}`)
	f.Add(`{"iss":"weir","aud":"weir","sub":"a","sub":"b"}`)
	f.Add(`{"iss":"weir","aud":"weir","rights":null,"iat":1,"nbf":1,"exp":9223372036854775807}`)
	_, a := newGate()
	k := a.Keys()[0]
	f.Fuzz(func(t *testing.T, body string) {
		c, err := verify(sign(k, []byte(body)), a.Keys())
		if err != nil {
			return
		}
		var other claims
		if err := stdjson.Unmarshal([]byte(body), &other); err != nil {
			t.Fatalf("%q was taken: %v", body, err)
		}
		life := time.Duration(other.Expires-other.IssuedAt) * time.Second
		if other.Issuer != "weir" || other.Audience != "weir" || life <= 0 || life > longest || other.Subject != c.who.Name ||
			other.UID != c.who.UID || other.Token != c.who.Token || len(other.Rights) != len(c.who.Only) || c.who.Only == nil {
			t.Fatalf("%q was taken for %+v", body, c)
		}
	})
}

// FuzzAuthorization presents anything at all: no error is of another kind, and
// nobody becomes somebody.
func FuzzAuthorization(f *testing.F) {
	for _, auth := range []string{"", "Basic", "Basic YTpi", "Bearer x", "Bearer a.b.c", "basic  YTpi=", "Basic JTYxOmI="} {
		f.Add(auth)
	}
	g, a := newGate()
	a.Remove("alice")
	a.Remove("bob")
	f.Fuzz(func(t *testing.T, auth string) {
		p, err := g.Who(request(here, auth))
		if kind := registry.KindOf(err); p.Name != "" || kind != registry.ErrUnauthenticated && kind != registry.ErrLimited {
			t.Fatalf("%q: %+v %v", auth, p, err)
		}
	})
}
