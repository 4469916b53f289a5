package entitle

import (
	"context"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

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
	elsewhere         // the token may not be used from that address
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
	var tok *token
	var own tally
	if c.Who.Name != "" {
		a, t, bad := v.identify(&c.Who, now)
		if t != nil && len(t.From) > 0 && c.Addr.IsValid() && !from(t.From, c.Addr) {
			bad = elsewhere
		}
		if bad != admitted {
			return verdict{outcome: bad}
		}
		if tok = t; tok != nil {
			d.until = tok.until
		}
		v.tally(&own, v.compiled(a), c, l)
	}
	switch {
	case now < own.deny:
		return verdict{outcome: denied}
	case now < own.allow:
		d.until = min(d.until, own.allow)
	default:
		anyone := v.open(c, l)
		if now < anyone.deny || now >= anyone.allow {
			return verdict{outcome: ungranted}
		}
		d.until, d.anyone = min(d.until, anyone.allow), true
	}
	if tok != nil && tok.rights != nil {
		var t tally
		if t.list(tok.rights, c, l); t.allow == 0 {
			return verdict{outcome: narrowed}
		}
	}
	if tok != nil && tok.Via != "" && c.Name.Space == "" {
		// It was made on a node's word, and no repository is to administer weir.
		return verdict{outcome: narrowed}
	}
	if c.Who.Only != nil && !only(c, l) {
		return verdict{outcome: bounded}
	}
	return d
}

// open adds up what is granted to anonymous and matches c.
func (v *view) open(c *registry.Call, level int8) tally {
	var t tally
	t.list(v.configured, c, level)
	if v.anyone != nil {
		v.tally(&t, v.anyone, c, level)
	}
	return t
}

// list adds up those of some grants that match c.
func (t *tally) list(grants []grant, c *registry.Call, level int8) {
	for i := range grants {
		g := &grants[i]
		if space := g.space.Value(); space == "" || space == c.Name.Space && g.matches(c.Name.Repo) {
			t.add(g, level)
		}
	}
}

// identify finds the account of a named principal, and the token if it has one.
func (v *view) identify(p *registry.Principal, now int64) (*member, *token, outcome) {
	a := v.account(p.Name)
	if a == nil || a.UID != p.UID {
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
	tok := v.token(p.Token)
	if tok == nil || tok.UID != a.UID || tok.Owner != a.Name {
		return nil, nil, void
	}
	if now >= tok.until {
		return nil, nil, expired
	}
	return a, tok, admitted
}

// only reports whether c is within what its short-lived token is for.
func only(c *registry.Call, l int8) bool {
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

// upTo is the beginning of a text from outside, of so many bytes at most.
func upTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func appendWho(b []byte, c *registry.Call) []byte {
	if c.Who.Name == "" {
		return append(b, "anonymous clients"...)
	}
	return strconv.AppendQuote(b, upTo(c.Who.Name, 64))
}

func appendWhat(b []byte, c *registry.Call) []byte {
	if c.Action == registry.Admin && c.Name.Space == "" {
		return append(b, "administer this weir"...)
	}
	b = append(append(b, upTo(string(c.Action), 20)...), ' ')
	if c.Some {
		return append(append(b, "anything of "...), upTo(c.Name.Space, 20)...)
	}
	b = append(append(b, upTo(c.Name.Space, 20)...), ':')
	return append(b, upTo(c.Name.Repo, 200)...)
}

func appendVersion(b []byte, v *view) []byte {
	return append(strconv.AppendUint(append(b, "version "...), v.version, 10), ')')
}

func appendMayNot(b []byte, c *registry.Call) []byte {
	b = append(appendWho(b, c), " may not "...)
	switch {
	case c.Some:
		return append(appendWhat(b, c), " here"...)
	case c.Action == registry.Admin && c.Name.Space == "":
		return appendWhat(b, c)
	}
	return append(append(b, upTo(string(c.Action), 20)...), " this"...)
}

// refusal is what Admit answers. What it says is made in one piece, with the
// part for the client at the end, because clients that are refused ask again and
// again.
func (r *Replica) refusal(v *view, c *registry.Call, o outcome) error {
	e := &registry.Error{Kind: registry.ErrDenied}
	var room [512]byte
	b := room[:0]
	public := 0
	switch o {
	case denied:
		b = appendWhat(append(appendWho(append(b, "a denial keeps "...), c), " from "...), c)
		b = appendVersion(append(b, " ("...), v)
		public = len(b)
		b = appendMayNot(b, c)
	case ungranted:
		if c.Who.Name == "" {
			e.Kind = registry.ErrUnauthenticated
		}
		b = appendWhat(append(appendWho(append(b, "no grant lets "...), c), ' '), c)
		b = appendVersion(append(b, " ("...), v)
		public = len(b)
		b = appendMayNot(b, c)
	case narrowed, bounded:
		b = appendWhat(append(appendWho(b, c), " may "...), c)
		b = append(b, ", but its token is not for that (token "...)
		b = appendVersion(append(strconv.AppendQuote(b, upTo(c.Who.Token, 64)), ", "...), v)
		public = len(b)
		b = append(b, "the token that was presented is for less than "...)
		b = append(append(appendWho(b, c), " may do: it is not for this "...), upTo(string(c.Action), 20)...)
		e.Err = registry.ErrScope
	case elsewhere:
		return misplaced(c.Who.Token, c.Addr)
	default:
		return r.unidentified(&c.Who, o)
	}
	text := string(b)
	e.Text, e.Public = text[:public], text[public:]
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
