package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
)

// TestGrantTestSaysWhy asks the running node who may do what.
func TestGrantTestSaysWhy(t *testing.T) {
	file, data := configureAccounts(t, "access: {anonymous: [\"pull oci:docker.io/library/*\"]}\n")
	p := start(t, t.TempDir(), "-c", file)
	defer p.stop(t)
	for _, args := range [][]string{
		{"user", "add", "alice", "--generate"}, {"robot", "add", "ci"}, {"team", "add", "core"}, {"team", "join", "core", "alice"},
		{"grant", "add", "team:core", "push oci:ghcr.io/acme/*"}, {"grant", "add", "ci", "pull oci:ghcr.io/*"},
		{"grant", "add", "anonymous", "pull oci:quay.io/open/*"},
		{"grant", "deny", "alice", "push oci:ghcr.io/acme/secret", "--for", "1h"},
	} {
		weir(t, file, 0, args...)
	}
	nt := asJSON[registry.NewToken](t, file, "token", "create", "ci", "--right", "pull oci:ghcr.io/acme/*")
	for _, c := range []struct {
		whom, right string
		code        int
		want        string
	}{
		{"alice", "pull oci:ghcr.io/acme/app", 0, "yes: user:alice may pull oci:ghcr.io/acme/app\n  team:core may push oci:ghcr.io/acme/* (grant "},
		{"alice", "pull oci:ghcr.io/acme/secret", 0, "yes: "}, // what is denied is pushing
		{"alice", "push oci:ghcr.io/acme/secret", 1, "\n  user:alice may not push oci:ghcr.io/acme/secret until "},
		{"alice", "pull oci:ghcr.io/other", 1, `no: no grant lets "alice" pull oci:ghcr.io/other (version `},
		{"alice", "pull oci:quay.io/open/x", 0, "\n  anonymous may pull oci:quay.io/open/* (grant "},
		{"alice", "pull oci:docker.io/library/x", 0, "\n  everyone may, by access.anonymous in the configuration"},
		{"anonymous", "pull oci:docker.io/library/x", 0, "yes: anonymous may"},
		{"anonymous", "pull oci:ghcr.io/acme/app", 1, "no: no grant lets anonymous clients pull"},
		{"alice", "admin *", 1, `no: no grant lets "alice" administer this weir`},
		{"admin", "admin *", 0, "robot:admin may admin * (grant "},
		{"robot:ci", "pull oci:ghcr.io/other", 0, "robot:ci may pull oci:ghcr.io/*"},
		{"token:" + nt.ID, "pull oci:ghcr.io/acme/app", 0, "yes: robot:ci may"},
		{"token:" + nt.ID, "pull oci:ghcr.io/other", 1, "its token is not for that"},
		{"token:" + nt.Secret, "pull oci:ghcr.io/other", 1, "its token is not for that"},
	} {
		if out, _ := weir(t, file, c.code, "grant", "test", c.whom, c.right); !strings.Contains(out, c.want) || strings.Contains(out, nt.Secret) {
			t.Errorf("%s, %s: %s", c.whom, c.right, out)
		}
	}
	for right, want := range map[string]string{"pull oci:ghcr.io/*": "name one", "pull *": "name one"} {
		if _, stderr := weir(t, file, 1, "grant", "test", "alice", right); !strings.Contains(stderr, want) {
			t.Errorf("%s: %s", right, stderr)
		}
	}
	for _, whom := range []string{"team:core", "nobody", "token:nothing"} {
		weir(t, file, 1, "grant", "test", whom, "pull oci:ghcr.io/acme/app")
	}
	if out := asJSON[account.Checked](t, file, "grant", "test", "alice", "pull oci:ghcr.io/acme/app"); !out.Allowed || len(out.Grants) != 1 || out.Grants[0].By != "admin" {
		t.Errorf("%+v", out)
	}
	_, stderr := weir(t, file, 1, "grant", "test", "alice", "pull oci:ghcr.io/other")
	if stderr != "note: to allow it: weir grant add user:alice \"pull oci:ghcr.io/other\" -c "+file+"\n" {
		t.Errorf("what to do: %q", stderr)
	}
	_, stderr = weir(t, file, 1, "grant", "test", "alice", "pull oci:acme/app")
	if !strings.Contains(stderr, "note: ") || !strings.Contains(stderr, "ghcr.io/") {
		t.Errorf("a name without its registry: %q", stderr)
	}
	testNobodyIsLockedOut(t, file, data)
}

// testNobodyIsLockedOut tries to take away the last who may administer.
func testNobodyIsLockedOut(t *testing.T, file, data string) {
	t.Helper()
	for _, args := range [][]string{{"robot", "remove", "admin"}, {"robot", "disable", "admin"}} {
		if _, stderr := weir(t, file, 1, args...); !strings.Contains(stderr, "the only one who may administer") {
			t.Errorf("%q: %s", args, stderr)
		}
	}
	weir(t, file, 0, "grant", "add", "alice", "admin *")
	token := asJSON[registry.NewToken](t, file, "token", "create", "alice").Secret
	weir(t, file, 0, "robot", "disable", "admin")
	_, stderr := weir(t, file, 1, "robot", "list")
	if !strings.Contains(stderr, "does not take the token in "+data) || strings.Contains(stderr, "Bearer") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("with a token that ended: %s", stderr)
	}
	weir(t, file, 0, "robot", "enable", "admin", "--token", token)
	weir(t, file, 0, "robot", "list")
}

// TestEveryCommandSaysHow: each has an example, and a text of a line.
func TestEveryCommandSaysHow(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" || !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: short %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(rootCommand())
}

// TestMisspeltCommandsAreNamed: the flags behind one are not what is wrong.
func TestMisspeltCommandsAreNamed(t *testing.T) {
	for line, want := range map[string]string{
		"grants list -c weir.yaml":           `there is no command "grants"; did you mean "grant"? (see weir --help)`,
		"user lst -c weir.yaml":              `there is no command "lst"; did you mean "list"? (see weir user --help)`,
		"grant remove alice -c weir.yaml":    `there is no command "remove"; did you mean "revoke"? (see weir grant --help)`,
		"robot password ci --generate":       `there is no command "password" in "weir robot"`,
		"--bogus":                            "unknown flag: --bogus (see weir --help)",
		"grant add -c weir.yaml":             "grant add: which WHOM?",
		"grant add alice pull oci:a/* -c w":  "in quotes (see weir grant add --help)",
		"user add alice --bogus -c weir.yml": "unknown flag: --bogus (see weir user add --help)",
	} {
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(line), &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("weir %s: exit code %d\n%s", line, code, stderr.String())
		}
	}
}
