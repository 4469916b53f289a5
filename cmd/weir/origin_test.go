package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

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
		{"file://" + t.TempDir(), "file://"},
		{t.TempDir(), "file://"},
		{"file://blobs", "none"},
		{"file:///srv/blobs?keep=1", "none"},
		{"blobs", "none"},
	} {
		config := &Config{Origin: OriginConfig{Blobs: c.blobs}}
		store, err := openOrigin(context.Background(), config, filepath.Join(t.TempDir(), "spool"), slog.New(slog.DiscardHandler))
		if closes, ok := store.(io.Closer); ok {
			defer closes.Close()
		}
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

// TestOriginDirectory: a directory keeps blobs for good, and for one weir at a
// time; one that is missing is not made.
func TestOriginDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	c := &Config{Origin: OriginConfig{Blobs: "file://" + dir}}
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	if _, err := openOrigin(ctx, c, "", log); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Fatalf("a directory that is not there: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it was made")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	data := []byte("kept for good")
	d := registry.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for round := range 2 { // the second after a restart
		store, err := openOrigin(ctx, c, "", log)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openOrigin(ctx, c, "", log); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a second one: %v", err)
		}
		if round == 0 {
			stage, err := store.Stage(ctx, d)
			if err != nil {
				t.Fatal(err)
			}
			_, werr := stage.Write(data)
			if _, err := stage.Commit(ctx); err != nil || werr != nil {
				t.Fatal(err, werr)
			}
			stage.Close()
		}
		b, err := store.Open(ctx, registry.Want{Descriptor: d, Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(b); string(got) != string(data) || err != nil || b.Via() != (registry.Via{Detail: "origin"}) {
			t.Errorf("%q, %v, via %+v", got, err, b.Via())
		}
		b.Close()
		if err := store.(io.Closer).Close(); err != nil {
			t.Error(err)
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
