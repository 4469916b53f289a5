package account

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A granted is a Guard that looks into the database.
type granted struct{ l *lab }

func (g granted) Admit(ctx context.Context, c *registry.Call) error {
	if c.Action != registry.Admin || c.Name != (registry.Name{}) {
		return registry.Errorf(registry.ErrInvalid, "asked for %+v", c)
	}
	grants, err := g.l.ListGrants(ctx, c.Who.Name)
	if err == nil && !slices.ContainsFunc(grants, func(g registry.Grant) bool { return g.Right == "admin *" }) {
		err = registry.Errorf(registry.ErrDenied, "%s may not administer", c.Who.Name)
	}
	return err
}

const testHeader = "X-Admin"

// An api is a running admin API.
type api struct {
	*lab
	url, token string
}

func newAPI(t *testing.T, change ...func(*HandlerOptions)) *api {
	l := newLab(t)
	l.must(l.EnsureAdmin(t.Context(), t.TempDir()))
	nt, err := l.CreateTokenFor(t.Context(), root, "admin", registry.TokenSpec{})
	l.must(err)
	o := HandlerOptions{Guard: granted{l}, Header: testHeader, Node: "origin1"}
	for _, c := range change {
		c(&o)
	}
	server := httptest.NewServer(Handler(l.Authority, o))
	t.Cleanup(server.Close)
	return &api{lab: l, url: server.URL + AdminPath, token: nt.Secret}
}

// raw sends a request and returns the status and the body.
func (a *api) raw(method, path, body string, header map[string]string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	a.must(err)
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set(testHeader, "1")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	a.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	a.must(err)
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/") || resp.Header.Get("Cache-Control") != "no-store" {
		a.t.Errorf("%s %s: %s, %q", method, path, ct, resp.Header.Get("Cache-Control"))
	}
	return resp.StatusCode, string(text)
}

// ask wants 200 and decodes the answer strictly.
func ask[T any](a *api, method, path, body string) (v T) {
	a.t.Helper()
	status, text := a.raw(method, path, body, nil)
	if status != 200 {
		a.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if err := decodeStrictly([]byte(text), &v); err != nil {
		a.t.Fatalf("%s %s: %s: %v", method, path, text, err)
	}
	return v
}

func TestAdminAPI(t *testing.T) {
	a := newAPI(t)
	alice := ask[AccountAnswer](a, "POST", "users", `{"name":"alice","email":"a@example.com","password":"correct horse"}`)
	if alice.Name != "alice" || alice.Kind != registry.User || alice.Version == 0 {
		t.Errorf("%+v", alice)
	}
	if e := a.audited(); e.Who.Name != "admin" || e.Who.Token == "" || !e.Addr.IsLoopback() {
		t.Errorf("audited %+v", e)
	}
	ask[AccountAnswer](a, "POST", "robots", `{"name":"ci"}`)
	ask[TeamAnswer](a, "POST", "teams", `{"name":"core"}`)
	ask[Changed](a, "PUT", "teams/core/members/alice", "")
	if got := ask[AccountAnswer](a, "GET", "users/alice", ""); !slices.Equal(got.Teams, []string{"core"}) || got.Email != "a@example.com" {
		t.Errorf("%+v", got)
	}
	if got := ask[TeamAnswer](a, "GET", "teams/core", ""); !slices.Equal(got.Members, []string{"alice"}) {
		t.Errorf("%+v", got)
	}
	if got := ask[Listing](a, "GET", "teams", ""); len(got.Teams) != 1 {
		t.Errorf("%+v", got)
	}
	ask[Changed](a, "DELETE", "teams/core/members/alice", "")
	ask[Changed](a, "PUT", "users/alice/password", `{"password":"another horse"}`)
	if _, err := a.Password(t.Context(), "alice", "another horse", here); err != nil {
		t.Error(err)
	}
	ask[Changed](a, "PUT", "accounts/alice/disabled", `{"disabled":true}`)
	if got := ask[Listing](a, "GET", "users", ""); len(got.Users) != 1 || !got.Users[0].Disabled {
		t.Errorf("%+v", got)
	}
	if got := ask[Listing](a, "GET", "robots", ""); len(got.Robots) != 2 {
		t.Errorf("%+v", got)
	}
	nt := ask[registry.NewToken](a, "POST", "tokens", `{"owner":"ci","note":"x","rights":["pull oci:*"],"from":["10.0.0.0/8"],"lifetime":3600000000000}`)
	if !registry.CheckTokenText(nt.Secret) || nt.Version == 0 {
		t.Errorf("%+v", nt)
	}
	if got := ask[Listing](a, "GET", "tokens?owner=ci", ""); len(got.Tokens) != 1 || got.Tokens[0].ID != nt.ID {
		t.Errorf("%+v", got)
	}
	ask[TokenAnswer](a, "GET", "tokens/"+nt.ID, "")
	if got := ask[Changed](a, "DELETE", "keys", ""); got.Version == 0 {
		t.Errorf("%+v", got)
	}
	if got := ask[TokenAnswer](a, "DELETE", "tokens/"+nt.ID, ""); got.Version <= nt.Version || got.Owner != "ci" {
		t.Errorf("%+v", got)
	}
	g := ask[GrantAnswer](a, "POST", "grants", `{"to":"alice","right":"pull oci:acme/*","deny":true,"lifetime":1000000000}`)
	if got := ask[Listing](a, "GET", "grants?to=alice", ""); len(got.Grants) != 1 || got.Grants[0] != g.Grant || g.By != "admin" {
		t.Errorf("%+v", got)
	}
	ask[GrantAnswer](a, "DELETE", "grants/"+g.ID, "")
	ask[Changed](a, "DELETE", "users/alice", "")
	ask[Changed](a, "DELETE", "robots/ci", "")
	ask[Changed](a, "DELETE", "teams/core", "")
	if got := ask[Whoami](a, "GET", "whoami", ""); got.Name != "admin" || got.Node != "origin1" {
		t.Errorf("%+v", got)
	}
	// What is empty is a list all the same.
	for _, path := range []string{"users", "teams", "grants?to=anonymous"} {
		if status, text := a.raw("GET", path, "", nil); status != 200 || !strings.Contains(text, "[]") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

func TestAdminAPIRefuses(t *testing.T) {
	a := newAPI(t)
	a.user("alice")
	nt, err := a.CreateTokenFor(t.Context(), root, "alice", registry.TokenSpec{})
	a.must(err)
	large := `{"name":"` + strings.Repeat("a", maxBody) + `"}`
	for _, c := range []struct {
		method, path, body string
		header             map[string]string
		status             int
	}{
		{"GET", "users", "", map[string]string{"Authorization": ""}, 401},
		{"GET", "users", "", map[string]string{"Authorization": "Basic YTpi"}, 401},
		{"GET", "users", "", map[string]string{"Authorization": "Bearer weir_nonsense"}, 401},
		{"GET", "nothing", "", map[string]string{"Authorization": ""}, 401},
		{"GET", "users", "", map[string]string{"Authorization": "Bearer " + nt.Secret}, 403},
		{"POST", "users", `{"name":"eve"}`, map[string]string{"Authorization": "Bearer " + nt.Secret}, 403},
		{"POST", "users", `{"name":"eve"}`, map[string]string{testHeader: ""}, 403},
		{"DELETE", "users/alice", "", map[string]string{testHeader: ""}, 403},
		{"GET", "nothing", "", nil, 404},
		{"PATCH", "users", "", nil, 404},
		{"GET", "users/nobody", "", nil, 404},
		{"GET", "robots/alice", "", nil, 404},
		{"DELETE", "users/..%2Falice", "", nil, 404},
		{"GET", "tokens/..%2F..%2Fx", "", nil, 404},
		{"POST", "users", `{"name":"alice"}`, nil, 409},
		{"POST", "users", `{"name":"Alice"}`, nil, 400},
		{"POST", "users", `{"name":"eve","nmae":"x"}`, nil, 400},
		{"POST", "users", `{"name":"eve"} {}`, nil, 400},
		{"POST", "users", `[]`, nil, 400},
		{"POST", "users", ``, nil, 400},
		{"POST", "robots", `{"name":"ci","password":"12345678"}`, nil, 400},
		{"POST", "tokens", `{"owner":"alice","kind":"exchange"}`, nil, 400},
		{"POST", "tokens", `{"owner":"alice","from":["10.0.0.0/99"]}`, nil, 400},
		{"POST", "tokens", `{"owner":"nobody"}`, nil, 404},
		{"POST", "grants", `{"to":"alice","right":"all"}`, nil, 400},
		{"GET", "nodes?version=x", "", nil, 400},
		{"GET", "nodes?version=1&wait=1h", "", nil, 400},
		{"POST", "users", large, nil, 413},
	} {
		status, text := a.raw(c.method, c.path, c.body, c.header)
		var f failure
		if err := decodeStrictly([]byte(text), &f); status != c.status || err != nil || f.Error == "" || (status == 401 || status == 403) && c.header[testHeader] == "x" {
			t.Errorf("%s %s %.60s: %d %s %v, want %d", c.method, c.path, c.body, status, text, err, c.status)
		}
		if status == 401 && !strings.Contains(f.Hint, AdminFile) {
			t.Errorf("%s %s: the hint is %q", c.method, c.path, f.Hint)
		}
	}
	if _, ok := a.replica.Account("eve"); ok {
		t.Error("who was refused has made an account")
	}
	// To revoke the right, or the token, ends it here too.
	grants, err := a.ListGrants(t.Context(), "admin")
	a.must(err)
	if got := ask[GrantAnswer](a, "DELETE", "grants/"+grants[0].ID, ""); got.ID != grants[0].ID {
		t.Errorf("%+v", got)
	}
	if status, text := a.raw("GET", "users", "", nil); status != 403 {
		t.Errorf("without the right: %d %s", status, text)
	}
	_, err = a.RemoveAccount(t.Context(), root, "", "admin")
	a.must(err)
	if status, text := a.raw("GET", "users", "", nil); status != 401 {
		t.Errorf("without the account: %d %s", status, text)
	}
}

// Whatever is asked for, secrets and hashes are in no answer.
func TestAdminAPITellsNoSecrets(t *testing.T) {
	a := newAPI(t)
	alice := a.user("alice")
	nt, err := a.CreateTokenFor(t.Context(), root, "alice", registry.TokenSpec{})
	a.must(err)
	for _, path := range []string{"users", "users/alice", "robots", "teams", "tokens", "tokens/" + nt.ID, "grants", "nodes", "whoami"} {
		_, text := a.raw("GET", path, "", nil)
		if strings.Contains(text, "hash\":\"") && path != "nodes" || strings.Contains(text, nt.Secret) || strings.Contains(text, "argon") || strings.Contains(text, fmt.Sprint(alice.Secret)) {
			t.Errorf("%s: %s", path, text)
		}
	}
}

// A slowBoard has two nodes in front: one gets the version when it is told to,
// the other never.
type slowBoard struct{ reach chan struct{} }

func (b slowBoard) List() []registry.NodeStanding {
	return []registry.NodeStanding{{Node: "edge1"}, {Node: "edge2", Via: []string{"shield1"}}}
}

func (b slowBoard) Wait(ctx context.Context, version uint64, reached func(registry.NodeStanding)) ([]registry.NodeStanding, error) {
	<-b.reach
	reached(registry.NodeStanding{Node: "edge1", Standing: registry.Standing{Version: version}})
	<-ctx.Done()
	return []registry.NodeStanding{{Node: "edge2", Via: []string{"shield1"}}}, ctx.Err()
}

func TestNodesAreToldAsTheyReachAVersion(t *testing.T) {
	board := slowBoard{make(chan struct{})}
	a := newAPI(t, func(o *HandlerOptions) {
		o.Board = board
		o.State = func() registry.Standing { return registry.Standing{Database: "d", Version: 7} }
	})
	if got := ask[Listing](a, "GET", "nodes", ""); len(got.Nodes) != 3 || got.Nodes[0].Node != "origin1" || got.Nodes[0].Version != 7 {
		t.Errorf("listed %+v", got.Nodes)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", a.url+"nodes?version=1&wait=300ms", nil)
	a.must(err)
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(req)
	a.must(err)
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	next := func() (r Reached) {
		text, err := lines.ReadBytes('\n')
		a.must(err)
		a.must(json.Unmarshal(text, &r))
		return r
	}
	if r := next(); r.Node != "origin1" || r.Done {
		t.Errorf("first %+v", r)
	}
	close(board.reach) // what came first was not held back for what comes now
	if r := next(); r.Node != "edge1" || r.Done {
		t.Errorf("second %+v", r)
	}
	if r := next(); !r.Done || len(r.Missing) != 1 || r.Missing[0].Node != "edge2" || r.After < 0.2 {
		t.Errorf("last %+v", r)
	}
	alone := newAPI(t)
	status, text := alone.raw("GET", "nodes?version=1", "", nil)
	if status != 200 || strings.Count(text, "\n") != 2 || !strings.Contains(text, `"done":true`) || strings.Contains(text, "missing") {
		t.Errorf("alone: %d %s", status, text)
	}
	alone.replica.behind = true
	if _, text := alone.raw("GET", "nodes?version=1&wait=1ms", "", nil); !strings.Contains(text, `"missing":[{"node":"origin1"`) {
		t.Errorf("behind: %s", text)
	}
}

func FuzzAdminAPI(f *testing.F) {
	for _, seed := range [][2]string{{"users", `{"name":"alice","password":"correct horse"}`}, {"tokens", `{"owner":"ci","rights":["pull oci:*"],"from":["10.0.0.0/8"],"lifetime":1}`},
		{"grants", `{"to":"anonymous","right":"pull *","lifetime":9223372036854775807}`}, {"teams", `{"name":"a"}`}, {"robots", `{"name":null}`}, {"tokens", `{"owner":"ci","from":[""]}`}} {
		f.Add(seed[0], []byte(seed[1]))
	}
	t := &testing.T{}
	l := &lab{t: t}
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if l.db == nil {
			l = newLab(t)
			_, _, err := l.AddRobot(t.Context(), root, "ci")
			l.must(err)
			_, _, err = l.Grant(t.Context(), root, GrantSpec{To: "ci", Right: "admin *"})
			l.must(err)
		}
		nt, err := l.CreateTokenFor(context.Background(), root, "ci", registry.TokenSpec{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Revoke(context.Background(), root, nt.ID)
		req := httptest.NewRequest("POST", AdminPath+"x", bytes.NewReader(body))
		req.URL.Path = AdminPath + path
		req.Header.Set("Authorization", "Bearer "+nt.Secret)
		rec := httptest.NewRecorder()
		began := time.Now()
		Handler(l.Authority, HandlerOptions{Guard: granted{l}}).ServeHTTP(rec, req)
		if rec.Code >= 500 || time.Since(began) > 5*time.Second {
			t.Errorf("%q %q: %d %s", path, body, rec.Code, rec.Body)
		}
	})
}

func TestAdminAPIChecks(t *testing.T) {
	var tried []registry.Call
	refuse := error(nil)
	a := newAPI(t, func(o *HandlerOptions) {
		o.Decide = deciding(func(c *registry.Call) error { tried = append(tried, *c); return refuse })
	})
	alice := a.user("alice")
	_, _, err := a.AddTeam(t.Context(), root, "core")
	a.must(err)
	_, err = a.AddMember(t.Context(), root, "core", "alice")
	a.must(err)
	id := map[string]string{}
	for _, g := range []GrantSpec{{To: "alice", Right: "push oci:x/*"}, {To: "team:core", Right: "pull *"}, {To: "alice", Right: "pull oci:x/*", Lifetime: time.Minute},
		{To: "alice", Right: "pull oci:y/*", Deny: true}, {To: "team:core", Right: "admin oci:x/*", Deny: true}, {To: "anonymous", Right: "pull oci:x/*"}} {
		made, _, err := a.Grant(t.Context(), root, g)
		a.must(err)
		id[made.ID] = made.To + " " + made.Right
	}
	a.pass(time.Hour)
	nt, err := a.CreateTokenFor(t.Context(), root, "alice", registry.TokenSpec{})
	a.must(err)
	denied := &registry.Error{Kind: registry.ErrDenied, Text: "the reason"}
	for _, c := range []struct {
		query  string
		refuse error
		want   []string
	}{
		{"who=alice&right=pull+oci:x/a", nil, []string{"user:alice push oci:x/*", "team:core pull *"}},
		{"who=alice&right=push+oci:x/a", nil, []string{"user:alice push oci:x/*"}},
		{"who=alice&right=pull+npm:a", nil, []string{"team:core pull *"}},
		{"who=alice&right=push+oci:y/a", denied, []string{"user:alice pull oci:y/*"}},
		{"who=alice&right=admin+oci:x/a", denied, []string{"team:core admin oci:x/*"}},
		{"who=alice&right=push+oci:x/a", denied, nil},
		{"who=anonymous&right=pull+oci:x/a", nil, []string{"anonymous pull oci:x/*"}},
		{"who=anonymous&right=pull+oci:z", nil, nil},
	} {
		tried, refuse = nil, c.refuse
		out := ask[Checked](a, "GET", "check?"+c.query, "")
		var got []string
		for _, g := range out.Grants {
			got = append(got, id[g.ID])
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) || out.Allowed != (c.refuse == nil) || (out.Why == "the reason") == out.Allowed || len(tried) != 1 {
			t.Errorf("%s: %+v", c.query, out)
		}
	}
	for _, c := range []struct {
		query string
		kind  error
		want  bool
	}{{"who=alice&right=push+oci:z", registry.ErrDenied, true}, {"who=alice&right=push+oci:z", registry.ErrUnauthenticated, false},
		{"who=anonymous&right=pull+oci:z", registry.ErrUnauthenticated, false}, {"who=alice&right=push+oci:x/a", registry.ErrDenied, false}} {
		refuse = registry.Errorf(c.kind, "no")
		if out := ask[Checked](a, "GET", "check?"+c.query, ""); out.Ungranted != c.want {
			t.Errorf("%s, refused as %v: %+v", c.query, c.kind, out)
		}
	}
	if last := tried[len(tried)-2]; last.Who.Secret != 0 { // anonymous
		t.Errorf("asked for %+v", last)
	}
	if last := tried[len(tried)-1]; last.Who.UID != alice.UID || last.Who.Secret != alice.Secret {
		t.Errorf("asked for %+v", last)
	}
	refuse = nil
	ask[Checked](a, "GET", "check?who=token:"+nt.ID+"&right=push+oci:x/a", "")
	if last := tried[len(tried)-1]; last.Who.UID != alice.UID || last.Who.Secret != 0 || last.Who.Token != nt.ID || last.Action != registry.Push || last.Name.Repo != "x/a" {
		t.Errorf("asked for %+v", last)
	}
	for query, want := range map[string]int{"": 400, "who=alice": 400, "who=alice&right=pull+oci:*": 400, "who=alice&right=push+*": 400, "who=eve&right=pull+oci:a": 404,
		"who=team:core&right=pull+oci:a": 400, "who=token:x&right=pull+oci:a": 404, "who=token:sha256:00&right=pull+oci:a": 404, "who=token:sha256:z&right=pull+oci:a": 404} {
		if status, text := a.raw("GET", "check?"+query, "", nil); status != want {
			t.Errorf("%s: %d %s", query, status, text)
		}
	}
	refuse = registry.Errorf(registry.ErrUnavailable, "not now")
	if status, text := a.raw("GET", "check?who=alice&right=pull+oci:a", "", nil); status != 503 {
		t.Errorf("undecided: %d %s", status, text)
	}
}

// A deciding is a Guard of one function.
type deciding func(*registry.Call) error

func (d deciding) Admit(_ context.Context, c *registry.Call) error { return d(c) }
