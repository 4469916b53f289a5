package conformance_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

const (
	alicesPassword = "correct horse battery"
	bobsPassword   = "staple, says bob"
)

// ociAccounts is a weir where anyone may pull library's images, alice acme's
// but for one, and bob his own. There is one image in each.
type ociAccounts struct {
	*lab.Weir
	t    *testing.T
	told int // how much of the log story has told
}

// startHub is a registry with the images of ociAccounts.
func startHub(t *testing.T) *lab.Registry {
	t.Helper()
	hub := lab.StartRegistry(t)
	for _, repo := range []string{"acme/app", "acme/secret", "bob/app", "library/thing"} {
		img, _ := lab.MakeImage(t, lab.OCI(), repo, "amd64", 10_000)
		lab.Push(t, hub.Addr, repo+":1", img)
	}
	return hub
}

// startAccounts makes the accounts with weir's own commands, as an operator does.
// more is further configuration below access, its lines indented by two.
func startAccounts(t *testing.T, hub *lab.Registry, more string) *ociAccounts {
	t.Helper()
	a := &ociAccounts{t: t, Weir: lab.StartWeir(t, privateConfig(hub.URL, more))}
	a.MustCommand(alicesPassword+"\n", "user", "add", "alice", "--password-stdin")
	a.MustCommand(bobsPassword+"\n", "user", "add", "bob", "--password-stdin")
	a.MustCommand("", "grant", "add", "alice", "pull oci:docker.io/acme/*")
	a.MustCommand("", "grant", "deny", "alice", "pull oci:docker.io/acme/secret")
	a.MustCommand("", "grant", "add", "bob", "pull oci:docker.io/bob/*")
	return a
}

// privateConfig has the registry at a URL as docker.io, of which only library is
// for everyone.
func privateConfig(url, more string) string {
	return fmt.Sprintf("oci: {default: docker.io, upstreams: {docker.io: {url: %q, fresh: 1h}}}\n", url) +
		"npm: {upstreams: {none: {url: \"http://127.0.0.1:1\"}}}\n" +
		"access:\n  anonymous: [\"pull oci:docker.io/library/*\"]\n" + more
}

// story is what weir has logged of requests since the last time.
func (a *ociAccounts) story() string {
	var b strings.Builder
	log := a.Log()
	for line := range strings.Lines(log[a.told:]) {
		var r struct {
			Msg, Method, URI, Who, Agent, Err string
			Status                            int
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Msg == "request" {
			fmt.Fprintf(&b, "  %s %s %d who=%s by %s: %s\n", r.Method, r.URI, r.Status, r.Who, r.Agent, r.Err)
		}
	}
	a.told = len(log)
	return b.String()
}

// token makes a token.
func (a *ociAccounts) token(owner string, flags ...string) registry.NewToken {
	a.t.Helper()
	out := a.MustCommand("", append([]string{"token", "create", owner, "-o", "json"}, flags...)...)
	var made registry.NewToken
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Secret == "" {
		a.t.Fatalf("weir token create: %v: %s", err, out)
	}
	return made
}

// tokens are an account's.
func (a *ociAccounts) tokens(owner string) (list []registry.Token) {
	a.t.Helper()
	out := a.MustCommand("", "token", "list", owner, "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		a.t.Fatalf("weir token list: %v: %s", err, out)
	}
	return list
}

// expired makes a token and waits until it is none any more.
func (a *ociAccounts) expired(owner string) registry.NewToken {
	a.t.Helper()
	made := a.token(owner, "--for", "1s")
	lab.Eventually(a.t, 5*time.Second, "a token to expire", func() error {
		if left := time.Until(made.Expires); left >= 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	return made
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
	// session: of a login with a password it keeps a token.
	session bool
	// terse: of what the registry says it prints the status alone.
	terse bool
	// lazy: it shows its credentials only to a registry that asks for them, and
	// so never learns that they are wrong where nobody needs any.
	lazy bool
}

// TestOCIAccounts logs in with every client, as a person would, with what is
// right and what is wrong, and looks at what it tells the person.
func TestOCIAccounts(t *testing.T) {
	hub := startHub(t)
	for name, start := range map[string]func(t *testing.T, addr string) ociLoginClient{
		"docker": dockerLogin, "podman": podmanLogin, "crane": craneLogin, "skopeo": skopeoLogin, "ctr": ctrLogin,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testAccounts(t, hub, start)
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

func testAccounts(t *testing.T, hub *lab.Registry, start func(t *testing.T, addr string) ociLoginClient) {
	house := startAccounts(t, hub, "")
	a := &attempter{t, house, start(t, house.Addr)}
	const app, free = "acme/app:1", "library/thing:1"
	narrow := a.token("alice", "--right", "pull oci:docker.io/acme/other")
	away := a.token("alice", "--from", "10.0.0.0/8")
	good := a.token("alice").Secret
	expired := a.expired("alice")
	flipped := []byte(good)
	flipped[12] ^= 1
	nobody := saying{401, "anonymous clients may not pull docker.io/acme/app: log in"}
	wrong := saying{401, "wrong name or password"}
	may := func(repo string) saying { return saying{403, "alice may not pull docker.io/" + repo} }

	a.check("nobody, what is for all", a.pull(t, free, "", ""), "")
	a.check("nobody, what is not", a.pull(t, app, "", ""), nobody.by(a.ociLoginClient))
	a.as("password", "alice", alicesPassword, app, saying{})
	a.as("password, what is for all", "alice", alicesPassword, free, saying{})
	a.as("password, another's image", "alice", alicesPassword, "bob/app:1", may("bob/app"))
	a.as("password, what there is not", "alice", alicesPassword, "bob/nothing:1", may("bob/nothing"))
	a.as("password, what is denied", "alice", alicesPassword, "acme/secret:1", may("acme/secret"))
	a.as("token", "token", good, app, saying{})
	a.as("owner and token", "alice", good, app, saying{})
	a.as("another's token", "bob", good, app, saying{401, "not that user's"})
	a.as("wrong password", "bob", "wrong password", "bob/app:1", wrong)
	if !a.lazy {
		a.as("wrong password, what is for all", "bob", "wrong password", free, wrong)
	}
	a.as("wrong name", "nobody", alicesPassword, app, wrong)
	a.as("narrow token", "token", narrow.Secret, app, saying{403, "the token is for less"})
	a.as("token of elsewhere", "token", away.Secret, app, saying{401, "may not be used from the address"})
	a.as("expired token", "token", expired.Secret, app, saying{401, "has expired"})
	a.as("changed token", "token", string(flipped), app, saying{401, "not copied whole"})
	revoked := a.token("alice")
	a.as("token, before it is revoked", "token", revoked.Secret, app, saying{})
	a.MustCommand("", "token", "revoke", revoked.ID)
	a.as("revoked token", "token", revoked.Secret, app, saying{401, "revoked"})
	if a.login != nil {
		testLoginEnds(a)
	}
	a.MustCommand("", "user", "disable", "alice")
	a.as("token of a disabled account", "token", good, app, saying{401, "this account is disabled"})
	a.as("password of a disabled account", "alice", "another battery", app, wrong)
}

// testLoginEnds logs in with a password and ends that from the other side. What
// docker keeps of a login is a token, the others keep the password.
func testLoginEnds(a *attempter) {
	a.check("login", a.login(a.T, "alice", alicesPassword), "")
	byPassword := strings.Contains(ociRead(a.T, a.config), base64.StdEncoding.EncodeToString([]byte("alice:"+alicesPassword)))
	a.check("logged in", a.pull(a.T, "acme/app:1", "", ""), "")
	sessions := 0
	for _, s := range a.tokens("alice") {
		if s.Kind == "session" {
			sessions++
			a.MustCommand("", "token", "revoke", s.ID)
		}
	}
	if byPassword == (sessions > 0) || byPassword == a.session {
		a.Errorf("%d sessions, and the password is in the client's file: %v", sessions, byPassword)
	}
	a.MustCommand("another battery\n", "user", "password", "alice", "--password-stdin")
	want := "revoked"
	if byPassword {
		want = "wrong name or password"
	}
	a.check("ended", a.pull(a.T, "acme/app:1", "", ""), want)
	a.check("logout", a.logout(a.T), "")
	a.check("after the logout", a.pull(a.T, "acme/app:1", "", ""), "anonymous clients may not pull docker.io/acme/app: log in")
}
