package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// askTime is how long a question may take that can be put again, and onceTime
	// one that cannot.
	askTime  = 5 * time.Second
	onceTime = 15 * time.Second
	// knownTime is for how long a new token, or the end of one, is waited for in
	// this node's copy.
	knownTime = 2 * time.Second
	// askAgain is when to try again if no node answers.
	askAgain = 2 * time.Second
)

// repeatable reports whether a question may be put again although it may have
// been executed: it changes nothing, or nothing that matters. A login that was
// begun and is not claimed ends by itself; a token that is revoked twice is
// revoked.
func repeatable(verb string) bool {
	switch verb {
	case passwordVerb, beginVerb, listVerb, revokeVerb:
		return true
	}
	return false
}

// Password implements registry.Logins.
func (c *Client) Password(ctx context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	a, err := c.ask(ctx, passwordVerb, question{Name: name, Password: password, From: from})
	return a.Principal, err
}

// Exchange implements registry.Logins.
func (c *Client) Exchange(ctx context.Context, jwt string, from netip.Addr) (registry.NewToken, error) {
	return c.token(ctx, exchangeVerb, question{JWT: jwt, From: from})
}

// Begin implements registry.Logins.
func (c *Client) Begin(ctx context.Context, from netip.Addr) (string, error) {
	a, err := c.ask(ctx, beginVerb, question{From: from})
	return a.ID, err
}

// Approve implements registry.Logins.
func (c *Client) Approve(ctx context.Context, id string, p registry.Principal) error {
	_, err := c.ask(ctx, approveVerb, question{ID: id, By: p})
	return err
}

// Claim implements registry.Logins.
func (c *Client) Claim(ctx context.Context, id string, from netip.Addr) (registry.NewToken, error) {
	return c.token(ctx, claimVerb, question{ID: id, From: from})
}

// CreateToken implements registry.Tokens.
func (c *Client) CreateToken(ctx context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	return c.token(ctx, createVerb, question{By: by, Spec: spec})
}

// RevokeToken implements registry.Tokens. A node that was asked and gave no
// answer may have done it: then that there is no such token is what was wanted.
func (c *Client) RevokeToken(ctx context.Context, by registry.Principal, id string) error {
	a, err := c.ask(ctx, revokeVerb, question{By: by, ID: id})
	if err == nil {
		c.known(ctx, a.Version)
	}
	return err
}

// ListTokens implements registry.Tokens.
func (c *Client) ListTokens(ctx context.Context, by registry.Principal) ([]registry.Token, error) {
	a, err := c.ask(ctx, listVerb, question{By: by})
	return a.Tokens, err
}

// token asks for a new token, and waits until this node knows it.
func (c *Client) token(ctx context.Context, verb string, q question) (registry.NewToken, error) {
	a, err := c.ask(ctx, verb, q)
	if err == nil {
		c.known(ctx, a.Token.Version)
	}
	return a.Token, err
}

// known waits until this node's copy has a version. If that takes too long the
// answer is given all the same: what has been made cannot be asked for again.
func (c *Client) known(ctx context.Context, version uint64) {
	if version == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, knownTime)
	defer cancel()
	if err := c.o.Copy.Wait(ctx, version); err != nil {
		c.o.Meter.Event("entitlements late", "account")
		c.o.Log.Warn("what was decided about an account is not in this node's copy of the entitlements yet", "version", version, "have", c.o.Copy.State().Version, "err", err)
	}
}

// ask puts a question to the nodes behind, one after the other, until one of
// them has an answer. After one that may have executed it only a question that is
// repeatable is put to the next. What the node with the database said is the
// answer, whatever it is.
func (c *Client) ask(ctx context.Context, verb string, q question) (reply, error) {
	text, err := json.Marshal(q)
	if err != nil || len(text) > maxQuestion {
		return reply{}, registry.Errorf(registry.ErrTooLarge, "what was presented is too long")
	}
	lost := false // a node may have done it, and did not say
	last := error(registry.Errorf(registry.ErrUnavailable, "the nodes behind are of another database"))
	for _, n := range c.order() {
		a, err := c.put(ctx, n, verb, text)
		var sent *lostError
		switch {
		case err == nil:
			return a, nil
		case errors.As(err, &sent):
			if last = err; !repeatable(verb) || ctx.Err() != nil {
				return reply{}, &registry.Error{Kind: registry.ErrUnavailable, Text: verb,
					Public: "the node that decides was asked and gave no answer; whether it has been done is not known", After: askAgain, Err: err}
			}
			lost = true
		case errors.Is(err, errUndone) && ctx.Err() == nil && registry.KindOf(err) != registry.ErrInvalid:
			if last = err; registry.KindOf(err) == registry.ErrConflict {
				c.failed(n, err)
			}
		case lost && verb == revokeVerb && registry.KindOf(err) == registry.ErrNotFound:
			return reply{}, nil
		default:
			return reply{}, err
		}
	}
	e := &registry.Error{Kind: registry.ErrUnavailable, Text: "ask the nodes behind about an account (" + verb + "): " + last.Error(),
		Public: "the node that decides about accounts cannot be asked just now; try again in a moment", After: askAgain}
	if !lost {
		e.Err = errUndone
	}
	return reply{}, e
}

// lostError is the failure of a question that may have been executed.
type lostError struct{ err error }

// Error implements error.
func (e *lostError) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *lostError) Unwrap() error { return e.err }

// put puts a question to one node. Errors are a *lostError if nobody knows what
// became of it, errUndone if it has not been executed, or what was decided.
func (c *Client) put(ctx context.Context, n *behind, verb string, text []byte) (a reply, err error) {
	limit := onceTime
	if repeatable(verb) {
		limit = askTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var sent atomic.Bool
	// The transport tries again by itself only what it has not sent.
	trace := &httptrace.ClientTrace{GetConn: func(string) { sent.Store(false) }, GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, n.address+accountPath+verb, bytes.NewReader(text))
	if err != nil {
		return a, undone(registry.ErrUnavailable, "ask "+n.host)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(databaseHeader, c.o.Copy.State().Database)
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		if !sent.Load() { // it has not had a connection
			return a, &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + n.host + ": " + err.Error(), Public: "a node behind cannot be reached", Err: errUndone}
		}
		return a, &lostError{registry.Wrap(registry.ErrUnavailable, err, "ask "+n.host)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(kindHeader) != "" {
		err := failed(resp, n.host)
		if resp.Header.Get(kindHeader) == "" && !errors.Is(err, errUndone) {
			return a, &lostError{err}
		}
		return a, err
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(answer) > maxAnswer || decode(answer, &a) != nil {
		return reply{}, &lostError{registry.Errorf(registry.ErrUnavailable, "the answer of %s did not arrive, or is none", n.host)}
	}
	return a, nil
}
