package npm

import (
	"bufio"
	"bytes"
	"io"
	"time"
)

// kept are the members of a version that the abbreviated form has. libc is
// among them although the public registry leaves it out: pnpm, yarn and bun
// choose by it and to the others it is harmless.
var kept = map[string]bool{
	"name": true, "version": true, "deprecated": true, "dist": true, "directories": true,
	"dependencies": true, "optionalDependencies": true, "devDependencies": true,
	"bundleDependencies": true, "peerDependencies": true, "peerDependenciesMeta": true,
	"acceptDependencies": true, "bin": true, "_hasShrinkwrap": true, "engines": true,
	"funding": true, "os": true, "cpu": true, "libc": true,
}

// writeCorgi writes the abbreviated view of the packument doc, by the rule of
// npm's own minify-registry-metadata: name, dist-tags, versions and modified;
// of each version what an installer needs, where it says anything.
func writeCorgi(doc io.Reader, w io.Writer, t target) error {
	c := &corgi{w: bufio.NewWriterSize(w, 64<<10), t: t}
	c.w.WriteByte('{')
	if err := scan(doc, c); err != nil {
		return err
	}
	if !c.name {
		c.put(`"name"`, quoted(nil, t.pkg))
	}
	if !c.tags {
		c.put(`"dist-tags"`, []byte("{}"))
	}
	if !c.all {
		c.put(`"versions"`, []byte("{}"))
	}
	if c.modified == "" {
		c.modified = c.own
	}
	if c.modified != "" {
		c.put(`"modified"`, quoted(nil, c.modified))
	}
	c.w.WriteByte('}')
	return c.w.Flush()
}

// corgi is the visitor that writes the abbreviated view.
type corgi struct {
	w               *bufio.Writer
	t               target
	comma, inner    bool
	name, tags, all bool   // have been written
	modified        string // of time
	own             string // of the document itself, if it was abbreviated already
	buf             []byte
}

var _ visitor = (*corgi)(nil)

func (c *corgi) put(name string, value []byte) {
	if c.comma {
		c.w.WriteByte(',')
	}
	c.comma = true
	c.w.WriteString(name)
	c.w.WriteByte(':')
	c.w.Write(value)
}

func (c *corgi) member(name, value []byte) error {
	switch {
	case named(name, "name") && !c.name:
		c.name = true
		c.put(`"name"`, value)
	case named(name, "dist-tags") && !c.tags:
		c.tags = true
		c.put(`"dist-tags"`, value)
	case named(name, "time"):
		c.modified = modified(value)
	case named(name, "modified"):
		c.own = text(value)
	}
	return nil
}

func (c *corgi) versions([]byte) error {
	c.put(`"versions"`, []byte("{"))
	c.all, c.inner = true, false
	return nil
}

func (c *corgi) done() error { return c.w.WriteByte('}') }

func (c *corgi) version(name, value []byte, _ int64) error {
	if value[0] != '{' {
		return nil
	}
	if c.inner {
		c.w.WriteByte(',')
	}
	c.inner = true
	c.w.Write(name)
	c.w.WriteByte(':')
	c.buf = c.t.minify(c.buf[:0], text(name), value)
	_, err := c.w.Write(c.buf)
	return err
}

// minify appends a version's abbreviated object.
func (t target) minify(dst []byte, version string, object []byte) []byte {
	var bundled []byte // bundledDependencies, another spelling
	var bundle, scripted, script, flagged bool
	dst = append(dst, '{')
	first := len(dst)
	add := func(name string, value []byte) {
		if len(dst) > first {
			dst = append(dst, ',')
		}
		dst = append(quoted(dst, name), ':')
		if name == "dist" {
			dst = t.dist(dst, version, value)
		} else {
			dst = append(dst, value...)
		}
	}
	for f := range fields(object) {
		switch name := text(f.name); {
		case name == "bundledDependencies":
			bundled = f.value
		case name == "scripts":
			scripted, script = true, installs(f.value)
		case name == "hasInstallScript":
			flagged = string(f.value) == "true"
		case kept[name] && !empty(f.value):
			bundle = bundle || name == "bundleDependencies"
			add(name, f.value)
		}
	}
	if !bundle && bundled != nil && !empty(bundled) {
		add("bundleDependencies", bundled)
	}
	// Where the upstream has left the scripts out, its own word counts.
	if script || flagged && !scripted {
		add("hasInstallScript", []byte("true"))
	}
	return append(dst, '}')
}

// installs reports whether a version's scripts run at install time. A bare
// gypfile is not asked for: publishing turns it into a script.
func installs(scripts []byte) bool {
	for f := range fields(scripts) {
		if !empty(f.value) && (named(f.name, "install") || named(f.name, "preinstall") || named(f.name, "postinstall")) {
			return true
		}
	}
	return false
}

// empty reports whether a value says nothing: {}, [], "", false and null.
func empty(v []byte) bool {
	switch string(v) {
	case "{}", "[]", `""`, "false", "null":
		return true
	}
	if v[0] == '{' || v[0] == '[' {
		return len(bytes.TrimSpace(v[1:len(v)-1])) == 0
	}
	return false
}

// modified is when a packument changed last, by its time: what it says itself,
// or else the newest time of a version.
func modified(times []byte) string {
	var newest time.Time
	var said string
	for f := range fields(times) {
		s := text(f.value)
		if s == "" {
			continue
		}
		if named(f.name, "modified") {
			return s
		}
		if at, err := time.Parse(time.RFC3339, s); err == nil && at.After(newest) {
			newest, said = at, s
		}
	}
	return said
}
