package npm

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// The index of a packument is a text of lines with fields between tabs:
//
//	V version offset length file own digest address
//	T tag version
//
// One V for each version in the document's order, then the T. offset and
// length are where in the document the version's object is; file is the name
// its tarball is served under and own the upstream's, if that is another;
// digest is empty if the version has no usable hash, and address if it gives
// none. Versions and tags that could not be asked for are left out.
const (
	indexVersion = "V"
	indexTag     = "T"
	indexBuffer  = 64 << 10 // several times more than the fields' limits together
	maxAddress   = 8 << 10
)

// writeIndex writes the index of the packument doc.
func writeIndex(doc io.Reader, w io.Writer, pkg string) error {
	x := &indexer{w: bufio.NewWriterSize(w, 64<<10), pkg: pkg}
	if err := scan(doc, x); err != nil {
		return err
	}
	x.w.Write(x.tags)
	return x.w.Flush()
}

// indexer is the visitor that writes the index.
type indexer struct {
	w    *bufio.Writer
	pkg  string
	tags []byte // lines to come after the versions
}

var _ visitor = (*indexer)(nil)

func (x *indexer) versions([]byte) error { return nil }
func (x *indexer) done() error           { return nil }

func (x *indexer) member(name, value []byte) error {
	if !named(name, "dist-tags") {
		return nil
	}
	x.tags = x.tags[:0]
	for f := range fields(value) {
		if tag, version := text(f.name), text(f.value); plainSegment(tag) && plainSegment(version) {
			x.tags = append(x.tags, indexTag+"\t"+tag+"\t"+version+"\n"...)
		}
	}
	return nil
}

func (x *indexer) version(name, value []byte, offset int64) error {
	version := text(name)
	if value[0] != '{' || !plainSegment(version) {
		return nil
	}
	var integrity, shasum, tarball string
	for f := range fields(value) {
		if !named(f.name, "dist") {
			continue
		}
		for f := range fields(f.value) {
			switch {
			case named(f.name, "integrity"):
				integrity = text(f.value)
			case named(f.name, "shasum"):
				shasum = text(f.value)
			case named(f.name, "tarball"):
				tarball = text(f.value)
			}
		}
	}
	if len(tarball) > maxAddress || strings.ContainsFunc(tarball, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		tarball = ""
	}
	file := fileName(x.pkg, version, tarball)
	own := lastSegment(tarball)
	if own == file || !plainSegment(own) {
		own = ""
	}
	_, err := x.w.WriteString(strings.Join([]string{indexVersion, version, strconv.FormatInt(offset, 10),
		strconv.Itoa(len(value)), file, own, string(tarballDigest(integrity, shasum)), tarball}, "\t") + "\n")
	return err
}

// An entry is what an index says of one version.
type entry struct {
	version        string
	offset, length int64 // of its object in the document
	file           string
	own            string
	digest         digest.Digest
	address        string
}

// lines gives the fields of every line of an index that contains the given
// text. It looks for the text in a buffer of many lines at a time: an index of
// ten thousand versions is read for every tarball that is asked for.
func lines(index io.Reader, containing string, yield func(fields []string) bool) error {
	needle := []byte(containing)
	buf := make([]byte, 0, indexBuffer)
	for {
		n, err := index.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		whole := bytes.LastIndexByte(buf, '\n') + 1
		if (err != nil || len(buf) == cap(buf)) && !linesIn(buf[:whole], needle, yield) {
			return nil
		}
		switch {
		case err == io.EOF && whole == len(buf):
			return nil
		case err == io.EOF || err == nil && whole == 0 && len(buf) == cap(buf):
			return registry.Errorf(registry.ErrUnavailable, "a packument's index ends in the middle of a line")
		case err != nil:
			return registry.Wrap(registry.ErrUnavailable, err, "read a packument's index")
		}
		if len(buf) == cap(buf) {
			buf = buf[:copy(buf, buf[whole:])]
		}
	}
}

// linesIn is lines for whole lines in memory; it reports whether to go on.
func linesIn(text, needle []byte, yield func(fields []string) bool) bool {
	for {
		at := bytes.Index(text, needle)
		if at < 0 || len(text) == 0 {
			return true
		}
		begin := bytes.LastIndexByte(text[:at], '\n') + 1
		end := at + bytes.IndexByte(text[at:], '\n')
		if !yield(strings.Split(string(text[begin:end]), "\t")) {
			return false
		}
		text = text[end+1:]
	}
}

func parseEntry(f []string) (entry, bool) {
	if len(f) != 8 || f[0] != indexVersion {
		return entry{}, false
	}
	offset, err1 := strconv.ParseInt(f[2], 10, 64)
	length, err2 := strconv.ParseInt(f[3], 10, 64)
	e := entry{version: f[1], offset: offset, length: length, file: f[4], own: f[5], digest: digest.Digest(f[6]), address: f[7]}
	return e, err1 == nil && err2 == nil
}

// findFile looks a tarball's file name up in an index: the name it is served
// under counts before the usual one, and that before the upstream's own, which
// need not be of one version alone.
func findFile(index io.Reader, pkg, file string) (found entry, ok bool, err error) {
	version, usual := strings.CutPrefix(file, unscoped(pkg)+"-")
	version, tgz := strings.CutSuffix(version, ".tgz")
	usual = usual && tgz
	needle := "\t" + file + "\t"
	if usual {
		needle = version + ".tgz\t" // so ends every file name of that version
	}
	best := 0
	err = lines(index, needle, func(f []string) bool {
		e, isEntry := parseEntry(f)
		rank := 0
		switch {
		case !isEntry:
		case e.file == file:
			rank = 3
		case usual && e.version == version:
			rank = 2
		case e.own == file:
			rank = 1
		}
		if rank > best {
			found, best = e, rank
		}
		return best < 3
	})
	return found, best > 0, err
}

// findVersion looks a version up in an index, or a tag: then version is what
// the tag stands for, which has to be looked up in its turn.
func findVersion(index io.Reader, ref string) (found entry, tagged string, ok bool, err error) {
	err = lines(index, "\t"+ref+"\t", func(f []string) bool {
		if len(f) == 3 && f[0] == indexTag && f[1] == ref {
			tagged = f[2]
		}
		if e, isEntry := parseEntry(f); isEntry && e.version == ref {
			found, ok = e, true
		}
		return !ok
	})
	return found, tagged, ok, err
}

// distTags is the JSON object of the tags in an index.
func distTags(index io.Reader) ([]byte, error) {
	out := []byte{'{'}
	err := lines(index, indexTag+"\t", func(f []string) bool {
		if len(f) != 3 || f[0] != indexTag {
			return true
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = quoted(append(quoted(out, f[1]), ':'), f[2])
		return true
	})
	return append(out, '}'), err
}
