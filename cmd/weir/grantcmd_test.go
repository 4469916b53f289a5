package main

import (
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry/entitle"
)

// TestRightsThatMatchNothing: who forbids something under a name that nothing is
// called is told so.
func TestRightsThatMatchNothing(t *testing.T) {
	c := &Config{OCI: OCIConfig{Upstreams: map[string]OCIUpstream{"docker.io": {}, "ghcr.io": {}}}, NPM: NPMConfig{Upstreams: map[string]NPMUpstream{"public": {}}}}
	for right, says := range map[string]string{
		"pull oci:docker.io/alpine": "docker.io/library/NAME", "pull oci:index.docker.io/library/alpine": "begin with docker.io/, ghcr.io/",
		"pull npm:@acme%2fx": "no package", "pull npm:@acme": "no package",
		"pull oci:docker.io/library/alpine": "", "pull oci:docker.io/al*": "", "pull oci:ghcr.io/app": "", "pull npm:@acme/x": "", "pull npm:@acme/*": "",
		"pull npm:-": "", "admin *": "",
	} {
		r, err := entitle.ParseRight(right)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.matchesNothing(r); (got == "") != (says == "") || !strings.Contains(got, says) {
			t.Errorf("%q: %q, want %q", right, got, says)
		}
	}
}
