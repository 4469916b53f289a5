package conformance_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/names"
)

// An ociAccounts is where real clients log in: the handlers of /v2/ and /token
// in front of a real registry, on a loopback socket, with accounts in memory.
type ociAccounts struct {
	*lab.Accounts
	addr string
	t    *testing.T

	mu   sync.Mutex
	seen []string // guarded by mu: "GET /v2/ Basic 401", in order
}

// startAccounts has alice, who may pull acme's images, bob, who may pull his,
// and an image in library that anyone may pull.
func startAccounts(t *testing.T) *ociAccounts {
	t.Helper()
	hub := lab.StartRegistry(t)
	for _, repo := range []string{"acme/app", "bob/app", "library/thing"} {
		img, _ := lab.MakeImage(t, lab.OCI(), repo, "amd64", 10_000)
		lab.Push(t, hub.Addr, repo+":1", img)
	}
	ups, err := oci.NewUpstreams([]oci.Registry{{Name: "docker.io", URL: hub.URL}}, oci.Options{Default: "docker.io"})
	if err != nil {
		t.Fatal(err)
	}
	a := &ociAccounts{Accounts: lab.NewAccounts(), t: t}
	a.Add("alice", "correct horse", "pull oci:docker.io/acme/*")
	a.Add("bob", "staple", "pull oci:docker.io/bob/*")
	a.Grant("", "pull oci:docker.io/library/*")
	config := oci.Config{
		Service: &registry.Service{Names: &names.Memory{}, Guard: a.Accounts, Spaces: map[string]registry.Space{oci.Space: ups.Space()},
			Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), ups, cachetiers.Options{})},
		Upstreams: ups, Tokens: a.Accounts, Gate: gate.New(gate.Config{Identities: a.Accounts, Logins: a.Accounts}),
	}
	v2, token := oci.New(config), oci.TokenHandler(config)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &ociStatus{ResponseWriter: w, status: 200}
		defer func() {
			scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			a.mu.Lock()
			defer a.mu.Unlock()
			a.seen = append(a.seen, fmt.Sprintf("%s %s %s %d", r.Method, r.URL.RequestURI(), scheme, rec.status))
		}()
		if r.URL.Path == oci.TokenPath {
			token.ServeHTTP(rec, r)
			return
		}
		v2.ServeHTTP(rec, r)
	}))
	t.Cleanup(s.Close)
	a.addr = strings.TrimPrefix(s.URL, "http://")
	return a
}

type ociStatus struct {
	http.ResponseWriter
	status int
}

func (s *ociStatus) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// story is what has been asked since the last time.
func (a *ociAccounts) story() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := strings.Join(a.seen, "\n  ")
	a.seen = nil
	return "  " + s
}

// token makes a token of alice's.
func (a *ociAccounts) token(spec registry.TokenSpec) registry.NewToken {
	a.t.Helper()
	acc, _ := a.Account("alice")
	made, err := a.CreateToken(a.t.Context(), registry.Principal{Name: "alice", UID: acc.UID}, spec)
	if err != nil {
		a.t.Fatal(err)
	}
	return made
}

// revoke ends one of alice's tokens.
func (a *ociAccounts) revoke(id string) {
	a.t.Helper()
	acc, _ := a.Account("alice")
	if err := a.RevokeToken(a.t.Context(), registry.Principal{Name: "alice", UID: acc.UID}, id); err != nil {
		a.t.Fatal(err)
	}
}

// An ociLoginClient is a real client with a clean state of its own that calls
// weir by its address.
type ociLoginClient struct {
	// login logs in with the password on its standard input, where it may be had
	// so; nil: the client takes credentials with each pull.
	login func(t *testing.T, user, password string) lab.Result
	// logout forgets the login.
	logout func(t *testing.T) lab.Result
	// pull pulls REPO:TAG, anew. user "" is whoever has logged in.
	pull func(t *testing.T, image, user, password string) lab.Result
	// config is the file that keeps its logins; "": it keeps none.
	config string
	// loginSays is all that it says of a login that fails; "": it prints what
	// the registry says.
	loginSays string
	// terse: of what the registry says it prints the status alone.
	terse bool
	// lazy: it shows its credentials only to a registry that asks for them, and
	// so never learns that they are wrong where nobody needs any.
	lazy bool
}

// TestOCIAccounts logs in with every client, as a person would, with what is
// right and what is wrong, and looks at what it tells the person.
func TestOCIAccounts(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, addr string) ociLoginClient{
		"docker": dockerLogin, "podman": podmanLogin, "crane": craneLogin, "skopeo": skopeoLogin, "ctr": ctrLogin,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testAccounts(t, start)
		})
	}
}

// saying is what the registry says of an attempt that fails.
type saying struct {
	status int    // 401 or 403; 0: it succeeds
	text   string // of its answer
}

func (s saying) by(c ociLoginClient) string {
	if c.terse && s.status != 0 {
		return fmt.Sprintf("%d %s", s.status, http.StatusText(s.status))
	}
	return s.text
}

// an attempter makes attempts with one client and looks at what it says.
type attempter struct {
	*testing.T
	*ociAccounts
	ociLoginClient
}

// check fails the test unless r failed as it should and says want.
func (a *attempter) check(what string, r lab.Result, want string) {
	a.Helper()
	said := r.Stdout + r.Stderr
	a.Logf("%s: status %d\n%s\n%s", what, r.Code, said, a.story())
	if failed := r.Code != 0; failed != (want != "") {
		a.Errorf("%s: status %d, %s", what, r.Code, said)
	} else if !strings.Contains(said, want) {
		a.Errorf("%s: it says %q, want %q in it", what, said, want)
	}
}

// as logs in and then pulls, or pulls with these credentials.
func (a *attempter) as(what, user, password, image string, want saying) {
	a.Helper()
	if a.login == nil {
		a.check(what, a.pull(a.T, image, user, password), want.by(a.ociLoginClient))
		return
	}
	r := a.login(a.T, user, password)
	if r.Code != 0 && want.status == http.StatusUnauthorized {
		text := want.by(a.ociLoginClient)
		if a.loginSays != "" {
			text = a.loginSays
		}
		a.check(what+": login", r, text)
		return
	}
	a.check(what+": login", r, "")
	a.check(what+": pull", a.pull(a.T, image, "", ""), want.by(a.ociLoginClient))
	a.check(what+": logout", a.logout(a.T), "")
}

func testAccounts(t *testing.T, start func(t *testing.T, addr string) ociLoginClient) {
	house := startAccounts(t)
	a := &attempter{t, house, start(t, house.addr)}
	narrow := a.token(registry.TokenSpec{Rights: []string{"pull oci:docker.io/acme/other"}})
	revoked := a.token(registry.TokenSpec{})
	a.revoke(revoked.ID)
	expired := a.token(registry.TokenSpec{Lifetime: time.Nanosecond})
	flipped := []byte(a.token(registry.TokenSpec{}).Secret)
	flipped[12] ^= 1
	nobody := saying{401, "anonymous clients may not pull docker.io/acme/app: log in"}
	wrong := saying{401, "wrong name or password"}

	a.check("nobody, what is for all", a.pull(t, "library/thing:1", "", ""), "")
	a.check("nobody, what is not", a.pull(t, "acme/app:1", "", ""), nobody.by(a.ociLoginClient))
	a.as("password", "alice", "correct horse", "acme/app:1", saying{})
	a.as("password, what is for all", "alice", "correct horse", "library/thing:1", saying{})
	a.as("password, another's image", "alice", "correct horse", "bob/app:1", saying{403, "alice may not pull docker.io/bob/app"})
	a.as("password, what there is not", "alice", "correct horse", "bob/nothing:1", saying{403, "alice may not pull docker.io/bob/nothing"})
	a.as("token", "token", a.token(registry.TokenSpec{}).Secret, "acme/app:1", saying{})
	a.as("owner and token", "alice", a.token(registry.TokenSpec{}).Secret, "acme/app:1", saying{})
	a.as("another's token", "bob", a.token(registry.TokenSpec{}).Secret, "acme/app:1", saying{401, "not that user's"})
	a.as("wrong password", "alice", "wrong", "acme/app:1", wrong)
	if !a.lazy {
		a.as("wrong password, what is for all", "alice", "wrong", "library/thing:1", wrong)
	}
	a.as("wrong name", "nobody", "correct horse", "acme/app:1", wrong)
	a.as("narrow token", "token", narrow.Secret, "acme/app:1", saying{403, "the token is for less"})
	a.as("revoked token", "token", revoked.Secret, "acme/app:1", saying{401, "revoked"})
	a.as("expired token", "token", expired.Secret, "acme/app:1", saying{401, "expired"})
	a.as("changed token", "token", string(flipped), "acme/app:1", saying{401, "not copied whole"})
	if a.login != nil {
		testLoginEnds(a)
	}
}

// testLoginEnds logs in with a password and ends that from the other side. What
// docker keeps of a login is a token, the others keep the password.
func testLoginEnds(a *attempter) {
	a.check("login", a.login(a.T, "alice", "correct horse"), "")
	byPassword := strings.Contains(ociRead(a.T, a.config), base64.StdEncoding.EncodeToString([]byte("alice:correct horse")))
	acc, _ := a.Account("alice")
	list, err := a.ListTokens(a.Context(), registry.Principal{Name: "alice", UID: acc.UID})
	if err != nil {
		a.Fatal(err)
	}
	sessions := 0
	for _, s := range list {
		if s.Kind == "session" {
			sessions++
			a.revoke(s.ID)
		}
	}
	if byPassword == (sessions > 0) {
		a.Errorf("%d sessions, and the password is in the client's file: %v", sessions, byPassword)
	}
	want := "revoked"
	if byPassword {
		a.SetPassword("alice", "new")
		want = "wrong name or password"
	}
	a.check("ended", a.pull(a.T, "acme/app:1", "", ""), want)
	a.check("logout", a.logout(a.T), "")
	a.check("after the logout", a.pull(a.T, "acme/app:1", "", ""), "anonymous clients may not pull docker.io/acme/app: log in")
}

// dockerLogin is docker with a daemon of the test's own. The daemon talks to
// registries on loopback addresses without TLS.
func dockerLogin(t *testing.T, addr string) ociLoginClient {
	docker := startDockerCLI(t, addr)
	dir := t.TempDir()
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return docker(t, filepath.Join(dir, "config"), in, args...)
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "login", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			run(t, "", "rmi", "--force", addr+"/"+image)
			return run(t, "", "pull", addr+"/"+image)
		},
		config: filepath.Join(dir, "config", "config.json"),
	}
}

// ociPiped is a command with in on its standard input.
func ociPiped(t *testing.T, in string, c lab.Command) lab.Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in")
	ociWrite(t, file, in)
	c.Args = append([]string{"-c", `exec "$0" "$@" <"$WEIR_IN"`, c.Path}, c.Args...)
	c.Path, c.Env = lab.Tool(t, "sh"), append(c.Env, "WEIR_IN="+file)
	return lab.Try(t, pullLimit, c)
}

func podmanLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	auth := filepath.Join(dir, "auth.json")
	ociWrite(t, auth, "{}")
	ociWrite(t, filepath.Join(dir, "registries.conf"), "")
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return ociPiped(t, in, lab.Command{Path: lab.Tool(t, "podman"), Args: append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
			"--events-backend", "file",
		}, args...), Env: []string{"CONTAINERS_REGISTRIES_CONF=" + filepath.Join(dir, "registries.conf"), "HOME=" + dir, "REGISTRY_AUTH_FILE=" + auth}})
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "login", "--tls-verify=false", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			run(t, "", "rmi", "--force", addr+"/"+image)
			return run(t, "", "pull", "--tls-verify=false", addr+"/"+image)
		},
		config: auth, loginSays: "invalid username/password",
	}
}

func craneLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return ociPiped(t, in, lab.Command{Path: lab.Tool(t, "crane"), Args: args, Env: []string{"HOME=" + dir, "DOCKER_CONFIG=" + dir}})
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "auth", "login", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "auth", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			return run(t, "", "pull", addr+"/"+image, filepath.Join(t.TempDir(), "image.tar"))
		},
		config: filepath.Join(dir, "config.json"),
	}
}

func skopeoLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	auth := filepath.Join(dir, "auth.json")
	ociWrite(t, auth, "{}")
	ociWrite(t, filepath.Join(dir, "registries.conf"), "")
	return ociLoginClient{pull: func(t *testing.T, image, user, password string) lab.Result {
		args := []string{"--insecure-policy", "--registries-conf", filepath.Join(dir, "registries.conf"), "copy", "--src-tls-verify=false"}
		if user != "" {
			args = append(args, "--src-creds", user+":"+password)
		}
		return lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "skopeo"), Env: []string{"HOME=" + dir, "REGISTRY_AUTH_FILE=" + auth},
			Args: append(args, "docker://"+addr+"/"+image, "dir:"+t.TempDir())})
	}}
}

func ctrLogin(t *testing.T, addr string) ociLoginClient {
	socket := startContainerdProcess(t)
	return ociLoginClient{terse: true, lazy: true, pull: func(t *testing.T, image, user, password string) lab.Result {
		ctr := func(args ...string) lab.Result {
			return lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: append([]string{"--address", socket}, args...)})
		}
		ctr("images", "rm", "--sync", addr+"/"+image)
		args := []string{"images", "pull", "--plain-http", "--snapshotter", "native"}
		if user != "" {
			args = append(args, "--user", user+":"+password)
		}
		return ctr(append(args, addr+"/"+image)...)
	}}
}

// TestOCIAccountsMirror has containerd use weir as a mirror with credentials:
// they are in hosts.toml, as the header that goes with each request. Of a 401
// containerd prints the challenge's error and nothing else, and it goes on
// sending the header with the tokens that it asks for.
func TestOCIAccountsMirror(t *testing.T) {
	t.Parallel()
	a := startAccounts(t)
	socket := startContainerdProcess(t)
	pull := func(what, authorization, repo, want string) {
		t.Helper()
		hosts := t.TempDir()
		ociWrite(t, filepath.Join(hosts, "docker.io", "hosts.toml"), fmt.Sprintf(
			"server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  [host.%q.header]\n    authorization = %q\n",
			"http://"+a.addr, "http://"+a.addr, "http://"+a.addr, authorization))
		r := lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: []string{"--address", socket,
			"images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", "docker.io/" + repo + ":1"}})
		if (r.Code == 0) != (want == "") || !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("%s: status %d, %s%s, want %q\n%s", what, r.Code, r.Stdout, r.Stderr, want, a.story())
		}
	}
	good := "Bearer " + a.token(registry.TokenSpec{}).Secret
	pull("an unknown token", "Bearer "+registry.NewTokenText(), "acme/app", "invalid_token")
	pull("a token", good, "acme/app", "")
	pull("a password", "Basic "+base64.StdEncoding.EncodeToString([]byte("bob:staple")), "bob/app", "")
	pull("another's image", good, "bob/other", "403 Forbidden")
}
