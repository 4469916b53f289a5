package npm

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// maxRights is how many packages and scopes a token may be made for.
	maxRights = 64
	// maxNetworks is how many networks a token may be bound to.
	maxNetworks = 64
	// maxNote is how long a token's name and description may be together.
	maxNote = 256
	// maxDays is the longest life of a token that has an end, in days.
	maxDays = 3650
)

// shownToken is a token as npm's client reads it.
type shownToken struct {
	// Token is what npm shows of the secret, and what it compares with when a
	// person gives it one to revoke.
	Token string `json:"token"`
	// Key is what npm shows the beginning of, and sends to revoke it: the mark,
	// because IDs of one account begin alike.
	Key      string   `json:"key"`
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	CIDR     []string `json:"cidr_whitelist"`
	Readonly bool     `json:"readonly"`
	Rights   []string `json:"rights,omitempty"`
	Created  string   `json:"created"`
	Updated  string   `json:"updated"`
	Expires  string   `json:"expires,omitempty"`
	LastUsed string   `json:"last_used,omitempty"`
}

func showToken(t registry.Token) shownToken {
	s := shownToken{Token: t.Begins(), Key: t.Mark(), Name: t.Note, Kind: t.Kind, Rights: t.Rights, Readonly: len(t.Rights) > 0,
		Created: stamp(t.Created), Updated: stamp(t.Created), Expires: stamp(t.Expires), LastUsed: stamp(t.Used)}
	if s.Name == "" {
		s.Name = t.Kind
	}
	for _, right := range t.Rights {
		s.Readonly = s.Readonly && strings.HasPrefix(right, string(registry.Pull)+" ")
	}
	for _, from := range t.From {
		s.CIDR = append(s.CIDR, from.String())
	}
	return s
}

// tokens answers "npm token list" and "npm token create".
func (h *handler) tokens(w http.ResponseWriter, r *http.Request, q request) error {
	who, err := someone(q)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost {
		return h.createToken(w, r, who)
	}
	list, err := h.o.Tokens.ListTokens(r.Context(), who)
	if err != nil {
		return err
	}
	shown := make([]shownToken, 0, len(list))
	for _, t := range list {
		shown = append(shown, showToken(t))
	}
	return tell(w, http.StatusOK, map[string]any{"objects": shown, "urls": struct{}{}, "total": len(shown)})
}

func (h *handler) createToken(w http.ResponseWriter, r *http.Request, who registry.Principal) error {
	var asked tokenAsked
	if err := readJSON(w, r, &asked, true); err != nil {
		return err
	}
	spec, err := asked.spec()
	if err != nil {
		return err
	}
	// A token does for a password elsewhere. Here it is asked for so that a token
	// alone, which may be stolen, makes none that outlives it.
	var owner registry.Principal
	if registry.LooksLikeToken(asked.Password) {
		err = registry.Errorf(registry.ErrUnauthenticated, "a token is no password")
	} else {
		owner, err = h.password(r, who.Name, asked.Password)
	}
	if err == nil && owner.UID != who.UID {
		err = registry.Errorf(registry.ErrUnauthenticated, "the password is another account's")
	}
	if err != nil {
		return wrongLogin(err, "wrong password; a robot has none, and gets its tokens from who runs this registry")
	}
	// By who and not by owner: the token that asks may be narrower.
	token, err := h.o.Tokens.CreateToken(r.Context(), who, spec)
	if err != nil {
		return err
	}
	shown := showToken(token.Token)
	shown.Token = token.Secret
	return tell(w, http.StatusCreated, shown)
}

// revoke answers "npm token revoke". npm sends a whole key for what a person
// gave it the beginning of, or the token itself.
func (h *handler) revoke(w http.ResponseWriter, r *http.Request, q request) error {
	who, err := someone(q)
	if err != nil {
		return err
	}
	id := ""
	if registry.LooksLikeToken(q.ref) {
		owner, err := h.presented(r, q.ref)
		switch {
		case registry.KindOf(err) == registry.ErrUnauthenticated, err == nil && owner.UID != who.UID:
			return registry.Errorf(registry.ErrNotFound, "no such token")
		case err != nil:
			return err
		}
		id = owner.Token
	} else {
		list, err := h.o.Tokens.ListTokens(r.Context(), who)
		if err != nil {
			return err
		}
		if id, err = findToken(list, q.ref); err != nil {
			return err
		}
	}
	if err := h.o.Tokens.RevokeToken(r.Context(), who, id); err != nil {
		return err
	}
	return tell(w, http.StatusOK, map[string]bool{"ok": true})
}

// findToken is the ID that is key, or else the only one whose mark begins with it.
func findToken(list []registry.Token, key string) (string, error) {
	found := ""
	for _, t := range list {
		switch {
		case t.ID == key:
			return key, nil
		case !strings.HasPrefix(t.Mark(), key):
		case found != "":
			return "", registry.Errorf(registry.ErrInvalid, "more than one token's id begins with %q", key)
		default:
			found = t.ID
		}
	}
	if found == "" {
		return "", registry.Errorf(registry.ErrNotFound, "no such token")
	}
	return found, nil
}

// tokenAsked is what "npm token create" posts: npm 10 and before, and libraries,
// Readonly and CIDR; since then the rest. npm from 11.19 on takes --read-only and
// does not send it, so that only what is said to be more is more than reading.
type tokenAsked struct {
	Password string   `json:"password"`
	Readonly *bool    `json:"readonly"`
	CIDR     []string `json:"cidr_whitelist"`

	Name           string   `json:"name"`
	Description    string   `json:"description"`
	Packages       []string `json:"packages"`
	PackagesAll    bool     `json:"packages_all"`
	Scopes         []string `json:"scopes"`
	Permission     string   `json:"packages_and_scopes_permission"`
	Orgs           []string `json:"orgs"`
	OrgsPermission string   `json:"orgs_permission"`
	Expires        *int64   `json:"expires"` // in days
	Bypass2FA      bool     `json:"bypass_2fa"`
}

// The permissions that npm knows.
const (
	noAccess  = "no-access"
	readOnly  = "read-only"
	readWrite = "read-write"
)

// spec is what a asks for in the terms of this registry. What it does not have
// is ErrInvalid, with a text that says what: a token is never wider than what
// was asked for.
func (a *tokenAsked) spec() (registry.TokenSpec, error) {
	s := registry.TokenSpec{Note: a.Name}
	if a.Description != "" {
		s.Note = strings.TrimPrefix(a.Name+": "+a.Description, ": ")
	}
	switch {
	case len(s.Note) > maxNote:
		return s, registry.Errorf(registry.ErrInvalid, "name and description are over the limit of %d bytes", maxNote)
	case len(a.Orgs) > 0, a.OrgsPermission != "" && a.OrgsPermission != noAccess:
		return s, registry.Errorf(registry.ErrInvalid, "orgs: this registry has no organizations; use packages or scopes")
	case a.Bypass2FA:
		return s, registry.Errorf(registry.ErrInvalid, "bypass_2fa: this registry has no second factor to bypass")
	}
	if a.Expires != nil {
		if *a.Expires < 1 || *a.Expires > maxDays {
			return s, registry.Errorf(registry.ErrInvalid, "expires: a number of days from 1 to %d", maxDays)
		}
		s.Lifetime = time.Duration(*a.Expires) * 24 * time.Hour
	}
	var err error
	if s.Rights, err = a.rights(); err != nil {
		return s, err
	}
	s.From, err = networks(a.CIDR)
	return s, err
}

// rights are never none, which would be all that the owner may, elsewhere too.
func (a *tokenAsked) rights() ([]string, error) {
	action, err := a.action()
	if err != nil {
		return nil, err
	}
	if len(a.Packages)+len(a.Scopes) > maxRights {
		return nil, registry.Errorf(registry.ErrInvalid, "packages and scopes: at most %d", maxRights)
	}
	var rights []string
	for _, name := range a.Packages {
		// A "*", which old names may have, would be every package in a right.
		if !ValidName(name) || strings.Contains(name, "*") {
			return nil, registry.Errorf(registry.ErrInvalid, "packages: %.100q is not the name of a package", name)
		}
		rights = append(rights, action+name)
	}
	for _, scope := range a.Scopes {
		scope = strings.TrimPrefix(scope, "@")
		if !validPart(scope) || strings.Contains(scope, "*") || len(scope) > maxName {
			return nil, registry.Errorf(registry.ErrInvalid, "scopes: %.100q is not a scope", scope)
		}
		rights = append(rights, action+"@"+scope+"/*")
	}
	if a.PackagesAll || len(rights) == 0 {
		return []string{action + "*"}, nil
	}
	return rights, nil
}

// action is the beginning of each right: reading, if more is not asked for.
func (a *tokenAsked) action() (string, error) {
	const pull, push = string(registry.Pull) + " " + space + ":", string(registry.Push) + " " + space + ":"
	chosen := a.PackagesAll || len(a.Packages) > 0 || len(a.Scopes) > 0
	switch {
	case a.Permission != "" && a.Permission != noAccess && !chosen:
		return "", registry.Errorf(registry.ErrInvalid, "packages_and_scopes_permission: for which packages or scopes?")
	case a.Permission == readWrite && a.Readonly != nil && *a.Readonly:
		return "", registry.Errorf(registry.ErrInvalid, "readonly and packages_and_scopes_permission say two things")
	case a.Permission == readWrite, a.Permission == "" && a.Readonly != nil && !*a.Readonly:
		return push, nil
	case a.Permission == noAccess:
		return "", registry.Errorf(registry.ErrInvalid, "packages_and_scopes_permission: a token without access to any package is of no use here")
	case a.Permission == "", a.Permission == readOnly:
		return pull, nil
	}
	return "", registry.Errorf(registry.ErrInvalid, "packages_and_scopes_permission: %.100q is none of %s, %s and %s", a.Permission, noAccess, readOnly, readWrite)
}

// networks parses addresses and networks.
func networks(list []string) ([]netip.Prefix, error) {
	if len(list) > maxNetworks {
		return nil, registry.Errorf(registry.ErrInvalid, "cidr_whitelist: at most %d networks", maxNetworks)
	}
	var from []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "cidr_whitelist: %.100q is neither an address nor a network", text)
		}
		from = append(from, p.Masked())
	}
	return from, nil
}
