package npm

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/weir-registry/weir/registry"
)

// A visitor is shown a packument while it is read. What it is given is valid
// JSON, byte for byte as in the document, and valid until it returns. An error
// of its own ends the scan and is passed on.
type visitor interface {
	// member is a member of the document that is not an object "versions".
	member(name, value []byte) error
	// versions is called where the member "versions" begins, with its name.
	versions(name []byte) error
	// version is one member of "versions"; offset is where in the document its
	// value begins.
	version(name, value []byte, offset int64) error
	// done is called where "versions" ends.
	done() error
}

// scan reads a packument once, as a stream. A document that is not one valid
// JSON object, whole, is ErrCorrupt.
func scan(doc io.Reader, v visitor) error {
	d := jsontext.NewDecoder(doc, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := begin(d); err != nil {
		return err
	}
	var name []byte
	for d.PeekKind() == '"' {
		raw, err := d.ReadValue()
		if err != nil {
			return unreadable(err)
		}
		name = append(name[:0], raw...)
		if d.PeekKind() == '{' && named(name, "versions") {
			err = scanVersions(d, name, v)
		} else {
			err = scanMember(d, name, v)
		}
		if err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return unreadable(err)
	}
	switch _, err := d.ReadToken(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return unreadable(err)
	}
	return registry.Errorf(registry.ErrCorrupt, "the package's document goes on after its end")
}

func begin(d *jsontext.Decoder) error {
	switch t, err := d.ReadToken(); {
	case err != nil:
		return unreadable(err)
	case t.Kind() != '{':
		return registry.Errorf(registry.ErrCorrupt, "the package's document is not a JSON object")
	}
	return nil
}

func scanMember(d *jsontext.Decoder, name []byte, v visitor) error {
	value, err := d.ReadValue()
	if err != nil {
		return unreadable(err)
	}
	return v.member(name, value)
}

func scanVersions(d *jsontext.Decoder, name []byte, v visitor) error {
	if err := v.versions(name); err != nil {
		return err
	}
	if _, err := d.ReadToken(); err != nil {
		return unreadable(err)
	}
	var key []byte
	for d.PeekKind() == '"' {
		raw, err := d.ReadValue()
		if err != nil {
			return unreadable(err)
		}
		key = append(key[:0], raw...)
		value, err := d.ReadValue()
		if err != nil {
			return unreadable(err)
		}
		if err := v.version(key, value, d.InputOffset()-int64(len(value))); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return unreadable(err)
	}
	return v.done()
}

// unreadable is err for a document that is broken; what the Source of its
// bytes had to say stays as it is.
func unreadable(err error) error {
	if kind := registry.KindOf(err); kind != nil {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return registry.Errorf(registry.ErrCorrupt, "the package's document ends too early")
	}
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return registry.Wrap(registry.ErrUnavailable, err, "read a packument")
	}
	return &registry.Error{Kind: registry.ErrCorrupt, Text: "read a packument", Public: "the package's document is not valid JSON", Err: err}
}

// named reports whether a raw JSON string says name.
func named(raw []byte, name string) bool {
	if len(raw) == len(name)+2 && string(raw[1:len(raw)-1]) == name {
		return true
	}
	return bytes.IndexByte(raw, '\\') >= 0 && text(raw) == name
}

// text is what a raw JSON string says; "" if raw is no string.
func text(raw []byte) string {
	if len(raw) < 2 || raw[0] != '"' {
		return ""
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	s, err := jsontext.AppendUnquote(nil, raw)
	if err != nil && s == nil {
		return ""
	}
	return string(s)
}

// quoted appends s as a JSON string.
func quoted(dst []byte, s string) []byte {
	// The error is about invalid UTF-8, which is replaced.
	out, _ := jsontext.AppendQuote(dst, s)
	return out
}

// A field is one member of a JSON object, raw; at is where its value begins.
type field struct {
	name, value []byte
	at          int
}

// fields gives the members of obj, which must be valid JSON; none if it is not
// an object. It only looks for where values end, and so is much cheaper than
// reading them again.
func fields(obj []byte) func(yield func(field) bool) {
	return func(yield func(field) bool) {
		i := skipSpace(obj, 0)
		if i >= len(obj) || obj[i] != '{' {
			return
		}
		i = skipSpace(obj, i+1)
		for i < len(obj) && obj[i] == '"' {
			end := skipString(obj, i)
			name := obj[i:end]
			i = skipSpace(obj, skipSpace(obj, end)+1) // over the colon
			end = skipValue(obj, i)
			if !yield(field{name, obj[i:end], i}) {
				return
			}
			i = skipSpace(obj, end)
			if i < len(obj) && obj[i] == ',' {
				i = skipSpace(obj, i+1)
			}
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// skipString is the index after the string that begins at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// skipValue is the index after the value that begins at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch c := b[i]; c {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		default:
			i++
			if depth == 0 {
				for i < len(b) && strings.IndexByte(" \n\r\t,]}", b[i]) < 0 {
					i++
				}
			}
		}
		if depth == 0 {
			return i
		}
	}
	return len(b)
}
