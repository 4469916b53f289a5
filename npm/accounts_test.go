package npm_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/accountlab"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// withPeople is a node where anybody may pull all but @acme/*, alice may pull
// that too and push, and bob may pull no more than anybody, and not even left.
func withPeople(t testing.TB) (*node, *accountlab.Accounts, *npmlab.Registry) {
	t.Helper()
	up := lab(t)
	up.Publish(npmlab.Version{Name: "@acme/hidden", Version: "1.0.0", Attested: true})
	p := accountlab.New("pull npm:*", "!pull npm:@acme/*")
	p.Add("alice", "correct horse", "push npm:@acme/*")
	p.Add("bob", "battery staple", "!pull npm:left")
	n := newNode(t, up.URL, func(_ *npm.Registry, c *npm.Config) {
		c.Gate, c.Logins, c.Tokens, c.Identities, c.Open = p, p, p, p, nil
		c.Service = &registry.Service{Guard: p}
	})
	return n, p, up
}

func bearer(secret string) []string { return []string{"Authorization", "Bearer " + secret} }

// TestWho: what each kind of credentials is answered, and how it may be cached.
func TestWho(t *testing.T) {
	n, p, _ := withPeople(t)
	alice := p.Give("alice", registry.TokenSpec{})
	narrow := p.Give("alice", registry.TokenSpec{Rights: []string{"pull npm:left"}})
	expired := p.Give("alice", registry.TokenSpec{Lifetime: -time.Second})
	elsewhere := p.Give("alice", registry.TokenSpec{From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	bob := p.Give("bob", registry.TokenSpec{})
	flipped := alice[:10] + string(alice[10]^1) + alice[11:]
	const public, private = "public", "private, no-cache"
	for _, c := range []struct {
		who, auth, path string
		status          int
		says            string // in the text, or of Cache-Control
	}{
		{"nobody", "", "/npm/left", 200, public}, {"nobody", "", "/npm/@acme%2fright", 401, "anonymous"},
		{"nobody", "", "/npm/left/-/left-1.0.0.tgz", 200, "public, immutable"}, {"nobody", "", "/npm/@acme/right/-/right-1.0.0.tgz", 401, "anonymous"},
		{"alice", "Bearer " + alice, "/npm/left", 200, public}, {"alice", "Bearer " + alice, "/npm/@acme%2fright", 200, private},
		{"alice", "Bearer " + alice, "/npm/@acme/right/-/right-1.0.0.tgz", 200, private}, {"alice", "Bearer " + alice, "/npm/@acme/right/1.0.0", 200, private},
		{"alice", "Bearer " + alice, "/npm/-/package/@acme%2fright/dist-tags", 200, private}, {"alice", "Bearer " + alice, "/npm/-/npm/v1/attestations/@acme%2fright@1.0.0", 200, private},
		{"alice", "Bearer " + alice, "/npm/left/-/left-1.0.0.tgz", 200, "public, immutable"}, {"alice", "Bearer " + alice, "/npm/@acme%2fnone", 404, "Not found"},
		{"narrow", "Bearer " + narrow, "/npm/left", 200, public}, {"narrow", "Bearer " + narrow, "/npm/@acme%2fright", 403, "the token is not for this"},
		{"expired", "Bearer " + expired, "/npm/left", 401, "expired"}, {"elsewhere", "Bearer " + elsewhere, "/npm/left", 401, "not for use from"},
		{"expired", "Bearer " + expired, "/npm/-/ping", 401, "expired"}, {"expired", "Bearer " + expired, "/npm/-/v1/search?text=x", 401, "expired"},
		{"expired", "Bearer " + expired, "/npm/left/-/left-1.0.0.tgz", 401, "expired"}, {"expired", "Bearer " + expired, "/npm/-/npm/v1/keys", 401, "expired"},
		{"flipped", "Bearer " + flipped, "/npm/left", 401, "not copied whole"}, {"made up", "Bearer x", "/npm/left", 401, "not a token"},
		{"bob", "Bearer " + bob, "/npm/left", 403, "bob may not"}, {"bob", "Bearer " + bob, "/npm/@acme%2fright", 403, "bob may not"},
		{"bob", "Bearer " + bob, "/npm/left/-/left-1.0.0.tgz", 403, "bob may not"}, {"bob", "Bearer " + bob, "/npm/-/ping", 200, "no-store"},
		{"digest", "Digest x", "/npm/left", 401, "not understood"},
	} {
		header := []string{"Authorization", c.auth}
		if c.auth == "" {
			header = nil
		}
		a := n.get(c.path, header...).is(t, c.status)
		if c.status == 200 {
			if got := a.Header.Get("Cache-Control"); !strings.HasPrefix(got, c.says) {
				t.Errorf("%s %s: Cache-Control %q", c.who, c.path, got)
			}
		} else if !strings.Contains(string(a.body), c.says) || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %s, %s", c.who, c.path, a.body, a.Header)
		}
		if strings.Contains(a.Header.Get("Vary"), "Authorization") {
			t.Errorf("%s %s: npm would write the token into its cache", c.who, c.path)
		}
		if c.status == 401 {
			got := a.Header.Values("WWW-Authenticate")
			if len(got) != 2 || !strings.HasPrefix(got[0], "Bearer ") || !strings.HasPrefix(got[1], "Basic ") || !strings.Contains(a.Header.Get("Npm-Notice"), c.says) {
				t.Errorf("%s %s: %q, notice %q", c.who, c.path, got, a.Header.Get("Npm-Notice"))
			}
		}
	}
	req, _ := http.NewRequest("GET", n.url, nil)
	req.SetBasicAuth("alice", "correct horse")
	n.get("/npm/@acme%2fright", "Authorization", req.Header.Get("Authorization")).is(t, 200)
	// A 304 opens nothing, and is for those alone who may have a 200.
	tag := n.get("/npm/@acme/right/-/right-1.0.0.tgz", bearer(alice)...).is(t, 200).Header.Get("ETag")
	n.get("/npm/@acme/right/-/right-1.0.0.tgz", append(bearer(alice), "If-None-Match", tag)...).is(t, 304)
	n.get("/npm/@acme/right/-/right-1.0.0.tgz", append(bearer(bob), "If-None-Match", tag)...).is(t, 403)
	n.get("/npm/@acme/right/-/right-1.0.0.tgz", "If-None-Match", tag).is(t, 401)
}

// TestMasking: who may not pull a package learns nothing of whether there is one.
func TestMasking(t *testing.T) {
	n, p, up := withPeople(t)
	alice, bob := p.Give("alice", registry.TokenSpec{}), p.Give("bob", registry.TokenSpec{})
	n.get("/npm/@acme%2fhidden", bearer(alice)...).is(t, 200) // it is cached
	n.get("/npm/@acme/hidden/-/hidden-1.0.0.tgz", bearer(alice)...).is(t, 200)
	up.Forget()
	seen := func(a answer) string {
		for _, h := range []string{"Date", "X-Request-Id"} {
			a.Header.Del(h)
		}
		return fmt.Sprint(a.StatusCode, a.Header, string(a.body))
	}
	for _, path := range []string{"/npm/@acme%2fNAME", "/npm/@acme%2fNAME?write=true", "/npm/@acme/NAME/1.0.0", "/npm/@acme/NAME/latest", "/npm/@acme/NAME/-/NAME-1.0.0.tgz",
		"/npm/-/package/@acme%2fNAME/dist-tags", "/npm/-/npm/v1/attestations/@acme%2fNAME@1.0.0"} {
		for _, header := range [][]string{nil, bearer(bob)} {
			for _, method := range []string{"GET", "HEAD"} {
				yes := n.do(method, strings.ReplaceAll(path, "NAME", "hidden"), nil, header...)
				no := n.do(method, strings.ReplaceAll(path, "NAME", "absent"), nil, header...)
				if seen(yes) != seen(no) || yes.StatusCode != 401 && yes.StatusCode != 403 {
					t.Errorf("%s %s: %s\nand %s", method, path, seen(yes), seen(no))
				}
			}
		}
	}
	for _, body := range []string{`{"@acme/NAME":["1.0.0"]}`, `{"@acme/NAME":["1.0.0"],"@acme/other":["1.0.0"]}`} {
		yes := n.do("POST", "/npm/-/npm/v1/security/advisories/bulk", []byte(strings.ReplaceAll(body, "NAME", "hidden")), bearer(bob)...)
		no := n.do("POST", "/npm/-/npm/v1/security/advisories/bulk", []byte(strings.ReplaceAll(body, "NAME", "absent")), bearer(bob)...)
		if seen(yes) != seen(no) || yes.StatusCode != 403 {
			t.Errorf("%s: %s\nand %s", body, seen(yes), seen(no))
		}
	}
	if q := up.Requests("/"); len(q) != 0 {
		t.Errorf("the upstream was asked: %v", q)
	}
}

// TestAuditsLeaveOut: an audit is about what who asks may pull, and the
// upstream hears of nothing else.
func TestAuditsLeaveOut(t *testing.T) {
	n, p, up := withPeople(t)
	alice := p.Give("alice", registry.TokenSpec{})
	for _, name := range []string{"left", "@acme/right"} {
		up.Advise(npmlab.Advisory{ID: len(name), Name: name, Affected: []string{"1.0.0"}, Range: "*", Title: "leans", Severity: "high"})
	}
	const bulk, quick = "/npm/-/npm/v1/security/advisories/bulk", "/npm/-/npm/v1/security/audits/quick"
	both := `{"left":["1.0.0"],"@acme/right":["1.0.0"],"not a name":["1"]}`
	for _, encoded := range []bool{false, true} {
		body, header := []byte(both), []string{"Content-Type", "application/json"}
		if encoded {
			body, header = zipped(both), append(header, "Content-Encoding", "gzip")
		}
		up.Forget()
		a := n.do("POST", bulk, body, header...).is(t, 200).json(t)
		if a["left"] == nil || a["@acme/right"] != nil {
			t.Errorf("to nobody: %v", a)
		}
		a = n.do("POST", bulk, body, append(header, bearer(alice)...)...).is(t, 200).json(t)
		if a["left"] == nil || a["@acme/right"] == nil {
			t.Errorf("to alice: %v", a)
		}
		q := up.Requests("bulk")
		if len(q) != 2 || string(q[0].Body) != `{"left":["1.0.0"]}` || q[1].Header.Get("Authorization") != "" {
			t.Errorf("the upstream was asked %q, %v", q[0].Body, q)
		}
	}
	whole := []byte(`{"left": ["1.0.0"] }`)
	n.do("POST", bulk, zipped(string(whole)), "Content-Encoding", "gzip").is(t, 200)
	if q := up.Requests("bulk"); !bytes.Equal(q[len(q)-1].Body, zipped(string(whole))) {
		t.Error("a question that needs no change was changed")
	}
	for body, want := range map[string]int{
		`{"name":"x","requires":{"left":"1"},"dependencies":{"left":{"version":"1.0.0"}}}`:                                      200,
		`{"name":"x","requires":{"@acme/right":"1"},"dependencies":{}}`:                                                         401,
		`{"name":"x","requires":true,"dependencies":{"left":{"version":"1.0.0","dependencies":{"@acme/right":{"version":1}}}}}`: 401,
		`{"dependencies":{"dependencies":{"version":"1.0.0","requires":{"@acme/right":"1"}}}}`:                                  401,
		`{"dependencies":{"requires":{"@acme/right":"a member of the package called requires"}}}`:                               200,
		`{"dependencies":{"requires":{"version":"@acme/right","x":["@acme/right",{"@acme/right":1}]}}}`:                         200,
		`{"dependencies":`: 400, `[`: 400, ``: 400, `nonsense`: 400,
	} {
		if a := n.do("POST", quick, []byte(body)); a.StatusCode != want {
			t.Errorf("%s: %s %s", body, a.Status, a.body)
		}
	}
	for _, body := range []string{``, `[]`, `{`, `{} {}`, `{"a":`} {
		n.do("POST", bulk, []byte(body)).is(t, 400)
	}
	n.do("POST", bulk, []byte(`{}`), "Content-Encoding", "br").is(t, 400)
	n.do("POST", bulk, []byte(`{}`), "Content-Encoding", "gzip").is(t, 400)
	const limit = 8 << 20
	fits := []byte(`{"left":["` + strings.Repeat("1", limit-len(`{"left":[""]}`)) + `"]}`)
	n.do("POST", bulk, fits).is(t, 200)
	// It may be refused before it has been sent.
	if a, err := n.try("POST", bulk, append(fits, ' ')); err == nil && a.StatusCode != 413 {
		t.Errorf("over the limit: %s", a.Status)
	}
	n.do("POST", bulk, zipped(string(fits)+" "), "Content-Encoding", "gzip").is(t, 413)
}

// TestSearchLeavesOut: results, and how many there are, tell of what who asks
// may pull.
func TestSearchLeavesOut(t *testing.T) {
	n, p, _ := withPeople(t)
	alice := p.Give("alice", registry.TokenSpec{})
	found := func(query string, header ...string) (names []string, total float64) {
		a := n.get("/npm/-/v1/search?"+query, header...).is(t, 200).json(t)
		for _, o := range a["objects"].([]any) {
			names = append(names, at(o, "package", "name").(string))
		}
		return names, a["total"].(float64)
	}
	for _, c := range []struct {
		query  string
		header []string
		names  string
		total  float64
	}{
		{"text=hidden", nil, "[]", 0}, {"text=hidden&from=0&size=1", nil, "[]", 0}, {"text=absent&size=1", nil, "[]", 0},
		{"text=left", nil, "[left]", 1}, {"text=hidden", bearer(alice), "[@acme/hidden]", 1}, {"text=hidden&from=7", nil, "[]", 0}, {"text=absent&from=7", nil, "[]", 0},
		// Two match, of which one may be seen: pages are cut as if there were no other.
		{"text=e&from=0&size=1", nil, "[left]", 1}, {"text=e&from=1&size=1", nil, "[]", 1}, {"text=e&size=0", nil, "[]", 1}, {"text=e&size=x", nil, "[left]", 1},
	} {
		if names, total := found(c.query, c.header...); fmt.Sprint(names) != c.names || total != c.total {
			t.Errorf("%s %v: %v of %v", c.query, c.header, names, total)
		}
	}
	if a := n.do("HEAD", "/npm/-/v1/search?text=left", nil).is(t, 200); len(a.body) != 0 || a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("HEAD: %v", a.Header)
	}
}

// TestLegacyLogin: a name and a password give a token that works; whatever is
// wrong about them is answered alike.
// TestAsksForSomebody: whoever may pull anything may search and audit, and is
// answered about that; for who may pull nothing the registry behind is not asked.
func TestAsksForSomebody(t *testing.T) {
	n, p, up := withPeople(t)
	p.Grant("")
	p.Add("carol", "staple", "pull npm:@acme/*")
	p.Add("dave", "horse", "pull oci:*")
	carol, dave := bearer(p.Give("carol", registry.TokenSpec{})), bearer(p.Give("dave", registry.TokenSpec{}))
	scoped := bearer(p.Give("carol", registry.TokenSpec{Rights: []string{"pull oci:*"}}))
	const bulk = "/npm/-/npm/v1/security/advisories/bulk"
	up.Forget()
	for _, c := range []struct {
		header []string
		status int
	}{{nil, 401}, {dave, 403}, {scoped, 403}} {
		n.get("/npm/-/v1/search?text=right", c.header...).is(t, c.status)
		n.get("/npm/-/npm/v1/keys", c.header...).is(t, c.status)
		for _, body := range []string{`{}`, `{"left":["1.0.0"]}`, `nonsense`} {
			n.do("POST", bulk, []byte(body), c.header...).is(t, c.status)
		}
		n.do("POST", "/npm/-/npm/v1/security/audits/quick", []byte(`{}`), c.header...).is(t, c.status)
	}
	if asked := up.Requests(""); len(asked) > 0 {
		t.Errorf("the registry behind was asked: %v", asked)
	}
	found := n.get("/npm/-/v1/search?text=right", carol...).is(t, 200)
	if !strings.Contains(string(found.body), "@acme/right") || found.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %s", found.Header, found.body)
	}
	n.do("POST", bulk, []byte(`{"@acme/right":["1.0.0"],"left":["1.0.0"]}`), carol...).is(t, 200)
	if asked := up.Requests(bulk[len("/npm"):]); len(asked) != 1 || strings.Contains(string(asked[0].Body), "left") {
		t.Errorf("the registry behind was asked %v", asked)
	}
	n.do("POST", bulk, []byte(`{"left":["1.0.0"]}`), carol...).is(t, 403)
	// For those alone who may pull something.
	if got := n.get("/npm/-/npm/v1/keys", carol...).is(t, 200).Header.Get("Cache-Control"); got != "private, no-cache" {
		t.Errorf("keys: Cache-Control %q", got)
	}
}

func TestLegacyLogin(t *testing.T) {
	n, p, _ := withPeople(t)
	old := p.Give("alice", registry.TokenSpec{Lifetime: -time.Second})
	put := func(name, body string) answer {
		return n.do("PUT", "/npm/-/user/org.couchdb.user:"+name, []byte(body), bearer(old)...)
	}
	a := put("alice", `{"_id":"org.couchdb.user:alice","name":"alice","password":"correct horse","type":"user","roles":[]}`).is(t, 201)
	token, _ := a.json(t)["token"].(string)
	if a.json(t)["ok"] != true || a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %v", a.body, a.Header)
	}
	if who := n.get("/npm/-/whoami", bearer(token)...).is(t, 200).json(t)["username"]; who != "alice" {
		t.Errorf("whoami: %v", who)
	}
	kept := p.Give("alice", registry.TokenSpec{})
	if again := put("alice", `{"name":"alice","password":"`+kept+`"}`).is(t, 201).json(t)["token"]; again != kept {
		t.Errorf("for the token %q it gave %q, which goes on when that is revoked", kept, again)
	}
	var texts []string
	for _, c := range [][2]string{{"alice", `{"name":"alice","password":"wrong"}`}, {"carol", `{"name":"carol","password":"wrong","email":"c@example.com"}`},
		{"alice", `{}`}, {"alice", `{"password":""}`}, {strings.Repeat("a", 65), `{"password":"x"}`}, {"alice", `{"password":"` + strings.Repeat("x", 1025) + `"}`}} {
		a := put(c[0], c[1]).is(t, 401)
		texts = append(texts, string(a.body))
		if texts[0] != string(a.body) || a.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%v: %s, %v", c, a.body, a.Header)
		}
	}
	for body, want := range map[string]int{`{"name":"bob","password":"x"}`: 400, ``: 400, `[]`: 400, `{"password":1}`: 400, `{"password":"correct horse"}x`: 400,
		`{"password":"x","a":"` + strings.Repeat("a", 64<<10-26) + `"}`: 401, `{"password":"x","a":"` + strings.Repeat("a", 64<<10) + `"}`: 413} {
		if a := put("alice", body); a.StatusCode != want {
			t.Errorf("%.40s (%d): %s %s", body, len(body), a.Status, a.body)
		}
	}
	p.Fail(&registry.Error{Kind: registry.ErrLimited, After: 7 * time.Second})
	if a := put("alice", `{"password":"x"}`).is(t, 429); a.Header.Get("Retry-After") != "7" {
		t.Errorf("%v", a.Header)
	}
	// Not 503, which npm tries again for a minute without a word.
	p.Fail(&registry.Error{Kind: registry.ErrUnavailable, Public: "not just now"})
	if a := put("alice", `{"password":"x"}`).is(t, 424); a.Header.Get("Retry-After") == "" || !strings.Contains(string(a.body), "not just now") || len(a.Header["Www-Authenticate"]) > 0 {
		t.Errorf("%v %s", a.Header, a.body)
	}
	n.do("POST", "/npm/-/v1/login", []byte(`{}`)).is(t, 503) // a 4xx would make npm ask for a password instead
	n.get("/npm/-/whoami").is(t, 401)
	n.get("/npm/-/user/org.couchdb.user:alice").is(t, 405)
}

// TestTokens: tokens are made, listed and ended by their owner alone.
func TestTokens(t *testing.T) {
	n, p, _ := withPeople(t)
	alice, bob := p.Give("alice", registry.TokenSpec{}), p.Give("bob", registry.TokenSpec{})
	create := func(body string, header []string) answer {
		return n.do("POST", "/npm/-/npm/v1/tokens", []byte(body), header...)
	}
	made := create(`{"name":"ci","password":"correct horse","scopes":["@acme"],"cidr_whitelist":["127.0.0.0/8"],"expires":3}`, bearer(alice)).is(t, 201)
	narrow, _ := made.json(t)["token"].(string)
	if m := made.json(t); m["readonly"] != true || m["expires"] == nil || fmt.Sprint(m["cidr_whitelist"]) != "[127.0.0.0/8]" || m["name"] != "ci" {
		t.Errorf("%s", made.body)
	}
	n.get("/npm/@acme%2fright", bearer(narrow)...).is(t, 200)
	n.get("/npm/left", bearer(narrow)...).is(t, 403)
	create(`{"password":"correct horse"}`, nil).is(t, 401)
	create(`{"password":"wrong"}`, bearer(alice)).is(t, 401)
	create(`{"password":"correct horse"}`, bearer(bob)).is(t, 401)
	create(`{"password":"`+alice+`"}`, bearer(alice)).is(t, 401) // who has stolen it is to get no other by it
	create(`{"password":"correct horse","readonly":false}`, bearer(narrow)).is(t, 403)
	create(`{"password":"correct horse","scopes":["acme"],"packages_and_scopes_permission":"read-write"}`, bearer(narrow)).is(t, 403)
	create(`{"password":"correct horse","packages":["@acme/right"]}`, bearer(narrow)).is(t, 201)
	if a := create(`{"password":"correct horse","teams":["x"]}`, bearer(alice)).is(t, 400); !strings.Contains(string(a.body), `\"teams\" is not supported`) {
		t.Errorf("%s", a.body)
	}
	list := n.get("/npm/-/npm/v1/tokens", bearer(alice)...).is(t, 200)
	var shown struct {
		Objects []struct{ Token, Key string }
		URLs    struct{ Next string }
	}
	if err := json.Unmarshal(list.body, &shown); err != nil || len(shown.Objects) != 3 || strings.Contains(string(list.body), narrow) {
		t.Fatalf("%v: %s", err, list.body)
	}
	remove := func(key string, header []string) answer {
		return n.do("DELETE", "/npm/-/npm/v1/tokens/token/"+key, nil, header...)
	}
	key := shown.Objects[2].Key
	if o := shown.Objects[1]; o.Token != narrow[:13] || "weir_"+o.Key != o.Token {
		t.Errorf("%+v is shown for %s", o, narrow)
	}
	remove(key, bearer(bob)).is(t, 404)
	remove(narrow, bearer(bob)).is(t, 404)
	remove("zzz", bearer(alice)).is(t, 404)
	remove("weir_zzz", bearer(alice)).is(t, 404)
	remove(key, nil).is(t, 401)
	remove(key[:6], bearer(alice)).is(t, 200)
	remove(narrow, bearer(alice)).is(t, 200)
	n.get("/npm/-/whoami", bearer(narrow)...).is(t, 401)
	n.get("/npm/-/npm/v1/tokens").is(t, 401)
}

// TestLogoutProfileExchange: the smaller ones.
func TestLogoutProfileExchange(t *testing.T) {
	n, p, _ := withPeople(t)
	alice, bob := p.Give("alice", registry.TokenSpec{}), p.Give("bob", registry.TokenSpec{})
	if m := n.get("/npm/-/npm/v1/user", bearer(alice)...).is(t, 200).json(t); m["name"] != "alice" || m["email"] != "alice@example.com" || m["tfa"] != nil {
		t.Errorf("%v", m)
	}
	n.get("/npm/-/npm/v1/user").is(t, 401)
	if a := n.do("POST", "/npm/-/npm/v1/user", []byte(`{"email":"x"}`), bearer(alice)...).is(t, 403); !strings.Contains(string(a.body), "not changed by npm") {
		t.Errorf("%s", a.body)
	}
	n.do("DELETE", "/npm/-/user/token/"+alice, nil, bearer(alice)...).is(t, 200)
	if a := n.do("DELETE", "/npm/-/user/token/"+alice, nil, bearer(alice)...).is(t, 401); !strings.Contains(string(a.body), "npm config delete //"+strings.TrimPrefix(n.url, "http://")+"/npm/:_authToken") {
		t.Errorf("%s", a.body)
	}
	n.get("/npm/-/whoami", bearer(alice)...).is(t, 401)
	n.do("DELETE", "/npm/-/user/token/"+bob, nil).is(t, 200) // its own proof
	p.Issuer("jwt.alice", "alice")
	for _, path := range []string{"/npm/-/npm/v1/oidc/token/exchange/package/@acme%2fright", "/-/npm/v1/oidc/token/exchange/package/left"} {
		token, _ := n.do("POST", path, nil, bearer("jwt.alice")...).is(t, 201).json(t)["token"].(string)
		n.get("/npm/-/whoami", bearer(token)...).is(t, 200)
		n.do("POST", path, nil, bearer("eyJ")...).is(t, 401)
		n.do("POST", path, nil).is(t, 401)
		n.do("POST", path, nil, bearer("jwt."+strings.Repeat("x", 16<<10))...).is(t, 401)
	}
	n.get("/-/npm/v1/tokens", bearer(alice)...).is(t, 404) // of the host's root, only the exchange
}

// TestNoSecretsInTheLog: paths that hold a secret are logged without it.
func TestNoSecretsInTheLog(t *testing.T) {
	p := accountlab.New("pull npm:*")
	p.Add("alice", "pw")
	var log bytes.Buffer
	up, err := npm.NewUpstreams(nil, npm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := reply.Handler(npm.New(npm.Config{Service: &registry.Service{Guard: p}, Upstreams: up, Prefix: "/npm", Gate: p, Logins: p, Tokens: p, Identities: p}),
		reply.Options{Space: "npm", Log: slog.New(slog.NewTextHandler(&log, nil))})
	secret := p.Give("alice", registry.TokenSpec{})
	var hide []string
	for _, path := range []string{"/npm/-/user/token/" + secret, "/npm/-/user/%74oken/" + secret, "/npm/-/user/token/secret1/%zz", "/npm/-/v1/done/secret2", "/npm/-/v1/login/secret3", "/npm//-/v1/done/secret4",
		"/npm/-/npm/v1/tokens/token/" + secret, "/npm/" + secret, "/npm/left?x=" + secret, "/other/" + secret} {
		r := &http.Request{Method: "DELETE", RequestURI: path, RemoteAddr: "127.0.0.1:1", Header: http.Header{}, Body: http.NoBody, Host: "x"}
		r.URL, _ = url.Parse("http://x")
		r.URL.Path, r.URL.RawPath = path, path
		if u, err := url.ParseRequestURI(path); err == nil {
			r.URL = u
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	// Who logged out is said, and who asks with a token or a password.
	for _, auth := range []string{"Bearer " + p.Give("alice", registry.TokenSpec{}), "Bearer " + secret, ""} {
		r := httptest.NewRequest("GET", "/npm/-/whoami", nil)
		r.Header["Authorization"] = []string{auth}
		if auth == "" {
			delete(r.Header, "Authorization")
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if n := strings.Count(log.String(), "who="); n != 2 || strings.Count(log.String(), "who=alice") != 2 {
		t.Errorf("who asks is said %d times:\n%s", n, &log)
	}
	hide = append(hide, secret, secret[5:], "secret1", "secret2", "secret3", "secret4")
	for _, s := range hide {
		if strings.Contains(log.String(), s) {
			t.Errorf("%q is in the log:\n%s", s, &log)
		}
	}
	if n := strings.Count(log.String(), "msg=request"); n != 13 {
		t.Errorf("%d lines", n)
	}
}

// TestRefusalsAreEvents: what the guard is asked for the answer's sake only, whether
// everyone may and which results to leave out, is no refusal of anyone.
func TestRefusalsAreEvents(t *testing.T) {
	n, p, _ := withPeople(t)
	alice, bob := bearer(p.Give("alice", registry.TokenSpec{})), bearer(p.Give("bob", registry.TokenSpec{}))
	for path, c := range map[string]struct {
		header []string
		status int
		events int
	}{
		"/npm/@acme%2fright": {alice, 200, 0}, "/npm/@acme/right/-/right-1.0.0.tgz": {alice, 200, 0},
		"/npm/-/v1/search?text=acme": {bob, 200, 0}, "/npm/@acme%2fhidden": {bob, 403, 1},
	} {
		n.get(path, c.header...).is(t, c.status)
		if got := p.Refused(); len(got) != c.events {
			t.Errorf("%s: refused %+v, want %d", path, got, c.events)
		}
	}
}
