package entitle

import (
	"context"
	"fmt"
	"time"

	"github.com/weir-registry/weir/registry"
)

// An outcome is why a call may go on or not.
type outcome int

const (
	admitted  outcome = iota
	unready           // there is no copy yet
	stale             // the copy is too old
	gone              // the account is not there, or another one
	disabled          // the account may do nothing
	outdated          // the password is another now
	void              // the token is revoked, or never was
	expired           // the token
	denied            // by a denial
	ungranted         // by the lack of a grant
	narrowed          // granted, but not what the token is for
	bounded           // granted, but not what the short-lived token is for
)

// A verdict is what comes of a call.
type verdict struct {
	outcome outcome
	// until is when an admission may end though nothing is changed.
	until int64
	// anyone reports that what admits is granted to anonymous.
	anyone bool
}

// decide applies the rules. It allocates nothing, but for a call about a space as
// a whole.
func (v *view) decide(c *registry.Call, now int64) verdict {
	l := level(c.Action)
	if l < 0 {
		return verdict{outcome: ungranted}
	}
	if c.Some {
		return v.some(c, now)
	}
	d := verdict{until: never}
	var rights *subject
	var weak bool // a token that was made on a node's word
	var own tally
	if c.Who.Name != "" {
		a, tok, bad := v.identify(&c.Who, now)
		if bad != admitted {
			return verdict{outcome: bad}
		}
		if tok != nil {
			rights, d.until, weak = tok.rights, tok.until, tok.Via != ""
		}
		v.compiled(a).tally(&own, c, l)
	}
	switch {
	case now < own.deny:
		return verdict{outcome: denied}
	case now < own.allow:
		d.until = min(d.until, own.allow)
	default:
		var anyone tally
		for _, s := range [...]*subject{v.anyone, v.configured} {
			if s != nil {
				s.tally(&anyone, c, l)
			}
		}
		if now < anyone.deny || now >= anyone.allow {
			return verdict{outcome: ungranted}
		}
		d.until, d.anyone = min(d.until, anyone.allow), true
	}
	if rights != nil {
		var t tally
		if rights.tally(&t, c, l); t.allow == 0 {
			return verdict{outcome: narrowed}
		}
	}
	if weak && c.Name.Space == "" {
		return verdict{outcome: narrowed} // no repository: it is to administer weir
	}
	if c.Who.Only != nil && !only(c, l) {
		return verdict{outcome: bounded}
	}
	return d
}

// identify finds the account of a named principal, and the token if it has one.
func (v *view) identify(p *registry.Principal, now int64) (*member, *token, outcome) {
	a, ok := v.accounts.get(p.Name)
	if !ok || a.UID != p.UID {
		return nil, nil, gone
	}
	if a.Disabled {
		return nil, nil, disabled
	}
	if p.Token == "" {
		if p.Secret != a.Secret {
			return nil, nil, outdated
		}
		return a, nil, admitted
	}
	tok, ok := v.tokens.get(p.Token)
	if !ok || tok.UID != a.UID || tok.Owner != a.Name {
		return nil, nil, void
	}
	if now >= tok.until {
		return nil, nil, expired
	}
	return a, tok, admitted
}

// only reports whether c is within what its short-lived token is for.
func only(c *registry.Call, l int) bool {
	for i := range c.Who.Only {
		o := &c.Who.Only[i]
		if level(o.Action) >= l && o.Space == c.Name.Space && o.Repo == c.Name.Repo {
			return true
		}
	}
	return false
}

// Admit implements registry.Guard. To admit allocates nothing; to refuse makes
// an error of some hundred bytes. Errors: ErrUnauthenticated for an anonymous
// principal without the right, and for an account or token that is no longer
// good; ErrDenied for a named one, with registry.ErrScope in it if it is the
// token that is for less; ErrUnavailable, with After, if this node has no copy
// of the entitlements yet, or one too old to act upon.
func (r *Replica) Admit(_ context.Context, c *registry.Call) error {
	if c.Who.Node {
		return nil // what its own clients may do, it has decided
	}
	v := r.view.Load()
	if d := r.decide(v, c); d.outcome != admitted {
		return r.refusal(v, c, d.outcome)
	}
	return nil
}

// decide is the view's, after what is about the copy as a whole.
func (r *Replica) decide(v *view, c *registry.Call) verdict {
	if v.database == "" {
		return verdict{outcome: unready}
	}
	now := r.o.Now()
	if !r.serves(c) && r.lapsed(now) {
		return verdict{outcome: stale}
	}
	return v.decide(c, now.UnixNano())
}

// serves reports whether c goes on however old the copy is.
func (r *Replica) serves(c *registry.Call) bool {
	switch {
	case c.Who.Name == "":
		return r.o.Past.Anonymous
	case c.Action == registry.Pull:
		return r.o.Past.Pull
	case c.Action == registry.Push:
		return r.o.Past.Push
	}
	return r.o.Past.Admin
}

const (
	afterUnready = 2 * time.Second
	afterStale   = 5 * time.Second
)

// refusal is what Admit answers.
func (r *Replica) refusal(v *view, c *registry.Call, o outcome) error {
	who := "anonymous clients"
	if c.Who.Name != "" {
		who = fmt.Sprintf("%.64q", c.Who.Name)
	}
	what := fmt.Sprintf("%.20s %.20s:%.200s", c.Action, c.Name.Space, c.Name.Repo)
	this := fmt.Sprintf("%.20s this", c.Action)
	switch {
	case c.Some:
		what = fmt.Sprintf("%.20s anything of %.20s", c.Action, c.Name.Space)
		this = what + " here"
	case c.Action == registry.Admin && c.Name.Space == "":
		what, this = "administer this weir", "administer this weir"
	}
	e := &registry.Error{Kind: registry.ErrDenied}
	switch o {
	case denied:
		e.Text = fmt.Sprintf("a denial keeps %s from %s (version %d)", who, what, v.version)
		e.Public = fmt.Sprintf("%s may not %s", who, this)
	case ungranted:
		if c.Who.Name == "" {
			e.Kind = registry.ErrUnauthenticated
		}
		e.Text = fmt.Sprintf("no grant lets %s %s (version %d)", who, what, v.version)
		e.Public = fmt.Sprintf("%s may not %s", who, this)
	case narrowed, bounded:
		e.Text = fmt.Sprintf("%s may %s, but its token is not for that (token %.64q, version %d)", who, what, c.Who.Token, v.version)
		e.Public = fmt.Sprintf("the token that was presented is for less than %s may do: it is not for this %.20s", who, c.Action)
		e.Err = registry.ErrScope
	default:
		return r.unidentified(&c.Who, o)
	}
	return e
}

// unidentified is the error for who cannot be told, or not now.
func (r *Replica) unidentified(p *registry.Principal, o outcome) *registry.Error {
	e := &registry.Error{Kind: registry.ErrUnauthenticated}
	switch o {
	case unready:
		e.Kind, e.After = registry.ErrUnavailable, afterUnready
		e.Text = "there is no copy of the entitlements yet"
		e.Public = "this node does not know yet who may do what; try again in a moment"
	case stale:
		since := r.State().Confirmed
		e.Kind, e.After = registry.ErrUnavailable, afterStale
		e.Text = fmt.Sprintf("the entitlements are past max_staleness: last confirmed %s", since.UTC().Format(time.RFC3339))
		e.Public = fmt.Sprintf("this node has heard nothing since %s from the one that decides who may do what", since.UTC().Format(time.RFC3339))
	case disabled:
		e.Text = fmt.Sprintf("the account %.64q is disabled", p.Name)
		e.Public = "this account is disabled"
	case outdated:
		e.Text = fmt.Sprintf("the password of %.64q has changed", p.Name)
		e.Public = "the password has changed: log in again"
	case void:
		e.Text = fmt.Sprintf("the token %.64q of %.64q is not there", p.Token, p.Name)
		e.Public = "this token has been revoked, or never was: log in again or make a new one"
	case expired:
		e.Text = fmt.Sprintf("the token %.64q of %.64q has expired", p.Token, p.Name)
		e.Public = "this token has expired: log in again or make a new one"
	default:
		e.Text = fmt.Sprintf("there is no account %.64q with the UID %.64q", p.Name, p.UID)
		e.Public = "this account is no longer there: log in again"
	}
	return e
}
