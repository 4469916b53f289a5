package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/cachetiers/origin/gcs"
	"github.com/weir-registry/weir/cachetiers/origin/s3"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
)

// originSchemes is what origin.blobs can begin with.
const originSchemes = s3.Scheme + "://, " + gcs.Scheme + "://, " + fileScheme + ":///"

// schemeOf is what is before "://" in an address, "" if it has none.
func schemeOf(address string) string {
	scheme, _, ok := strings.Cut(address, "://")
	if !ok {
		return ""
	}
	return scheme
}

// checkOrigin checks origin.blobs without touching anything.
func (c *Config) checkOrigin() error {
	if c.Origin.Blobs == "" {
		return nil
	}
	var err error
	switch schemeOf(c.Origin.Blobs) {
	case s3.Scheme:
		err = s3.Check(c.Origin.Blobs)
	case gcs.Scheme:
		err = gcs.Check(c.Origin.Blobs)
	default:
		var dir string
		if dir, err = directoryOf(c.Origin.Blobs); err == nil && dir == "" {
			err = errOrigin()
		}
	}
	if err != nil {
		return fmt.Errorf("origin.blobs: %w", err)
	}
	return nil
}

// errOrigin does not repeat the address, which may have credentials in it.
func errOrigin() error { return fmt.Errorf("an address that begins with none of %s", originSchemes) }

// openOrigin opens the store that origin.blobs names, nil if it names none. It
// spools in the directory spool, which is its own. What is behind the address is
// not asked for anything: a node starts when its bucket is dead. A directory must
// be there. A store that is an io.Closer is closed by the caller, after the last
// use; others live as long as the process.
func openOrigin(ctx context.Context, c *Config, spool string, log *slog.Logger) (registry.Store, error) {
	if c.Origin.Blobs == "" {
		return nil, nil
	}
	dir, err := directoryOf(c.Origin.Blobs)
	if err != nil {
		return nil, fmt.Errorf("origin.blobs: %w", err)
	}
	if dir != "" {
		store, err := openDirectory(dir, log)
		if err != nil {
			return nil, fmt.Errorf("origin.blobs: %w", err)
		}
		log.Info("origin store", "directory", dir)
		return store, nil
	}
	var bucket origin.Bucket
	switch schemeOf(c.Origin.Blobs) {
	case s3.Scheme:
		bucket, err = s3.Open(ctx, c.Origin.Blobs, s3.Options{})
	case gcs.Scheme:
		bucket, err = gcs.Open(ctx, c.Origin.Blobs, gcs.Options{})
	default:
		err = errOrigin()
	}
	if err != nil {
		return nil, fmt.Errorf("origin.blobs: %w", err)
	}
	store, err := origin.NewStore(bucket, origin.StoreOptions{Spool: spool, Log: log})
	if err != nil {
		return nil, fmt.Errorf("origin.blobs: %w", err)
	}
	log.Info("origin store", "bucket", bucket.String())
	return store, nil
}

// newKeeper puts the store for good, if there is one, in front of what is
// behind.
func (n *node) newKeeper(c *Config, data *dataDir, log *slog.Logger, behind registry.Source, packages *npm.Upstreams) error {
	store, err := openOrigin(context.Background(), c, data.file("spool"), log)
	if err != nil || store == nil {
		return err
	}
	if closer, ok := store.(io.Closer); ok {
		n.origin = closer
	}
	n.keeper = origin.NewKeeper(store, behind, origin.KeeperOptions{Name: schemeOf(c.Origin.Blobs), Keep: c.keeps(packages), Meter: n.metrics, Log: log})
	return nil
}

// kept has documents that upstreams gave kept for good too; nil: nothing is.
func (n *node) kept() func(registry.Name, registry.Descriptor) {
	if n.keeper == nil {
		return nil
	}
	return func(name registry.Name, d registry.Descriptor) {
		n.keeper.Landed(d, name, registry.Via{Fwd: "miss", Detail: "upstream"})
	}
}

// keeps is a function that reports whether what a name stands for is written to
// origin.blobs: its upstream's keep says so.
func (c *Config) keeps(packages *npm.Upstreams) func(registry.Name) bool {
	return func(n registry.Name) bool {
		switch n.Space {
		case oci.Space:
			name, _, _ := strings.Cut(n.Repo, "/")
			return c.OCI.Upstreams[name].Keep.On()
		case npmSpace:
			return c.NPM.Upstreams[packages.Called(n.Repo)].Keep.On()
		}
		return false
	}
}
