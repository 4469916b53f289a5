package npm

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/accountlab"
	"github.com/weir-registry/weir/registry"
)

// TestTokenSpec: what npm asks for becomes rights, and never more of them.
func TestTokenSpec(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"name":null,"password":"x"}`, "[pull npm:*]"},
		{`{"password":"x","readonly":true,"cidr_whitelist":[]}`, "[pull npm:*]"},
		{`{"password":"x","readonly":false,"cidr_whitelist":[]}`, "[push npm:*]"},
		{`{"packages":["left","@acme/right"]}`, "[pull npm:left pull npm:@acme/right]"},
		{`{"packages":["left"],"packages_and_scopes_permission":"read-write"}`, "[push npm:left]"},
		{`{"packages":["left"],"readonly":true}`, "[pull npm:left]"},
		{`{"scopes":["@acme","other"],"packages_and_scopes_permission":"read-only"}`, "[pull npm:@acme/* pull npm:@other/*]"},
		{`{"packages_all":true,"packages_and_scopes_permission":"read-write"}`, "[push npm:*]"},
		{`{"packages_all":true,"scopes":["@acme"]}`, "[pull npm:*]"},
		{`{"orgs_permission":"no-access"}`, "[pull npm:*]"},
		{`{"packages_and_scopes_permission":"read-write"}`, "for which packages"},
		{`{"packages_and_scopes_permission":"no-access"}`, "without access"},
		{`{"packages":["left"],"packages_and_scopes_permission":"no-access"}`, "without access"},
		{`{"packages":["left"],"packages_and_scopes_permission":"admin"}`, "none of"},
		{`{"packages":["left"],"packages_and_scopes_permission":"read-write","readonly":true}`, "two things"},
		{`{"packages":["*"]}`, "not the name"}, {`{"packages":["@acme/*"]}`, "not the name"}, {`{"packages":["a b"]}`, "not the name"},
		{`{"scopes":["*"]}`, "not a scope"}, {`{"scopes":["@"]}`, "not a scope"}, {`{"scopes":["a/b"]}`, "not a scope"},
		{`{"orgs":["acme"]}`, "no organizations"}, {`{"orgs_permission":"read-only"}`, "no organizations"}, {`{"bypass_2fa":true}`, "second factor"},
		{`{"expires":0}`, "from 1 to 3650"}, {`{"expires":3651}`, "from 1 to 3650"}, {`{"expires":"tomorrow"}`, "not the JSON"}, {`{"expires":3650}`, "[pull npm:*]"},
		{`{"cidr_whitelist":["10.0.0.0/33"]}`, "neither an address"}, {`{"cidr_whitelist":["10.1.2.3/8","::1","192.0.2.1"]}`, "[pull npm:*] [10.0.0.0/8 ::1/128 192.0.2.1/32]"},
		{`{"cidr_whitelist":["fe80::1%eth0"]}`, "neither an address"}, {`{"stages":["x"]}`, `"stages" is not supported`},
		{many("packages", "left", 64), "pull npm:left"}, {many("packages", "left", 65), "at most 64"},
		{many("cidr_whitelist", "::1", 64), "pull npm:*"}, {many("cidr_whitelist", "::1", 65), "at most 64"},
		{`{"name":"` + strings.Repeat("a", 200) + `","description":"` + strings.Repeat("b", 54) + `"}`, "[pull npm:*]"},
		{`{"name":"` + strings.Repeat("a", 200) + `","description":"` + strings.Repeat("b", 55) + `"}`, "limit of 256"},
	} {
		var a tokenAsked
		err := parseJSON([]byte(c.body), &a, true)
		var s registry.TokenSpec
		if err == nil {
			s, err = a.spec()
		}
		got := fmt.Sprint(s.Rights, " ", s.From)
		if err != nil {
			got = registry.Public(err)
		}
		if !strings.Contains(got, c.want) || err != nil && registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%.60s: %.200s", c.body, got)
		}
	}
}

func many(field, value string, n int) string {
	return `{"` + field + `":["` + strings.Join(slices.Repeat([]string{value}, n), `","`) + `"]}`
}

// FuzzTokenSpec: whatever is posted, a token is for npm's packages alone, and
// only for what was named.
func FuzzTokenSpec(f *testing.F) {
	for _, s := range []string{`{}`, `{"packages":["a"],"packages_and_scopes_permission":"read-write"}`, `{"readonly":false}`, `{"scopes":["@a"],"cidr_whitelist":["::/0"],"expires":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var a tokenAsked
		if parseJSON(body, &a, true) != nil {
			return
		}
		s, err := a.spec()
		if err != nil {
			if registry.KindOf(err) != registry.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		if len(s.Rights) == 0 || len(s.Rights) > maxRights || s.Lifetime < 0 || len(s.From) != len(a.CIDR) || (a.Expires != nil) != (s.Lifetime > 0) {
			t.Fatalf("%s: %+v", body, s)
		}
		for _, right := range s.Rights {
			what, push := strings.CutPrefix(right, "push npm:")
			if push && a.Permission != readWrite && (a.Readonly == nil || *a.Readonly) {
				t.Fatalf("%s: %v", body, s.Rights)
			}
			if !push {
				what = strings.TrimPrefix(right, "pull npm:")
			}
			all := a.PackagesAll || len(a.Packages)+len(a.Scopes) == 0
			scope, scoped := strings.CutSuffix(what, "/*")
			if !(all && what == "*" || slices.Contains(a.Packages, what) || scoped && (slices.Contains(a.Scopes, scope) || slices.Contains(a.Scopes, scope[1:]))) {
				t.Fatalf("%s: %q", body, right)
			}
		}
	})
}

// TestFindToken: a token is found by its ID, its mark, or the beginning of that.
func TestFindToken(t *testing.T) {
	list := []registry.Token{{ID: "uidtAbcdefgh"}, {ID: "uidtAbXdefgh"}, {ID: "uidsAbcdefgh2"}}
	for key, want := range map[string]any{"uidtAbcdefgh": "uidtAbcdefgh", "Abcdefgh": "uidtAbcdefgh", "AbX": "uidtAbXdefgh", "bc": "uidsAbcdefgh2",
		"Ab": registry.ErrInvalid, "": registry.ErrInvalid, "uidt": registry.ErrNotFound, "zzz": registry.ErrNotFound, "ab": registry.ErrNotFound} {
		got, err := findToken(list, key)
		if kind := registry.KindOf(err); want != any(got) && want != any(kind) {
			t.Errorf("%q: %q, %v, want %v", key, got, err, want)
		}
	}
}

// notSecret admits all but one name.
type notSecret struct{}

func (notSecret) Admit(_ context.Context, c *registry.Call) error {
	if c.Name.Repo == "secret" {
		return registry.Errorf(registry.ErrDenied, "not this")
	}
	return nil
}

// FuzzAudit: no question that is passed on names what must not be named.
func FuzzAudit(f *testing.F) {
	for _, s := range []string{`{"secret":["1"],"left":["1"]}`, `{"dependencies":{"secret":{}}}`, `{"requires":{"left":"1"},"dependencies":{"requires":{"requires":{"secret":1}}}}`, `[[{"x":[]}]]`, `{"se\u0063ret":[]}`} {
		f.Add([]byte(s))
	}
	h := &handler{o: Config{Service: &registry.Service{Guard: notSecret{}}}}
	f.Fuzz(func(t *testing.T, body []byte) {
		less, err := h.lessBulk(t.Context(), registry.Call{}, body)
		if err == nil && less == nil {
			less = body
		}
		var asked map[string]any
		if err == nil && parseJSON(less, &asked, false) != nil {
			t.Fatalf("%s: asks %s", body, less)
		}
		if _, ok := asked["secret"]; ok {
			t.Fatalf("%s: asks %s", body, less)
		}
		var tree any
		if h.auditTree(t.Context(), registry.Call{}, body) == nil && parseJSON(body, &tree, false) == nil && names(tree, "secret") {
			t.Fatalf("%s is passed on", body)
		}
	})
}

// names reports whether a tree of packages names one: the plain way to say it.
func names(v any, pkg string) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return names(e, pkg) })
	case map[string]any:
		for k, e := range v {
			if below, ok := e.(map[string]any); ok && (k == "dependencies" || k == "requires") {
				for name, inner := range below {
					if name == pkg || names(inner, pkg) {
						return true
					}
				}
			} else if names(e, pkg) {
				return true
			}
		}
	}
	return false
}

// FuzzUnseal: nothing but what was sealed is a login.
func FuzzUnseal(f *testing.F) {
	keys := []registry.SigningKey{{ID: "new", Secret: make([]byte, 32)}, {ID: "old", Secret: []byte(strings.Repeat("o", 32))}}
	b := begun{ID: strings.Repeat("i", 64), From: "2001:db8:1111:2222:3333:4444:5555:6666", Agent: strings.Repeat("x", 40) + "é", At: time.Unix(1.8e9, 0)}
	sealed, err := seal(keys[1:], b)
	if err != nil || len(sealed) > maxRef {
		f.Fatal(sealed, err)
	}
	got, err := unseal(keys, sealed)
	if b.Agent = b.Agent[:maxAgent]; err != nil || got != b {
		f.Fatalf("%+v, %v; want %+v", got, err, b)
	}
	f.Add("", uint8(0), byte(0))
	f.Add(sealed[:40], uint8(200), byte(1))
	f.Fuzz(func(t *testing.T, text string, at uint8, flip byte) {
		if _, err := unseal(keys, text); err == nil {
			t.Fatalf("%q is taken", text)
		}
		changed := []byte(sealed)
		changed[int(at)%len(changed)] ^= flip
		if _, err := unseal(keys, string(changed)); (err == nil) != (flip == 0) {
			t.Fatalf("%q is taken for %q: %v", changed, sealed, err)
		}
	})
}

// TestOldPage: the page of a login takes no password for one that has expired.
func TestOldPage(t *testing.T) {
	p := accountlab.New()
	h := New(Config{Logins: p, Identities: p})
	for age, want := range map[time.Duration]int{loginTime - time.Minute: 200, loginTime + time.Minute: 404, -time.Hour: 404} {
		page, err := seal(p.Keys(), begun{ID: "x", From: "192.0.2.1", At: time.Now().Add(-age)})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/-/v1/login/"+page, nil))
		if w.Code != want || strings.Contains(w.Body.String(), "<form") != (want == 200) {
			t.Errorf("%v old: %d %s", age, w.Code, w.Body)
		}
		if want == 200 && !strings.Contains(w.Body.String(), "9 minutes ago") && !strings.Contains(w.Body.String(), "10 minutes ago") {
			t.Error(w.Body)
		}
	}
}
