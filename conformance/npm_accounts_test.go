package conformance_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/registry"
)

// An npmAccounts is a registry with accounts, where anonymous clients may do
// nothing.
type npmAccounts struct {
	url       string // with /npm at its end
	authority *lab.Weir
	up        *npmlab.Registry
}

// privateNpm is a configuration in which anonymous clients may do nothing.
func privateNpm(upstream string) string {
	return fmt.Sprintf("npm: {upstreams: {public: {url: %q, packages: [\"*\"], fresh: 1h}}}\naccess: {anonymous: []}\n", upstream)
}

// startNpmAccounts starts weir with accounts.
func startNpmAccounts(t *testing.T) *npmAccounts {
	t.Helper()
	up := newNpmLab(t)
	publishLeft(up)
	w := lab.StartWeir(t, privateNpm(up.URL))
	return &npmAccounts{url: w.URL + "/npm", authority: w, up: up}
}

// do makes a request to the admin API.
func (a *npmAccounts) do(t *testing.T, method, path string, body, into any) {
	t.Helper()
	if err := a.authority.Admin(a.authority.AdminToken(), method, "/admin/v1/"+path, body, into); err != nil {
		t.Fatal(err)
	}
}

// add makes a user who is granted rights.
func (a *npmAccounts) add(t *testing.T, name, password string, rights ...string) {
	t.Helper()
	a.do(t, "POST", "users", map[string]string{"name": name, "email": name + "@example.com", "password": password}, nil)
	for _, right := range rights {
		a.do(t, "POST", "grants", map[string]any{"to": "user:" + name, "right": right}, nil)
	}
}

// give makes a token of a user's.
func (a *npmAccounts) give(t *testing.T, name string, spec registry.TokenSpec) (made registry.NewToken) {
	t.Helper()
	a.do(t, "POST", "tokens", struct {
		Owner string `json:"owner"`
		registry.TokenSpec
	}{name, spec}, &made)
	return made
}

const (
	// npmPassword follows a user's name in its password.
	npmPassword    = ", correct horse battery"
	privateProject = `{"name":"project","version":"1.0.0","private":true,"license":"MIT","dependencies":{"@acme/right":"1.0.0"}}`
)

// home is a home whose clients use a.
func (a *npmAccounts) home(t *testing.T) *npmHome {
	t.Helper()
	h := newNpmHome(t, a.url)
	h.write("package.json", privateProject)
	h.env = append(h.env, "npm_config_fetch_retries=0", "YARN_HTTP_RETRY=0")
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

// npmGood is what users of these tests are granted.
var npmGood = []string{"pull npm:@acme/*", "pull npm:left"}

// TestNpmAccounts: what clients can do with accounts, and what they show of what
// they cannot.
func TestNpmAccounts(t *testing.T) {
	a := startNpmAccounts(t)
	a.up.Publish(npmlab.Version{Name: "left-secret", Version: "1.0.0"})
	a.up.Advise(npmlab.Advisory{ID: 1042, Name: "left", Title: "It leans to one side", Severity: "high",
		Affected: []string{"1.0.0", "1.1.0"}, Range: "<2.0.0"})
	for _, name := range []string{"alice", "bob", "carol"} {
		a.add(t, name, name+npmPassword, npmGood...)
	}
	a.add(t, "dave", "dave"+npmPassword, "pull oci:*")
	together(
		func() { t.Run("web", func(t *testing.T) { checkWebLogin(t, a) }) },
		func() { t.Run("legacy", func(t *testing.T) { checkLegacyLogin(t, a) }) },
		func() { t.Run("audit", func(t *testing.T) { checkScopedAudit(t, a) }) },
		func() { t.Run("tokens", func(t *testing.T) { checkTokens(t, a) }) },
	)
}

// together does several things at once, however many tests may run in parallel:
// clients wait for the machine more than they use it.
func together(do ...func()) {
	var all sync.WaitGroup
	for _, f := range do {
		all.Go(f)
	}
	all.Wait()
}

// webLogin is npm login in a browser, as name.
func webLogin(t *testing.T, h *npmHome, name string) {
	t.Helper()
	p := lab.Start(t, lab.Command{Path: lab.Tool(t, "npm"), Args: []string{"login", "--browser=false"}, Env: h.env, Dir: h.dir()})
	address := regexp.MustCompile(`(?m)^http://\S+/-/v1/login/\S+$`)
	lab.Eventually(t, time.Minute, "npm says where to log in", func() error {
		if address.FindString(p.Log()) == "" {
			return fmt.Errorf("%q", p.Log())
		}
		return nil
	})
	approve(t, address.FindString(p.Log()), name, name+npmPassword)
	<-p.Done()
	if p.ExitCode() != 0 || !strings.Contains(p.Log(), "Logged in on "+h.base) {
		t.Fatalf("npm login: %d\n%s", p.ExitCode(), p.Log())
	}
}

// checkWebLogin: npm login, what can be done then, and npm logout.
func checkWebLogin(t *testing.T, a *npmAccounts) {
	h := a.home(t)
	together(
		func() { shows(t, "whoami before", h.try("npm", "whoami"), false, "ENEEDAUTH") },
		func() { shows(t, "install before", h.try("npm", "install"), false, "E401", "anonymous", "npm login") },
	)
	webLogin(t, h, "alice")
	together(
		func() { shows(t, "whoami", h.try("npm", "whoami"), true, "alice") },
		func() {
			shows(t, "profile", h.try("npm", "profile", "get"), true, "name: alice", "email: alice@example.com")
		},
		func() {
			shows(t, "profile set", h.try("npm", "profile", "set", "fullname", "Alice"), false, "403 Forbidden", "ask who runs this registry")
		},
		func() { shows(t, "install", h.try("npm", "install"), true, "added 2 packages") },
		func() {
			shows(t, "token create with a wrong password", h.try("npm", "token", "create", "--password=wrong", "--name=no"), false, "401", "wrong password")
		},
		func() {
			shows(t, "token create for an org", h.try("npm", "token", "create", "--password", "alice"+npmPassword, "--name=no", "--orgs=acme"), false, "400", "no organizations")
		},
		func() { checkTokenCommands(t, h) },
	)
	rc, err := os.ReadFile(filepath.Join(h.root, ".npmrc"))
	if err != nil {
		t.Fatal(err)
	}
	shows(t, "logout", h.try("npm", "logout"), true)
	// The token is not only forgotten but ended.
	old := a.home(t)
	if err := os.WriteFile(filepath.Join(old.root, ".npmrc"), rc, 0o600); err != nil {
		t.Fatal(err)
	}
	together(
		func() { shows(t, "whoami after", h.try("npm", "whoami"), false, "ENEEDAUTH") },
		func() {
			shows(t, "whoami with the old token", old.try("npm", "whoami"), false, "E401", "token", "npm login")
		},
		func() { shows(t, "logout again", old.try("npm", "logout"), false, "npm config delete //") },
	)
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
	made := h.try("npm", "token", "create", "--password", "alice"+npmPassword, "--name=ci", "--scopes=@acme", "--packages-and-scopes-permission=read-only", "--expires=7", "--cidr=127.0.0.0/8")
	shows(t, "token create", made, true, "Created token weir_", "127.0.0.0/8", "expires: ")
	secret := regexp.MustCompile(`weir_\w+`).FindString(made.Stdout)
	if len(secret) < 13 {
		t.Fatalf("%s", made.Stdout)
	}
	// The token is found by what it begins with, and has an id that can be typed.
	list := h.try("npm", "token", "list")
	shows(t, "token list", list, true, "Token "+secret[:13]+"… with id "+secret[5:11]+" name ci", "127.0.0.0/8")
	together(
		func() {
			shows(t, "token revoke", h.try("npm", "token", "revoke", secret[5:11]), true, "Removed 1 token")
		},
		func() {
			made := h.try("npm", "token", "create", "--password", "alice"+npmPassword, "--name=second")
			shows(t, "token revoke by the token", h.try("npm", "token", "revoke", regexp.MustCompile(`weir_\w+`).FindString(made.Stdout)), true, "Removed 1 token")
		},
	)
	if left := h.run("npm", "token", "list").Stdout; strings.Contains(left, "name ci") || strings.Contains(left, "name second") {
		t.Errorf("it is still listed:\n%s", left)
	}
}

// legacyLogin is npm login --auth-type=legacy, as npm before 9 did too, and what
// it shows.
func legacyLogin(t *testing.T, h *npmHome, name, password string) (shown string, err error) {
	t.Helper()
	cmd := exec.Command(lab.Tool(t, "npm"), "login", "--auth-type=legacy")
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
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := func() string { b, _ := os.ReadFile(path); return string(b) }
	for _, q := range [][2]string{{"sername:", name}, {"assword:", password}} {
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
	return said(), err
}

func checkLegacyLogin(t *testing.T, a *npmAccounts) {
	try := func(name, password string, good bool, says string) *npmHome {
		h := a.home(t)
		said, err := legacyLogin(t, h, name, password)
		if (err == nil) != good || !strings.Contains(said, says) {
			t.Errorf("as %s: %v\n%s", name, err, said)
		}
		return h
	}
	together(
		func() { try("bob", "not the password", false, "wrong name or password") },
		func() { try("nobody", "not the password", false, "wrong name or password") },
		func() {
			h := try("bob", "bob"+npmPassword, true, "Logged in on")
			shows(t, "whoami", h.try("npm", "whoami"), true, "bob")
		},
	)
}

// A tokenClient is a client that presents a token.
type tokenClient struct {
	npmClient
	set                  func(h *npmHome, token string)
	none, wrong, refused []string // what it shows of a 401 without and with a token, and of a 403
	reason, slow         bool     // whether it shows the text of a 401; whether it takes a second to begin
	whoami               []string // how it says who it is; nil: it does not
}

// setUp writes what the client wants in a home, with a token unless it is "".
func (c tokenClient) setUp(h *npmHome, token string) {
	if c.prepare != nil {
		c.prepare(h)
	}
	if token != "" {
		c.set(h, token)
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
var tokenClients = []tokenClient{
	{npmClients[0], setNpmrc, []string{"E401", "npm login"}, []string{"E401", "npm login"}, []string{"E403", "403 Forbidden", "token"}, true, false, []string{"whoami"}},
	{npmClients[1], setNpmrc, []string{"401", "No authorization header"}, []string{"401", "Bearer weir[hidden]"}, []string{"Forbidden - 403"}, false, true, []string{"whoami"}},
	{npmClients[2], func(h *npmHome, token string) {
		setNpmrc(h, token)
		// Yarn 1 sends a token with scoped packages alone, unless it is told to.
		h.write(".npmrc", readProject(h, ".npmrc")+"always-auth=true\n")
	}, []string{"anonymous"}, nil, []string{"token"}, true, false, nil},
	{npmClients[3], func(h *npmHome, token string) {
		h.write(".yarnrc.yml", readProject(h, ".yarnrc.yml")+"npmAuthToken: \""+token+"\"\nnpmAlwaysAuth: true\n")
	}, []string{"Invalid authentication (as an anonymous user)"}, []string{"Invalid authentication (as an unknown user)"}, []string{"403 (Forbidden)"}, false, true, []string{"npm", "whoami"}},
	{npmClients[4], func(h *npmHome, token string) {
		h.write("bunfig.toml", "[install]\nregistry = {url = \""+h.base+"\", token = \""+token+"\"}\n")
	}, []string{"401"}, []string{"401"}, []string{"403"}, false, false, []string{"pm", "whoami"}},
}

func readProject(h *npmHome, name string) string {
	b, _ := os.ReadFile(filepath.Join(h.dir(), name))
	return string(b)
}

func setNpmrc(h *npmHome, token string) {
	_, at, _ := strings.Cut(h.base, ":")
	h.write(".npmrc", at+":_authToken="+token+"\n")
}

// checkTokens: each client installs a package of a private scope with a token
// that is good for it, and says what is wrong with any other.
func checkTokens(t *testing.T, a *npmAccounts) {
	right := a.give(t, "carol", registry.TokenSpec{}).Secret
	expired := a.give(t, "carol", registry.TokenSpec{Lifetime: time.Second}).Secret
	revoked := a.give(t, "carol", registry.TokenSpec{})
	narrow := a.give(t, "carol", registry.TokenSpec{Rights: []string{"pull npm:left"}}).Secret
	a.do(t, "DELETE", "tokens/"+revoked.ID, nil, nil)
	lab.Eventually(t, 20*time.Second, "a token expires", func() error {
		if r := ask(t, "GET", a.url, "/npm/left", "Authorization", "Bearer "+expired); r.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("%s", r.Status)
		}
		return nil
	})
	flipped := right[:12] + string(right[12]^1) + right[13:]
	cases := []tokenCase{{"right", right, http.StatusOK, ""}, {"none", "", http.StatusUnauthorized, ""}, {"expired", expired, http.StatusUnauthorized, "expired"},
		{"flipped", flipped, http.StatusUnauthorized, "not copied whole"}, {"wrong", registry.NewTokenText(), http.StatusUnauthorized, "never was"},
		{"revoked", revoked.Secret, http.StatusUnauthorized, "revoked"}, {"narrow", narrow, http.StatusForbidden, ""}}
	var runs []func()
	for _, c := range tokenClients {
		cases := cases
		if c.slow && !chainLong() {
			// Weir answers these two as it does one that was revoked.
			cases = slices.DeleteFunc(slices.Clone(cases), func(tok tokenCase) bool { return tok.name == "flipped" || tok.name == "wrong" })
		}
		runs = append(runs, func() {
			t.Run(c.name, func(t *testing.T) {
				half := func(cases []tokenCase) func() {
					return func() {
						for _, tok := range cases {
							checkToken(t, a, c, tok)
						}
					}
				}
				together(half(cases[:3]), half(cases[3:]))
			})
		})
	}
	together(runs...)
}

// A tokenCase is a token, how requests with it are answered, and what a client
// shows that shows the reason.
type tokenCase struct {
	name, token string
	status      int
	reason      string
}

// checkToken has a client install with a token.
func checkToken(t *testing.T, a *npmAccounts, c tokenClient, tok tokenCase) {
	t.Helper()
	shown := map[int][]string{http.StatusUnauthorized: c.wrong, http.StatusForbidden: c.refused}[tok.status]
	switch {
	case tok.name == "none":
		shown = c.none
	case c.reason && tok.reason != "":
		shown = append(slices.Clone(shown), tok.reason)
	}
	h := a.home(t)
	c.setUp(h, tok.token)
	r := h.try(c.tool, c.args...)
	good := tok.status == http.StatusOK
	shows(t, tok.name, r, good, shown...)
	_, err := os.Stat(filepath.Join(h.dir(), "node_modules", "@acme", "right", "package.json"))
	if (err == nil) != good {
		t.Errorf("%s: %v", tok.name, err)
	}
	if tok.token != "" && strings.Contains(r.Stdout+r.Stderr, tok.token[:20]) {
		t.Errorf("%s: the client shows the token", tok.name)
	}
	if good && c.whoami != nil {
		shows(t, "whoami", h.try(c.tool, c.whoami...), true, "carol")
	}
}

// checkScopedAudit: who is granted some packages audits and searches those, and
// nothing else is shown, or asked behind.
func checkScopedAudit(t *testing.T, a *npmAccounts) {
	token := a.give(t, "carol", registry.TokenSpec{Rights: npmGood}).Secret
	other := a.give(t, "dave", registry.TokenSpec{}).Secret
	good := func(c tokenClient) *npmHome {
		h := a.home(t)
		c.setUp(h, token)
		return h
	}
	npm := func() { // which audits by itself
		h, nobody := good(tokenClients[0]), a.home(t)
		r := h.run("npm", "install", "--ignore-scripts")
		shows(t, "install", r, true, "high severity vulnerabilit")
		if strings.Contains(r.Stderr, "npm warn") || strings.Contains(r.Stderr, "npm notice") {
			t.Errorf("install: %s", r.Stderr)
		}
		lock, err := os.ReadFile(filepath.Join(h.dir(), "package-lock.json"))
		if err != nil {
			t.Fatal(err)
		}
		nobody.write("package-lock.json", string(lock))
		setNpmrc(nobody, other)
		const nothing = "may not pull anything of npm here"
		together(
			func() { shows(t, "audit", h.try("npm", "audit"), false, "It leans to one side") },
			func() {
				found := h.try("npm", "search", "left", "--parseable")
				shows(t, "search", found, true, "left\t")
				if strings.Contains(found.Stdout, "secret") {
					t.Errorf("search: %s", found.Stdout)
				}
			},
			func() {
				shows(t, "audit of one who may nothing", nobody.try("npm", "audit"), false, "403", nothing)
			},
			func() {
				shows(t, "search of one who may nothing", nobody.try("npm", "search", "left"), false, "E403", nothing)
			},
		)
	}
	// Yarn 1 is not here: it asks an address that is built into it.
	audits := func(c tokenClient, args ...string) func() {
		return func() {
			h := good(c)
			h.run(c.tool, c.args...)
			shows(t, c.name, h.try(c.tool, args...), false, "It leans to one side")
		}
	}
	together(npm, audits(tokenClients[1], "audit"), audits(tokenClients[3], "npm", "audit", "--all", "--recursive"), audits(tokenClients[4], "audit"))
}
