package npm

import (
	"io"

	"github.com/klauspost/compress/gzip"

	"github.com/weir-registry/weir/registry"
)

// A document is the body of an upstream's answer on its way into a store. It
// ends with io.EOF only if what was read is one whole JSON object; a portal's
// page with status 200, or half an answer, is ErrUnavailable, and so is never
// kept.
type document struct {
	body  io.Closer
	r     io.Reader
	up    *upstream
	check outline
}

// Read implements io.Reader.
func (d *document) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if !d.check.see(p[:n]) {
		return 0, d.up.nonsense("answers with something that is not a JSON object")
	}
	switch {
	case err == io.EOF && !d.check.whole():
		return n, d.up.nonsense("answers with something that is not a whole packument")
	case err != nil && err != io.EOF:
		return n, registry.Wrap(registry.ErrUnavailable, err, "read the document of "+d.up.Name)
	}
	return n, err
}

// Close implements io.Closer.
func (d *document) Close() error { return d.body.Close() }

// gunzip decodes src; unlike a gzip.Reader it does not read before it is read.
type gunzip struct {
	src io.Reader
	z   *gzip.Reader
}

// Read implements io.Reader.
func (g *gunzip) Read(p []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.src)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		g.z = z
	}
	return g.z.Read(p)
}

// An outline follows JSON byte by byte just closely enough to tell one whole
// object from anything else, and a packument from another object, without
// keeping it. What is inside is not its concern: a derivation reads that.
type outline struct {
	packument bool // the object must look like a packument

	begun, ended   bool
	depth          int
	inside, escape bool   // of a string, after a backslash
	key            []byte // the string at depth one being read
	atKey          bool   // the next string at depth one is a name
	known          bool   // a name that a packument has was seen
}

// see follows p and reports whether it can still become an object.
func (o *outline) see(p []byte) bool {
	for _, c := range p {
		if o.inside {
			o.string(c)
			continue
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		switch {
		case !o.begun:
			if c != '{' {
				return false
			}
			o.begun, o.depth, o.atKey = true, 1, true
			continue
		case o.ended:
			return false
		}
		switch c {
		case '"':
			o.inside, o.key = true, o.key[:0]
		case '{', '[':
			o.depth++
		case '}', ']':
			o.depth--
			o.ended = o.depth == 0
		case ',':
			o.atKey = o.depth == 1
		case ':':
			if o.depth == 1 {
				o.atKey = false
			}
		}
	}
	return true
}

// string follows a byte inside of a string.
func (o *outline) string(c byte) {
	switch {
	case o.escape:
		o.escape = false
	case c == '\\':
		o.escape = true
	case c == '"':
		o.inside = false
		if o.depth == 1 && o.atKey {
			switch string(o.key) {
			case "versions", "name", "_id":
				o.known = true
			}
		}
		return
	}
	if o.depth == 1 && len(o.key) < 16 {
		o.key = append(o.key, c)
	}
}

// whole reports whether what was seen is one whole object of the kind wanted.
func (o *outline) whole() bool { return o.ended && (o.known || !o.packument) }
