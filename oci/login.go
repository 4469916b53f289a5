package oci

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// TokenPath is where [TokenHandler] has to be, on the same host as /v2/:
// challenges send clients there.
const TokenPath = "/token"

// The errors of a Bearer challenge (RFC 6750 section 3.1).
const (
	noError           = ""
	invalidToken      = "invalid_token"
	insufficientScope = "insufficient_scope"
)

// challenge asks the client to log in: WWW-Authenticate of a 401. repo is what
// the scope is to name, as a registry.Name does: with the upstream in front,
// since of a request with ?ns= the client repeats nothing to the token server;
// "" is none.
func (h *handler) challenge(w http.ResponseWriter, r *http.Request, repo, code string) {
	base, err := reply.Base(r, h.publicURL)
	if err != nil {
		return // whoever sends such a Host gets the bare 401
	}
	var b strings.Builder
	b.WriteString(`Bearer realm="` + base + TokenPath + `",service="` + service(base) + `"`)
	if repo != "" {
		b.WriteString(`,scope="repository:` + repo + `:pull"`)
	}
	if code != noError {
		b.WriteString(`,error="` + code + `"`)
	}
	w.Header().Set("WWW-Authenticate", b.String())
}

// service is what this registry is called in a challenge: its host. Nothing
// depends on it; clients keep their tokens by it.
func service(base string) string {
	_, host, _ := strings.Cut(base, "://")
	host, _, _ = strings.Cut(host, "/")
	return host
}

// refusal is what a failure to serve c is to the client: the error that counts,
// and whether logging in (again) would help, with the challenge's error code.
//
// An upstream's 401 or 403 is not asked about here: the client's credentials are
// none of its business, nor its own the client's. That it is one shows in the
// guard having nothing against the call.
func (h *handler) refusal(ctx context.Context, c *registry.Call, err error) (code string, login bool, counts error) {
	kind := registry.KindOf(err)
	if h.gate == nil || kind != registry.ErrUnauthenticated && kind != registry.ErrDenied || h.would(ctx, *c) == nil {
		return noError, false, err
	}
	if kind == registry.ErrUnauthenticated && !c.Who.Anonymous() {
		return invalidToken, true, err
	}
	if c.Who.Only != nil && (kind == registry.ErrUnauthenticated || errors.Is(err, registry.ErrScope)) {
		// A short-lived token was issued for less. With one for more this would
		// do, unless what it was issued for does not reach either.
		wide := *c
		wide.Who.Only = nil
		if err = h.would(ctx, wide); err == nil {
			return insufficientScope, true, registry.Errorf(registry.ErrUnauthenticated, "the token was issued for something else than %s", c.Name.Repo)
		}
		kind = registry.KindOf(err)
	}
	return noError, kind == registry.ErrUnauthenticated, explained(c, err)
}

// would is what the guard would say to c.
func (h *handler) would(ctx context.Context, c registry.Call) error {
	c.Whether = true
	return h.service.Guard.Admit(ctx, &c)
}

// explained says to a person why a call was refused, and what to do. It names
// what was asked for, and nothing of what there is.
func explained(c *registry.Call, err error) error {
	e := &registry.Error{Kind: registry.KindOf(err), Text: "refused", Err: err}
	switch {
	case e.Kind == registry.ErrUnauthenticated:
		e.Public = "anonymous clients may not " + string(c.Action) + " " + c.Name.Repo + ": log in"
	case e.Kind == registry.ErrDenied && errors.Is(err, registry.ErrScope):
		e.Public = c.Who.Name + " may " + string(c.Action) + " " + c.Name.Repo + ", but the token is for less"
	case e.Kind == registry.ErrDenied:
		e.Public = c.Who.Name + " may not " + string(c.Action) + " " + c.Name.Repo + ": ask whoever runs this registry for a grant"
	default:
		return err
	}
	return e
}

// failCall answers with why a call failed.
func (h *handler) failCall(w http.ResponseWriter, r *http.Request, req *request, err error) {
	code, login, err := h.refusal(r.Context(), &req.call, err)
	if login {
		h.challenge(w, r, req.call.Name.Repo, code)
	}
	fail(w, r, req.kind, err)
}

// failWho answers a request whose credentials are of no use.
func (h *handler) failWho(w http.ResponseWriter, r *http.Request, k kind, repo string, err error) {
	if registry.KindOf(err) == registry.ErrUnauthenticated {
		h.challenge(w, r, repo, invalidToken)
	}
	fail(w, r, k, err)
}

// ping answers GET /v2/: this is a registry. Clients learn here whether they
// have to log in, and "docker login" whether it has: so an anonymous client is
// sent to do that unless there is nothing it could gain.
func (h *handler) ping(w http.ResponseWriter, r *http.Request) {
	who, err := h.gate.Who(r)
	reply.Identified(w, who)
	switch {
	case err != nil:
		h.failWho(w, r, other, "", err)
		return
	case h.gate != nil && who.Anonymous() && (h.open == nil || !h.open()):
		h.challenge(w, r, "", noError)
		fail(w, r, other, registry.Errorf(registry.ErrUnauthenticated, "log in first"))
		return
	}
	reply.Record(w, registry.Via{})
	writeJSON(w, r, http.StatusOK, "application/json", struct{}{})
}
