package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
)

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// configureAccounts is a configuration with an ops address.
func configureAccounts(t *testing.T, more string) (file, data string) {
	t.Helper()
	dir := t.TempDir()
	file, data = filepath.Join(dir, "weir.yaml"), filepath.Join(dir, "data")
	text := fmt.Sprintf("listen: 127.0.0.1:0\nops: %s\ndata: %q\nnpm: {upstreams: {}}\n%s", freeAddr(t), data, more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, data
}

// weir runs a command line with -c and wants an exit code.
func weir(t *testing.T, file string, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	got, stdout, stderr := try(append(args, "-c", file)...)
	if got != code {
		t.Fatalf("weir %q: exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

// asJSON runs a command line with -o json.
func asJSON[T any](t *testing.T, file string, args ...string) (v T) {
	t.Helper()
	stdout, _ := weir(t, file, 0, append(args, "-o", "json")...)
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("weir %q: %v\n%s", args, err, stdout)
	}
	return v
}

// adminToken is the first start's.
func adminToken(t *testing.T, data string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(data, account.AdminFile))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestAccountCommands(t *testing.T) {
	file, data := configureAccounts(t, "")
	_, stderr := weir(t, file, 1, "user", "list")
	if !strings.Contains(stderr, "there is no administrator's token: "+filepath.Join(data, "admin-token")) || !strings.Contains(stderr, "--token") {
		t.Errorf("before the first start: %q", stderr)
	}
	_, stderr = weir(t, file, 1, "user", "list", "--token", "x")
	if !strings.Contains(stderr, `start it with "weir serve"`) {
		t.Errorf("without a node: %q", stderr)
	}
	p := start(t, t.TempDir(), "-c", file)
	admin := adminToken(t, data)
	if info, err := os.Stat(filepath.Join(data, account.AdminFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("the admin token's file: %v %v", info, err)
	}
	_, stderr = weir(t, file, 1, "user", "list", "--token", "weir_wrong")
	if !strings.Contains(stderr, "admin-token") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("with a wrong token: %q", stderr)
	}

	stdout, _ := weir(t, file, 0, "user", "add", "alice", "--generate", "--email", "alice@example.com")
	if !regexp.MustCompile(`^user alice is added.*\n\n  [a-z1-9]{5}(-[a-z1-9]{5}){3}\n`).MatchString(stdout) {
		t.Errorf("add --generate: %q", stdout)
	}
	weir(t, file, 1, "user", "add", "alice", "--generate")
	weir(t, file, 0, "robot", "add", "ci")
	weir(t, file, 0, "team", "add", "core")
	weir(t, file, 0, "team", "join", "core", "alice")
	if team := asJSON[account.TeamAnswer](t, file, "team", "show", "core"); len(team.Members) != 1 || team.Members[0] != "alice" {
		t.Errorf("the team is %+v", team)
	}
	users := asJSON[[]account.AccountAnswer](t, file, "user", "list")
	if len(users) != 1 || users[0].Name != "alice" || users[0].Teams[0] != "core" {
		t.Errorf("users are %+v", users)
	}
	stdout, _ = weir(t, file, 0, "user", "list")
	lines := strings.Split(stdout, "\n")
	if at := strings.Index(lines[0], "TEAMS"); at < 0 || !strings.HasPrefix(lines[1][at:], "core") {
		t.Errorf("the table does not line up:\n%s", stdout)
	}
	weir(t, file, 0, "user", "disable", "alice")
	if out, _ := weir(t, file, 0, "user", "show", "alice"); !regexp.MustCompile(`(?m)^state +disabled$`).MatchString(out) {
		t.Errorf("show: %s", out)
	}
	weir(t, file, 0, "user", "enable", "alice")
	weir(t, file, 0, "user", "password", "alice", "--generate")
	testGrantCommands(t, file)
	testTokenCommands(t, file)
	weir(t, file, 0, "team", "leave", "core", "alice")
	weir(t, file, 0, "team", "remove", "core")
	weir(t, file, 0, "user", "remove", "alice")
	if _, stderr := weir(t, file, 1, "user", "show", "alice"); stderr != "weir: there is no user called alice\n" && !strings.Contains(stderr, `there is no user called "alice"`) {
		t.Errorf("after its removal: %q", stderr)
	}
	// All is there after a restart, and the admin token stays.
	p.stop(t)
	p = start(t, t.TempDir(), "-c", file)
	if robots := asJSON[[]account.AccountAnswer](t, file, "robot", "list"); len(robots) != 2 || adminToken(t, data) != admin {
		t.Errorf("after a restart: %+v", robots)
	}
	p.stop(t)
}

func testGrantCommands(t *testing.T, file string) {
	t.Helper()
	stdout, stderr := weir(t, file, 0, "grant", "add", "alice", "pull oci:docker.io/acme/*", "--for", "30d")
	if !strings.HasPrefix(stdout, "user:alice may pull oci:docker.io/acme/* until ") || stderr != "" {
		t.Errorf("grant add: %q %q", stdout, stderr)
	}
	_, stderr = weir(t, file, 0, "grant", "deny", "team:core", "pull oci:acme/*")
	if !strings.HasPrefix(stderr, "note: \"pull oci:acme/*\" matches nothing") && !strings.HasPrefix(stderr, "note: ") || !strings.Contains(stderr, "docker.io/") {
		t.Errorf("a grant that matches nothing: %q", stderr)
	}
	if _, stderr = weir(t, file, 0, "grant", "add", "ci", "pull npm:*"); !strings.Contains(stderr, "npm.upstreams") {
		t.Errorf("a grant for npm where there is none: %q", stderr)
	}
	for _, bad := range [][]string{{"alice", "fetch oci:*"}, {"alice", "pull"}, {"alice"}, {"alice", "pull", "oci:*"}, {"alice", "pull oci:*", "--for", "soon"},
		{"alice", "pull docker:*"}, {"alice", "pull oci:ghcr.io/acme/app:1"}, {"alice", "pull oci:ghcr.io/acme/app@sha256:aa"}, {"alice", "pull npm:@acme/lib@1.0.0"}} {
		weir(t, file, 2, append([]string{"grant", "add"}, bad...)...)
	}
	weir(t, file, 1, "grant", "add", "nobody", "pull oci:*")
	grants := asJSON[[]registry.Grant](t, file, "grant", "list")
	if len(grants) != 4 {
		t.Fatalf("grants are %+v", grants)
	}
	mine := asJSON[[]registry.Grant](t, file, "grant", "list", "alice")
	if len(mine) != 1 || mine[0].By != "admin" {
		t.Errorf("alice's are %+v", mine)
	}
	if out, _ := weir(t, file, 0, "grant", "list"); !strings.Contains(out, "access.anonymous in the configuration of this node: pull oci:*, pull npm:*") {
		t.Errorf("what everyone may is not listed:\n%s", out)
	}
	weir(t, file, 1, "grant", "revoke", "alice", "pull oci:other/*")
	weir(t, file, 0, "grant", "revoke", "alice", mine[0].Right)
	weir(t, file, 0, "grant", "add", "alice", mine[0].Right)
	weir(t, file, 0, "grant", "revoke", mine[0].ID)
	weir(t, file, 1, "grant", "revoke", mine[0].ID)
	if out, _ := weir(t, file, 0, "grant", "list", "alice"); !strings.HasPrefix(out, "nothing is granted; ") {
		t.Errorf("an empty list: %q", out)
	}
}

func testTokenCommands(t *testing.T, file string) {
	t.Helper()
	stdout, _ := weir(t, file, 0, "token", "create", "ci", "--right", "pull oci:docker.io/*", "--from", "10.0.0.0/8", "--from", "192.0.2.1", "--for", "90d", "--note", "build machines")
	secret := regexp.MustCompile(`weir_[0-9A-Za-z]+`).FindString(stdout)
	if !registry.CheckTokenText(secret) || !strings.Contains(stdout, "docker login -u ci --password-stdin 127.0.0.1") || strings.Contains(stdout, "_authToken") {
		t.Errorf("token create: %s", stdout)
	}
	tokens := asJSON[[]registry.Token](t, file, "token", "list", "ci")
	if len(tokens) != 1 || tokens[0].Note != "build machines" || tokens[0].From[1].String() != "192.0.2.1/32" || tokens[0].Hash != nil {
		t.Fatalf("tokens are %+v", tokens)
	}
	if out, _ := weir(t, file, 0, "token", "show", tokens[0].ID); strings.Contains(out, secret) || !strings.Contains(out, "10.0.0.0/8, 192.0.2.1/32") {
		t.Errorf("token show: %s", out)
	}
	weir(t, file, 2, "token", "create", "ci", "--from", "somewhere")
	stdout, _ = weir(t, file, 0, "token", "revoke", tokens[0].ID, "--wait")
	if !regexp.MustCompile(`^token \w+ of ci is revoked at version \d+; nodes that have it:\n  \S+ \(this node\) +after \d\.\d{3}s\nthat is all of them: 1\n$`).MatchString(stdout) {
		t.Errorf("token revoke --wait: %q", stdout)
	}
	weir(t, file, 1, "token", "revoke", tokens[0].ID)
	stdout, _ = weir(t, file, 0, "token", "create", "ci", "--right", "pull npm:*")
	secret = regexp.MustCompile(`weir_[0-9A-Za-z]+`).FindString(stdout)
	if strings.Contains(stdout, "docker login") || !strings.Contains(stdout, "/npm/:_authToken="+secret) {
		t.Errorf("token create for npm: %s", stdout)
	}
	// Who has found the secret has no ID.
	if out, _ := weir(t, file, 0, "token", "show", secret); !strings.Contains(out, "pull npm:*") || strings.Contains(out, secret) {
		t.Errorf("token show: %s", out)
	}
	weir(t, file, 0, "token", "revoke", secret)
	if _, stderr := weir(t, file, 1, "token", "revoke", secret); !strings.Contains(stderr, "no token with that secret") || strings.Contains(stderr, secret) {
		t.Errorf("a second time: %s", stderr)
	}
	nt := asJSON[registry.NewToken](t, file, "token", "create", "ci")
	weir(t, file, 1, "user", "list", "--token", nt.Secret) // ci may not administer
	weir(t, file, 0, "grant", "add", "ci", "admin *")
	weir(t, file, 0, "user", "list", "--token", nt.Secret)
	t.Setenv(tokenVariable, nt.Secret)
	weir(t, file, 0, "token", "revoke", nt.ID) // its own, by the environment
	weir(t, file, 1, "user", "list")
	t.Setenv(tokenVariable, "")
}

func TestNodesThatAreMissingAreNamed(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "DELETE" {
			fmt.Fprintln(w, `{"id":"x","owner":"ci","version":7}`)
			return
		}
		if r.URL.Query().Get("version") != "7" || r.URL.Query().Get("wait") != "3s" {
			t.Errorf("asked for %v", r.URL)
		}
		fmt.Fprintln(w, `{"node":"edge1","via":["shield1"],"after":0.1}`)
		fmt.Fprintln(w, `{"done":true,"after":3,"missing":[{"node":"edge2","heard":"2031-05-06T07:08:09Z"}]}`)
	}))
	defer srv.Close()
	file, _ := configureAccounts(t, "")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`ops: .*`).ReplaceAll(text, []byte("ops: "+strings.TrimPrefix(srv.URL, "http://")))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"token", "revoke", "x", "--wait", "--timeout", "3s", "--token", "t"}
	stdout, stderr := weir(t, file, 1, args...)
	if !regexp.MustCompile(`(?m)^  edge1 \(via shield1\) +after 0\.100s$`).MatchString(stdout) || !regexp.MustCompile(`(?m)^  edge2 +not within 3\.000s;`).MatchString(stdout) || strings.Contains(stdout, "all of them") || !strings.Contains(stderr, "edge2") {
		t.Errorf("%q %q", stdout, stderr)
	}
	stdout, _ = weir(t, file, 1, append(args, "-o", "json")...)
	if strings.Count(stdout, "\n") != 2 || !strings.Contains(stdout, `"missing":[{"node":"edge2"`) {
		t.Errorf("%q", stdout)
	}
}

func TestANodeWithoutAccountsSaysWhereTheyAre(t *testing.T) {
	rec := httptest.NewRecorder()
	accountsElsewhere([]string{"https://shield.example.com:5001"}).ServeHTTP(rec, httptest.NewRequest("GET", "/admin/v1/users", nil))
	if rec.Code != http.StatusMisdirectedRequest || !strings.Contains(rec.Body.String(), "https://shield.example.com:5001") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	file, _ := configureAccounts(t, "next: https://shield.example.com:5001\n")
	if _, stderr := weir(t, file, 1, "user", "list"); !strings.Contains(stderr, "behind this one is https://shield.example.com:5001") {
		t.Errorf("it says %q", stderr)
	}
	off, _ := configure(t, "")
	if _, stderr := weir(t, off, 1, "user", "list"); !strings.Contains(stderr, "ops is off") {
		t.Errorf("it says %q", stderr)
	}
}

func TestPasswordsAreRead(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string
	}{{"correct horse\n", "correct horse"}, {"a b\r\n", "a b"}, {" x", " x"}, {"", ""}, {"a\nb\n", ""}} {
		p := passwordFlags{stdin: true}
		got, made, err := p.read(strings.NewReader(c.in), &bytes.Buffer{}, "alice")
		if got != c.want || made || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q %v", c.in, got, err)
		}
	}
	if _, _, err := (&passwordFlags{}).read(strings.NewReader("x\n"), &bytes.Buffer{}, "alice"); err == nil || !strings.Contains(err.Error(), "--password-stdin") {
		t.Errorf("no terminal: %v", err)
	}
	if _, _, err := (&passwordFlags{stdin: true, generate: true}).read(strings.NewReader("x\n"), &bytes.Buffer{}, "alice"); err == nil {
		t.Error("both ways at once")
	}
	answers := []string{"one", "two", "three", "three"}
	ask := func(string) (string, error) {
		if len(answers) == 0 {
			return "", errors.New("the end")
		}
		a := answers[0]
		answers = answers[1:]
		return a, nil
	}
	if got, err := askTwice("alice", ask); err != nil || got != "three" {
		t.Errorf("asked twice: %q %v", got, err)
	}
	if got, err := askTwice("alice", ask); err == nil {
		t.Errorf("no answer is %q", got)
	}
	if a, b := newPassword(), newPassword(); a == b || len(a) != 23 {
		t.Errorf("made %q and %q", a, b)
	}
}

func TestSpans(t *testing.T) {
	for text, want := range map[string]string{"30d": "720h0m0s", "12h": "12h0m0s", "90m": "1h30m0s", "": "0s"} {
		if d, err := parseSpan("--for", text); err != nil || d.String() != want {
			t.Errorf("%q: %v %v", text, d, err)
		}
	}
	for _, text := range []string{"30", "-1h", "0d", "d", "1.5d", "soon", "99999999d"} {
		if d, err := parseSpan("--for", text); err == nil {
			t.Errorf("%q is %v", text, d)
		}
	}
}
