package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/ops"
	"github.com/weir-registry/weir/registry/reply"
	"github.com/weir-registry/weir/registry/trust"
)

const (
	npmSpace  = "npm"
	npmPrefix = "/npm"
	// npmAtRoot is where npm's clients look at the root whatever the prefix.
	npmAtRoot = "/-/npm/v1/oidc/"
	// inMemory is the largest blob that is kept in memory: manifests and
	// packuments, not layers, which the kernel copies from the disk anyway.
	inMemory = 1 << 20
	// slowDocuments is how long an npm registry may think about a packument of
	// many megabytes. No client waits so long: it is told to come again.
	slowDocuments = time.Minute
)

// A node is everything that answers, wired together.
type node struct {
	service *registry.Service
	witness *registry.Witness // of what those behind gave
	names   *names.Bolt
	disks   *cachetiers.Disks
	metrics *ops.Metrics
	handler http.Handler
	npm     bool           // whether npm packages are served
	trust   *trust.Trust   // who other nodes are; nil: there are none
	next    *peer.Group    // nodes behind; nil: none
	peers   *peer.Group    // nodes beside, and this one; nil: none
	keeper  *origin.Keeper // the store for good, in front of what is behind; nil: none
	origin  io.Closer      // that store, if it wants to be closed; nil: it does not
	tiers   http.Handler   // for nodes in front; nil: none

	entitled *entitled // who may do what

	onDisk    registry.Store // the tier of disks, with what is behind it
	scrubbing sync.Mutex     // held while a scrub runs
}

// newNode opens what is in the data directory and wires it up. npmURL is the
// registry of the npm upstream that has no url; noNPM says why there is none.
func newNode(c *Config, data *dataDir, log *slog.Logger, npmURL string, noNPM error) (n *node, err error) {
	n = &node{metrics: ops.NewMetrics(version)}
	if c.meetsOthers() {
		if n.trust, err = openTrust(c, log, n.metrics); err != nil {
			return nil, err
		}
	}
	if n.entitled, err = openEntitled(c, data, log, n.metrics, n.trust); err != nil {
		return nil, err
	}
	agent := "weir/" + version
	images, err := oci.NewUpstreams(c.ociRegistries(), oci.Options{Default: *c.OCI.Default, UserAgent: agent, Meter: n.metrics, Log: log})
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	var registries []npm.Registry
	if noNPM == nil {
		registries = c.npmRegistries(npmURL)
	}
	packages, err := npm.NewUpstreams(registries, npm.Options{UserAgent: agent, HeaderTimeout: slowDocuments, Meter: n.metrics, Log: log})
	if err != nil {
		return nil, fmt.Errorf("npm: %w", err)
	}
	direct := origin.Switch{oci.Space: images, npmSpace: packages}
	if noNPM != nil {
		direct[npmSpace] = unknownNPM{noNPM}
	}
	n.witness = new(registry.Witness)
	behind, err := n.newBehind(c, log, n.witness.Over(direct))
	if err != nil {
		return nil, err
	}
	if err := n.newKeeper(c, data, log, behind, packages); err != nil {
		return nil, err
	}
	blobs, bindings, err := n.newTiers(c, data, log, behind)
	if err != nil {
		return nil, err
	}
	// All bindings are an upstream's so far: they can be had again.
	if n.names, err = names.Open(data.file("names.db"), names.Options{Volatile: true, Log: log}); err != nil {
		return nil, err
	}
	n.service = &registry.Service{
		Names:   n.names,
		Blobs:   blobs,
		Spaces:  map[string]registry.Space{oci.Space: n.asked(images.Space(), bindings, behind), npmSpace: n.asked(packages.Space(), bindings, behind)},
		Guard:   n.entitled.guard,
		Kept:    n.kept(),
		Prove:   n.entitled.prove,
		Witness: n.witness,
		Meter:   n.metrics,
		Log:     log,
	}
	n.npm = len(registries) > 0
	if c.Tiers != "" {
		n.tiers = n.trust.Handler(n.entitled.behind(peer.New(peer.Config{Service: n.service, Node: trust.NodeOf, Log: log})))
	}
	n.handler = n.routes(c, log, images, packages, noNPM)
	return n, nil
}

// newTiers is where blobs are: in memory, on disk, behind; and whom to ask for
// names.
func (n *node) newTiers(c *Config, data *dataDir, log *slog.Logger, behind registry.Upstream) (registry.Store, registry.Upstream, error) {
	var err error
	if n.disks, err = openDisks(c, data, log, n.metrics); err != nil {
		return nil, nil, fmt.Errorf("cache on disk: %w", err)
	}
	n.countDisks()
	memory := cachetiers.NewMemory(int64(c.Cache.Memory))
	n.metrics.TierBytes("disk", n.disks.Bytes)
	n.metrics.TierBytes("memory", memory.Bytes)
	onDisk := cachetiers.Options{Name: "disk", Meter: n.metrics, Log: log}
	var behindDisk registry.Source = behind
	if n.keeper != nil {
		n.keeper.From(n.disks)
		onDisk.Landed, behindDisk = n.keeper.Landed, n.keeper
	}
	n.onDisk = cachetiers.NewTier(n.disks, behindDisk, onDisk)
	far, bindings, err := n.newPeers(c, log, onDisk, n.onDisk, behind)
	if err != nil {
		return nil, nil, err
	}
	small := min(inMemory, int64(c.Cache.Memory)/16)
	return cachetiers.NewTier(memory, far, cachetiers.Options{Name: "memory", Meter: n.metrics, Log: log,
		Keep: func(w registry.Want) bool { return w.Size >= 0 && w.Size <= small }}), bindings, nil
}

// routes sends each request to its protocol by the beginning of its path,
// which is passed on untouched: http.ServeMux would clean it, and so answer
// one repository's request with a redirect to another.
func (n *node) routes(c *Config, log *slog.Logger, images *oci.Upstreams, packages *npm.Upstreams, noNPM error) http.Handler {
	wrap := func(space string, h http.Handler) http.Handler {
		return reply.Handler(h, reply.Options{Space: space, Log: log, Meter: n.metrics})
	}
	e := n.entitled
	front := oci.Config{Service: n.service, Upstreams: images, Log: log, Gate: e.gate, Tokens: e.tokens, PublicURL: c.PublicURL, Open: e.open(oci.Space)}
	v2, token := wrap(oci.Space, oci.New(front)), wrap(oci.Space, oci.TokenHandler(front))
	packagesHandler := npm.New(npm.Config{Service: n.service, Upstreams: packages, PublicURL: c.PublicURL, Prefix: npmPrefix, Log: log,
		Gate: e.gate, Logins: e.logins, Tokens: e.tokens, Identities: e.replica, Open: e.open(npmSpace)})
	if !n.npm {
		packagesHandler = npmOff(noNPM)
	}
	underNPM := wrap(npmSpace, packagesHandler)
	rest := wrap("", http.HandlerFunc(about))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.EscapedPath(); {
		case path == "/v2" || strings.HasPrefix(path, "/v2/"):
			v2.ServeHTTP(w, r)
		case path == oci.TokenPath:
			token.ServeHTTP(w, r)
		case path == npmPrefix || strings.HasPrefix(path, npmPrefix+"/"), strings.HasPrefix(path, npmAtRoot):
			underNPM.ServeHTTP(w, r)
		default:
			rest.ServeHTTP(w, r)
		}
	})
}

// unknownNPM is the npm registry behind a node that does not know its address.
// Nodes in front must not take that for a package that does not exist.
type unknownNPM struct{ why error }

// Open implements registry.Source.
func (u unknownNPM) Open(context.Context, registry.Want) (registry.Blob, error) {
	return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: "npm packages are not served here", Err: u.why}
}

// Resolve implements registry.Upstream.
func (u unknownNPM) Resolve(ctx context.Context, _ registry.Question) (registry.Binding, io.ReadCloser, error) {
	_, err := u.Open(ctx, registry.Want{})
	return registry.Binding{}, nil, err
}

// npmOff answers npm clients of a node that has no npm registry behind it. why
// is nil if none is wanted: then packages are not found here, now or later. A
// registry that is wanted and whose address is not known is no reason for a
// client to believe that a package does not exist.
func npmOff(why error) http.Handler {
	status := http.StatusServiceUnavailable
	if why == nil {
		status, why = http.StatusNotFound, errors.New("no npm upstream is configured")
	}
	text, err := json.Marshal(map[string]string{"error": "npm packages are not served here: " + why.Error()})
	if err != nil {
		panic(err) // a map of strings
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "60")
		}
		reply.Record(w, registry.Via{})
		w.WriteHeader(status)
		w.Write(text)
	})
}

// about answers what is neither protocol's.
func about(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.URL.Path != "/" {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintln(w, "weir: there is nothing here; container images are under /v2/, npm packages under /npm/;\n"+
			"/healthz, /readyz and /metrics are on the ops address, which is 127.0.0.1:5002 unless the configuration says otherwise")
		return
	}
	fmt.Fprintln(w, "This is weir, a caching registry edge: container images under /v2/, npm packages under /npm/.")
}

// Close writes out what is kept.
func (n *node) Close() error {
	errs := []error{n.entitled.Close()}
	if n.keeper != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainFor)
		defer cancel()
		if err := n.keeper.Close(ctx); err != nil {
			n.service.Log.Warn("stop", "err", err) // they are still in the cache; the next pull elsewhere fetches them
		}
	}
	if n.origin != nil {
		errs = append(errs, n.origin.Close())
	}
	for _, g := range []*peer.Group{n.next, n.peers} {
		if g != nil {
			errs = append(errs, g.Close())
		}
	}
	return errors.Join(append(errs, n.names.Close(), n.disks.Close())...)
}
