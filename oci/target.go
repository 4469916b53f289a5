package oci

import (
	"strings"

	"github.com/weir-registry/weir/registry"
)

// choose says which upstream's repository a request means: ns if there is one,
// else a first part of the path that is an upstream's name, else the default.
// The answer is a registry.Name's Repo, "docker.io/library/alpine".
//
// ns is the client's to choose and so only compared, never dialled.
func (u *Upstreams) choose(ns, repo string) (string, error) {
	if ns != "" {
		name := canonical(ns)
		if u.remotes[name] == nil {
			return "", registry.Errorf(registry.ErrNotFound, "no upstream is called %q here; configured are: %s", clip(ns), u.configured())
		}
		return qualified(name, repo), nil
	}
	if first, rest, ok := strings.Cut(repo, "/"); ok {
		if name := canonical(first); u.remotes[name] != nil {
			return qualified(name, rest), nil
		}
	}
	if u.def == "" {
		return "", registry.Errorf(registry.ErrNotFound,
			"%s does not begin with an upstream's name and there is no default; configured are: %s", repo, u.configured())
	}
	return qualified(u.def, repo), nil
}

// qualified puts name in front of repo, and "library/" between them where
// Docker Hub keeps its own images.
func qualified(name, repo string) string {
	if name == hub && strings.IndexByte(repo, '/') < 0 {
		return name + "/library/" + repo
	}
	return name + "/" + repo
}

func (u *Upstreams) configured() string {
	if len(u.names) == 0 {
		return "none"
	}
	return strings.Join(u.names, ", ")
}

// clip keeps a client's words short.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
