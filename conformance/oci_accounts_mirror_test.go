package conformance_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// TestOCIAccountsMirror has containerd use weir as a mirror with credentials:
// they are in hosts.toml, as the header that goes with each request. Of a 401
// containerd prints the challenge's error and nothing else, and it goes on
// sending the header with the tokens that it asks for. The registry itself is not
// there: what is shown is what the mirror said.
func TestOCIAccountsMirror(t *testing.T) {
	t.Parallel()
	a := startAccounts(t, startHub(t), "")
	socket := startContainerdProcess(t)
	pull := func(what, authorization, repo, want string) {
		t.Helper()
		hosts := t.TempDir()
		text := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://127.0.0.1:1", a.URL)
		if authorization != "" {
			text += fmt.Sprintf("  [host.%q.header]\n    authorization = %q\n", a.URL, authorization)
		}
		ociWrite(t, filepath.Join(hosts, "docker.io", "hosts.toml"), text)
		ctr := func(args ...string) lab.Result {
			return lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: append([]string{"--address", socket}, args...)})
		}
		ctr("images", "rm", "--sync", "docker.io/"+repo+":1")
		r := ctr("images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", "docker.io/"+repo+":1")
		if (r.Code == 0) != (want == "") || !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("%s: status %d, %s%s, want %q\n%s", what, r.Code, r.Stdout, r.Stderr, want, a.story())
		}
	}
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	good, revoked := a.token("alice"), a.token("alice")
	bearer := "Bearer " + good.Secret
	pull("nobody, what is for all", "", "library/thing", "")
	pull("nobody, what is not", "", "acme/app", "401 Unauthorized")
	pull("an unknown token", "Bearer "+registry.NewTokenText(), "acme/app", "invalid_token")
	pull("an unknown token, what is for all", "Bearer "+registry.NewTokenText(), "library/thing", "invalid_token")
	pull("a token", bearer, "acme/app", "")
	pull("a token, what is for all", bearer, "library/thing", "")
	pull("a token as a password", basic("token", good.Secret), "acme/app", "")
	pull("a password", basic("bob", bobsPassword), "bob/app", "")
	pull("a wrong password", basic("bob", "wrong password"), "bob/app", "invalid_token")
	pull("another's image", bearer, "bob/app", "403 Forbidden")
	pull("what is denied", bearer, "acme/secret", "403 Forbidden")
	pull("a narrow token", "Bearer "+a.token("alice", "--right", "pull oci:docker.io/acme/other").Secret, "acme/app", "403 Forbidden")
	pull("an expired token", "Bearer "+a.expired("alice").Secret, "acme/app", "invalid_token")
	pull("a token before it is revoked", "Bearer "+revoked.Secret, "acme/app", "")
	a.MustCommand("", "token", "revoke", revoked.ID)
	pull("a revoked token", "Bearer "+revoked.Secret, "acme/app", "invalid_token")
	a.MustCommand("", "user", "disable", "alice")
	pull("a disabled account", bearer, "acme/app", "invalid_token")
}

// TestOCIAccountsDockerMirror has a docker daemon use weir as the mirror of
// Docker Hub, where some of it is for everyone. A mirror is sent what docker keeps
// for Docker Hub; if it refuses, docker asks Docker Hub, and the person reads
// what that has said: why the mirror refused is in the daemon's log.
func TestOCIAccountsDockerMirror(t *testing.T) {
	t.Parallel()
	a := startAccounts(t, startHub(t), "")
	docker, daemon := startDockerCLI(t, a.Addr)
	dir := t.TempDir()
	login := func(user, password string) {
		t.Helper()
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		ociWrite(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{"auths": {"https://index.docker.io/v1/": {"auth": %q}}}`, auth))
	}
	pull := func(what, image, want string) {
		t.Helper()
		docker(t, dir, "", "rmi", "--force", image)
		told := len(daemon.Log())
		r := docker(t, dir, "", "pull", image)
		said := r.Stdout + r.Stderr
		story := a.story()
		if !strings.Contains(story, "/v2/") {
			t.Errorf("%s: weir was not asked", what)
		}
		switch {
		case (r.Code == 0) != (want == ""):
			t.Errorf("%s: status %d, %s\n%s", what, r.Code, said, story)
		case want == "":
		case !strings.Contains(daemon.Log()[told:], want):
			t.Errorf("%s: the daemon's log does not say %q:\n%s\n%s", what, want, daemon.Log()[told:], story)
		case !strings.Contains(said, "registry-1.docker.io"):
			t.Errorf("%s: docker says %s", what, said)
		}
	}
	pull("nobody, what is for all", "thing:1", "")
	pull("nobody, what is not", "acme/app:1", "anonymous clients may not pull docker.io/acme/app: log in")
	token := a.token("alice")
	login("token", token.Secret)
	pull("a token", "acme/app:1", "")
	pull("a token, what is for all", "thing:1", "")
	pull("another's image", "bob/app:1", "alice may not pull docker.io/bob/app")
	login("bob", bobsPassword)
	pull("a password", "bob/app:1", "")
	login("bob", "wrong password")
	pull("a wrong password", "bob/app:1", "wrong name or password")
	login("token", token.Secret)
	a.MustCommand("", "token", "revoke", token.ID)
	pull("a revoked token", "acme/app:1", "revoked")
	login("token", a.expired("alice").Secret)
	pull("an expired token", "acme/app:1", "has expired")
}

// TestOCIBearerEnds shows crane a short-lived token, which is otherwise between
// weir and the client's program, and ends it in every way that there is.
func TestOCIBearerEnds(t *testing.T) {
	t.Parallel()
	const life = time.Minute // the least that can be configured
	a := startAccounts(t, startHub(t), "  bearer: 1m\n")
	bearer := func(user, password, scope string) string {
		t.Helper()
		got, err := ociAsk(http.DefaultClient, "GET", a.URL+"/token?scope="+scope, "Authorization",
			"Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
		var answer struct {
			Token   string
			Expires float64 `json:"expires_in"`
		}
		if err == nil {
			err = json.Unmarshal(got.body, &answer)
		}
		if err != nil || answer.Token == "" || answer.Expires > life.Seconds() || answer.Expires < 1 {
			t.Fatalf("/token: %v: %d %s", err, got.status, got.body)
		}
		return answer.Token
	}
	pull := func(what, token, want string) {
		t.Helper()
		home := t.TempDir()
		ociWrite(t, filepath.Join(home, "config.json"), fmt.Sprintf(`{"auths": {%q: {"registrytoken": %q}}}`, a.Addr, token))
		r := lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "crane"), Env: []string{"HOME=" + home, "DOCKER_CONFIG=" + home},
			Args: []string{"pull", a.Addr + "/acme/app:1", filepath.Join(home, "image.tar")}})
		if said := r.Stdout + r.Stderr; (r.Code == 0) != (want == "") || !strings.Contains(said, want) {
			t.Errorf("%s: status %d, %s, want %q\n%s", what, r.Code, said, want, a.story())
		}
	}
	const scope = "repository:acme/app:pull"
	opaque := a.token("alice")
	expires := bearer("alice", alicesPassword, scope)
	made := time.Now()
	byToken, byPassword := bearer("token", opaque.Secret, scope), bearer("alice", alicesPassword, scope)
	pull("by a token", byToken, "")
	pull("by a password", byPassword, "")
	pull("for something else", bearer("alice", alicesPassword, "repository:acme/other:pull"), "the token was issued for something else")
	pull("changed", byToken[:len(byToken)-5]+"AAAAA", "none of this registry's, or has been changed")
	if chainLong() {
		lab.Eventually(t, 2*life, "a token to expire", func() error {
			if left := life - time.Since(made); left > -time.Second {
				return fmt.Errorf("%v are left", left)
			}
			return nil
		})
		pull("expired", expires, "expired")
		byToken, byPassword = bearer("token", opaque.Secret, scope), bearer("alice", alicesPassword, scope)
	}
	a.MustCommand("", "token", "revoke", opaque.ID)
	pull("its token was revoked", byToken, "revoked")
	a.MustCommand("another battery\n", "user", "password", "alice", "--password-stdin")
	pull("the password was changed", byPassword, "the password has changed")
	last := bearer("alice", "another battery", scope)
	a.MustCommand("", "user", "disable", "alice")
	pull("the account was disabled", last, "this account is disabled")
}
