package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
)

// TestOpenOrigin: a store is opened with nobody behind its address.
func TestOpenOrigin(t *testing.T) {
	for _, c := range []struct{ blobs, is string }{
		{"", ""},
		{"s3://weir-blobs/a?endpoint=http://127.0.0.1:1", "s3://weir-blobs/a"},
		{"gs://weir-blobs/a/?endpoint=http://127.0.0.1:1/storage/v1/", "gs://weir-blobs/a"},
		{"ftp://weir-blobs", "none"},
		{"s3://weir-blobs?nonsense=1", "none"},
	} {
		config := &Config{Origin: OriginConfig{Blobs: c.blobs}}
		store, err := openOrigin(context.Background(), config, filepath.Join(t.TempDir(), "spool"), slog.New(slog.DiscardHandler))
		if (err != nil) != (c.is == "none") || (store != nil) != strings.Contains(c.is, "://") {
			t.Errorf("%q: %v, %v", c.blobs, store, err)
		}
		if named, ok := store.(interface{ String() string }); ok && named.String() != c.is {
			t.Errorf("%q: %s", c.blobs, named)
		}
		if got := config.checkOrigin(); (got == nil) != (err == nil) {
			t.Errorf("%q: check says %v, opening it %v", c.blobs, got, err)
		}
	}
}

// TestKeeps: each upstream says for itself whether its blobs are kept.
func TestKeeps(t *testing.T) {
	c, err := decodeConfig("weir.yaml", strings.NewReader(`
oci: {upstreams: {docker.io: {}, private.example: {keep: no}}}
npm:
  upstreams:
    public: {url: http://127.0.0.1:1}
    acme: {url: http://127.0.0.1:2, packages: ["@acme/*"], keep: no}
`), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	packages, err := npm.NewUpstreams(c.npmRegistries(""), npm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	keeps := c.keeps(packages)
	for name, want := range map[registry.Name]bool{
		{Space: oci.Space, Repo: "docker.io/library/alpine"}: true,
		{Space: oci.Space, Repo: "private.example/a"}:        false,
		{Space: oci.Space, Repo: "elsewhere.example/a"}:      false,
		{Space: npmSpace, Repo: "lodash"}:                    true,
		{Space: npmSpace, Repo: "@acme/tool"}:                false,
		{Space: "pypi", Repo: "a"}:                           false,
	} {
		if got := keeps(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
