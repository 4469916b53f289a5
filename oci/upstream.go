package oci

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// Space is the Space of this protocol's names.
const Space = "oci"

const (
	defaultFresh    = time.Minute
	defaultStale    = 720 * time.Hour
	defaultNegative = 10 * time.Second
	maxManifest     = 8 << 20  // bytes
	maxList         = 32 << 20 // bytes of a list of tags or of referrers
)

// A Registry is one configured upstream.
type Registry struct {
	// Name is what clients and names call it: "docker.io", "ghcr.io".
	Name string
	// URL is where it is, without /v2/; "": https:// and the Name.
	URL string
	// Username and Password are for the registry and for token servers that
	// belong to it; both empty: anonymous.
	Username, Password string
	// Fresh is for how long a tag counts without asking again; 0: 1 minute.
	Fresh time.Duration
	// Stale is for how long after that it is given when the registry does not
	// answer; 0: 720 hours.
	Stale time.Duration
	// Negative is for how long "not found" is remembered; 0: 10 s.
	Negative time.Duration
	// Redirects are hosts with private addresses that the registry may
	// redirect to, as outbound.Options has them.
	Redirects []string
	// Realms are hosts of token servers that may be given the credentials
	// although they are neither on the registry's host nor below the same
	// registrable domain. The same patterns; they may be dialled too.
	Realms []string
	// Connections is how many requests may be open at it at once, and how many
	// connections to a host; 0: 64.
	Connections int
}

// Options are what all upstreams have in common. The zero value works.
type Options struct {
	// Default is the name of the upstream that a request without another sign
	// means; "": such requests are refused.
	Default string
	// UserAgent, HeaderTimeout and IdleTimeout are outbound's.
	UserAgent     string
	HeaderTimeout time.Duration
	IdleTimeout   time.Duration
	Meter         registry.Meter
	Log           *slog.Logger
	// Transport replaces the network in tests.
	Transport http.RoundTripper
}

// Upstreams are the configured registries as one registry.Upstream: the first
// part of a name's Repo says which of them it belongs to.
type Upstreams struct {
	remotes map[string]*remote // by canonical name
	names   []string           // sorted, for error texts
	def     string             // canonical name or ""
	log     *slog.Logger
}

var _ registry.Upstream = (*Upstreams)(nil)

// NewUpstreams makes Upstreams, or says what is wrong with the configuration.
func NewUpstreams(regs []Registry, o Options) (*Upstreams, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	u := &Upstreams{remotes: map[string]*remote{}, def: canonical(o.Default), log: o.Log}
	for _, reg := range regs {
		rm, err := newRemote(reg, o)
		if err != nil {
			return nil, err
		}
		if u.remotes[rm.name] != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "upstream %q is configured twice", rm.name)
		}
		u.remotes[rm.name] = rm
		u.names = append(u.names, rm.name)
	}
	slices.Sort(u.names)
	if u.def != "" && u.remotes[u.def] == nil {
		return nil, registry.Errorf(registry.ErrInvalid, "the default upstream %q is not configured", o.Default)
	}
	return u, nil
}

// hub is Docker Hub's name in image references.
const hub = "docker.io"

// canonical is the one name of an upstream: Docker Hub has three.
func canonical(name string) string {
	switch name = strings.ToLower(name); name {
	case "index.docker.io", "registry-1.docker.io":
		return hub
	}
	return name
}

// A remote is one upstream.
type remote struct {
	name   string
	client *outbound.Client
	auth   *authorizer
	policy registry.Policy // of what can change
	log    *slog.Logger
	load   outbound.Load // of the questions that are put through it
}

// under is rm for questions of another load.
func (rm *remote) under(load outbound.Load) *remote {
	other := *rm
	other.load = load
	return &other
}

func newRemote(reg Registry, o Options) (*remote, error) {
	name := canonical(reg.Name)
	if name == "" || strings.ContainsAny(name, "/ \t?#@") {
		return nil, registry.Errorf(registry.ErrInvalid, "%q is not a name for an upstream", reg.Name)
	}
	if reg.URL == "" {
		reg.URL = "https://" + name
		if name == hub {
			reg.URL = "https://registry-1.docker.io"
		}
	}
	base, err := url.Parse(reg.URL)
	if err != nil {
		return nil, registry.Errorf(registry.ErrInvalid, "upstream %q: %v", name, err)
	}
	base.Path = strings.TrimRight(base.Path, "/")
	realms, err := outbound.ParseHosts(reg.Realms)
	if err != nil {
		return nil, registry.Wrap(registry.ErrInvalid, err, "upstream "+name+": realms")
	}
	client, err := outbound.New(outbound.Options{
		Name: name, Base: base, Redirects: slices.Concat(reg.Redirects, reg.Realms), UserAgent: o.UserAgent,
		HeaderTimeout: o.HeaderTimeout, IdleTimeout: o.IdleTimeout, MaxConns: reg.Connections,
		Meter: o.Meter, Log: o.Log, Transport: o.Transport,
	})
	if err != nil {
		return nil, err
	}
	fresh := orElse(reg.Fresh, defaultFresh)
	return &remote{
		name: name, client: client, log: o.Log,
		auth: newAuthorizer(client, reg.Username, reg.Password, realms),
		policy: registry.Policy{Fresh: fresh, Refresh: fresh, Stale: orElse(reg.Stale, defaultStale),
			Negative: orElse(reg.Negative, defaultNegative)},
	}, nil
}

func orElse(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// of is the upstream that n belongs to, and its own name for n's repository.
func (u *Upstreams) of(n registry.Name) (*remote, string, error) {
	name, repo, ok := strings.Cut(n.Repo, "/")
	rm := u.remotes[name]
	if n.Space != Space || !ok || rm == nil {
		return nil, "", registry.Errorf(registry.ErrNotFound, "no upstream is configured for %s", n.Repo)
	}
	if !validRepo(repo) {
		return nil, "", registry.Errorf(registry.ErrInvalid, "%q is not the name of a repository", clip(repo))
	}
	return rm, repo, nil
}

// validRef reports whether an upstream can be asked about ref. A client's path
// has been parsed; another node's words have not, and what is put into an
// address with this node's credentials must not lead anywhere else.
func validRef(ref string) bool {
	if ref == tagsRef {
		return true
	}
	for _, prefix := range []string{blobsRef, referrersRef} {
		if d, ok := strings.CutPrefix(ref, prefix); ok {
			return validDigest(d)
		}
	}
	return validTag(ref) || validDigest(ref)
}

// Policy is how long an answer about n counts. What a digest names never
// changes: there only the upstream's right to take it back has a time.
func (u *Upstreams) Policy(n registry.Name) registry.Policy {
	p := registry.Policy{Fresh: defaultFresh, Stale: defaultStale, Negative: defaultNegative}
	if rm, _, err := u.of(n); err == nil {
		p = rm.policy
	}
	p.MaxDoc = maxManifest
	switch {
	case n.Ref == tagsRef:
		p.MaxDoc = maxList
	case strings.HasPrefix(n.Ref, referrersRef): // a manifest's size, and as short-lived as a tag
	case strings.Contains(n.Ref, ":"):
		p.Fresh, p.Refresh = max(p.Fresh, p.Stale), 0
	}
	return p
}

// Space is what registry.Service is to be told of this protocol.
func (u *Upstreams) Space() registry.Space {
	return registry.Space{Upstream: u, Policy: u.Policy, Documents: isDocument, Serves: u.serves, Lists: Lists, Means: means}
}

// serves reports whether an upstream is configured for n.
func (u *Upstreams) serves(n registry.Name) bool {
	_, _, err := u.of(n)
	return err == nil
}

// means is the digest that a name is about.
func means(n registry.Name) digest.Digest {
	if d, ok := strings.CutPrefix(n.Ref, blobsRef); ok {
		return digest.Digest(d)
	}
	if strings.Contains(n.Ref, ":") && !strings.Contains(n.Ref, "/") {
		return digest.Digest(n.Ref)
	}
	return ""
}

// isDocument reports whether n stands for a manifest or a list.
func isDocument(n registry.Name) bool { return !strings.HasPrefix(n.Ref, blobsRef) }

// Forms of a Ref beside tags and digests.
const (
	blobsRef     = "blobs/"
	tagsRef      = "tags/list"
	referrersRef = "referrers/"
)

// askTime is how long it may take until the header of the last answer, with the
// token and all: clients of a mirror give up after some 30 s.
const askTime = 20 * time.Second

// do sends one request about repo and answers the upstream's challenge if it
// has one. what is the path behind the repository's, or an absolute URL of the
// same registry. Every status is a success. ctx governs the body too.
func (rm *remote) do(ctx context.Context, method, repo, what string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancel(ctx)
	slow := time.AfterFunc(askTime, cancel)
	resp, err := rm.converse(ctx, method, repo, what, header)
	late := !slow.Stop()
	if late && err == nil {
		resp.Body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		if late {
			err = &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + rm.name, Public: rm.name + " does not answer", Err: err}
		}
		return nil, err
	}
	resp.Body = governed{resp.Body, cancel}
	return resp, nil
}

// governed is a body whose context ends with it.
type governed struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (g governed) Close() error {
	defer g.cancel()
	return g.ReadCloser.Close()
}

// converse is the exchange that a question takes: two requests, if the first
// is answered by a challenge that can be met.
func (rm *remote) converse(ctx context.Context, method, repo, what string, header http.Header) (*http.Response, error) {
	target := what
	if !strings.Contains(what, "://") {
		u := rm.client.Base()
		u.Path += "/v2/" + repo + "/"
		target = u.String() + what
	}
	for try := 0; ; try++ {
		req, err := http.NewRequest(method, target, nil)
		if err != nil {
			return nil, registry.Wrap(registry.ErrInvalid, err, "ask "+rm.name)
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("Accept-Encoding", "identity")
		used, err := rm.auth.authorize(ctx, req, repo)
		if err != nil {
			return nil, err
		}
		resp, err := rm.client.Do(ctx, req, rm.load)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try > 0 || !rm.own(resp) {
			return resp, nil
		}
		again, err := rm.auth.challenged(resp.Header.Values("Www-Authenticate"), repo, used)
		if err == nil && !again {
			return resp, nil
		}
		outbound.Discard(resp)
		if err != nil {
			return nil, err
		}
	}
}

// own reports whether resp came from the registry itself and not from a host
// that it redirected to, whose challenges are none of weir's business.
func (rm *remote) own(resp *http.Response) bool {
	return resp.Request != nil && outbound.HostPort(resp.Request.URL) == outbound.HostPort(rm.client.Base())
}
