// Package oidc turns JWTs of configured issuers into what rules on their claims
// say: a CI job of GitHub or GitLab, or a pod of Kubernetes, shows the token that
// its platform has given it and needs no secret.
//
// A JWT is taken as often as it is shown, until it expires: it is no one-time
// password, and a job that pulls from two nodes shows it twice. What it is
// exchanged for is as short-lived as the rule says.
//
// The signature is checked by go-oidc with the keys that the issuer publishes.
// They are asked for when first needed, and again when a token is signed with
// none of those known (an issuer changes its keys) or they are a quarter of an
// hour old; an issuer that does not answer then leaves those known in force.
package oidc

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/weir-registry/weir/registry"
)

const (
	// maxJWT is the length up to which a JWT is looked at. GitHub's are 2 KiB.
	maxJWT = 16 << 10
	// leeway is how far clocks may be apart where a token says from when on it is
	// good. It does not lengthen its life.
	leeway = time.Minute
	// defaultLifetime is that of rules that say none.
	defaultLifetime = 15 * time.Minute
)

// An Issuer signs JWTs, and is believed what it says in them.
type Issuer struct {
	// URL is what its tokens have as "iss", to the letter. It is https, or the
	// host is this machine.
	URL string
	// Audience must be among its tokens' "aud".
	Audience string
	// JWKS is where its keys are. "": where its discovery document
	// (URL/.well-known/openid-configuration) says.
	JWKS string
	// CA is a PEM file of what the issuer's own certificate is signed by. "": the
	// system's authorities.
	CA string
	// Rules say what its tokens stand for. The first one that matches does.
	Rules []Rule
}

// A Rule says what tokens with certain claims stand for.
type Rule struct {
	// Claims are patterns for claims, all of which must match; at least one. In a
	// pattern "*" is any number of any characters, and the rest is itself. A
	// claim within another is named by the path to it, with "." or "/" between
	// ("kubernetes.io/serviceaccount/name"). Numbers and booleans are matched as
	// they are written; of a list, one element has to match. A claim that is
	// missing, or that its name leads to in two ways, matches nothing.
	Claims map[string]string
	// Robot is the name of the account that they stand for.
	Robot string
	// Rights are what they are good for, as in registry.TokenSpec.
	Rights []string
	// Lifetime is how long what they are exchanged for is good; 0: 15 minutes.
	Lifetime time.Duration
}

// Options are optional; their zero value is right.
type Options struct {
	Log   *slog.Logger
	Meter registry.Meter
	Now   func() time.Time
}

// A Match is what a JWT stands for.
type Match struct {
	// Issuer and Subject are its own.
	Issuer, Subject string
	// Robot, Rights and Lifetime are the rule's.
	Robot    string
	Rights   []string
	Lifetime time.Duration
	// Expires is when the JWT does.
	Expires time.Time
}

// An Exchange checks JWTs. It may be used by many at once, and needs no closing:
// nothing of it goes on when nobody asks.
type Exchange struct {
	issuers map[string][]*issuer // by URL; several differ in their audience
	now     func() time.Time
}

// issuer is an Issuer that is ready to be asked.
type issuer struct {
	Issuer
	rules  []rule
	keys   *keys
	config oidc.Config
}

// New checks what is configured. It asks no issuer: one that is down is one that
// has yet to come up. Errors are ErrInvalid.
func New(issuers []Issuer, o Options) (*Exchange, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Exchange{issuers: map[string][]*issuer{}, now: o.Now}
	for _, c := range issuers {
		one, err := newIssuer(c, o)
		if err != nil {
			return nil, err
		}
		for _, other := range e.issuers[c.URL] {
			if other.Audience == c.Audience {
				return nil, registry.Errorf(registry.ErrInvalid, "issuer %s is there twice with the audience %q", c.URL, c.Audience)
			}
		}
		e.issuers[c.URL] = append(e.issuers[c.URL], one)
	}
	return e, nil
}

func newIssuer(c Issuer, o Options) (*issuer, error) {
	bad := func(format string, args ...any) error {
		return registry.Errorf(registry.ErrInvalid, "issuer %s: %s", c.URL, fmt.Sprintf(format, args...))
	}
	if err := checkAddress(c.URL); err != nil {
		return nil, bad("%v", err)
	}
	if c.JWKS != "" {
		if err := checkAddress(c.JWKS); err != nil {
			return nil, bad("keys at %s: %v", c.JWKS, err)
		}
	}
	if c.Audience == "" {
		return nil, bad("no audience: a token for somebody else would do")
	}
	if len(c.Rules) == 0 {
		return nil, bad("no rules, so its tokens stand for nobody")
	}
	one := &issuer{Issuer: c}
	for i, r := range c.Rules {
		ready, err := newRule(r)
		if err != nil {
			return nil, bad("rule %d: %v", i+1, err)
		}
		one.rules = append(one.rules, ready)
	}
	client, err := newClient(c.CA)
	if err != nil {
		return nil, bad("%v", err)
	}
	one.keys = &keys{issuer: c.URL, jwks: c.JWKS, client: client, log: o.Log, meter: o.Meter, now: o.Now, pause: refetch}
	one.config = oidc.Config{ClientID: c.Audience, SupportedSigningAlgs: algorithmNames(), Now: o.Now}
	return one, nil
}

// checkAddress refuses what somebody on the way could answer for.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return err
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q is not an address like https://host/path", address)
	case u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is not https, and not on this machine", address)
}

// Check verifies a JWT and finds its rule.
//
// It waits for the issuer only if the JWT could otherwise be right, and not
// longer than about five seconds. Errors: ErrUnauthenticated for whatever is
// wrong about the JWT or if no rule is for it, with a public text that helps who
// sent it and one for the log that says which claims did not match;
// ErrUnavailable, with After, if the issuer had to be asked and did not answer.
func (e *Exchange) Check(ctx context.Context, jwt string) (Match, error) {
	if len(jwt) > maxJWT {
		return Match{}, refuse("a JWT of %d bytes; %d may be", len(jwt), maxJWT)
	}
	// What it says of itself comes first: nobody is asked about a token that is
	// wrong whoever has signed it.
	claims, err := unverified(jwt)
	if err != nil {
		return Match{}, refuse("this is no JWT")
	}
	one, err := e.whose(claims)
	if err != nil {
		return Match{}, err
	}
	now := e.now()
	expires, err := claims.times(now)
	if err != nil {
		return Match{}, err
	}
	// go-oidc flattens what the keys say to text, so they are asked through
	// something that remembers it. Its verifier is but a few words.
	heard := &hearing{keys: one.keys}
	token, err := oidc.NewVerifier(one.URL, heard, &one.config).Verify(ctx, jwt)
	if heard.down != nil {
		return Match{}, heard.down
	}
	if err != nil {
		return Match{}, one.refused(err)
	}
	var payload json.RawMessage
	if err := token.Claims(&payload); err != nil {
		return Match{}, one.refused(err)
	}
	verified, err := parseClaims(payload) // the bytes that were signed
	if err != nil {
		return Match{}, one.refused(err)
	}
	m := Match{Issuer: token.Issuer, Subject: token.Subject, Expires: expires}
	return one.match(m, verified)
}

// whose finds the issuer that a token says it is of and is for us.
func (e *Exchange) whose(c claims) (*issuer, error) {
	name, _ := c["iss"].(string)
	candidates := e.issuers[name]
	if len(candidates) == 0 {
		return nil, refuse("no issuer %s is known here", quote(name))
	}
	for _, one := range candidates {
		if slices.Contains(c.audience(), one.Audience) {
			return one, nil
		}
	}
	return nil, refuse("the JWT is for %s; it has to be for %q", quote(strings.Join(c.audience(), ", ")), candidates[0].Audience)
}

// refused is for what the verifier says.
func (i *issuer) refused(err error) error {
	return &registry.Error{Kind: registry.ErrUnauthenticated, Text: "JWT of " + i.URL, Err: err,
		Public: "the JWT is not one of " + i.URL + ": its signature is wrong, or made with a key that the issuer does not have"}
}

// match finds the first rule for verified claims.
func (i *issuer) match(m Match, c claims) (Match, error) {
	var why []string
	for n, r := range i.rules {
		missed := r.missed(c)
		if len(missed) == 0 {
			m.Robot, m.Rights, m.Lifetime = r.Robot, slices.Clone(r.Rights), r.Lifetime
			return m, nil
		}
		why = append(why, fmt.Sprintf("rule %d (%s): %s", n+1, r.Robot, strings.Join(missed, ", ")))
	}
	public := fmt.Sprintf("no rule is for this JWT, of %s with the subject %s", m.Issuer, quote(m.Subject))
	return Match{}, &registry.Error{Kind: registry.ErrUnauthenticated, Public: public,
		Text: public + "; not matched: " + strings.Join(why, "; ")}
}

// refuse is an ErrUnauthenticated that both the log and the client read.
func refuse(format string, args ...any) error {
	return registry.Errorf(registry.ErrUnauthenticated, format, args...)
}

// quote makes what a client has sent fit to be shown.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%+q", s)
}
