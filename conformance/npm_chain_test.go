package conformance_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// npmRounds is how many tokens are made and revoked at the edge.
const npmRounds = 25

// startNpmEdge starts an edge and behind it the origin, which has the accounts.
// The url is the edge's.
func startNpmEdge(t *testing.T) (a *npmAccounts, edge *lab.Weir) {
	t.Helper()
	up := newNpmLab(t)
	publishLeft(up)
	ca := wan.NewAuthority(t)
	node := func(name, more string) *lab.Weir {
		cert, key := ca.Issue(wan.Certificate{Name: name, Hosts: []string{"127.0.0.1"}})
		return lab.NewWeir(t, filepath.Join(t.TempDir(), "data"),
			privateNpm(up.URL)+fmt.Sprintf("tls: {cert: %q, key: %q, ca: %q}\n%s\n", cert, key, ca.CA, more))
	}
	tiers := lab.FreeAddr(t)
	origin := node("origin", fmt.Sprintf("tiers: %q", tiers))
	origin.Start()
	lab.Eventually(t, 10*time.Second, "the origin listens for the edge", func() error {
		c, err := net.DialTimeout("tcp", tiers, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	edge = node("edge", fmt.Sprintf("next: [\"https://%s\"]", tiers))
	edge.Start()
	return &npmAccounts{url: edge.URL + "/npm", authority: origin, up: up}, edge
}

// TestNpmEdge: clients log in, and manage their tokens, at an edge, where what they
// did counts at once; while the origin is dead they go on with what they have.
func TestNpmEdge(t *testing.T) {
	a, _ := startNpmEdge(t)
	a.add(t, "alice", "alice"+npmPassword, npmGood...)
	seen := func() error {
		if r := ask(t, "PUT", a.url, "/npm/-/user/org.couchdb.user:alice"); r.StatusCode != http.StatusBadRequest {
			return fmt.Errorf("%s", r.Status)
		}
		return nil
	}
	lab.Eventually(t, 10*time.Second, "the edge takes logins", seen)
	h := a.home(t)
	webLogin(t, h, "alice")
	var token string
	together(
		func() { shows(t, "whoami", h.try("npm", "whoami"), true, "alice") },
		func() { shows(t, "install", h.try("npm", "install"), true, "added 2 packages") },
		func() { checkTokenCommands(t, h) },
		func() { token = checkOwnWrites(t, a) },
	)
	a.authority.Kill9()
	// A new home: what is installed comes from the edge, not from npm's own cache.
	cut := a.home(t)
	setNpmrc(cut, token)
	// A 503 npm would try again, for more than a minute and without a word; but not
	// a POST, for which a 4xx makes it ask for a password instead.
	const cannot = "cannot be asked just now; try again in a moment"
	together(
		func() { shows(t, "install from the cache", cut.try("npm", "install"), true, "added 2 packages") },
		func() { shows(t, "whoami", cut.try("npm", "whoami"), true, "alice") },
		func() {
			shows(t, "login in a browser", cut.try("npm", "login", "--browser=false"), false, "503", cannot)
		},
		func() {
			said, err := legacyLogin(t, cut, "alice", "alice"+npmPassword)
			if err == nil || !strings.Contains(said, "E424") || !strings.Contains(said, cannot) || strings.Contains(said, "wrong") {
				t.Errorf("legacy login: %v\n%s", err, said)
			}
		},
		func() { shows(t, "token list", cut.try("npm", "token", "list"), false, "E424", cannot) },
		func() { shows(t, "logout", cut.try("npm", "logout"), false, "E424", cannot) },
	)

	a.authority.Start()
	lab.Eventually(t, 20*time.Second, "logins go on", func() error {
		said, err := legacyLogin(t, a.home(t), "alice", "alice"+npmPassword)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
}

// checkOwnWrites logs in and makes and revokes tokens, and looks each time, at
// once, whether that counts at the edge. It gives the token of a login that stays.
func checkOwnWrites(t *testing.T, a *npmAccounts) (stays string) {
	t.Helper()
	secret := func(what string, r answer) string {
		t.Helper()
		var made struct{ Token string }
		if err := json.Unmarshal(r.body, &made); err != nil || made.Token == "" {
			t.Fatalf("%s: %s: %s", what, r.Status, r.body)
		}
		return made.Token
	}
	counts := func(what, token string, status int) {
		t.Helper()
		for _, path := range []string{"/npm/@acme%2fright", "/npm/-/whoami"} {
			if r := ask(t, "GET", a.url, path, "Authorization", "Bearer "+token); r.StatusCode != status {
				t.Fatalf("%s: GET %s: %s: %s", what, path, r.Status, r.body)
			}
		}
	}
	body := []byte(`{"name":"alice","password":"alice` + npmPassword + `"}`)
	stays = secret("login", askBody(t, "PUT", a.url, "/npm/-/user/org.couchdb.user:alice", body))
	counts("a login", stays, http.StatusOK)
	for range npmRounds {
		token := secret("create", askBody(t, "POST", a.url, "/npm/-/npm/v1/tokens", []byte(`{"password":"alice`+npmPassword+`"}`), "Authorization", "Bearer "+stays))
		counts("a new token", token, http.StatusOK)
		if r := ask(t, "DELETE", a.url, "/npm/-/npm/v1/tokens/token/"+token[5:13], "Authorization", "Bearer "+stays); r.StatusCode != http.StatusOK {
			t.Fatalf("revoke: %s: %s", r.Status, r.body)
		}
		counts("a revoked token", token, http.StatusUnauthorized)
	}
	return stays
}
