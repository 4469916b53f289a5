package oci

import (
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// maxForm is how much is read of a POST's body, in bytes.
	maxForm = 64 << 10
	// sessionLife is for how long a login lasts without the password.
	sessionLife = 90 * 24 * time.Hour
)

// The grant types of a POST (RFC 6749, RFC 8693), and what an exchange gives.
const (
	grantPassword = "password"
	grantRefresh  = "refresh_token"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
)

// TokenHandler gives short-lived tokens, at [TokenPath]: by GET with Basic or
// anonymously (distribution's "Token Authentication Specification"), and by POST
// of a form ("OAuth2 Token Authentication"), where there is a third way in: a
// JWT of a configured issuer (RFC 8693).
//
// A token is good for what is asked for and the guard admits at the time, and
// the guard is asked again when it is used. A client that is granted nothing of
// it gets a token all the same, which says who it is: so whether there is such a
// repository at all does not show, in the answer or its time.
//
// Of the Config, Service's Guard, Upstreams and Gate are used, and Tokens.
func TokenHandler(c Config) http.Handler { return &issuer{c} }

type issuer struct{ c Config }

// An asking is a request for a token, parsed.
type asking struct {
	who    registry.Principal
	scopes []scope
	// offline asks for something to log in with again, without the password.
	offline bool
	client  string // what it calls itself
	oauth   bool   // by POST
	// exchanged is what a JWT has become; nil if there was none.
	exchanged *registry.NewToken
}

// An issued is the answer. What it is called twice is for old clients and for
// OAuth's.
type issued struct {
	Token   string `json:"token"`
	Access  string `json:"access_token"`
	Expires int    `json:"expires_in"` // seconds
	Issued  string `json:"issued_at"`  // RFC 3339
	Refresh string `json:"refresh_token,omitempty"`
	Type    string `json:"token_type,omitempty"`
	Kind    string `json:"issued_token_type,omitempty"`
	Scope   string `json:"scope,omitempty"`
}

// ServeHTTP implements http.Handler.
func (t *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	var a asking
	var err error
	switch r.Method {
	case http.MethodGet:
		a, err = t.get(r)
	case http.MethodPost:
		a, err = t.post(w, r)
	default:
		w.Header().Set("Allow", "GET, POST")
		refuse(w, r, http.StatusMethodNotAllowed, errcode.ErrorCodeUnsupported, "tokens are asked for by GET or POST")
		return
	}
	var g issued
	if err == nil {
		reply.Identified(w, a.who)
		g, err = t.give(r, a)
	}
	if err != nil {
		if registry.KindOf(err) == registry.ErrUnauthenticated {
			w.Header().Set("WWW-Authenticate", `Basic realm="weir"`)
		}
		fail(w, r, other, err)
		return
	}
	reply.Record(w, registry.Via{})
	writeJSON(w, r, http.StatusOK, "application/json", g)
}

// get reads a GET: ?service=&account=&client_id=&offline_token=&scope=&scope=.
// service is what the challenge called this registry, and account is in the
// credentials: neither decides anything.
func (t *issuer) get(r *http.Request) (asking, error) {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return asking{}, err
	}
	a := asking{offline: q.Get("offline_token") == "true", client: q.Get("client_id")}
	if a.scopes, err = parseScopes(q["scope"]); err != nil {
		return asking{}, err
	}
	a.who, err = t.c.Gate.Who(r)
	return a, err
}

// post reads a POST. An Authorization, which would be the client program's own
// (RFC 6749 section 2.3), is not looked at: there are no such secrets.
func (t *issuer) post(w http.ResponseWriter, r *http.Request) (asking, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return asking{}, registry.Errorf(registry.ErrInvalid, "the form is malformed, or larger than %d bytes", maxForm)
	}
	f := r.PostForm
	for _, name := range []string{"grant_type", "username", "password", "refresh_token", "subject_token", "access_type", "client_id"} {
		if len(f[name]) > 1 {
			return asking{}, registry.Errorf(registry.ErrInvalid, "the form has %s more than once", name)
		}
	}
	a := asking{oauth: true, offline: f.Get("access_type") == "offline", client: f.Get("client_id")}
	var err error
	if a.scopes, err = parseScopes(f["scope"]); err != nil {
		return asking{}, err
	}
	switch f.Get("grant_type") {
	case grantPassword:
		a.who, err = t.c.Gate.Password(r, f.Get("username"), f.Get("password"))
	case grantRefresh:
		a.who, err = t.c.Gate.Token(r, f.Get("refresh_token"))
	case grantExchange:
		var made registry.NewToken
		if made, err = t.c.Gate.Exchange(r, f.Get("subject_token")); err == nil {
			a.exchanged = &made
			a.who, err = t.c.Gate.Token(r, made.Secret)
		}
	default:
		err = registry.Errorf(registry.ErrInvalid, "grant_type is none of %s, %s and %s", grantPassword, grantRefresh, grantExchange)
	}
	return a, err
}

// give makes the answer.
func (t *issuer) give(r *http.Request, a asking) (issued, error) {
	now := time.Now()
	if a.exchanged != nil && len(a.scopes) == 0 {
		// The token itself: for npm, and to be a password here.
		g := issued{Expires: math.MaxInt32, Type: "Bearer", Kind: typeAccess}
		if end := a.exchanged.Expires; !end.IsZero() {
			g.Expires = seconds(end.Sub(now))
		}
		return g.with(a.exchanged.Secret, now), nil
	}
	rights, granted, err := t.rights(r, a)
	if err != nil {
		return issued{}, err
	}
	token, expires, err := t.c.Gate.Issue(a.who, rights)
	if registry.KindOf(err) == registry.ErrTooLarge {
		return issued{}, registry.Errorf(registry.ErrInvalid, "%s", registry.Public(err))
	}
	if err != nil {
		return issued{}, err
	}
	g := issued{Expires: seconds(expires.Sub(now))}
	if a.oauth {
		g.Type, g.Scope = "Bearer", strings.Join(granted, " ")
	}
	if a.exchanged != nil {
		g.Kind = typeAccess
	}
	if g.Refresh, err = t.session(r, a); err != nil {
		return issued{}, err
	}
	return g.with(token, now), nil
}

func (g issued) with(token string, now time.Time) issued {
	g.Token, g.Access, g.Issued = token, token, now.UTC().Format(time.RFC3339)
	return g
}

// seconds is a duration in whole seconds, and at least one.
func seconds(d time.Duration) int { return int(min(max(d/time.Second, 1), math.MaxInt32)) }

// rights are what of the scopes the guard admits, and those scopes in the
// client's words.
func (t *issuer) rights(r *http.Request, a asking) (rights []registry.Right, granted []string, err error) {
	seen := map[registry.Right]bool{}
	for _, s := range a.scopes {
		repo, ok := t.c.Upstreams.named(s.repo)
		if !ok {
			continue
		}
		var actions []string
		for _, action := range s.actions {
			call := registry.Call{Who: a.who, Action: action, Name: registry.Name{Space: Space, Repo: repo}, Whether: true, Agent: r.UserAgent(), Addr: gate.Addr(r)}
			err := t.c.Service.Guard.Admit(r.Context(), &call)
			switch kind := registry.KindOf(err); {
			case err == nil:
				actions = append(actions, string(action))
				if right := (registry.Right{Action: action, Space: Space, Repo: repo}); !seen[right] {
					seen[right] = true
					rights = append(rights, right)
				}
			case kind == registry.ErrDenied, kind == registry.ErrUnauthenticated && a.who.Anonymous():
			default: // nobody can say now; or the account has just ended
				return nil, nil, err
			}
		}
		if len(actions) > 0 {
			granted = append(granted, s.text[:len(s.text)-len(lastPart(s.text))]+strings.Join(actions, ","))
		}
	}
	return rights, granted, nil
}

// lastPart is what follows the last colon.
func lastPart(s string) string { return s[strings.LastIndexByte(s, ':')+1:] }

// session makes what a client logs in with from now on, if it asks for that
// and has just shown a password; "" if not. One that has shown a token keeps it,
// and one whose account has as many sessions as it may keeps the password.
func (t *issuer) session(r *http.Request, a asking) (string, error) {
	if !a.offline || t.c.Tokens == nil || a.who.Anonymous() || a.who.Token != "" || a.who.Only != nil {
		return "", nil
	}
	note := "login from " + gate.Addr(r).String()
	if client := printable(a.client); client != "" {
		note += " by " + client
	}
	made, err := t.c.Tokens.CreateToken(r.Context(), a.who, registry.TokenSpec{Kind: "session", Note: note, Lifetime: sessionLife})
	if registry.KindOf(err) == registry.ErrLimited {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return made.Secret, nil
}

// printable keeps what a client calls itself short and harmless.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return -1
		}
		return c
	}, s)
	return s[:min(len(s), 64)]
}
