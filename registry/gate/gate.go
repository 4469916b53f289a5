package gate

import (
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/weir-registry/weir/registry"
)

// DefaultLifetime is for how long a short-lived token is good.
const DefaultLifetime = 5 * time.Minute

// maxAuthorization bounds an Authorization, in bytes.
const maxAuthorization = 8 << 10

// Config is what a Gate is made of.
type Config struct {
	// Identities must be set.
	Identities registry.Identities
	// Logins checks passwords and exchanges JWTs; nil: none are taken.
	Logins registry.Logins
	Log    *slog.Logger // nil: slog.Default()
	// Meter is told of the event "login refused" to "password" or "token", and
	// of "login limited" to "address" or "account"; nil: nothing is counted.
	Meter registry.Meter
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Lifetime is a short-lived token's; 0: DefaultLifetime.
	Lifetime time.Duration
}

// A Gate knows who makes a request. A nil *Gate takes everyone for anonymous
// and issues nothing. Any number of goroutines may use it.
type Gate struct {
	c          Config
	key        [32]byte // for what is remembered of passwords; this process's own
	remembered recent[[32]byte, remembered]
	verified   recent[[32]byte, *claims]
	checks     singleflight.Group // by the remembered's key
	passwords  limits[netip.Prefix]
	accounts   limits[string]
	known      limits[place]            // in the accounts' stead, from where logins succeeded
	succeeded  recent[place, time.Time] // when last
}

// New makes a Gate.
func New(c Config) *Gate {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Meter == nil {
		c.Meter = registry.NoMeter{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Lifetime <= 0 {
		c.Lifetime = DefaultLifetime
	}
	g := &Gate{c: c,
		passwords: limits[netip.Prefix]{burst: 30, every: 6 * time.Second},
		accounts:  limits[string]{burst: 10, every: 10 * time.Second},
		known:     limits[place]{burst: 5, every: time.Minute},
	}
	_, _ = rand.Read(g.key[:]) // crypto/rand.Read never fails
	return g
}

// Who is who makes r. Errors: ErrUnauthenticated, whose public text says what is
// wrong with the credentials; ErrLimited, with After, when there were too many
// wrong ones; and those of registry.Logins for a password that is not
// remembered. It waits, within r's context, only for that.
func (g *Gate) Who(r *http.Request) (registry.Principal, error) {
	if g == nil {
		return registry.Principal{}, nil
	}
	fields := r.Header["Authorization"]
	switch {
	case len(fields) == 0:
		return registry.Principal{}, nil
	case len(fields) > 1:
		return registry.Principal{}, refused("the request has more than one Authorization")
	case len(fields[0]) > maxAuthorization:
		return registry.Principal{}, refused("the Authorization is longer than %d bytes", maxAuthorization)
	}
	scheme, rest, _ := strings.Cut(fields[0], " ")
	rest = strings.Trim(rest, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.Token(r, rest)
	case strings.EqualFold(scheme, "Basic"):
		user, password, err := basic(rest)
		if err != nil {
			return registry.Principal{}, err
		}
		return g.Password(r, user, password)
	}
	return registry.Principal{}, refused("the Authorization is neither Basic nor Bearer")
}

// Token is who presents a token, an opaque or a short-lived one, as r's bearer
// or, which is up to the protocol, in its body. Errors are those of [Gate.Who].
func (g *Gate) Token(r *http.Request, token string) (registry.Principal, error) {
	if g == nil {
		return registry.Principal{}, nil
	}
	var p registry.Principal
	var err error
	from := Addr(r)
	switch {
	case token == "" || len(token) > maxAuthorization:
		return registry.Principal{}, refused("there is no token where one should be")
	case registry.LooksLikeToken(token):
		p, err = g.c.Identities.Token(token, from)
	case strings.Count(token, ".") == 2:
		var ours bool
		if p, ours, err = g.short(token, from); ours {
			return p, err // be it good no longer: it is no guess
		}
	default:
		err = refused("the token is none of this registry's")
	}
	if registry.KindOf(err) == registry.ErrUnauthenticated {
		err = g.wrongToken(err)
	}
	if err != nil {
		return registry.Principal{}, err
	}
	return p, nil
}

// wrongToken counts a wrong token.
func (g *Gate) wrongToken(err error) error {
	g.c.Meter.Event("login refused", "token")
	return err
}

// Addr is the address that r's connection comes from, an IPv4 address always as
// such; the zero Addr if it is not known.
func Addr(r *http.Request) netip.Addr {
	return registry.ClientAddr(r.RemoteAddr)
}

// basic reads the credentials of Basic (RFC 7617): base64, padded or not.
func basic(credentials string) (user, password string, err error) {
	credentials = strings.TrimRight(credentials, "=")
	data, bad := base64.RawStdEncoding.DecodeString(credentials)
	if bad != nil || credentials == "" {
		return "", "", refused("what follows Basic is not base64")
	}
	user, password, ok := strings.Cut(string(data), ":")
	switch {
	case !ok:
		return "", "", refused("there is no colon between user and password")
	case user == "":
		return "", "", refused("there is no user before the colon")
	}
	// OAuth's client authentication (RFC 6749 section 2.3.1) and some clients
	// like it percent-encode both. A name has no percent sign and nothing to be
	// encoded, so only a user that has one says so; else "%41" in a password is
	// three characters of it.
	if strings.Contains(user, "%") {
		u, err1 := url.QueryUnescape(user)
		p, err2 := url.QueryUnescape(password)
		if err1 != nil || err2 != nil {
			return "", "", refused("the user is no account's name")
		}
		user, password = u, p
	}
	return user, password, nil
}

// refused is an ErrUnauthenticated that says what is wrong.
func refused(format string, args ...any) error {
	return registry.Errorf(registry.ErrUnauthenticated, format, args...)
}
