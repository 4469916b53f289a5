package oci

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func scopeUpstreams(t testing.TB) *Upstreams {
	t.Helper()
	u, err := NewUpstreams([]Registry{{Name: hub}, {Name: "ghcr.io"}, {Name: "localhost:5001", URL: "http://localhost:5001"}}, Options{Default: hub})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestScopes(t *testing.T) {
	u := scopeUpstreams(t)
	long := strings.Repeat("a", maxRepo)
	for text, want := range map[string]string{
		"repository:library/alpine:pull":                      "docker.io/library/alpine [pull]",
		"repository:alpine:pull":                              "docker.io/library/alpine [pull]",
		"repository:docker.io/library/alpine:pull":            "docker.io/library/alpine [pull]",
		"repository:index.docker.io/library/alpine:pull":      "docker.io/library/alpine [pull]",
		"repository:ghcr.io/acme/app:pull,push":               "ghcr.io/acme/app [pull push]",
		"repository:acme/app:pull":                            "docker.io/acme/app [pull]",
		"repository:docker.io/ghcr.io/acme/app:pull":          "docker.io/ghcr.io/acme/app [pull]",
		"repository:localhost:5001/acme/app:pull":             "localhost:5001/acme/app [pull]",
		"repository(plugin):acme/app:pull":                    "docker.io/acme/app [pull]",
		"repository:acme/app:*":                               "docker.io/acme/app [pull push]",
		"repository:acme/app:pull,pull,push,pull":             "docker.io/acme/app [pull push]",
		"repository:acme/app:delete,pull":                     "docker.io/acme/app [pull]",
		"repository:ghcr.io/" + long + ":pull":                "ghcr.io/" + long + " [pull]",
		"repository:a:pull repository:b:push":                 "docker.io/library/a [pull] docker.io/library/b [push]",
		"  repository:a:pull   ":                              "docker.io/library/a [pull]",
		"registry:catalog:*":                                  "",
		"":                                                    "",
		"repository":                                          "",
		"repository:a":                                        "",
		"repository::pull":                                    "",
		"repository:a:":                                       "",
		"repository:a:admin":                                  "",
		"repository:a:PULL":                                   "",
		"repository:a:pull;push":                              "",
		"repository:a: pull":                                  "",
		"repository:../x:pull":                                "",
		"repository:a/../b:pull":                              "",
		"repository:a//b:pull":                                "",
		"repository:/a:pull":                                  "",
		"repository:a/:pull":                                  "",
		"repository:*:pull":                                   "",
		"repository:acme/*:pull":                              "",
		"repository:A:pull":                                   "",
		"repository:a%2fb:pull":                               "",
		"repository:a\x00b:pull":                              "",
		"repository:a\tb:pull":                                "",
		"repository:ghcr.io/:pull":                            "",
		"repository:ghcr.io/../x:pull":                        "",
		"repository:other:5000/a:pull":                        "",
		"repository:a:pull:pull":                              "",
		"repository:" + long + "a:pull":                       "",
		"Repository:a:pull":                                   "",
		"repository():a:pull":                                 "",
		"repository(plugin:a:pull":                            "",
		"repository(Plugin):a:pull":                           "",
		"repositoryx:a:pull":                                  "",
		"repository:a:" + strings.Repeat("push,", 8) + "pull": "",
	} {
		list, err := parseScopes([]string{text})
		if got := meaning(u, list); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", text, got, err, want)
		}
	}
}

func meaning(u *Upstreams, list []scope) string {
	var out []string
	for _, s := range list {
		if repo, ok := u.named(s.repo); ok {
			out = append(out, fmt.Sprint(repo, " ", s.actions))
		}
	}
	return strings.Join(out, " ")
}

func TestScopeLimits(t *testing.T) {
	one := "repository:a:pull"
	fields := slices.Repeat([]string{one}, maxScopes)
	if list, err := parseScopes(fields); err != nil || len(list) != maxScopes {
		t.Errorf("%d scopes: %d %v", maxScopes, len(list), err)
	}
	longest := "repository:" + strings.Repeat("a", maxScope-len("repository::pull")) + ":pull"
	if _, err := parseScopes([]string{longest}); err != nil {
		t.Errorf("%d bytes: %v", len(longest), err)
	}
	for what, fields := range map[string][]string{
		"one too many":         append(fields, one),
		"too many in a field":  {strings.Repeat(one+" ", maxScopes+1)},
		"too many senseless":   {strings.Repeat("x ", maxScopes+1)},
		"one that is too long": {longest + ","},
	} {
		if _, err := parseScopes(fields); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzScope compares what a scope comes to with what the grammar says, written
// down once more as regular expressions.
func FuzzScope(f *testing.F) {
	for _, s := range []string{"repository:library/alpine:pull", "repository(plugin):ghcr.io/a/b:pull,push", "repository:localhost:5001/a:*",
		"registry:catalog:*", "repository:../x:pull", "repository:a__b/c-d.e:push", "repository:a:pull:push", "repository:docker.io/a:pull,x"} {
		f.Add(s)
	}
	const part = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	const repo = part + `(?:/` + part + `)*`
	form := regexp.MustCompile(`^repository(?:\([a-z0-9]+\))?:((?:(?i:index\.docker\.io|registry-1\.docker\.io|docker\.io|ghcr\.io|localhost:5001)/)?)(` +
		repo + `):([^:]*)$`)
	u := scopeUpstreams(f)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, " ") || len(text) > maxScope {
			return
		}
		var want string
		if m := form.FindStringSubmatch(text); m != nil && len(m[2]) <= maxRepo {
			actions := strings.Split(m[3], ",")
			var list []registry.Action
			for _, a := range actions {
				for _, one := range map[string][]registry.Action{"pull": {"pull"}, "push": {"push"}, "*": {"pull", "push"}}[a] {
					if !slices.Contains(list, one) {
						list = append(list, one)
					}
				}
			}
			up := strings.ToLower(strings.TrimSuffix(m[1], "/"))
			if up == "" || strings.HasSuffix(up, ".docker.io") {
				up = hub
			}
			name := m[2]
			if up == hub && !strings.Contains(name, "/") {
				name = "library/" + name
			}
			if len(list) > 0 && len(actions) <= maxActions {
				want = fmt.Sprint(up, "/", name, " ", list)
			}
		}
		list, err := parseScopes([]string{text})
		if got := meaning(u, list); err != nil || got != want {
			t.Fatalf("%q: %q %v, want %q", text, got, err, want)
		}
	})
}
