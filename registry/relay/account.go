package relay

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/weir-registry/weir/registry"
)

// The methods of registry.Logins and registry.Tokens, as they are asked for.
const (
	passwordVerb = "password"
	exchangeVerb = "exchange"
	beginVerb    = "begin"
	approveVerb  = "approve"
	claimVerb    = "claim"
	createVerb   = "create-token"
	revokeVerb   = "revoke-token"
	listVerb     = "list-tokens"
)

// question is the body of a question about an account; each verb uses some of
// it.
type question struct {
	Name     string             `json:"name,omitempty"`
	Password string             `json:"password,omitempty"`
	JWT      string             `json:"jwt,omitempty"`
	ID       string             `json:"id,omitempty"`
	From     netip.Addr         `json:"from,omitzero"`
	By       registry.Principal `json:"by,omitzero"`
	Spec     registry.TokenSpec `json:"spec,omitzero"`
}

// reply is the body of the answer.
type reply struct {
	Principal registry.Principal `json:"principal,omitzero"`
	Token     registry.NewToken  `json:"token,omitzero"`
	ID        string             `json:"id,omitempty"`
	Tokens    []registry.Token   `json:"tokens,omitempty"`
	// Version is one at which what was done is in the entitlements.
	Version uint64 `json:"version,omitempty"`
}

// parseQuestion reads a question. Its errors have nothing of it in them.
func parseQuestion(text []byte) (q question, err error) {
	if decode(text, &q) != nil {
		return q, undone(registry.ErrInvalid, "the question about an account is malformed")
	}
	if q.By.Node {
		return q, undone(registry.ErrInvalid, "a node has no account")
	}
	return q, nil
}

// account answers a node's question about an account. Neither it nor the answer is
// logged.
func (h *Handler) account(w http.ResponseWriter, r *http.Request, node, verb string) {
	if h.c.Logins == nil || h.c.Tokens == nil {
		refuse(w, undone(registry.ErrUnavailable, "this node knows nobody who decides about accounts"))
		return
	}
	if asked, own := r.Header.Get(databaseHeader), h.c.Source.State().Database; asked != "" && own != "" && asked != own {
		refuse(w, undone(registry.ErrConflict, "this node's accounts are those of another database"))
		return
	}
	text, err := body(w, r, maxQuestion)
	if err != nil {
		refuse(w, err)
		return
	}
	// Not before the question is here: a node that is slow to ask holds up no other.
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	default:
		refuse(w, undone(registry.ErrUnavailable, "too much is asked about accounts at once"))
		return
	}
	q, err := parseQuestion(text)
	if err != nil {
		refuse(w, err)
		return
	}
	q.By.Via = node
	a, err := h.decide(r, verb, q)
	if err != nil {
		refuse(w, err)
		return
	}
	if text, err = json.Marshal(a); err != nil || len(text) > maxAnswer {
		refuse(w, registry.Errorf(registry.ErrTooLarge, "the answer is too long to be passed on"))
		return
	}
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Type", "application/json")
	head.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(text)
}

// decide has it decided.
func (h *Handler) decide(r *http.Request, verb string, q question) (a reply, err error) {
	ctx := r.Context()
	switch verb {
	case passwordVerb:
		a.Principal, err = h.c.Logins.Password(ctx, q.Name, q.Password, q.From)
	case exchangeVerb:
		a.Token, err = h.c.Logins.Exchange(ctx, q.JWT, q.From)
	case beginVerb:
		a.ID, err = h.c.Logins.Begin(ctx, q.From)
	case approveVerb:
		err = h.c.Logins.Approve(ctx, q.ID, q.By)
	case claimVerb:
		a.Token, err = h.c.Logins.Claim(ctx, q.ID, q.From)
	case createVerb:
		a.Token, err = h.c.Tokens.CreateToken(ctx, q.By, q.Spec)
	case revokeVerb:
		// What this node decides is in its own copy when it returns, and what it
		// has asked for too, if its copy is not very late.
		err = h.c.Tokens.RevokeToken(ctx, q.By, q.ID)
		a.Version = h.c.Source.State().Version
	case listVerb:
		a.Tokens, err = h.c.Tokens.ListTokens(ctx, q.By)
	default:
		err = undone(registry.ErrInvalid, "that is not asked about accounts here; is this node of another version?")
	}
	return a, err
}
