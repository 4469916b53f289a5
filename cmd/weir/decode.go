package main

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// A decoder puts a YAML document into a struct, strictly: a key that the struct
// has not, a key given twice and a value of the wrong kind are errors that say
// where. Aliases, tags and merge keys are refused: a configuration should say
// what it says where it says it.
type decoder struct {
	file   string
	lookup func(name string) (value string, ok bool) // of environment variables
}

// decodeConfig reads a configuration and fills in its defaults.
func decodeConfig(file string, r io.Reader, lookup func(string) (string, bool)) (c *Config, err error) {
	text, err := io.ReadAll(io.LimitReader(r, maxConfigFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(text) > maxConfigFile {
		return nil, fmt.Errorf("%s: larger than a configuration can be (%v)", file, Size(maxConfigFile))
	}
	d := &decoder{file: file, lookup: lookup}
	body, err := d.parse(text)
	if err != nil {
		return nil, err
	}
	c = &Config{}
	if body != nil {
		if err := d.value(body, reflect.ValueOf(c).Elem(), ""); err != nil {
			return nil, err
		}
	}
	c.setDefaults()
	return c, nil
}

// parse returns the one document's body, nil if it is empty.
func (d *decoder) parse(text []byte) (body ast.Node, err error) {
	defer func() { // the parser is careful, but a typo must never be a crash
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: not YAML that can be read: %v", d.file, p)
		}
	}()
	f, err := parser.ParseBytes(text, 0)
	var at yaml.Error
	switch {
	case errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil:
		pos := at.GetToken().Position
		return nil, fmt.Errorf("%s:%d:%d: %s", d.file, pos.Line, pos.Column, firstLine(at.GetMessage()))
	case err != nil:
		return nil, fmt.Errorf("%s: %s", d.file, firstLine(err.Error()))
	}
	docs := slices.DeleteFunc(f.Docs, func(doc *ast.DocumentNode) bool { return doc == nil || isNothing(doc.Body) })
	switch len(docs) {
	case 0:
		return nil, nil
	case 1:
		return docs[0].Body, nil
	}
	return nil, d.fail(docs[1].Body, "", "a second document; a configuration is one")
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

func isNothing(n ast.Node) bool {
	switch n := n.(type) {
	case nil:
		return true
	case *ast.NullNode, *ast.CommentGroupNode:
		return true
	case *ast.DocumentNode:
		return n == nil || isNothing(n.Body)
	}
	return false
}

func (d *decoder) fail(n ast.Node, path, format string, args ...any) error {
	where := d.file
	if n != nil {
		if t := n.GetToken(); t != nil && t.Position != nil {
			where += fmt.Sprintf(":%d:%d", t.Position.Line, t.Position.Column)
		}
	}
	if path != "" {
		where += ": " + path
	}
	return fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...))
}

// value decodes n into v, which is settable; path is the keys that lead to it.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) error {
	if isNothing(n) {
		return nil // a key without a value is as if it were not there
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok || v.Kind() != reflect.Struct && v.Kind() != reflect.Map && v.Kind() != reflect.Slice {
		return d.scalar(n, v, path)
	}
	if v.Kind() == reflect.Slice {
		return d.list(n, v, path)
	}
	entries, ok := mapping(n)
	if !ok {
		return d.fail(n, path, "expected keys and values, not %s", kindOf(n))
	}
	seen := map[string]bool{}
	for _, e := range entries {
		key, err := d.key(e.Key, path)
		if err != nil {
			return err
		}
		sub := join(path, key)
		if seen[key] {
			return d.fail(e.Key, sub, "given twice")
		}
		seen[key] = true
		if v.Kind() == reflect.Map {
			err = d.mapEntry(e, v, key, sub)
		} else {
			err = d.field(e, v, key, sub)
		}
		if err != nil {
			return err
		}
	}
	if v.Kind() == reflect.Map && v.IsNil() {
		v.Set(reflect.MakeMap(v.Type())) // {} says that there are none
	}
	return nil
}

func (d *decoder) mapEntry(e *ast.MappingValueNode, v reflect.Value, key, path string) error {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	one := reflect.New(v.Type().Elem()).Elem()
	if err := d.value(e.Value, one, path); err != nil {
		return err
	}
	v.SetMapIndex(reflect.ValueOf(key), one)
	return nil
}

func (d *decoder) field(e *ast.MappingValueNode, v reflect.Value, key, path string) error {
	var known []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == key && name != "" {
			return d.value(e.Value, v.Field(i), path)
		}
		if name != "" {
			known = append(known, name)
		}
	}
	if what, ok := later[path]; ok {
		return d.fail(e.Key, path, "not supported by this version of weir (%s)", what)
	}
	if near := nearest(key, known); near != "" {
		return d.fail(e.Key, path, "unknown key; did you mean %q?", near)
	}
	return d.fail(e.Key, path, "unknown key; there are %s", strings.Join(known, ", "))
}

// list decodes a sequence; one address is a list of one.
func (d *decoder) list(n ast.Node, v reflect.Value, path string) error {
	seq, ok := n.(*ast.SequenceNode)
	if _, single := scalarText(n); single && v.Type() == reflect.TypeFor[Addresses]() {
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		return d.scalar(n, v.Index(0), path)
	}
	if !ok {
		return d.fail(n, path, "expected a list, not %s", kindOf(n))
	}
	list := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		sub := fmt.Sprintf("%s[%d]", path, i)
		if isNothing(item) {
			return d.fail(n, sub, "an item without a value")
		}
		if err := d.value(item, list.Index(i), sub); err != nil {
			return err
		}
	}
	v.Set(list)
	return nil
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) error {
	text, ok := scalarText(n)
	if !ok {
		if _, pairs := mapping(n); pairs {
			return d.fail(n, path, `expected a single value, not %s; if it is an address, put it in quotes: "https://…"`, kindOf(n))
		}
		return d.fail(n, path, "expected a single value, not %s", kindOf(n))
	}
	text, err := expand(text, d.lookup)
	if err != nil {
		return d.fail(n, path, "%v", err)
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return d.fail(n, path, "%v", err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		i, err := strconv.Atoi(text)
		if err != nil || i <= 0 {
			return d.fail(n, path, "%q is not a whole number above zero", text)
		}
		v.SetInt(int64(i))
	default:
		panic("config: a field of a kind that has no decoding: " + v.Type().String())
	}
	return nil
}

func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true // as it is written: a password may look like a number
	}
	return "", false
}

func (d *decoder) key(n ast.MapKeyNode, path string) (string, error) {
	if text, ok := scalarText(n); ok && text != "" {
		return text, nil
	}
	return "", d.fail(n, path, "%s cannot be a key", kindOf(n))
}

func mapping(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AnchorNode, *ast.AliasNode:
		return "an anchor or alias"
	case *ast.TagNode:
		return "a tag"
	case *ast.MergeKeyNode:
		return "a merge key"
	}
	return "this"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// expand replaces ${NAME} by the variable's value, which is not looked into
// again; "$${" is a plain "${".
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		at := strings.Index(s, "${")
		if at < 0 {
			out.WriteString(s)
			return out.String(), nil
		}
		if at > 0 && s[at-1] == '$' {
			out.WriteString(s[:at-1] + "${")
			s = s[at+2:]
			continue
		}
		name, rest, ok := strings.Cut(s[at+2:], "}")
		if !ok || !isVariable(name) {
			return "", fmt.Errorf(`"${" is not followed by a variable's name and "}"; write "$${" for a plain "${"`)
		}
		value, ok := lookup(name)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", name)
		}
		out.WriteString(s[:at] + value)
		s = rest
	}
}

func isVariable(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// nearest is the known key that differs from key by two edits at most.
func nearest(key string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if n := distance(key, k); n < least && n < len(k) {
			best, least = k, n
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
