package account

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

func TestEnsureAdmin(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	dir := t.TempDir()
	file := filepath.Join(dir, AdminFile)
	ensure := func() string {
		t.Helper()
		l.must(l.EnsureAdmin(ctx, dir))
		text, err := os.ReadFile(file)
		l.must(err)
		return string(text)
	}
	first := ensure()
	info, err := os.Stat(file)
	if l.must(err); info.Mode() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	p, err := l.replica.Token(first[:len(first)-1], here)
	l.must(err)
	grants, err := l.ListGrants(ctx, "robot:admin")
	if l.must(err); p.Name != "admin" || len(grants) != 1 || grants[0].Right != "admin *" {
		t.Errorf("%+v with %+v", p, grants)
	}
	if again := ensure(); again != first {
		t.Error("a token that works was replaced")
	}
	// Another one that works is left alone, wherever it is from.
	l.user("alice")
	nt, err := l.CreateTokenFor(ctx, root, "alice", registry.TokenSpec{})
	l.must(err)
	l.must(os.WriteFile(file, []byte(nt.Secret), 0o600))
	if got := ensure(); got != nt.Secret {
		t.Error("another token that works was replaced")
	}
	_, _, err = l.Revoke(ctx, root, nt.ID)
	l.must(err)
	second := ensure()
	if second == nt.Secret || second == first {
		t.Error("a token that is revoked was left")
	}
	for _, text := range []string{"", "nonsense", "weir_" + second} {
		l.must(os.WriteFile(file, []byte(text), 0o600))
		if got := ensure(); got == text {
			t.Errorf("%q was left", text)
		}
	}
	l.must(os.Remove(file))
	ensure()
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left %v %v", left, err)
	}
	// The last one who may administer stays.
	_, err = l.Disable(ctx, root, "admin")
	l.fails(err, registry.ErrConflict)
	_, err = l.RemoveAccount(ctx, root, registry.Robot, "admin")
	l.fails(err, registry.ErrConflict)
	// Who has disabled the robot wants none.
	mine, _, err := l.Grant(ctx, root, GrantSpec{To: "alice", Right: "admin *"})
	l.must(err)
	_, err = l.Disable(ctx, root, "admin")
	l.must(err)
	l.must(os.Remove(file))
	l.must(l.EnsureAdmin(ctx, dir))
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("there is a file: %v", err)
	}
	// Where nobody else may administer, a start is the way back.
	_, _, err = l.RevokeGrant(ctx, root, mine.ID)
	l.must(err)
	p, err = l.replica.Token(strings.TrimSpace(ensure()), here)
	if l.must(err); p.Name != "admin" {
		t.Errorf("the way back is for %+v", p)
	}
}

func TestAdministrators(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		l.user(name)
	}
	_, _, err := l.AddTeam(ctx, root, "core")
	l.must(err)
	_, err = l.AddMember(ctx, root, "core", "bob")
	l.must(err)
	for _, spec := range []GrantSpec{{To: "alice", Right: "admin *", Lifetime: time.Hour}, {To: "team:core", Right: "admin *"},
		{To: "carol", Right: "admin oci:*"}, {To: "dave", Right: "admin *", Deny: true}} {
		_, _, err := l.Grant(ctx, root, spec)
		l.must(err)
	}
	is := func(want ...string) {
		t.Helper()
		if got, err := l.administrators(ctx); err != nil || !slices.Equal(got, want) {
			t.Errorf("administrators are %v %v, want %v", got, err, want)
		}
	}
	is("alice", "bob")
	l.pass(2 * time.Hour)
	is("bob")
	_, err = l.Disable(ctx, root, "bob")
	l.fails(err, registry.ErrConflict)
}

// TestEnsureAdminOfMuch: a database that takes long to be read is no reason to
// have no administrator, or not to start.
func TestEnsureAdminOfMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.replica.read = make(chan struct{})
		time.AfterFunc(20*replicaTime, func() { close(l.replica.read) })
		l.must(l.EnsureAdmin(t.Context(), t.TempDir()))
		l.replica.read = make(chan struct{}) // and never
		if err := l.EnsureAdmin(t.Context(), t.TempDir()); registry.KindOf(err) != registry.ErrUnavailable {
			t.Errorf("it was never read: %v", err)
		}
	})
}

func TestEnsureAdminFailsWithoutADirectory(t *testing.T) {
	l := newLab(t)
	if err := l.EnsureAdmin(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
	if left := l.keys(tokenPrefix); len(left) != 0 {
		t.Errorf("a token that nobody knows was left: %v", left)
	}
	user := newLab(t)
	user.user("admin")
	user.fails(user.EnsureAdmin(t.Context(), t.TempDir()), registry.ErrConflict)
}
