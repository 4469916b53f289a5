package npm

import (
	"net/url"
	"strings"
)

// A target is what a view's addresses are moved to.
type target struct {
	base string // the address of the registry as its client calls it, without a trailing slash
	pkg  string
}

// tarball is the address under which a tarball is served.
func (t target) tarball(file string) string {
	return t.base + "/" + t.pkg + "/-/" + url.PathEscape(file)
}

// manifest appends a version's object with the addresses in its dist moved;
// every other byte is the upstream's.
func (t target) manifest(dst []byte, version string, object []byte) []byte {
	from := 0
	for f := range fields(object) {
		if named(f.name, "dist") {
			dst = append(dst, object[from:f.at]...)
			dst = t.dist(dst, version, f.value)
			from = f.at + len(f.value)
		}
	}
	return append(dst, object[from:]...)
}

// dist appends a dist with its tarball and its attestations' url moved.
// Signatures and hashes stay as they are: what is signed is the name, the
// version and the integrity, not an address.
func (t target) dist(dst []byte, version string, dist []byte) []byte {
	from := 0
	for f := range fields(dist) {
		switch {
		case named(f.name, "tarball") && f.value[0] == '"':
			dst = append(dst, dist[from:f.at]...)
			dst = quoted(dst, t.tarball(fileName(t.pkg, version, text(f.value))))
		case named(f.name, "attestations"):
			dst = append(dst, dist[from:f.at]...)
			dst = t.attestations(dst, f.value)
		default:
			continue
		}
		from = f.at + len(f.value)
	}
	return append(dst, dist[from:]...)
}

// attestations appends a dist.attestations with its url moved: npm takes only
// the path of it and asks the registry it is configured with, so the path must
// begin as that registry's does.
func (t target) attestations(dst, value []byte) []byte {
	from := 0
	for f := range fields(value) {
		if !named(f.name, "url") {
			continue
		}
		u, err := url.Parse(text(f.value))
		if err != nil {
			continue
		}
		_, path, ok := strings.Cut(u.EscapedPath(), "/-/")
		if !ok {
			continue
		}
		dst = append(dst, value[from:f.at]...)
		dst = quoted(dst, t.base+"/-/"+path)
		from = f.at + len(f.value)
	}
	return append(dst, value[from:]...)
}

// fileName is the name under which a version's tarball is served. It is
// NAME-VERSION.tgz, which clients recognise and leave out of their lockfiles,
// unless the upstream's own file name is another one that ends in the version
// too (packages that were renamed, a "v" before the version): lockfiles have
// that already.
func fileName(pkg, version, tarball string) string {
	usual := unscoped(pkg) + "-" + version + ".tgz"
	own := lastSegment(tarball)
	if own == usual || version == "" {
		return usual
	}
	stem, ok := strings.CutSuffix(own, ".tgz")
	if !ok {
		return usual
	}
	before, ok := strings.CutSuffix(stem, version)
	if !ok || before == "" || isDigitOrDot(before[len(before)-1]) || !plainSegment(own) || own[0] == '@' {
		return usual
	}
	return own
}

func isDigitOrDot(c byte) bool { return c >= '0' && c <= '9' || c == '.' }

// lastSegment is the file name in a tarball's address; "" if there is none.
func lastSegment(tarball string) string {
	u, err := url.Parse(tarball)
	if err != nil {
		return ""
	}
	return u.Path[strings.LastIndexByte(u.Path, '/')+1:]
}
