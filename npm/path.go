package npm

import (
	"net/url"
	"strings"

	"github.com/weir-registry/weir/registry"
)

const (
	maxName = 214 // npm's own limit for a package's name
	maxRef  = 256 // for a version, a tag or a tarball's file name
	maxPath = 2048
)

// A route is one kind of question a client can ask.
type route int

const (
	routeUnknown route = iota
	routeRoot
	routePing
	routePackument
	routeVersion
	routeDistTags
	routeTarball
	routeSearch
	routeAudit
	routeKeys
	routeAttestations
	routeWhoami
	routeLegacyLogin
	routeLogin
	routeLoginPage
	routeDone
	routeLogout
	routeTokens
	routeToken
	routeProfile
	routeExchange
)

// A request is a path understood: pkg and ref are decoded and well-formed.
type request struct {
	route route
	pkg   string // the package's name
	// ref is a version or tag, a tarball's file name, the name of an account, a
	// token or its key, or for what is passed on the path below the base.
	ref string
	who registry.Principal
}

// routes are the fixed paths below the base.
var routes = map[string]route{
	"-/ping":                         routePing,
	"-/v1/search":                    routeSearch,
	"-/whoami":                       routeWhoami,
	keysPath:                         routeKeys,
	bulkPath:                         routeAudit,
	"-/npm/v1/security/audits":       routeAudit,
	"-/npm/v1/security/audits/quick": routeAudit,
	"-/v1/login":                     routeLogin,
	"-/npm/v1/tokens":                routeTokens,
	"-/npm/v1/user":                  routeProfile,
}

// accounted are the beginnings of paths, below "-/", that end with one segment
// about an account.
var accounted = map[string]route{
	"user/token":          routeLogout,
	"v1/login":            routeLoginPage,
	"v1/done":             routeDone,
	"npm/v1/tokens/token": routeToken,
}

const (
	keysPath         = "-/npm/v1/keys"
	attestationsPath = "-/npm/v1/attestations/"
	bulkPath         = "-/npm/v1/security/advisories/bulk"
	couchUser        = "org.couchdb.user:"
	exchangePath     = "-/npm/v1/oidc/token/exchange/package/"
)

// parsePath understands the escaped path below the base, without its leading
// slash. It decodes each segment once: a client may write a scoped name as
// @scope/name, @scope%2fname, @scope%2Fname or %40scope%2fname, and nothing
// else may hide a slash. Paths that are well-formed and mean nothing are
// routeUnknown; the others that mean nothing are ErrInvalid.
func parsePath(escaped string) (request, error) {
	if len(escaped) > maxPath {
		return request{}, registry.Errorf(registry.ErrInvalid, "the path is too long")
	}
	if escaped == "" {
		return request{route: routeRoot}, nil
	}
	escaped = strings.TrimSuffix(escaped, "/")
	if r, ok := routes[escaped]; ok {
		return request{route: r, ref: escaped}, nil
	}
	segs, err := segments(escaped)
	if err != nil {
		return request{}, err
	}
	if segs[0] == "-" && len(segs) > 1 && !(len(segs) == 3 && segs[1] == "-") {
		return parseSpecial(segs[1:])
	}
	pkg, rest, err := takeName(segs)
	if err != nil {
		return request{}, err
	}
	switch {
	case len(rest) == 0:
		return request{route: routePackument, pkg: pkg}, nil
	case len(rest) == 1:
		return withRef(routeVersion, pkg, rest[0])
	case rest[0] != "-":
		return request{}, nil
	case len(rest) == 2:
		return withRef(routeTarball, pkg, rest[1])
	case len(rest) == 3 && strings.HasPrefix(pkg, rest[1]+"/") && rest[1][0] == '@':
		return withRef(routeTarball, pkg, rest[2])
	}
	return request{}, nil
}

// parseSpecial understands what comes after "-/" and is not a fixed path.
func parseSpecial(segs []string) (request, error) {
	if segs[0] == "package" && len(segs) > 1 {
		pkg, rest, err := takeName(segs[1:])
		if err != nil {
			return request{}, err
		}
		if len(rest) == 1 && rest[0] == "dist-tags" {
			return request{route: routeDistTags, pkg: pkg}, nil
		}
		return request{}, nil
	}
	path := "-/" + strings.Join(segs, "/")
	if name, ok := strings.CutPrefix(path, exchangePath); ok {
		pkg, rest, err := takeName(strings.Split(name, "/"))
		if err != nil || len(rest) > 0 {
			return request{}, err
		}
		return request{route: routeExchange, pkg: pkg}, nil
	}
	spec, ok := strings.CutPrefix(path, attestationsPath)
	if !ok {
		return parseAccount(segs), nil
	}
	at := strings.LastIndexByte(spec, '@')
	if at <= 0 {
		return request{}, registry.Errorf(registry.ErrInvalid, "attestations are asked for as name@version")
	}
	pkg, rest, err := takeName(strings.Split(spec[:at], "/"))
	if err != nil {
		return request{}, err
	}
	if len(rest) != 0 {
		return request{}, nil
	}
	return withRef(routeAttestations, pkg, spec[at+1:])
}

// parseAccount understands the paths about accounts that are not fixed.
func parseAccount(segs []string) request {
	last := len(segs) - 1
	if name, ok := strings.CutPrefix(segs[last], couchUser); ok && last == 1 && segs[0] == "user" {
		return request{route: routeLegacyLogin, ref: name}
	}
	if r, ok := accounted[strings.Join(segs[:last], "/")]; ok {
		return request{route: r, ref: segs[last]}
	}
	return request{}
}

// segments splits and decodes a path.
func segments(escaped string) ([]string, error) {
	var out []string
	for _, raw := range strings.Split(escaped, "/") {
		s, err := url.PathUnescape(raw)
		if err != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "the path has a malformed percent-encoding")
		}
		parts := []string{s}
		if strings.HasPrefix(s, "@") && strings.Count(s, "/") == 1 {
			parts = strings.Split(s, "/")
		}
		for _, p := range parts {
			if !plainSegment(p) {
				return nil, registry.Errorf(registry.ErrInvalid, "the path is not one of a package")
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// plainSegment reports whether s can be a part of any name: not empty, no way
// up, no separator in disguise, no second layer of encoding.
func plainSegment(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > maxRef {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f || c == '/' || c == '\\' || c == '%':
			return false
		}
	}
	return true
}

// takeName takes a package's name off segs.
func takeName(segs []string) (pkg string, rest []string, err error) {
	pkg, rest = segs[0], segs[1:]
	if strings.HasPrefix(pkg, "@") && len(rest) > 0 {
		pkg, rest = pkg+"/"+rest[0], rest[1:]
	}
	if !ValidName(pkg) {
		return "", nil, registry.Errorf(registry.ErrInvalid, "invalid package name")
	}
	return pkg, rest, nil
}

func withRef(r route, pkg, ref string) (request, error) {
	if !plainSegment(ref) || ref == "-" {
		return request{}, registry.Errorf(registry.ErrInvalid, "invalid version or file name")
	}
	return request{route: r, pkg: pkg, ref: ref}, nil
}

// ValidName reports whether s can be a package's name: at most 214 characters
// that need no escaping in an address, with at most one scope. Names that npm
// would not let anyone publish today (upper-case letters, "~", "!", quotes and
// parentheses) exist and are valid here.
func ValidName(s string) bool {
	if len(s) > maxName {
		return false
	}
	if scoped, ok := strings.CutPrefix(s, "@"); ok {
		scope, name, ok := strings.Cut(scoped, "/")
		return ok && validPart(scope) && validPart(name)
	}
	return validPart(s)
}

func validPart(s string) bool {
	if s == "" || s[0] == '.' {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("-_.~!*'()", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// unscoped is the part of a package's name that its tarballs begin with.
func unscoped(pkg string) string { return pkg[strings.LastIndexByte(pkg, '/')+1:] }

// escapeName is how a package's name is written in an upstream's path: the
// slash of a scope is encoded, as npm itself does.
func escapeName(pkg string) string { return strings.Replace(pkg, "/", "%2f", 1) }
