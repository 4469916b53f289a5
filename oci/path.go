package oci

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// maxRepo is the longest repository name (distribution-spec, "Pulling
// manifests": many clients limit the host's name and it to 255 together).
const maxRepo = 255

// A kind is what a repository path means.
type kind uint8

const (
	other     kind = iota // not a path of a repository
	manifests             // /v2/REPO/manifests/REF
	blobs                 // /v2/REPO/blobs/DIGEST
	uploads               // /v2/REPO/blobs/uploads/[ID]
	tags                  // /v2/REPO/tags/list
	referrers             // /v2/REPO/referrers/DIGEST
)

// A path is a parsed request path. Its strings are parts of the one parsed.
type path struct {
	kind kind
	repo string
	ref  string // a tag or a digest; "" for tags and uploads
}

// A fault is what is wrong with a path that is of a repository.
type fault uint8

const (
	sound fault = iota
	badName
	badTag
	badDigest
)

// parsePath parses an escaped request path. It matches from the right, since
// a repository may be called "a/blobs/b" or "x/manifests". A path that has
// none of the forms above is of kind other, whatever else is wrong with it.
//
// It does not allocate unless the path is percent-encoded.
func parsePath(escaped string) (path, fault) {
	s, ok := unescape(escaped)
	rest, isV2 := strings.CutPrefix(s, "/v2/")
	if !isV2 {
		return path{}, sound
	}
	p := split(rest)
	switch {
	case p.kind == other:
		return path{}, sound
	case !ok || !validRepo(p.repo):
		return p, badName
	}
	return p, p.check()
}

// split finds the form of what follows /v2/.
func split(s string) path {
	if repo, ok := strings.CutSuffix(s, "/tags/list"); ok {
		return path{kind: tags, repo: repo}
	}
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return path{}
	}
	head, ref := s[:i], s[i+1:]
	if repo, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		return path{kind: uploads, repo: repo}
	}
	j := strings.LastIndexByte(head, '/')
	if j < 0 {
		return path{}
	}
	switch head[j+1:] {
	case "manifests":
		return path{kind: manifests, repo: head[:j], ref: ref}
	case "blobs":
		if ref == "uploads" {
			return path{kind: uploads, repo: head[:j]}
		}
		return path{kind: blobs, repo: head[:j], ref: ref}
	case "referrers":
		return path{kind: referrers, repo: head[:j], ref: ref}
	}
	return path{}
}

// check looks at the reference.
func (p path) check() fault {
	switch p.kind {
	case manifests:
		if strings.IndexByte(p.ref, ':') < 0 {
			if !validTag(p.ref) {
				return badTag
			}
			return sound
		}
		fallthrough
	case blobs, referrers:
		if !validDigest(p.ref) {
			return badDigest
		}
	}
	return sound
}

// unescape undoes percent-encoding, of which a client needs none: some encode
// a digest's colon. An encoded slash or percent sign would be a second way to
// write a path, and makes it invalid, as does a broken encoding; s is then
// still good enough to see which form it has.
func unescape(s string) (string, bool) {
	i := strings.IndexByte(s, '%')
	if i < 0 {
		return s, true
	}
	out := make([]byte, i, len(s))
	copy(out, s)
	ok := true
	for ; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			hi, lo := -1, -1
			if i+2 < len(s) {
				hi, lo = unhex(s[i+1]), unhex(s[i+2])
			}
			if hi < 0 || lo < 0 {
				ok = false
			} else if d := byte(hi<<4 | lo); d == '/' || d == '%' {
				ok = false
			} else {
				c = d
				i += 2
			}
		}
		out = append(out, c)
	}
	return string(out), ok
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// validRepo is the distribution-spec's <name>: parts divided by slashes, each
// of runs of a-z0-9 divided by ".", "_", "__" or any number of "-".
func validRepo(s string) bool {
	if len(s) == 0 || len(s) > maxRepo {
		return false
	}
	for i := 0; ; i++ {
		run := i
		for i < len(s) && alnum(s[i]) {
			i++
		}
		if i == run {
			return false
		}
		if i == len(s) {
			return true
		}
		switch s[i] {
		case '/', '.':
		case '_':
			if i+1 < len(s) && s[i+1] == '_' {
				i++
			}
		case '-':
			for i+1 < len(s) && s[i+1] == '-' {
				i++
			}
		default:
			return false
		}
	}
}

func alnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// validTag is [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func validTag(s string) bool {
	if len(s) == 0 || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !alnum(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// validDigest reports whether s is a digest that a client may name: SHA-1,
// which registry knows for npm's sake, is not.
func validDigest(s string) bool {
	return registry.ValidDigest(digest.Digest(s)) && !strings.HasPrefix(s, string(registry.SHA1))
}
