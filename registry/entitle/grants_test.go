package entitle

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func call(space, repo string) *registry.Call {
	return &registry.Call{Action: registry.Pull, Name: registry.Name{Space: space, Repo: repo, Ref: "1"}}
}

func TestAdmit(t *testing.T) {
	g, err := Parse([]string{"pull oci:docker.io/*", "pull oci:ghcr.io/acme/app", "pull npm:@acme/*", "pull npm:left-*d"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		space, repo string
		want        bool
	}{
		{"oci", "docker.io/library/alpine", true}, {"oci", "docker.io/", true}, {"oci", "docker.io", false},
		{"oci", "xdocker.io/a", false}, {"oci", "ghcr.io/acme/app", true}, {"oci", "ghcr.io/acme/app/x", false},
		{"oci", "ghcr.io/acme/ap", false}, {"oci", "Docker.io/a", false},
		{"npm", "@acme/x", true}, {"npm", "@acme", false}, {"npm", "@acmeX/x", false}, {"npm", "lodash", false},
		{"npm", "left-pad", true}, {"npm", "left-d", true}, {"npm", "left-", false}, {"npm", "docker.io/a", false},
		{"", "", false}, {"oc", "i:docker.io/a", false},
	} {
		err := g.Admit(context.Background(), call(c.space, c.repo))
		if c.want != (err == nil) {
			t.Errorf("%s:%s: %v", c.space, c.repo, err)
		}
		if err != nil && registry.KindOf(err) != registry.ErrUnauthenticated {
			t.Errorf("%s:%s: %v is not ErrUnauthenticated", c.space, c.repo, err)
		}
	}
	named := call("oci", "docker.io/a")
	named.Who.Name = "ann"
	if err := g.Admit(context.Background(), named); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("a principal that nobody knows: %v", err)
	}
	other := call("oci", "docker.io/a")
	other.Action = "push"
	if err := g.Admit(context.Background(), other); !errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("another action: %v", err)
	}
	if err := new(Grants).Admit(context.Background(), call("oci", "docker.io/a")); !errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("no grants: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "pull", "pull oci", "pull oci:", "pull :a", "oci:*", "push oci:*", "Pull oci:*",
		"pull  oci:*", "pull oci:a b", " pull oci:*", "pull oci:a\n", "pull oci:* "} {
		_, err := Parse([]string{"pull oci:*", text})
		if err == nil || !errors.Is(err, registry.ErrInvalid) || text != "" && !strings.Contains(err.Error(), text[:1]) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAdmitAllocatesNothing(t *testing.T) {
	g, err := Parse([]string{"pull npm:*", "pull oci:*/a*b/*", "pull oci:docker.io/*"})
	if err != nil {
		t.Fatal(err)
	}
	c := call("oci", "docker.io/library/alpine")
	if n := testing.AllocsPerRun(100, func() {
		if err := g.Admit(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// naive is what a pattern means, in the fewest words.
func naive(pattern, s string) bool {
	switch {
	case pattern == "":
		return s == ""
	case pattern[0] == '*':
		return naive(pattern[1:], s) || s != "" && naive(pattern, s[1:])
	}
	return s != "" && s[0] == pattern[0] && naive(pattern[1:], s[1:])
}

func FuzzPattern(f *testing.F) {
	for _, c := range [][2]string{{"*", ""}, {"a*b*c", "abbc"}, {"*a*", "bab"}, {"a*a", "a"}, {"**", "x"}, {"ab*ba", "aba"}, {"*aab", "aaab"}} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 24 {
			return // the naive way takes exponential time
		}
		if got, want := compile(pattern).matches(s), naive(pattern, s); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, s, got, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"pull oci:*", "pull npm:@a/*", "pull", "pull a:b:c", "pull :", "push oci:*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		g, err := Parse([]string{text})
		if err != nil {
			return
		}
		space, repo, _ := strings.Cut(strings.TrimPrefix(text, "pull "), ":")
		if err := g.Admit(context.Background(), call(space, strings.ReplaceAll(repo, "*", "x/y"))); err != nil {
			t.Errorf("%q does not admit an instance of itself: %v", text, err)
		}
	})
}
