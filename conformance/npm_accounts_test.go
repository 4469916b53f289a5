package conformance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/entitle"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

// An npmAccounts is a registry with accounts where anybody may pull all but
// @acme/*.
type npmAccounts struct {
	url string // with /npm at its end
	// add makes a user who is granted rights.
	add func(name, password string, rights ...string)
	// give makes a token of a user's.
	give func(name string, spec registry.TokenSpec) string
}

// startNpmAccounts starts weir with accounts; as long as the binary has none, it
// is a server within the test, of the same parts.
func startNpmAccounts(t *testing.T) (*npmAccounts, *npmlab.Registry) {
	t.Helper()
	up := newNpmLab(t)
	publishLeft(up)
	if hasAccounts(t) {
		return realAccounts(t, up), up
	}
	return ownAccounts(t, up), up
}

// ownAccounts is a registry with accounts within the test's process.
func ownAccounts(t *testing.T, up *npmlab.Registry) *npmAccounts {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ups, err := npm.NewUpstreams([]npm.Registry{{Name: "public", URL: up.URL, Packages: []string{"*"}, Fresh: time.Hour}}, npm.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	grants, err := entitle.Parse([]string{"pull npm:*"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := entitle.Open(entitle.Options{Anonymous: grants, Authority: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	db := &names.MemoryMetadata{}
	ctx := t.Context()
	go p.Follow(ctx, db)
	auth, err := account.Open(ctx, account.Options{Metadata: db, Replica: p, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	go auth.Run(ctx)
	g := gate.New(gate.Config{Identities: p, Logins: auth, Log: log})
	s := &registry.Service{Guard: p, Names: &names.Memory{}, Log: log, Spaces: map[string]registry.Space{"npm": ups.Space()},
		Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), ups, cachetiers.Options{Name: "memory", Log: log})}
	h := npm.New(npm.Config{Service: s, Upstreams: ups, Prefix: "/npm", Log: log, Gate: g, Logins: auth, Tokens: auth, Identities: p})
	server := httptest.NewServer(reply.Handler(h, reply.Options{Space: "npm", Log: log}))
	t.Cleanup(server.Close)
	grant := func(to, right string) {
		right, deny := strings.CutPrefix(right, "!")
		if _, _, err := auth.Grant(ctx, account.Actor{}, account.GrantSpec{To: to, Right: right, Deny: deny}); err != nil {
			t.Fatal(err)
		}
	}
	grant("anonymous", "!pull npm:@acme/*")
	return &npmAccounts{url: server.URL + "/npm",
		add: func(name, password string, rights ...string) {
			if _, _, err := auth.AddUser(ctx, account.Actor{}, name, name+"@example.com", password); err != nil {
				t.Fatal(err)
			}
			for _, r := range rights {
				grant("user:"+name, r)
			}
		},
		give: func(name string, spec registry.TokenSpec) string {
			n, err := auth.CreateTokenFor(ctx, account.Actor{}, name, spec)
			if err != nil {
				t.Fatal(err)
			}
			return n.Secret
		}}
}

// hasAccounts reports whether cmd/weir is made with accounts.
func hasAccounts(t *testing.T) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(lab.Root(t), "cmd", "weir", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") && bytes.Contains(text, []byte(`"`+module+`/registry/account"`)) {
			return true
		}
	}
	return false
}

// realAccounts is weir itself, configured by its admin API.
func realAccounts(t *testing.T, up *npmlab.Registry) *npmAccounts {
	t.Helper()
	w := lab.StartWeir(t, npmConfig(up.URL, "fresh: 1h"))
	secret, err := os.ReadFile(filepath.Join(w.Data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	post := func(path string, body any) (made registry.NewToken) {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		a := askBody(t, "POST", "http://"+w.Ops, "/admin/v1/"+path, text, "Authorization", "Bearer "+strings.TrimSpace(string(secret)),
			"Content-Type", "application/json", "Weir-Admin", "1")
		if a.StatusCode/100 != 2 {
			t.Fatalf("%s: %s: %s", path, a.Status, a.body)
		}
		_ = json.Unmarshal(a.body, &made)
		return made
	}
	grant := func(to, right string) {
		right, deny := strings.CutPrefix(right, "!")
		post("grants", map[string]any{"to": to, "right": right, "deny": deny})
	}
	grant("anonymous", "!pull npm:@acme/*")
	return &npmAccounts{url: w.URL + "/npm",
		add: func(name, password string, rights ...string) {
			post("users", map[string]string{"name": name, "email": name + "@example.com", "password": password})
			for _, right := range rights {
				grant("user:"+name, right)
			}
		},
		give: func(name string, spec registry.TokenSpec) string {
			return post("tokens", struct {
				Owner string `json:"owner"`
				registry.TokenSpec
			}{name, spec}).Secret
		}}
}

const (
	alicePassword  = "correct horse battery"
	privateProject = `{"name":"project","version":"1.0.0","private":true,"license":"MIT","dependencies":{"@acme/right":"1.0.0"}}`
)

// home is a home whose clients use a.
func (a *npmAccounts) home(t *testing.T) *npmHome {
	t.Helper()
	h := newNpmHome(t, a.url)
	h.write("package.json", privateProject)
	return h
}

// approve does in place of a person and a browser what the page at an address
// asks for.
func approve(t *testing.T, page, name, password string) {
	t.Helper()
	a := ask(t, "GET", page, mustPath(t, page))
	field := regexp.MustCompile(`name="login" value="([^"]+)"`).FindSubmatch(a.body)
	if a.StatusCode != http.StatusOK || field == nil {
		t.Fatalf("the page: %s\n%s", a.Status, a.body)
	}
	u, err := url.Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"login": {string(field[1])}, "name": {name}, "password": {password}}.Encode()
	a = askBody(t, "POST", page, u.EscapedPath(), []byte(form), "Content-Type", "application/x-www-form-urlencoded", "Origin", u.Scheme+"://"+u.Host)
	if a.StatusCode != http.StatusOK || !bytes.Contains(a.body, []byte("You are logged in as "+name)) {
		t.Fatalf("approved: %s\n%s", a.Status, a.body)
	}
}

func mustPath(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.EscapedPath()
}

// shows fails the test unless a client ended so and showed all of texts.
func shows(t *testing.T, what string, r lab.Result, good bool, texts ...string) {
	t.Helper()
	out := r.Stdout + r.Stderr
	if (r.Code == 0) != good {
		t.Errorf("%s: status %d\n%s", what, r.Code, clipped(out))
		return
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("%s: does not show %q:\n%s", what, text, clipped(out))
		}
	}
}

// TestNpmWebLogin: npm login, what can be done then, and npm logout.
func TestNpmWebLogin(t *testing.T) {
	a, _ := startNpmAccounts(t)
	a.add("alice", alicePassword, "pull npm:@acme/*")
	h := a.home(t)
	shows(t, "whoami before", h.try("npm", "whoami"), false, "ENEEDAUTH")
	shows(t, "install before", h.try("npm", "install"), false, "E401", "anonymous", "npm login")
	p := lab.Start(t, lab.Command{Path: lab.Tool(t, "npm"), Args: []string{"login", "--browser=false"}, Env: h.env, Dir: h.dir()})
	address := regexp.MustCompile(`(?m)^http://\S+/-/v1/login/\S+$`)
	lab.Eventually(t, time.Minute, "npm says where to log in", func() error {
		if address.FindString(p.Log()) == "" {
			return fmt.Errorf("%q", p.Log())
		}
		return nil
	})
	approve(t, address.FindString(p.Log()), "alice", alicePassword)
	<-p.Done()
	if p.ExitCode() != 0 || !strings.Contains(p.Log(), "Logged in on "+h.base) {
		t.Fatalf("npm login: %d\n%s", p.ExitCode(), p.Log())
	}
	shows(t, "whoami", h.try("npm", "whoami"), true, "alice")
	shows(t, "profile", h.try("npm", "profile", "get"), true, "name: alice", "email: alice@example.com")
	shows(t, "profile set", h.try("npm", "profile", "set", "fullname", "Alice"), false, "403 Forbidden", "ask who runs this registry")
	shows(t, "install", h.try("npm", "install"), true, "added 2 packages")
	checkTokenCommands(t, h)
	rc, _ := os.ReadFile(filepath.Join(h.root, ".npmrc"))
	shows(t, "logout", h.try("npm", "logout"), true)
	shows(t, "whoami after", h.try("npm", "whoami"), false, "ENEEDAUTH")
	// The token is not only forgotten but ended.
	if err := os.WriteFile(filepath.Join(h.root, ".npmrc"), rc, 0o600); err != nil {
		t.Fatal(err)
	}
	shows(t, "whoami with the old token", h.try("npm", "whoami"), false, "E401", "token", "npm login")
	shows(t, "logout again", h.try("npm", "logout"), false, "npm config delete //")
	cached := 0
	_ = filepath.WalkDir(filepath.Join(h.root, ".npm"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			cached++
			if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("weir_")) && bytes.Contains(text, []byte("authorization")) {
				t.Errorf("%s has a token", path)
			}
		}
		return nil
	})
	if cached == 0 {
		t.Error("npm kept nothing: the test has looked at nothing")
	}
}

// checkTokenCommands: npm token create, list and revoke.
func checkTokenCommands(t *testing.T, h *npmHome) {
	t.Helper()
	// npm 11.19 takes --read-only and does not send it; so a token about which
	// nothing is said is for reading.
	made := h.try("npm", "token", "create", "--password", alicePassword, "--name=ci", "--scopes=@acme", "--packages-and-scopes-permission=read-only", "--expires=7", "--cidr=127.0.0.0/8")
	shows(t, "token create", made, true, "Created token weir_", "127.0.0.0/8", "expires: ")
	shows(t, "token create with a wrong password", h.try("npm", "token", "create", "--password=wrong", "--name=ci"), false, "401", "wrong password")
	shows(t, "token create for an org", h.try("npm", "token", "create", "--password", alicePassword, "--name=ci", "--orgs=acme"), false, "400", "no organizations")
	secret := regexp.MustCompile(`weir_\w+`).FindString(made.Stdout)
	list := h.try("npm", "token", "list")
	shows(t, "token list", list, true, "Token weir_", "name ci", "127.0.0.0/8")
	id := regexp.MustCompile(`with id (\S+) name ci`).FindStringSubmatch(list.Stdout)
	if id == nil || secret == "" {
		t.Fatalf("%s\n%s", made.Stdout, list.Stdout)
	}
	shows(t, "token revoke", h.try("npm", "token", "revoke", id[1]), true, "Removed 1 token")
	if strings.Contains(h.run("npm", "token", "list").Stdout, "name ci") {
		t.Error("it is still listed")
	}
	second := regexp.MustCompile(`weir_\w+`).FindString(h.run("npm", "token", "create", "--password", alicePassword, "--name=second").Stdout)
	shows(t, "token revoke by the token", h.try("npm", "token", "revoke", second), true, "Removed 1 token")
	if strings.Contains(h.run("npm", "token", "list").Stdout, "name second") {
		t.Error("it is still listed")
	}
}

// TestNpmLegacyLogin: npm login --auth-type=legacy, as npm before 9 did too.
func TestNpmLegacyLogin(t *testing.T) {
	a, _ := startNpmAccounts(t)
	a.add("alice", alicePassword, "pull npm:@acme/*")
	for _, c := range []struct {
		command, name, password string
		good                    bool
		says                    string
	}{
		{"login", "alice", "not the password", false, "wrong name or password"},
		{"login", "nobody", "not the password", false, "wrong name or password"},
		{"login", "alice", alicePassword, true, "Logged in on"},
	} {
		h := a.home(t)
		cmd := exec.Command(lab.Tool(t, "npm"), c.command, "--auth-type=legacy")
		cmd.Env, cmd.Dir = append(os.Environ(), h.env...), h.dir()
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(h.root, "said")
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := func() string { b, _ := os.ReadFile(path); return string(b) }
		for _, q := range [][2]string{{"sername:", c.name}, {"assword:", c.password}} {
			// A line that is sent before it is asked for is lost.
			lab.Eventually(t, time.Minute, "npm asks "+q[0], func() error {
				if !strings.Contains(said(), q[0]) {
					return fmt.Errorf("%q", said())
				}
				return nil
			})
			if _, err := io.WriteString(in, q[1]+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		err = cmd.Wait()
		out.Close()
		if (err == nil) != c.good || !strings.Contains(said(), c.says) {
			t.Errorf("%s as %s: %v\n%s", c.command, c.name, err, said())
		}
		if c.good {
			shows(t, "whoami", h.try("npm", "whoami"), true, "alice")
		}
	}
}

// tokenClients are the clients, with where each wants a token and what each
// shows of a refusal:
//   - npm shows a 403's text. Of a 401 it shows its own words, those about a token
//     if the first challenge is Bearer, and the text only as a notice.
//   - pnpm and bun show the status, and pnpm also which setting the token is from.
//   - yarn 1 shows the text and no status.
//   - yarn 4 shows a 403's status; for a 401 it asks whoami, and tells whom it takes
//     itself for.
var tokenClients = []struct {
	npmClient
	set                    func(h *npmHome, token string)
	none, expired, refused []string // 401 without and with a token, 403
}{
	{npmClients[0], setNpmrc, []string{"E401", "npm login"}, []string{"E401", "expired", "npm login"}, []string{"E403", "403 Forbidden", "token"}},
	{npmClients[1], setNpmrc, []string{"401", "No authorization header"}, []string{"401", "Bearer weir[hidden]"}, []string{"Forbidden - 403"}},
	{npmClients[2], func(h *npmHome, token string) {
		setNpmrc(h, token)
		// Yarn 1 sends a token with scoped packages alone, unless it is told to.
		h.write(".npmrc", readProject(h, ".npmrc")+"always-auth=true\n")
	}, []string{"anonymous"}, []string{"expired"}, []string{"token"}},
	{npmClients[3], func(h *npmHome, token string) {
		h.write(".yarnrc.yml", readProject(h, ".yarnrc.yml")+"npmAuthToken: \""+token+"\"\nnpmAlwaysAuth: true\n")
	}, []string{"Invalid authentication (as an anonymous user)"}, []string{"Invalid authentication (as an unknown user)"}, []string{"403 (Forbidden)"}},
	{npmClients[4], func(h *npmHome, token string) {
		h.write("bunfig.toml", "[install]\nregistry = {url = \""+h.base+"\", token = \""+token+"\"}\n")
	}, []string{"401"}, []string{"401"}, []string{"403"}},
}

func readProject(h *npmHome, name string) string {
	b, _ := os.ReadFile(filepath.Join(h.dir(), name))
	return string(b)
}

func setNpmrc(h *npmHome, token string) {
	_, at, _ := strings.Cut(h.base, ":")
	h.write(".npmrc", at+":_authToken="+token+"\n")
}

// TestNpmTokens: each client installs a package of a private scope with a
// token that is good for it, and says what is wrong with any other.
func TestNpmTokens(t *testing.T) {
	a, _ := startNpmAccounts(t)
	a.add("alice", alicePassword, "pull npm:@acme/*")
	right := a.give("alice", registry.TokenSpec{})
	expired := a.give("alice", registry.TokenSpec{Lifetime: time.Second})
	lab.Eventually(t, 20*time.Second, "a token expires", func() error {
		if r := ask(t, "GET", a.url, "/npm/left", "Authorization", "Bearer "+expired); r.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("%s", r.Status)
		}
		return nil
	})
	flipped := right[:12] + string(right[12]^1) + right[13:]
	narrow := a.give("alice", registry.TokenSpec{Rights: []string{"pull npm:left"}})
	for _, c := range tokenClients {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, tok := range []struct {
				name, token string
				good        bool
				shown       []string
			}{
				{"right", right, true, nil}, {"none", "", false, c.none}, {"expired", expired, false, c.expired},
				{"flipped", flipped, false, c.expired[:1]}, {"narrow", narrow, false, c.refused},
			} {
				if tok.name == "flipped" && c.tool == "yarn" {
					tok.shown = []string{"not copied whole"} // it shows no status
				}
				h := a.home(t)
				h.env = append(h.env, "npm_config_fetch_retries=0", "YARN_HTTP_RETRY=0")
				if c.prepare != nil {
					c.prepare(h)
				}
				if tok.token != "" {
					c.set(h, tok.token)
				}
				r := h.try(c.tool, c.args...)
				shows(t, tok.name, r, tok.good, tok.shown...)
				_, err := os.Stat(filepath.Join(h.dir(), "node_modules", "@acme", "right", "package.json"))
				if (err == nil) != tok.good {
					t.Errorf("%s: %v", tok.name, err)
				}
				if strings.Contains(r.Stdout+r.Stderr, right[:20]) {
					t.Errorf("%s: the client shows the token", tok.name)
				}
			}
			whoami(t, a, c.tool, right)
		})
	}
}

// whoami asks the clients that can who they are.
func whoami(t *testing.T, a *npmAccounts, tool, token string) {
	t.Helper()
	args := map[string][]string{"npm": {"whoami"}, "pnpm": {"whoami"}, "yarn-berry": {"npm", "whoami"}, "bun": {"pm", "whoami"}}[tool]
	for _, c := range tokenClients {
		if c.tool != tool || args == nil {
			continue
		}
		h := a.home(t)
		if c.prepare != nil {
			c.prepare(h)
		}
		c.set(h, token)
		shows(t, "whoami", h.try(tool, args...), true, "alice")
	}
}
