package gate

import (
	"bytes"
	"encoding/base64"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// forge signs any header and claims with the right key.
func forge(k registry.SigningKey, head, body string) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(head)) + "." + enc.EncodeToString([]byte(body))
	return text + "." + enc.EncodeToString(mac(k, text))
}

func TestShortLived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		made := token(t, a, "alice", registry.TokenSpec{})
		for what, p := range map[string]registry.Principal{
			"anonymous": {},
			"password":  g.is(t, "alice", request(here, basicOf("alice", password))),
			"token":     g.is(t, "alice", request(here, "Bearer "+made.Secret)),
		} {
			rights := []registry.Right{{Action: registry.Pull, Space: "oci", Repo: "docker.io/acme/a:b c"}, {Action: registry.Push, Space: "npm", Repo: "@acme/x"}}
			short, expires, err := g.Issue(p, rights)
			if err != nil {
				t.Fatal(what, err)
			}
			if left := time.Until(expires); left <= DefaultLifetime-time.Second || left > DefaultLifetime {
				t.Errorf("%s: good for %v", what, left)
			}
			got := g.is(t, p.Name, request(here, "Bearer "+short))
			if p.Only = rights; !reflect.DeepEqual(got, p) {
				t.Errorf("%s: got %+v, want %+v", what, got, p)
			}
			if _, _, err := g.Issue(got, nil); registry.KindOf(err) != registry.ErrDenied {
				t.Errorf("%s: a short-lived token gets another: %v", what, err)
			}
			time.Sleep(time.Until(expires) - 1)
			g.is(t, p.Name, request(here, "Bearer "+short))
			time.Sleep(time.Nanosecond)
			g.isNot(t, registry.ErrUnauthenticated, "expired", request(here, "Bearer "+short))
		}
	})
}

// TestShortLivedEnds ends what a token was issued for, with the token seen
// before and so remembered.
func TestShortLivedEnds(t *testing.T) {
	g, a := newGate()
	issue := func(auth string) string {
		t.Helper()
		short, _, err := g.Issue(g.is(t, "alice", request(here, auth)), nil)
		if err != nil {
			t.Fatal(err)
		}
		g.is(t, "alice", request(here, "Bearer "+short))
		return "Bearer " + short
	}
	byPassword := issue(basicOf("alice", password))
	made := token(t, a, "alice", registry.TokenSpec{})
	byToken := issue("Bearer " + made.Secret)

	a.SetPassword("alice", "new")
	g.isNot(t, registry.ErrUnauthenticated, "password has changed", request(here, byPassword))
	g.is(t, "alice", request(here, byToken))
	if err := a.RevokeToken(t.Context(), registry.Principal{Name: "alice", UID: made.UID}, made.ID); err != nil {
		t.Fatal(err)
	}
	g.isNot(t, registry.ErrUnauthenticated, "revoked", request(here, byToken))
	byPassword = issue(basicOf("alice", "new"))
	a.Rekey()
	g.isNot(t, registry.ErrUnauthenticated, "none of this registry's", request(here, byPassword))
	byPassword = issue(basicOf("alice", "new"))
	a.Disable("alice")
	g.isNot(t, registry.ErrUnauthenticated, "gone", request(here, byPassword))
	a.Add("alice", "new")
	g.isNot(t, registry.ErrUnauthenticated, "gone", request(here, byPassword))
}

// TestAnOldPasswordIsIssuedNothing changes a password after it was found right,
// and before a token is issued for that.
func TestAnOldPasswordIsIssuedNothing(t *testing.T) {
	g, a := newGate()
	who := g.is(t, "alice", request(here, basicOf("alice", password)))
	a.SetPassword("alice", "new")
	short, _, err := g.Issue(who, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.isNot(t, registry.ErrUnauthenticated, "password has changed", request(here, "Bearer "+short))
}

// TestShortLivedIsForItsTokensNetworks takes what a token that is bound to a
// network was given there to another, seen before here and so remembered.
func TestShortLivedIsForItsTokensNetworks(t *testing.T) {
	g, a := newGate()
	made := token(t, a, "alice", registry.TokenSpec{From: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}})
	short, _, err := g.Issue(g.is(t, "alice", request(here, "Bearer "+made.Secret)), nil)
	if err != nil {
		t.Fatal(err)
	}
	g.is(t, "alice", request(here, "Bearer "+short))
	g.isNot(t, registry.ErrUnauthenticated, "address", request(there, "Bearer "+short))
	g.isNot(t, registry.ErrUnauthenticated, "address", request("@", "Bearer "+short))
}

// TestLongOnesAreNotRemembered: who may be issued tokens for much has not the
// gate's memory filled with them.
func TestLongOnesAreNotRemembered(t *testing.T) {
	g, _ := newGate()
	for _, rights := range []int{1, 60} {
		var list []registry.Right
		for i := range rights {
			list = append(list, registry.Right{Action: registry.Pull, Space: "oci", Repo: fmt.Sprintf("docker.io/library/%060d", i)})
		}
		short, _, err := g.Issue(registry.Principal{}, list)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if p, err := g.Who(request(here, "Bearer "+short)); err != nil || len(p.Only) != rights {
				t.Errorf("%d rights: %+v %v", rights, p, err)
			}
		}
		if n := len(g.verified.young); n != 1 {
			t.Errorf("%d are remembered after one for %d rights, of %d bytes", n, rights, len(short))
		}
	}
}

// TestShortLivedElsewhere has a token be good at another node, and for as long
// as its key is one of the keys.
func TestShortLivedElsewhere(t *testing.T) {
	g, a := newGate()
	short, _, err := g.Issue(g.is(t, "alice", request(here, basicOf("alice", password))), nil)
	if err != nil {
		t.Fatal(err)
	}
	old := a.Keys()
	a.Rekey()
	other := New(Config{Identities: &moreKeys{a, append(a.Keys(), old...)}, Logins: a})
	other.is(t, "alice", request(here, "Bearer "+short))
	stranger, _ := newGate()
	stranger.isNot(t, registry.ErrUnauthenticated, "none of", request(here, "Bearer "+short))
}

type moreKeys struct {
	registry.Identities
	keys []registry.SigningKey
}

func (m *moreKeys) Keys() []registry.SigningKey { return m.keys }

// TestForged presents everything that has gone wrong with JWTs elsewhere, most
// of it with the right signature.
func TestForged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGate()
		k := a.Keys()[0]
		head := headBegin + k.ID + headEnd
		acc, _ := a.Account("alice")
		now := time.Now().Unix()
		good := map[string]any{"iss": "weir", "aud": "weir", "sub": "alice", "uid": acc.UID, "tid": "", "sec": 1,
			"rights": []string{"pull oci:x"}, "iat": now, "nbf": now, "exp": now + 300, "jti": "x"}
		with := func(key string, value any) string {
			c := maps.Clone(good)
			c[key] = value
			body, err := stdjson.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
		same := with("jti", "x")
		real := forge(k, head, same)
		g.is(t, "alice", request(here, "Bearer "+real)) // or the rest would show nothing
		parts := strings.Split(real, ".")
		enc := base64.RawURLEncoding.EncodeToString
		bad := map[string]string{
			"alg none":              forge(k, strings.Replace(head, "HS256", "none", 1), same),
			"alg none, unsigned":    enc([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".",
			"alg none, our head":    parts[0] + "." + parts[1] + ".",
			"HS512":                 forge(k, strings.Replace(head, "HS256", "HS512", 1), same),
			"RS256":                 forge(k, strings.Replace(head, "HS256", "RS256", 1), same),
			"another order":         forge(k, fmt.Sprintf(`{"typ":"JWT","alg":"HS256","kid":%q}`, k.ID), same),
			"a blank":               forge(k, strings.Replace(head, ":", ": ", 1), same),
			"alg twice":             forge(k, strings.Replace(head, `"kid"`, `"alg":"none","kid"`, 1), same),
			"more in kid":           forge(k, headBegin+k.ID+`","jku":"http://x/`+headEnd, same),
			"unknown kid":           forge(k, headBegin+"other"+headEnd, same),
			"empty kid":             forge(k, headBegin+headEnd, same),
			"another key":           forge(registry.SigningKey{Secret: []byte("x")}, head, same),
			"no key":                forge(registry.SigningKey{}, head, same),
			"four parts":            real + ".",
			"five parts":            real + ".a.b",
			"padding":               real + "=",
			"padded body":           parts[0] + "." + parts[1] + "=." + parts[2],
			"a line break":          real + "\n",
			"a line break inside":   parts[0] + "." + parts[1] + ".\n" + parts[2],
			"spare bits":            sparing(t, real),
			"a short signature":     real[:len(real)-2],
			"cut":                   real[:len(real)-1],
			"a long signature":      real + "AA",
			"standard alphabet":     parts[0] + "." + parts[1] + "+/." + parts[2],
			"huge":                  forge(k, head, with("jti", strings.Repeat("x", maxShort))),
			"wrong aud":             forge(k, head, with("aud", "other")),
			"many aud":              forge(k, head, with("aud", []string{"weir"})),
			"wrong iss":             forge(k, head, with("iss", "https://accounts.example")),
			"expired":               forge(k, head, with("exp", now)),
			"for ever":              forge(k, head, with("exp", now+1e9)),
			"overflow":              forge(k, head, with("exp", int64(1)<<62)),
			"a float":               forge(k, head, with("exp", float64(now)+300.5)),
			"a text for a time":     forge(k, head, with("exp", "300")),
			"nbf apart":             forge(k, head, with("nbf", now-10)),
			"no iat":                forge(k, head, with("iat", 0)),
			"nobody with a uid":     forge(k, head, with("sub", "")),
			"alice without a uid":   forge(k, head, with("uid", "")),
			"another alice":         forge(k, head, with("uid", "other")),
			"an old password":       forge(k, head, with("sec", 0)),
			"an unknown token":      forge(k, head, with("tid", "x")),
			"a right of no form":    forge(k, head, with("rights", []string{"pull"})),
			"a right to no repo":    forge(k, head, with("rights", []string{"pull oci:"})),
			"an unknown member":     forge(k, head, with("admin", true)),
			"sub twice":             forge(k, head, `{"sub":"bob",`+same[1:]),
			"sub in another case":   forge(k, head, strings.Replace(same, `"sub"`, `"SUB"`, 1)),
			"sub hidden":            forge(k, head, `{"\u0073ub":"bob",`+same[1:]),
			"more after the claims": forge(k, head, same+"{}"),
			"an array":              forge(k, head, "["+same+"]"),
			"null":                  forge(k, head, "null"),
			"nothing":               forge(k, head, ""),
			"bad UTF-8":             forge(k, head, strings.Replace(same, "alice", "alice\xff", 1)),
		}
		future := map[string]any{}
		maps.Copy(future, good)
		future["iat"], future["nbf"], future["exp"] = now+31, now+31, now+300
		body, _ := stdjson.Marshal(future)
		bad["of the future"] = forge(k, head, string(body))
		for what, text := range bad {
			if p, err := g.Who(request(here, "Bearer "+text)); registry.KindOf(err) != registry.ErrUnauthenticated || p.Name != "" || p.Only != nil {
				t.Errorf("%s: %+v %v", what, p, err)
			}
		}
		future["iat"], future["nbf"] = now+30, now+30 // within the leeway
		body, _ = stdjson.Marshal(future)
		g.is(t, "alice", request(here, "Bearer "+forge(k, head, string(body))))
	})
}

// sparing writes a token with other spare bits in its last character, which the
// bytes that it stands for do not show.
func sparing(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	want, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	for c := byte('0'); c <= 'z'; c++ {
		other := token[:len(token)-1] + string(c)
		got, err := base64.RawURLEncoding.DecodeString(strings.Split(other, ".")[2])
		if err == nil && other != token && bytes.Equal(got, want) {
			return other
		}
	}
	t.Fatal("no other spelling")
	return ""
}

// TestClockSetBack issues a token and then has the clock be set back: it is
// refused, and the one that is issued next is good.
func TestClockSetBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	g, a := newGate()
	g.c.Now = func() time.Time { return now }
	p := g.is(t, "alice", request(here, basicOf("alice", password)))
	old, _, _ := g.Issue(p, nil)
	g.is(t, "alice", request(here, "Bearer "+old))
	now = now.Add(-time.Hour)
	g.isNot(t, registry.ErrUnauthenticated, "not good yet", request(here, "Bearer "+old))
	young, _, _ := g.Issue(p, nil)
	g.is(t, "alice", request(here, "Bearer "+young))
	before := a.Checks()
	g.is(t, "alice", request(here, basicOf("alice", password)))
	if a.Checks() != before+1 {
		t.Error("a password that was checked in the future is still remembered")
	}
}

// TestIssueLimits asks for more rights than fit, and for any without a key.
func TestIssueLimits(t *testing.T) {
	g, _ := newGate()
	var rights []registry.Right
	for i := range 64 {
		rights = append(rights, registry.Right{Action: registry.Pull, Space: "oci", Repo: fmt.Sprintf("docker.io/acme/repository%d", i)})
	}
	short, _, err := g.Issue(registry.Principal{}, rights)
	if err != nil {
		t.Fatal(err)
	}
	if p := g.is(t, "", request(here, "Bearer "+short)); !reflect.DeepEqual(p.Only, rights) {
		t.Errorf("%+v", p)
	}
	for longest := 0; ; longest = len(short) {
		more, _, err := g.Issue(registry.Principal{}, rights)
		if registry.KindOf(err) == registry.ErrTooLarge {
			if longest < maxShort-10 {
				t.Errorf("%d rights are too many, and without the last they are %d bytes", len(rights), longest)
			}
			break
		}
		if err != nil || len(more) > maxShort {
			t.Fatalf("%d rights: %d bytes, %v", len(rights), len(more), err)
		}
		short = more
		rights[len(rights)-1].Repo += "x"
	}
	g.is(t, "", request(here, "Bearer "+short)) // the longest that is issued is good
	g.c.Identities = &moreKeys{g.c.Identities, nil}
	if _, _, err := g.Issue(registry.Principal{}, nil); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("without keys: %v", err)
	}
	for range 100 { // and it is nobody's fault
		g.isNot(t, registry.ErrUnavailable, "knows no accounts yet", request(here, "Bearer "+short))
	}
}
