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
	if d.check.foreign {
		return 0, d.up.nonsense("answers with another package's document")
	}
	switch {
	case err == io.EOF && !d.check.whole():
		return n, d.up.nonsense("answers with something that is not a whole packument")
	case registry.KindOf(err) != nil:
		return n, err
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

// maxRaw is how many bytes of a string an outline keeps: a package's name with
// each byte escaped, and the quotes.
const maxRaw = 6*maxName + 2

// An outline follows JSON byte by byte just closely enough to tell one whole
// object from anything else, and a package's packument from another object,
// without keeping it. What is inside is not its concern: a derivation reads
// that.
type outline struct {
	packument string // the package whose packument it must be; "" if any object will do

	begun, ended   bool
	depth          int
	inside, escape bool   // of a string, after a backslash
	raw            []byte // the string at depth one being read, as far as maxRaw
	atKey          bool   // the next string at depth one is a name
	naming         bool   // the next value at depth one is the package's name
	known          bool   // a name that a packument has was seen
	foreign        bool   // it names another package
}

// see follows p and reports whether it can still become an object.
func (o *outline) see(p []byte) bool {
	for _, c := range p {
		if o.inside {
			// Most of a packument is text further in, which this is quick about.
			if o.depth == 1 || o.escape || c == '"' || c == '\\' {
				o.string(c)
			}
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
			o.inside, o.raw = true, append(o.raw[:0], c)
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
	if o.depth == 1 && len(o.raw) <= maxRaw {
		o.raw = append(o.raw, c)
	}
	switch {
	case o.escape:
		o.escape = false
	case c == '\\':
		o.escape = true
	case c == '"':
		o.inside = false
		if o.depth == 1 {
			o.said()
		}
	}
}

// said follows a whole string at depth one.
func (o *outline) said() {
	is := func(s string) bool { return len(o.raw) <= maxRaw && named(o.raw, s) }
	switch {
	case o.atKey:
		o.naming = is("name")
		o.known = o.known || o.naming || is("versions") || is("_id")
	case o.naming && o.packument != "" && !is(o.packument):
		o.foreign = true
	}
}

// whole reports whether what was seen is one whole object of the kind wanted.
func (o *outline) whole() bool { return o.ended && (o.known || o.packument == "") }
